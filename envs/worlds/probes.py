"""Four worlds that tell in seconds where an agent is broken, each harder by one thing.

| id | what it adds | an agent that fails it and passes the one before |
|---|---|---|
| `textrl/ProbeConstant-v0` | one right letter, always the same | does not learn from its rewards |
| `textrl/ProbePrompt-v0` | the first text names the letter | does not see the prompt |
| `textrl/ProbeDelayed-v0` | the reward comes several characters late | loses it on the way |
| `textrl/ProbeLaterTurn-v0` | the reward comes a turn late | loses it between turns |

In each the best value is 1.0, and the first character of a turn decides.
"""

from typing import Any

from textrl.envs.worlds.base import (
    Reply,
    World,
    checked_letters,
    checked_text,
    checked_whole,
    read,
    verdict,
)

LOWER = "abcdefghijklmnopqrstuvwxyz"


class ProbeConstant(World):
    r"""The first text is "say b\n" in every game, and a turn that begins with "b" gets 1.0.

    What follows the first character does not matter. The turn ends the game; the reply is "yes\n"
    or "no, b\n". A letter by chance among the four from a to d is worth 0.25. `info` has "turns"
    and "won". There are no options.
    """

    def __init__(self, *, target: str = "b", render_mode: str | None = None) -> None:
        """Make the world with the right letter, one from a to z."""
        super().__init__(render_mode)
        self.target = checked_text("target", target, 1, LOWER)

    def _begin(self, options: dict[str, Any]) -> str:
        return f"say {self.target}\n"

    def _reply(self, turn: str) -> Reply:
        return verdict(turn[:1] == self.target, self.target)


class ProbePrompt(World):
    r"""The first text is "say c\n" with a drawn letter, and a turn that begins with it gets 1.0.

    What follows the first character does not matter. The turn ends the game; the reply is "yes\n"
    or "no, c\n". Whoever does not read the text gets 1 / len(letters) at best. `info` has "turns"
    and "won". `reset(options={"target": "c"})` sets the letter.
    """

    options_known = ("target",)

    def __init__(self, *, letters: str = "abcd", render_mode: str | None = None) -> None:
        """Make the world with the letters to draw from, each as likely as the others."""
        super().__init__(render_mode)
        self.letters = checked_letters("letters", letters)
        self._target = ""

    def _check(self, options: dict[str, Any]) -> None:
        if "target" in options:
            checked_text("options['target']", options["target"], 1, self.letters)

    def _begin(self, options: dict[str, Any]) -> str:
        drawn = self.letters[self.np_random.integers(len(self.letters))]
        self._target = options.get("target", drawn)
        return f"say {self._target}\n"

    def _reply(self, turn: str) -> Reply:
        return verdict(turn[:1] == self._target, self._target)


class ProbeDelayed(World):
    r"""The first text is "say b and 3 more\n", and "b" with three characters behind it gets 1.0.

    The first character decides, and the reward is paid at the end of the turn, `length` characters
    later. A shorter turn gets 0.0; a longer one is as good. The turn ends the game; the reply is
    "yes\n" or "no, b\n". `info` has "turns" and "won". There are no options.
    """

    def __init__(
        self, *, target: str = "b", length: int = 4, render_mode: str | None = None
    ) -> None:
        """Make the world with the right letter and the shortest turn in characters, 2 to 100."""
        super().__init__(render_mode)
        self.target = checked_text("target", target, 1, LOWER)
        self.length = checked_whole("length", length, 2, 100)

    def _begin(self, options: dict[str, Any]) -> str:
        return f"say {self.target} and {self.length - 1} more\n"

    def _reply(self, turn: str) -> Reply:
        return verdict(turn[:1] == self.target and len(turn) >= self.length, self.target)


class ProbeLaterTurn(World):
    r"""The first text is "say b\n"; a first turn that begins with "b" gets 1.0 at the last turn.

    The turns before the last get 0.0 and the reply "and then?\n", whatever they say; only the first
    one counts. The last of the `max_turns` turns ends the game; the reply is "yes\n" or "no, b\n".
    `info` has "turns" and "won". There are no options.
    """

    def __init__(
        self, *, target: str = "b", max_turns: int = 2, render_mode: str | None = None
    ) -> None:
        """Make the world with the right letter and the number of turns, 2 to 100."""
        super().__init__(render_mode)
        self.target = checked_text("target", target, 1, LOWER)
        self.max_turns = checked_whole("max_turns", max_turns, 2, 100)
        self._right = False

    def _begin(self, options: dict[str, Any]) -> str:
        return f"say {self.target}\n"

    def _reply(self, turn: str) -> Reply:
        if self.turns == 1:
            self._right = turn[:1] == self.target
        if self.turns < self.max_turns:
            return Reply("and then?\n")
        return verdict(self._right, self.target)


def expert(texts: list[str]) -> str:
    """Return the letter that the first text names, as often as it wants characters."""
    letter, more = read(r"say (\w)(?: and (\d+) more)?\n", texts[0])
    return letter * (1 + int(more or 0))
