"""A language model as SB3's policy: cached = naive, episodes = single steps, and it learns."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from sb3_contrib import TRPO, MaskablePPO
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize

import textrl  # noqa: F401  # registers TextRLHF-v0
from textrl.decoding import GrowingTexts
from textrl.envs import VectorCandidateActions, tiny_model
from textrl.envs.sb3 import (
    CausalLMPolicy,
    EpisodeRolloutBuffer,
    MaskableCausalLMPolicy,
    MaskableEpisodeRolloutBuffer,
    SubtractPolicyKL,
    TextVecEnv,
)
from textrl.errors import UserError
from textrl.models import split_lm


def make_env(rows: int = 8, **kwargs) -> TextVecEnv:
    settings = dict(max_completion_tokens=6, kl_coef=0.1, autoreset_mode="SameStep") | kwargs
    return TextVecEnv(gym.make_vec("TextRLHF-v0", num_envs=rows, **settings))


def make_agent(agent=PPO, env=None, **kwargs):
    settings = dict(
        n_steps=12,
        gamma=1.0,
        gae_lambda=0.95,
        learning_rate=1e-3,
        policy_kwargs={"model": tiny_model()},
        rollout_buffer_class=EpisodeRolloutBuffer,
        seed=0,
        device="cpu",
    )
    if agent is not A2C:
        settings["batch_size"] = 48
    if agent in (PPO, MaskablePPO):
        settings["n_epochs"] = 2
    policy = CausalLMPolicy
    if agent is MaskablePPO:
        policy, settings["rollout_buffer_class"] = (
            MaskableCausalLMPolicy,
            MaskableEpisodeRolloutBuffer,
        )
    return agent(policy, env or make_env(), **(settings | kwargs))


def test_growing_texts_are_read_once_and_right() -> None:
    lm = split_lm(tiny_model())
    growing, rng = GrowingTexts(lm), np.random.default_rng(0)
    ids, lengths = torch.zeros(4, 12, dtype=torch.long), torch.tensor([1, 2, 3, 2])
    ids[:, :3] = torch.as_tensor(rng.integers(3, 29, size=(4, 3)))
    ids = torch.where(torch.arange(12) < lengths.unsqueeze(1), ids, 0)
    for step in range(30):
        found = growing.states(ids, lengths)
        expected = lm.hidden(ids)[torch.arange(4), lengths - 1]
        assert torch.allclose(found, expected, atol=1e-5), step
        for row in range(4):
            choice = rng.random()
            if choice < 0.15 or lengths[row] == 12:  # a new episode
                ids[row] = 0
                count = int(rng.integers(1, 4))
                lengths[row] = count
                ids[row, :count] = torch.as_tensor(rng.integers(3, 29, size=count))
            elif choice < 0.9:  # else the row shows the same text again
                ids[row, lengths[row]] = int(rng.integers(3, 29))
                lengths[row] += 1
        if step == 15:
            with torch.no_grad():
                lm.model.model.layers[0].mlp.down_proj.weight.mul_(2.0)


def test_whole_episodes_evaluate_to_the_same_numbers() -> None:
    agent = make_agent()
    agent.learn(96, callback=SubtractPolicyKL())
    buffer = agent.rollout_buffer
    samples = list(buffer.get(40))
    assert sum(len(s.actions) for s in samples) == 96
    assert all(len(s.actions) >= 40 for s in samples[:-1])
    assert len(samples[-1].actions) >= 20  # a shorter rest joins the one before
    cells = buffer._segments()
    assert sum(end - start for _, start, end in cells) == 96
    policy = agent.policy
    for sample in samples:
        episode, position = sample.observations["episode"], sample.observations["position"]
        ids = sample.observations["input_ids"][episode.long()]
        mask = torch.arange(ids.shape[1]) <= position.unsqueeze(1)
        naive = {"input_ids": ids.masked_fill(~mask, 0), "attention_mask": mask.float()}
        actions = sample.actions.long().flatten()
        for one, other in zip(
            policy.evaluate_actions(sample.observations, actions),
            policy.evaluate_actions(naive, actions),
            strict=True,
        ):
            assert torch.allclose(one, other, atol=1e-5)


def test_the_first_ratio_is_1_and_rewards_hold_both_halves() -> None:
    env = make_env(kl_coef=0.5)
    agent = make_agent(env=env, n_epochs=1, learning_rate=0.0)
    agent.learn(96, callback=SubtractPolicyKL())
    buffer = agent.rollout_buffer
    for sample in buffer.get(None):
        _, logprobs, _ = agent.policy.evaluate_actions(
            sample.observations, sample.actions.long().flatten()
        )
        assert torch.allclose(logprobs, sample.old_log_prob, atol=1e-5)
    # the policy is the reference: both halves cancel and the scores alone are left
    assert buffer.rewards.min() > -1e-4
    assert (np.abs(buffer.rewards) > 1e-4).sum() < 40


@pytest.mark.parametrize("agent", [PPO, A2C, MaskablePPO, TRPO])
def test_the_cache_is_dropped_after_a_weight_update(agent) -> None:
    class Compare(SubtractPolicyKL):
        rollouts = 0

        def _on_rollout_end(self) -> None:
            self.rollouts += 1
            for sample in self.model.rollout_buffer.get(None):
                with torch.no_grad():
                    _, now, _ = self.model.policy.evaluate_actions(
                        sample.observations, sample.actions.long().flatten()
                    )
                assert torch.allclose(now, sample.old_log_prob, atol=1e-5)

    compare = Compare()
    options = {"target_kl": 0.5} if agent is TRPO else {"learning_rate": 1e-2}
    before = tiny_model().state_dict()
    found = make_agent(agent, **options)
    found.learn(288, callback=compare)
    assert compare.rollouts == 3
    changed = [not torch.equal(v, before[k]) for k, v in found.policy.model.state_dict().items()]
    assert any(changed)


def first_letter_is_three_further(prompts: list[str], completions: list[str]) -> list[float]:
    """1 for the letter three places behind the prompt's, a half for its neighbours."""
    distances = [ord(c[:1] or "~") - ord(p) - 3 for p, c in zip(prompts, completions, strict=True)]
    return [{0: 1.0, 1: 0.5}.get(abs(distance), 0.0) for distance in distances]


