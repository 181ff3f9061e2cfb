"""A trained language model as one module with one forward, which every update calls.

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
    """A policy, and its value head where it has one."""

    def __init__(self, lm: SplitLM, value_head: nn.Module | None = None) -> None:
        """Take the parts of a policy.

        Args:
            lm: the language model.
            value_head: maps the policy's states [... H] to values [...].
        """
        super().__init__()
        self.lm, self.model, self.value_head = lm, lm.model, value_head

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
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
        """Return the log-probs of some tokens under the present weights, and what else is asked.

        Args:
            input_ids: whole texts, right-padded. Shape [B L].
            positions: where each token stands in its text, >= 1. Shape [B T].
            mask: Bool, True on the tokens that count. Shape [B T].
            temperature: of the policy's distribution, and of the reference's.
            allowed: the tokens that may be drawn; None for all.
            entropies: whether to compute these too (another pass over all logits).
            reference: the reference's states before the same tokens, for the exact KL.
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
        folder: of the merged model, with the adapter beside it (`save_adapter`).
        device: where the policy goes.
        frozen: names of its parameters that were not trained.

    Raises:
        UserError: there is none, or `peft` is not installed.
    """
    adapter = folder / ADAPTER_FOLDER
    if adapter.exists():
        base = load_causal_lm(adapter / "base", dtype="float32", device=device)
        own = next(adapter.rglob(SETTINGS)).parent  # one with a name has a folder of that name
        policy = in_eval(moved(with_adapter(base, own), device))
    else:
        policy = load_causal_lm(folder, dtype="float32", device=device)
    for name, parameter in policy.named_parameters():
        parameter.requires_grad_(name not in frozen)
    return policy
