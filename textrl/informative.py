"""`most_informative`: which pairs of texts people should compare next.

A label of a pair tells a Bradley-Terry model about the direction in which the states of its two
texts differ, the more the less certain the model is of the answer. Those labels are wanted after
which the model is surest about all pairs: with the least mean variance of their margins, where the
variance comes from the last layer's Fisher information (an I-optimal design, as BAIT, 2106.09675;
2502.04354 compares such designs for reward models). Unlike the largest determinant, this does not
run after texts that are like no others. Pairs are taken one after another, each with the largest
gain after those before it, so that no two ask the same question.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

PRIOR = 3.0
"""Information that is there before the first label, in every direction of the scaled states."""


def most_informative(
    differences: Tensor,
    margins: Tensor,
    known: Tensor,
    known_margins: Tensor,
    count: int,
    prompts: Sequence[int],
) -> list[int]:
    """Return the indices of the pairs whose labels tell most, the best first.

    Args:
        differences: First text's state minus the second's, for each pair, float [N H].
        margins: First text's score minus the second's, in the units of the Bradley-Terry model
            (logits), float [N].
        known: The differences of the pairs that are labelled, float [M H].
        known_margins: Their margins, float [M].
        count: How many to take; fewer if there are fewer prompts.
        prompts: The number of each pair's prompt, of length N; at most one pair of each is taken.
    """
    wanted, told = differences.double(), known.double()
    scale = wanted.square().sum(1).mean().sqrt().clamp_min(1e-12)
    wanted, told = wanted / scale, told / scale
    weights, known_weights = _variance(margins), _variance(known_margins)
    information = PRIOR * torch.eye(wanted.shape[1], dtype=torch.float64, device=wanted.device)
    information += told.T @ (told * known_weights.unsqueeze(1))
    inverse = torch.linalg.inv(information)
    everywhere = wanted.T @ wanted / len(wanted)
    own = ((wanted @ inverse) * wanted).sum(1)  # variance of each pair's margin
    shared = ((wanted @ inverse @ everywhere @ inverse) * wanted).sum(1)  # mean squared covariance
    of_prompt = torch.as_tensor(prompts, device=wanted.device)
    free = torch.ones(len(wanted), dtype=torch.bool, device=wanted.device)
    taken: list[int] = []
    while len(taken) < count and free.any():
        gains = weights * shared / (1 + weights * own)  # how far a label lowers the mean variance
        best = int(gains.masked_fill(~free, -torch.inf).argmax())
        taken.append(best)
        free &= of_prompt != of_prompt[best]
        step = inverse @ wanted[best]  # Sherman-Morrison: the inverse with this pair's label
        share = weights[best] / (1 + weights[best] * own[best])
        spread = everywhere @ step
        along, across = wanted @ step, wanted @ (inverse @ spread)
        shared = shared - 2 * share * along * across + share**2 * (step @ spread) * along.square()
        own = own - share * along.square()
        inverse = inverse - share * torch.outer(step, step)
    return taken


def _variance(margins: Tensor) -> Tensor:
    """Return p (1 - p) of the answers to pairs with these margins."""
    chance = margins.double().sigmoid()
    return chance * (1 - chance)
