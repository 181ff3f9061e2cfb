"""RLOO, GRPO, REINFORCE and best of n: what they minimise, invariances, mistakes."""

import gymnasium as gym
import numpy as np
import pytest
import torch

import textrl  # noqa: F401  # registers TextRLHF-v0
from textrl.agents import (
    GRPO,
    RLOO,
    BestOfN,
    BestOfNConfig,
    GRPOConfig,
    OnlineDPO,
    OnlineDPOConfig,
    Reinforce,
    ReinforceConfig,
    RLOOConfig,
)
from textrl.envs import tiny_model, tiny_tokenizer
from textrl.errors import UserError

AGENTS = {
    "rloo": (RLOO, RLOOConfig, {"minibatch_size": 8}),
    "grpo": (GRPO, GRPOConfig, {"minibatch_size": 8}),
    "dr_grpo": (GRPO, GRPOConfig, {"minibatch_size": 8, "variant": "dr_grpo"}),
    "reinforce": (Reinforce, ReinforceConfig, {}),
    "online_dpo": (OnlineDPO, OnlineDPOConfig, {"minibatch_size": 4}),
}


def make_venv(rows: int = 16, group_size: int = 4, **kwargs):
    settings = dict(max_completion_tokens=6, kl_coef=0.1, autoreset_mode="Disabled") | kwargs
    return gym.make_vec("TextRLHF-v0", num_envs=rows, group_size=group_size, **settings)


def make(name: str, policy=None, venv=None, **kwargs):
    agent, config, options = AGENTS[name]
    settings = {"episodes_per_iteration": 32, "learning_rate": 1e-3} | options | kwargs
    return agent(policy or tiny_model(), venv or make_venv(), config(**settings))


def weights(model) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def slow_logprobs(policy, rollout, row: int) -> torch.Tensor:
    """Return the log-probs of one episode's tokens from a plain forward pass."""
    start, length = int(rollout.prompt_lengths[row]), int(rollout.mask[row].sum())
    ids = rollout.input_ids[row, : start + length]
    logp = policy(input_ids=ids.unsqueeze(0)).logits[0].log_softmax(-1)
    return logp[start - 1 : -1].gather(1, ids[start:].unsqueeze(1)).squeeze(1)


def slow_loss(name: str, policy, rollout) -> torch.Tensor:
    """Return the loss at ratio 1, an episode at a time; rloo's and reinforce's per token."""
    returns = []
    for row in range(32):
        kl = (rollout.logprobs[row] - rollout.ref_logprobs[row])[rollout.mask[row]].sum()
        returns.append(float(rollout.scores[row] - 0.1 * kl))
    total, tokens = torch.zeros(()), int(rollout.mask.sum())
    for row in range(32):
        group = returns[row - row % 4 : row - row % 4 + 4]
        logp = slow_logprobs(policy, rollout, row)
        if name == "reinforce":
            others = (sum(returns) - returns[row]) / 31
            total = total - (returns[row] - others) * logp.sum() / tokens
        elif name == "rloo":
            others = (sum(group) - returns[row]) / 3
            total = total - (returns[row] - others) * logp.sum() / tokens
        elif name == "grpo":
            advantage = (returns[row] - np.mean(group)) / np.sqrt(np.var(group) + 1e-8)
            total = total - float(advantage) * logp.mean() / 32
        else:
            total = total - float(returns[row] - np.mean(group)) * logp.sum() / 6 / 32
    return total


@pytest.mark.parametrize("name", ["rloo", "grpo", "dr_grpo", "reinforce"])
def test_the_gradient_is_that_of_the_papers_loss(name: str) -> None:
    policy = tiny_model(seed=3)
    options = {} if name == "reinforce" else {"num_epochs": 1, "minibatch_size": 32}
    agent = make(name, policy, max_grad_norm=1e9, **options)
    rollout = agent.collect()
    slow_loss(name, policy, rollout).backward()
    expected = [p.grad.clone() for p in policy.parameters()]
    policy.zero_grad()
    agent.train_on(rollout, agent.steps())
    for found, wanted in zip(policy.parameters(), expected, strict=True):
        assert torch.allclose(found.grad, wanted, atol=1e-6)
    assert max(float(g.abs().max()) for g in expected) > 1e-3


