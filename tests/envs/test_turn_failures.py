"""Worlds that raise, hang or return rubbish: one clear line, and nothing else is lost."""

import time

import gymnasium as gym
import numpy as np
import pytest
from turn_worlds import DONE, EOS, MORE, Script, scripted, single, vector

from textrl.envs.world_texts import WorldTexts
from textrl.errors import UserError

ENDS = np.array([EOS, EOS, EOS])


def once(entry: object) -> object:
    """Return an entry that fails once, whichever world comes to it first, and then says more."""
    left = [entry]

    def answer(turn: str) -> object:
        if not left:
            return MORE
        found = left.pop()
        return found() if callable(found) else found

    return answer


def raises() -> None:
    raise ZeroDivisionError("by zero")


def ends_the_process() -> None:
    raise SystemExit(0)


RUBBISH = {
    "raises": (raises, r"raised ZeroDivisionError: by zero"),
    "exits": (ends_the_process, r"raised SystemExit"),
    "hangs": (lambda: time.sleep(30), r"took longer than world_timeout=0\.2 s"),
    "None": (None, r"returned None; expected \(text, reward"),
    "four": (("more", 0.0, False, False), r"returned .*expected \(text, reward"),
    "a list": (["more", 0.0, False, False, {}], r"expected \(text, reward"),
    "bytes": ((b"more", 0.0, False, False, {}), r"returned the text b'more'"),
    "no text": ((None, 0.0, False, False, {}), r"returned the text None"),
    "NaN": (("more", float("nan"), False, False, {}), r"returned the reward nan"),
    "infinite": (("more", float("inf"), False, False, {}), r"returned the reward inf"),
    "too large": (("more", 10**400, False, False, {}), r"returned the reward 1"),
    "no reward": (("more", None, False, False, {}), r"returned the reward None"),
    "reward of text": (("more", "1.0", False, False, {}), r"returned the reward '1.0'"),
    "complex": (("more", np.complex64(1), False, False, {}), r"returned the reward"),
    "array": (("more", np.zeros(1), False, False, {}), r"returned the reward"),
    "flag 2": (("more", 0.0, 2, False, {}), r"returned the flag 2; expected True or False"),
    "flag 1": (("more", 0.0, False, 1, {}), r"returned the flag 1; expected True or False"),
    "no info": (("more", 0.0, False, False, None), r"returned the info None"),
    "half a character": (("a\ud800", 0.0, False, False, {}), r"half a|surrogate|character"),
}


@pytest.mark.parametrize("by_sequence", [False, True])
@pytest.mark.parametrize("name", list(RUBBISH))
def test_a_failure_is_one_line_and_the_same_call_again_goes_on(
    name: str, by_sequence: bool
) -> None:
    """Row 1's world fails at its second turn, after row 0's has answered."""
    entry, message = RUBBISH[name]
    calls: list[list] = [[], [], []]
    number, failing = iter(range(100)), once(entry)

    def make() -> Script:
        row = min(next(number), 3)  # the fourth is one that replaces a world that is late
        script = [MORE, failing, MORE] if row == 1 else [MORE]
        return Script(script, calls=calls[row] if row < 3 else [])

    venv = vector(make, 3, world_timeout=0.2 if name == "hangs" else 0.0)

    def step() -> object:
        if by_sequence:
            return venv.step_sequence(np.array([[7, EOS]] * 3), np.ones((3, 2), dtype=bool))
        return venv.step(ENDS)

    venv.reset(seed=0)
    step()
    before = venv.core.lengths.copy()
    with pytest.raises(UserError, match=message) as caught:
        step()
    said = str(caught.value)
    assert said.startswith("row 1, step of Script with ")
    assert "\n" not in said
    assert (venv.core.lengths == before).all()  # the call's tokens are taken back
    assert (venv.core.input_ids[:, before.max() :] == 0).all()
    assert venv.core.turn.tolist() == [1, 1, 1]
    step()
    assert venv.core.turn.tolist() == [2, 2, 2]
    text = venv.core.messages[0][-2]["content"]
    assert calls[0][1:] == [text, text]  # row 0 was not asked a second time
    assert len(calls[2][1:]) == 2
    assert venv.core.messages[1][-1]["content"] == "more\n"


