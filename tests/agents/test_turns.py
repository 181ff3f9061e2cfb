"""Agents over several turns: what enters a loss, equal collects, truncation, episodes, seeds."""

from collections import Counter
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from turn_worlds import DONE, EOS, MORE, Script, babbling, scripted, single, vector

from textrl.agents import (
    GRPO,
    PPO,
    RLOO,
    BestOfN,
    GRPOConfig,
    OnlineDPO,
    OnlineDPOConfig,
    PPOConfig,
    Reinforce,
    ReinforceConfig,
    RLOOConfig,
)
from textrl.agents.rollout import Rollout
from textrl.envs import tiny_character_model
from textrl.errors import UserError

AGENTS = {
    "ppo": (PPO, PPOConfig, dict(minibatch_size=4)),
    "ppo exact": (PPO, PPOConfig, dict(minibatch_size=4, kl_loss="exact", ent_coef=0.01)),
    "ppo separate": (PPO, PPOConfig, dict(minibatch_size=4, critic="separate")),
    "rloo": (RLOO, RLOOConfig, dict(minibatch_size=4)),
    "grpo": (GRPO, GRPOConfig, dict(minibatch_size=4)),
    "reinforce": (Reinforce, ReinforceConfig, {}),
    "online_dpo": (OnlineDPO, OnlineDPOConfig, dict(minibatch_size=2)),
}
FIELDS = ("input_ids", "text_lengths", "positions", "mask", "turns", "truncated", "ended_by_eos")
NUMBERS = ("logprobs", "ref_logprobs", "rewards", "scores", "values", "bootstrap_values")


def policy(seed: int = 3) -> Any:
    """Return a model that often ends a turn."""
    model = tiny_character_model().requires_grad_(True)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def agent_in(name: str, venv: Any, model: Any = None, **changes: Any) -> Any:
    kind, config, options = AGENTS[name]
    settings = dict(episodes_per_iteration=8, learning_rate=1e-3, precision="float32")
    return kind(model or policy(), venv, config(**settings | options | changes))


def without_attention(trunk: Any) -> None:
    """Let the states of a trunk depend on the last token only, from now on."""
    for layer in trunk.layers:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        layer.self_attn.requires_grad_(False)


def graded(turn: str) -> tuple:
    """Pay for the turn's letters, so that rewards differ."""
    return "more\n", sum(map(ord, turn)) % 7 / 7, False, False, {}


def ends_after(turn: str) -> tuple:
    return "that is the end\n", len(turn) / 4, True, False, {}


@pytest.mark.parametrize("name", list(AGENTS))
def test_no_gradient_comes_from_states_that_predict_the_worlds_tokens(name: str) -> None:
    """Of every trunk's states, those with a gradient are the states that chose an action."""
    venv = vector(scripted(graded, ends_after), 8, group_size=4, autoreset_mode="Disabled")
    agent = agent_in(name, venv)
    found: Counter = Counter()
    trunks = [agent.lm.trunk]
    if name == "ppo separate":
        trunks.append(agent.critic.trunk)

    def watch(module: Any, args: Any, given: dict[str, Any], output: Any) -> None:
        states = output.last_hidden_state

        def seen(gradient: torch.Tensor) -> None:
            for row, place in (gradient != 0).any(-1).nonzero().tolist():
                found[tuple(given["input_ids"][row, place - 3 : place + 1].tolist())] += 1

        if states.requires_grad:
            states.register_hook(seen)

    collected: list[Rollout] = []
    train_on = agent.train_on

    def watched(rollout: Rollout, steps: Any) -> Any:
        collected.append(rollout)
        handles = [trunk.register_forward_hook(watch, with_kwargs=True) for trunk in trunks]
        numbers = train_on(rollout, steps)
        for handle in handles:
            handle.remove()
        return numbers

    agent.train_on = watched
    agent.iterate()
    (rollout,) = collected
    assert (rollout.turns == 2).all()
    expected: Counter = Counter()
    for row, step in rollout.mask.nonzero().tolist():
        at = int(rollout.positions[row, step])
        assert at >= 4  # "go\n" after <bos>
        expected[tuple(rollout.input_ids[row, at - 4 : at].tolist())] += 1
    everything = Counter({key: 100 * count for key, count in expected.items()})
    assert found.total() > 0.4 * expected.total()  # Online DPO takes two of each four episodes
    assert not found - everything
    letter = agent.env.tokenizer.convert_tokens_to_ids
    inside = tuple(letter(c) for c in "more")  # the state that predicts the world's "\n"
    assert any(key[-1] == letter("\n") for key in expected)  # a turn begins after one
    assert found[inside] == 0


