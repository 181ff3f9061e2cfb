import math
from functools import partial
from typing import get_args

import pytest
import reference
import torch

from textrl.loss_names import SMOOTHED_LOSSES, PreferenceLossName
from textrl.losses import (
    PREFERENCE_LOSSES,
    approx_kl,
    bradley_terry_loss,
    dpo_loss,
    plackett_luce_loss,
    ppo_policy_loss,
    ppo_value_loss,
    ranking_loss,
    reinforce_loss,
    sft_loss,
)

MASK = torch.tensor([[True, True, True, False], [True, False, False, False]])


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def counted(x: torch.Tensor) -> list[float]:
    return x[MASK].tolist()


def test_ppo_policy_loss_by_hand() -> None:
    # ratios 1.5, 0.5 at clip 0.2: A=+1 -> min(1.5, 1.2) = 1.2; A=-1 -> min(-.5, -.8) = -.8
    logprobs = torch.tensor([[math.log(1.5), math.log(0.5)]])
    old = torch.zeros(1, 2)
    mask = torch.ones(1, 2, dtype=torch.bool)
    loss = ppo_policy_loss(logprobs, old, torch.tensor([[1.0, -1.0]]), mask)
    assert loss.item() == pytest.approx(-(1.2 - 0.8) / 2)
    # the other way round nothing is clipped: A=-1 at 1.5 -> -1.5; A=+1 at .5 -> .5
    loss = ppo_policy_loss(logprobs, old, torch.tensor([[-1.0, 1.0]]), mask)
    assert loss.item() == pytest.approx(-(-1.5 + 0.5) / 2)


def test_ppo_losses_against_the_slow_reference() -> None:
    new, old, target = (randn(2, 4, seed=s) * 0.3 for s in range(3))
    found = ppo_policy_loss(new, old, target, MASK)
    expected = reference.ppo_loss(counted(new), counted(old), counted(target), 0.2)
    assert found.item() == pytest.approx(expected, abs=1e-12)
    found = ppo_value_loss(new, old, target, MASK)
    expected = reference.value_loss(counted(new), counted(old), counted(target), 0.2)
    assert found.item() == pytest.approx(expected, abs=1e-12)


def test_ppo_at_ratio_1_is_the_policy_gradient() -> None:
    logprobs, advantages = randn(2, 4).requires_grad_(True), randn(2, 4, seed=1)
    ppo_policy_loss(logprobs, logprobs.detach(), advantages, MASK).backward()
    expected = (-advantages / MASK.sum()).masked_fill(~MASK, 0.0)
    assert torch.allclose(logprobs.grad, expected)


def test_ppo_value_loss_by_hand() -> None:
    # V 2, old 0, R 2, eps .2: plain 0, clipped (.2 - 2)^2 = 3.24, half of the larger
    one = torch.ones(1, 1)
    loss = ppo_value_loss(2 * one, 0 * one, 2 * one, one.bool())
    assert loss.item() == pytest.approx(1.62)
    assert ppo_value_loss(2 * one, 0 * one, 2 * one, one.bool(), clip_range_vf=None).item() == 0


def test_approx_kl_by_hand_and_unbiased() -> None:
    d = math.log(2.0)  # pi = 2 pi_old at this token
    new, old = torch.tensor([[d]]), torch.zeros(1, 1)
    mask = torch.ones(1, 1, dtype=torch.bool)
    assert approx_kl(new, old, mask, estimator="k1").item() == pytest.approx(-d)
    assert approx_kl(new, old, mask, estimator="k2").item() == pytest.approx(d * d / 2)
    assert approx_kl(new, old, mask, estimator="k3").item() == pytest.approx(1 - d)
    # exact expectation over pi_old = (.5, .5), pi = (.8, .2): KL = .5 log(.5/.8) + .5 log(.5/.2)
    exact = 0.5 * math.log(0.5 / 0.8) + 0.5 * math.log(0.5 / 0.2)
    new, old = torch.tensor([[0.8, 0.2]]).log(), torch.tensor([[0.5, 0.5]]).log()
    both = torch.ones(1, 2, dtype=torch.bool)
    for estimator in ("k1", "k3"):
        assert approx_kl(new, old, both, estimator=estimator).item() == pytest.approx(exact)


