"""What an agent logs of its episodes, against numbers worked by hand and against other paths."""

import gymnasium as gym
import pytest
import torch

from textrl.agents import PPO, RLOO, PPOConfig, RLOOConfig
from textrl.agents.rollout import Rollout, rollout_report
from textrl.envs import tiny_model


def rollout(**changes) -> Rollout:
    """Return two episodes of 2 and 1 tokens."""
    zeros = torch.zeros(2, 2)
    fields = {
        "input_ids": torch.zeros(2, 3, dtype=torch.long),
        "prompt_lengths": torch.tensor([1, 1]),
        "positions": torch.tensor([[1, 2], [1, 0]]),
        "completion_ids": torch.zeros(2, 2, dtype=torch.long),
        "mask": torch.tensor([[True, True], [True, False]]),
        "logprobs": torch.tensor([[-1.0, -2.0], [-0.5, 0.0]]),
        "entropies": zeros,
        "values": zeros,
        "bootstrap_values": torch.zeros(2),
        "text_lengths": torch.tensor([3, 2]),
        "truncated": torch.tensor([False, False]),
        "failed": torch.tensor([False, False]),
        "turns": torch.tensor([1, 1]),
        "ref_logprobs": torch.tensor([[-2.0, -3.0], [-0.25, 0.0]]),
        "rewards": zeros,
        "scores": torch.tensor([1.0, 3.0]),
        "named_scores": torch.zeros(2, 0),
        "ended_by_eos": torch.tensor([True, True]),
    }
    return Rollout(**(fields | changes))


def test_the_objective_is_the_score_less_the_weighted_kl() -> None:
    # KL 2 and -0.25 nats; at 0.5 a nat the episodes are worth 1 - 1 = 0 and 3 + 0.125
    report = rollout_report(rollout(), kl_coef=0.5)
    assert report["rollout/objective"] == pytest.approx((0.0 + 3.125) / 2)
    assert report["rollout/score"] == 2.0
    assert report["rollout/kl"] == pytest.approx(0.875)
    cut = rollout(scores=torch.tensor([1.0, torch.nan]))
    assert rollout_report(cut, kl_coef=0.5)["rollout/objective"] == pytest.approx(0.125 / 2)


def test_the_objective_is_what_the_environment_pays_and_the_agents_half_of_the_kl() -> None:
    venv = gym.make_vec(
        "TextRLHF-v0", num_envs=8, group_size=4, max_completion_tokens=6, kl_coef=0.3
    )
    config = RLOOConfig(episodes_per_iteration=8, minibatch_size=8, learning_rate=1e-2)
    agent = RLOO(tiny_model(seed=3), venv, config)
    agent.iterate()
    episodes = agent.collect()
    own = (0.3 * episodes.logprobs.masked_fill(~episodes.mask, 0.0)).sum(1)
    paid = float((episodes.rewards.sum(1) - own).mean())
    assert rollout_report(episodes, 0.3)["rollout/objective"] == pytest.approx(paid, abs=1e-5)


def test_the_betas_of_the_configuration_are_those_of_the_optimiser() -> None:
    def weights(**options) -> torch.Tensor:
        venv = gym.make_vec("TextRLHF-v0", num_envs=8, max_completion_tokens=6)
        policy = tiny_model(seed=3)
        settings = PPOConfig(episodes_per_iteration=8, minibatch_size=4, **options)
        agent = PPO(policy, venv, settings)
        agent.iterate()
        return torch.cat([p.detach().flatten() for p in policy.parameters()])

    given = weights()
    assert torch.equal(given, weights(adam_beta1=0.9, adam_beta2=0.99))
    assert not torch.equal(given, weights(adam_beta1=0.8))
    assert not torch.equal(given, weights(adam_beta2=0.9))