@pytest.mark.parametrize("name", list(AGENTS))
def test_the_length_of_the_worlds_texts_changes_no_number(name: str) -> None:
    """Of models without attention, whose next token depends on the last token only."""

    def numbers(reply: str) -> tuple[Rollout, dict[str, float]]:
        def answer(turn: str) -> tuple:
            return reply, *graded(turn)[1:]

        reference, model = policy(1), policy(2)
        without_attention(reference.model)
        without_attention(model.model)
        script = scripted(answer, answer, ends_after)
        given = dict(reference=reference, max_completion_tokens=150, kl_coef=0.2)
        given["tokenizer"] = single(script).unwrapped.tokenizer
        venv = vector(script, 8, group_size=4, autoreset_mode="Disabled", **given)
        agent = agent_in(name, venv, model)
        if name == "ppo separate":
            without_attention(agent.critic.trunk)
        kept: list[Rollout] = []
        collect = agent.collect
        agent.collect = lambda *arguments: kept.append(collect(*arguments)) or kept[0]
        return (report := agent.iterate()) and (kept[0], report)

    (short, one), (long, other) = numbers("ok\n"), numbers("that was a good try, go on then\n")
    assert (long.text_lengths > short.text_lengths + 40).all()
    assert torch.equal(short.completion_ids, long.completion_ids)
    for field in ("logprobs", "ref_logprobs", "rewards", "scores", "values", "entropies"):
        assert torch.allclose(short.__dict__[field], long.__dict__[field], atol=1e-5), field
    assert one["rollout/kl"] != 0
    for key, value in one.items():
        if not key.startswith("time/"):
            assert other[key] == pytest.approx(value, abs=2e-5), key


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
@pytest.mark.parametrize("name", ["ppo", "ppo separate", "reinforce"])
def test_a_vector_of_single_environments_gives_the_same_rollout(name: str, mode: str) -> None:
    world = babbling(ends=0.2)
    mode_of = gym.vector.AutoresetMode(mode)
    theirs = gym.vector.SyncVectorEnv([partial(single, world)] * 4, autoreset_mode=mode_of)
    ours = vector(world, 4)
    one, other = (agent_in(name, venv, episodes_per_iteration=4) for venv in (ours, theirs))
    for agent in (one, other):
        head = getattr(agent, "critic", None)
        for parameter in head.parameters() if head is not None and name == "ppo" else ():
            torch.nn.init.constant_(parameter, 0.1)
    for _ in range(rounds(mode)):
        same_rollout(one.collect(), other.collect())


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
@pytest.mark.parametrize("name", ["ppo", "rloo", "grpo", "online_dpo"])
def test_a_wrapper_that_sees_every_step_gives_the_same_rollout(name: str, mode: str) -> None:
    world, groups = babbling(ends=0.2), dict(group_size=4, autoreset_mode=mode)
    one = agent_in(name, vector(world, 8, **groups))
    other = agent_in(name, RecordEpisodeStatistics(vector(world, 8, **groups)))
    for _ in range(rounds(mode)):
        same_rollout(one.collect(), other.collect())


def rounds(mode: str) -> int:
    """Return for how many collects the episodes are the same: rows that are over draw others."""
    return 1 if mode == "SameStep" else 2