def test_after_a_failure_the_log_probs_are_those_of_a_run_without_one() -> None:
    def rewards(fails: bool) -> list[np.ndarray]:
        failing = once((None, 0.0, False, False, {}))
        venv = vector(scripted(MORE, failing if fails else MORE), 2, kl_coef=1.0)
        venv.reset(seed=0)
        actions, mask = np.array([[7, 8, EOS], [9, EOS, 0]]), np.array([[1, 1, 1], [1, 1, 0]])
        found = [venv.step_sequence(actions, mask)[0]]
        if fails:
            with pytest.raises(UserError, match="row 0, step of Script"):
                venv.step_sequence(actions, mask)
        found.append(venv.step_sequence(actions, mask)[0])
        found.append(venv.step(np.array([5, 5]))[1])
        return [*found, venv.step_sequence(actions, mask)[0]]

    for one, other in zip(rewards(False), rewards(True), strict=True):
        assert np.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("by_sequence", [False, True])
def test_a_pass_that_fails_half_way_is_forgotten(by_sequence: bool, monkeypatch) -> None:
    """The decoder has counted the tokens of a pass that failed: the next one reads them anew."""
    found = []
    for fails in (False, True):
        venv = vector(scripted(MORE), 2, kl_coef=1.0)
        venv.reset(seed=0)
        actions, mask = np.array([[7, 8, EOS]] * 2), np.ones((2, 3), dtype=bool)
        venv.step_sequence(actions, mask)

        def step(venv=venv, actions=actions, mask=mask) -> np.ndarray:
            if by_sequence:
                return venv.step_sequence(actions, mask)[0]
            return np.array([venv.step(actions[:, slot])[1] for slot in range(3)])

        if fails:
            with monkeypatch.context() as patch:

                def without_memory(*arguments, **named):
                    raise MemoryError

                patch.setattr(venv.core.lm.trunk, "forward", without_memory)
                with pytest.raises(MemoryError):
                    step()
        found.append(step())
    assert np.allclose(*found, atol=1e-5)


def test_another_turn_than_the_one_that_was_answered_is_refused() -> None:
    number = iter(range(9))
    failing = once(raises)
    venv = vector(lambda: Script([failing if next(number) else MORE, MORE]), 2)
    venv.reset(seed=0)
    full, mask = np.array([[7, EOS], [7, EOS]]), np.ones((2, 2), dtype=bool)
    with pytest.raises(UserError, match="row 1"):
        venv.step_sequence(full, mask)
    with pytest.raises(UserError, match="the world of row 0 has answered the turn"):
        venv.step_sequence(np.array([[8, EOS], [7, EOS]]), mask)
    venv.reset(options={"reset_mask": np.array([True, False])})
    venv.step_sequence(np.array([[8, EOS], [7, EOS]]), mask)
    assert venv.core.turn.tolist() == [1, 1]


@pytest.mark.parametrize("by_sequence", [False, True])
def test_masked_failures_truncate_their_row_alone(by_sequence: bool) -> None:
    number = iter(range(9))
    paid = ("more\n", 0.25, False, False, {})

    def make() -> Script:
        return Script([paid, raises_on_turn] if next(number) == 1 else [paid, DONE])

    def raises_on_turn(turn: str) -> None:
        raise ValueError

    venv = vector(make, 3, on_world_error="mask", kl_coef=0.0, autoreset_mode="Disabled")
    venv.reset(seed=0)
    venv.step(ENDS)
    if by_sequence:
        ones = np.ones((3, 1), dtype=bool)
        rewards, infos = venv.step_sequence(ENDS[:, None], ones)
        rewards, terminated, truncated = rewards[:, 0], infos["terminated"], infos["truncated"]
    else:
        _, rewards, terminated, truncated, infos = venv.step(ENDS)
        assert infos["_score"].tolist() == [True, False, True]
    assert rewards.tolist() == [1.0, 0.0, 1.0]
    assert terminated.tolist() == [True, False, True]
    assert truncated.tolist() == [False, True, False]
    assert infos["score"].tolist()[::2] == [1.25, 1.25]
    assert np.isnan(infos["score"][1])
    assert infos["finish_reason"].tolist() == ["world", "world_error", "world"]
    venv.reset()
    assert venv.core.running.all()


def test_a_world_that_is_late_is_replaced() -> None:
    made: list[Script] = []

    def make() -> Script:
        made.append(Script([lambda turn: time.sleep(30)] if not made else [DONE]))
        return made[-1]

    env = single(make, world_timeout=0.2)
    env.reset(seed=0)
    began = time.monotonic()
    with pytest.raises(UserError, match="world_timeout=0.2 s; reset the row"):
        env.step(EOS)
    assert time.monotonic() - began < 5
    assert len(made) == 2
    env.reset()
    assert env.step(EOS)[2]


