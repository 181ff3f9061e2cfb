"""What reward training minimises: its gradient against a slow float64 one, a text at a time."""

import copy
from pathlib import Path

import pytest
import torch
from reference_agents import reward_objective

from textrl.config import RewardConfig
from textrl.envs import tiny_tokenizer
from textrl.metrics import read_progress
from textrl.trainers import RewardTrainer, reward_model_from

PAIRS = [
    {"prompt": "a", "chosen": "bcd", "rejected": "zzyx", "margin": 0.7},
    {"prompt": "b", "chosen": "c", "rejected": "ba", "margin": 1.5},
    {"prompt": "c", "chosen": "def", "rejected": "a"},
]
RANKINGS = [
    {"prompt": "a", "completions": ["bcd", "bz", "zz"], "ranks": [0, 1, 2]},
    {"prompt": "b", "completions": ["aa", "cd"], "ranks": [1, 0]},
    {"prompt": "c", "completions": ["d", "ef", "ghi", "jj"], "ranks": [2, 0, 1, 1]},
]


@pytest.mark.parametrize("loss_type", ["ranking", "plackett_luce"])
@pytest.mark.parametrize("data", [PAIRS, RANKINGS], ids=["pairs", "rankings"])
def test_the_gradient_is_that_of_the_slow_loss(
    data, loss_type: str, checkpoint: str, tmp_path: Path
) -> None:
    """Of pairs with margins, which are Bradley-Terry whatever the loss, and of rankings."""
    model, pairs = reward_model_from(checkpoint, seed=3), data is PAIRS
    options = dict(loss_type=loss_type, center_coef=0.3, max_grad_norm=1e9)
    tokens = 20 if pairs else 10_000  # rankings of several lengths in one batch are padded
    config = RewardConfig(**options, minibatch_size=3, num_epochs=1, micro_batch_tokens=tokens)
    trainer = RewardTrainer(model, tiny_tokenizer(), data, config, output_dir=tmp_path, shown=False)
    slow = copy.deepcopy(model).double().eval()
    rankings = [
        (ranking.encoded, [0, 1] if pairs else row["ranks"], row.get("margin", 0.0))
        for ranking, row in zip(trainer.train_rankings, data, strict=True)
    ]
    settings = {"loss_type": "ranking" if pairs else loss_type, "center_coef": 0.3}
    reward_objective(rankings, slow, settings).backward()
    trainer.train()
    for ours, wanted in zip(model.parameters(), slow.parameters(), strict=True):
        assert torch.allclose(ours.grad.double(), wanted.grad, atol=3e-5, rtol=1e-3)
    assert max(float(p.grad.abs().max()) for p in slow.parameters()) > 1e-2
    shares = [right_order(slow, texts, ranks) for texts, ranks, _ in rankings]
    logged = read_progress(tmp_path)[0]["reward/accuracy"]
    assert logged == pytest.approx(sum(shares) / len(shares), abs=1e-6)
    assert logged != pytest.approx(0.5, abs=0.02)


def right_order(model: torch.nn.Module, texts: list[list[int]], ranks: list[int]) -> float:
    """Return the share of a ranking's pairs that the model orders as it does."""
    scores = [model(input_ids=torch.tensor([ids])).logits.item() for ids in texts]
    pairs = [(i, j) for i, a in enumerate(ranks) for j, b in enumerate(ranks) if a < b]
    return sum(scores[i] > scores[j] for i, j in pairs) / len(pairs)
