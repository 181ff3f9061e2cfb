"""Agents against a *known* optimum, each beside a control that does not learn and must fail.

The task has 29 one-token completions for each prompt, so everything is enumerated: the optimum of
E[score] - kl_coef * KL is pi_ref * exp(score / kl_coef), with value
J* = kl_coef * log E_ref[exp(score / kl_coef)], and a policy's own value is computed exactly.
"""

import gymnasium as gym
import pytest
import torch

import textrl  # noqa: F401  # registers TextRLHF-v0
from textrl.agents import PPO, OnlineDPO, OnlineDPOConfig, PPOConfig
from textrl.envs import tiny_model, tiny_prompts, tiny_tokenizer

KL_COEF = 0.2
BAR = 0.1  # share of the possible gain that may be missing


def score_of(prompt: str, completion: str) -> float:
    """A different best letter for each prompt, neighbours half as good."""
    if not completion:
        return 0.0
    best = chr(ord(prompt) + 3)
    distance = abs(ord(completion[0]) - ord(best))
    return {0: 1.0, 1: 0.5}.get(distance, 0.0)


def score(prompts: list[str], completions: list[str]) -> list[float]:
    return [score_of(p, c) for p, c in zip(prompts, completions, strict=True)]


def regret(policy) -> float:
    """(J* - J(policy)) / (J* - J(reference)), exact, mean over prompts."""
    tokenizer, reference = tiny_tokenizer(), tiny_model()
    lost = possible = 0.0
    for prompt in tiny_prompts():
        ids = torch.tensor([tokenizer(prompt).input_ids])
        with torch.no_grad():
            p = policy(input_ids=ids).logits[0, -1].double().log_softmax(-1)
            q = reference(input_ids=ids).logits[0, -1].double().log_softmax(-1)
        scores = torch.tensor(
            [
                score_of(prompt, tokenizer.decode([token], skip_special_tokens=True))
                for token in range(len(p))
            ],
            dtype=torch.float64,
        )
        best = KL_COEF * (q + scores / KL_COEF).logsumexp(0)
        value = (p.exp() * (scores - KL_COEF * (p - q))).sum()
        assert value <= best + 1e-9, "above the optimum: the evaluation is wrong"
        lost += float(best - value)
        possible += float(best - (q.exp() * scores).sum())
    return lost / possible


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


def trained_by_ppo(reward=score, **options) -> float:
    policy = tiny_model()
    settings = dict(learning_rate=5e-3, minibatch_size=128, num_epochs=2, vf_coef=0.5) | options
    agent = PPO(policy, make_venv(reward=reward), PPOConfig(**settings))
    agent.learn(256 * 50)
    return regret(policy)


def test_the_reference_has_regret_1() -> None:
    assert regret(tiny_model()) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "options",
    [{}, {"kl_loss": "exact"}, {"critic": "separate"}],
    ids=["sampled", "exact", "separate critic"],
)
def test_ppo_reaches_the_optimum(options) -> None:
    assert trained_by_ppo(**options) < BAR


def test_ppo_without_a_signal_fails_the_same_bar() -> None:
    assert trained_by_ppo(reward=lambda prompts, completions: [0.0] * len(prompts)) > 0.9


def trained_by_online_dpo(reward=score) -> float:
    policy = tiny_model()
    # best against worst of 4 by score is no Bradley-Terry label: it overshoots the optimum at
    # beta = kl_coef, so beta is set for the sharper preference
    config = OnlineDPOConfig(
        learning_rate=3e-3, episodes_per_iteration=1024, minibatch_size=64, beta=0.6
    )
    OnlineDPO(policy, make_venv(group_size=4, reward=reward), config).learn(1024 * 12)
    return regret(policy)


def test_online_dpo_improves_a_lot() -> None:
    assert trained_by_online_dpo() < 0.5


def test_online_dpo_with_random_labels_does_not() -> None:
    generator = torch.Generator().manual_seed(0)

    def noise(prompts: list[str], completions: list[str]) -> list[float]:
        return torch.rand(len(prompts), generator=generator).tolist()

    assert trained_by_online_dpo(reward=noise) > 0.9
