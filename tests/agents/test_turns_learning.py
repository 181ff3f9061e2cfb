"""Agents learn from worlds; a control that does not learn must fail the same bar."""

from functools import partial

import gymnasium as gym
import pytest
from small_tasks import enumeration, make_venv, new_policy

import textrl  # noqa: F401  # registers TextTurns-v0
from textrl.agents import GRPO, PPO, RLOO, GRPOConfig, PPOConfig, RLOOConfig
from textrl.envs import tiny_character_model

BAR = 0.8
"""Share of games won; random weights win less than one in twenty."""


def best_score(seed: int, learning_rate: float = 3e-3, iterations: int = 20) -> float:
    """The first turn decides what the second one is paid; whatever is said in the second."""
    venv = gym.make_vec(
        "TextTurns-v0",
        num_envs=64,
        world="textrl/ProbeLaterTurn-v0",
        max_turn_tokens=1,
        max_completion_tokens=32,
        kl_coef=0.0,
        autoreset_mode="Disabled",
    )
    config = PPOConfig(
        episodes_per_iteration=64, minibatch_size=16, learning_rate=learning_rate, seed=seed
    )
    agent = PPO(tiny_character_model(), venv, config)
    return max(agent.iterate()["rollout/score"] for _ in range(iterations))


def test_ppo_learns_what_is_paid_a_turn_later(learning) -> None:
    learning(best_score, above=BAR)


def test_without_learning_nothing_is_won(learning) -> None:
    learning(partial(best_score, learning_rate=1e-9, iterations=4), below=BAR / 2)


def regret(seed: int, name: str = "ppo", share: float = 1.0) -> float:
    """Of the game of two turns at kl_coef 0.25: 0 is the exact optimum, 1 is the reference."""
    rows, tokens = 512, share * 60_000
    settings = {
        "learning_rate": 3e-3,
        "decay_timesteps": 60_000,
        "episodes_per_iteration": rows,
        "minibatch_size": 64,
        "seed": seed,
    }
    agents = {
        "ppo": (PPO, PPOConfig(**settings, num_epochs=2, gae_lambda=1.0), 1),
        "rloo": (RLOO, RLOOConfig(**settings, num_epochs=2), 16),
        "grpo": (GRPO, GRPOConfig(**settings, num_epochs=2), 16),
    }
    kind, config, group_size = agents[name]
    venv = make_venv("turns", kl_coef=0.25, num_envs=rows, group_size=group_size)
    policy = new_policy()
    agent = kind(policy, venv, config)
    while agent.env_steps < tokens:
        agent.iterate()
    games = enumeration("turns")
    return games.regret(games.value(games.logprobs(policy)), 0.25)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ppo", "rloo", "grpo"])
def test_agents_come_near_the_optimum_of_two_turns(learning, name: str) -> None:
    learning(partial(regret, name=name), below=0.35)


@pytest.mark.slow
def test_after_a_twentieth_of_the_tokens_they_are_far_from_it() -> None:
    assert regret(0, share=0.05) > 0.7
