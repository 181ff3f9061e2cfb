"""How far a reader walks through one PPO iteration (ADR 11 and 12)."""

from walk import walk


def test_an_iteration_enters_few_files_and_calls_back_up_rarely() -> None:
    entered, calls, ups = walk()
    assert 16 <= len(entered) <= 25, sorted(entered)  # fewer than 16: it has not looked
    assert len(calls) >= 40
    assert len(ups) <= 6, ups
