"""Reward functions of all kinds: a number a token, a whole group, metrics, and by name."""

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from textrl.agents import GRPO, PPO, RLOO, BestOfN, GRPOConfig, OnlineDPO, PPOConfig, RLOOConfig
from textrl.config import BestOfNConfig, OnlineDPOConfig
from textrl.envs import TextRLHFEnv, tiny_model, tiny_tokenizer
from textrl.envs.sb3 import TextVecEnv
from textrl.errors import UserError
from textrl.reward_kinds import kind_of
from textrl.rewards import conversational, make_scorer, reward_function

EOS = 2


@reward_function(dense=True)
def odd(prompts, completions, completion_ids):
    """Pay 1 for an odd token, and a tenth of the number of tokens before it."""
    return [[token % 2 + i / 10 for i, token in enumerate(ids)] for ids in completion_ids]


@reward_function(dense=True)
def lengths_of_text(completions, completion_ids):
    """Pay nothing but for the end token."""
    return [[float(token == EOS) for token in ids] for ids in completion_ids]


def size(prompts, completions):
    return [float(len(text)) for text in completions]


@reward_function(group=True)
def longer_than_mean(prompts, completions):
    """Return how much longer a text is than the group's mean."""
    assert len(set(prompts)) == 1
    mean = sum(map(len, completions)) / len(completions)
    return [len(text) - mean for text in completions]


def arguments(reward: Any, **changes: Any) -> dict[str, Any]:
    settings = dict(
        reference=tiny_model(),
        tokenizer=tiny_tokenizer(),
        prompts=["ab", "cde", "f"],
        max_prompt_tokens=8,
        max_completion_tokens=6,
        kl_coef=0.1,
        reward=reward,
    )
    return settings | changes


def vector(reward: Any, rows: int = 4, **changes: Any) -> Any:
    return gym.make_vec("TextRLHF-v0", num_envs=rows, **arguments(reward, **changes))


