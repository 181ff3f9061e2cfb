"""Candidate actions: the reference's likeliest tokens, one trajectory in all three interfaces."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from sb3_contrib import QRDQN
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.vec_env import VecEnvWrapper

import textrl  # noqa: F401  # registers TextRLHF-v0
from textrl.agents.collect import collect
from textrl.agents.text_env import TextEnv
from textrl.envs import CandidateActions, PolicyKL, VectorCandidateActions, tiny_model
from textrl.envs.core_config import Shaping
from textrl.envs.sb3 import SubtractPolicyKL, TextVecEnv
from textrl.errors import UserError
from textrl.generation import ModelSampler
from textrl.models import split_lm

OPTIONS = dict(max_completion_tokens=5, kl_coef=0.1)
BUDGET: dict = dict(max_completion_tokens=5)


def single(k: int = 6, shaping: Shaping = "none", **kwargs) -> CandidateActions:
    return CandidateActions(gym.make("TextRLHF-v0", **(OPTIONS | kwargs)), k=k, shaping=shaping)


def vector(rows: int, k: int = 6, shaping: Shaping = "none", **kwargs) -> VectorCandidateActions:
    venv = gym.make_vec("TextRLHF-v0", num_envs=rows, **(OPTIONS | kwargs))
    return VectorCandidateActions(venv, k=k, shaping=shaping)


def sb3(rows: int, k: int = 6, shaping: Shaping = "none", **kwargs) -> TextVecEnv:
    return TextVecEnv(vector(rows, k, shaping, autoreset_mode="SameStep", **kwargs))


@pytest.mark.parametrize("check", [gymnasium_check_env, sb3_check_env])
def test_check_env_without_a_warning(check) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*is different from the unwrapped version")
        check(single())


def test_candidates_are_the_likeliest_sensible_tokens_and_the_state_is_the_last_hidden() -> None:
    env = single(k=4, banned_token_ids=[5], min_completion_tokens=2)
    model = tiny_model()
    state, _ = env.reset(seed=3)
    done, steps = False, 0
    while not done:
        base = env.unwrapped.core
        ids = torch.tensor([base.input_ids[0, : base.lengths[0]].tolist()])
        with torch.no_grad():
            output = model(input_ids=ids, output_hidden_states=True)
        assert np.allclose(state, output.hidden_states[-1][0, -1].numpy(), atol=1e-5)
        logits = output.logits[0, -1].clone()
        logits[5] = -torch.inf
        if steps < 2:
            logits[2] = -torch.inf
        assert env.candidates.tolist() == logits.topk(4).indices.tolist()
        expected = int(env.candidates[steps % 4])
        state, _, terminated, truncated, info = env.step(np.int64(steps % 4))
        assert info["token"] == expected
        assert base.input_ids[0, base.lengths[0] - 1] == expected
        done, steps = terminated or truncated, steps + 1
    assert env.action_masks().all()


@pytest.mark.parametrize("on_length", ["score", "truncate"])
@pytest.mark.parametrize("shaping", ["none", "potential", "exact"])
def test_one_trajectory_in_all_three_interfaces(on_length: str, shaping: Shaping) -> None:
    """Row i with seed s is the single environment with seed s + i; so is SB3's row."""
    singles = [single(on_length=on_length, shaping=shaping) for _ in range(3)]
    batch = vector(3, autoreset_mode="SameStep", on_length=on_length, shaping=shaping)
    stable = sb3(3, on_length=on_length, shaping=shaping)
    stable.seed(7)
    states, seen = stable.reset(), batch.reset(seed=7)[0]
    now = np.stack([env.reset(seed=7 + row)[0] for row, env in enumerate(singles)])
    rng, ends = np.random.default_rng(0), 0
    for _ in range(24):
        assert np.allclose(states, now, atol=1e-5)
        assert np.allclose(seen, now, atol=1e-5)
        actions = rng.integers(6, size=3)
        states, rewards, dones, infos = stable.step(actions)
        seen, paid, terminated, truncated, many = batch.step(actions)
        for row, env in enumerate(singles):
            state, reward, over, cut, info = env.step(actions[row])
            assert rewards[row] == pytest.approx(reward, abs=1e-5)
            assert paid[row] == pytest.approx(reward, abs=1e-5)
            assert (terminated[row], truncated[row]) == (over, cut)
            assert infos[row]["token"] == many["token"][row] == info["token"]
            if over or cut:
                ends += 1
                assert dones[row]
                ending = infos[row]["terminal_observation"]
                assert np.allclose(ending, state, atol=1e-5)
                assert np.allclose(many["final_obs"][row], state, atol=1e-5)
                assert infos[row]["completion"] == info["completion"]
                state = env.reset()[0]
            now[row] = state
    assert ends > 5


