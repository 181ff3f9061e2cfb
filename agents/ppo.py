"""PPO for language models: actor and critic are here, reward and reference in the environment.

One iteration:
  1. collect    sample completions from the policy; the environment pays for them
  2. targets    subtract the policy's half of the KL, GAE (gamma 1), whiten over all tokens
  3. update     num_epochs x minibatches of the clipped surrogate and the clipped value loss
  4. report     diagnostics of the run; KL in nats per sequence, means over real tokens

What all agents share (`learn`, `save`, the minibatch loop) is in `text_agent.py`.

With kl_loss="exact" the sampled KL is not in the reward. Instead, the update minimises the
full-vocabulary KL(pi || pi_ref) at each state directly, and the reward of a token contains minus
the exact KL of the state that it leads to; the objective is the same. The variance of the gradient
is no lower: near the optimum the sampled KL cancels the noise of the score (ADR 2). Therefore
"sampled" is the default.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model as load_safetensors
from safetensors.torch import save_model as save_safetensors
from stable_baselines3.common.logger import Logger
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedModel

from textrl.advantages import gae
from textrl.agents.base import AnyVectorEnv
from textrl.agents.collect import collect
from textrl.agents.critic import Critic, make_critic, values_at
from textrl.agents.kl_control import adapted_kl_coef
from textrl.agents.rollout import Rollout, Targets, explained_variance, ratio_report
from textrl.agents.saving import read_policy, restore
from textrl.agents.text_agent import TextAgent
from textrl.agents.text_env import TextEnv
from textrl.bounds import checked_config
from textrl.config import PPOConfig
from textrl.data import Source, load_records
from textrl.digests import data_digest
from textrl.encoding import sft_sequences
from textrl.errors import UserError
from textrl.finite import check_finite
from textrl.losses import ppo_policy_loss, ppo_value_loss, sft_loss
from textrl.masking import masked_mean, standardize, whitening_divisor
from textrl.models import split_lm
from textrl.packing import filled_batches
from textrl.paths import expanded
from textrl.policy import ReferenceStates
from textrl.types import stack_sequences
from textrl.updater import MoreLosses, Numbers, Steps, update_report

STATES_PER_PASS = 64
"""Number of episodes in one forward pass of the reference."""


@dataclass(frozen=True, kw_only=True)
class ExactKL:
    """What the exact KL loss needs about an iteration's episodes."""

    reference_states: Tensor
    """The reference's hidden states at the completion's positions. Shape [B T H]."""
    weight: float
    """The weight of the KL in the loss: kl_coef in units of the whitened advantages."""


