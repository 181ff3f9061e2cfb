"""PPO for language models: actor and critic here, frozen reward and reference in the environment.

One iteration, top to bottom in `PPO.iterate`:
  1. collect    sample completions from the policy, have the environment pay them
  2. targets    subtract the policy's half of the KL, GAE (gamma 1), whiten over all tokens
  3. update     num_epochs x minibatches of the clipped surrogate and the clipped value loss
  4. report     what a person needs to trust the run; KL in nats a sequence, means over real tokens

With kl_loss="exact" the sampled KL leaves the reward: the update minimises the full-vocabulary
KL(pi || pi_ref) at each state directly, and the reward of a token carries minus the exact KL of the
state it leads to, so that the objective is the same and the gradient's variance lower.
"""

import json
import time
from collections.abc import Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors.torch import load_model as load_safetensors
from safetensors.torch import save_model as save_safetensors
from stable_baselines3.common.logger import Logger
from torch import Tensor
from transformers import PreTrainedModel

from textrl.advantages import gae
from textrl.agents.actor_critic import ActorCritic, ReferenceStates, make_critic
from textrl.agents.base import AnyVectorEnv, Observation, TextEnv
from textrl.agents.collect import collect, concatenate
from textrl.agents.diagnostics import explained_variance, rollout_report, update_report
from textrl.agents.kl_control import adapted_kl_coef
from textrl.agents.predict import next_tokens
from textrl.checkpoint import load_state, save_model, save_state, write_json
from textrl.config import PPOConfig
from textrl.data import Source, load_records
from textrl.encoding import sft_sequences
from textrl.errors import UserError
from textrl.loop import Updater, make_accelerator, token_batches
from textrl.losses import approx_kl, ppo_policy_loss, ppo_value_loss, sft_loss
from textrl.masking import masked_mean, masked_var, standardize
from textrl.metrics import StageProgress, log
from textrl.models import load_causal_lm, split_lm
from textrl.types import Rollout, Targets, stack_sequences


