"""Paths from users: `~` is expanded, and a missing local path is reported at once.

This module needs the standard library only. Next to read: `data.py` (files of rows), `models.py`
(folders of models).
"""

import os
from pathlib import Path

from textrl.errors import UserError, did_you_mean


def expanded(path: str | Path) -> Path:
    """Return the path with a leading `~` replaced by the home folder.

    Raises:
        UserError: the path begins with `~name` and there is no such user, or the system takes no
            such path.
    """
    try:
        found = Path(path).expanduser()
        os.fsencode(found)
        found.exists()
    except (RuntimeError, UnicodeEncodeError) as error:
        what = "the home folder is not known" if isinstance(error, RuntimeError) else "no path"
        raise UserError(f"{path}: {what} ({error})") from error
    except OSError as error:
        raise UserError(f"{str(path)[:200]}: {error.strerror or error}") from error
    if "\0" in str(found):
        raise UserError(f"{path}: a path holds no zero byte; name another one")
    return found


def local_or_hub(name: str | Path) -> str:
    """Return the name of a model or data set with `~` expanded.

    Raises:
        UserError: the name can only be a local path, and nothing is there. A hub id has the form
            `name` or `owner/name`, where `owner` is not a local folder.
    """
    path = expanded(name)
    local = isinstance(name, Path) or path.is_absolute() or str(name).startswith(".")
    if not path.exists() and (local or len(path.parts) > 2 or _in_a_folder(path)):
        names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = did_you_mean(path.name, names)
        raise UserError(f"{path}: no such file or folder{hint}")
    if not path.exists() and len(path.parts) == 2:  # of a hub, or a folder's name is misspelt
        folders = [place.name for place in Path().iterdir() if (place / path.name).exists()]
        if hint := did_you_mean(path.parts[0], folders):
            raise UserError(f"{path}: no such file or folder as its first part is written{hint}")
    return str(path)


def _in_a_folder(path: Path) -> bool:
    return len(path.parts) == 2 and path.parent.is_dir()
