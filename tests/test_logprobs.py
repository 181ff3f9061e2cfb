import math

import pytest
import reference
import torch
from torch import nn

from textrl.logprobs import (
    chunked_token_logprobs,
    map_positions,
    token_entropy,
    token_kl,
    token_logprobs,
)


def random_case(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64)
    ids = torch.randint(5, (2, 3), generator=generator)
    return logits, ids


def test_token_logprobs_by_hand() -> None:
    # softmax(log 1, log 3) = (1/4, 3/4)
    logits = torch.tensor([[[0.0, math.log(3.0)]]])
    assert token_logprobs(logits, torch.tensor([[1]])).item() == pytest.approx(math.log(0.75))
    # at temperature 0.5 the odds are squared: 1 to 9
    warm = token_logprobs(logits, torch.tensor([[1]]), temperature=0.5)
    assert warm.item() == pytest.approx(math.log(0.9))


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
def test_against_the_slow_reference(temperature: float) -> None:
    logits, ids = random_case()
    others, _ = random_case(1)
    found = token_logprobs(logits, ids, temperature=temperature)
    entropies, kls = (
        token_entropy(logits, temperature=temperature),
        token_kl(logits, others, temperature=temperature),
    )
    for b in range(2):
        for t in range(3):
            row = [x / temperature for x in logits[b, t].tolist()]
            other = [x / temperature for x in others[b, t].tolist()]
            expected = reference.log_softmax(row)[int(ids[b, t])]
            assert found[b, t].item() == pytest.approx(expected, abs=1e-12)
            assert entropies[b, t].item() == pytest.approx(reference.entropy(row), abs=1e-12)
            assert kls[b, t].item() == pytest.approx(reference.kl(row, other), abs=1e-12)


def test_nothing_is_shifted() -> None:
    logits = torch.zeros(1, 2, 3)
    logits[0, 1, 2] = 50.0
    assert token_logprobs(logits, torch.tensor([[0, 2]]))[0, 1].item() == pytest.approx(0.0)


def test_entropy_of_certainty_is_zero_and_finite() -> None:
    logits = torch.tensor([[[0.0, -torch.inf]]])
    assert token_entropy(logits).item() == 0.0


@pytest.mark.parametrize("chunk_size", [1, 2, 4, 100])
def test_chunked_equals_plain_with_gradients(chunk_size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    head = nn.Linear(4, 7).double()
    ids = torch.randint(7, (2, 3), generator=generator)
    mask = torch.tensor([[True, True, False], [True, False, True]])
    plain = token_logprobs(head(hidden), ids, temperature=0.7).masked_fill(~mask, 0.0)
    expected = torch.autograd.grad(plain.square().sum(), [hidden, *head.parameters()])
    chunked = chunked_token_logprobs(
        hidden, head, ids, mask, temperature=0.7, chunk_size=chunk_size
    )
    found = torch.autograd.grad(chunked.square().sum(), [hidden, *head.parameters()])
    assert torch.allclose(chunked, plain, atol=1e-12)
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-12)


def test_chunked_never_holds_more_than_a_chunk_of_logits() -> None:
    widths: list[int] = []

    def head(states: torch.Tensor) -> torch.Tensor:
        widths.append(len(states))
        return states @ torch.ones(4, 7)

    hidden = torch.randn(3, 5, 4, requires_grad=True)
    mask = torch.ones(3, 5, dtype=torch.bool)
    ids = torch.zeros(3, 5, dtype=torch.long)
    chunked_token_logprobs(hidden, head, ids, mask, chunk_size=4).sum().backward()
    assert max(widths) == 4
    assert sum(widths) == 2 * 15  # each position once forward, once again in the backward pass


def test_gradcheck() -> None:
    (logits, ids), (others, _) = random_case(), random_case(1)
    logits.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: token_logprobs(x, ids, temperature=0.8), (logits,))
    assert torch.autograd.gradcheck(lambda x: token_entropy(x, temperature=0.8), (logits,))
    assert torch.autograd.gradcheck(lambda x: token_kl(x, others), (logits,))


def test_errors() -> None:
    logits, ids = random_case()
    with pytest.raises(ValueError, match=r"\(2, 3, 5\).*\(2, 2\)"):
        token_logprobs(logits, ids[:, :2])
    with pytest.raises(ValueError, match="temperature"):
        token_logprobs(logits, ids, temperature=0.0)
    mask = torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="chunk_size"):
        map_positions(lambda s, i: s[:, 0], logits, ids, mask=mask, chunk_size=0)
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(2, 2\)"):
        chunked_token_logprobs(logits, nn.Identity(), ids[:, :2], mask)
    with pytest.raises(ValueError, match=r"torch\.bool"):
        chunked_token_logprobs(logits, nn.Identity(), ids, mask.long())