def test_sft_loss_is_the_token_mean() -> None:
    logprobs = torch.tensor([[-1.0, -2.0, -3.0, 7.0], [-6.0, 7.0, 7.0, 7.0]])
    assert sft_loss(logprobs, MASK).item() == 3.0


def test_bradley_terry_by_hand() -> None:
    # -log sigmoid(0) = log 2; a gap of log 3 wins with 3/4; a margin of log 3 takes it back
    gap = torch.tensor([0.0, math.log(3.0), math.log(3.0)])
    margin = torch.tensor([0.0, 0.0, math.log(3.0)])
    found = bradley_terry_loss(gap, torch.zeros(3), margin)
    assert found.tolist() == pytest.approx([math.log(2), -math.log(0.75), math.log(2)])
    assert torch.equal(bradley_terry_loss(gap, torch.zeros(3))[:2], found[:2])


def test_ranking_losses_by_hand() -> None:
    # scores log 1, log 2, log 3 ranked 2, 1, 0: pairs win with 2/3, 3/4, 3/5
    scores = torch.tensor([[0.0, math.log(2.0), math.log(3.0)]])
    ranks = torch.tensor([[2, 1, 0]])
    expected = -(math.log(2 / 3) + math.log(3 / 4) + math.log(3 / 5)) / 3
    assert ranking_loss(scores, ranks).item() == pytest.approx(expected)
    # Plackett-Luce: 3 of (1+2+3), then 2 of (1+2)
    assert plackett_luce_loss(scores, ranks).item() == pytest.approx(
        -math.log(3 / 6) - math.log(2 / 3)
    )


@pytest.mark.parametrize("loss", [ranking_loss, plackett_luce_loss])
def test_ranking_reductions(loss) -> None:
    scores = randn(3, 2)
    ranks = torch.tensor([[0, 1], [1, 0], [0, 0]])
    found = loss(scores, ranks)
    assert found[0].item() == pytest.approx(bradley_terry_loss(scores[:1, 0], scores[:1, 1]).item())
    assert found[1].item() == pytest.approx(
        bradley_terry_loss(scores[1:2, 1], scores[1:2, 0]).item()
    )
    assert found[2].item() == pytest.approx(0.0)  # a tie makes no pair


@pytest.mark.parametrize("loss", [ranking_loss, plackett_luce_loss])
def test_rankings_against_the_slow_reference_with_ties_and_masks(loss) -> None:
    slow = reference.ranking if loss is ranking_loss else reference.plackett_luce
    scores = randn(3, 4).requires_grad_(True)
    ranks = torch.tensor([[0, 1, 2, 3], [1, 0, 1, 2], [0, 1, 0, 9]])
    mask = torch.tensor([[True] * 4, [True] * 4, [True, True, True, False]])
    with torch.no_grad():
        scores[2, 3] = float("nan")
    found = loss(scores, ranks, mask)
    for b, width in enumerate((4, 4, 3)):
        expected = slow(scores[b, :width].tolist(), ranks[b, :width].tolist())
        assert found[b].item() == pytest.approx(expected, abs=1e-12)
    found.sum().backward()
    assert scores.grad.isfinite().all()
    assert scores.grad[2, 3].item() == 0.0


@pytest.mark.parametrize("loss_type", list(PREFERENCE_LOSSES))
def test_preference_losses_against_the_slow_reference(loss_type: str) -> None:
    terms = [-1 - 4 * randn(5, seed=s).abs() for s in range(4)]
    lengths = torch.tensor([3, 1, 2, 5, 4]), torch.tensor([2, 2, 1, 4, 6])
    eps = 0.1 if loss_type in ("sigmoid", "cdpo", "robust") else 0.0
    for kl in (0.7, -0.7):  # a negative estimate counts as 0
        found = dpo_loss(
            *terms,
            beta=0.3,
            loss_type=loss_type,
            label_smoothing=eps,
            chosen_lengths=lengths[0],
            rejected_lengths=lengths[1],
            kl=torch.tensor(kl, dtype=torch.float64),
            simpo_margin=0.4,
        )
        rows = zip(*(t.tolist() for t in terms), *(n.tolist() for n in lengths), strict=True)
        expected = [
            reference.preference(loss_type, *row[:4], 0.3, eps, row[4:], kl, 0.4) for row in rows
        ]
        assert found.tolist() == pytest.approx(expected, abs=1e-12)


