import pytest
import reference
import torch

from textrl.advantages import gae, grpo_advantages, kl_shaped_rewards, rloo_advantages

MASK = torch.tensor([[True, True, True, False], [True, False, False, False]])


def random_rows(*names: str) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(len(names))
    return [torch.randn(2, 4, generator=generator, dtype=torch.float64) for _ in names]


def test_kl_shaped_rewards_by_hand() -> None:
    # row 0: KL 1, 0, -1 nats at coefficient 0.1, score 2 on token 2; row 1: KL 0.5, score -1
    logprobs = torch.tensor([[-1.0, -2.0, -3.0, 9.0], [-1.0, 9.0, 9.0, 9.0]])
    ref = torch.tensor([[-2.0, -2.0, -2.0, 5.0], [-1.5, 5.0, 5.0, 5.0]])
    found = kl_shaped_rewards(torch.tensor([2.0, -1.0]), logprobs, ref, MASK, kl_coef=0.1)
    expected = torch.tensor([[-0.1, 0.0, 2.1, 0.0], [-1.05, 0.0, 0.0, 0.0]])
    assert torch.allclose(found, expected)


def test_kl_shaped_rewards_against_the_slow_reference() -> None:
    logprobs, ref = random_rows("a", "b")
    scores = torch.tensor([0.3, -0.7], dtype=torch.float64)
    found = kl_shaped_rewards(scores, logprobs, ref, MASK, kl_coef=0.05)
    for b in range(2):
        expected = reference.kl_rewards(
            scores[b].item(), logprobs[b].tolist(), ref[b].tolist(), MASK[b].tolist(), 0.05
        )
        assert found[b].tolist() == pytest.approx(expected, abs=1e-12)


def test_gae_by_hand() -> None:
    # rewards 0 0 1, values .5 .5 .5, gamma 1, lambda .5:
    # deltas 0, 0, .5; A_2 = .5, A_1 = 0 + .5 * .5 = .25, A_0 = .125
    rewards = torch.tensor([[0.0, 0.0, 1.0]])
    values = torch.full((1, 3), 0.5)
    mask = torch.ones(1, 3, dtype=torch.bool)
    advantages, returns = gae(rewards, values, mask, gae_lambda=0.5)
    assert advantages.tolist() == [[0.125, 0.25, 0.5]]
    assert returns.tolist() == [[0.625, 0.75, 1.0]]
    # truncated: V = 2 after the last token makes its delta 1 + 2 - .5 = 2.5
    advantages, _ = gae(rewards, values, mask, gae_lambda=0.5, bootstrap_values=torch.tensor([2.0]))
    assert advantages[0, 2].item() == 2.5


@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
def test_gae_against_the_slow_reference(gamma: float, lam: float) -> None:
    rewards, values = random_rows("a", "b")
    bootstrap = torch.tensor([0.4, -0.3], dtype=torch.float64)
    advantages, returns = gae(
        rewards, values, MASK, gamma=gamma, gae_lambda=lam, bootstrap_values=bootstrap
    )
    for b in range(2):
        expected = reference.gae(
            rewards[b].tolist(),
            values[b].tolist(),
            MASK[b].tolist(),
            gamma,
            lam,
            bootstrap[b].item(),
        )
        assert advantages[b].tolist() == pytest.approx(expected, abs=1e-12)
    assert torch.allclose(returns, (advantages + values).masked_fill(~MASK, 0.0))


def test_gae_with_lambda_1_is_returns_minus_values() -> None:
    rewards, values = random_rows("a", "b")
    rewards = rewards.masked_fill(~MASK, 0.0)
    advantages, returns = gae(rewards, values, MASK, gae_lambda=1.0)
    to_go = rewards.flip(1).cumsum(1).flip(1)
    assert torch.allclose(returns, to_go.masked_fill(~MASK, 0.0))
    assert torch.allclose(advantages, (to_go - values).masked_fill(~MASK, 0.0))


def test_gae_steps_over_holes_and_padding() -> None:
    rewards, values = random_rows("a", "b")
    holes = torch.tensor([[True, False, True, True], [False, True, False, True]])
    advantages, _ = gae(rewards, values, holes, gae_lambda=0.7)
    for b in range(2):
        expected = reference.gae(
            rewards[b].tolist(), values[b].tolist(), holes[b].tolist(), 1.0, 0.7
        )
        assert advantages[b].tolist() == pytest.approx(expected, abs=1e-12)
    spoiled = rewards.masked_fill(~holes, float("nan"))
    assert torch.equal(gae(spoiled, values, holes, gae_lambda=0.7)[0], advantages)
    wider = torch.nn.functional.pad
    padded, _ = gae(
        wider(rewards, (0, 3)), wider(values, (0, 3)), wider(holes, (0, 3)), gae_lambda=0.7
    )
    assert torch.equal(padded[:, :4], advantages)


def test_group_advantages_by_hand() -> None:
    scores = torch.tensor([1.0, 2.0, 6.0, 0.0, 0.0, 3.0])
    # group 1 2 6: others' means 4, 3.5, 1.5; group 0 0 3: 1.5, 1.5, 0
    assert rloo_advantages(scores, 3).tolist() == [-3.0, -1.5, 4.5, -1.5, -1.5, 3.0]
    assert grpo_advantages(scores, 3, scale=False).tolist() == [-2.0, -1.0, 3.0, -1.0, -1.0, 2.0]
    # biased std of 1 2 6 is sqrt(14/3) = 2.1602
    assert grpo_advantages(scores, 3)[2].item() == pytest.approx(3 / 2.1602469, abs=1e-5)
    assert grpo_advantages(torch.ones(4), 4).tolist() == [0.0] * 4


def test_group_advantages_against_the_slow_reference() -> None:
    scores = torch.randn(12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    listed = scores.tolist()
    assert rloo_advantages(scores, 4).tolist() == pytest.approx(reference.rloo(listed, 4))
    for scale in (True, False):
        expected = reference.grpo(listed, 4, scale)
        assert grpo_advantages(scores, 4, scale=scale).tolist() == pytest.approx(expected)


def test_errors() -> None:
    rows = torch.zeros(2, 4)
    with pytest.raises(ValueError, match=r"\(2, 4\).*\(2, 3\)"):
        kl_shaped_rewards(torch.zeros(2), rows, rows[:, :3], MASK, kl_coef=0.1)
    with pytest.raises(ValueError, match=r"\(3,\).*\(2, 4\)"):
        kl_shaped_rewards(torch.zeros(3), rows, rows, MASK, kl_coef=0.1)
    with pytest.raises(ValueError, match="row 1 has no True"):
        kl_shaped_rewards(
            torch.zeros(2), rows, rows, MASK & torch.tensor([[True], [False]]), kl_coef=0.1
        )
    with pytest.raises(ValueError, match=r"\(2, 4\).*\(2, 3\)"):
        gae(rows, rows[:, :3], MASK)
    with pytest.raises(ValueError, match="multiple of group_size 3"):
        rloo_advantages(torch.zeros(4), 3)
    with pytest.raises(ValueError, match="at least 2"):
        grpo_advantages(torch.zeros(4), 1)
