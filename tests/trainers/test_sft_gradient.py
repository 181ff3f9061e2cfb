"""What supervised training minimises: its gradient against a slow float64 one, a text at a time."""

import copy

import torch

from textrl.config import SFTConfig
from textrl.envs import tiny_model, tiny_tokenizer
from textrl.trainers import SFTTrainer

ROWS = [
    {"prompt": "abc", "completion": "d"},
    {"prompt": "b", "completion": "cdefghijk"},
    {"text": "zyx"},
]


def test_the_gradient_is_the_mean_over_tokens_not_over_texts() -> None:
    """Prompts do not count; micro-batches of few tokens change nothing."""
    model = tiny_model().requires_grad_(True)
    slow = copy.deepcopy(model).double()
    config = SFTConfig(minibatch_size=3, num_epochs=1, micro_batch_tokens=20, max_grad_norm=1e9)
    trainer = SFTTrainer(model, tiny_tokenizer(), ROWS, config, shown=False)
    losses = []
    for sequence in trainer.train_sequences:
        ids = torch.tensor([sequence.ids])
        logprobs = slow(input_ids=ids).logits[0, :-1].log_softmax(-1)
        chosen = logprobs.gather(-1, ids[0, 1:, None]).squeeze(-1)
        losses.append(-chosen[torch.tensor(sequence.counts[1:])])
    torch.cat(losses).mean().backward()
    assert len({len(loss) for loss in losses}) == 3
    trainer.train()
    for ours, wanted in zip(model.parameters(), slow.parameters(), strict=True):
        assert torch.allclose(ours.grad.double(), wanted.grad, atol=3e-5, rtol=1e-3)
    assert max(float(p.grad.abs().max()) for p in slow.parameters()) > 1e-2
