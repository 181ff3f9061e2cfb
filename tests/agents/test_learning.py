"""Agents against a *known* optimum, each beside a control that does not learn and must fail.

The task has 29 one-token completions for each prompt, so everything is enumerated: the optimum of
E[score] - kl_coef * KL is pi_ref * exp(score / kl_coef), with value
J* = kl_coef * log E_ref[exp(score / kl_coef)], and a policy's own value is computed exactly.
"""

import functools

import gymnasium as gym
import pytest
import torch
from exact import Enumeration

import textrl  # noqa: F401  # registers TextRLHF-v0
from textrl.agents import PPO, OnlineDPO, OnlineDPOConfig, PPOConfig
from textrl.envs import tiny_model, tiny_prompts, tiny_tokenizer

KL_COEF = 0.2
BAR = 0.15  # share of the possible gain that may be missing


def score_of(prompt: str, completion: str) -> float:
    """A different best letter for each prompt, neighbours half as good."""
    if not completion:
        return 0.0
    best = chr(ord(prompt) + 3)
    distance = abs(ord(completion[0]) - ord(best))
    return {0: 1.0, 1: 0.5}.get(distance, 0.0)


def score(prompts: list[str], completions: list[str]) -> list[float]:
    return [score_of(p, c) for p, c in zip(prompts, completions, strict=True)]


@functools.cache
def enumeration() -> Enumeration:
    return Enumeration(tiny_prompts(), tiny_tokenizer(), tiny_model(), score_of, max_tokens=1)


def regret(policy) -> float:
    """(J* - J(policy)) / (J* - J(reference)), exact, mean over prompts."""
    enumerated = enumeration()
    return enumerated.regret(enumerated.value(enumerated.logprobs(policy)), KL_COEF)


def make_venv(group_size: int = 1, reward=score):
    return gym.make_vec(
        "TextRLHF-v0",
        num_envs=256,
        reward=reward,
        kl_coef=KL_COEF,
        max_completion_tokens=1,
        group_size=group_size,
        autoreset_mode="Disabled",
    )


def trained_by_ppo(seed: int, reward=score, iterations: int = 30, **options) -> float:
    policy = tiny_model()
    settings = dict(learning_rate=3e-3, minibatch_size=128, num_epochs=2, vf_coef=0.5) | options
    agent = PPO(policy, make_venv(reward=reward), PPOConfig(seed=seed, **settings))
    agent.learn(256 * iterations)
    return regret(policy)


def test_the_reference_has_regret_1() -> None:
    assert regret(tiny_model()) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="sampled"),
        pytest.param({"kl_loss": "exact"}, id="exact", marks=pytest.mark.proof),
        pytest.param({"critic": "separate"}, id="separate critic", marks=pytest.mark.proof),
    ],
)
def test_ppo_reaches_the_optimum(options, learning) -> None:
    learning(lambda seed: trained_by_ppo(seed, **options), below=BAR)


def test_ppo_without_a_signal_fails_the_same_bar(learning) -> None:
    def nothing(prompts: list[str], completions: list[str]) -> list[float]:
        return [0.0] * len(prompts)

    def blind(seed: int) -> float:
        return trained_by_ppo(seed, reward=nothing, iterations=15)

    learning(blind, above=5 * BAR)


def trained_by_online_dpo(seed: int, reward=score) -> float:
    policy = tiny_model()
    # best against worst of 4 by score is no Bradley-Terry label: it overshoots the optimum at
    # beta = kl_coef, so beta is set for the sharper preference
    config = OnlineDPOConfig(
        learning_rate=3e-3, episodes_per_iteration=1024, minibatch_size=64, beta=0.6, seed=seed
    )
    OnlineDPO(policy, make_venv(group_size=4, reward=reward), config).learn(1024 * 8)
    return regret(policy)


def test_online_dpo_improves_a_lot(learning) -> None:
    learning(trained_by_online_dpo, below=0.75)


def test_online_dpo_with_random_labels_does_not(learning) -> None:
    def noisy(seed: int) -> float:
        generator = torch.Generator().manual_seed(seed)

        def noise(prompts: list[str], completions: list[str]) -> list[float]:
            return torch.rand(len(prompts), generator=generator).tolist()

        return trained_by_online_dpo(seed, reward=noise)

    learning(noisy, above=0.75)
