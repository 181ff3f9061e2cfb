"""The best score that any policy can have at a KL, estimated from samples of the reference.

With N samples y_i of the reference for a prompt, the optimal policy at temperature t weighs them
w_i ~ exp(score_i / t) (self-normalised importance weights); its score is sum w_i score_i and its
KL is log N - H(w). One t for all prompts gives the frontier of mean score against mean KL. No
estimate from N samples reaches a KL beyond log N, and near it the best sample stands for the whole
tail, so the curve is trusted up to log N - 2 only.
"""

import math
from dataclasses import dataclass

import numpy as np

MARGIN = 2.0
"""Nats below log N up to which the estimate counts as sound."""


@dataclass(frozen=True, kw_only=True)
class Frontier:
    """Mean score against mean KL, both rising."""

    kl: np.ndarray
    """Nats a sequence, [K]."""
    score: np.ndarray
    """[K]."""
    sound_up_to: float
    """The KL up to which the estimate is trusted, nats."""

    def score_at(self, kl: float) -> float:
        """Return the best score at this KL."""
        return float(np.interp(max(kl, 0.0), self.kl, self.score))

    def share(self, score: float, kl: float) -> float:
        """Return which part of the possible gain over the reference a policy has, at its KL.

        NaN at a KL below 0.5 nats, where both gains drown in noise.
        """
        if kl < 0.5:
            return math.nan
        start = float(self.score[0])
        return (score - start) / max(self.score_at(kl) - start, 1e-9)


def estimate_frontier(scores: np.ndarray) -> Frontier:
    """Return the frontier from reference samples' scores [P N].

    >>> found = estimate_frontier(np.random.default_rng(0).normal(size=(8, 20_000)))
    >>> abs(found.score_at(1.0) - math.sqrt(2.0)) < 0.05  # a Gaussian score gains sqrt(2 KL)
    True
    """
    return mean_frontier(*prompt_frontiers(scores), count=scores.shape[1])


def prompt_frontiers(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each prompt's KL and score at falling temperatures, both [K P], from scores [P N]."""
    count = scores.shape[1]
    kls, means = [np.zeros(len(scores))], [scores.mean(1)]
    for temperature in np.geomspace(20.0, 0.02, 200):
        logits = scores / temperature
        logits = logits - logits.max(1, keepdims=True)
        weights = np.exp(logits)
        weights /= weights.sum(1, keepdims=True)
        entropy = -(weights * np.log(np.maximum(weights, 1e-300))).sum(1)
        kls.append(math.log(count) - entropy)
        means.append((weights * scores).sum(1))
    return np.array(kls), np.array(means)


def mean_frontier(kls: np.ndarray, means: np.ndarray, count: int) -> Frontier:
    """Return the frontier of some prompts' mean KL and score, each [K P], of `count` samples."""
    return Frontier(kl=kls.mean(1), score=means.mean(1), sound_up_to=math.log(count) - MARGIN)


def best_of_n_chances(total: int, n: int) -> np.ndarray:
    """Return the probability that each of N samples, worst first, is the best of n of them, [N].

    The i-th smallest of N samples is the best of n with probability C(i-1, n-1) / C(N, n).

    >>> best_of_n_chances(3, 2).round(4).tolist()  # of 3 pairs the middle one wins 1, the best 2
    [0.0, 0.3333, 0.6667]
    """
    return np.array([math.comb(i, n - 1) / math.comb(total, n) for i in range(total)])


def best_of_n_scores(scores: np.ndarray, n: int) -> np.ndarray:
    """Return the expected best of n of each prompt's samples without replacement, [P].

    >>> best_of_n_scores(np.array([[1.0, 2.0, 3.0]]), 2).round(4).tolist()  # (2 + 3 + 3) / 3
    [2.6667]
    """
    result: np.ndarray = np.sort(scores, axis=1) @ best_of_n_chances(scores.shape[1], n)
    return result