def gain(agent, learning_rate: float, seed: int, tokens: int = 3_000) -> float:
    """Return how much the mean score of the last 200 episodes is above that of the first 200."""
    options = {"n_epochs": 4}
    if agent is A2C:
        options = {"n_steps": 4}
    if agent is TRPO:
        options = {"target_kl": 0.05, "cg_max_steps": 6, "n_critic_updates": 2}
    scores = []

    class Watch(SubtractPolicyKL):
        def _on_step(self) -> bool:
            scores.extend(i["score"] for i in self.locals["infos"] if "score" in i)
            return super()._on_step()

    env = make_env(32, kl_coef=0.0, reward=first_letter_is_three_further, max_completion_tokens=2)
    found = make_agent(agent, env, learning_rate=learning_rate, seed=seed, **options)
    found.learn(tokens, callback=Watch())
    return float(np.mean(scores[-200:]) - np.mean(scores[:200]))


LEAST_GAIN = 0.12


@pytest.mark.parametrize(
    "agent",
    [
        PPO,
        pytest.param(A2C, marks=pytest.mark.slow),
        pytest.param(MaskablePPO, marks=pytest.mark.proof),
        pytest.param(TRPO, marks=pytest.mark.proof),
    ],
)
def test_it_learns(agent, learning) -> None:
    tokens = 6_000 if agent is A2C else 2_500  # one step of A2C where PPO takes twelve
    learning(lambda seed: gain(agent, 5e-3, seed, tokens), above=LEAST_GAIN)


def test_without_learning_there_is_no_gain(learning) -> None:
    learning(lambda seed: gain(A2C, 0.0, seed, 1_500), below=LEAST_GAIN)


def test_masked_tokens_are_never_sampled_and_the_first_ratio_is_1() -> None:
    env = make_env(min_completion_tokens=3, banned_token_ids=[5, 6, 7])
    agent = make_agent(MaskablePPO, env, n_epochs=1, learning_rate=0.0)
    agent.learn(96, callback=SubtractPolicyKL())
    buffer = agent.rollout_buffer
    assert not np.isin(buffer.actions, [5, 6, 7]).any()
    assert min(episode["l"] for episode in agent.ep_info_buffer) >= 3
    for sample in buffer.get(40):
        assert not sample.action_masks[:, 5:8].any()
        _, logprobs, entropy = agent.policy.evaluate_actions(
            sample.observations, sample.actions.long().flatten(), sample.action_masks
        )
        assert torch.allclose(logprobs, sample.old_log_prob, atol=1e-5)
        assert entropy.isfinite().all()
    # without masks the banned tokens take part, so the same actions are less likely
    _, unmasked, _ = agent.policy.evaluate_actions(
        sample.observations, sample.actions.long().flatten()
    )
    assert (unmasked < logprobs).all()


