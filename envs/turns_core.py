"""`TurnsCore`, the batched core of `TextTurns-v0`: turns of the policy and replies of a world.

It adds worlds to `token_rows.py`. A turn ends at an end token or at the turn's budget; then the
row's world takes the turn's text and pays, and its reply is appended as tokens that nobody chose.
How worlds are called is in `world_calls.py`, how they are written in `world_texts.py`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from textrl.data import load_records
from textrl.digests import data_digest, weights_digest
from textrl.envs import tasks
from textrl.envs.reference import load_reference
from textrl.envs.step_result import StepResult
from textrl.envs.texts import PromptStream, Stream, as_rows
from textrl.envs.token_rows import TOKENS_PER_PASS, TokenRows
from textrl.envs.turns_config import TurnsConfig
from textrl.envs.world_calls import Answer, Worlds
from textrl.envs.world_texts import WorldTexts
from textrl.errors import UserError, shown
from textrl.models import pick_device, pick_dtype
from textrl.packing import filled_batches
from textrl.reward_calls import Cost
from textrl.seams import decode_completion

UNCOMPARED = {"kl_coef", "world", "reference", "tokenizer", "device", "dtype", "prompts"}
UNCOMPARED |= {"world_timeout", "on_world_error"}  # what a run may set anew after a world failed
"""Arguments that are no settings of the rewards, or have a digest of their own."""


@dataclass(frozen=True, kw_only=True)
class Episode:
    """How an episode begins."""

    seed: int | None = None
    """The seed of the world's reset; None: that of the next episode of the row's stream."""
    index: int | None = None
    """The row of the prompts; None where there are none."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further options of the world's reset."""


