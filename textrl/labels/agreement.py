"""Measures of agreement between labelers: pairwise rate, Kendall's tau-b, Krippendorff's alpha.

They are pure functions of rankings, in which 0 is best and equal ranks are ties. All rankings of a
task have the same length and list the same outputs in the same order.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence

Ranks = Sequence[int]


def _sign(a: float, b: float) -> int:
    return (a > b) - (a < b)


def pair_agreement(a: Ranks, b: Ranks) -> float:
    """Return the share of pairs of outputs that two labelers order alike; ties must match too.

    >>> pair_agreement([0, 1, 2], [0, 2, 1])
    0.6666666666666666
    """
    pairs = list(itertools.combinations(range(len(a)), 2))
    same = sum(_sign(a[i], a[j]) == _sign(b[i], b[j]) for i, j in pairs)
    return same / len(pairs)


def kendall_tau_b(a: Ranks, b: Ranks) -> float | None:
    """Return Kendall's tau-b: (concordant - discordant) / sqrt((n0 - ties a) (n0 - ties b)).

    The result is None if one of the rankings consists of ties only (0 / 0). Source: Kendall 1945,
    Biometrika 33.

    >>> kendall_tau_b([0, 1, 2, 3], [0, 1, 3, 2])
    0.6666666666666666
    """
    total = free_a = free_b = 0
    for i, j in itertools.combinations(range(len(a)), 2):
        sign_a, sign_b = _sign(a[i], a[j]), _sign(b[i], b[j])
        total += sign_a * sign_b
        free_a += sign_a != 0
        free_b += sign_b != 0
    return total / math.sqrt(free_a * free_b) if free_a and free_b else None


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
    paired = [list(unit) for unit in units if len(unit) >= 2]
    totals = Counter(value for unit in paired for value in unit)
    if len(totals) < 2:
        return None
    place, reached = {}, 0.0  # delta is the distance between the midpoints of two values' counts
    for value in sorted(totals):
        place[value] = reached + totals[value] / 2
        reached += totals[value]
    count = sum(totals.values())
    observed = sum(
        sum((place[a] - place[b]) ** 2 for a, b in itertools.permutations(unit, 2))
        / (len(unit) - 1)
        for unit in paired
    )
    expected = sum(
        totals[a] * totals[b] * (place[a] - place[b]) ** 2
        for a, b in itertools.permutations(totals, 2)
    )
    return 1 - (observed / count) / (expected / (count * (count - 1)))


def task_agreement(rankings: Sequence[Ranks]) -> float | None:
    """Return the mean agreement over pairs of labelers of one task, or None below two labelers."""
    pairs = list(itertools.combinations(rankings, 2))
    return sum(pair_agreement(a, b) for a, b in pairs) / len(pairs) if pairs else None


def summary(tasks: Iterable[Sequence[Ranks]]) -> dict[str, float | int | None]:
    """Return the agreement over tasks, each given by the rankings of its labelers.

    Returns: `pairwise` (share of pairs of outputs, over all pairs of labelers), `tau_b` (mean over
        pairs of labelers), `alpha` (units are outputs, values their fractional ranks), and `tasks`
        (number of tasks with two labelers or more).
    """
    several = [list(rankings) for rankings in tasks if len(rankings) >= 2]
    rate_sum, pair_count, taus = 0.0, 0, []
    for rankings in several:
        for a, b in itertools.combinations(rankings, 2):
            weight = math.comb(len(a), 2)
            rate_sum, pair_count = rate_sum + weight * pair_agreement(a, b), pair_count + weight
            taus.append(kendall_tau_b(a, b))
    defined = [tau for tau in taus if tau is not None]
    units = (
        values
        for rankings in several
        for values in zip(*map(fractional_ranks, rankings), strict=True)
    )
    return {
        "tasks": len(several),
        "pairwise": rate_sum / pair_count if pair_count else None,
        "tau_b": sum(defined) / len(defined) if defined else None,
        "alpha": krippendorff_alpha(units),
    }
