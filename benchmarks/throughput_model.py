"""Sizes of models, what a pass of them must compute, and what this machine could compute at most.

For `throughput.py`. FLOPs are those of the real tokens: a multiplication and an addition count as
two, padding, recomputation and the optimiser as none, so that wasted work lowers the share.
"""

import time
from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from textrl.demo.pretrained import smollm2_folder
from textrl.models import load_causal_lm

SHAPES = {"4m": (256, 688, 4, 4), "30m": (512, 1376, 8, 8)}
"""Hidden size, width of the MLP, layers, heads; the vocabulary has 4,096 tokens."""
SIZES = (*SHAPES, "smollm2")


def make_model(size: str, vocab_size: int = 4096) -> PreTrainedModel:
    """Return a Llama with random weights, or SmolLM2-135M, in float32."""
    if size == "smollm2":
        return load_causal_lm(smollm2_folder(), dtype="float32")
    hidden, intermediate, layers, heads = SHAPES[size]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=hidden,
            intermediate_size=intermediate,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
        return LlamaForCausalLM(config).eval()


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a forward pass of a model costs."""

    body: int
    """Parameters that every token meets: all but the embeddings."""
    head: int
    """Parameters of the LM head."""
    attention: int
    """Layers times width of all heads."""

    def forward(self, lengths: list[int], counted: int) -> float:
        """Return the FLOPs of reading these sequences, with logits at so many positions."""
        tokens, squares = sum(lengths), sum(length**2 for length in lengths)
        return 2 * self.body * tokens + 2 * self.head * counted + 2 * self.attention * squares

    def update(self, lengths: list[int], counted: int) -> float:
        """Return the FLOPs of a forward and a backward pass."""
        return 3 * self.forward(lengths, counted)


def cost_of(model: PreTrainedModel) -> Cost:
    """Return the cost of a Llama's passes."""
    config = model.config.get_text_config()
    embedding = model.get_input_embeddings().weight.numel()
    body = sum(p.numel() for p in model.base_model.parameters()) - embedding
    heads = config.num_attention_heads * getattr(config, "head_dim", 0)
    return Cost(
        body=body,
        head=embedding,
        attention=config.num_hidden_layers * (heads or config.hidden_size),
    )


def matrix_product_rate(seconds: float = 1.0, size: int = 2048) -> float:
    """Return the FLOPs a second of a large float32 matrix product, the median of many."""
    a, b = torch.rand(size, size), torch.rand(size, size)
    times = []
    until = time.monotonic() + seconds
    while time.monotonic() < until or len(times) < 3:
        began = time.monotonic()
        a @ b
        times.append(time.monotonic() - began)
    return 2 * size**3 / sorted(times)[len(times) // 2]
