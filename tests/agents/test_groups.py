"""The rows of a group keep one prompt behind wrappers, in every autoreset mode."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from test_critic_free import make, make_venv

from textrl.agents.text_agent import TextAgent
from textrl.envs import tiny_model
from textrl.errors import UserError

MODES = ["NextStep", "SameStep", "Disabled"]


def prompts(agent: TextAgent) -> np.ndarray:
    """Return the prompt of each of an iteration's episodes, as text, a group a row."""
    rollout = agent.collect()
    cut = [
        row[:n].tolist() for row, n in zip(rollout.input_ids, rollout.prompt_lengths, strict=True)
    ]
    return np.array([str(ids) for ids in cut]).reshape(-1, agent.env.group_size)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["grpo", "rloo", "online_dpo"])
def test_groups_share_prompts_behind_a_wrapper(name: str, mode: str) -> None:
    wrapped = RecordEpisodeStatistics(make_venv(autoreset_mode=mode))
    agent = make(name, tiny_model(), wrapped)
    seen = []
    for _ in range(4):
        seen.append(prompts(agent))
        agent.iterate()
    assert all((groups == groups[:, :1]).all() for groups in seen)
    assert len(np.unique(seen)) > 4


@pytest.mark.parametrize("mode", ["NextStep", "Disabled"])
def test_a_wrapper_changes_nothing(mode: str) -> None:
    bare = make("rloo", tiny_model(), make_venv())
    wrapped = make("rloo", tiny_model(), RecordEpisodeStatistics(make_venv(autoreset_mode=mode)))
    for _ in range(4):
        one, other = bare.collect(), wrapped.collect()
        assert torch.equal(one.input_ids, other.input_ids)
        assert torch.allclose(one.rewards, other.rewards, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_a_reset_of_all_rows_brings_groups_together(mode: str) -> None:
    venv = make_venv(8, autoreset_mode=mode)
    venv.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(40):
        _, _, terminated, truncated, _ = venv.step(rng.integers(0, 5, size=8))
        if mode == "Disabled" and (terminated | truncated).any():
            venv.reset(options={"reset_mask": terminated | truncated})
    _, infos = venv.reset()
    groups = infos["prompt"].reshape(2, 4)
    assert (groups == groups[:, :1]).all()


def test_groups_that_a_wrapper_mixes_are_refused() -> None:
    class Rolled(gym.vector.VectorWrapper):
        def reset(self, **kwargs):
            observation, infos = self.env.reset(**kwargs)
            return {name: np.roll(rows, 1, axis=0) for name, rows in observation.items()}, infos

    agent = make("grpo", tiny_model(), Rolled(make_venv()))
    with pytest.raises(UserError, match="a wrapper mixes the rows"):
        agent.iterate()
