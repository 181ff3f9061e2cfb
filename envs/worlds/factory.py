"""An object made for TRL's `environment_factory` (GRPOTrainer, trl 1.16) as a world in text turns.

What TRL asks of such an object: `reset(**row)`, which returns a text or None; every other public
method of its class is a tool; `get_reward()`, if there is one, scores the finished episode.
"""

import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from textrl.envs.worlds.foreign import ForeignWorld, making
from textrl.errors import UserError, shown

Reward = Callable[..., Sequence[float | None]]
"""A reward function of TRL's form; it is called for one episode, with lists of length 1."""
CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)


class FactoryWorld(ForeignWorld):
    r"""A TRL environment, played in text: `FactoryWorld(MyEnvironment, prompt="Open the door.")`.

    What is mapped to what:

    - `reset(options=row)` calls the object's `reset(**row)`, a row of TRL's data set. The first
      observation is the prompt (`options["prompt"]`, or the argument) with the returned text
      behind it, as TRL appends it to the last user message; the row's prompt is passed on in
      TRL's form, a list of one user message. A seed is not passed on, since TRL knows none:
      equal seeds give equal games if the object draws from `random`'s or numpy's global generator.
    - A turn that is a JSON object `{"name": ..., "arguments": {...}}`, or has such objects in
      `<tool_call>` tags, calls those methods. The observation is what they return, `str` of each,
      a line each; what a method raises, and a name that is none, is `{'error': '...'}`, as in TRL.
      `info["role"]` is "tool" and `info["tools"]` names what was called. The reward is 0.
    - Any other turn is the answer and ends the episode, as does a call after `max_tool_turns`
      turns with calls, which TRL would not make either. The observation is empty. The reward is
      the object's `get_reward()`, if it has one, plus the value of `reward`, if given, else 0.
      `reward` is called as TRL calls a reward function, by name and with what it names: prompts,
      completions (both as messages), environments, and the row's other columns.

    What is left out: the tools' descriptions, which TRL's chat template adds to the prompt
    (`world.tools` has the methods; name them in the prompt, or render `tools=` yourself);
    `completion_ids`, `trainer_state` and the two log functions; coroutines; pictures.

    Args:
        factory: A class or function that makes the object, or the object.
        prompt: The prompt of an episode whose options have none.
        reward: A reward function of TRL's.
        max_tool_turns: TRL's `max_tool_calling_iterations`.
    """

    def __init__(
        self,
        factory: Any,
        *,
        prompt: str = "",
        reward: Reward | None = None,
        max_tool_turns: int | None = None,
    ) -> None:
        who = f"environment_factory {getattr(factory, '__name__', type(factory).__name__)}"
        super().__init__(who, quiet=False)
        with self.isolated(), making(who):
            self.environment = factory() if callable(factory) else factory
        self._prompt = prompt
        self._reward = reward
        self._max_tool_turns = max_tool_turns
        kind = type(self.environment)
        methods = dict(inspect.getmembers(kind, predicate=inspect.isfunction))
        if "reset" not in methods:
            raise UserError(
                f"{who}: {kind.__name__} has no method reset(); expected TRL's protocol"
            )
        self._owns_reward = methods.pop("get_reward", None) is not None
        del methods["reset"]
        self.tools = [getattr(self.environment, n) for n in methods if not n.startswith("_")]
        self._tools = {tool.__name__: tool for tool in self.tools}
        for name, tool in self._tools.items():
            if inspect.iscoroutinefunction(tool):
                raise UserError(f"{who}: {name} is a coroutine; expected a plain method")

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[str, dict[str, Any]]:
        """Return the prompt and what the object's `reset` adds to it."""
        row = dict(options or {})
        prompt = row.get("prompt", self._prompt)
        if not isinstance(prompt, str):
            raise UserError(f"{self.who}: prompt {shown(prompt)}; expected a text")
        number = self.begin(seed)
        if prompt:
            row["prompt"] = [{"role": "user", "content": prompt}]
        with self.isolated(number):
            added = self.environment.reset(**row)
        if not isinstance(added, str | None):
            raise UserError(f"{self.who}: reset() gave {shown(added)}; expected a text or None")
        text = prompt + (added or "")
        self._row = row
        self._messages = [{"role": "user", "content": text}]
        self._completion: list[dict[str, Any]] = []
        self._tool_turns = 0
        return self.started(text, {"role": "user"})

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Return what the called methods return, or end the episode and pay for it."""
        text = self.taken(action)
        calls = tool_calls(text)
        said: dict[str, Any] = {"role": "assistant", "content": text}
        self._completion.append(said)
        limit = self._max_tool_turns
        if not calls or (limit is not None and self._tool_turns >= limit):
            return self.replied("", self._paid(), True, False, {"role": "user"})
        self._tool_turns += 1
        said["tool_calls"] = [{"type": "function", "function": call} for call in calls]
        names = [str(call["name"]) for call in calls]
        results = [self._called(call) for call in calls]
        for name, result in zip(names, results, strict=True):
            self._completion.append({"role": "tool", "name": name, "content": result})
        info = {"role": "tool", "tools": names}
        return self.replied("\n".join(results), 0.0, False, False, info)

    def _called(self, call: Mapping[str, Any]) -> str:
        """Return what one tool returns, or its error, as text."""
        name = call["name"]
        try:
            if name not in self._tools:
                raise ValueError(f"Tool {name} not found.")
            with self.isolated():
                result = self._tools[name](**call["arguments"])
        except Exception as error:  # the model's mistake, which it may read and mend
            return str({"error": str(error)})
        if isinstance(result, list) and any(isinstance(part, dict) for part in result):
            if all(isinstance(part, dict) and part.get("type") == "text" for part in result):
                return "".join(str(part.get("text", "")) for part in result)
            raise UserError(f"{self.who}: {name} gave content that is no text; expected a text")
        return str(result)

    def _paid(self) -> float:
        """Return the reward of the episode, the sum of its sources."""
        total = 0.0
        if self._owns_reward:
            with self.isolated():
                total += self._number("get_reward()", self.environment.get_reward())
        if self._reward is not None:
            given = {
                **{name: [value] for name, value in self._row.items()},
                "prompts": [self._messages],
                "completions": [self._completion],
                "environments": [self.environment],
            }
            given.pop("prompt", None)
            found = list(self._reward(**_named(self._reward, given)))
            if len(found) != 1:
                raise UserError(f"{self.who}: reward gave {len(found)} values; expected 1")
            total += 0.0 if found[0] is None else self._number("reward", found[0])
        return total

    def _number(self, source: str, value: object) -> float:
        try:
            return float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{self.who}: {source} gave {shown(value)}; expected a number"
            ) from error


def tool_calls(text: str) -> list[dict[str, Any]]:
    """Return the calls that a turn makes, or [] where the turn is no call.

    >>> tool_calls('{"name": "add", "arguments": {"a": 1}}')
    [{'name': 'add', 'arguments': {'a': 1}}]
    >>> tool_calls('So: <tool_call>{"name": "look"}</tool_call>')
    [{'name': 'look', 'arguments': {}}]
    >>> tool_calls("42"), tool_calls("<tool_call>oops</tool_call>")
    ([], [])
    """
    calls = []
    for block in CALL.findall(text) or [text]:
        try:
            value = json.loads(block)
        except (ValueError, RecursionError):
            return []
        for call in value if isinstance(value, list) else [value]:
            if not isinstance(call, dict) or not isinstance(call.get("name"), str):
                return []
            arguments = call.get("arguments", {})
            if not isinstance(arguments, dict):
                return []
            calls.append({"name": call["name"], "arguments": arguments})
    return calls


def _named(function: Reward, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the function names, or all if it takes any name."""
    parameters = inspect.signature(function).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return dict(given)
    return {name: value for name, value in given.items() if name in parameters}
