"""The batched core that the single and the vector environment share.

It holds the frozen reference, the prompts and the token arrays, and does not depend on Gymnasium.
Its main methods are `start`, `step` and `step_sequence`; the environments add spaces, seeding and
autoreset. Prompts, texts and scores are in `texts.py`. The docstring of
`text_rlhf.TextRLHFEnv` describes the MDP.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import cached_property

import numpy as np
import torch

from textrl.chat import Messages, end_ids
from textrl.decoding import Decoder
from textrl.digests import weights_digest
from textrl.envs import tasks
from textrl.envs.core_config import CoreConfig, Shaping
from textrl.envs.reference import check_positions, load_reference
from textrl.envs.step_result import StepResult
from textrl.envs.texts import Judge, Prompt, PromptSet, load_prompts
from textrl.errors import UserError, shown
from textrl.limits import check_vocabulary
from textrl.logprobs import (
    AllowedTokens,
    chunked_token_logprobs,
    completion_positions,
    token_logprobs,
)
from textrl.models import eos_id, pick_device, pick_dtype, split_lm
from textrl.packing import filled_batches
from textrl.reward_calls import Patience
from textrl.rewards import RewardModel, make_scorer
from textrl.task_config import FAILURE_SETTINGS, TaskConfig

TASK_SETTINGS = {field.name for field in fields(TaskConfig)} - {"kl_coef", *FAILURE_SETTINGS}
"""What else the rewards depend on; kl_coef is steered and part of an agent's state."""
TOKENS_PER_PASS = 8192
"""Number of tokens that the reference reads in one forward pass."""