@pytest.mark.parametrize("mode", ["NextStep", "Disabled"])
def test_other_autoreset_modes_pay_the_same(mode: str) -> None:
    batch, other = (
        vector(4, 6, "potential", autoreset_mode="SameStep"),
        vector(4, 6, "potential", autoreset_mode=mode),
    )
    batch.reset(seed=3)
    state, _ = other.reset(seed=3)
    rng, checked = np.random.default_rng(0), 0
    going = np.ones(4, dtype=bool)
    for _ in range(6):  # the first episodes, which all modes share, and a step more
        actions = rng.integers(6, size=4)
        _, paid, *_, first = batch.step(actions)
        if mode == "Disabled" and not going.all():
            break
        state, rewards, terminated, truncated, infos = other.step(actions)
        assert np.isfinite(state).all()
        assert rewards[going] == pytest.approx(paid[going], abs=1e-5)
        assert (infos["token"][going] == first["token"][going]).all()
        assert infos["_token"][going].all()
        assert not rewards[~going & infos.get("_prompt", False)].any()
        restarted = ~going & infos.get("_prompt", False)
        assert not infos["_token"][restarted].any()
        checked += int(restarted.sum())
        going &= ~(terminated | truncated)
    assert mode == "Disabled" or checked > 0


def trained(agent, learning_rate: float, seed: int, tokens: int = 4_000) -> tuple[float, float]:
    """Return mean score and length of the last 200 episodes."""
    options: dict = {"n_steps": 20, "gae_lambda": 0.95}
    if agent is PPO:
        options |= {"batch_size": 160, "n_epochs": 4}
    if agent in (DQN, QRDQN):
        options = {
            "learning_starts": 500,
            "train_freq": 1,
            "gradient_steps": 8,
            "batch_size": 128,
            "target_update_interval": 100,
            "exploration_final_eps": 0.02,
            "exploration_fraction": 0.5,
            "buffer_size": 20_000,
        }
    if agent is QRDQN:
        options["policy_kwargs"] = {"n_quantiles": 20}
    episodes: list[tuple[float, int]] = []

    class Watch(BaseCallback):
        def _on_step(self) -> bool:
            over = [info for info in self.locals["infos"] if "score" in info]
            episodes.extend((info["score"], info["episode"]["l"]) for info in over)
            return True

    options_of_env: dict = BUDGET | {"autoreset_mode": "SameStep"}
    venv = gym.make_vec("TextRLHFCandidates-v0", num_envs=16, **options_of_env)
    found = agent(
        "MlpPolicy",
        TextVecEnv(venv),
        gamma=1.0,
        learning_rate=learning_rate,
        seed=seed,
        device="cpu",
        **options,
    )
    found.learn(tokens, callback=Watch())
    score, length = np.mean(episodes[-200:], axis=0)
    return float(score), float(length)


def of_the_reference() -> tuple[float, float]:
    """Return mean score and length of 800 texts sampled from the reference."""
    venv = gym.make_vec("TextRLHF-v0", num_envs=800, **BUDGET, autoreset_mode="Disabled")
    rollout = collect(
        ModelSampler(split_lm(tiny_model())), TextEnv(venv), torch.Generator().manual_seed(0)
    )
    return float(rollout.scores.mean()), float(rollout.mask.sum(1).double().mean())


@pytest.mark.parametrize(
    ("agent", "learning_rate", "tokens"),
    [
        pytest.param(PPO, 2e-3, 8_000, marks=pytest.mark.slow),
        pytest.param(A2C, 2e-3, 10_000, marks=pytest.mark.slow),
        pytest.param(DQN, 1e-3, 4_000, marks=pytest.mark.slow),
        pytest.param(QRDQN, 1e-3, 4_000, marks=pytest.mark.proof),
    ],
)
def test_stock_agents_beat_the_reference_and_do_not_learn_to_stop(
    agent, learning_rate: float, tokens: int, learning
) -> None:
    score, length = of_the_reference()
    ends = {seed: trained(agent, learning_rate, seed, tokens) for seed in range(3)}
    learning(lambda seed: ends[seed][0] - score, above=0.05)
    learning(lambda seed: ends[seed][1] / length, above=0.6)


