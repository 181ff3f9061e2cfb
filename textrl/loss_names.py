"""What the preference losses are called, and what each takes.

Standard library only: configurations check names with it. The formulas are in
`preference_losses.py`.
"""

from typing import Literal

PreferenceLossName = Literal[
    "sigmoid", "cdpo", "robust", "ipo", "hinge", "simpo", "orpo", "kto", "apo_zero", "sft"
]
"""The keys of textrl.losses.PREFERENCE_LOSSES (a test holds them together)."""
SMOOTHED_LOSSES = ("sigmoid", "cdpo", "robust")
"""Those for which label_smoothing means something."""
REFERENCE_FREE_LOSSES = ("simpo", "orpo", "sft")
"""Those that take the policy's log-probs alone."""


def loss_weights(loss_type: str | dict[str, float]) -> dict[str, float]:
    """Return a preference loss or a mix of them as names and weights.

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
