import pytest
import torch

from textrl.masking import masked_mean, masked_var, standardize

X = torch.tensor([[1.0, 2.0, 3.0], [4.0, 50.0, 60.0]])
M = torch.tensor([[True, True, True], [True, False, False]])


def test_masked_mean_and_var_by_hand() -> None:
    # tokens 1 2 3 4: mean 2.5, squared deviations 2.25 0.25 0.25 2.25 -> biased variance 1.25
    assert masked_mean(X, M).item() == 2.5
    assert masked_var(X, M).item() == 1.25


def test_standardize_by_hand() -> None:
    # (1 - 2.5) / sqrt(1.25) = -1.3416
    result = standardize(X, M)
    assert result[0, 0].item() == pytest.approx(-1.3416408, abs=1e-6)
    assert result[1].tolist()[1:] == [0.0, 0.0]
    assert masked_mean(result, M).item() == pytest.approx(0.0, abs=1e-6)
    assert masked_var(result, M).item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("function", [masked_mean, masked_var, standardize])
def test_masked_slots_cannot_matter(function) -> None:
    spoiled = X.clone().requires_grad_(True)
    with torch.no_grad():
        spoiled[1, 1], spoiled[1, 2] = float("nan"), float("inf")
    result = function(spoiled, M)
    assert torch.equal(result, function(X, M))
    result.square().sum().backward()
    assert spoiled.grad[1, 1:].tolist() == [0.0, 0.0]
    assert spoiled.grad.isfinite().all()


@pytest.mark.parametrize("function", [masked_mean, masked_var, standardize])
def test_errors_name_the_shapes(function) -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(2, 2\)"):
        function(X, M[:, :2])
    with pytest.raises(ValueError, match="no True"):
        function(X, torch.zeros_like(M))
    with pytest.raises(ValueError, match=r"torch\.bool"):
        function(X, M.long())


def test_half_precision_is_computed_in_float32() -> None:
    assert masked_mean(X.half(), M).dtype == torch.float32
    assert masked_mean(X.double(), M).dtype == torch.float64
