"""`AllowedTokens`: which tokens may come next, given banned tokens and a minimum length.

A token that is not allowed has probability 0. All code that turns logits into a distribution calls
`AllowedTokens.restrict` first: sampling, the environment's reference, and every update. So the
probabilities of the remaining tokens sum to 1, both for the policy and for the reference.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from textrl.errors import UserError
from textrl.masking import full_precision

BANNED = -1e30
"""Logit of a token that is not allowed: its probability is exactly 0, without any infinity."""


class AllowedTokens:
    """The tokens that are valid actions of a task, by their position in the completion."""

    def __init__(
        self, *, width: int, banned: Sequence[int], end_ids: Sequence[int], min_tokens: int
    ) -> None:
        """Check and keep the restrictions.

        Args:
            width: The width of the logits.
            banned: Token ids that are never allowed.
            end_ids: Token ids that end a completion.
            min_tokens: Minimum length of a completion; no end token is allowed before it.

        Raises:
            UserError: a banned id is not a token id, or no token is allowed at some position.
        """
        strange = [token for token in banned if not 0 <= token < width]
        if strange:
            raise UserError(
                f"banned_token_ids holds {strange[0]}; expected token ids in [0, {width})"
            )
        self.min_tokens = min_tokens
        self._later = torch.ones(width, dtype=torch.bool)
        self._later[list(banned)] = False
        self._first = self._later.clone()
        self._first[list(end_ids)] = False
        self.everything = min_tokens == 0 and not banned
        """Whether all tokens are allowed everywhere."""
        if not self._later.any() or (min_tokens > 0 and not self._first.any()):
            raise UserError(
                f"banned_token_ids and min_completion_tokens={min_tokens} leave no token to take; "
                f"ban fewer of the {width} tokens"
            )
        self.filler = int((self._first if self._first.any() else self._later).int().argmax())
        """A token that is allowed at every position; one that ends no completion, if possible."""

    def mask(self, positions: Tensor) -> Tensor:
        """Return which tokens are allowed at these positions in the completion, Bool [n V].

        Args:
            positions: Positions in the completion, 0 for the first token. Shape [n].
        """
        first, later = self._first.to(positions.device), self._later.to(positions.device)
        return torch.where((positions < self.min_tokens).unsqueeze(-1), first, later)

    def restrict(self, logits: Tensor, positions: Tensor) -> Tensor:
        """Return the logits of a distribution over the allowed tokens only, [n V].

        Args:
            logits: The model's logits. Shape [n V].
            positions: Positions in the completion of the tokens that they predict. Shape [n].

        >>> allowed = AllowedTokens(width=3, banned=[0], end_ids=[2], min_tokens=1)
        >>> allowed.restrict(torch.zeros(2, 3), torch.tensor([0, 1])).softmax(-1).tolist()
        [[0.0, 1.0, 0.0], [0.0, 0.5, 0.5]]
        """
        if self.everything:
            return logits
        return full_precision(logits).masked_fill(~self.mask(positions), BANNED)

    def check(self, tokens: np.ndarray, positions: np.ndarray) -> None:
        """Raise UserError if one of the tokens [n] is not allowed at its position [n]."""
        if self.everything or len(tokens) == 0:
            return
        allowed = self.mask(torch.as_tensor(positions))[torch.arange(len(tokens)), tokens]
        if not allowed.all():
            index = int((~allowed).int().argmax())
            token, position = int(tokens[index]), int(positions[index])
            why = "is in banned_token_ids"
            if self._later[token]:
                why = f"ends the text before min_completion_tokens={self.min_tokens}"
            raise UserError(
                f"token {token} is no action at position {position} of a completion: it {why}; "
                f"action_masks() says which tokens may come next"
            )
