"""Validation of configuration fields: their types, finite numbers, and bounds in annotations.

This module needs the standard library only. The classes of `config.py` call `check_fields` on
construction.
"""

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from numbers import Integral, Real
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from textrl.errors import UserError, did_you_mean, shown


@dataclass(frozen=True)
class Bound:
    """A bound on a number, in addition to the type of its field, as in `Positive[float]`."""

    holds: Callable[[float], bool]
    expected: str

    def __repr__(self) -> str:
        """Return the bound as the help of the command line shows it."""
        return self.expected


Number = TypeVar("Number")
Positive = Annotated[Number, Bound(lambda value: value > 0, "a positive number")]
NotNegative = Annotated[Number, Bound(lambda value: value >= 0, "0 or a positive number")]
Seed = Annotated[
    Number, Bound(lambda value: 0 <= value < 2**63, "a whole number from 0 to below 2**63")
]
Share = Annotated[Number, Bound(lambda value: 0 <= value < 1, "a share in [0, 1)")]


def bare(kind: Any) -> Any:
    """Return the type of a field without its bound.

    >>> bare(Positive[int])
    <class 'int'>
    """
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def require(config: object, field: str, ok: bool, expected: str) -> None:
    """Raise UserError that names field, value and what was expected, unless ok."""
    if not ok:
        value = config.__dict__[field]
        raise UserError(f"{type(config).__name__}.{field} is {shown(value)}; expected {expected}")


def check_fields(config: object) -> None:
    """Raise UserError for the first field whose value has the wrong type or is out of bounds."""
    for field in fields(config):  # type: ignore[arg-type]  # any of the dataclasses here
        value, kind = _plain(config.__dict__[field.name]), bare(field.type)
        object.__setattr__(config, field.name, value)
        if get_origin(kind) is Literal:
            known = get_args(kind)
            hint = did_you_mean(shown(value), known)
            one_of = isinstance(value, str) and value in known
            require(config, field.name, one_of, f"one of {list(known)}{hint}")
        _check_type(config, field.name, kind)
        for bound in getattr(field.type, "__metadata__", ()):
            fits = value is None or bound.holds(value)
            require(config, field.name, fits, bound.expected)


def _plain(value: Any) -> Any:
    """Return a NumPy number as a Python number, which a file can hold."""
    if type(value) in (bool, int, float) or not isinstance(value, Real):
        return value
    with contextlib.suppress(OverflowError):  # a fraction beyond all floats, refused later
        return int(value) if isinstance(value, Integral) else float(value)
    return value


_KINDS = {
    bool: (bool, "true or false"),
    int: (Integral, "a whole number"),
    float: (Real, "a finite number"),
    str: (str, "a text"),
    type(None): (type(None), "nothing"),
}


def _check_type(config: object, field: str, kind: Any) -> None:
    """Check the type of a number, flag or text; True is not a number, "false" is not a flag."""
    value = config.__dict__[field]
    kinds: tuple[Any, ...] = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    if not all(kind in _KINDS for kind in kinds if isinstance(kind, type)) or any(
        not isinstance(kind, type) for kind in kinds
    ):
        return  # a model, a function, a literal: checked elsewhere
    if isinstance(value, bool):
        fits = bool in kinds
    else:
        fits = any(isinstance(value, _KINDS[kind][0]) for kind in kinds)
    expected = " or ".join(_KINDS[kind][1] for kind in kinds)
    if fits and isinstance(value, Integral):
        fits, expected = abs(int(value)) < 2**63, f"{expected} below 2**63"
    elif fits and isinstance(value, Real):
        fits = math.isfinite(value)
    require(config, field, fits, expected)


def checked_config(owner: object, config: Any, config_class: type[Any]) -> Any:
    """Return the configuration of an agent or a trainer; None stands for the class's defaults.

    Raises:
        UserError: the configuration is of another class.
    """
    config = config_class() if config is None else config
    if not isinstance(config, config_class):
        raise UserError(
            f"{type(owner).__name__} takes {config_class.__name__}, got {type(config).__name__}"
        )
    return config
