"""Wrappers that change what is paid, taken or ended are obeyed or refused, never half of it."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import TimeLimit, TransformAction
from gymnasium.wrappers.vector import RecordEpisodeStatistics, TransformReward

from textrl.agents import PPO, RLOO, BestOfN, OnlineDPO, OnlineDPOConfig, PPOConfig, RLOOConfig
from textrl.envs import CandidateActions, PolicyKL, tiny_model
from textrl.errors import UserError
from textrl.rewards import make_scorer

SIZES = dict(num_envs=8, max_completion_tokens=6, group_size=4)


def make(**settings: object) -> gym.vector.VectorEnv:
    return gym.make_vec("TextRLHF-v0", **SIZES | settings)


def agents(venv: gym.vector.VectorEnv) -> list:
    return [
        PPO(tiny_model(), venv, PPOConfig(episodes_per_iteration=8)),
        RLOO(tiny_model(), venv, RLOOConfig(episodes_per_iteration=8)),
        OnlineDPO(tiny_model(), venv, OnlineDPOConfig(episodes_per_iteration=8)),
    ]


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_a_wrapper_that_changes_rewards_is_refused(mode: str) -> None:
    """It would scale the environment's half of the KL and not the agent's."""
    for kl_coef in (0.05, 0.0):
        venv = TransformReward(make(autoreset_mode=mode, kl_coef=kl_coef), lambda r: 10 * r)
        for agent in agents(venv):
            with pytest.raises(UserError, match="a wrapper that changes rewards"):
                agent.iterate()
    venv = make(autoreset_mode=mode, missing_eos_penalty=0.5)
    for agent in agents(RecordEpisodeStatistics(venv)):
        agent.iterate()  # it changes nothing


def test_rows_with_settings_of_their_own_are_refused() -> None:
    one, other = (lambda k=k: gym.make("TextRLHF-v0", kl_coef=k) for k in (0.1, 0.5))
    venv = gym.vector.SyncVectorEnv([one, other], autoreset_mode=AutoresetMode.DISABLED)
    agent = PPO(tiny_model(), venv, PPOConfig(episodes_per_iteration=2))
    with pytest.raises(UserError, match="settings of their own"):
        agent.iterate()


def sync(wrap) -> gym.vector.SyncVectorEnv:
    def single() -> gym.Env:
        return wrap(gym.make("TextRLHF-v0", max_completion_tokens=6))

    return gym.vector.SyncVectorEnv([single] * 8, autoreset_mode=AutoresetMode.DISABLED)


def test_a_wrapper_that_ends_episodes_early_is_refused() -> None:
    agent = PPO(
        tiny_model(), sync(lambda env: TimeLimit(env, 2)), PPOConfig(episodes_per_iteration=8)
    )
    with pytest.raises(
        UserError, match="a wrapper ended the episode of row . in the middle of a turn"
    ):
        agent.iterate()


def test_a_wrapper_that_takes_other_tokens_is_refused() -> None:
    def wrap(env: gym.Env) -> gym.Env:
        return TransformAction(env, lambda token: np.int64(5), env.action_space)

    agent = PPO(tiny_model(), sync(wrap), PPOConfig(episodes_per_iteration=8))
    with pytest.raises(UserError, match="a wrapper took token 5"):
        agent.iterate()
    plain = PPO(tiny_model(), sync(lambda env: env), PPOConfig(episodes_per_iteration=8))
    plain.iterate()


def test_best_of_n_compares_what_is_paid() -> None:
    with pytest.raises(UserError, match="best of n .* which TransformReward does not change"):
        BestOfN(tiny_model(), TransformReward(make(), lambda r: -r))
    with pytest.raises(UserError, match="a truncated text has none"):
        BestOfN(tiny_model(), make(on_length="truncate"))
    BestOfN(tiny_model(), RecordEpisodeStatistics(make()))


def test_a_controller_cannot_steer_what_is_0() -> None:
    config = PPOConfig(episodes_per_iteration=8, kl_target=3.0)
    with pytest.raises(UserError, match="kl_target steers .* which is 0"):
        PPO(tiny_model(), make(kl_coef=0.0), config)


def test_the_policys_half_is_paid_once_and_by_a_log_prob() -> None:
    env = PolicyKL(gym.make("TextRLHF-v0"), lambda observation, action: 0.5)
    with pytest.raises(UserError, match="already"):
        PolicyKL(env, lambda observation, action: -1.0)
    with pytest.raises(UserError, match="leave it out below CandidateActions"):
        CandidateActions(env)
    env.reset(seed=0)
    with pytest.raises(UserError, match="logprob_fn returned 0.5"):
        env.step(np.int64(5))


def test_policy_and_reference_choose_among_the_same_tokens() -> None:
    wider = tiny_model()
    wider.resize_token_embeddings(64)
    with pytest.raises(UserError, match="among 64 tokens and the reference among 29"):
        PPO(wider, make(), PPOConfig(episodes_per_iteration=8))


def test_one_prompt_with_two_answers_is_not_guessed() -> None:
    def exact(prompts, completions, answer):
        return [float(text == right) for text, right in zip(completions, answer, strict=True)]

    rows = [{"prompt": "a", "answer": "b"}, {"prompt": "a", "answer": "c"}]
    venv = make(prompts=rows, reward=exact, num_envs=2, group_size=1)
    observation, _ = venv.reset(seed=0)
    with pytest.raises(UserError, match="0 and 1 are the same tokens with another 'answer'"):
        BestOfN(tiny_model(), venv).predict(observation)


def test_arguments_of_a_reward_function_are_not_swapped() -> None:
    scorer = make_scorer(lambda responses, prompts: [0.0] * len(prompts))
    with pytest.raises(UserError, match="gets the prompts first"):
        scorer(["a"], ["b"], {}, [None])
    names = make_scorer(lambda completions, prompts: [float(text == "b") for text in completions])
    assert names(["a"], ["b"], {}, [None]).tolist() == [1.0]


def test_a_loaded_agent_says_when_its_prompts_start_afresh(tmp_path) -> None:
    agent = RLOO(tiny_model(), make(), RLOOConfig(episodes_per_iteration=8))
    agent.iterate()
    agent.save(tmp_path)
    for other in (make(num_envs=4), make(prompts=["a", "b"])):
        with pytest.warns(UserWarning, match="its prompts start afresh"):
            loaded = RLOO.load(tmp_path, other)
        assert torch.equal(loaded.policy.lm_head.weight, agent.policy.lm_head.weight)
    (tmp_path / "trainer_state" / "state.pt").unlink()
    with pytest.raises(UserError, match=r"state\.pt is missing"):
        RLOO.load(tmp_path, make())
