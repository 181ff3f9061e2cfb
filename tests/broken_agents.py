"""Agents with one defect each, which the ladder of probes has to find (`test_probe.py`)."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from textrl.advantages import rloo_advantages
from textrl.agents import PPO, RLOO
from textrl.agents.rollout import Rollout, Targets
from textrl.generation import Conversation, Samples
from textrl.policy import Evaluation
from textrl.updater import Numbers, Steps

LETTER = 5
"""Where the letter stands in the first text: <bos> s a y _ c."""


class WrongSign(PPO):
    """Makes bad tokens likelier."""

    def _targets(self, *arguments: Any) -> tuple[Targets, float]:
        targets, divisor = super()._targets(*arguments)
        return replace(targets, advantages=-targets.advantages), divisor


class BlindConversation:
    """Shows the policy one letter in every prompt."""

    def __init__(self, conversation: Conversation) -> None:
        self.conversation = conversation

    def sample(self, rows: Tensor, ids: Tensor, lengths: Tensor, **settings: Any) -> Samples:
        return self.conversation.sample(rows, hidden(ids), lengths, **settings)


class ConstantPrompt(RLOO):
    """Samples and updates as if every prompt named the same letter."""

    def collect_batch(self) -> Rollout:
        sampler = self.sampler

        class Blind:
            def converse(self, *arguments: Any) -> BlindConversation:
                return BlindConversation(sampler.converse(*arguments))

        self.sampler = Blind()  # type: ignore[assignment]
        try:
            return super().collect_batch()
        finally:
            self.sampler = sampler

    def evaluate(self, part: Rollout, **settings: Any) -> Evaluation:
        return super().evaluate(replace(part, input_ids=hidden(part.input_ids)), **settings)


def hidden(ids: Tensor) -> Tensor:
    ids = ids.clone()
    ids[:, LETTER] = 13
    return ids


def turns_of(rollout: Rollout) -> Tensor:
    """Return the turn of each action, from 0, int64 [B T]: positions jump where a turn begins."""
    jumps = torch.zeros_like(rollout.positions)
    jumps[:, 1:] = (rollout.positions[:, 1:] != rollout.positions[:, :-1] + 1).long()
    return jumps.cumsum(1)


class LastTokenOnly(PPO):
    """Gives the credit of a turn to its last token alone."""

    def _targets(self, rollout: Rollout, *arguments: Any) -> tuple[Targets, float]:
        targets, divisor = super()._targets(rollout, *arguments)
        turns, mask = turns_of(rollout), rollout.mask
        last = mask.clone()
        last[:, :-1] = mask[:, :-1] & (~mask[:, 1:] | (turns[:, 1:] != turns[:, :-1]))
        return replace(targets, advantages=targets.advantages * last), divisor


class CutAtTheTurn(RLOO):
    """Takes every turn for an episode: what a later turn is paid does not count."""

    def train_on(self, rollout: Rollout, steps: Steps) -> Numbers:
        rewards = rollout.rewards - self.env.kl_coef * rollout.logprobs
        turns = turns_of(rollout).masked_fill(~rollout.mask, -1)
        self.cut = torch.zeros_like(rewards)
        for turn in range(int(turns.max()) + 1):
            own = turns == turn
            returns = rewards.masked_fill(~own, 0.0).sum(1)
            self.cut += own * rloo_advantages(returns, self.env.group_size).unsqueeze(1)
        return super().train_on(rollout, steps)

    def _loss(self, rollout: Rollout, advantages: Tensor, rows: Tensor) -> Any:
        return super()._loss(rollout, self.cut, rows)
