"""The sampled and the exact KL in a bandit of one token: equal means, unequal variances."""

import math

import pytest

SCORES, REFERENCE, KL_COEF = (1.0, 0.0), (0.2, 0.8), 1.0


def gradients(p: float) -> dict[str, list[tuple[float, float]]]:
    """Return (probability, gradient in action 0's logit) of each action, baseline = mean.

    pi = (p, 1 - p); d log pi(0) / d logit = 1 - p, d log pi(1) / d logit = -p.
    """
    pi, slope = (p, 1 - p), (1 - p, -p)
    logs = [math.log(pi[a] / REFERENCE[a]) for a in (0, 1)]
    kl_slope = sum(pi[a] * slope[a] * logs[a] for a in (0, 1))
    paid = {
        "sampled": [SCORES[a] - KL_COEF * logs[a] for a in (0, 1)],
        "exact": list(SCORES),
    }
    found = {}
    for name, rewards in paid.items():
        mean = sum(pi[a] * rewards[a] for a in (0, 1))
        own = KL_COEF * kl_slope if name == "exact" else 0.0
        found[name] = [(pi[a], (rewards[a] - mean) * slope[a] - own) for a in (0, 1)]
    return found


def mean_and_variance(points: list[tuple[float, float]]) -> tuple[float, float]:
    mean = sum(weight * x for weight, x in points)
    return mean, sum(weight * (x - mean) ** 2 for weight, x in points)


def policy_at(share: float) -> float:
    """Return pi(0) at this share of the way, in logits, from the reference to the optimum."""
    logit = math.log(REFERENCE[0] / REFERENCE[1]) + share * (SCORES[0] - SCORES[1]) / KL_COEF
    return 1 / (1 + math.exp(-logit))


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_equal_means_and_the_sampled_kl_cancels_the_scores_noise(share: float) -> None:
    found = gradients(policy_at(share))
    sampled, exact = mean_and_variance(found["sampled"]), mean_and_variance(found["exact"])
    assert sampled[0] == pytest.approx(exact[0])
    assert exact[1] > 0.005
    assert sampled[1] == pytest.approx((1 - share) ** 2 * exact[1], abs=1e-12)
