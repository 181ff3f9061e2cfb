"""PPO's critic, which has three forms; the actor is a `textrl.policy.PolicyModule`.

"value_head"    a zero-initialised head on the policy's own trunk, so that one pass gives log-probs
                and values
"reward_model"  a second trunk, a copy of the reward model's, with a fresh head
"separate"      a second trunk, a copy of the policy's, with a fresh head
"""

import copy

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from textrl.errors import UserError
from textrl.limits import embedding_rows
from textrl.models import SplitLM, split_lm
from textrl.packing import Packing, action_states, first_output
from textrl.policy import ValueHead
from textrl.rewards import RewardModel


class Critic(nn.Module):
    """A critic that has its own trunk."""

    def __init__(self, trunk: nn.Module, packing: Packing, head: ValueHead) -> None:
        """Keep a causal trunk, the packing of texts for it, and a head on its states."""
        super().__init__()
        self.trunk, self.packing, self.head = trunk, packing, head

    def forward(self, input_ids: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """Return V(state just before action t), [B T], 0 where the mask is False.

        Args:
            input_ids: Prompts with completions, right-padded. Shape [B L].
            positions: The position of each action in its text, >= 1. Shape [B T].
            mask: Bool, True on the actions. Shape [B T].
        """
        input_ids = input_ids[:, : int(positions.masked_fill(~mask, 0).max()) + 1]
        states = action_states(self.trunk, self.packing, input_ids, positions, mask)
        values: Tensor = self.head(states)
        return values.masked_fill(~mask, 0.0)


def make_critic(
    kind: str,
    head: str,
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    reward_model: RewardModel | None,
    seed: int = 0,
) -> ValueHead | Critic:
    """Return a new critic of one of the three kinds; the seed initialises an MLP head.

    Raises:
        UserError: the kind is "reward_model", but there is no reward model that reads the policy's
            tokens causally.
    """
    lm = split_lm(policy)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if kind == "value_head":
            return ValueHead(lm.state_size, head).to(policy.device)
        if kind == "separate":
            trunk = copy.deepcopy(lm.trunk).requires_grad_(True)
            return Critic(trunk, lm.packing, ValueHead(lm.state_size, head)).to(policy.device)
        if reward_model is None:
            raise UserError(
                "critic='reward_model' needs a reward model in the environment; its reward is a "
                "function. Use critic='value_head' or 'separate'"
            )
        _check_reads_alike(reward_model, tokenizer, lm.vocab_size)
        classifier = reward_model.classifier
        assert classifier.head is not None
        trunk = copy.deepcopy(classifier.trunk).requires_grad_(True)
        with torch.no_grad():
            ids = torch.zeros(1, 1, dtype=torch.long, device=policy.device)
            width = first_output(trunk(input_ids=ids, use_cache=False)).shape[-1]
        return Critic(trunk, classifier.packing, ValueHead(width, head)).to(policy.device)


def _check_reads_alike(
    reward_model: RewardModel, tokenizer: PreTrainedTokenizerBase, vocab_size: int
) -> None:
    """Raise UserError unless the reward model is causal and has the policy's token ids."""
    instead = "use critic='value_head' or 'separate'"
    if reward_model.classifier.head is None:
        raise UserError(
            f"critic='reward_model' needs a causal reward model with the policy's tokenizer; this "
            f"one reads whole texts: {instead}"
        )
    theirs = reward_model.tokenizer.get_vocab()
    for token, number in tokenizer.get_vocab().items():
        if theirs.get(token) != number:
            raise UserError(
                f"critic='reward_model' needs a causal reward model with the policy's tokenizer; "
                f"this one reads other tokens (id {number} of the policy is {token!r}): {instead}"
            )
    rows = embedding_rows(reward_model.model)
    if rows < vocab_size:
        raise UserError(
            f"critic='reward_model' needs embeddings of the policy's {vocab_size} ids, the reward "
            f"model has {rows}: {instead}"
        )


@torch.no_grad()
def values_at(
    critic: ValueHead | Critic, lm: SplitLM, input_ids: Tensor, positions: Tensor, mask: Tensor
) -> Tensor:
    """Return V(state just before action t), [B T], without gradient.

    Args:
        critic: A value head on the policy's states, or a critic with its own trunk.
        lm: The policy.
        input_ids: Prompts with completions, right-padded. Shape [B L].
        positions: The position of each action in its text, >= 1. Shape [B T].
        mask: Bool, True on the actions. Shape [B T].
    """
    if isinstance(critic, ValueHead):
        values: Tensor = critic(lm.action_states(input_ids, positions, mask))
    else:
        values = critic(input_ids, positions, mask)
    return values