class EpisodeStream:
    """An endless stream of episodes; each comes `repeats` times in a row."""

    def __init__(self, rng: np.random.Generator, num_prompts: int, repeats: int = 1) -> None:
        """Start at the first episode."""
        self._base, self._repeats = int(rng.integers(2**31)), repeats
        self._indices = PromptStream(rng, num_prompts, repeats) if num_prompts else None
        self.drawn = 0
        """How many episodes have been returned."""

    def next(self) -> Episode:
        """Return the next episode."""
        mixed = np.random.SeedSequence([self._base, self.drawn // self._repeats])
        self.drawn += 1
        index = None if self._indices is None else self._indices.next()
        return Episode(seed=int(mixed.generate_state(1)[0] >> 1), index=index)

    def state(self) -> dict[str, Any]:
        """Return where the stream stands, JSON-able."""
        indices = None if self._indices is None else self._indices.state()
        return {"base": self._base, "drawn": self.drawn, "indices": indices}

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a state."""
        self._base, self.drawn = int(state["base"]), int(state["drawn"])
        if self._indices is not None:
            self._indices.load(state["indices"])


class TurnsCore(TokenRows):
    """B rows of turns with a world each, against one frozen reference."""

    def __init__(self, num_rows: int, config: TurnsConfig) -> None:
        """Load the models that are given by name, keep those given as objects, make the worlds."""
        self._config = config
        device = pick_device(config.device)
        pick_dtype(config.dtype, device)  # refuses a wrong name, also where nothing is loaded
        reference, tokenizer = load_reference(
            config, device, tasks.tiny_character_model, tasks.tiny_character_tokenizer
        )
        super().__init__(num_rows, config, reference, tokenizer, turn_budget=config.max_turn_tokens)
        self.texts = WorldTexts(
            tokenizer, self.end_token_ids, config.system_prompt, config.chat_template_kwargs
        )
        self.worlds = Worlds(num_rows, config)
        self.prompts = [] if config.prompts is None else load_records(as_rows(config.prompts)).rows
        self.turn = np.zeros(num_rows, dtype=np.int64)
        """The number of turns that each row's episode has had."""
        self.returns = np.zeros(num_rows)
        """What the world has paid in each row's episode."""
        self.messages: list[list[dict[str, str]]] = [[] for _ in range(num_rows)]
        """What was said in each row's episode: role and content, the policy's as "assistant"."""
        self._reset_infos: list[dict[str, Any]] = [{} for _ in range(num_rows)]

    @property
    def config(self) -> TurnsConfig:
        """The arguments of the environment."""
        return self._config

    @property
    def reward_costs(self) -> dict[str, Cost]:
        """What the calls of all worlds have cost, by the name ""."""
        return {"": self.worlds.cost}

    @cached_property
    def digest(self) -> dict[str, str]:
        """What the rewards depend on beside the prompts, by name; weights as digests."""
        settings = {
            name: re.sub(r" at 0x[0-9a-f]+", "", repr(value))  # an address differs in each process
            for name, value in self.config.__dict__.items()
            if name not in UNCOMPARED
        }
        reference = weights_digest(self.reference)
        return settings | {"world": self.worlds.name, "reference": reference}

    @cached_property
    def prompts_digest(self) -> str:
        """A hash of the rows of data."""
        return data_digest([sorted(row.items()) for row in self.prompts])

    def stream(self, rng: np.random.Generator, repeats: int = 1) -> EpisodeStream:
        """Return an endless stream of episodes."""
        return EpisodeStream(rng, len(self.prompts), repeats)

    def chosen(self, options: dict[str, Any], row: int) -> Episode:
        """Return the episode that reset options choose for a row.

        "index" selects a row of the prompts, and the seed of the world. Other options go to the
        world's reset; of a list, which has one entry per row, the row's own.
        """
        own = {}
        for name, value in options.items():
            many = isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim)
            if many and len(value) != self.num_rows:
                raise UserError(
                    f"options[{name!r}] has {len(value)} entries for {self.num_rows} rows; a list "
                    f"has one for each"
                )
            own[name] = value[row] if many else value
        if "index" not in own:
            return Episode(options=own)
        index = own.pop("index")
        if not isinstance(index, int | np.integer) or isinstance(index, bool) or index < 0:
            raise UserError(f"options['index'] is {shown(index)}; expected a whole number")
        if self.prompts and index >= len(self.prompts):
            raise UserError(f"prompt index {index} is not in [0, {len(self.prompts)})")
        return Episode(seed=int(index), index=int(index) if self.prompts else None, options=own)

    def drawn(self, stream: Stream, chosen: Episode | None) -> Episode:
        """Return the episode to start; options without an index are for the stream's next one."""
        if chosen is not None and not self.draws(chosen):
            return chosen
        episode: Episode = stream.next()
        return episode if chosen is None else replace(episode, options=chosen.options)

    def draws(self, chosen: Episode | None) -> bool:
        """Return whether the next episode is one of the stream."""
        return chosen is None or chosen.seed is None

    def start(self, row: int, episode: Episode) -> None:
        """Begin an episode in a row."""
        self.running[row] = False
        columns = {} if episode.index is None else self.prompts[episode.index]
        text, info = self.worlds.reset(row, episode.seed, {**columns, **episode.options})
        place = f"row {row}, the first text of {self.worlds.name}"
        ids, most = self.texts.opening(text, place), self.config.max_prompt_tokens
        if len(ids) > most:
            raise UserError(
                f"{place} has {len(ids)} tokens, max_prompt_tokens is {most}; raise it (a cut text "
                f"would be another game)"
            )
        self._begin(row, ids)
        self.turn[row], self.returns[row] = 0, 0.0
        self.messages[row] = [{"role": "user", "content": text}]
        self._reset_infos[row] = {
            "prompt": text,
            "prompt_index": episode.index,
            "world_info": info,
        }

    def reset_infos(self) -> dict[str, list[Any]]:
        """Return what a reset tells of each row."""
        names = ("prompt", "prompt_index", "world_info")
        return {name: [info.get(name) for info in self._reset_infos] for name in names}

    def shown(self, row: int) -> str:
        """Return what was said in a row, the policy's present turn too, with bars between turns."""
        parts = [message["content"] for message in self.messages[row]]
        return "|".join([*parts, self.turn_text(row)])

    def turn_text(self, row: int) -> str:
        """Return the text of a row's present turn, without its end token."""
        start, end = self.turn_starts[row], self.lengths[row]
        before = self.input_ids[row, max(0, start - 16) : start].tolist()
        own = self.input_ids[row, start:end].tolist()
        return decode_completion(self.tokenizer, before, own, self.end_token_ids)

    def _pay(self, ref_logprobs: np.ndarray, active: np.ndarray, last: np.ndarray) -> StepResult:
        """End the turns that are over, let their worlds answer, and return all rewards."""
        final_token = self.input_ids[np.arange(self.num_rows), self.lengths - 1]
        at_end = active & np.isin(final_token, self.end_token_ids)
        over = active & (at_end | (self.room() == 0))
        rows = over.nonzero()[0].tolist()
        turns = {row: self.turn_text(row) for row in rows}
        answers = self.worlds.answers(turns)
        replies = {row: self._reply_ids(row, answers[row]) for row in rows}
        rewards = self.kl_coef * ref_logprobs if self.shaping == "exact" else 0 * ref_logprobs
        flags = np.zeros((2, self.num_rows), dtype=bool)
        reasons = np.full(self.num_rows, None, dtype=object)
        self.worlds.settle(rows)
        for row in rows:
            rewards[row, last[row]] += answers[row].reward
            fits = self._take(row, turns[row], answers[row], replies[row])
            flags[:, row], reasons[row] = _ended(answers[row], fits)
        terminated, truncated = flags
        self.running &= ~(terminated | truncated)
        score = np.where(terminated | truncated, self.returns, np.nan)
        score[[row for row in rows if answers[row].failed]] = np.nan
        return StepResult(
            rewards=rewards,
            ref_logprobs=ref_logprobs,
            terminated=terminated,
            truncated=truncated,
            score=score,
            finish_reason=reasons,
            extras=self._extras(turns, answers, terminated | truncated),
        )

    def _reply_ids(self, row: int, answer: Answer) -> list[int]:
        """Return the tokens of a world's answer to a row's turn; none where the world failed."""
        if answer.failed:
            return []
        own = self.input_ids[row, self.turn_starts[row] : self.lengths[row]].tolist()
        roles = [said["role"] for said in self.messages[row] if said["role"] != "assistant"]
        return self.texts.reply(own, answer.text, roles, answer.role)

    def _take(self, row: int, turn: str, answer: Answer, ids: list[int]) -> bool:
        """Append a turn and its reply to a row; return whether the reply had room.

        An episode that goes on needs room for a token of the policy's next turn too.
        """
        self.turn[row] += 1
        self.returns[row] += answer.reward
        self.messages[row].append({"role": "assistant", "content": turn})
        if answer.failed:
            return False
        self.messages[row].append({"role": answer.role, "content": answer.text})
        start, going_on = self.lengths[row], not (answer.terminated or answer.truncated)
        end = start + len(ids)
        if end + going_on > self.ends()[row]:
            return False
        self.input_ids[row, start:end] = ids
        self.lengths[row] = self.turn_starts[row] = end
        return True

    def _extras(
        self, turns: dict[int, str], answers: dict[int, Answer], ended: np.ndarray
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Return what infos tell of the turns that are over, and of the episodes that ended."""
        over = np.zeros(self.num_rows, dtype=bool)
        over[list(turns)] = True
        columns = {
            name: np.full(self.num_rows, None, dtype=object)
            for name in ("turn_text", "reply", "world_info", "messages")
        }
        turn_reward = np.zeros(self.num_rows)
        for row, answer in answers.items():
            turn_reward[row] = answer.reward
            columns["turn_text"][row], columns["reply"][row] = turns[row], answer.text
            columns["world_info"][row] = answer.info
            if ended[row]:
                columns["messages"][row] = list(self.messages[row])
        shown_at = {name: (values, over) for name, values in columns.items()}
        shown_at["messages"] = (columns["messages"], ended)
        return {"turn": (self.turn.copy(), over), "turn_reward": (turn_reward, over)} | shown_at

    @torch.no_grad()
    def _logprobs(self, actions: np.ndarray, mask: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """Return the reference's log-probs of the actions, float64 [B T], 0 outside the mask.

        Only what is new since the last call is read: the world's reply and this turn.
        """
        result, device = np.zeros(mask.shape), self.lm.device
        rows = np.flatnonzero(mask.any(1))
        counts = (self.lengths - self._known)[rows]
        for batch in filled_batches(counts.tolist(), TOKENS_PER_PASS):
            part = rows[batch]
            index = torch.as_tensor(part, device=device)
            before, known = self._states[index].unsqueeze(1), self._known[part]
            states = self._decoder.read(index, *self._unread(part))
            hidden = torch.cat([before.to(states.dtype), states], dim=1)  # from known - 1 on
            counted = torch.as_tensor(mask[part], device=device)
            steps = torch.arange(mask.shape[1], device=device)
            first = torch.as_tensor(starts[part], device=device).unsqueeze(1)
            places = first - torch.as_tensor(known, device=device).unsqueeze(1) + steps
            places = places.masked_fill(~counted, 0).unsqueeze(-1)
            chosen = hidden.gather(1, places.expand(-1, -1, hidden.shape[-1]))
            positions = first + steps
            result[part] = self._logprobs_from(chosen, actions[part], counted, part, positions)
            last = states[torch.arange(len(part)), torch.as_tensor(counts[batch]) - 1]
            self._remember(part, last)
        return result


def _ended(answer: Answer, fits: bool) -> tuple[Sequence[bool], str | None]:
    """Return whether an answer terminates or truncates its episode, and why it ended."""
    if answer.failed:
        return (False, True), "world_error"
    if answer.terminated:
        return (True, False), "world"
    if answer.truncated:
        return (False, True), "world_limit"
    return (False, not fits), None if fits else "length"
