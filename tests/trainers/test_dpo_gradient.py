"""What DPO minimises: its gradient against a slow float64 one, a pair at a time."""

import copy

import pytest
import torch
from reference_agents import Episode, online_dpo_objective

from textrl.config import DPOConfig
from textrl.envs import tiny_model, tiny_tokenizer
from textrl.trainers import DPOTrainer

PAIRS = [
    {"prompt": "a", "chosen": "bcd", "rejected": "z"},
    {"prompt": "bb", "chosen": "c", "rejected": "bazz"},
    {"prompt": "c", "chosen": "defg", "rejected": "ab"},
]


@pytest.mark.parametrize(
    "settings", [{"loss_type": "sigmoid", "beta": 0.3}, {"loss_type": "simpo", "beta": 2.0}]
)
def test_the_gradient_is_that_of_the_slow_loss(settings: dict) -> None:
    model = tiny_model(seed=3).requires_grad_(True)
    options = dict(minibatch_size=3, num_epochs=1, micro_batch_tokens=20, max_grad_norm=1e9)
    margin = {"simpo_margin": 0.2} if "simpo" in settings["loss_type"] else {}
    config = DPOConfig(**options | settings | margin)
    trainer = DPOTrainer(model, tiny_tokenizer(), PAIRS, config, shown=False)
    slow, frozen = (copy.deepcopy(model).double() for _ in range(2))
    episodes = []
    for pair in trainer.train_pairs:
        for score, side in ((1.0, pair.chosen), (0.0, pair.rejected)):
            start = len(side.ids) - sum(side.counts)
            episodes.append(Episode(ids=torch.tensor(side.ids), start=start, score=score))
    loss, pairs = online_dpo_objective(
        episodes, slow, frozen, 1.0, 2, settings | {"simpo_margin": 0.2}
    )
    assert pairs == 3
    loss.backward()
    trainer.train()
    for ours, wanted in zip(model.parameters(), slow.parameters(), strict=True):
        assert torch.allclose(ours.grad.double(), wanted.grad, atol=3e-5, rtol=1e-3)
    assert max(float(p.grad.abs().max()) for p in slow.parameters()) > 1e-2
