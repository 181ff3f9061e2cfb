"""Python objects by name: "package.module:name", importable from the working directory too."""

import importlib
import sys
from pathlib import Path
from typing import Any

from textrl.errors import UserError


def resolve(name: str) -> Any:
    """Return the object that "package.module:name" names.

    Raises:
        UserError: there is none.
    """
    module, _, attribute = name.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(module).__dict__[attribute]
    except ImportError as error:
        raise UserError(f"{name!r}: module {module!r} cannot be imported ({error})") from error
    except KeyError:
        raise UserError(f"{name!r}: module {module!r} has no {attribute!r}") from None
    finally:
        sys.path.pop(0)


def resolve_reward(name: str) -> Any:
    """Return the function that "package.module:function" names, or the model's name itself."""
    looks_like_code = ":" in name and not Path(name).exists() and "://" not in name
    return resolve(name) if looks_like_code else name