def same_rollout(one: Rollout, other: Rollout) -> None:
    for field in FIELDS:
        assert torch.equal(one.__dict__[field], other.__dict__[field]), field
    for field in NUMBERS:
        mine, theirs = one.__dict__[field], other.__dict__[field]
        assert torch.allclose(mine, theirs, atol=1e-5, equal_nan=True), field
    assert one.turns.max() > 1


@pytest.mark.parametrize("name", ["ppo", "ppo exact", "ppo separate"])
def test_the_first_ratio_is_1_and_the_first_kl_0(name: str) -> None:
    venv = vector(babbling(), 8, autoreset_mode="Disabled")
    agent = agent_in(name, venv, tiny_character_model().requires_grad_(True))
    numbers = agent.iterate()
    assert numbers["train/first_ratio_error"] < 1e-5
    assert abs(numbers["rollout/kl"]) < 1e-4
    assert numbers["rollout/turns"] > 1
    assert abs(agent.iterate()["rollout/kl"]) > 1e-4  # it has moved


def test_a_critic_of_the_reward_model_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="critic='reward_model' needs a reward model"):
        agent_in("ppo", vector(babbling(), 8), critic="reward_model")


TRUNCATED = {
    "no room": (scripted(("x" * 40, 0.5, False, False, {})), dict(max_completion_tokens=30)),
    "the world": (scripted(MORE, ("so\n", 0.5, False, True, {})), {}),
    "both": (scripted(("so\n", 0.5, True, True, {})), {}),
    "TimeLimit": (lambda: gym.wrappers.TimeLimit(Script([MORE]), 2), {}),
}
REASONS = {"no room": "length", "the world": "world_limit", "both": "world"}


@pytest.mark.parametrize("critic", ["value_head", "separate"])
@pytest.mark.parametrize("name", list(TRUNCATED))
def test_a_truncated_episode_is_bootstrapped_after_its_last_token(name: str, critic: str) -> None:
    world, settings = TRUNCATED[name]
    venv = vector(world, 4, autoreset_mode="Disabled", **settings)
    agent = agent_in("ppo", venv, critic=critic, episodes_per_iteration=4)
    for parameter in (agent.critic if critic == "value_head" else agent.critic.head).parameters():
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    rollout = agent.collect()
    assert rollout.truncated.all() == (name != "both")
    reply = {"no room": "", "the world": "so\n", "both": "so\n", "TimeLimit": "more\n"}[name]
    head = agent.critic if critic == "value_head" else agent.critic.head
    for row in range(4):
        length = int(rollout.text_lengths[row])
        last = int(rollout.positions[row][rollout.mask[row]].max())
        text = agent.env.tokenizer.decode(rollout.input_ids[row, last + 1 : length])
        assert text.removeprefix("<eos>") == reply
        with torch.no_grad():
            states = agent.lm.hidden(rollout.input_ids[row : row + 1, :length])[0, -1]
            expected = 0.0 if name == "both" else float(head(states.unsqueeze(0)))
        assert float(rollout.bootstrap_values[row]) == pytest.approx(expected, abs=1e-4)
        assert (expected == 0.0) == (name == "both")
    assert rollout.scores.tolist() == [0.0 if name == "TimeLimit" else 0.5] * 4


def test_beside_truncated_rows_one_that_is_over_is_not_bootstrapped() -> None:
    number = iter(range(4))
    cut = ("so\n", 0.5, False, True, {})
    venv = vector(lambda: Script([DONE if next(number) == 1 else cut]), 4)
    agent = agent_in("ppo", venv, episodes_per_iteration=4)
    for parameter in agent.critic.parameters():
        torch.nn.init.constant_(parameter, 0.5)
    rollout = agent.collect()
    assert rollout.truncated.tolist() == [True, False, True, True]
    assert (rollout.bootstrap_values != 0).tolist() == [True, False, True, True]


