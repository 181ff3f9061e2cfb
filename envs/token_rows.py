"""`TokenRows`: rows of tokens against one frozen reference, which one turn and many share.

It keeps the tokens, checks actions, and computes the reference's log-probs of them, step by step
with a KV cache or for a sequence at once. What an action leads to is in the two cores: `core.py`
(one turn and a score) and `turns_core.py` (turns with a world). Nothing here depends on Gymnasium.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from textrl.chat import end_ids
from textrl.decoding import Decoder
from textrl.envs.core_config import Shaping
from textrl.envs.reference import check_positions
from textrl.envs.step_result import StepResult
from textrl.envs.texts import Stream
from textrl.errors import UserError, shown
from textrl.limits import check_vocabulary
from textrl.logprobs import (
    AllowedTokens,
    chunked_token_logprobs,
    completion_positions,
    token_logprobs,
)
from textrl.models import eos_id, split_lm
from textrl.packing import filled_batches
from textrl.reward_calls import Cost
from textrl.task_config import TokensConfig

TOKENS_PER_PASS = 8192
"""Number of tokens that the reference reads in one forward pass."""


class TokenRows(ABC):
    """B rows of tokens, each of which goes on from a text that somebody else wrote."""

    shaping: Shaping = "exact"

    def __init__(
        self,
        num_rows: int,
        config: TokensConfig,
        reference: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        min_tokens: int = 0,
        turn_budget: int,
    ) -> None:
        """Keep the frozen reference and make empty rows.

        Args:
            num_rows: B.
            config: Lengths, temperature, banned tokens, kl_coef.
            reference: The frozen reference.
            tokenizer: Its tokenizer.
            min_tokens: Number of tokens of a turn before which it may not end.
            turn_budget: Maximum number of tokens of a turn.
        """
        self.num_rows, self.kl_coef, self.turn_budget = num_rows, config.kl_coef, turn_budget
        self.temperature = config.temperature
        self.reference, self.tokenizer = reference, tokenizer
        check_vocabulary(reference, tokenizer)
        self.lm = split_lm(reference)
        self.eos_token_id = eos_id(tokenizer)
        self.end_token_ids = tuple(
            token for token in end_ids(tokenizer, reference) if token < self.lm.vocab_size
        )
        self.allowed = AllowedTokens(
            width=self.lm.vocab_size,
            banned=config.banned_token_ids,
            end_ids=self.end_token_ids,
            min_tokens=min_tokens,
        )
        self.max_length = config.max_prompt_tokens + config.max_completion_tokens
        check_positions(self.lm, self.max_length)
        self.input_ids = np.zeros((num_rows, self.max_length), dtype=np.int32)
        self.prompt_lengths = np.zeros(num_rows, dtype=np.int64)
        self.turn_starts = np.zeros(num_rows, dtype=np.int64)
        self.lengths = np.zeros(num_rows, dtype=np.int64)
        self.running = np.zeros(num_rows, dtype=bool)
        self._decoder = Decoder(self.lm, num_rows, self.max_length)
        self._known = np.zeros(num_rows, dtype=np.int64)  # tokens that the decoder has read
        self._states = torch.zeros(num_rows, self.lm.state_size, device=self.lm.device)

    @property
    @abstractmethod
    def config(self) -> TokensConfig:
        """The arguments of the environment."""

    @property
    @abstractmethod
    def digest(self) -> dict[str, str]:
        """What the rewards depend on beside the prompts, by name; weights as digests."""

    @property
    @abstractmethod
    def prompts_digest(self) -> str:
        """A hash of what the streams of episodes draw from."""

    @property
    def needs_whole_groups(self) -> bool:
        """Whether rewards compare a group, so that all its rows have to end in one call."""
        return False

    @property
    @abstractmethod
    def reward_costs(self) -> dict[str, Cost]:
        """What the calls of each reward function, or all of them (""), have cost, by name."""

    @abstractmethod
    def stream(self, rng: np.random.Generator, repeats: int = 1) -> Stream:
        """Return an endless stream of episodes, each of them `repeats` times in a row."""

    @abstractmethod
    def chosen(self, options: dict[str, Any], row: int) -> Any:
        """Return the episode that reset options choose for a row; UserError if there is none."""

    def drawn(self, stream: Stream, chosen: Any | None) -> Any:
        """Return the episode to start: the chosen one, or else the next of the stream."""
        return stream.next() if chosen is None else chosen

    def draws(self, chosen: Any | None) -> bool:
        """Return whether `drawn` takes an episode of the stream."""
        return chosen is None

    @abstractmethod
    def start(self, row: int, episode: Any) -> None:
        """Begin an episode in a row, one of the stream or one that was chosen."""

    @abstractmethod
    def reset_infos(self) -> dict[str, list[Any]]:
        """Return what a reset tells of each row, by name, B entries each."""

    @abstractmethod
    def shown(self, row: int) -> str:
        """Return the text of a row for people."""

    @abstractmethod
    def _pay(self, ref_logprobs: np.ndarray, active: np.ndarray, last: np.ndarray) -> StepResult:
        """Let new tokens have their consequences; return all rewards.

        Args: the reference's log-probs of the tokens [B T], the rows that got tokens [B], and the
            index of each row's last new token [B].
        """

    def step(self, actions: np.ndarray, active: np.ndarray) -> StepResult:
        """Append one token to each active row; return what it leads to."""
        if actions.shape != (self.num_rows,):
            raise UserError(
                f"actions are {shown(actions)}; expected {self.num_rows} tokens, one a row"
            )
        places = self.lengths - self.turn_starts
        self.allowed.check(as_tokens(actions[active]), torch.as_tensor(places[active]))
        self._require_running(active)
        tokens = torch.as_tensor(np.where(active, actions, 0), device=self.lm.device)
        rows = active.nonzero()[0]
        with self._taken_back_on_failure(self.lengths.copy()):
            states = self.current_states(active)
            with torch.no_grad():
                logits = self.lm.head(states)
                at = torch.as_tensor(places, device=logits.device)
                logits = self.allowed.restrict(logits, at)
            found = token_logprobs(logits, tokens, temperature=self.temperature)
            ref_logprobs = np.where(active, found.double().cpu().numpy(), 0.0)
            self.input_ids[rows, self.lengths[rows]] = actions[rows]
            self.lengths[rows] += 1
            last = np.zeros(self.num_rows, dtype=np.int64)
            return self._pay(ref_logprobs[:, None], active, last)

    def step_sequence(self, actions: np.ndarray, mask: np.ndarray) -> StepResult:
        """Append the tokens under the mask at once; return what as many steps would."""
        counts = self._check_sequence(actions, mask)
        starts, active = self.lengths.copy(), counts > 0
        with self._taken_back_on_failure(starts):
            for row in active.nonzero()[0]:
                end = starts[row] + counts[row]
                self.input_ids[row, starts[row] : end] = actions[row, : counts[row]]
            self.lengths += counts
            ref_logprobs = np.zeros(mask.shape)
            if active.any():
                ref_logprobs = self._logprobs(actions, mask, starts)
            return self._pay(ref_logprobs, active, np.maximum(counts - 1, 0))

    def action_masks(self) -> np.ndarray:
        """Return 1 for the tokens that are sensible next, int8 [B V] (a mask for Gymnasium).

        `step` refuses tokens that are not allowed. It accepts ids beyond the tokenizer, but these
        have no text, so the mask is 0 for them too.
        """
        masks: np.ndarray = self.allowed.mask(
            torch.as_tensor(self.lengths - self.turn_starts)
        ).numpy()
        masks = masks.astype(np.int8)
        masks[:, len(self.tokenizer) :] = 0
        return masks

    def current_states(self, active: np.ndarray) -> torch.Tensor:
        """Return the reference's states that predict each active row's next token, [B H].

        Each token is read once: the rows that are one token behind are stepped together, and those
        that got a longer text read it in one pass.
        """
        unread = np.where(active, self.lengths - self._known, 0)
        one = (unread == 1) & (self._known > 0)
        for which in (one, (unread > 0) & ~one):
            rows = which.nonzero()[0]
            if len(rows):
                index = torch.as_tensor(rows, device=self.lm.device)
                if which is one:
                    last = torch.as_tensor(self.input_ids[rows, self.lengths[rows] - 1])
                    states = self._decoder.step(last.to(self.lm.device).long(), index)
                else:
                    states = self._decoder.read_to_end(index, *self._unread(rows))
                self._remember(rows, states)
        return self._states

    def _begin(self, row: int, ids: list[int]) -> None:
        """Begin an episode in a row with the tokens of a prompt."""
        self.input_ids[row] = 0
        self.input_ids[row, : len(ids)] = ids
        self.prompt_lengths[row] = self.turn_starts[row] = self.lengths[row] = len(ids)
        self.running[row] = True
        self._forget(np.array([row]))

    def _forget(self, rows: np.ndarray) -> None:
        """Let the decoder read these rows from their beginning next time."""
        self._known[rows] = 0
        self._decoder.lengths[torch.as_tensor(rows, device=self.lm.device)] = 0

    def _remember(self, rows: np.ndarray, states: torch.Tensor) -> None:
        """Keep the states after the texts of some rows, all of whose tokens have been read."""
        index = torch.as_tensor(rows, device=self.lm.device)
        self._states = self._states.to(states.dtype).index_copy(0, index, states)
        self._known[rows] = self.lengths[rows]

    def _unread(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the tokens that the decoder has not read of some rows, [R K], and how many."""
        known, counts = self._known[rows], (self.lengths - self._known)[rows]
        places = np.minimum(known[:, None] + np.arange(counts.max()), self.max_length - 1)
        ids = torch.as_tensor(self.input_ids[rows[:, None], places], device=self.lm.device)
        return ids.long(), torch.as_tensor(counts, device=self.lm.device)

    @torch.no_grad()
    def _logprobs(self, actions: np.ndarray, mask: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """Return the reference's log-probs of the actions, float64 [B T], 0 outside the mask.

        The whole texts are read, of which this is the first turn.
        """
        result, device = np.zeros(mask.shape), self.lm.device
        rows = np.flatnonzero(mask.any(1))
        for batch in filled_batches(self.lengths[rows].tolist(), TOKENS_PER_PASS):
            part = rows[batch]
            ids = torch.as_tensor(self.input_ids[part, : self.lengths[part].max()]).long()
            before = torch.as_tensor(starts[part], device=device)
            counted = torch.as_tensor(mask[part], device=device)
            positions = completion_positions(before, counted)
            hidden = self.lm.action_states(ids.to(device), positions, counted)
            result[part] = self._logprobs_from(hidden, actions[part], counted, part, positions)
        return result

    def _logprobs_from(
        self,
        hidden: torch.Tensor,
        actions: np.ndarray,
        counted: torch.Tensor,
        rows: np.ndarray,
        positions: torch.Tensor,
    ) -> np.ndarray:
        """Return the reference's log-probs of actions [R T], given the states that chose them."""
        starts = torch.as_tensor(self.turn_starts[rows], device=hidden.device)
        found: np.ndarray = (
            chunked_token_logprobs(
                hidden,
                self.lm.head,
                torch.as_tensor(actions, device=hidden.device),
                counted,
                temperature=self.temperature,
                chunk_size=self.lm.chunk_size,
                restrict=self.allowed.restrict,
                positions=positions - starts.unsqueeze(1),
            )
            .cpu()
            .numpy()
        )
        return found

    @contextmanager
    def _taken_back_on_failure(self, starts: np.ndarray) -> Iterator[None]:
        """Remove the tokens of a call again if the reference, the reward or the world fails."""
        try:
            yield
        except BaseException:  # Ctrl+C too
            self.lengths = starts
            self.input_ids[np.arange(self.max_length) >= starts[:, None]] = 0
            half_read = self._decoder.lengths.cpu().numpy() != self._known
            self._forget(((self._known > starts) | half_read).nonzero()[0])
            raise

    def _require_running(self, active: np.ndarray) -> None:
        idle = (active & ~self.running).nonzero()[0]
        if len(idle):
            raise UserError(f"the episode of row {idle[0]} has not begun or is over: call reset()")

    def room(self) -> np.ndarray:
        """Return how many tokens each row's turn may still have, [B]."""
        left: np.ndarray = self.turn_budget - (self.lengths - self.turn_starts)
        return left.clip(max=self.ends() - self.lengths)

    def ends(self) -> np.ndarray:
        """Return how many tokens each row's text may have, [B]: its prompt and the budget."""
        ends: np.ndarray = self.prompt_lengths + self.config.max_completion_tokens
        return ends

    def _check_sequence(self, actions: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Check that steps could take these actions; return the number of actions of each row."""
        fits = actions.ndim == 2 and actions.shape[0] == self.num_rows and actions.shape[1] > 0
        if not fits or actions.shape != mask.shape:
            raise UserError(
                f"actions have shape {actions.shape} and mask {mask.shape}; expected "
                f"[{self.num_rows} T] both, T > 0"
            )
        counts: np.ndarray = mask.sum(1)
        if (mask != (np.arange(mask.shape[1]) < counts[:, None])).any():
            raise UserError("each row of mask must be True up to its last action and False after")
        places = (self.lengths - self.turn_starts)[:, None] + np.arange(mask.shape[1])
        self.allowed.check(as_tokens(actions[mask]), torch.as_tensor(places[mask]))
        self._require_running(counts > 0)
        room = self.room()
        if (counts > room).any():
            row = int((counts > room).argmax())
            raise UserError(f"row {row} has {counts[row]} actions but room for {room[row]} tokens")
        early = np.isin(actions, self.end_token_ids) & mask
        early &= np.arange(mask.shape[1]) < counts[:, None] - 1
        if early.any():
            row = int(early.any(1).argmax())
            raise UserError(f"row {row} has actions after EOS or another end token")
        return counts


def as_tokens(actions: np.ndarray) -> torch.Tensor:
    """Return actions [n] as token ids, Int64 [n]; they must be whole numbers."""
    if not np.issubdtype(actions.dtype, np.integer):
        raise UserError(f"an action is an integer token id, got {actions.dtype}")
    return torch.as_tensor(actions.astype(np.int64))
