"""Which tokens may come next: banned ones never, an end token not before the least length.

A token that is not allowed is no action at all. Whoever turns logits into a distribution passes
them through `AllowedTokens.restrict` first: sampling, the environment's reference, every update.
So the probabilities of the tokens that are left sum to 1, for policy and reference alike.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from textrl.errors import UserError
from textrl.masking import full_precision

BANNED = -1e30
"""Logit of a token that is not allowed: its probability is exactly 0, and no infinity is met."""


class AllowedTokens:
    """The tokens of a task that are actions, by their position in the completion."""

    def __init__(
        self, *, width: int, banned: Sequence[int], end_ids: Sequence[int], min_tokens: int
    ) -> None:
        """Take the bans.

        Args:
            width: of the logits.
            banned: ids that never come.
            end_ids: ids that end a completion.
            min_tokens: least length of a completion; before it no end token comes.

        Raises:
            UserError: a banned id that is none, or a position where nothing is left.
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
        """Whether there is no ban at all."""
        if not self._later.any() or (min_tokens > 0 and not self._first.any()):
            raise UserError(
                f"banned_token_ids and min_completion_tokens={min_tokens} leave no token to take; "
                f"ban fewer of the {width} tokens"
            )
        self.filler = int((self._first if self._first.any() else self._later).int().argmax())
        """A token that may be taken at any position, and ends nothing where there is one such."""

    def mask(self, positions: Tensor) -> Tensor:
        """Return which tokens may come at these positions in the completion, Bool [n V].

        Args:
            positions: 0 for the first token. Shape [n].
        """
        first, later = self._first.to(positions.device), self._later.to(positions.device)
        return torch.where((positions < self.min_tokens).unsqueeze(-1), first, later)

    def restrict(self, logits: Tensor, positions: Tensor) -> Tensor:
        """Return the logits of a distribution over the allowed tokens alone, [n V].

        Args:
            logits: Shape [n V].
            positions: in the completion, of the tokens that the logits predict. Shape [n].

        >>> allowed = AllowedTokens(width=3, banned=[0], end_ids=[2], min_tokens=1)
        >>> allowed.restrict(torch.zeros(2, 3), torch.tensor([0, 1])).softmax(-1).tolist()
        [[0.0, 1.0, 0.0], [0.0, 0.5, 0.5]]
        """
        if self.everything:
            return logits
        return full_precision(logits).masked_fill(~self.mask(positions), BANNED)

    def check(self, tokens: np.ndarray, positions: np.ndarray) -> None:
        """Raise UserError if one of the tokens [n] may not come at its position [n]."""
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