class PPO(TextAgent):
    """Proximal policy optimisation on `TextRLHF-v0` (1707.06347, 1909.08593, 2203.02155)."""

    name = "ppo"
    config_class = PPOConfig
    config: PPOConfig

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
            policy: The model to train, in place. Its tokenizer is the environment's.
            venv: A vector environment of `TextRLHF-v0`.
            config: The hyper-parameters.
            demonstrations: Demonstrations for PPO-ptx (ptx_coef > 0), in any form that SFT reads.
            logger: An SB3 logger. The default one prints nothing.

        Raises:
            UserError: a size does not fit the environment, or the policy is the reference itself.
        """
        config = checked_config(self, config, PPOConfig)
        env = TextEnv(venv)
        env.check(policy, config.episodes_per_iteration)
        if config.kl_target is not None and env.kl_coef == 0:
            raise UserError(
                "kl_target steers the environment's kl_coef, which is 0 and would stay so; make "
                "the environment with a kl_coef to begin with"
            )
        critic = make_critic(
            config.critic,
            config.critic_head,
            policy,
            env.tokenizer,
            env.reward_model,
            config.seed,
        )
        rate = config.critic_learning_rate
        super().__init__(
            policy, venv, config, logger=logger, critic=critic, critic_learning_rate=rate
        )
        self.critic = critic
        self._reference = split_lm(env.reference)
        self._demonstrations = self._encode(demonstrations)

    def write(self, folder: Path) -> None:
        """Write the files of a save to a fresh folder, the critic's among them."""
        check_finite(self.critic, "cannot be saved")
        super().write(folder)
        save_safetensors(self.critic, str(folder / "critic.safetensors"))

    @classmethod
    def load(
        cls,
        path: str | Path,
        venv: AnyVectorEnv,
        *,
        demonstrations: Source | None = None,
        logger: Logger | None = None,
    ) -> "PPO":
        """Load a saved agent and attach it to an environment; learning resumes bit for bit.

        Raises:
            UserError: the folder holds no PPO agent.
        """
        policy, config = read_policy(cls, expanded(path), venv)
        assert isinstance(config, PPOConfig)
        agent = cls(policy, venv, config, demonstrations=demonstrations, logger=logger)
        load_critic(agent.critic, expanded(path) / "critic.safetensors")
        state = restore(agent, expanded(path))
        if config.kl_target is not None:  # a fixed kl_coef is set in the environment
            agent.env.kl_coef = state["kl_coef"]
        return agent

    def collect_in(self, env: TextEnv, generator: torch.Generator) -> Rollout:
        """Return one finished episode of every row of an environment, with the critic's values."""
        values = partial(values_at, self.critic, self.lm)
        return collect(self.sampler, env, generator, values_at=values)

    def credit(self, rollout: Rollout) -> Targets:
        """Return advantages and returns by the sampled KL, not whitened."""
        return self._gae(rollout, rollout.rewards - self.env.kl_coef * rollout.logprobs)

    def train_on(self, rollout: Rollout, steps: Steps) -> Numbers:
        """Update actor and critic from an iteration's episodes; return what to log."""
        config, kl_coef = self.config, self.env.kl_coef
        with self.autocast():
            states = self._reference_states(rollout)
            targets, divisor = self._targets(rollout, kl_coef, states)
        exact = None
        if states is not None:  # no token is sampled in the state after a truncation: drop it
            states = states[:, : rollout.mask.shape[1]]
            exact = ExactKL(reference_states=states, weight=kl_coef / divisor)
        losses = [partial(self._actor_loss, rollout, targets, exact)]
        if isinstance(self.critic, Critic):
            losses.append(partial(self._critic_loss, rollout, targets))
        updates: list[Numbers] = []
        for step in steps.over(
            lengths=rollout.lengths,
            weights=rollout.mask.sum(1),
            minibatch_size=config.minibatch_size,
            num_epochs=config.num_epochs,
        ):
            updates.append(step.take(*losses, more=self._ptx_losses(len(step.rows))))
            limit = config.target_kl
            if limit is not None and updates[-1]["approx_kl"] > limit:
                break
        if config.kl_target is not None:
            kl = float(rollout.sequence_kl.mean())
            self.env.kl_coef = adapted_kl_coef(kl_coef, kl, len(rollout.scores), config)
        explained = explained_variance(rollout, targets)
        return update_report(updates) | {"train/explained_variance": explained}

    def _targets(
        self, rollout: Rollout, kl_coef: float, reference_states: Tensor | None
    ) -> tuple[Targets, float]:
        """Return whitened advantages and returns, and the number that whitening divided by."""
        mask = rollout.mask
        if reference_states is None:
            rewards = rollout.rewards - kl_coef * rollout.logprobs
        else:
            rewards = rollout.rewards - kl_coef * rollout.ref_logprobs
            rewards -= kl_coef * self._state_kl(rollout, reference_states)[:, 1:]
        found = self._gae(rollout, rewards.masked_fill(~mask, 0.0))
        whitened = standardize(found.advantages, mask)
        return replace(found, advantages=whitened), float(whitening_divisor(found.advantages, mask))

    def _gae(self, rollout: Rollout, rewards: Tensor) -> Targets:
        """Return advantages and returns for rewards that hold both halves of the KL."""
        advantages, returns = gae(
            rewards,
            rollout.values,
            rollout.mask,
            gae_lambda=self.config.gae_lambda,
            bootstrap_values=rollout.bootstrap_values,
        )
        return Targets(advantages=advantages, returns=returns)

    def _actor_loss(
        self, rollout: Rollout, targets: Targets, exact: ExactKL | None, rows: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the token-mean loss of some episodes, and numbers to log.

        The loss of a value head is included, since one pass gives log-probs and values.
        """
        config, part, target = self.config, rollout.rows(rows), targets.rows(rows)
        mask = part.mask
        now = self.evaluate(
            part,
            entropies=config.ent_coef > 0,
            reference=self._reference_of(exact, rows),
        )
        policy_loss = ppo_policy_loss(
            now.logprobs, part.logprobs, target.advantages, mask, clip_range=config.clip_range
        )
        loss, numbers = policy_loss, {"policy_loss": policy_loss}
        if now.values is not None:
            value_loss = self._value_loss(now.values, part, target)
            loss, numbers["value_loss"] = loss + config.vf_coef * value_loss, value_loss
        if now.entropies is not None:
            loss = loss - config.ent_coef * masked_mean(now.entropies, mask)
        if exact is not None and now.exact_kl is not None:
            loss = loss + exact.weight * masked_mean(now.exact_kl, mask)
        return loss, numbers | ratio_report(now.logprobs, part, config.clip_range)

    def _critic_loss(
        self, rollout: Rollout, targets: Targets, rows: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted value loss of a critic that has its own trunk."""
        part = rollout.rows(rows)
        values = self.critic(part.input_ids, part.positions, part.mask)
        value_loss = self._value_loss(values, part, targets.rows(rows))
        return self.config.vf_coef * value_loss, {"value_loss": value_loss}

    def _value_loss(self, values: Tensor, part: Rollout, target: Targets) -> Tensor:
        limit = self.config.clip_range_vf
        return ppo_value_loss(values, part.values, target.returns, part.mask, clip_range_vf=limit)

    def _reference_of(self, exact: ExactKL | None, rows: Tensor) -> ReferenceStates | None:
        if exact is None:
            return None
        return ReferenceStates(states=exact.reference_states[rows], head=self._reference.head)

    @torch.no_grad()
    def _reference_states(self, rollout: Rollout) -> Tensor | None:
        """Return the reference's states [B T+1 H] if the exact KL needs them, else None."""
        if self.config.kl_loss == "sampled":
            return None
        rollout, pieces = with_last_states(rollout), []
        for rows in torch.arange(len(rollout.scores)).split(STATES_PER_PASS):
            part = rollout.rows(rows)
            states = self._reference.action_states(part.input_ids, part.positions, part.mask)
            pieces.append(states)
        return torch.cat(pieces)

    @torch.no_grad()
    def _state_kl(self, rollout: Rollout, reference_states: Tensor) -> Tensor:
        """Return KL(pi || pi_ref) at each state of the rollout, in nats, [B T+1]."""
        rollout, pieces = with_last_states(rollout), []
        for rows in torch.arange(len(rollout.scores)).split(STATES_PER_PASS):
            states = ReferenceStates(states=reference_states[rows], head=self._reference.head)
            exact = self.evaluate(rollout.rows(rows), reference=states).exact_kl
            assert exact is not None
            pieces.append(exact)
        return torch.cat(pieces)

    def _ptx_losses(self, count: int) -> MoreLosses:
        """Return the weighted SFT loss of `count` demonstrations (2203.02155 eq. 2), if any."""
        if not self._demonstrations or not self.config.ptx_coef:
            return lambda tokens: ()
        picked = torch.randint(len(self._demonstrations), (count,), generator=self._generator)
        sequences = [self._demonstrations[int(i)] for i in picked]
        total = sum(sequence.num_counted for sequence in sequences)
        lengths = [len(sequence.ids) for sequence in sequences]

        def losses(tokens: int) -> Iterator[Tensor]:
            for rows in filled_batches(lengths, tokens):
                batch = stack_sequences([sequences[row] for row in rows], self.policy.device)
                weight = self.config.ptx_coef * int(batch.mask.sum()) / total
                with self.autocast():
                    loss = weight * sft_loss(self.module.logprobs_of(batch), batch.mask)
                yield loss

        return losses

    def task_digest(self) -> dict[str, str]:
        """Return what the numbers depend on beside the configuration, the demonstrations too."""
        return super().task_digest() | {"demonstrations": data_digest(self._demonstrations)}

    def _encode(self, demonstrations: Source | None) -> list[Any]:
        if demonstrations is None:
            if self.config.ptx_coef:
                raise UserError("ptx_coef is set but there are no demonstrations; give some")
            return []
        if not self.config.ptx_coef:
            raise UserError("demonstrations are given but ptx_coef is 0; set it, or leave them out")
        limit = self.env.max_completion_tokens + self.env.max_prompt_tokens
        records, ends = load_records(demonstrations, "demonstrations"), self.env.end_token_ids
        return sft_sequences(self.env.tokenizer, records, limit, ends)


def with_last_states(rollout: Rollout) -> Rollout:
    """Return the episodes with one more slot, whose mask is True where they were truncated.

    The slot stands for the state after the last token. The KL of that state is part of what the
    last token leads to, and the bootstrap value of a truncated episode does not contain it. The
    token in the slot (0) has no meaning.
    """
    mask, positions = pad(rollout.mask, (0, 1)), pad(rollout.positions, (0, 1))
    cut = rollout.truncated.nonzero().squeeze(1)
    slots = rollout.mask.sum(1)[cut]
    mask[cut, slots], positions[cut, slots] = True, rollout.text_lengths[cut]
    return replace(
        rollout,
        input_ids=pad(rollout.input_ids, (0, 1)),
        positions=positions,
        completion_ids=pad(rollout.completion_ids, (0, 1)),
        mask=mask,
    )


def load_critic(critic: nn.Module, file: Path) -> None:
    """Read a saved critic's weights.

    Raises:
        UserError: the file is missing, damaged, or holds another kind of critic.
    """
    try:
        load_safetensors(critic, str(file))
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{file} cannot be read ({reason}); put back a copy") from error
