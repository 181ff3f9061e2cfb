"""One answer: normal form, refusals, shown order and back; agreement by hand-worked numbers."""

import itertools

import numpy as np
import pytest

from textrl.labels.agreement import (
    Agreement,
    fractional_ranks,
    kendall_tau_b,
    krippendorff_alpha,
    pair_agreement,
    task_agreement,
)
from textrl.labels.answers import InvalidAnswerError, Submission


def test_the_normal_form() -> None:
    given = Submission(ranks=[5, 2, 5], demonstration="  ", flags=["unclear", "harmful", "unclear"])
    checked = given.checked(3)
    assert checked.ranks == [1, 0, 1]
    assert checked.demonstration is None
    assert checked.flags == ["harmful", "unclear"]


@pytest.mark.parametrize(
    ("submission", "outputs", "words"),
    [
        (Submission(), 4, "expected a rank for each of the 4"),
        (Submission(ranks=[0, 1]), 4, "got 2"),
        (Submission(ranks=[0, -1]), 2, "0 (best) and above"),
        (Submission(ranks=[0, 1], rating=8), 2, "from 1 to 7"),
        (Submission(ranks=[0, 1], flags=["ugly"]), 2, "'ugly'"),
        (Submission(skip_reason="  "), 2, "needs a reason"),
        (Submission(demonstration=" \n"), 0, "there is none"),
        (Submission(demonstration="a\x00b"), 0, "cannot be stored"),
        (Submission(demonstration="\ud800"), 0, "cannot be stored"),
        (Submission(demonstration="x" * 100_001), 0, "longer"),
        (Submission(skip_reason="x" * 2_001), 0, "longer"),
    ],
)
def test_refusals(submission: Submission, outputs: int, words: str) -> None:
    with pytest.raises(InvalidAnswerError, match=words.replace("(", r"\(").replace(")", r"\)")):
        submission.checked(outputs)


def test_shown_order_and_back() -> None:
    for order in itertools.permutations(range(4)):
        shown = Submission(ranks=[0, 2, 1, 1])
        stored = shown.unshuffled(order)
        assert stored.ranks is not None
        for place, index in enumerate(order):
            assert stored.ranks[index] == [0, 2, 1, 1][place]
        assert stored.shuffled(order) == shown


def test_agreement_by_hand() -> None:
    # pairs (0,1) (0,2) (1,2): a says <, <, <; b says <, =, >: one of three alike
    assert pair_agreement([0, 1, 2], [0, 1, 0]) == pytest.approx(1 / 3)
    assert kendall_tau_b([0, 1, 2], [2, 1, 0]) == -1
    # concordant 2, discordant 0, a has no ties, b one: 2 / sqrt(3 * 2)
    assert kendall_tau_b([0, 1, 2], [0, 1, 1]) == pytest.approx(2 / 6**0.5)
    assert kendall_tau_b([0, 0], [0, 1]) is None
    assert fractional_ranks([2, 0, 0, 1]) == [3.0, 0.5, 0.5, 2.0]
    assert task_agreement([[0, 1]]) is None
    assert task_agreement([[0, 1], [0, 1], [1, 0]]) == pytest.approx(1 / 3)


def test_alpha_by_hand() -> None:
    # values 1, 2, 3 occur 3, 2, 3 times, so their middles lie at 1.5, 4, 6.5. The unit (1, 3)
    # alone disagrees: 2 * 5^2 / 8 observed; expected 2 (3*2*2.5^2 + 3*3*5^2 + 2*3*2.5^2) / (8*7)
    assert krippendorff_alpha([[1, 1], [2, 2], [3, 3], [1, 3]]) == pytest.approx(
        1 - (50 / 8) / (600 / 56)
    )
    assert krippendorff_alpha([[1, 2], [3]]) == 0.0  # as bad as chance with two values
    assert krippendorff_alpha([[1, 1], [1, 1]]) is None
    assert krippendorff_alpha([[1], [2]]) is None


def test_alpha_against_a_slow_reference() -> None:
    rng = np.random.default_rng(0)
    units = [rng.integers(0, 4, size=rng.integers(1, 5)).tolist() for _ in range(30)]
    paired = [unit for unit in units if len(unit) > 1]
    values = sorted({value for unit in paired for value in unit})
    coincidences = np.zeros((len(values), len(values)))
    for unit in paired:
        for a, b in itertools.permutations(range(len(unit)), 2):
            i, j = values.index(unit[a]), values.index(unit[b])
            coincidences[i, j] += 1 / (len(unit) - 1)
    n = coincidences.sum(1)
    delta = np.zeros_like(coincidences)
    for c in range(len(values)):
        for k in range(len(values)):
            low, high = min(c, k), max(c, k)
            delta[c, k] = (n[low : high + 1].sum() - (n[c] + n[k]) / 2) ** 2
    observed = (coincidences * delta).sum()
    expected = (np.outer(n, n) * delta).sum() / (n.sum() - 1)
    assert krippendorff_alpha(units) == pytest.approx(1 - observed / expected)


def test_the_summary_counts_only_tasks_with_two() -> None:
    tasks = [[[0, 1, 2]], [[0, 1, 2], [0, 1, 2]], [[0, 1], [1, 0]]]
    found = Agreement.total(map(Agreement.of, tasks)).summary()
    assert found["tasks"] == 2
    assert found["pairwise"] == pytest.approx(3 / 4)  # three pairs alike, one not
    assert found["tau_b"] == 0
    assert Agreement.total([]).summary() == {
        "tasks": 0,
        "pairwise": None,
        "tau_b": None,
        "alpha": None,
    }
