"""Measures of agreement between labelers: pairwise rate, Kendall's tau-b, Krippendorff's alpha.

They are pure functions of rankings, in which 0 is best and equal ranks are ties. All rankings of a
task have the same length and list the same outputs in the same order.
"""

import itertools
import math
import operator
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

Ranks = Sequence[int]


def signs(ranks: Ranks) -> list[int]:
    """Return for each pair of outputs (i, j), i < j, the sign of the difference of their ranks.

    >>> signs([0, 2, 2])  # 0 is before 1 and before 2, which are tied
    [-1, -1, 0]
    """
    return [(a > b) - (a < b) for a, b in itertools.combinations(ranks, 2)]


def pair_agreement(a: Ranks, b: Ranks) -> float:
    """Return the share of pairs of outputs that two labelers order alike; ties must match too.

    >>> pair_agreement([0, 1, 2], [0, 2, 1])
    0.6666666666666666
    """
    return _alike(signs(a), signs(b)) / math.comb(len(a), 2)


def _alike(a: Sequence[int], b: Sequence[int]) -> int:
    """Return the number of equal signs."""
    return sum(map(operator.eq, a, b))


def kendall_tau_b(a: Ranks, b: Ranks) -> float | None:
    """Return Kendall's tau-b: (concordant - discordant) / sqrt((n0 - ties a) (n0 - ties b)).

    The result is None if one of the rankings consists of ties only (0 / 0). Source: Kendall 1945,
    Biometrika 33.

    >>> kendall_tau_b([0, 1, 2, 3], [0, 1, 3, 2])
    0.6666666666666666
    """
    return _tau_b(signs(a), signs(b))


def _tau_b(a: Sequence[int], b: Sequence[int]) -> float | None:
    """Return tau-b of the signs of two rankings."""
    free = (len(a) - a.count(0)) * (len(b) - b.count(0))
    return sum(map(operator.mul, a, b)) / math.sqrt(free) if free else None


def fractional_ranks(ranks: Ranks) -> list[float]:
    """Return ranks in which tied outputs get the mean of the places that they take.

    >>> fractional_ranks([0, 1, 1, 2])
    [0.0, 1.5, 1.5, 3.0]
    """
    counts = Counter(ranks)
    below = {rank: sum(n for other, n in counts.items() if other < rank) for rank in counts}
    return [below[rank] + (counts[rank] - 1) / 2 for rank in ranks]


def krippendorff_alpha(units: Iterable[Sequence[float]]) -> float | None:
    """Return Krippendorff's alpha for ordinal values: 1 - observed / expected disagreement.

    Args:
        units: For each judged unit, the values that labelers gave it. The number of labelers may
            differ; units with fewer than two values are ignored.

    Returns: 1 for full agreement, 0 for chance agreement; None if there are no two values to
        compare or all values are equal.

    Source: Krippendorff 2011, "Computing Krippendorff's alpha-reliability", ordinal metric:
    delta(c, k)^2 = (sum of n_g for g from c to k - (n_c + n_k) / 2)^2.

    >>> round(krippendorff_alpha([[1, 1], [2, 2], [3, 3], [1, 3]]), 4)
    0.4167
    """
    return _alpha(*_coincidences(units))


Totals = Mapping[float, int]
"""How often each value was given, in units with two values or more."""
Apart = Mapping[tuple[float, float], float]
"""For two different values of one unit, the smaller first: how often they met, each time over the
number of the unit's values less one."""


def _coincidences(units: Iterable[Sequence[float]]) -> tuple[Totals, Apart]:
    """Return what alpha needs to know of some units; it can be added up."""
    totals: Counter[float] = Counter()
    apart: dict[tuple[float, float], float] = defaultdict(float)
    for unit in units:
        if len(unit) < 2:
            continue
        totals.update(unit)
        for a, b in itertools.combinations(sorted(unit), 2):
            if a != b:
                apart[a, b] += 2 / (len(unit) - 1)
    return totals, apart


