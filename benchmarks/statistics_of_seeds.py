"""Few numbers, honestly summed up: median, interquartile mean, bootstrap interval (2108.13264)."""

from collections.abc import Sequence

import numpy as np


def interquartile_mean(values: Sequence[float]) -> float:
    """Return the mean of the middle half; of 10 values, the middle 6 with the outer two at half.

    >>> interquartile_mean([0.0, 1.0, 2.0, 100.0])
    1.5
    """
    ordered = np.sort(np.asarray(values, dtype=float))
    n = len(ordered)
    # each value covers 1/n of the distribution; what counts is its part within [1/4, 3/4]
    edges = np.arange(n + 1) / n
    inside = np.clip(edges[1:], 0.25, 0.75) - np.clip(edges[:-1], 0.25, 0.75)
    return float((ordered * inside).sum() / inside.sum())


def bootstrap_interval(
    values: Sequence[float], draws: int = 2000, level: float = 0.95
) -> tuple[float, float]:
    """Return the percentile interval of the interquartile mean over resampled seeds."""
    array, rng = np.asarray(values, dtype=float), np.random.default_rng(0)
    means = [interquartile_mean(rng.choice(array, size=len(array))) for _ in range(draws)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def summary(values: Sequence[float]) -> dict[str, float | list[float]]:
    """Return median, interquartile mean, its interval, the worst value and all of them."""
    low, high = bootstrap_interval(values)
    return {
        "median": float(np.median(values)),
        "interquartile_mean": interquartile_mean(values),
        "interval_low": low,
        "interval_high": high,
        "worst": float(np.max(values)),
        "all": [float(value) for value in values],
    }
