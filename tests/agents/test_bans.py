"""Banned tokens and the least length: obeyed by all agents, both halves of the KL renormalised."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from test_critic_free import AGENTS, make

import textrl  # noqa: F401  # registers TextRLHF-v0
from textrl.agents import PPO, BestOfN, BestOfNConfig, PPOConfig
from textrl.envs import CandidateActions, tiny_model
from textrl.errors import UserError
from textrl.logprobs import AllowedTokens

EOS = 2
BANNED = [0, 1, *range(5, 29)]
"""All but EOS and two letters: unrestricted, most samples would break it."""
BANS = dict(banned_token_ids=BANNED, min_completion_tokens=3, temperature=0.8)


def make_venv(rows: int = 16, **kwargs):
    settings = dict(max_completion_tokens=6, kl_coef=0.1, group_size=4, autoreset_mode="Disabled")
    return gym.make_vec("TextRLHF-v0", num_envs=rows, **settings | BANS | kwargs)


def slow_logprobs(model, rollout, row: int) -> torch.Tensor:
    """Return the log-probs of an episode's tokens among what is allowed, one at a time."""
    start, found = int(rollout.prompt_lengths[row]), []
    for t in range(int(rollout.mask[row].sum())):
        with torch.no_grad():
            logits = model(input_ids=rollout.input_ids[row : row + 1, : start + t]).logits[0, -1]
        left = [v for v in range(29) if v not in BANNED and (v != EOS or t >= 3)]
        among = (logits[left] / 0.8).log_softmax(-1)
        found.append(among[left.index(int(rollout.input_ids[row, start + t]))])
    return torch.stack(found)


@pytest.mark.parametrize("name", ["ppo", "exact", "separate", *AGENTS])
def test_agents_obey_and_both_policies_are_renormalised(name: str) -> None:
    if name in AGENTS:
        agent = make(name, tiny_model(seed=3), make_venv())
    else:
        config = dict(episodes_per_iteration=32, minibatch_size=32, ent_coef=0.01)
        config |= {"exact": {"kl_loss": "exact"}, "separate": {"critic": "separate"}}.get(name, {})
        agent = PPO(tiny_model(seed=3), make_venv(), PPOConfig(**config))
    rollout = agent.collect()
    ids = rollout.completion_ids[rollout.mask]
    assert not np.isin(ids.numpy(), BANNED).any()
    assert (rollout.mask.sum(1) >= 3).all()
    assert (rollout.completion_ids[:, :3] != EOS).all()
    assert rollout.ended_by_eos.any()
    assert torch.allclose(agent.logprobs(rollout), rollout.logprobs, atol=1e-5)
    for row in range(6):
        length = int(rollout.mask[row].sum())
        own, ref = rollout.logprobs[row, :length], rollout.ref_logprobs[row, :length]
        assert torch.allclose(own, slow_logprobs(agent.policy, rollout, row), atol=1e-5)
        assert torch.allclose(ref, slow_logprobs(agent.env.reference, rollout, row), atol=1e-5)
    numbers = agent.iterate()
    assert all(np.isfinite(value) for value in numbers.values())
    assert numbers.get("train/first_ratio_error", 0.0) < 1e-5
    assert all(torch.isfinite(p).all() for p in agent.policy.parameters())


def test_the_exact_kl_and_the_entropy_are_of_what_is_allowed() -> None:
    agent = PPO(tiny_model(seed=3), make_venv(), PPOConfig(episodes_per_iteration=16))
    rollout = agent.collect()
    exact = agent.config.__class__(episodes_per_iteration=16, kl_loss="exact")
    other = PPO(tiny_model(seed=3), make_venv(), exact)
    states = other._reference_states(rollout)[:, :-1]  # without those after the last token
    row, t = 0, 0
    start = int(rollout.prompt_lengths[row])
    with torch.no_grad():
        own, ref = (
            (model(input_ids=rollout.input_ids[row : row + 1, :start]).logits[0, -1] / 0.8)[
                [3, 4]  # EOS comes later
            ].log_softmax(-1)
            for model in (agent.policy, agent.env.reference)
        )
        found = other.evaluate(
            rollout,
            entropies=True,
            reference=other._reference_of(_exact(states), torch.arange(16)),
        )
    assert float((own.exp() * (own - ref)).sum()) == pytest.approx(
        float(found.exact_kl[row, t]), abs=1e-5
    )
    entropy = -float((own.exp() * own).sum())
    assert float(found.entropies[row, t]) == pytest.approx(entropy, abs=1e-5)
    assert float(rollout.entropies[row, t]) == pytest.approx(entropy, abs=1e-5)


