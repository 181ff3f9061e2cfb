"""Preference losses on pairs of completions: DPO and its variants, one table entry per formula.

They are pure functions of log-probs summed over a completion. `dpo_loss` checks its arguments and
looks up the loss in the table; a mix of losses is their weighted sum. Next to read:
`trainers/dpo.py`, `agents/online_dpo.py`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from textrl.errors import did_you_mean
from textrl.loss_names import SMOOTHED_LOSSES, loss_weights
from textrl.masking import check_shapes, full_precision


@dataclass(frozen=True, kw_only=True)
class PreferenceBatch:
    """Some pairs as input of a loss; h is log pi - log pi_ref of a whole completion, in nats."""

    chosen: Tensor
    """log pi of the chosen completion, [B]."""
    rejected: Tensor
    """log pi of the rejected completion, [B]."""
    h_chosen: Tensor
    """h of the chosen completion, [B]."""
    h_rejected: Tensor
    """h of the rejected completion, [B]."""
    chosen_lengths: Tensor
    """Number of tokens of the chosen completion, [B]."""
    rejected_lengths: Tensor
    """Number of tokens of the rejected completion, [B]."""
    kl: Tensor
    """Estimate of KL(pi || pi_ref) in nats per sequence, a scalar >= 0, without gradient."""


@dataclass(frozen=True)
class PreferenceSettings:
    """The hyper-parameters of a preference loss."""

    beta: float
    """Strength of the regularisation towards the reference; ORPO's lambda."""
    label_smoothing: float | Tensor
    """Assumed share of flipped labels, in [0, 0.5). "sigmoid" and "cdpo", which are the same
    function, also accept one number per pair: the share of raters who preferred the rejected
    completion, in [0, 1]. Shape [B]."""
    simpo_margin: float
    """SimPO's gamma divided by beta, in nats per token."""


PreferenceLoss = Callable[[PreferenceBatch, PreferenceSettings], Tensor]
"""A function from (pairs, settings) to one loss per pair, [B]."""


def _sigmoid(pairs: PreferenceBatch, settings: PreferenceSettings) -> Tensor:
    """Return DPO's loss, 2305.18290 eq. 7; with label smoothing, cDPO (authors' note, eq. 3)."""
    logits = settings.beta * (pairs.h_chosen - pairs.h_rejected)
    flipped = settings.label_smoothing
    return -(1 - flipped) * logsigmoid(logits) - flipped * logsigmoid(-logits)


def _robust(pairs: PreferenceBatch, settings: PreferenceSettings) -> Tensor:
    """Return robust DPO's loss, 2403.00409 eq. 10.

    It is unbiased if a known share of the labels is flipped.
    """
    logits = settings.beta * (pairs.h_chosen - pairs.h_rejected)
    flipped = settings.label_smoothing
    kept = -(1 - flipped) * logsigmoid(logits) + flipped * logsigmoid(-logits)
    return kept / (1 - 2 * flipped)


def _ipo(pairs: PreferenceBatch, settings: PreferenceSettings) -> Tensor:
    """Return IPO's loss, 2310.12036 eq. 17, on summed log-probs as in the paper."""
    return (pairs.h_chosen - pairs.h_rejected - 1 / (2 * settings.beta)).square()


def _hinge(pairs: PreferenceBatch, settings: PreferenceSettings) -> Tensor:
    """Return SLiC's hinge loss (2305.10425) in DPO's variables."""
    return (1 - settings.beta * (pairs.h_chosen - pairs.h_rejected)).relu()


def _simpo(pairs: PreferenceBatch, settings: PreferenceSettings) -> Tensor:
    """Return SimPO's loss, 2405.14734 eq. 6: token means, no reference; gamma = beta * margin."""
    means = pairs.chosen / pairs.chosen_lengths - pairs.rejected / pairs.rejected_lengths
    return -logsigmoid(settings.beta * (means - settings.simpo_margin))