class PPO:
    """Proximal policy optimisation on `TextRLHF-v0` (1707.06347, 1909.08593, 2203.02155)."""

    def __init__(
        self,
        policy: PreTrainedModel,
        venv: AnyVectorEnv,
        config: PPOConfig | None = None,
        *,
        demonstrations: Source | None = None,
        logger: Logger | None = None,
    ) -> None:
        """Make the critic and the optimiser.

        Args:
            policy: trained in place; its tokenizer is the environment's.
            venv: a vector environment of `TextRLHF-v0`.
            config: sizes and rates.
            demonstrations: for PPO-ptx (ptx_coef > 0), in any form that SFT reads.
            logger: SB3's; by default one that prints nothing.

        Raises:
            UserError: sizes that do not fit the environment, or a policy that is the reference.
        """
        self.config = config or PPOConfig()
        self.env = TextEnv(venv)
        self.env.check(policy, self.config.episodes_per_iteration)
        critic = make_critic(
            self.config.critic,
            self.config.critic_head,
            policy,
            self.env.tokenizer,
            self.env.reward_model,
        )
        self.actor_critic = ActorCritic(policy, critic, self.env.temperature)
        self.logger = logger or Logger(folder=None, output_formats=[])
        rate = self.config.learning_rate
        self._updater = Updater(
            [(policy, rate), (critic, self.config.critic_learning_rate or rate)],
            accelerator=make_accelerator(policy.device),
            max_grad_norm=self.config.max_grad_norm,
        )
        self._reference = split_lm(self.env.reference)
        self._demonstrations = self._encode(demonstrations)
        self._generator = torch.Generator().manual_seed(self.config.seed)
        self.iteration = self.env_steps = 0
        venv.reset(seed=self.config.seed)

    @property
    def policy(self) -> PreTrainedModel:
        """The actor."""
        return self.actor_critic.policy

    def set_logger(self, logger: Logger) -> None:
        """Log to this logger from now on."""
        self.logger = logger

    def learn(self, total_timesteps: int, progress_bar: bool = False) -> Self:
        """Train for at least this many tokens more; one logger row an iteration."""
        goal = self.env_steps + total_timesteps
        with StageProgress("ppo", total_timesteps, shown=progress_bar) as progress:
            while self.env_steps < goal:
                numbers = self.iterate()
                log(self.logger, self.env_steps, numbers)
                shown = {name: numbers[name] for name in ("rollout/score", "rollout/kl")}
                progress.show(min(total_timesteps, total_timesteps - goal + self.env_steps), shown)
        return self

    def predict(
        self, observation: Observation, deterministic: bool = False
    ) -> tuple[np.ndarray, None]:
        """Return the next token for an observation [L] or a batch of them [B L]."""
        settings = self.env.temperature, self._generator, deterministic
        return next_tokens(self.actor_critic.lm, observation, *settings), None

    def save(self, path: str | Path) -> None:
        """Write the policy as a plain transformers checkpoint, and beside it the critic and state.

        `critic.safetensors` holds the critic, `agent.json` the configuration, `trainer_state/` what
        `load` needs to go on as if nothing had happened.
        """
        folder = Path(path)
        save_model(self.policy, self.env.tokenizer, folder)
        save_safetensors(self.actor_critic.critic, str(folder / "critic.safetensors"))
        write_json(folder / "agent.json", {"agent": "ppo", "config": asdict(self.config)})
        state: dict[str, Any] = {
            "counters": [self.iteration, self.env_steps],
            "generator": self._generator.get_state(),
            "kl_coef": self.env.kl_coef,
            **self._updater.state(),
        }
        if hasattr(self.policy, "merge_and_unload"):
            return  # an adapter is saved merged: a state of its parameters would fit no more
        if hasattr(self.env.venv, "prompt_state"):
            state["prompts"] = json.dumps(self.env.venv.prompt_state())
        save_state(folder, state)

    @classmethod
    def load(
        cls,
        path: str | Path,
        venv: AnyVectorEnv,
        *,
        demonstrations: Source | None = None,
        logger: Logger | None = None,
    ) -> "PPO":
        """Return a saved agent in an environment; learning goes on bit for bit.

        Raises:
            UserError: the folder holds no PPO agent.
        """
        folder = Path(path)
        if not (folder / "agent.json").exists():
            raise UserError(f"{folder} holds no saved agent (agent.json is missing)")
        saved = json.loads((folder / "agent.json").read_text())
        if saved["agent"] != "ppo":
            raise UserError(f"{folder} holds a {saved['agent']} agent, not ppo")
        config = PPOConfig(**saved["config"])
        policy = load_causal_lm(folder, dtype="float32", device=TextEnv(venv).reference.device)
        agent = cls(policy, venv, config, demonstrations=demonstrations, logger=logger)
        load_safetensors(agent.actor_critic.critic, str(folder / "critic.safetensors"))
        state = load_state(folder)
        if state is not None:
            agent.iteration, agent.env_steps = state["counters"]
            agent._generator.set_state(state["generator"])
            if config.kl_target is not None:  # a fixed one is the environment's own
                agent.env.kl_coef = state["kl_coef"]
            agent._updater.load(state)
            if "prompts" in state and hasattr(venv, "load_prompt_state"):
                venv.load_prompt_state(json.loads(state["prompts"]))
        return agent

    def iterate(self) -> dict[str, float]:
        """Run one iteration and return its numbers (`learn` logs them)."""
        began = time.monotonic()
        rollout = self._collect()
        collected = time.monotonic()
        kl_coef = self.env.kl_coef
        reference_states = self._reference_states(rollout)
        targets, scale = self._targets(rollout, kl_coef, reference_states)
        updates = self._update(rollout, targets, kl_coef / scale, reference_states)
        self.iteration += 1
        self.env_steps += int(rollout.mask.sum())
        kl = float(rollout.sequence_kl.mean())
        if self.config.kl_target is not None:
            self.env.kl_coef = adapted_kl_coef(kl_coef, kl, len(rollout.scores), self.config)
        return (
            rollout_report(rollout)
            | updates
            | {
                "train/explained_variance": explained_variance(rollout, targets),
                "rollout/kl_coef": kl_coef,
                "time/collect_seconds": collected - began,
                "time/update_seconds": time.monotonic() - collected,
                "time/tokens_per_second": int(rollout.mask.sum()) / (time.monotonic() - began),
                "time/iteration": self.iteration,
            }
        )

    def _collect(self) -> Rollout:
        agent = self.actor_critic
        observe = agent.critic.values_of if agent.shared_trunk else None
        batches = self.config.episodes_per_iteration // self.env.num_envs
        arguments = agent.lm, self.env, self._generator
        episodes = partial(collect, *arguments, observe=observe, value_pass=agent.value_pass)
        return concatenate([episodes() for _ in range(batches)])

    def _targets(
        self, rollout: Rollout, kl_coef: float, reference_states: Tensor | None
    ) -> tuple[Targets, float]:
        """Return whitened advantages and returns, and the spread that whitening divided by."""
        mask = rollout.mask
        if reference_states is None:
            rewards = rollout.rewards - kl_coef * rollout.logprobs
        else:
            rewards = rollout.rewards - kl_coef * rollout.ref_logprobs
            rewards[:, :-1] -= kl_coef * self._state_kl(rollout, reference_states)[:, 1:]
        rewards = rewards.masked_fill(~mask, 0.0)
        advantages, returns = gae(
            rewards,
            rollout.values,
            mask,
            gae_lambda=self.config.gae_lambda,
            bootstrap_values=rollout.bootstrap_values,
        )
        spread = float(masked_var(advantages, mask).sqrt())
        scale = spread if spread > 1e-6 else 1.0  # nothing to tell apart: leave the KL's weight
        return Targets(advantages=standardize(advantages, mask), returns=returns), scale

    def _update(
        self, rollout: Rollout, targets: Targets, kl_weight: float, reference_states: Tensor | None
    ) -> dict[str, float]:
        """Run the minibatches; return means over updates and the first one's identities."""
        config, size = self.config, len(rollout.scores)
        rows: list[dict[str, float]] = []
        for _ in range(config.num_epochs):
            order = torch.randperm(size, generator=self._generator)
            for start in range(0, size, config.minibatch_size):
                chosen = order[start : start + config.minibatch_size]
                rows.append(self._minibatch(rollout, targets, chosen, kl_weight, reference_states))
                if config.target_kl is not None and rows[-1]["approx_kl"] > config.target_kl:
                    return update_report(rows)
        return update_report(rows)

    def _minibatch(
        self,
        rollout: Rollout,
        targets: Targets,
        chosen: Tensor,
        kl_weight: float,
        reference_states: Tensor | None,
    ) -> dict[str, float]:
        """Take one optimiser step; every micro-batch is divided by the whole step's tokens."""
        total = int(rollout.mask[chosen].sum())
        lengths = rollout.lengths[chosen].tolist()
        sums: dict[str, float] = {}

        def losses() -> Iterable[Tensor]:
            for batch in token_batches(lengths, self.config.micro_batch_tokens):
                rows = chosen[batch]
                part = rollout.rows(rows)
                states = None if reference_states is None else reference_states[rows]
                share = int(part.mask.sum()) / total
                loss, numbers = self._loss(part, targets.rows(rows), kl_weight, states)
                for name, value in numbers.items():
                    sums[name] = sums.get(name, 0.0) + share * value.item()
                yield share * loss
            if self._demonstrations and self.config.ptx_coef:
                yield self.config.ptx_coef * self._ptx_loss(len(chosen))

        norm = self._updater.update(losses())
        return sums | {"grad_norm": norm}

    def _loss(
        self, part: Rollout, targets: Targets, kl_weight: float, states: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the token-mean loss of some episodes, and what to log of it."""
        config, mask = self.config, part.mask
        reference = (
            states if states is None else ReferenceStates(states=states, head=self._reference.head)
        )
        now = self.actor_critic.evaluate(part, reference)
        policy_loss = ppo_policy_loss(
            now.logprobs, part.logprobs, targets.advantages, mask, clip_range=config.clip_range
        )
        value_loss = ppo_value_loss(
            now.values, part.values, targets.returns, mask, clip_range_vf=config.clip_range_vf
        )
        loss = policy_loss + config.vf_coef * value_loss
        if config.ent_coef:
            loss = loss - config.ent_coef * masked_mean(now.entropies, mask)
        if now.exact_kl is not None:
            loss = loss + kl_weight * masked_mean(now.exact_kl, mask)
        with torch.no_grad():
            ratio = (now.logprobs - part.logprobs).exp()
            numbers = {
                "policy_loss": policy_loss,
                "value_loss": value_loss,
                "approx_kl": approx_kl(now.logprobs, part.logprobs, mask),
                "clip_fraction": masked_mean(((ratio - 1).abs() > config.clip_range).float(), mask),
                "ratio_error": masked_mean((ratio - 1).abs(), mask),
            }
        return loss, numbers

    @torch.no_grad()
    def _reference_states(self, rollout: Rollout) -> Tensor | None:
        """Return the reference's states [B T H] where the exact KL needs them."""
        if self.config.kl_loss == "sampled":
            return None
        steps, pieces = rollout.mask.shape[1], []
        for rows in torch.arange(len(rollout.scores)).split(64):
            ids, lengths = rollout.input_ids[rows], rollout.prompt_lengths[rows]
            pieces.append(self._reference.completion_hidden(ids, lengths, steps))
        return torch.cat(pieces)

    @torch.no_grad()
    def _state_kl(self, rollout: Rollout, reference_states: Tensor) -> Tensor:
        """Return KL(pi || pi_ref) at each state of the rollout, nats, [B T]."""
        pieces = []
        for rows in torch.arange(len(rollout.scores)).split(64):
            states = ReferenceStates(states=reference_states[rows], head=self._reference.head)
            exact = self.actor_critic.evaluate(rollout.rows(rows), states).exact_kl
            assert exact is not None
            pieces.append(exact)
        return torch.cat(pieces)

    def _ptx_loss(self, count: int) -> Tensor:
        """Return the SFT loss of some demonstrations (2203.02155 eq. 2)."""
        assert self._demonstrations is not None
        picked = torch.randint(len(self._demonstrations), (count,), generator=self._generator)
        sequences = [self._demonstrations[int(i)] for i in picked]
        batch = stack_sequences(sequences, self.policy.device)
        return sft_loss(self.actor_critic.lm.token_logprobs(batch), batch.mask)

    def _encode(self, demonstrations: Source | None) -> list[Any]:
        if demonstrations is None:
            if self.config.ptx_coef:
                raise UserError("ptx_coef is set but there are no demonstrations; give some")
            return []
        limit = self.env.max_completion_tokens + self.env.max_prompt_tokens
        return sft_sequences(self.env.tokenizer, load_records(demonstrations), limit)