def _exact(states: torch.Tensor):
    from textrl.agents.ppo import ExactKL

    return ExactKL(reference_states=states, weight=1.0)


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_steps_pay_what_a_sequence_pays(mode: str) -> None:
    bare = make("rloo", tiny_model(seed=3), make_venv())
    wrapped = RecordEpisodeStatistics(make_venv(autoreset_mode=mode))
    one, other = bare.collect(), make("rloo", tiny_model(seed=3), wrapped).collect()
    rows = slice(0, 16) if mode == "SameStep" else slice(None)  # later prompts are others there
    assert torch.equal(one.input_ids[rows], other.input_ids[rows])
    assert torch.allclose(one.rewards[rows], other.rewards[rows], atol=1e-5)
    single = gym.make("TextRLHF-v0", max_completion_tokens=6, kl_coef=0.1, **BANS)
    for row in range(16):
        start = int(one.prompt_lengths[row])
        prompt = bare.env.tokenizer.decode(one.input_ids[row, 1:start])
        single.reset(options={"prompt": str(prompt)})
        for t in range(int(one.mask[row].sum())):
            _, reward, *_ = single.step(int(one.completion_ids[row, t]))
            assert reward == pytest.approx(float(one.rewards[row, t]), abs=1e-5)


def test_an_action_that_is_none_is_refused_and_changes_nothing() -> None:
    env = gym.make("TextRLHF-v0", **BANS)
    env.reset(seed=0)
    env.step(3)
    with pytest.raises(UserError, match="token 7 is no action at position 1.*banned_token_ids"):
        env.step(7)
    with pytest.raises(UserError, match="token 2 .* position 1.* min_completion_tokens=3"):
        env.step(EOS)
    env.step(4)
    env.step(3)
    assert env.step(EOS)[2]
    venv = make_venv(4)
    venv.reset(seed=0)
    actions = np.full((4, 3), 3)
    actions[2, 1] = EOS
    with pytest.raises(UserError, match="token 2 .* position 1"):
        venv.step_sequence(actions, np.arange(3) < np.array([[3], [3], [2], [3]]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(banned_token_ids=range(29)), "leave no token to take"),
        (
            dict(banned_token_ids=[i for i in range(29) if i != EOS], min_completion_tokens=1),
            "leave no token to take",
        ),
        (
            dict(banned_token_ids=[29]),
            r"banned_token_ids holds 29; expected .* \[0, 29\)",
        ),
        (dict(banned_token_ids=[-1]), "banned_token_ids holds -1"),
        (dict(min_completion_tokens=49), "at most max_completion_tokens, 48"),
        (dict(min_completion_tokens=-1), "min_completion_tokens is -1"),
    ],
)
def test_bans_that_cannot_be_are_refused(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        gym.make("TextRLHF-v0", **options)
    assert AllowedTokens(width=3, banned=[0, 1], end_ids=[2], min_tokens=0).filler == 2


def test_predict_and_best_of_n_obey() -> None:
    venv = make_venv(8, group_size=1)
    agents = [PPO(tiny_model(seed=3), venv, PPOConfig(episodes_per_iteration=8))]
    agents.append(BestOfN(tiny_model(seed=3), venv, BestOfNConfig(n=4)))
    for agent in agents:
        for deterministic in (True, False):
            observation, _ = venv.reset(seed=5)
            over = np.zeros(8, dtype=bool)
            for _ in range(6):
                actions, _ = agent.predict(observation, deterministic=deterministic)
                observation, _, terminated, _, _ = venv.step(actions)  # raises on a banned one
                over |= terminated
                if terminated.any():
                    observation, _ = venv.reset(options={"reset_mask": terminated, "index": 0})
            assert over.any()


def test_candidates_are_allowed_ones() -> None:
    env = CandidateActions(gym.make("TextRLHF-v0", **BANS | {"min_completion_tokens": 0}), k=3)
    env.reset(seed=0)
    assert set(env.candidates) == {2, 3, 4}
    with pytest.raises(UserError, match="k is 3; expected 2 to 2"):
        CandidateActions(gym.make("TextRLHF-v0", **BANS), k=3)


def test_masks_are_what_gymnasium_samples_by() -> None:
    env = gym.make("TextRLHF-v0", **BANS)
    env.reset(seed=0)
    mask = env.unwrapped.action_masks()
    assert mask.dtype == np.int8
    assert {int(env.action_space.sample(mask=mask)) for _ in range(30)} == {3, 4}
    venv = make_venv(4)
    venv.reset(seed=0)
    assert np.isin(
        venv.action_space.sample(mask=tuple(venv.unwrapped.action_masks())), [3, 4]
    ).all()


def test_online_dpo_ranks_by_what_is_paid() -> None:
    """A text that the budget cut is worth its score less missing_eos_penalty."""
    agent = make("online_dpo", tiny_model(), make_venv(missing_eos_penalty=0.7, temperature=1.0))
    rollout = agent.collect()
    kl = 0.1 * rollout.ref_logprobs.sum(1)
    assert torch.allclose(agent._paid(rollout), rollout.rewards.sum(1) - kl, atol=1e-5)
    assert not torch.allclose(agent._paid(rollout), rollout.scores)