def _orpo(pairs: PreferenceBatch, settings: PreferenceSettings) -> Tensor:
    """Return ORPO's loss, 2403.07691 eqs. 6 and 7.

    It is SFT on the chosen completion, plus beta (ORPO's lambda) times the odds-ratio loss.
    """

    def log_odds(mean: Tensor) -> Tensor:
        mean = mean.clamp_max(-1e-6)  # a certain completion has infinite odds
        return mean - (-torch.expm1(mean)).log()

    chosen = pairs.chosen / pairs.chosen_lengths
    rejected = pairs.rejected / pairs.rejected_lengths
    return -chosen - settings.beta * logsigmoid(log_odds(chosen) - log_odds(rejected))


def _kto(pairs: PreferenceBatch, settings: PreferenceSettings) -> Tensor:
    """Return KTO's loss, 2402.01306 eq. 8, with lambda = 1.

    The chosen completion is a desirable example and the rejected one an undesirable example. The
    losses of both are added. With kl = 0 this is apo_zero.
    """
    beta, kl = settings.beta, pairs.kl
    desirable = (beta * (pairs.h_chosen - kl)).sigmoid()
    undesirable = (beta * (kl - pairs.h_rejected)).sigmoid()
    return 2 - desirable - undesirable


def _apo_zero(pairs: PreferenceBatch, settings: PreferenceSettings) -> Tensor:
    """Return APO-zero's loss, 2408.06266 section 3.

    It raises the likelihood of the chosen completion and lowers that of the rejected one.
    """
    beta = settings.beta
    return 1 - (beta * pairs.h_chosen).sigmoid() + (beta * pairs.h_rejected).sigmoid()


def _sft(pairs: PreferenceBatch, settings: PreferenceSettings) -> Tensor:
    """Return the chosen completion's negative log-likelihood, in nats per token."""
    return -pairs.chosen / pairs.chosen_lengths


PREFERENCE_LOSSES: dict[str, PreferenceLoss] = {
    "sigmoid": _sigmoid,
    "cdpo": _sigmoid,
    "robust": _robust,
    "ipo": _ipo,
    "hinge": _hinge,
    "simpo": _simpo,
    "orpo": _orpo,
    "kto": _kto,
    "apo_zero": _apo_zero,
    "sft": _sft,
}
"""The losses by their names, which `loss_type` takes; each returns one loss per pair, [B]."""


def dpo_loss(
    chosen_logprobs: Tensor,
    rejected_logprobs: Tensor,
    ref_chosen_logprobs: Tensor,
    ref_rejected_logprobs: Tensor,
    *,
    beta: float = 0.1,
    loss_type: str | dict[str, float] = "sigmoid",
    label_smoothing: float | Tensor = 0.0,
    chosen_lengths: Tensor | None = None,
    rejected_lengths: Tensor | None = None,
    kl: Tensor | None = None,
    simpo_margin: float = 0.5,
) -> Tensor:
    """Return the preference loss of each pair, from log-probs summed over the completion.

        h    = (log pi - log pi_ref)(chosen) - (log pi - log pi_ref)(rejected)
        loss = -log sigmoid(beta * h)                    "sigmoid"; the others in PREFERENCE_LOSSES

    Source: Rafailov et al. 2023, 2305.18290, eq. 7.

    Args:
        chosen_logprobs: The policy's log-probs of chosen completions, in nats. Shape [B].
        rejected_logprobs: The policy's log-probs of rejected completions. Shape [B].
        ref_chosen_logprobs: The reference's log-probs of chosen completions. Shape [B].
        ref_rejected_logprobs: The reference's log-probs of rejected completions. Shape [B].
        beta: See `PreferenceSettings`; > 0.
        loss_type: A key of PREFERENCE_LOSSES, or several with their weights: {"sft": 0.2, ...}.
        label_smoothing: See `PreferenceSettings`; for "sigmoid", "cdpo" and "robust" only.
        chosen_lengths: Tokens of chosen completions, [B], for "simpo", "orpo", "sft"; None = 1.
        rejected_lengths: Tokens of rejected completions, [B], for the same losses; None = 1.
        kl: Estimate of KL(pi || pi_ref) for "kto", nats per sequence; None or below 0 means 0.
        simpo_margin: See `PreferenceSettings`.

    Returns: Shape [B].

    Raises:
        ValueError: shapes differ (both named), loss_type is unknown, or a number is out of range.

    >>> round(dpo_loss(*torch.zeros(4, 1)).item(), 4)  # pi = pi_ref: log 2
    0.6931
    """
    mix = loss_weights(loss_type)
    _check_settings(mix, beta, label_smoothing)
    logprobs = (chosen_logprobs, rejected_logprobs, ref_chosen_logprobs, ref_rejected_logprobs)
    pairs = _batch(logprobs, (chosen_lengths, rejected_lengths), label_smoothing, kl)
    settings = PreferenceSettings(beta, label_smoothing, simpo_margin)
    terms = [weight * PREFERENCE_LOSSES[name](pairs, settings) for name, weight in mix.items()]
    return torch.stack(terms).sum(0)