@pytest.mark.slow
def test_without_learning_no_agent_beats_the_reference(learning) -> None:
    score, _ = of_the_reference()
    learning(lambda seed: trained(A2C, 0.0, seed)[0] - score, below=0.05)


def test_mistakes_are_explained() -> None:
    with pytest.raises(UserError, match="k is 30; expected 2 to 29"):
        single(k=30)
    with pytest.raises(UserError, match="k is 1;"):
        vector(2, k=1)
    with pytest.raises(UserError, match="chooses tokens of TextRLHF-v0"):
        CandidateActions(gym.make("CartPole-v1"))
    with pytest.raises(UserError, match="as it comes"):
        VectorCandidateActions(gym.make_vec("CartPole-v1", num_envs=2))
    env = single()
    env.reset(seed=0)
    with pytest.raises(UserError, match=r"integer in \[0, 6\)"):
        env.step(np.int64(6))
    assert isinstance(sb3(2).venv, VectorCandidateActions)
    assert not issubclass(TextVecEnv, VecEnvWrapper)


def test_the_registered_id_is_all_that_a_script_needs() -> None:
    env = gym.make("textrl:TextRLHFCandidates-v0", **BUDGET)
    same = single(k=8, shaping="potential")
    assert env.observation_space == same.observation_space
    assert env.action_space == same.action_space
    assert env.unwrapped.max_completion_tokens == 5
    assert env.spec.max_episode_steps is None
    state, _ = env.reset(seed=4)
    assert np.allclose(state, same.reset(seed=4)[0])
    for action in (3, 0, 7):
        state, reward, *_ = env.step(np.int64(action))
        other, paid, *_ = same.step(np.int64(action))
        assert np.allclose(state, other)
        assert reward == paid
    rows = gym.make_vec("TextRLHFCandidates-v0", num_envs=3, autoreset_mode="SameStep", k=4)
    assert rows.action_space.shape == (3,)
    assert TextVecEnv(rows).get_attr("shaping") == ["potential"] * 3


@pytest.mark.parametrize("check", [gymnasium_check_env, sb3_check_env])
def test_check_env_of_the_id_without_a_warning(check) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(gym.make("TextRLHFCandidates-v0").unwrapped)


def test_without_shaping_the_reward_is_the_score_and_comes_at_the_end() -> None:
    env = single(kl_coef=0.7)
    env.reset(seed=1)
    done = False
    while not done:
        _, reward, terminated, truncated, info = env.step(np.int64(2))
        done = terminated or truncated
        assert reward == (info["score"] if done else 0.0)


@pytest.mark.parametrize("on_length", ["score", "truncate"])
def test_by_potential_a_token_earns_what_it_adds_to_the_score(on_length: str) -> None:
    """Sums of an episode's rewards are its score, whatever kl_coef, less the missing EOS."""
    asked: list[str] = []

    def letters(prompts: list[str], completions: list[str]) -> list[float]:
        asked.extend(completions)
        return [ord(prompts[0]) - 100 + len(c) - 3.0 * c.count("e") for c in completions]

    options = dict(reward=letters, kl_coef=0.7, missing_eos_penalty=0.5, on_length=on_length)
    env = single(shaping="potential", **options)
    for seed in range(8):
        _, info = env.reset(seed=seed)
        prompt, paid, done = info["prompt"], [], False
        asked.clear()
        while not done:
            _, reward, terminated, truncated, info = env.step(np.int64(seed % 6))
            paid.append(reward)
            done = terminated or truncated
        worth = letters([prompt], list(asked))
        penalty = 0.5 * (info["finish_reason"] == "length" and terminated)
        assert np.allclose(
            paid, np.diff([0.0, *worth]) - penalty * (np.arange(len(paid)) == len(paid) - 1)
        )
        if terminated:
            assert sum(paid) == pytest.approx(info["score"] - penalty)
            assert asked[-1] == info["completion"]
        else:
            assert "score" not in info


def test_by_potential_nothing_is_paid_for_stopping_or_going_on() -> None:
    """Where all texts score the same, only the first token earns anything, also at gamma < 1."""
    env = single(shaping="potential", reward=lambda prompts, completions: [2.0] * len(prompts))
    env.reset(seed=1)
    done, paid = False, []
    while not done:
        _, reward, terminated, truncated, _ = env.step(np.int64(2))
        paid.append(reward)
        done = terminated or truncated
    assert paid == [2.0] + [0.0] * (len(paid) - 1)
    assert len(paid) > 1


