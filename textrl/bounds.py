"""What a field of a configuration may hold: its type, finite numbers, and bounds by its name.

Standard library only, as `config.py`, whose classes call `check_common` on construction.
"""

import math
from dataclasses import Field, fields
from numbers import Integral, Real
from types import UnionType
from typing import Any, Literal, get_args, get_origin

from textrl.errors import UserError, did_you_mean


def require(config: object, field: str, ok: bool, expected: str) -> None:
    """Raise UserError naming field, value and what was expected, unless ok."""
    if not ok:
        value = config.__dict__[field]
        raise UserError(f"{type(config).__name__}.{field} is {value!r}; expected {expected}")


def check_common(config: object) -> None:
    """Check the fields that several configurations share, by what their names promise."""
    for field in fields(config):  # type: ignore[arg-type]  # any of the dataclasses here
        value = config.__dict__[field.name]
        if get_origin(field.type) is Literal:
            known = get_args(field.type)
            hint = did_you_mean(str(value), [str(name) for name in known])
            require(config, field.name, value in known, f"one of {list(known)}{hint}")
        _check_type(config, field)
        if field.name in _POSITIVE and value is not None:
            require(config, field.name, value > 0, "a positive number")
        if field.name in _SHARES and value is not None:
            require(config, field.name, 0 <= value < 1, "a share in [0, 1)")
        if field.name in _NOT_NEGATIVE and value is not None:
            require(config, field.name, value >= 0, "0 or a positive number")


_KINDS = {
    bool: (bool, "true or false"),
    int: (Integral, "a whole number"),
    float: (Real, "a finite number"),
    str: (str, "a text"),
    type(None): (type(None), "nothing"),
}


def _check_type(config: object, field: Field[Any]) -> None:
    """Check a field that holds numbers, flags or texts; True is no number, nor "false" a flag."""
    value = config.__dict__[field.name]
    union = isinstance(field.type, UnionType)
    kinds: tuple[Any, ...] = get_args(field.type) if union else (field.type,)
    if not all(kind in _KINDS for kind in kinds if isinstance(kind, type)) or any(
        not isinstance(kind, type) for kind in kinds
    ):
        return  # a model, a function, a literal: checked elsewhere
    if isinstance(value, bool):
        fits = bool in kinds
    else:
        fits = any(isinstance(value, _KINDS[kind][0]) for kind in kinds)
        fits = fits and not (isinstance(value, Real) and not math.isfinite(value))
    require(config, field.name, fits, " or ".join(_KINDS[kind][1] for kind in kinds))


_POSITIVE = (
    "temperature",
    "max_prompt_tokens",
    "group_size",
    "total_timesteps",
    "num_envs",
    "learning_rate",
    "critic_learning_rate",
    "num_epochs",
    "minibatch_size",
    "micro_batch_tokens",
    "max_length",
    "max_grad_norm",
    "max_completion_tokens",
    "episodes_per_iteration",
    "clip_range",
    "clip_range_vf",
    "target_kl",
    "kl_target",
    "kl_horizon",
    "beta",
    "samples_per_prompt",
    "decay_timesteps",
    "n",
    "samples",
    "overlap",
    "threads",
    "seeds",
    "evaluations",
    "eval_episodes",
    "candidates",
    "mlp_learning_rate",
)
_SHARES = ["warmup_share", "heldout_share", "label_smoothing"]
_NOT_NEGATIVE = [
    "weight_decay",
    "vf_coef",
    "ent_coef",
    "ptx_coef",
    "seed",
    "save_every",
    "simpo_margin",
    "center_coef",
    "gae_lambda",
    "kl_coef",
    "missing_eos_penalty",
    "min_completion_tokens",
    "min_agreement",
    "port",
]
