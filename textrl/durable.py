"""Files that are whole or not there: what is written survives a kill, a full disk and a power cut.

A file is written beside its place, flushed to the disk and renamed. Several files that belong
together (a model, its optimiser, its counters) are written to `FOLDER/.saving` with the SHA-256 of
each in `checksums.json`; the journal `FOLDER/.commit.json` then says that they count, and they are
moved to their places. Killed before the journal, the files of the save before are all still there;
killed after it, whoever reads the folder next finishes the moves. So a kill leaves no mixture; who
reads a folder while another process writes to it must hold it first (`locks.py`).

Standard library only.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from textrl.errors import UserError

CHECKSUMS = "checksums.json"
SAVING, JOURNAL = ".saving", ".commit.json"


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file, whole or not at all."""
    fresh = path.with_name(path.name + ".new")
    with fresh.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    _sync(path.parent)


def write_json(path: Path, content: object) -> None:
    """Write JSON that a person can read, whole or not at all."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def append_json_line(path: Path, row: Mapping[str, Any]) -> None:
    """Append a row to a file, on a new line even if the last line is incomplete."""
    cut = False
    if path.exists() and path.stat().st_size > 0:
        with path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            cut = file.read() != b"\n"
    with path.open("a", encoding="utf-8") as lines:
        lines.write("\n" * cut + json.dumps(row) + "\n")


def save_files(folder: Path, write: Callable[[Path], None]) -> None:
    """Replace the files of a folder's earlier save by new ones, all of them or none.

    Other files of the folder stay.

    Args:
        folder: Folder that is made if need be.
        write: Function that writes the new files to the folder that it is given.
    """
    finish_save(folder)
    fresh = folder / SAVING
    files = write_sealed(fresh, write)
    earlier = set(_read_json(folder / CHECKSUMS) if (folder / CHECKSUMS).exists() else ())
    plan = {"move": [*files, CHECKSUMS], "remove": sorted(earlier - set(files))}
    write_json(folder / JOURNAL, plan)
    finish_save(folder)


def finish_save(folder: Path) -> None:
    """Move the files of a save that was killed after its commit to their places.

    Raises:
        UserError: The journal is damaged.
    """
    journal, fresh = folder / JOURNAL, folder / SAVING
    if not journal.exists():
        return
    plan = _read_json(journal)
    moved, removed = (_inside(plan.get(key), journal) for key in ("move", "remove"))
    for name in moved:
        if not (fresh / name).exists() and not (folder / name).exists():
            raise UserError(f"{folder / name} is missing; put back a copy, or use an earlier save")
    for name in moved:
        if (fresh / name).exists():  # else it was moved already
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (fresh / name).replace(folder / name)
    for name in removed:
        (folder / name).unlink(missing_ok=True)
    for place in {(folder / name).parent for name in moved}:
        _sync(place)
    shutil.rmtree(fresh, ignore_errors=True)
    journal.unlink(missing_ok=True)
    _sync(folder)


def write_sealed(folder: Path, write: Callable[[Path], None]) -> list[str]:
    """Have files written to a fresh folder, with their checksums; return their names.

    Raises:
        UserError: The system refuses, as on a full disk; the folder is gone again then.
    """
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(parents=True)
        write(folder)
        return _seal(folder)
    except Exception as error:
        if not _is_of_the_system(error):
            raise
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"cannot save to {folder.parent}: {reason}; an earlier save there is untouched"
        ) from error
    finally:
        if not (folder / CHECKSUMS).exists():
            shutil.rmtree(folder, ignore_errors=True)


def _is_of_the_system(error: Exception) -> bool:
    """Return whether the system refuses; libraries in Rust give its errors a class of their own."""
    return isinstance(error, OSError) or "(os error " in str(error)


def _seal(folder: Path) -> list[str]:
    """Write the checksums of all files below a folder, flush everything, and return their names."""
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    sums = {name: _checksum(folder / name) for name in files}
    write_json(folder / CHECKSUMS, sums)
    for name in files:
        _sync(folder / name)
    for place in {(folder / name).parent for name in files}:
        _sync(place)
    return files


def check_files(folder: Path, *, skipped: Sequence[str] = ()) -> None:
    """Check that the files of a folder's last save are those that were written.

    Args:
        folder: Folder of a save.
        skipped: Files and folders in it that are not checked.

    Raises:
        UserError: A file is missing or altered, or there are no checksums; it is named.
    """
    finish_save(folder)
    file = folder / CHECKSUMS
    if not file.exists():
        raise UserError(f"{file} is missing, so that nothing says whether this save is whole")
    sums = _read_json(file)
    if not all(name and isinstance(value, str) for name, value in sums.items()):
        raise UserError(f"{file} is not one of textrl (no file names with checksums); remove it")
    for name, expected in sums.items():
        if Path(name).parts[0] in skipped:
            continue
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path} is missing; put back a copy, or use an earlier save")
        if _checksum(path) != expected:
            raise UserError(
                f"{path} is damaged (it is not what was saved there); put back a copy, or use an "
                f"earlier save"
            )


def _inside(names: Any, file: Path) -> list[str]:
    """Return the names of a journal, which are all of files inside its folder.

    Raises:
        UserError: One is not, as in a folder that somebody has prepared.
    """
    if not isinstance(names, list):
        raise UserError(f"{file} is damaged (it lacks a list of files); put back a copy")
    for name in names:
        place = (file.parent / str(name)).parent.resolve()  # links lead nowhere else either
        if not place.is_relative_to(file.parent.resolve()) or ".." in Path(str(name)).parts:
            raise UserError(f"{file} names {name!r}, which is outside its folder; do not use it")
    return [str(name) for name in names]


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_json(path: Path) -> Any:
    """Return what a file holds that only we write.

    Raises:
        UserError: The file is damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:  # OSError: a folder in its place
        raise UserError(f"{path} is damaged ({error}); put back a copy") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged (no JSON object); put back a copy")
    return content


def _sync(path: Path) -> None:
    """Flush a file or the entries of a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