def test_a_reward_that_fails_by_potential_is_paid_when_it_works_again() -> None:
    broken = [False]

    def letters(prompts: list[str], completions: list[str]) -> list[float]:
        if broken[0]:
            raise ValueError("out of order")
        return [float(len(c)) for c in completions]

    env = single(shaping="potential", reward=letters, min_completion_tokens=5)
    env.reset(seed=1)
    assert env.step(np.int64(1))[1] == 1.0
    broken[0] = True
    with pytest.raises(UserError, match="out of order"):
        env.step(np.int64(1))
    broken[0] = False
    assert env.step(np.int64(1))[1] == 1.0


def test_exact_shaping_is_that_of_the_text_environment() -> None:
    env = single(shaping="exact")
    env.reset(seed=1)
    _, reward, _, _, info = env.step(np.int64(2))
    assert reward == pytest.approx(0.1 * info["ref_logprob"])


def test_the_other_half_of_the_kl_is_refused_where_the_first_is_not_paid() -> None:
    with pytest.raises(UserError, match="SubtractPolicyKL .* shaping 'none'"):
        PPO("MlpPolicy", sb3(2), gamma=1.0, n_steps=4, batch_size=4).learn(
            8, callback=SubtractPolicyKL()
        )
    PPO("MlpPolicy", sb3(2, shaping="exact"), gamma=1.0, n_steps=4, batch_size=4).learn(
        8, callback=SubtractPolicyKL()
    )
    with pytest.raises(UserError, match="PolicyKL .* shaping 'potential'"):
        PolicyKL(gym.make("TextRLHFCandidates-v0"), lambda *_: 0.0)
    with pytest.raises(UserError, match="step_sequence needs"):
        sb3(2).base.step_sequence(np.zeros((2, 1), dtype=int), np.ones((2, 1), dtype=bool))
    with pytest.raises(UserError, match="shaping is 'both'; expected one of"):
        single(shaping="both")


@pytest.mark.parametrize("make", [gym.make, gym.make_vec])
def test_what_the_shaping_would_ignore_is_refused(make) -> None:
    with pytest.raises(UserError, match="kl_coef is 0.5, which shaping 'potential' does not pay"):
        make("TextRLHFCandidates-v0", kl_coef=0.5)
    with pytest.raises(UserError, match="did you mean 'shaping'"):
        make("TextRLHFCandidates-v0", shapping="none")
    with pytest.raises(UserError, match="k is 2.5"):
        make("TextRLHFCandidates-v0", k=2.5)
    make("TextRLHFCandidates-v0", kl_coef=0.5, shaping="exact")
    make("TextRLHFCandidates-v0", kl_coef=0.0)


@pytest.mark.parametrize("make", [gym.make, gym.make_vec])
def test_a_failed_reset_leaves_the_shaping(make) -> None:
    """The episodes that go on would be paid the exact half from then on."""
    env = make("TextRLHFCandidates-v0")
    env.reset(seed=0)
    with pytest.raises(UserError, match="prompt is empty"):
        env.reset(options={"prompt": ""})
    assert env.unwrapped.shaping == "potential"


def test_as_many_ranks_as_rows() -> None:
    rows, env = vector(3), single()
    rows.reset(seed=0)
    env.reset(seed=0)
    for actions in ([1], 1, [1, 1, 1, 1]):
        with pytest.raises(UserError, match="expected 3 ranks"):
            rows.step(np.array(actions))
    with pytest.raises(UserError, match="expected 1 ranks"):
        env.step(np.array([1, 1]))
    expected = int(env.candidates[1])
    assert env.step(np.array([1]))[4]["token"] == expected


def test_sb3_sets_what_is_there() -> None:
    venv = sb3(2, shaping="potential")
    venv.set_attr("kl_coef", 0.3)
    assert venv.get_attr("kl_coef") == [0.3, 0.3]
    with pytest.raises(UserError, match="'kl_coeff' to set .did you mean 'kl_coef'"):
        venv.set_attr("kl_coeff", 0.3)
    with pytest.raises(UserError, match="'shaping' is set where the environment is made"):
        venv.set_attr("shaping", "none")
    venv.set_options([{"prompt": "ab"}, {}])
    with pytest.raises(UserError, match="give each row one"):
        venv.reset()