RESETS = {
    "raises": (lambda world: raises(), r"raised ZeroDivisionError"),
    "hangs": (lambda world: time.sleep(30), r"took longer than world_timeout"),
    "not a text": (lambda world: (None, {}), r"expected \(text, info\)"),
    "empty": (" \n", r"returned an empty text"),
    "no info": (lambda world: ("go", None), r"returned the info None"),
    "half a character": ("a\udfff", r"half a|surrogate|character"),
    "too long": ("x" * 100, r"has 101 tokens, max_prompt_tokens is 64"),
}


@pytest.mark.parametrize("name", list(RESETS))
def test_a_reset_that_fails_names_row_and_world_and_may_be_tried_again(name: str) -> None:
    first, message = RESETS[name]
    number, bad = iter(range(9)), [True]

    def make() -> Script:
        next(number)
        world = Script()
        row = len(worlds)
        if row == 1:
            world.first = lambda own: (first(own) if callable(first) else first) if bad else "go"
        worlds.append(world)
        return world

    worlds: list[Script] = []
    venv = vector(make, 2, world_timeout=0.2 if name == "hangs" else 0.0)
    with pytest.raises(UserError, match=message) as caught:
        venv.reset(seed=0)
    assert "row 1" in str(caught.value)
    assert "Script" in str(caught.value)
    with pytest.raises(UserError, match="row 1 has not begun"):
        venv.step(ENDS[:2])
    assert venv.core.turn.tolist() == [0, 0]  # row 0 has not been stepped either
    bad.clear()
    venv.reset(seed=0)
    venv.step(ENDS[:2])
    assert venv.core.turn.tolist() == [1, 1]


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_a_world_that_fails_while_its_row_restarts_costs_no_other_row_its_step(mode: str) -> None:
    bad: list[bool] = []
    worlds = iter([scripted(DONE, first=lambda own: raises() if bad else "go\n"), scripted(MORE)])
    venv = vector(lambda: next(worlds)(), 2, autoreset_mode=mode)
    venv.reset(seed=0)
    if mode == "NextStep":
        venv.step(ENDS[:2])
    bad.append(True)
    turns = venv.core.turn[1]
    _, rewards, terminated, _, infos = venv.step(ENDS[:2])
    assert venv.core.turn[1] == turns + 1  # the other row has had its turn
    assert infos["reply"][1] == "more\n"
    assert rewards[1] == pytest.approx(0.1 * infos["ref_logprob"][1])
    assert terminated.tolist() == [mode == "SameStep", False]
    if mode == "SameStep":
        assert infos["final_info"]["score"][0] == 1.0
        assert rewards[0] == pytest.approx(1.0 + 0.1 * infos["ref_logprob"][0])
    for call in (lambda: venv.step(ENDS[:2]), lambda: venv.step_sequence(*np.ones((2, 2, 1), int))):
        with pytest.raises(UserError, match=r"^row 0, reset of Script.* raised Zero.*reset_mask"):
            call()
    row = np.array([True, False])
    with pytest.raises(UserError, match="row 0, reset of Script"):
        venv.reset(options={"reset_mask": row})
    with pytest.raises(UserError, match="no new episode has begun in row 0"):
        venv.step(ENDS[:2])
    bad.clear()
    venv.reset(options={"reset_mask": row})
    venv.step(ENDS[:2])
    assert venv.core.turn[1] == turns + 2


def test_a_template_that_refuses_a_reply_takes_the_turn_back(monkeypatch) -> None:
    env = single(scripted(MORE))
    env.reset(seed=0)

    def refuses(*arguments: object) -> None:
        raise UserError("no such role")

    with monkeypatch.context() as patch:
        patch.setattr(WorldTexts, "reply", refuses)
        with pytest.raises(UserError, match="no such role"):
            env.step(EOS)
    world = env.unwrapped.core.worlds._worlds[0]
    env.step(EOS)
    assert world.calls[1:] == [""]  # the world has taken the turn once


def test_worlds_that_cannot_serve_several_rows_are_refused() -> None:
    world = Script()
    with pytest.raises(UserError, match="one environment and there are 2 rows"):
        vector(world, 2)
    with pytest.raises(UserError, match="one and the same world for several rows"):
        vector(lambda: world, 2)
    with pytest.raises(UserError, match="one and the same world for several rows"):
        vector(lambda: gym.wrappers.TimeLimit(world, 3), 2)
    vector(world, 1).reset()