@pytest.mark.parametrize("name", list(TRUNCATED))
def test_flags_and_reasons_are_passed_on(name: str) -> None:
    world, settings = TRUNCATED[name]
    env = single(world, **settings)
    env.reset(seed=0)
    while True:
        _, _, terminated, truncated, info = env.step(EOS)
        if terminated or truncated:
            break
    assert (terminated, truncated) == (name == "both", name != "both")
    assert info["finish_reason"] == REASONS.get(name, "world_limit")


def test_the_budget_counts_from_the_first_text_whatever_its_length() -> None:
    """8 tokens after "go\n" or after a longer text: 4 of a turn, 1 end, no room for "more\n"."""
    for first in ("go\n", "a longer text to begin with\n"):
        env = single(scripted(MORE, first=first), max_completion_tokens=8)
        env.reset(seed=0)
        for _ in range(4):
            _, _, _, truncated, info = env.step(7)
        assert truncated
        assert info["finish_reason"] == "length"
        agent = agent_in("ppo", vector(scripted(MORE, first=first), 8, max_completion_tokens=8))
        rollout = agent.collect()
        assert (rollout.text_lengths - rollout.prompt_lengths <= 8).all()


def test_a_turn_that_the_episodes_budget_cuts_is_over() -> None:
    """Of 5 tokens the first turn takes 2 and its reply none, so that the next one has 3, not 4."""
    env = single(scripted(("", 0.0, False, False, {})), max_completion_tokens=5)
    env.reset(seed=0)
    ends = [env.step(token)[3] for token in (7, EOS, 7, 8, 9)]
    assert ends == [False, False, False, False, True]
    venv = vector(scripted(("", 0.0, False, False, {})), 2, max_completion_tokens=5)
    venv.reset(seed=0)
    venv.step_sequence(np.array([[7, EOS]] * 2), np.ones((2, 2), dtype=bool))
    with pytest.raises(UserError, match="row 0 has 4 actions but room for 3"):
        venv.step_sequence(np.full((2, 4), 7), np.ones((2, 4), dtype=bool))


def test_masked_failures_are_left_out_of_the_update() -> None:
    number = iter(range(99))

    def fails(turn: str) -> None:
        raise RuntimeError("down")

    def make() -> Script:
        return Script([fails] if next(number) == 5 else [MORE, DONE])

    venv = vector(make, 8, group_size=4, on_world_error="mask", autoreset_mode="Disabled")
    for name, left in (("ppo", 7), ("rloo", 4)):  # RLOO leaves out the group
        number = iter(range(99))
        venv = vector(make, 8, group_size=4, on_world_error="mask", autoreset_mode="Disabled")
        numbers = agent_in(name, venv).iterate()
        assert numbers["rollout/masked"] == 8 - left
        assert numbers["rollout/score"] == 1.0


def test_a_failure_stops_an_agent_with_one_line_and_it_goes_on() -> None:
    bad = [True]

    def answer(turn: str) -> tuple:
        if bad:
            raise RuntimeError("down")
        return DONE

    agent = agent_in("ppo", vector(scripted(MORE, answer), 8))
    with pytest.raises(
        UserError, match=r"row \d, step of Script with .* raised RuntimeError: down"
    ):
        agent.iterate()
    bad.clear()
    assert agent.iterate()["rollout/score"] == 1.0


def test_an_iteration_that_a_world_stopped_is_repeated_exactly() -> None:
    def rollout(fails: bool) -> Rollout:
        bad = [True] if fails else []

        def answer(turn: str) -> tuple:
            if bad:
                raise RuntimeError("down")
            return graded(turn)

        agent = agent_in("ppo", vector(scripted(graded, answer, ends_after), 8))
        if fails:
            with pytest.raises(UserError, match="down"):
                agent.iterate()
            bad.clear()
        return agent.collect()

    one, other = rollout(False), rollout(True)
    assert torch.equal(one.input_ids, other.input_ids)
    assert np.allclose(one.rewards, other.rewards)


def test_best_of_n_is_refused_when_it_is_made() -> None:
    with pytest.raises(UserError, match="scores no text by itself"):
        BestOfN(policy(), vector(babbling(), 2))