# at pi = pi_ref, chosen -2 nats over 4 tokens, rejected -3 over 3, beta 0.5:
# means -0.5 and -1; odds e^-.5/(1-e^-.5) = 1.5415, e^-1/(1-e^-1) = 0.5820, ratio 2.6487
HAND = {
    "sigmoid": math.log(2),
    "cdpo": math.log(2),
    "robust": math.log(2),
    "ipo": 1.0,  # (0 - 1)^2
    "hinge": 1.0,
    "simpo": -math.log(0.5),  # 0.5 * (0.5 - 0.5)
    "orpo": 0.5 + 0.5 * math.log(1 + 1 / 2.648721),
    "kto": 1.0,  # two examples at 1/2
    "apo_zero": 1.0,
    "sft": 0.5,
}


@pytest.mark.parametrize("loss_type", list(PREFERENCE_LOSSES))
def test_preference_losses_by_hand(loss_type: str) -> None:
    chosen, rejected = torch.tensor([-2.0]), torch.tensor([-3.0])
    lengths = {"chosen_lengths": torch.tensor([4]), "rejected_lengths": torch.tensor([3])}
    found = dpo_loss(chosen, rejected, chosen, rejected, beta=0.5, loss_type=loss_type, **lengths)
    assert found.item() == pytest.approx(HAND[loss_type], abs=1e-6)


def test_a_mix_is_the_weighted_sum() -> None:
    terms = [-1 - randn(5, seed=s).abs() for s in range(4)]
    mix = dpo_loss(*terms, loss_type={"sigmoid": 1.0, "sft": 0.2, "ipo": 0.5})
    parts = [dpo_loss(*terms, loss_type=name) for name in ("sigmoid", "sft", "ipo")]
    assert torch.allclose(mix, parts[0] + 0.2 * parts[1] + 0.5 * parts[2])


def test_kto_without_kl_is_apo_zero() -> None:
    terms = [randn(5, seed=s) for s in range(4)]
    kto, apo = (dpo_loss(*terms, loss_type=name) for name in ("kto", "apo_zero"))
    assert torch.allclose(kto, apo)


def test_orpo_of_a_certain_completion_is_finite() -> None:
    sure = torch.zeros(1, requires_grad=True)
    loss = dpo_loss(sure, sure - 1, sure, sure, loss_type="orpo")
    loss.sum().backward()
    assert loss.isfinite().all()
    assert sure.grad.isfinite().all()


def test_the_config_knows_the_table() -> None:
    assert set(get_args(PreferenceLossName)) == set(PREFERENCE_LOSSES)
    assert set(SMOOTHED_LOSSES) <= set(PREFERENCE_LOSSES)


def test_dpo_at_the_reference_is_log_2() -> None:
    chosen, rejected = randn(3), randn(3, seed=1)
    found = dpo_loss(chosen, rejected, chosen, rejected)
    assert found.tolist() == pytest.approx([math.log(2)] * 3)


def test_robust_dpo_is_unbiased_under_flips() -> None:
    # E over flips with probability eps of the robust loss = the clean DPO loss
    eps, zero = 0.2, torch.zeros(1)
    kept = dpo_loss(zero + 2, zero, zero, zero, loss_type="robust", label_smoothing=eps)
    flipped = dpo_loss(zero, zero + 2, zero, zero, loss_type="robust", label_smoothing=eps)
    clean = dpo_loss(zero + 2, zero, zero, zero)
    assert ((1 - eps) * kept + eps * flipped).item() == pytest.approx(clean.item(), abs=1e-6)


