"""Arguments, options and actions of wrong kinds are refused in one line, and none is ignored."""

import gymnasium as gym
import numpy as np
import pytest

import textrl  # noqa: F401  # registers TextRLHF-v0
from textrl.envs import tiny_score
from textrl.errors import UserError


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("group_size", 0, "group_size is 0"),
        ("group_size", "2", "group_size is '2'"),
        ("num_envs", 0, "num_envs is 0"),
        ("num_envs", 2.0, "num_envs is 2.0"),
        ("banned_token_ids", 5, "banned_token_ids is 5; expected a list"),
        ("banned_token_ids", "ab", "banned_token_ids is 'ab'"),
        ("banned_token_ids", [1.5], "banned_token_ids is"),
        ("banned_token_ids", [True], "banned_token_ids is"),
        ("banned_token_ids", None, "banned_token_ids is None"),
        ("autoreset_mode", "SameSteps", "did you mean 'SameStep'"),
        ("render_mode", "asni", "render_mode is 'asni'"),
        ("device", "gpu", "device is 'gpu'"),
        ("dtype", "float17", "dtype 'float17' is unknown"),
        ("reward", [(tiny_score, float("nan"))], "finite number"),
        ("reward", [(tiny_score, "x")], "finite number"),
        ("reward", [(tiny_score,)], "finite number"),
        ("reward", [(tiny_score, 1, 2)], "finite number"),
        ("prompts", 5, "the data are 5"),
    ],
)
def test_arguments(name: str, value: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        gym.make_vec("TextRLHF-v0", **({"num_envs": 2} | {name: value}))


@pytest.mark.parametrize(
    "options",
    [
        {"index": 1.7},
        {"index": "a"},
        {"index": True},
        {"index": [1]},
        {"index": [1, 2, 3]},
        {"index": [1, None]},
        {"prompt": ["a", "b", "c"]},
        {"reset_mask": [True]},
        {"reset_mask": [1, 0]},
        {"reset_mask": None},
    ],
)
def test_options_of_a_reset(options: dict) -> None:
    venv = gym.make_vec("TextRLHF-v0", num_envs=2)
    with pytest.raises(UserError, match=next(iter(options))):
        venv.reset(options=options)


def test_chosen_prompts_of_every_kind() -> None:
    venv = gym.make_vec("TextRLHF-v0", num_envs=2)
    for index in (np.int64(1), [1, 1], np.array([1, 1])):
        assert venv.reset(options={"index": index})[1]["prompt"].tolist() == ["b", "b"]
    assert venv.reset(options={"prompt": ("ab", "cd")})[1]["prompt"].tolist() == ["ab", "cd"]


def test_actions_of_another_number_than_rows() -> None:
    venv = gym.make_vec("TextRLHF-v0", num_envs=2)
    venv.reset(seed=0)
    for actions in (5, [5], [5, 5, 5], [[5, 5]]):
        with pytest.raises(UserError, match="expected 2 tokens, one a row"):
            venv.step(np.array(actions))
    env = gym.make("TextRLHF-v0")
    env.reset(seed=0)
    with pytest.raises(UserError, match="expected 1 tokens"):
        env.unwrapped.step([5, 5])


@pytest.mark.parametrize("value", [float("nan"), -1, None, "0.1"])
def test_kl_coef_set_while_running(value: object) -> None:
    env = gym.make("TextRLHF-v0").unwrapped
    with pytest.raises(UserError, match="kl_coef is"):
        env.kl_coef = value
    assert env.kl_coef == 0.05