def _alpha(totals: Totals, apart: Apart) -> float | None:
    """Return Krippendorff's alpha; None if there are no two different values."""
    if len(totals) < 2:
        return None
    place, reached = {}, 0.0  # delta is the distance between the midpoints of two values' counts
    for value in sorted(totals):
        place[value] = reached + totals[value] / 2
        reached += totals[value]
    count = sum(totals.values())
    observed = sum(times * (place[a] - place[b]) ** 2 for (a, b), times in apart.items())
    expected = sum(
        totals[a] * totals[b] * (place[a] - place[b]) ** 2
        for a, b in itertools.permutations(totals, 2)
    )
    return 1 - (observed / count) / (expected / (count * (count - 1)))


def pair_rates(rankings: Sequence[Ranks]) -> list[tuple[int, int, float]]:
    """Return each two labelers of a task, by their places in the list, with their agreement."""
    all_signs = [signs(ranks) for ranks in rankings]
    return [
        (i, j, _alike(all_signs[i], all_signs[j]) / len(all_signs[i]))
        for i, j in itertools.combinations(range(len(rankings)), 2)
    ]


def task_agreement(rankings: Sequence[Ranks]) -> float | None:
    """Return the mean agreement over pairs of labelers of one task, or None below two labelers."""
    rates = [rate for *_, rate in pair_rates(rankings)]
    return sum(rates) / len(rates) if rates else None


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """The agreement of labelers over some tasks, as numbers that can be added up."""

    tasks: int
    """The number of tasks with two labelers or more."""
    alike: int
    """Over pairs of labelers: the pairs of outputs that both order alike."""
    pairs: int
    """Over pairs of labelers: the pairs of outputs."""
    tau_sum: float
    taus: int
    """The number of pairs of labelers whose tau-b is defined."""
    totals: Totals
    apart: Apart

    @staticmethod
    def of(rankings: Sequence[Ranks]) -> "Agreement":
        """Compare the rankings of one task."""
        all_signs = [signs(ranks) for ranks in rankings]
        two = list(itertools.combinations(all_signs, 2))
        taus = [tau for a, b in two if (tau := _tau_b(a, b)) is not None]
        totals, apart = _coincidences(zip(*map(fractional_ranks, rankings), strict=True))
        return Agreement(
            tasks=int(len(rankings) >= 2),
            alike=sum(_alike(a, b) for a, b in two),
            pairs=sum(len(a) for a, _ in two),
            tau_sum=sum(taus),
            taus=len(taus),
            totals=totals,
            apart=apart,
        )

    @staticmethod
    def total(parts: Iterable["Agreement"]) -> "Agreement":
        """Return the agreement over the tasks of all parts."""
        some = list(parts)
        totals: Counter[float] = Counter()
        apart: dict[tuple[float, float], float] = defaultdict(float)
        for part in some:
            totals.update(part.totals)
            for values, times in part.apart.items():
                apart[values] += times
        return Agreement(
            tasks=sum(part.tasks for part in some),
            alike=sum(part.alike for part in some),
            pairs=sum(part.pairs for part in some),
            tau_sum=sum(part.tau_sum for part in some),
            taus=sum(part.taus for part in some),
            totals=totals,
            apart=apart,
        )

    def summary(self) -> dict[str, float | int | None]:
        """Return what the lead sees.

        Returns: `pairwise` (share of pairs of outputs, over all pairs of labelers), `tau_b` (mean
            over pairs of labelers), `alpha` (units are outputs, values their fractional ranks), and
            `tasks` (number of tasks with two labelers or more).
        """
        return {
            "tasks": self.tasks,
            "pairwise": self.alike / self.pairs if self.pairs else None,
            "tau_b": self.tau_sum / self.taus if self.taus else None,
            "alpha": _alpha(self.totals, self.apart),
        }