def _batch(
    logprobs: tuple[Tensor, Tensor, Tensor, Tensor],
    lengths: tuple[Tensor | None, Tensor | None],
    label_smoothing: float | Tensor,
    kl: Tensor | None,
) -> PreferenceBatch:
    """Check the shapes, with names for the messages, and return the pairs in full precision."""
    ones = torch.ones_like(logprobs[0])
    chosen_lengths, rejected_lengths = (ones if given is None else given for given in lengths)
    names = ("chosen_logprobs", "rejected_logprobs", "ref_chosen_logprobs", "ref_rejected_logprobs")
    check_shapes(
        **dict(zip(names, logprobs, strict=True)),
        chosen_lengths=chosen_lengths,
        rejected_lengths=rejected_lengths,
        **({"label_smoothing": label_smoothing} if isinstance(label_smoothing, Tensor) else {}),
    )
    chosen, rejected, ref_chosen, ref_rejected = map(full_precision, logprobs)
    return PreferenceBatch(
        chosen=chosen,
        rejected=rejected,
        h_chosen=chosen - ref_chosen,
        h_rejected=rejected - ref_rejected,
        chosen_lengths=chosen_lengths,
        rejected_lengths=rejected_lengths,
        kl=torch.zeros_like(chosen[:1]).sum() if kl is None else kl.detach().clamp_min(0.0),
    )


def _check_settings(mix: Mapping[str, float], beta: float, label_smoothing: float | Tensor) -> None:
    if not mix:
        raise ValueError("loss_type is an empty mix; give at least one loss and its weight")
    for name in mix:
        if name not in PREFERENCE_LOSSES:
            hint = did_you_mean(name, PREFERENCE_LOSSES)
            raise ValueError(f"unknown loss_type {name!r}{hint}; known: {list(PREFERENCE_LOSSES)}")
        if not 0 < mix[name] < math.inf:
            raise ValueError(f"the weight of {name!r} must be positive, got {mix[name]}")
    if not beta > 0:
        raise ValueError(f"beta must be positive, got {beta}")
    if isinstance(label_smoothing, Tensor):
        if not ((label_smoothing >= 0) & (label_smoothing <= 1)).all():
            raise ValueError("label_smoothing of a pair must be in [0, 1]")
        if "robust" in mix:
            raise ValueError("'robust' takes one label_smoothing for all pairs, not one a pair")
        return
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing must be in [0, 0.5), got {label_smoothing}")
    if label_smoothing and not any(name in SMOOTHED_LOSSES for name in mix):
        raise ValueError(f"label_smoothing has no meaning for loss_type {list(mix)}; set it to 0")
