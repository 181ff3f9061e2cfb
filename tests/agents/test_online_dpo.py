import copy

import gymnasium as gym
import pytest
import torch
from reference_agents import Episode, online_dpo_objective
from transformers import AutoModelForCausalLM

import textrl  # noqa: F401  # registers TextRLHF-v0
from textrl.agents import OnlineDPO, OnlineDPOConfig, make_agent, register, registered
from textrl.agents.online_dpo import best_and_worst
from textrl.envs import tiny_model
from textrl.errors import UserError


def make(**kwargs) -> OnlineDPO:
    venv = gym.make_vec("TextRLHF-v0", num_envs=32, max_completion_tokens=6, group_size=4)
    settings = dict(episodes_per_iteration=64, learning_rate=1e-3) | kwargs
    return OnlineDPO(tiny_model(), venv, OnlineDPOConfig(**settings))


def test_best_and_worst_by_hand() -> None:
    scores = torch.tensor([1.0, 5.0, 2.0, 7.0, 7.0, 7.0, 0.0, -1.0, float("nan")])
    best, worst = best_and_worst(scores, 3)
    assert best.tolist() == [1, 6]  # the group of equal scores is left out
    assert worst.tolist() == [0, 8]  # a truncated sample ranks last


def test_pairs_share_a_prompt_and_the_first_loss_is_log_2() -> None:
    agent = make(minibatch_size=16)
    rollout = agent.collect()
    best, worst = best_and_worst(rollout.scores, 4)
    for b, w in zip(best.tolist(), worst.tolist(), strict=True):
        assert rollout.scores[b] > rollout.scores[w]
        length = int(rollout.prompt_lengths[b])
        assert torch.equal(rollout.input_ids[b, :length], rollout.input_ids[w, :length])
    pairs = torch.arange(4)
    with torch.no_grad():
        loss, numbers = agent._loss(rollout, rollout.scores, best, worst, pairs)
    assert loss.item() == pytest.approx(0.693147, abs=1e-4)
    assert numbers["margin"].item() == pytest.approx(0.0, abs=1e-4)
    agent.train_on(rollout, agent.steps())
    with torch.no_grad():
        assert agent._loss(rollout, rollout.scores, best, worst, pairs)[0] < loss


@pytest.mark.parametrize(
    "settings", [{"loss_type": "sigmoid", "beta": 0.3}, {"loss_type": "simpo", "beta": 2.0}]
)
def test_the_gradient_is_that_of_best_against_worst(settings: dict) -> None:
    """Of pairs whose completions differ in length, at a temperature, with a penalty."""
    penalty, temperature = 0.3, 0.7
    venv = gym.make_vec(
        "TextRLHF-v0",
        num_envs=16,
        prompts=["ab", "c", "defg"],
        max_completion_tokens=6,
        group_size=4,
        temperature=temperature,
        missing_eos_penalty=penalty,
    )
    policy = tiny_model(seed=3)
    with torch.no_grad():  # sharper than fresh weights, EOS among its choices
        policy.lm_head.weight.mul_(3.0)
        policy.lm_head.weight[2].mul_(4.0)
    options = dict(episodes_per_iteration=16, micro_batch_tokens=30, max_grad_norm=1e9)
    margin = {"simpo_margin": 0.2} if "simpo" in settings["loss_type"] else {}
    agent = OnlineDPO(policy, venv, OnlineDPOConfig(**options | settings | margin))
    rollout, slow = agent.collect(), copy.deepcopy(policy).double()
    episodes = []
    for row, start in enumerate(rollout.prompt_lengths.tolist()):
        ids = rollout.input_ids[row, : start + int(rollout.mask[row].sum())]
        fine = penalty if int(ids[-1]) != 2 else 0.0
        episodes.append(Episode(ids=ids, start=start, score=float(rollout.scores[row]) - fine))
    assert len({len(e.ids) - e.start for e in episodes}) > 2
    frozen = copy.deepcopy(agent.env.reference).double()
    loss, pairs = online_dpo_objective(
        episodes, slow, frozen, temperature, 4, settings | {"simpo_margin": 0.2}
    )
    loss.backward()
    assert pairs > 1
    agent.train_on(rollout, agent.steps())
    for ours, wanted in zip(policy.parameters(), slow.parameters(), strict=True):
        assert torch.allclose(ours.grad.double(), wanted.grad, atol=3e-5, rtol=1e-3)
    assert max(float(p.grad.abs().max()) for p in slow.parameters()) > 1e-2


def test_micro_batches_never_change_the_result() -> None:
    found = []
    for tokens in (8, 100_000):
        agent = make(micro_batch_tokens=tokens)
        agent.learn(1)
        found.append(torch.cat([p.detach().flatten() for p in agent.policy.parameters()]))
    assert torch.allclose(found[0], found[1], atol=2e-5)


def test_save_and_load(tmp_path) -> None:
    agent = make()
    agent.learn(1)
    agent.save(tmp_path)
    AutoModelForCausalLM.from_pretrained(tmp_path)
    loaded = OnlineDPO.load(tmp_path, agent.env.venv)
    assert loaded.config == agent.config
    observations, _ = agent.env.venv.reset(seed=0)
    one, _ = agent.predict(observations, deterministic=True)
    other, _ = loaded.predict(observations, deterministic=True)
    assert (one == other).all()


def test_mistakes_are_explained() -> None:
    venv = gym.make_vec("TextRLHF-v0", num_envs=32, group_size=2)
    with pytest.raises(UserError, match="group_size 2"):
        OnlineDPO(tiny_model(), venv, OnlineDPOConfig(samples_per_prompt=4))
    with pytest.raises(UserError, match="at least 2"):
        OnlineDPOConfig(samples_per_prompt=1)
    with pytest.raises(UserError, match="multiple of samples_per_prompt"):
        OnlineDPOConfig(samples_per_prompt=3, episodes_per_iteration=256)


def test_soft_labels_are_the_bradley_terry_probability_of_the_scores() -> None:
    agent = make(labels="soft", beta=0.5)
    # sigmoid(-1) and sigmoid(0): the chance that the worse one is preferred
    found = agent._label_smoothing(torch.tensor([2.0, 3.0, 1.0, 3.0]))
    assert found.tolist() == pytest.approx([0.268941, 0.5], abs=1e-5)
    assert make()._label_smoothing(torch.zeros(4)) == 0.0
    with pytest.raises(UserError, match="OnlineDPOConfig.labels is 'soft'"):
        OnlineDPOConfig(labels="soft", loss_type="ipo")


def test_registry() -> None:
    class Mine:
        def __init__(self, policy, venv) -> None:
            self.policy = policy

    register("mine_too", Mine)
    policy = tiny_model()
    assert make_agent("mine_too", policy, None).policy is policy
    assert {"ppo", "online_dpo", "mine_too"} <= set(registered())
    with pytest.raises(UserError, match="did you mean 'ppo'"):
        make_agent("ppp", policy, None)
