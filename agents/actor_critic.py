"""The trained half of RLHF's four models: the actor and its critic, in three forms.

"value_head"    a zero-initialised head on the policy's own trunk: one pass gives both
"reward_model"  a second trunk, a copy of the reward model's, with a fresh head
"separate"      a second trunk, a copy of the policy's, with a fresh head
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from textrl.allowed import AllowedTokens
from textrl.errors import UserError
from textrl.logprobs import counted_from_0, map_positions, token_entropy, token_kl, token_logprobs
from textrl.models import SplitLM, split_lm
from textrl.packing import Packing, action_states
from textrl.rewards import RewardModel
from textrl.trunks import embedding_rows, first_output
from textrl.types import Rollout


class Critic(nn.Module):
    """Maps states to values in reward units; its head starts at zero, so that V = 0 at first."""

    def __init__(
        self,
        hidden_size: int,
        head: str,
        trunk: nn.Module | None = None,
        packing: Packing | None = None,
    ) -> None:
        """Make a linear or MLP head, on the policy's states (trunk None) or on a trunk's."""
        super().__init__()
        self.trunk, self.packing = trunk, packing
        last = nn.Linear(hidden_size, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        if head == "mlp":
            self.head = nn.Sequential(nn.Linear(hidden_size, hidden_size), nn.Tanh(), last)
        else:
            self.head = nn.Sequential(last)

    def values_of(self, states: Tensor) -> Tensor:
        """Return values [...] of states [... H], in float32."""
        with torch.autocast(states.device.type, enabled=False):
            result = self.head(states.float()).squeeze(-1)
        assert isinstance(result, Tensor)
        return result

    def forward(self, input_ids: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """Return V(state just before action t), [B T], from the critic's own trunk."""
        assert self.trunk is not None
        assert self.packing is not None
        states = action_states(self.trunk, self.packing, input_ids, positions, mask)
        return self.values_of(states)


def make_critic(
    kind: str,
    head: str,
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    reward_model: RewardModel | None,
    seed: int = 0,
) -> Critic:
    """Return a fresh critic of one of the three kinds; the seed is that of an MLP head.

    Raises:
        UserError: "reward_model" without a reward model that reads the policy's tokens causally.
    """
    lm = split_lm(policy)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if kind == "value_head":
            return Critic(lm.state_size, head).to(policy.device)
        if kind == "separate":
            trunk = copy.deepcopy(lm.trunk).requires_grad_(True)
            return Critic(lm.state_size, head, trunk, lm.packing).to(policy.device)
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
        return Critic(width, head, trunk, classifier.packing).to(policy.device)


def _check_reads_alike(
    reward_model: RewardModel, tokenizer: PreTrainedTokenizerBase, vocab_size: int
) -> None:
    """Raise UserError unless the reward model reads texts of the policy's ids, and causally."""
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


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What the update needs of some episodes, each [B T], 0 where the mask is False."""

    logprobs: Tensor
    """In nats, differentiable."""
    values: Tensor | None
    """In reward units, differentiable; None where the critic has a trunk of its own."""
    entropies: Tensor | None
    """In nats, differentiable; None where nobody asked."""
    exact_kl: Tensor | None
    """KL(pi || pi_ref) over the vocabulary, in nats, differentiable; None without a reference."""


@dataclass(frozen=True, kw_only=True)
class ReferenceStates:
    """The reference's hidden states at the completion's positions and the head that reads them."""

    states: Tensor
    """[B T H], state t just before token t."""
    head: Callable[[Tensor], Tensor]


class ActorCritic:
    """A policy and its critic, evaluated together."""

    def __init__(
        self, policy: PreTrainedModel, critic: Critic, temperature: float, allowed: AllowedTokens
    ) -> None:
        """Put both into eval mode: dropout off, or the ratio of the first update is not 1."""
        self.allowed = allowed
        policy.eval()
        self.policy, self.critic, self.temperature = policy, critic.eval(), temperature
        self.lm: SplitLM = split_lm(policy)

    @property
    def shared_trunk(self) -> bool:
        """Whether the critic is a head on the policy's states."""
        return self.critic.trunk is None

    @torch.no_grad()
    def value_pass(self, input_ids: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """Return V(state just before action t), [B T], without gradient."""
        if not self.shared_trunk:
            values = self.critic(input_ids, positions, mask)
            assert isinstance(values, Tensor)
            return values
        return self.critic.values_of(self.lm.action_states(input_ids, positions, mask))

    def own_values(self, rollout: Rollout) -> Tensor:
        """Return the values of a critic with a trunk of its own, [B T], differentiable."""
        ids = rollout.input_ids[:, : int(rollout.lengths.max())]
        values = self.critic(ids, rollout.positions, rollout.mask)
        assert isinstance(values, Tensor)
        return values.masked_fill(~rollout.mask, 0.0)

    def evaluate(
        self,
        rollout: Rollout,
        reference: ReferenceStates | None = None,
        *,
        entropies: bool = False,
    ) -> Evaluation:
        """Return log-probs of the episodes under the present weights, and a value head's values.

        Args:
            rollout: some episodes.
            reference: the reference's states of the same episodes, for the exact KL.
            entropies: whether to compute these too (another pass over all logits).
        """
        width, mask = int(rollout.lengths.max()), rollout.mask
        ids = rollout.input_ids[:, :width]
        hidden = self.lm.action_states(ids, rollout.positions, mask)

        def numbers(states: Tensor, chosen: Tensor, places: Tensor, *others: Tensor) -> Tensor:
            logits = self.allowed.restrict(self.lm.head(states), places)
            columns = [token_logprobs(logits, chosen, temperature=self.temperature)]
            if entropies:
                columns.append(token_entropy(logits, temperature=self.temperature))
            for other, head in zip(others, heads, strict=True):
                other_logits = self.allowed.restrict(head(other), places)
                columns.append(token_kl(logits, other_logits, temperature=self.temperature))
            return torch.stack(columns, dim=-1)

        heads = [] if reference is None else [reference.head]
        others = [] if reference is None else [reference.states]
        table = map_positions(
            numbers,
            hidden,
            rollout.completion_ids,
            counted_from_0(rollout.completion_ids),
            *others,
            mask=mask,
            chunk_size=self.lm.chunk_size,
        )
        return Evaluation(
            logprobs=table[..., 0],
            values=self.critic.values_of(hidden).masked_fill(~mask, 0.0)
            if self.shared_trunk
            else None,
            entropies=table[..., 1] if entropies else None,
            exact_kl=None if reference is None else table[..., -1],
        )
