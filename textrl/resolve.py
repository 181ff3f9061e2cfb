"""Import of Python objects by name, "package.module:name", also from the working directory."""

import importlib
import sys
from pathlib import Path
from typing import Any

from textrl.errors import UserError

PEOPLE = "collect:"
"""How the name of a reward begins that is a label database: `collect:labels.db`."""


def resolve(name: str) -> Any:
    """Return the object that "package.module:name" names.

    Raises:
        UserError: there is no such object.
    """
    module, _, attribute = name.partition(":")
    if not module or not attribute or module.startswith("."):
        raise UserError(f"{name!r} is no package.module:name")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = importlib.import_module(module)
    except Exception as error:  # the user's module may fail in any way
        what = f"{type(error).__name__}: {error}"
        if "/" in module or module.endswith(".py"):
            dotted = module.removesuffix(".py").replace("/", ".")
            what += f"; a module is named with dots, {dotted}:{attribute}"
        raise UserError(f"{name!r}: module {module!r} cannot be imported ({what})") from error
    finally:
        sys.path.pop(0)
    try:
        return getattr(found, attribute)
    except AttributeError:
        raise UserError(f"{name!r}: module {module!r} has no {attribute!r}") from None


def resolve_reward(name: str) -> Any:
    """Return the function that "package.module:function" names; return another name unchanged.

    Other names are those of models, and of label databases (collect:labels.db).
    """
    if name.startswith(PEOPLE):
        return name
    looks_like_code = ":" in name and not Path(name).exists() and "://" not in name
    return resolve(name) if looks_like_code else name
