"""The space of token ids: a Box that will not be flattened into numbers for a network."""

from typing import Any

from gymnasium import spaces
from gymnasium.spaces.utils import flatdim, flatten_space

from textrl.errors import UserError


class TokenIds(spaces.Box):
    """Token ids, int32 [L]: names, not quantities, of which an MLP could make nothing."""


@flatdim.register(TokenIds)
@flatten_space.register(TokenIds)
def _refuse(space: TokenIds) -> Any:
    """Refuse what SB3's "MultiInputPolicy" and Gymnasium's FlattenObservation begin with.

    Raises:
        UserError: always.
    """
    raise UserError(
        "token ids are names, not numbers for a network: use the id TextRLHFCandidates-v0 (or "
        "CandidateActions) for MLP agents, or textrl.envs.sb3's CausalLMPolicy for SB3's"
    )
