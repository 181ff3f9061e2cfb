"""The next token for an observation: the function behind `predict` of all our agents."""

import numpy as np
import torch

from textrl.agents.base import Observation
from textrl.generation import draw
from textrl.logprobs import AllowedTokens
from textrl.models import SplitLM


@torch.no_grad()
def next_tokens(
    lm: SplitLM,
    observation: Observation,
    temperature: float,
    generator: torch.Generator,
    deterministic: bool,
    allowed: AllowedTokens | None = None,
) -> np.ndarray:
    """Return the next token for an observation [L], or one per row for a batch [B L]."""
    ids = torch.as_tensor(np.asarray(observation["input_ids"]), device=lm.device).long()
    lengths = torch.as_tensor(np.asarray(observation["attention_mask"]), device=lm.device).sum(-1)
    prompt_lengths = torch.as_tensor(np.asarray(observation["prompt_length"]), device=lm.device)
    begun = lengths - prompt_lengths.squeeze(-1)
    single = ids.dim() == 1
    if single:
        ids, lengths, begun = ids.unsqueeze(0), lengths.unsqueeze(0), begun.unsqueeze(0)
    hidden = lm.hidden(ids[:, : int(lengths.max())])
    states = hidden[torch.arange(len(ids), device=lm.device), lengths.long() - 1]
    logits = lm.head(states).float()
    if allowed is not None:
        logits = allowed.restrict(logits, begun)
    log_p = (logits / temperature).log_softmax(-1)
    if deterministic:
        tokens = log_p.argmax(-1)
    else:
        uniforms = torch.rand(len(ids), dtype=torch.float64, generator=generator)
        tokens = draw(log_p, uniforms.to(lm.device))
    result: np.ndarray = tokens.cpu().numpy()
    return result[0] if single else result