def some_actions(rows: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    actions, counts = rng.integers(3, 15, (rows, 6)), rng.integers(1, 7, rows)
    mask = np.arange(6) < counts[:, None]
    actions[np.arange(rows), counts - 1] = EOS
    return actions * mask, mask


def stepped(venv: Any, actions: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return rewards [B T] and final scores [B] by steps, each row in an environment of its own."""
    rewards, scores = np.zeros(actions.shape), np.zeros(len(actions))
    for t in range(actions.shape[1]):
        _, paid, *_, infos = venv.step(np.where(mask[:, t], actions[:, t], 5))
        rewards[:, t] = paid * mask[:, t]
        ends = mask[:, t] & ~np.append(mask[:, t + 1 :], np.zeros((len(mask), 1), bool), 1)[:, 0]
        scores[ends] = infos["score"][ends] if ends.any() else scores[ends]
    return rewards, scores


@pytest.mark.parametrize(
    "reward", [odd, [odd, size], [(odd, 0.5), (lengths_of_text, 2.0), (size, 3.0)]]
)
def test_dense_rewards_are_paid_with_their_tokens_in_steps_and_sequences(reward: Any) -> None:
    actions, mask = some_actions()
    venv = vector(reward)
    _, reset = venv.reset(seed=3)
    rewards, infos = venv.step_sequence(actions, mask)
    own = rewards - 0.1 * infos["ref_logprobs"]
    weights = {"odd": 1.0, "size": 1.0, "lengths_of_text": 0.0}
    if isinstance(reward, list) and len(reward) == 3:
        weights = {"odd": 0.5, "size": 3.0, "lengths_of_text": 2.0}
    if reward is odd:
        weights["size"] = 0.0
    for row in range(4):  # by hand
        n = int(mask[row].sum())
        ids = actions[row, :n].tolist()
        expected = weights["odd"] * np.array(odd([""], [""], [ids])[0])
        expected[-1] += weights["lengths_of_text"] + weights["size"] * len(infos["completion"][row])
        np.testing.assert_allclose(own[row, :n], expected, atol=1e-9)
        assert infos["score"][row] == pytest.approx(expected.sum())
        assert infos["scores"][row]["odd"] == pytest.approx(sum(odd([""], [""], [ids])[0]))
    steps = vector(reward)
    steps.reset(seed=3)
    by_steps, scores = stepped(steps, actions, mask)
    np.testing.assert_allclose(by_steps, rewards, atol=1e-5)
    np.testing.assert_allclose(scores, infos["score"], atol=1e-9)
    single = TextRLHFEnv(**arguments(reward))
    single.reset(options={"prompt": reset["prompt"][0]})
    for t in range(int(mask[0].sum())):
        *_, info = single.step(actions[0, t])
    assert info["score"] == pytest.approx(infos["score"][0])
    assert info["scores"] == pytest.approx(infos["scores"][0])


def test_a_dense_reward_that_looks_ahead_is_refused() -> None:
    @reward_function(dense=True)
    def ahead(prompts, completions, completion_ids):
        return [[float(len(ids))] * len(ids) for ids in completion_ids]

    venv = vector(ahead)
    venv.reset(seed=0)
    before = venv.core.lengths.copy()
    with pytest.raises(UserError, match="may depend on the token and what stands before it only"):
        venv.step_sequence(*some_actions())
    assert (venv.core.lengths == before).all()
    venv.reset(seed=0)
    venv.step(np.full(4, 5))
    with pytest.raises(UserError, match=r"said 1 of token 0 when it was taken, and 2 after"):
        venv.step(np.full(4, 6))


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda ids: [0.5] * len(ids), "is dense and returned 0.5 for sample 0, .* list of 6 num"),
        (lambda ids: [[0.5]] * len(ids), "is dense and returned 1 numbers for sample 0"),
        (lambda ids: [[0.5]], "returned 1 numbers for 4 texts"),
        (lambda ids: [[np.nan] * len(i) for i in ids], "expected finite numbers"),
        (lambda ids: [None] * len(ids), "is dense and returned None"),
    ],
)
def test_what_a_dense_reward_may_not_return(returned: Any, message: str) -> None:
    @reward_function(dense=True)
    def bad(prompts, completions, completion_ids):
        return returned(completion_ids)

    venv = vector(bad)
    venv.reset(seed=0)
    with pytest.raises(UserError, match=message):
        venv.step_sequence(np.full((4, 6), 5), np.ones((4, 6), dtype=bool))


def test_an_unmarked_function_that_returns_lists_is_told_of_the_mark() -> None:
    venv = vector(lambda prompts, completions: [[1.0]] * len(prompts))
    venv.reset(seed=0)
    with pytest.raises(UserError, match=r"@reward_function\(dense=True\)"):
        venv.step_sequence(*some_actions())
    with pytest.raises(UserError, match="there are no tokens here"):
        make_scorer(odd)(["a"], ["b"], {})


def test_a_masked_dense_reward_ends_the_episode_of_its_row_alone() -> None:
    @reward_function(dense=True)
    def fails(prompts, completions, completion_ids):
        return [[np.nan if token == 9 else 1.0 for token in ids] for ids in completion_ids]

    venv = vector(fails, rows=2, on_reward_error="mask")
    venv.reset(seed=0)
    *_, infos = venv.step(np.array([9, 5]))
    assert infos["finish_reason"].tolist() == ["reward_error", None]
    venv.reset(seed=0)
    rewards, infos = venv.step_sequence(np.array([[5, 9, 5], [5, 6, EOS]]), np.ones((2, 3), bool))
    assert infos["truncated"].tolist() == [True, False]
    assert np.isnan(infos["score"]).tolist() == [True, False]
    np.testing.assert_allclose((rewards - 0.1 * infos["ref_logprobs"])[1], [1, 1, 1])


def test_potential_shaping_pays_the_same_sum() -> None:
    from textrl.envs import VectorCandidateActions

    venv = VectorCandidateActions(vector([odd, size], autoreset_mode="Disabled"), k=4)
    venv.reset(seed=0)
    total, over, score = np.zeros(4), np.zeros(4, dtype=bool), np.zeros(4)
    while not over.all():
        if over.any():
            venv.reset(options={"reset_mask": over.copy()})
        _, paid, terminated, _, infos = venv.step(np.array([0, 1, 2, 3]))
        total += paid * ~over
        new = terminated & ~over
        score[new] = infos["score"][new] if new.any() else score[new]
        over |= terminated
    np.testing.assert_allclose(total, score, atol=1e-9)


def test_a_group_is_compared_in_calls_of_its_own() -> None:
    calls = []

    @reward_function(group=True)
    def best(prompts, completions, **columns):
        calls.append((list(prompts), list(completions)))
        return [float(len(text) == max(map(len, completions))) for text in completions]

    venv = vector([best, (size, 0.0)], rows=8, group_size=4)
    venv.reset(seed=0)
    _, infos = venv.step_sequence(*some_actions(8))
    assert [len(prompts) for prompts, _ in calls] == [4, 4]
    assert all(len(set(prompts)) == 1 for prompts, _ in calls)
    texts = [len(text) for text in infos["completion"]]
    for first in (0, 4):
        part = texts[first : first + 4]
        assert infos["score"][first : first + 4].tolist() == [float(n == max(part)) for n in part]
    assert [said["size"] for said in infos["scores"]] == [float(n) for n in texts]


def test_a_group_that_is_not_whole_is_refused() -> None:
    for rows, changes in ((1, {}), (4, {}), (4, {"group_size": 4, "on_length": "truncate"})):
        with pytest.raises(UserError, match="compares a group"):
            vector(longer_than_mean, rows, **changes)
    with pytest.raises(UserError, match="compares a group"):
        TextRLHFEnv(**arguments(longer_than_mean))
    venv = vector(longer_than_mean, 4, group_size=4)
    venv.reset(seed=0)
    with pytest.raises(UserError, match="they end in different steps; take whole episodes"):
        venv.step(np.array([EOS, 5, 5, 5]))
    assert (venv.core.lengths == venv.core.prompt_lengths).all()
    venv.reset(options={"index": [0, 1, 0, 0]})
    with pytest.raises(UserError, match="have different prompts"):
        venv.step_sequence(*some_actions())
    with pytest.raises(UserError, match="here each prompt has one"):
        make_scorer(longer_than_mean)(["a"], ["b"], {})
    with pytest.raises(UserError, match="not both"):
        reward_function(dense=True, group=True)


def test_a_failed_group_is_left_out_as_a_whole() -> None:
    @reward_function(group=True)
    def fails(prompts, completions):
        if prompts[0] == "f" and len(prompts) > 1:  # a row of a group is never tried alone
            raise ValueError("no f")
        return [1.0] * len(completions)

    venv = vector(fails, rows=12, group_size=4, on_reward_error="mask")
    _, infos = venv.reset(seed=0)
    prompts = infos["prompt"]
    _, infos = venv.step_sequence(*some_actions(12))
    assert np.isnan(infos["score"]).tolist() == [prompt == "f" for prompt in prompts]


def test_agents_that_take_steps_refuse_groups_when_they_are_made() -> None:
    from textrl.envs import VectorCandidateActions

    grouped = partial(vector, longer_than_mean, 4, group_size=4)
    with pytest.raises(UserError, match="best of n acts step by step"):
        BestOfN(tiny_model(), grouped(), BestOfNConfig(n=8))
    with pytest.raises(UserError, match="candidates are chosen step by step"):
        VectorCandidateActions(grouped(), k=4)
    with pytest.raises(UserError, match="agents of SB3 act step by step"):
        TextVecEnv(grouped(autoreset_mode="SameStep"))


def test_a_part_of_a_group_is_not_scored() -> None:
    venv = vector(longer_than_mean, 4, group_size=4)
    assert venv.unwrapped.score_tokens([[3]] * 4, [[4], [4], [4, 5], [4]]).shape == (4,)
    with pytest.raises(UserError, match="3 texts are no whole groups"):
        venv.unwrapped.score_tokens([[3]] * 3, [[4], [4], [4]])


def test_rows_of_two_groups_are_no_group() -> None:
    venv = vector(longer_than_mean, 4, group_size=2, autoreset_mode="Disabled")
    venv.reset(options={"index": [0, 0, 0, 0]})
    actions = np.array([[EOS], [5], [6], [EOS]])
    with pytest.raises(UserError, match="they end in different steps"):
        venv.step_sequence(actions, np.ones((4, 1), dtype=bool))
    same_text = [{"prompt": "ab", "answer": "x"}, {"prompt": "ab", "answer": "y"}]
    venv = vector(longer_than_mean, 2, group_size=2, prompts=same_text)
    venv.reset(options={"index": [0, 1]})
    with pytest.raises(UserError, match="have different prompts"):
        venv.step_sequence(np.array([[EOS], [EOS]]), np.ones((2, 1), dtype=bool))


def test_a_mark_is_seen_through_what_wraps_a_function() -> None:
    class Judge:
        @reward_function(group=True)
        def __call__(self, prompts, completions):
            return [0.0] * len(prompts)

    for marked in (partial(longer_than_mean), Judge(), conversational(longer_than_mean)):
        assert kind_of(marked).group
    assert kind_of(conversational(odd)).dense
    assert not kind_of(partial(size)).group


def test_a_dense_metric_pays_nothing() -> None:
    @reward_function(dense=True)
    def broken(prompts, completions, **columns):
        return [[np.nan] * len(ids) for ids in columns["completion_ids"]]

    for metric in (odd, broken):
        venv = vector([size, (metric, 0.0)], on_reward_error="mask")
        venv.reset(seed=0)
        rewards, infos = venv.step_sequence(*some_actions())
        own = (rewards - 0.1 * infos["ref_logprobs"]).sum(1)
        np.testing.assert_allclose(own, [len(text) for text in infos["completion"]], atol=1e-9)
        assert [said["size"] for said in infos["scores"]] == pytest.approx(own)


def test_a_function_may_change_the_lists_that_it_gets() -> None:
    @reward_function(dense=True)
    def pops(prompts, completions, completion_ids):
        return [[float(ids.pop(0)) for _ in range(len(ids))] for ids in completion_ids]

    venv = vector(pops, kl_coef=0.0)
    venv.reset(seed=0)
    actions, mask = some_actions()
    rewards, _ = venv.step_sequence(actions, mask)
    np.testing.assert_allclose(rewards, actions * mask)


@pytest.mark.parametrize("on_length", ["score", "truncate"])
@pytest.mark.parametrize("wrap", [False, True])
def test_a_failed_dense_reward_leaves_its_episode_out(on_length: str, wrap: bool) -> None:
    @reward_function(dense=True)
    def fails(prompts, completions, completion_ids):
        return [[np.nan if token == 9 else 1.0 for token in ids] for ids in completion_ids]

    venv = vector(fails, 16, on_reward_error="mask", on_length=on_length)
    venv = RecordEpisodeStatistics(venv) if wrap else venv
    agent = PPO(tiny_model(), venv, PPOConfig(episodes_per_iteration=16, minibatch_size=8))
    episodes = agent.collect()
    assert 8 <= len(episodes.mask) < 16
    assert not (episodes.completion_ids == 9).any()


def test_rows_without_a_score_have_no_named_scores() -> None:
    venv = vector([odd, size], on_length="truncate")
    venv.reset(seed=0)
    actions = np.array([[5] * 6, [5, EOS, 0, 0, 0, 0], [5, 5, 0, 0, 0, 0], [EOS, 0, 0, 0, 0, 0]])
    mask = np.array([[True] * 6, *[[n < k for n in range(6)] for k in (2, 2, 1)]])
    _, infos = venv.step_sequence(actions, mask)
    assert [said is None for said in infos["scores"]] == [True, False, True, False]


def test_metrics_and_abstentions() -> None:
    def half(prompts, completions):
        return [None if prompt == "ab" else 2.0 for prompt in prompts]

    scorer = make_scorer([(size, 1.0), (half, 10.0), (lambda prompts, completions: [7.0] * 2, 0)])
    from textrl.reward_calls import Texts

    scores = scorer.scores(Texts(prompts=["ab", "c"], completions=["xyz", "x"], columns={}))
    assert scores.total.tolist() == [3.0, 21.0]
    assert scores.named["size"].tolist() == [3.0, 1.0]
    assert np.isnan(scores.named["half"]).tolist() == [True, False]
    assert scores.named["<lambda>"].tolist() == [7.0, 7.0]
    with pytest.raises(UserError, match="no reward scored sample 0"):
        make_scorer([half, (size, 0.0)])(["ab", "c"], ["x", "y"], {})
    with pytest.raises(UserError, match="returned None for sample 0"):
        make_scorer(half)(["ab", "c"], ["x", "y"], {})


def test_a_metric_that_fails_does_not_take_the_sample_with_it() -> None:
    def broken(prompts, completions):
        raise ValueError("broken")

    venv = vector([size, (broken, 0.0)], on_reward_error="mask")
    venv.reset(seed=0)
    _, infos = venv.step_sequence(*some_actions())
    assert not np.isnan(infos["score"]).any()
    assert all(np.isnan(said["broken"]) for said in infos["scores"])


def test_two_functions_of_one_name_keep_their_numbers_apart() -> None:
    first, second = (
        (lambda prompts, completions: [1.0] * 4),
        (lambda prompts, completions: [2.0] * 4),
    )
    venv = vector([first, second])
    venv.reset(seed=0)
    _, infos = venv.step_sequence(*some_actions())
    assert infos["scores"][0] == {"<lambda>": 1.0, "<lambda>_2": 2.0}


def test_a_column_named_completion_ids_is_refused() -> None:
    with pytest.raises(UserError, match="have a column 'completion_ids'"):
        vector(size, prompts=[{"prompt": "ab", "completion_ids": [1]}])


AGENTS = {
    "ppo": (PPO, PPOConfig, {}),
    "rloo": (RLOO, RLOOConfig, {}),
    "grpo": (GRPO, GRPOConfig, {}),
    "online_dpo": (OnlineDPO, OnlineDPOConfig, {"minibatch_size": 2}),
}


@pytest.mark.parametrize("name", AGENTS)
def test_agents_take_all_kinds_and_log_them_by_name(name: str) -> None:
    kind, config, options = AGENTS[name]
    settings = dict(episodes_per_iteration=16, minibatch_size=8) | options
    reward = [odd, (longer_than_mean, 0.5), (size, 0.0)]
    agent = kind(tiny_model(seed=3), vector(reward, 8, group_size=4), config(**settings))
    numbers = agent.iterate()
    assert {f"rollout/scores/{n}" for n in ("odd", "longer_than_mean", "size")} <= set(numbers)
    assert numbers["rollout/scores/longer_than_mean"] == pytest.approx(0.0, abs=1e-5)
    expected = numbers["rollout/scores/odd"]
    assert numbers["rollout/score"] == pytest.approx(expected, abs=1e-4)
    alone = kind(tiny_model(seed=3), vector(odd, 8, group_size=4), config(**settings))
    assert not any(name.startswith("rollout/scores") for name in alone.iterate())


@pytest.mark.parametrize("mode", [AutoresetMode.DISABLED, AutoresetMode.SAME_STEP])
def test_steps_of_a_wrapped_environment_collect_the_same(mode: AutoresetMode) -> None:
    """Dense rewards and names arrive in an environment that has no step_sequence."""
    found = []
    for wrap in (False, True):
        venv = vector([odd, (size, 0.0)], 8, autoreset_mode=mode)
        venv = RecordEpisodeStatistics(venv) if wrap else venv
        venv.reset(seed=5)
        agent = PPO(tiny_model(seed=3), venv, PPOConfig(episodes_per_iteration=8, minibatch_size=8))
        found.append(agent.collect())
    for name in ("rewards", "scores", "named_scores", "input_ids"):
        one, other = (getattr(episodes, name) for episodes in found)
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_single_environments_in_a_sync_vector_env_too() -> None:
    make = partial(TextRLHFEnv, **arguments([odd, (size, 0.0)]))
    venv = gym.vector.SyncVectorEnv([make] * 4, autoreset_mode=AutoresetMode.DISABLED)
    venv.reset(seed=0)
    agent = PPO(tiny_model(seed=3), venv, PPOConfig(episodes_per_iteration=4, minibatch_size=4))
    numbers = agent.iterate()
    assert numbers["rollout/scores/size"] > 0
    assert numbers["rollout/score"] == pytest.approx(numbers["rollout/scores/odd"], abs=1e-4)


def test_gae_uses_the_dense_rewards_where_they_are_paid() -> None:
    """With gamma 1, lambda 1 and no values, a token's return is what is paid from it on."""
    venv = vector(odd, 8, kl_coef=0.0)
    config = PPOConfig(episodes_per_iteration=8, minibatch_size=8, gae_lambda=1.0)
    agent = PPO(tiny_model(seed=3), venv, config)
    episodes = agent.collect()
    targets, _ = agent._targets(episodes, 0.0, None)
    expected = episodes.rewards.flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(
        targets.returns[episodes.mask], expected[episodes.mask], atol=1e-4, rtol=1e-4
    )
