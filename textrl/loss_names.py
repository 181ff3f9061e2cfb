"""The names of the preference losses, and which of them use label smoothing or a reference.

This module needs the standard library only, since configurations check names with it. The formulas
are in `preference_losses.py`.
"""

from typing import Literal

PreferenceLossName = Literal[
    "sigmoid", "cdpo", "robust", "ipo", "hinge", "simpo", "orpo", "kto", "apo_zero", "sft"
]
"""The keys of textrl.losses.PREFERENCE_LOSSES (a test checks that they are equal)."""
SMOOTHED_LOSSES = ("sigmoid", "cdpo", "robust")
"""The losses that use label_smoothing."""
REFERENCE_FREE_LOSSES = ("simpo", "orpo", "sft")
"""The losses that use only the policy's log-probs, not the reference's."""


def loss_weights(loss_type: str | dict[str, float]) -> dict[str, float]:
    """Return one preference loss, or a mix of several, as a dict from names to weights.

    >>> loss_weights("kto")
    {'kto': 1.0}
    """
    return {loss_type: 1.0} if isinstance(loss_type, str) else dict(loss_type)


def needs_reference(loss_type: str | dict[str, float]) -> bool:
    """Return whether any of these preference losses compares the policy with a reference.

    >>> needs_reference("simpo"), needs_reference({"sigmoid": 1.0, "sft": 0.2})
    (False, True)
    """
    return not set(loss_weights(loss_type)) <= set(REFERENCE_FREE_LOSSES)