@pytest.mark.parametrize("agent", [PPO, A2C, MaskablePPO, TRPO])
def test_save_and_load_predict_the_same(agent, tmp_path) -> None:
    env = make_env()
    found = make_agent(agent, env, **({"target_kl": 0.5} if agent is TRPO else {}))
    found.learn(192, callback=SubtractPolicyKL())
    found.save(tmp_path / "agent")
    loaded = agent.load(tmp_path / "agent", env=env, device="cpu")
    trained = found.policy.state_dict()
    assert all(torch.equal(v, trained[k]) for k, v in loaded.policy.state_dict().items())
    start = make_agent(agent, env).policy.state_dict()
    assert not all(torch.equal(v, trained[k]) for k, v in start.items())
    observation = env.reset()
    one, _ = found.predict(observation, deterministic=True)
    other, _ = loaded.predict(observation, deterministic=True)
    assert (one == other).all()


@pytest.mark.parametrize("agent", [PPO, MaskablePPO])
def test_a_policy_alone_is_saved_and_loaded_with_its_model_and_temperature(agent, tmp_path) -> None:
    env = make_env(temperature=0.7)
    given = {"model": tiny_model(), "temperature": 0.7, "optimizer_kwargs": {"weight_decay": 0.1}}
    policy = make_agent(agent, env, policy_kwargs=given).policy
    with torch.no_grad():  # as if it were trained
        for parameter in policy.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    policy.save(tmp_path / "policy.pt")
    loaded = type(policy).load(tmp_path / "policy.pt", device="cpu")
    observation = policy.obs_to_tensor(env.reset())[0]
    with torch.no_grad():
        actions = policy.get_distribution(observation).mode()
        one, other = (p.evaluate_actions(observation, actions) for p in (policy, loaded))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert loaded.optimizer.defaults["weight_decay"] == 0.1


def test_nothing_is_reinitialised_and_dropout_is_off() -> None:
    model = tiny_model()
    model.config.attention_dropout = 0.5
    policy = make_agent(policy_kwargs={"model": model}).policy
    for one, other in zip(policy.model.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, other)
    policy.set_training_mode(True)
    assert not any(module.training for module in policy.model.modules())
    assert float(policy.value_head.weight.detach().abs().sum()) == 0.0


def test_mistakes_are_explained() -> None:
    with pytest.raises(UserError, match="gamma=1.0"):
        make_agent(gamma=0.99)
    options = dict(n_steps=4, batch_size=8, policy_kwargs={"model": tiny_model()})
    with pytest.raises(UserError, match="gamma is 0.99"):
        PPO(CausalLMPolicy, make_env(), **options).learn(1, callback=SubtractPolicyKL())
    with pytest.raises(UserError, match=r"callback=SubtractPolicyKL\(\)\), which checks gamma"):
        PPO(CausalLMPolicy, make_env(), **options).learn(1)
    for options in ({"norm_obs_keys": ["prompt_length"]}, {"norm_obs": False}):
        with pytest.raises(UserError, match="leave VecNormalize out"):
            make_agent(env=VecNormalize(make_env(), **options)).learn(
                1, callback=SubtractPolicyKL()
            )
    with pytest.raises(UserError, match="leave VecFrameStack out"):
        make_agent(env=VecFrameStack(make_env(), 2)).learn(1, callback=SubtractPolicyKL())
    for env in (make_env(), gym.make("TextRLHF-v0")):
        with pytest.raises(UserError, match="names, not numbers .* TextRLHFCandidates-v0"):
            PPO("MultiInputPolicy", env, n_steps=4, batch_size=4)
    with pytest.raises(UserError, match="names, not numbers"):
        gym.wrappers.FlattenObservation(gym.make("TextRLHF-v0"))
    with pytest.raises(UserError, match='no model; .* policy_kwargs={"model"'):
        PPO(CausalLMPolicy, make_env())
    with pytest.raises(UserError, match="no action values; DQN takes"):
        DQN(CausalLMPolicy, make_env(), policy_kwargs={"model": tiny_model()}, buffer_size=100)
    states = TextVecEnv(VectorCandidateActions(make_env().venv, k=4))
    with pytest.raises(UserError, match="DQN acts without log-probs"):
        DQN("MlpPolicy", states, learning_starts=0).learn(1, callback=SubtractPolicyKL())
    with pytest.raises(UserError, match="temperature is 0.7, the policy's 1.0"):
        make_agent(MaskablePPO, make_env(temperature=0.7)).learn(1, callback=SubtractPolicyKL())
    with pytest.raises(UserError, match='policy_kwargs={"temperature": 0.7'):
        make_agent(env=make_env(temperature=0.7)).learn(1, callback=SubtractPolicyKL())
    single = gym.make("TextRLHF-v0", max_completion_tokens=4)
    with pytest.raises(UserError, match="DummyVecEnv holds a model for every row"):
        make_agent(env=single, n_steps=48).learn(1, callback=SubtractPolicyKL())