class TextCore:
    """B rows of text generation against one frozen reference and one scorer."""

    def __init__(self, num_rows: int, config: CoreConfig) -> None:
        """Load the models that are given by name, keep those given as objects, encode prompts."""
        self.num_rows, self.config = num_rows, config
        self.kl_coef = config.kl_coef
        self.shaping: Shaping = "exact"
        self.potentials = np.zeros(num_rows)  # sum that "potential" shaping has paid in each row
        device = pick_device(config.device)
        pick_dtype(config.dtype, device)  # refuses a wrong name, also where nothing is loaded
        self.reference, self.tokenizer = load_reference(config, device)
        check_vocabulary(self.reference, self.tokenizer)
        self.lm = split_lm(self.reference)
        self.eos_token_id = eos_id(self.tokenizer)
        self.end_token_ids = tuple(
            token for token in end_ids(self.tokenizer, self.reference) if token < self.lm.vocab_size
        )
        self.allowed = AllowedTokens(
            width=self.lm.vocab_size,
            banned=config.banned_token_ids,
            end_ids=self.end_token_ids,
            min_tokens=config.min_completion_tokens,
        )
        reward = tasks.tiny_score if config.reward is None else config.reward
        prompts = tasks.tiny_prompts() if config.prompts is None else config.prompts
        self.prompts: PromptSet = load_prompts(prompts, self.tokenizer, config.max_prompt_tokens)
        patience = Patience(
            timeout=config.reward_timeout,
            retries=config.reward_retries,
            on_error=config.on_reward_error,
        )
        scorer = make_scorer(reward, device=device, dtype=config.dtype, patience=patience)
        self.judge = Judge(self.tokenizer, self.end_token_ids, scorer, self.prompts)
        self.max_length = config.max_prompt_tokens + config.max_completion_tokens
        check_positions(self.lm, self.max_length)
        self.input_ids = np.zeros((num_rows, self.max_length), dtype=np.int32)
        self.prompt_lengths = np.zeros(num_rows, dtype=np.int64)
        self.lengths = np.zeros(num_rows, dtype=np.int64)
        self.running = np.zeros(num_rows, dtype=bool)
        self._prompts = [Prompt(text="", ids=[])] * num_rows
        self.prompt_indices: list[int | None] = [None] * num_rows
        self._decoder = Decoder(self.lm, num_rows, self.max_length)
        self._states: torch.Tensor | None = None
        self._behind = False  # the decoder has not yet read the last actions
        self._stale = np.ones(num_rows, dtype=bool)  # these rows must be prefilled

    @cached_property
    def digest(self) -> dict[str, str]:
        """What the rewards depend on beside the prompts, by name; weights as digests."""
        config, scorer = self.config, self.judge.scorer
        settings = {name: repr(config.__dict__[name]) for name in TASK_SETTINGS}
        rewards = [
            weights_digest(function.model) if isinstance(function, RewardModel) else name
            for function, name in zip(scorer.functions, scorer.names, strict=True)
        ]
        return settings | {
            "reference": weights_digest(self.reference),
            "reward": repr([*zip(rewards, scorer.weights, strict=True)]),
        }

    @property
    def prompt_texts(self) -> list[str]:
        """The text of each row's prompt."""
        return [prompt.text for prompt in self._prompts]

    @property
    def reward_model(self) -> RewardModel | None:
        """The first frozen reward model of the scorer."""
        return next((f for f in self.judge.scorer.functions if isinstance(f, RewardModel)), None)

    def looked_up(self, prompt: int | str | Messages) -> int | Prompt:
        """Return the index of a prompt of the set, or any other prompt encoded."""
        return self.prompts.looked_up(prompt, self.tokenizer, self.config.max_prompt_tokens)

    def start(self, row: int, prompt: int | Prompt) -> None:
        """Begin an episode in a row with a prompt that was looked up."""
        found = self.prompts.prompts[prompt] if isinstance(prompt, int) else prompt
        self.input_ids[row] = 0
        self.input_ids[row, : len(found.ids)] = found.ids
        self.prompt_lengths[row] = self.lengths[row] = len(found.ids)
        self._prompts[row] = found
        self.prompt_indices[row] = prompt if isinstance(prompt, int) else None
        self.running[row] = self._stale[row] = True
        self.potentials[row] = 0.0

    def step(self, actions: np.ndarray, active: np.ndarray) -> StepResult:
        """Append one token to each active row; return rewards (reference's half of KL, score)."""
        if actions.shape != (self.num_rows,):
            raise UserError(
                f"actions are {shown(actions)}; expected {self.num_rows} tokens, one a row"
            )
        places = self.lengths - self.prompt_lengths
        self._check_actions(actions[active], places[active])
        self._require_running(active)
        states = self.current_states(active)
        tokens = torch.as_tensor(np.where(active, actions, 0), device=self.lm.device)
        with torch.no_grad():
            logits = self.lm.head(states)
            logits = self.allowed.restrict(logits, torch.as_tensor(places, device=logits.device))
        found = token_logprobs(logits, tokens, temperature=self.config.temperature)
        found_array = found.double().cpu().numpy()
        ref_logprobs = np.where(active, found_array, 0.0)
        rows = active.nonzero()[0]
        starts = self.lengths.copy()
        with self._taken_back_on_failure(starts):
            self.input_ids[rows, self.lengths[rows]] = actions[rows]
            self.lengths[rows] += 1
            self._behind = True
            self._stale |= ~active  # the decoder steps every row; the inactive ones are now wrong
            last = np.zeros(self.num_rows, dtype=np.int64)
            return self._pay(ref_logprobs[:, None], active, last)

    def step_sequence(self, actions: np.ndarray, mask: np.ndarray) -> StepResult:
        """Append the tokens under the mask in one teacher-forced pass; pay the same as T steps."""
        if self.shaping != "exact":
            raise UserError(
                f"the shaping is {self.shaping!r}, which is paid step by step; step_sequence needs "
                f'"exact", and an agent that pays its own half of the KL'
            )
        counts = self._check_sequence(actions, mask)
        starts, active = self.lengths.copy(), counts > 0
        with self._taken_back_on_failure(starts):
            for row in active.nonzero()[0]:
                end = starts[row] + counts[row]
                self.input_ids[row, starts[row] : end] = actions[row, : counts[row]]
            self.lengths += counts
            ref_logprobs = self._teacher_forced(actions, mask, starts)
            self._stale |= active
            return self._pay(ref_logprobs, active, np.maximum(counts - 1, 0))

    def action_masks(self) -> np.ndarray:
        """Return 1 for the tokens that are sensible next, int8 [B V] (a mask for Gymnasium).

        `step` refuses tokens that are not allowed. It accepts ids beyond the tokenizer, but these
        have no text, so the mask is 0 for them too.
        """
        places = torch.as_tensor(self.lengths - self.prompt_lengths)
        masks: np.ndarray = self.allowed.mask(places).numpy().astype(np.int8)
        masks[:, len(self.tokenizer) :] = 0
        return masks

    def completion_text(self, row: int) -> str:
        """Return the text generated so far in a row, without special tokens."""
        ids = self.input_ids[row, self.prompt_lengths[row] : self.lengths[row]].tolist()
        return self.judge.completion(self._prompts[row].ids, ids)

    def score_tokens(self, prompts: list[list[int]], completions: list[list[int]]) -> np.ndarray:
        """Return the scores that episodes of these token ids would get, float64 [N].

        missing_eos_penalty is part of the reward, not of the score. A prompt of the set is scored
        with its text and columns; any other prompt is decoded and has no columns.
        """
        return self.judge.scores_of_ids(prompts, completions)

    def current_states(self, active: np.ndarray) -> torch.Tensor:
        """Return the reference's states that predict each active row's next token, [B H]."""
        device = self.lm.device
        if self._behind and not self._stale[active].all():
            last = self.input_ids[np.arange(self.num_rows), self.lengths - 1]
            self._states = self._decoder.step(torch.as_tensor(last, device=device).long())
        self._behind = False
        rows = (self._stale & active).nonzero()[0]
        if len(rows):
            ids = torch.as_tensor(self.input_ids[rows], device=device)
            lengths = torch.as_tensor(self.lengths[rows], device=device)
            index = torch.as_tensor(rows, device=device)
            fresh = self._decoder.prefill(index, ids, lengths)
            if self._states is None:
                self._states = fresh.new_zeros(self.num_rows, fresh.shape[-1])
            self._states = self._states.index_copy(0, index, fresh)
            self._stale[rows] = False
        if self._states is None:  # no row is active, and none has been
            self._states = torch.zeros(self.num_rows, self.lm.state_size, device=device)
        return self._states

    @torch.no_grad()
    def _teacher_forced(
        self, actions: np.ndarray, mask: np.ndarray, starts: np.ndarray
    ) -> np.ndarray:
        """Return the reference's log-probs of the actions, float64 [B T], 0 outside the mask."""
        result, device = np.zeros(mask.shape), self.lm.device
        rows = np.flatnonzero(mask.any(1))
        lengths = self.lengths[rows].tolist()
        for batch in filled_batches(lengths, TOKENS_PER_PASS):
            part = rows[batch]
            ids = torch.as_tensor(self.input_ids[part, : self.lengths[part].max()]).long()
            before = torch.as_tensor(starts[part], device=device)
            chosen = torch.as_tensor(actions[part], device=device)
            counted = torch.as_tensor(mask[part], device=device)
            prompts = torch.as_tensor(self.prompt_lengths[part], device=device)
            positions = completion_positions(before, counted)
            hidden = self.lm.action_states(ids.to(device), positions, counted)
            found = chunked_token_logprobs(
                hidden,
                self.lm.head,
                chosen,
                counted,
                temperature=self.config.temperature,
                chunk_size=self.lm.chunk_size,
                restrict=self.allowed.restrict,
                positions=positions - prompts.unsqueeze(1),
            )
            result[part] = found.cpu().numpy()
        return result

    @contextmanager
    def _taken_back_on_failure(self, starts: np.ndarray) -> Iterator[None]:
        """Remove the tokens of a call again if the reference or the reward function fails."""
        try:
            yield
        except BaseException:  # Ctrl+C too
            self.lengths = starts
            self.input_ids[np.arange(self.max_length) >= starts[:, None]] = 0
            self._stale[:] = True
            raise

    def _pay(self, ref_logprobs: np.ndarray, active: np.ndarray, last: np.ndarray) -> StepResult:
        """End the rows that are over, score them together, and return all rewards."""
        config = self.config
        final_token = self.input_ids[np.arange(self.num_rows), self.lengths - 1]
        at_eos = active & np.isin(final_token, self.end_token_ids)
        at_length = active & ~at_eos
        at_length &= self.lengths - self.prompt_lengths >= config.max_completion_tokens
        ended = at_eos | at_length
        truncated = at_length if config.on_length == "truncate" else np.zeros_like(ended)
        terminated = ended & ~truncated
        finish_reason = np.full(self.num_rows, None, dtype=object)
        finish_reason[at_eos], finish_reason[at_length] = "eos", "length"
        by_potential = self.shaping == "potential"
        scored = active if by_potential else terminated
        completion = np.full(self.num_rows, None, dtype=object)
        for row in (ended | scored).nonzero()[0]:
            completion[row] = self.completion_text(int(row))
        score = np.full(self.num_rows, np.nan)
        score[scored] = self._score(scored.nonzero()[0], completion)
        failed = scored & np.isnan(score)  # masked: the episode ends without a score
        scored = scored & ~failed
        finish_reason[failed & ended] = "reward_error"
        truncated, terminated = truncated | (failed & ended), terminated & ~failed
        bonus = np.where(scored, score, 0.0)
        if by_potential:
            bonus = np.where(scored, score - self.potentials, 0.0)
            self.potentials[scored] = score[scored]
            completion[~ended], score[~terminated] = None, np.nan
        bonus -= config.missing_eos_penalty * (at_length & terminated)
        exact = self.shaping == "exact"
        rewards = self.kl_coef * ref_logprobs if exact else np.zeros_like(ref_logprobs)
        rewards[np.arange(self.num_rows), last] += bonus
        self.running &= ~ended
        return StepResult(
            rewards=rewards,
            ref_logprobs=ref_logprobs,
            terminated=terminated,
            truncated=truncated,
            score=score,
            finish_reason=finish_reason,
            completion=completion,
        )

    def _score(self, rows: np.ndarray, completion: np.ndarray) -> np.ndarray:
        indices = [self.prompt_indices[row] for row in rows]
        prompts = [self._prompts[row] for row in rows]
        return self.judge.scores(prompts, [completion[row] for row in rows], indices)

    def _check_actions(self, actions: np.ndarray, places: np.ndarray) -> None:
        """Refuse actions [n] that are not tokens or not allowed at these places [n]."""
        if not np.issubdtype(actions.dtype, np.integer):
            raise UserError(f"an action is an integer token id, got {actions.dtype}")
        if len(actions) and not (actions.min() >= 0 and actions.max() < self.lm.vocab_size):
            raise UserError(
                f"an action is a token id in [0, {self.lm.vocab_size}), got "
                f"{actions.min()} to {actions.max()}"
            )
        self.allowed.check(torch.as_tensor(actions.astype(np.int64)), torch.as_tensor(places))

    def _require_running(self, active: np.ndarray) -> None:
        idle = (active & ~self.running).nonzero()[0]
        if len(idle):
            raise UserError(f"the episode of row {idle[0]} has not begun or is over: call reset()")

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
        places = (self.lengths - self.prompt_lengths)[:, None] + np.arange(mask.shape[1])
        self._check_actions(actions[mask], places[mask])
        self._require_running(counts > 0)
        room = self.config.max_completion_tokens - (self.lengths - self.prompt_lengths)
        if (counts > room).any():
            row = int((counts > room).argmax())
            raise UserError(f"row {row} has {counts[row]} actions but room for {room[row]} tokens")
        early = np.isin(actions, self.end_token_ids) & mask
        early &= np.arange(mask.shape[1]) < counts[:, None] - 1
        if early.any():
            raise UserError(
                f"row {int(early.any(1).argmax())} has actions after EOS or another end token"
            )
        return counts