@pytest.mark.parametrize("name", list(AGENTS))
def test_micro_batches_never_change_the_result(name: str) -> None:
    found = []
    for tokens in (8, 40, 100_000):
        agent = make(name, micro_batch_tokens=tokens)
        agent.iterate()
        found.append(weights(agent.policy))
    assert torch.allclose(found[0], found[2], atol=2e-5)
    assert torch.allclose(found[1], found[2], atol=2e-5)
    assert not torch.allclose(found[2], weights(tiny_model()), atol=2e-4)


@pytest.mark.parametrize("name", ["rloo", "grpo", "reinforce"])
def test_first_minibatch_identities(name: str) -> None:
    numbers = make(name).iterate()
    assert numbers["train/first_ratio_error"] < 1e-5
    assert abs(numbers["train/first_approx_kl"]) < 1e-5
    assert abs(numbers["rollout/kl"]) < 1e-5


@pytest.mark.parametrize("name", list(AGENTS))
def test_save_load_and_resume_bit_for_bit(name: str, tmp_path) -> None:
    straight, halfway = make(name, decay_timesteps=500), make(name, decay_timesteps=500)
    for _ in range(4):
        straight.iterate()
    for _ in range(2):
        halfway.iterate()
    halfway.save(tmp_path)
    resumed = type(halfway).load(tmp_path, make_venv())
    assert resumed.config == halfway.config
    for _ in range(2):
        resumed.iterate()
    assert torch.equal(weights(resumed.policy), weights(straight.policy))
    assert resumed.env_steps == straight.env_steps > 0


def test_the_learning_rate_falls_to_0_over_the_tokens() -> None:
    agent = make("rloo", decay_timesteps=300)
    rates, seen = [], []
    for _ in range(4):
        seen.append(agent.env_steps)
        rates.append(agent.iterate()["train/learning_rate"])
    assert rates == pytest.approx([1e-3 * max(0.0, 1 - tokens / 300) for tokens in seen])
    assert rates[0] == 1e-3
    assert seen[-1] > 300
    before = weights(agent.policy)
    agent.iterate()
    assert torch.equal(weights(agent.policy), before)


def test_an_iteration_without_a_pair_changes_nothing() -> None:
    agent = make("online_dpo", venv=make_venv(reward=lambda prompts, completions: [0.0] * 16))
    before = weights(agent.policy)
    assert agent.iterate()["train/pairs"] == 0.0
    assert torch.equal(weights(agent.policy), before)


def test_best_of_n_scores_as_the_environment_does() -> None:
    def score(prompts: list[str], completions: list[str], answer: list[str]) -> list[float]:
        return [float(a in c) for a, c in zip(answer, completions, strict=True)]

    rows = [{"prompt": "a", "answer": "q"}, {"prompt": "b", "answer": "z"}]
    venv = make_venv(32, group_size=1, reward=score, prompts=rows, missing_eos_penalty=0.25)
    agent = BestOfN(tiny_model(), venv, BestOfNConfig(n=64))
    assert play(venv, agent).mean() > 0.8  # one sample in five has the letter
    prompt, letter = tiny_tokenizer()("a").input_ids, tiny_tokenizer()("q").input_ids[1:]
    found = venv.unwrapped.score_tokens([prompt] * 3, [letter, letter * 6, [*letter * 5, 2]])
    assert found.tolist() == [1.0, 1.0, 1.0]  # the penalty is in the reward


def test_best_of_n_save_and_load(tmp_path) -> None:
    venv = make_venv(4, group_size=1)
    BestOfN(tiny_model(), venv, BestOfNConfig(n=3)).save(tmp_path)
    assert BestOfN.load(tmp_path, venv).config.n == 3
    with pytest.raises(UserError, match="holds a best_of_n agent, not rloo"):
        RLOO.load(tmp_path, venv)
    with pytest.raises(UserError, match="no saved agent"):
        RLOO.load(tmp_path / "nowhere", venv)


