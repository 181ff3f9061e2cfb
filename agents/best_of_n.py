"""Best of n: sample n completions and keep the one with the best score, without any training.

It is a strong baseline. Its KL to the policy is at most log n - (n - 1) / n nats per sequence
(2401.01879).
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from gymnasium.vector import VectorRewardWrapper
from torch import Tensor
from transformers import PreTrainedModel

from textrl.agents.base import AnyVectorEnv, Observation, State
from textrl.agents.collect import prompts_of
from textrl.agents.text_env import TextEnv
from textrl.bounds import checked_config
from textrl.checkpoint import read_agent, save_model
from textrl.config import BestOfNConfig
from textrl.durable import save_files, write_json
from textrl.errors import UserError
from textrl.generation import ModelSampler, Sampler
from textrl.models import load_causal_lm, split_lm
from textrl.paths import expanded
from textrl.trainable import check_live


class BestOfN:
    """Acts with the best of n samples of a policy, by the environment's own scorer (2009.01325).

    Samples are compared by what the environment pays: the score minus missing_eos_penalty.

    At the start of an episode the agent draws and scores n continuations and keeps the best one as
    the row's plan. It then returns the plan token by token. If the row shows a text that the plan
    does not begin with, a new plan is made.
    """

    def __init__(
        self,
        policy: PreTrainedModel,
        venv: AnyVectorEnv,
        config: BestOfNConfig | None = None,
    ) -> None:
        """Keep a policy unchanged; it may be the environment's reference itself.

        Raises:
            UserError: the environment scores no text by itself, or pays something other than the
                scores, by which samples are compared.
        """
        check_live(policy)
        self.config = checked_config(self, config, BestOfNConfig)
        self.env, self.policy, self.lm = TextEnv(venv), policy, split_lm(policy)
        self.sampler: Sampler = ModelSampler(self.lm)
        if self.env.needs_whole_groups:
            raise UserError(
                "best of n acts step by step, and a reward function compares a group, which is "
                "known only when all its rows are over; give a reward that scores each text"
            )
        self.env.score_tokens([], [])  # refused where a world pays for turns that are taken
        if self.env.on_length == "truncate":
            raise UserError(
                "best of n compares scores, and a truncated text has none; make the environment "
                'with on_length="score"'
            )
        layer: Any = venv
        while layer is not venv.unwrapped:
            if isinstance(layer, VectorRewardWrapper):
                raise UserError(
                    f"best of n compares the environment's scores, which {type(layer).__name__} "
                    f"does not change; change the reward function instead"
                )
            layer = layer.env
        self._generator = torch.Generator().manual_seed(self.config.seed)
        self._plans: dict[int, list[int]] = {}
        self._deterministic = False  # whether the present plans were made deterministically

    def learn(
        self, total_timesteps: int, callback: None = None, progress_bar: bool = False
    ) -> Self:
        """Return the agent unchanged: there is nothing to train.

        Raises:
            UserError: there is a callback, which would never be called.
        """
        if callback is not None:
            raise UserError("best of n trains nothing, so that no callback is called; leave it out")
        return self

    def predict(
        self,
        observation: Observation,
        state: State = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
    ) -> tuple[np.ndarray, State]:
        """Return the next token for an observation [L] or a batch of them [B L], and the state.

        With `deterministic`, the n continuations are drawn from the configuration's seed each time,
        so that the same text always gets the same token.
        """
        single = np.asarray(observation["input_ids"]).ndim == 1
        if single:
            observation = {name: array[None] for name, array in observation.items()}
        lengths = np.asarray(observation["attention_mask"]).sum(1)
        seen = [ids[:n].tolist() for ids, n in zip(observation["input_ids"], lengths, strict=True)]
        begins = lengths == np.asarray(observation["prompt_length"])[:, 0]
        if deterministic is not self._deterministic:
            self._plans.clear()
        self._deterministic = deterministic
        new = [
            row
            for row, ids in enumerate(seen)
            if begins[row] or self._plans.get(row, [])[: len(ids)] != ids
        ]
        # deterministic: one row at a time, so that a plan does not depend on the other rows
        for rows in [[row] for row in new] if deterministic else [new] if new else []:
            part = {name: np.asarray(array)[rows] for name, array in observation.items()}
            self._plan(rows, [seen[row] for row in rows], part, deterministic)
        plans = [self._plans[row] for row in range(len(seen))]
        # past its end a plan has no next token: the episode is over, so any token is accepted
        tokens = np.array(
            [
                plan[n] if n < len(plan) else self.env.eos_token_id
                for plan, n in zip(plans, lengths.tolist(), strict=True)
            ]
        )
        return (tokens[0] if single else tokens), state

    def save(self, path: str | Path) -> None:
        """Write the policy as a plain transformers checkpoint, the configuration beside it."""

        def write(folder: Path) -> None:
            save_model(self.policy, self.env.tokenizer, folder)
            content = {"agent": "best_of_n", "config": asdict(self.config)}
            write_json(folder / "agent.json", content)

        save_files(expanded(path), write)

    @classmethod
    def load(cls, path: str | Path, venv: AnyVectorEnv) -> "BestOfN":
        """Load a saved agent and attach it to an environment.

        Raises:
            UserError: the folder holds no best-of-n agent.
        """
        _, config = read_agent(path, "best_of_n", BestOfNConfig)
        policy = load_causal_lm(path, dtype="float32", device=TextEnv(venv).reference.device)
        return cls(policy, venv, config)

    def _plan(
        self, rows: list[int], seen: list[list[int]], part: Observation, deterministic: bool
    ) -> None:
        """Draw n continuations of each row's text and keep the best-scored one as its plan."""
        n, generator = self.config.n, self._generator
        if deterministic:
            generator = torch.Generator().manual_seed(self.config.seed)
        _, prompt_lengths = prompts_of(part, self.lm.device)
        lengths = torch.tensor([len(ids) for ids in seen])
        ids = torch.zeros(len(seen), int(lengths.max()), dtype=torch.long)
        for row, text in enumerate(seen):
            ids[row, : len(text)] = torch.tensor(text)
        left = self.env.max_completion_tokens - (lengths - prompt_lengths.cpu())
        samples = self.sampler.sample(
            ids.repeat_interleave(n, dim=0),
            lengths.repeat_interleave(n),
            max_new_tokens=int(left.max()),
            end_ids=self.env.end_token_ids,
            generator=generator,
            temperature=self.env.temperature,
            allowed=self.env.allowed,
            begun=(lengths - prompt_lengths.cpu()).repeat_interleave(n),
        )
        drawn = [
            tokens[mask][:budget].tolist()
            for tokens, mask, budget in zip(
                samples.completion_ids, samples.mask, left.repeat_interleave(n), strict=True
            )
        ]
        whole = [seen[i // n] + tokens for i, tokens in enumerate(drawn)]
        best = self._scores(whole, prompt_lengths.repeat_interleave(n)).view(-1, n).argmax(1)
        for place, row in enumerate(rows):
            self._plans[row] = whole[place * n + int(best[place])]

    def _scores(self, texts: list[list[int]], prompt_lengths: Tensor) -> Tensor:
        lengths = prompt_lengths.tolist()
        prompts = [ids[:n] for ids, n in zip(texts, lengths, strict=True)]
        completions = [ids[n:] for ids, n in zip(texts, lengths, strict=True)]
        scores = torch.as_tensor(self.env.score_tokens(prompts, completions))
        if scores.isnan().all():
            raise UserError("the reward function failed on all samples, so that none is the best")
        scores = scores.nan_to_num(nan=-torch.inf)  # masked: never the best
        ended = torch.tensor([ids[-1] in self.env.end_token_ids for ids in completions])
        return scores - self.env.missing_eos_penalty * ~ended
