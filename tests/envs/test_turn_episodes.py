"""What reaches a world's reset: seeds, options, columns; groups; exact resume; digests."""

import numpy as np
import pytest
from turn_worlds import EOS, Script, babbling, scripted, single, vector

from textrl.errors import UserError

ROWS = [{"target": 4, "hint": "low"}, {"target": 9, "hint": "high"}, {"target": 7, "hint": "mid"}]


def recording(rows: int = 4, **settings):
    """Return an environment and the resets that its worlds were asked for: (seed, options)."""
    calls: list = []
    return vector(scripted(calls=calls), rows, **settings), calls


def test_seeds_alone_decide_and_differ_between_rows_and_episodes() -> None:
    venv, calls = recording()
    venv.reset(seed=3)
    venv.reset()
    assert all(options is None for _, options in calls)
    seeds = [seed for seed, _ in calls]
    assert len(set(seeds)) == 8
    again, more = recording()
    again.reset(seed=3)
    again.reset()
    assert more == calls
    other, others = recording()
    other.reset(seed=4)  # row 0 is row 1 of before
    assert [seed for seed, _ in others][:3] == seeds[1:4]
    env = single(scripted(calls=(alone := [])))
    env.reset(seed=5)
    env.reset()
    assert [seed for seed, _ in alone] == [seeds[2], seeds[6]]


def test_columns_of_the_prompts_are_options_of_the_reset() -> None:
    venv, calls = recording(3, prompts=ROWS)
    _, infos = venv.reset(seed=0)
    for (seed, options), index in zip(calls, infos["prompt_index"], strict=True):
        assert seed is not None
        assert options == ROWS[index]
    single_calls: list = []
    env = single(scripted(calls=single_calls), prompts=ROWS)
    indices = [env.reset(seed=0 if k == 0 else None)[1]["prompt_index"] for k in range(6)]
    assert sorted(indices[:3]) == sorted(indices[3:]) == [0, 1, 2]  # epochs
    assert [options["target"] for _, options in single_calls] == [
        ROWS[index]["target"] for index in indices
    ]


def test_options_choose_episodes_and_go_to_the_world() -> None:
    venv, calls = recording(2, prompts=ROWS)
    venv.reset(options={"index": [2, 0]})
    assert calls == [(2, ROWS[2]), (0, ROWS[0])]
    calls.clear()
    venv.reset(options={"index": 1, "hint": ["a", "b"]})  # an option counts before a column
    assert calls == [(1, ROWS[1] | {"hint": "a"}), (1, ROWS[1] | {"hint": "b"})]
    calls.clear()
    venv.reset(seed=0)
    drawn = [seed for seed, _ in calls]
    calls.clear()
    venv.reset(seed=0, options={"level": 3, "target": np.array([5, 6])})
    assert [seed for seed, _ in calls] == drawn  # the world's options leave the stream alone
    assert [(o["level"], o["target"]) for _, o in calls] == [(3, 5), (3, 6)]
    calls.clear()
    venv.reset(options={"reset_mask": np.array([False, True]), "level": [8, 9]})
    assert [options["level"] for _, options in calls] == [9]
    without, seeds = recording(2)
    without.reset(options={"index": [7, 8]})
    assert seeds == [(7, None), (8, None)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": [1, 2, 3]}, r"options\['level'\] has 3 entries for 2 rows"),
        ({"index": [1]}, r"options\['index'\] has 1 entries for 2 rows"),
        ({"index": 3}, r"prompt index 3 is not in \[0, 3\)"),
        ({"index": -1}, "expected a whole number"),
        ({"index": True}, "expected a whole number"),
        ({"index": "1"}, "expected a whole number"),
        ([1], "expected a mapping"),
        ({"reset_mask": [True]}, "expected 2 flags"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_any_world_begins(options, message) -> None:
    venv, calls = recording(2, prompts=ROWS)
    with pytest.raises(UserError, match=message):
        venv.reset(options=options)
    assert calls == []


def test_groups_begin_alike_at_each_whole_reset() -> None:
    """After rows of other lengths, and with options of the world too."""
    venv, calls = recording(4, group_size=2, prompts=ROWS)
    rng = np.random.default_rng(0)
    venv.reset(seed=0)
    for options in (None, {"level": 1}, None):
        groups = calls[-4:]
        assert groups[0] == groups[1]
        assert groups[2] == groups[3]
        assert groups[0] != groups[2]
        for _ in range(10):
            venv.step(np.where(rng.random(4) < 0.5, EOS, 7))  # NEXT_STEP draws more in some rows
        drawn = [stream.drawn for stream in venv._streams]
        assert len(set(drawn)) > 1
        venv.reset(options=options)
    assert calls[-4] == calls[-3]


def test_the_streams_resume_exactly() -> None:
    venv, calls = recording(3, prompts=ROWS)
    venv.reset(seed=0)
    for _ in range(7):
        venv.step(np.array([EOS, 7, EOS]))
    state = venv.prompt_state()
    again, more = recording(3, prompts=ROWS)
    again.load_prompt_state(state)
    calls.clear()
    for _ in range(4):
        venv.reset()
        again.reset()
    assert calls == more
    for other in (recording(2, prompts=ROWS)[0], recording(3, prompts=ROWS[:2])[0]):
        with pytest.raises(UserError, match="rows|other prompts"):
            other.load_prompt_state(state)


def test_what_a_run_may_set_anew_after_a_failure_is_not_in_the_digest() -> None:
    base = vector(babbling(), 2).task_digest
    same = vector(babbling(), 2, world_timeout=5.0, on_world_error="mask", kl_coef=0.3)
    assert same.task_digest == base
    assert vector(babbling(), 2, max_turn_tokens=5).task_digest != base
    assert vector(Script, 2).task_digest != base


def test_wrong_arguments_are_refused_by_name() -> None:
    for settings, message in (
        (dict(world="textrl/GuesNumber-v0"), "GuesNumber"),
        (dict(max_turn_tokens=65), "max_turn_tokens is 65; expected at most"),
        (dict(world_timeout=-1.0), "world_timeout"),
        (dict(on_world_error="skip"), "on_world_error"),
        (dict(world_arguments=[1]), "world_arguments"),
        (dict(word="x"), "word"),
    ):
        with pytest.raises(Exception, match=message):
            vector(**dict(world=Script, rows=1) | settings)


def test_the_score_is_the_sum_of_what_the_world_paid() -> None:
    paid = [("a\n", 0.5, False, False, {}), ("b\n", -2.0, False, False, {})]
    env = single(scripted(*paid, ("end\n", 0.25, True, False, {})))
    for _ in range(2):  # the second episode begins at 0 again
        env.reset(seed=0)
        infos = [env.step(EOS)[4] for _ in range(3)]
        assert [info["turn_reward"] for info in infos] == [0.5, -2.0, 0.25]
        assert infos[-1]["score"] == -1.25  # 0.5 - 2 + 0.25
