"""`TextCore`, the batched core of `TextRLHF-v0`: one turn of each row, and a score at its end.

It adds prompts, texts and scores to `token_rows.py`; the environments (`text_rlhf.py`, `vector.py`)
add spaces, seeding and autoreset. The docstring of `text_rlhf.TextRLHFEnv` describes the MDP.
"""

from dataclasses import fields
from functools import cached_property
from typing import Any

import numpy as np

from textrl.digests import weights_digest
from textrl.envs import tasks
from textrl.envs.core_config import CoreConfig, Shaping
from textrl.envs.judging import (
    NOTHING,
    Judged,
    check_causal,
    check_kinds,
    check_whole_groups,
)
from textrl.envs.reference import load_reference
from textrl.envs.step_result import StepResult
from textrl.envs.texts import Judge, Prompt, PromptSet, PromptStream, chosen_prompt, load_prompts
from textrl.envs.token_rows import TokenRows
from textrl.errors import UserError
from textrl.models import pick_device, pick_dtype
from textrl.reward_calls import Cost, Patience
from textrl.rewards import RewardModel, make_scorer
from textrl.scorer import Scores, by_row
from textrl.task_config import FAILURE_SETTINGS, TaskConfig

TASK_SETTINGS = {field.name for field in fields(TaskConfig)} - {"kl_coef", *FAILURE_SETTINGS}
"""What else the rewards depend on; kl_coef is steered and part of an agent's state."""


