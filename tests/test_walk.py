"""How far a reader walks through one PPO iteration."""

from walk import walk


def test_an_iteration_calls_back_up_rarely() -> None:
    entered, calls, ups = walk()
    assert len(entered) >= 20  # it has looked
    assert len(calls) >= 40
    assert len(ups) <= 8, ups
