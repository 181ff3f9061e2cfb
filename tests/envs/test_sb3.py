"""SB3's view of the environment: the same trajectories, SB3's conventions at an episode's end."""

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.evaluation import evaluate_policy

import textrl  # noqa: F401  # registers TextRLHF-v0
from textrl.envs.sb3 import TextVecEnv
from textrl.errors import UserError


def make(rows: int = 4, **kwargs) -> TextVecEnv:
    settings = dict(max_completion_tokens=5, kl_coef=0.1, autoreset_mode="SameStep") | kwargs
    return TextVecEnv(gym.make_vec("TextRLHF-v0", num_envs=rows, **settings))


@pytest.mark.parametrize("on_length", ["score", "truncate"])
def test_trajectories_are_those_of_the_single_environment(on_length: str) -> None:
    """Row i with seed s is the single environment with seed s + i, step by step."""
    venv = make(3, on_length=on_length)
    venv.seed(7)
    singles = [
        gym.make("TextRLHF-v0", max_completion_tokens=5, kl_coef=0.1, on_length=on_length)
        for _ in range(3)
    ]
    batch = venv.reset()
    now = [env.reset(seed=7 + row)[0] for row, env in enumerate(singles)]
    rng, returns = np.random.default_rng(0), np.zeros(3)
    ends = 0
    for _ in range(24):
        for row in range(3):
            for name in batch:
                assert np.array_equal(batch[name][row], now[row][name])
        actions = rng.integers(3, 29, size=3)
        actions[rng.random(3) < 0.2] = 2
        batch, rewards, dones, infos = venv.step(actions)
        for row, env in enumerate(singles):
            found, reward, terminated, truncated, info = env.step(int(actions[row]))
            returns[row] += reward
            assert rewards[row] == pytest.approx(reward, abs=1e-5)
            assert dones[row] == (terminated or truncated)
            assert infos[row]["ref_logprob"] == pytest.approx(info["ref_logprob"], abs=1e-5)
            now[row] = found
            if terminated or truncated:
                ends += 1
                ending = infos[row]["terminal_observation"]
                assert np.array_equal(ending["input_ids"], found["input_ids"])
                assert infos[row]["TimeLimit.truncated"] == truncated
                assert infos[row]["finish_reason"] == info["finish_reason"]
                assert infos[row]["completion"] == info["completion"]
                assert infos[row]["episode"]["r"] == pytest.approx(returns[row], abs=1e-5)
                assert infos[row]["episode"]["l"] <= 5
                assert ("score" in infos[row]) == terminated
                returns[row] = 0.0
                now[row] = env.reset()[0]
    assert ends > 5


def test_methods_and_attributes_by_row() -> None:
    venv = make(4, banned_token_ids=[5])
    venv.reset()
    masks = venv.env_method("action_masks", indices=[1, 3])
    assert len(masks) == 2
    assert masks[0].shape == (29,)
    assert not masks[0][5]
    assert venv.get_attr("kl_coef") == [0.1] * 4
    venv.set_attr("kl_coef", 0.3)
    assert venv.venv.core.kl_coef == 0.3
    with pytest.raises(UserError, match="all rows share 'kl_coef'"):
        venv.set_attr("kl_coef", 0.5, indices=[0])
    with pytest.raises(AttributeError):
        venv.get_attr("no_such_thing")


def test_options_choose_prompts() -> None:
    venv = make(2)
    venv.set_options({"prompt": "c"})
    venv.reset()
    assert [info["prompt"] for info in venv.reset_infos] == ["c", "c"]
    venv.reset()  # once only, as in all of SB3's vector environments
    venv.seed(0)
    first = [info["prompt"] for info in (venv.reset(), venv.reset_infos)[1]]
    venv.seed(0)
    assert [info["prompt"] for info in (venv.reset(), venv.reset_infos)[1]] == first


def test_sb3_evaluates_without_a_monitor() -> None:
    class Same:
        def predict(self, observation, state=None, episode_start=None, deterministic=True):
            return np.full(len(observation["input_ids"]), 2), None

    mean, _ = evaluate_policy(Same(), make(4), n_eval_episodes=8, warn=True)
    assert mean < 0  # EOS at once scores 0 and costs 0.1 log pi_ref


def test_mistakes_are_explained() -> None:
    with pytest.raises(UserError, match='autoreset_mode="SameStep"'):
        make(2, autoreset_mode="NextStep")
    sync = gym.make_vec("TextRLHF-v0", num_envs=2, vectorization_mode="sync")
    with pytest.raises(UserError, match="one batched core"):
        TextVecEnv(sync)
