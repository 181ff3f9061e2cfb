"""`UserError`, the exception for mistakes that a user can fix, and helpers for its message.

Each check is in the module of the code that it protects. The command line prints a `UserError` as
one line and exits with status 2.
"""

import difflib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

LONGEST = 2000
"""Maximum length of a message in characters."""


class UserError(ValueError):
    r"""A mistake in the user's input: the message names the place, the value and the remedy.

    It is one line: what moves a cursor or cannot be printed, in a file's name say, is escaped.

    >>> print(UserError("a\nb\x1b[2J: no such file"))
    a\nb\x1b[2J: no such file
    """

    def __init__(self, message: str) -> None:
        """Take the message; the middle of a very long one, which repeats a user's value, is cut."""
        line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in message)
        super().__init__(line if len(line) <= LONGEST else f"{line[:1400]} ... {line[-500:]}")


def shown(value: object) -> str:
    """Return the `repr` of a value, or its type's name where it has none (a list 10,000 deep)."""
    try:
        return repr(value)
    except Exception:  # of a number with 5,000 digits, or of a class that is not ours
        return f"a {type(value).__name__}"


def did_you_mean(word: str, known: Iterable[object]) -> str:
    """Return " (did you mean 'x'?)" for the known word nearest to `word`, or "".

    >>> did_you_mean("learning_rat", ["learning_rate", "seed"])
    " (did you mean 'learning_rate'?)"
    >>> did_you_mean("lr", ["learning_rate", "seed"])  # initials
    " (did you mean 'learning_rate'?)"
    """
    names = [str(name) for name in known]
    short = [name for name in names if "_" in name and _initials(name) == word]
    near = short or difflib.get_close_matches(word, names, n=1)
    return f" (did you mean '{near[0]}'?)" if near else ""


def _initials(name: str) -> str:
    return "".join(part[:1] for part in name.split("_"))


def hide_password(source: str) -> str:
    """Return the URL of a database without its password; return any other text unchanged.

    >>> hide_password("postgresql://ann:secret@host/labels")
    'postgresql://ann:***@host/labels'
    >>> hide_password("collect:postgresql://ann@host/labels?password=secret&wait=60")
    'collect:postgresql://ann@host/labels?password=***&wait=60'
    """
    source = re.sub(r"^((?:collect:)?\w+(?:\+\w+)?://[^:/@]*):.*@", r"\1:***@", source)
    if "://" not in source:
        return source
    return re.sub(r"([?&](?:password|sslpassword)=)[^&]*", r"\1***", source)


@contextmanager
def needing(extra: str) -> Iterator[None]:
    """Turn the error about a missing package into one line that names the extra to install."""
    try:
        yield
    except ImportError as error:
        raise UserError(f"{error}; pip install 'textrl-gym[{extra}]'") from error
