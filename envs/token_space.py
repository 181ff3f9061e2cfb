"""`TokenIds`, the space of token ids: a Box that refuses to be flattened for an MLP."""

from typing import Any

from gymnasium import spaces
from gymnasium.spaces.utils import flatdim, flatten_space

from textrl.errors import UserError


class TokenIds(spaces.Box):
    """Token ids, int32 [L]. They are categories, not quantities, so an MLP cannot use them."""


@flatdim.register(TokenIds)
@flatten_space.register(TokenIds)
def _refuse(space: TokenIds) -> Any:
    """Refuse to flatten the space, as SB3's "MultiInputPolicy" and FlattenObservation would.

    Raises:
        UserError: always.
    """
    raise UserError(
        "token ids are names, not numbers for a network: use the id TextRLHFCandidates-v0 (or "
        "CandidateActions) for MLP agents, or textrl.envs.sb3's CausalLMPolicy for SB3's"
    )