class TextCore(TokenRows):
    """B rows of text generation against one frozen reference and one scorer."""

    def __init__(self, num_rows: int, config: CoreConfig) -> None:
        """Load the models that are given by name, keep those given as objects, encode prompts."""
        self._config = config
        self.shaping: Shaping = "exact"
        self.potentials = np.zeros(num_rows)  # sum that "potential" shaping has paid in each row
        device = pick_device(config.device)
        pick_dtype(config.dtype, device)  # refuses a wrong name, also where nothing is loaded
        reference, tokenizer = load_reference(
            config, device, tasks.tiny_model, tasks.tiny_tokenizer
        )
        super().__init__(
            num_rows,
            config,
            reference,
            tokenizer,
            min_tokens=config.min_completion_tokens,
            turn_budget=config.max_completion_tokens,
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
        check_kinds(scorer, config, num_rows, self.prompts)
        self.judge = Judge(self.tokenizer, self.end_token_ids, scorer, self.prompts)
        self._dense_paid = [np.zeros(0)] * num_rows  # what dense rewards said of each token so far
        self._causal = False  # whether a dense reward was found to depend on no later token
        self._prompts = [Prompt(text="", ids=[])] * num_rows
        self.prompt_indices: list[int | None] = [None] * num_rows

    @property
    def config(self) -> CoreConfig:
        """The arguments of the environment."""
        return self._config

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
    def needs_whole_groups(self) -> bool:
        """Whether a reward function compares a group."""
        return self.judge.scorer.has_groups

    @property
    def reward_costs(self) -> dict[str, Cost]:
        """What the calls of each reward function have cost, by its name; "" is all together."""
        scorer = self.judge.scorer
        return {"": scorer.whole} | dict(zip(self.reward_names, scorer.costs, strict=True))

    @property
    def reward_names(self) -> tuple[str, ...]:
        """The names of the reward functions."""
        return self.judge.scorer.names

    @property
    def prompts_digest(self) -> str:
        """A hash of the prompts and columns."""
        return self.prompts.digest

    @property
    def prompt_texts(self) -> list[str]:
        """The text of each row's prompt."""
        return [prompt.text for prompt in self._prompts]

    @property
    def reward_model(self) -> RewardModel | None:
        """The first frozen reward model of the scorer."""
        return next((f for f in self.judge.scorer.functions if isinstance(f, RewardModel)), None)

    def stream(self, rng: np.random.Generator, repeats: int = 1) -> PromptStream:
        """Return an endless stream of episodes, each the index of a prompt."""
        return PromptStream(rng, len(self.prompts), repeats)

    def chosen(self, options: dict[str, Any], row: int) -> int | Prompt:
        """Return the index of the prompt that reset options choose for a row, or any other prompt.

        Raises:
            UserError: The options choose none, or there is no such prompt.
        """
        prompt = chosen_prompt(options, row, self.num_rows)
        return self.prompts.looked_up(prompt, self.tokenizer, self.config.max_prompt_tokens)

    def start(self, row: int, episode: int | Prompt) -> None:
        """Begin an episode in a row, one of the stream or one that was chosen."""
        found = self.prompts.prompts[episode] if isinstance(episode, int) else episode
        self._begin(row, found.ids)
        self._prompts[row] = found
        self.prompt_indices[row] = episode if isinstance(episode, int) else None
        self.potentials[row], self._dense_paid[row] = 0.0, np.zeros(0)

    def reset_infos(self) -> dict[str, list[Any]]:
        """Return what a reset tells of each row."""
        return {"prompt": self.prompt_texts, "prompt_index": list(self.prompt_indices)}

    def shown(self, row: int) -> str:
        """Return a row's prompt and completion with a bar between them."""
        return f"{self._prompts[row].text}|{self.completion_text(row)}"

    def step_sequence(self, actions: np.ndarray, mask: np.ndarray) -> StepResult:
        """Append the tokens under the mask in one teacher-forced pass; pay the same as T steps."""
        if self.shaping != "exact":
            raise UserError(
                f"the shaping is {self.shaping!r}, which is paid step by step; step_sequence needs "
                f'"exact", and an agent that pays its own half of the KL'
            )
        return super().step_sequence(actions, mask)

    def completion_text(self, row: int) -> str:
        """Return the text generated so far in a row, without special tokens."""
        return self.judge.completion(self._prompts[row].ids, self.completion_ids(row))

    def completion_ids(self, row: int) -> list[int]:
        """Return the tokens generated so far in a row."""
        ids: list[int] = self.input_ids[row, self.prompt_lengths[row] : self.lengths[row]].tolist()
        return ids

    def score_tokens(self, prompts: list[list[int]], completions: list[list[int]]) -> np.ndarray:
        """Return the scores that episodes of these token ids would get, float64 [N].

        missing_eos_penalty is part of the reward, not of the score. A prompt of the set is scored
        with its text and columns; any other prompt is decoded and has no columns.
        """
        return self.judge.scores_of_ids(prompts, completions, self.config.group_size)

    def _pay(self, ref_logprobs: np.ndarray, active: np.ndarray, last: np.ndarray) -> StepResult:
        """End the rows that are over, score them together, and return all rewards."""
        config, each = self.config, np.arange(self.num_rows)
        at_eos = active & np.isin(self.input_ids[each, self.lengths - 1], self.end_token_ids)
        at_length = active & ~at_eos
        at_length &= self.lengths - self.prompt_lengths >= config.max_completion_tokens
        ended = at_eos | at_length
        truncated = at_length if config.on_length == "truncate" else np.zeros_like(ended)
        finish_reason = np.full(self.num_rows, None, dtype=object)
        finish_reason[at_eos], finish_reason[at_length] = "eos", "length"
        completion = np.full(self.num_rows, None, dtype=object)
        scorer, by_potential = self.judge.scorer, self.shaping == "potential"
        for row in (active if by_potential or scorer.has_dense else ended).nonzero()[0]:
            completion[row] = self.completion_text(int(row))
        shape, terminated = ref_logprobs.shape, ended & ~truncated
        if by_potential:
            judged = self._by_potential(shape, active, ended, terminated, completion)
        else:
            judged = self._by_episode(shape, active, terminated, last, completion)
        ended = ended | judged.failed
        truncated, terminated = truncated | judged.failed, terminated & ~judged.failed
        finish_reason[judged.failed], completion[~ended] = "reward_error", None
        rewards = self.kl_coef * ref_logprobs if self.shaping == "exact" else np.zeros(shape)
        rewards = rewards + judged.bonus
        rewards[each, last] -= config.missing_eos_penalty * (at_length & terminated)
        self.running &= ~ended
        return StepResult(
            rewards=rewards,
            ref_logprobs=ref_logprobs,
            terminated=terminated,
            truncated=truncated,
            score=judged.score,
            finish_reason=finish_reason,
            extras={"completion": (completion, ended)} | judged.extras,
        )

    def _by_episode(
        self,
        shape: tuple[int, ...],
        active: np.ndarray,
        terminated: np.ndarray,
        last: np.ndarray,
        completion: np.ndarray,
    ) -> Judged:
        """Pay the score at the end of an episode, and the dense part of it token by token."""
        bonus, score = np.zeros(shape), np.full(self.num_rows, np.nan)
        over = terminated.nonzero()[0]
        scores = self._scores(over, completion, dense=False)
        score[over] = scores.total
        bonus[over, last[over]] = scores.total
        found, failed, extras = [(over, scores)], terminated & np.isnan(score), {}
        if self.judge.scorer.has_dense:
            rows = active.nonzero()[0]
            dense = self._dense_scores(rows, completion, last + 1)
            found.append((rows, dense))
            of_last = np.zeros(self.num_rows)
            for row, numbers in zip(rows, dense.tokens, strict=True):
                new = int(last[row]) + 1
                bonus[row, :new] += numbers[-new:]
                score[row] += numbers.sum()
                failed[row] |= bool(np.isnan(numbers).any())
                of_last[row] = 0.0 if failed[row] else numbers[-1]
            extras["dense_reward"] = (of_last, active)
        bonus[failed], score[failed] = 0.0, np.nan
        named = by_row(found, self.reward_names, self.num_rows)
        extras["scores"] = (named, terminated & ~failed)
        return Judged(bonus=bonus, score=score, failed=failed, extras=extras)

    def _dense_scores(self, rows: np.ndarray, completion: np.ndarray, new: np.ndarray) -> Scores:
        """Return the numbers of all tokens of some rows, of which the last `new` [B] are new."""
        dense = self._scores(rows, completion, dense=True)
        for row, numbers in zip(rows, dense.tokens, strict=True):
            check_causal(self._dense_paid[row], numbers[: -new[row]], completion[row])
        if not self._causal and new.max() > 1:
            self._check_a_beginning(int(new.argmax()), dense.tokens[int(new[rows].argmax())])
        for row, numbers in zip(rows, dense.tokens, strict=True):
            self._dense_paid[row] = numbers
        return dense

    def _check_a_beginning(self, row: int, numbers: np.ndarray) -> None:
        """Check once that what dense rewards say of a token does not depend on those after it."""
        ids, prompt = self.completion_ids(row)[:-1], self._prompts[row]
        text = self.judge.completion(prompt.ids, ids)
        part = self.judge.scores([prompt], [text], [self.prompt_indices[row]], [ids], dense=True)
        check_causal(part.tokens[0], numbers[:-1], text)
        self._causal = bool(np.isfinite(numbers).all() and numbers[:-1].any())  # else look again

    def _by_potential(
        self,
        shape: tuple[int, ...],
        active: np.ndarray,
        ended: np.ndarray,
        terminated: np.ndarray,
        completion: np.ndarray,
    ) -> Judged:
        """Pay each active row the growth of its text's score; steps have one token."""
        rows, bonus = active.nonzero()[0], np.zeros(shape)
        scores = self._scores(rows, completion, dense=None)
        known = np.full(self.num_rows, np.nan)
        known[rows] = scores.total
        paid = active & ~np.isnan(known)
        bonus[paid, 0] = (known - self.potentials)[paid]
        self.potentials[paid] = known[paid]
        over = terminated & paid
        named = by_row([(rows, scores)], self.reward_names, self.num_rows)
        return Judged(
            bonus=bonus,
            score=np.where(over, known, np.nan),
            failed=ended & ~paid,
            extras={"scores": (named, over)},
        )

    def _scores(self, rows: np.ndarray, completion: np.ndarray, *, dense: bool | None) -> Scores:
        """Return the scores of some rows' completions by the dense functions, the others or all."""
        if not len(rows):
            return NOTHING
        scorer, group_size = self.judge.scorer, self.config.group_size
        prompts = [self._prompts[row] for row in rows]
        if scorer.has_groups and dense is not True:
            known = [(self.prompt_indices[row], self._prompts[row].ids) for row in rows]
            check_whole_groups(rows, known, group_size)
        return self.judge.scores(
            prompts,
            [completion[row] for row in rows],
            [self.prompt_indices[row] for row in rows],
            [self.completion_ids(row) for row in rows],
            group_size=group_size,
            dense=dense,
        )