def test_reinforce_by_hand() -> None:
    # -(2 * -0.5 + 1 * -1.5) / 2 tokens = 1.25; its gradient is -A / 2 on each token
    logprobs = torch.tensor([[-0.5, -1.5, 9.0]], requires_grad=True)
    mask = torch.tensor([[True, True, False]])
    loss = reinforce_loss(logprobs, torch.tensor([[2.0, 1.0, 5.0]]), mask)
    loss.backward()
    assert loss.item() == pytest.approx(1.25)
    assert logprobs.grad.tolist() == [[-1.0, -0.5, 0.0]]


def test_gradcheck() -> None:
    x, y = randn(2, 4).requires_grad_(True), randn(2, 4, seed=1)
    ranks = torch.tensor([[0, 1, 2, 3], [1, 0, 1, 2]])
    for function in (
        lambda x: ppo_policy_loss(x * 0.1, y * 0.1, y, MASK),
        lambda x: ppo_value_loss(x, y, y * 2, MASK),
        lambda x: approx_kl(x, y, MASK),
        lambda x: sft_loss(x, MASK),
        lambda x: ranking_loss(x, ranks),
        lambda x: plackett_luce_loss(x, ranks),
        lambda x: reinforce_loss(x, y, MASK),
        *(
            partial(
                lambda x, name: dpo_loss(x[0] - 9, x[1] - 9, y[0], y[1], loss_type=name), name=n
            )
            for n in PREFERENCE_LOSSES
        ),
    ):
        assert torch.autograd.gradcheck(function, (x,))


def test_masked_slots_cannot_matter() -> None:
    x, y, z = (randn(2, 4, seed=s) for s in range(3))
    bad = x.masked_fill(~MASK, float("nan"))
    assert torch.equal(ppo_policy_loss(bad, y, z, MASK), ppo_policy_loss(x, y, z, MASK))
    assert torch.equal(ppo_value_loss(bad, y, z, MASK), ppo_value_loss(x, y, z, MASK))
    assert torch.equal(approx_kl(bad, y, MASK), approx_kl(x, y, MASK))
    assert torch.equal(sft_loss(bad, MASK), sft_loss(x, MASK))
    assert torch.equal(reinforce_loss(bad, y, MASK), reinforce_loss(x, y, MASK))


def test_errors() -> None:
    x, short = torch.zeros(2, 4), torch.zeros(2, 3)
    for call in (
        lambda: ppo_policy_loss(x, short, x, MASK),
        lambda: ppo_value_loss(x, x, short, MASK),
        lambda: approx_kl(x, short, MASK),
        lambda: sft_loss(short, MASK),
        lambda: reinforce_loss(x, short, MASK),
        lambda: ranking_loss(x, short.long()),
        lambda: plackett_luce_loss(x, short.long()),
        lambda: bradley_terry_loss(x, short),
        lambda: dpo_loss(x, x, short, x),
    ):
        with pytest.raises(ValueError, match=r"\(2, [34]\).*\(2, [34]\)"):
            call()
    pair = [torch.zeros(2)] * 4
    with pytest.raises(ValueError, match="did you mean 'sigmoid'"):
        dpo_loss(*pair, loss_type="sigmoyd")
    with pytest.raises(ValueError, match="beta"):
        dpo_loss(*pair, beta=0.0)
    with pytest.raises(ValueError, match="label_smoothing"):
        dpo_loss(*pair, loss_type="ipo", label_smoothing=0.1)
    with pytest.raises(ValueError, match="empty mix"):
        dpo_loss(*pair, loss_type={})
    with pytest.raises(ValueError, match="did you mean 'simpo'"):
        dpo_loss(*pair, loss_type={"sigmoid": 1.0, "simbo": 1.0})
    with pytest.raises(ValueError, match=r"chosen_lengths has shape \(3,\)"):
        dpo_loss(*pair, chosen_lengths=torch.ones(3))
    with pytest.raises(ValueError, match="estimator"):
        approx_kl(x, x, MASK, estimator="k4")
