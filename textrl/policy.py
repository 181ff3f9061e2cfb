"""`PolicyModule`: a policy as one torch module, whose forward every update calls.

Next to read: `token_pass.py` (what the forward computes), `models.py` (trunk and head).
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from textrl.adapters import ADAPTER_FOLDER, SETTINGS, with_adapter
from textrl.allowed import AllowedTokens
from textrl.logprobs import counted_from_0
from textrl.models import SplitLM, in_eval, load_causal_lm, moved
from textrl.token_pass import Evaluation, ReferenceStates, token_pass
from textrl.types import Sequences


class PolicyModule(nn.Module):
    """A policy, with its value head if it has one."""

    def __init__(self, lm: SplitLM, value_head: nn.Module | None = None) -> None:
        """Make a policy from its parts.

        Args:
            lm: The language model.
            value_head: A module from the policy's states [... H] to values [...].
        """
        super().__init__()
        self.lm, self.model, self.value_head = lm, lm.model, value_head

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.lm.device

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        mask: Tensor,
        *,
        temperature: float = 1.0,
        allowed: AllowedTokens | None = None,
        entropies: bool = False,
        reference: ReferenceStates | None = None,
    ) -> Evaluation:
        """Return the log-probs of some tokens under the present weights, and optional numbers.

        Args:
            input_ids: Prompts with completions, right-padded. Shape [B L].
            positions: The position of each token in its text, >= 1. Shape [B T].
            mask: Bool, True on the tokens that count. Shape [B T].
            temperature: Temperature of the policy's distribution and of the reference's.
            allowed: The tokens that may be sampled; None for all.
            entropies: Whether to compute entropies too (another pass over all logits).
            reference: The reference's states before the same tokens, for the exact KL.
        """
        return token_pass(
            self.lm,
            input_ids,
            positions,
            mask,
            temperature=temperature,
            allowed=allowed,
            entropies=entropies,
            reference=reference,
            value_head=self.value_head,
        )

    def logprobs_of(self, sequences: Sequences, temperature: float = 1.0) -> Tensor:
        """Return the log-probs of the tokens that count, in nats, [B L]; 0 elsewhere."""
        ids, mask = sequences.input_ids, sequences.mask
        found: Evaluation = self(ids, counted_from_0(ids), mask, temperature=temperature)
        return found.logprobs


def load_policy(folder: Path, device: torch.device, frozen: list[str]) -> PreTrainedModel:
    """Return the float32 policy that an agent saved to a folder, with its adapter if it had one.

    Args:
        folder: The folder of the merged model, with the adapter beside it (see `save_adapter`).
        device: The device of the policy.
        frozen: The names of its parameters that were not trained.

    Raises:
        UserError: the folder has no policy, or `peft` is not installed.
    """
    adapter = folder / ADAPTER_FOLDER
    if adapter.exists():
        base = load_causal_lm(adapter / "base", dtype="float32", device=device)
        own = next(adapter.rglob(SETTINGS)).parent  # a named adapter is in a subfolder of its name
        policy = in_eval(moved(with_adapter(base, own), device))
    else:
        policy = load_causal_lm(folder, dtype="float32", device=device)
    for name, parameter in policy.named_parameters():
        parameter.requires_grad_(name not in frozen)
    return policy
