"""The options of `textrl push`.

The text under each field is its help. This module imports the standard library only.
"""

import re
from dataclasses import dataclass

from textrl.bounds import check_fields, require

REPO = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
"""What a hub takes as OWNER/NAME."""


@dataclass(frozen=True, kw_only=True)
class PushConfig:
    """The model that is sent, and the repository that takes it."""

    model: str
    """Folder of a finished run, or any folder of a model or an adapter. `textrl push RUN --repo
    OWNER/NAME` is short for `textrl push --model RUN --repo OWNER/NAME`."""
    repo: str
    """Repository of the hub, as OWNER/NAME; it is made if it does not exist."""
    private: bool = False
    """Make the repository private. One that exists and is public is refused."""
    revision: str | None = None
    """Branch of the repository, which is made if it does not exist; the default is its main
    branch."""
    dry_run: bool = False
    """Only print what would be sent; nothing is looked up in the network."""

    def __post_init__(self) -> None:
        """Raise UserError for a value of the wrong type, or no name of a repository."""
        check_fields(self)
        require(self, "repo", _is_repo(self.repo), "OWNER/NAME, such as ann/my-policy")
        require(self, "revision", _is_branch(self.revision), "the name of a branch, such as v1")


def _is_repo(name: object) -> bool:
    if not isinstance(name, str) or re.fullmatch(REPO, name) is None or re.search(r"--|\.\.", name):
        return False
    return not any(part.endswith((".", "-", ".git")) for part in name.split("/"))


def _is_branch(name: object) -> bool:
    return name is None or (
        isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9][\w./-]*", name, re.ASCII) is not None
    )