def test_mistakes_are_explained() -> None:
    for name in ("rloo", "grpo", "online_dpo"):
        with pytest.raises(UserError, match="SyncVectorEnv have prompts of their own"):
            make(
                name,
                venv=gym.make_vec(
                    "TextRLHF-v0", num_envs=16, vectorization_mode="sync", group_size=4
                ),
            )
    with pytest.raises(UserError, match=r"GRPOConfig.variant is 'drgrpo'.*did you mean 'dr_grpo'"):
        GRPOConfig(variant="drgrpo")
    with pytest.raises(UserError, match="at least 2, for a baseline"):
        ReinforceConfig(episodes_per_iteration=1)
    with pytest.raises(UserError, match="whole number"):
        BestOfNConfig(n=2.5)
    for name in ("rloo", "grpo"):
        with pytest.raises(UserError, match=r"group_size is 1; make it with group_size=4"):
            make(name, venv=make_venv(group_size=1))
    with pytest.raises(UserError, match="RLOO takes RLOOConfig, got GRPOConfig"):
        RLOO(tiny_model(), make_venv(), GRPOConfig(episodes_per_iteration=32))
    with pytest.raises(UserError, match="on_length='score'"):
        make("reinforce", venv=make_venv(on_length="truncate")).iterate()
    with pytest.raises(UserError, match="BestOfNConfig.n is 0"):
        BestOfNConfig(n=0)


def play(venv, agent, deterministic: bool = False) -> np.ndarray:
    """Return the scores of one episode of each row, step by step."""
    observation, _ = venv.reset(seed=1)
    scores = np.full(venv.num_envs, np.nan)
    for _ in range(venv.unwrapped.max_completion_tokens):
        actions, _ = agent.predict(observation, deterministic=deterministic)
        observation, _, terminated, _, infos = venv.step(np.asarray(actions))
        fresh = terminated & np.isnan(scores)
        if fresh.any():
            scores[fresh] = infos["score"][fresh]
        if not np.isnan(scores).any():
            break
        if terminated.any():
            venv.reset(options={"reset_mask": terminated, "index": 0})
    return scores


def test_best_of_n_plays_the_best_of_its_samples() -> None:
    means = []
    for n in (1, 16):
        venv = make_venv(64, group_size=1)
        agent = BestOfN(venv.unwrapped.reference, venv, BestOfNConfig(n=n))
        means.append(float(play(venv, agent).mean()))
    assert means[0] < 0.2
    assert means[1] > means[0] + 0.1


def test_best_of_n_plans_once_and_again_where_the_text_is_another() -> None:
    venv = make_venv(2, group_size=1)
    agent = BestOfN(tiny_model(), venv, BestOfNConfig(n=4))
    assert agent.learn(100) is agent
    observation, _ = venv.reset(seed=0)
    first, _ = agent.predict(observation)
    plan = dict(agent._plans)
    stray = np.array([(first[0] + 1) % 29, first[1]])  # row 0 leaves its plan, row 1 follows
    if 2 in stray:  # EOS would end the row
        stray[stray == 2] = 5
    observation, _, _, _, _ = venv.step(stray)
    agent.predict(observation)
    assert agent._plans[0] != plan[0]
    assert len(agent._plans[0]) <= int(observation["prompt_length"][0, 0]) + 6
    single = {name: array[0] for name, array in observation.items()}
    token, _ = agent.predict(single)
    assert int(token) == agent._plans[0][int(single["attention_mask"].sum())]


def test_best_of_n_deterministic_is_best_of_n_too_and_repeats_itself() -> None:
    def mean_score(n: int, deterministic: bool) -> float:
        venv = make_venv(64, group_size=1)
        agent = BestOfN(tiny_model(seed=2), venv, BestOfNConfig(n=n))
        observation, _ = venv.reset(seed=0)
        scores, left = [], np.ones(64, dtype=bool)
        while left.any():
            tokens, _ = agent.predict(observation, deterministic=deterministic)
            repeated, _ = agent.predict(observation, deterministic=deterministic)
            assert not deterministic or (repeated == tokens)[left].all()
            observation, _, terminated, _, infos = venv.step(tokens)
            scores += infos["score"][left & terminated].tolist() if "score" in infos else []
            left &= ~terminated
        assert len(scores) == 64
        return float(np.mean(scores))

    once, again, one = mean_score(16, True), mean_score(16, True), mean_score(1, True)
    assert once == again
    assert once > one + 0.1
