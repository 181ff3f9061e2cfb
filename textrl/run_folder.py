"""Run folders: refused if they exist, held by one process at a time, begun with a config.yaml.

run/                  config.yaml, the trained model (safetensors, tokenizer, generation config)
run/machine.json      What it ran on (`machine.py`): versions, commit, cores, threads.
run/progress.*        The metrics of the run.
run/checkpoints/      What --resume needs (`checkpoint.py`); a finished run has none.
"""

import contextlib
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from textrl import locks
from textrl.durable import write_text
from textrl.errors import UserError
from textrl.paths import expanded
from textrl.task_config import FAILURE_SETTINGS

CONFIG_FILE = "config.yaml"
LOCK_FILE, HOLDER_FILE = ".lock", ".held_by.json"
MAY_CHANGE = (
    *(
        "total_timesteps",
        "save_every",
        "save_minutes",
        "keep_saves",
        "keep_best",
        "stop_at_kl",
        "device",
        "threads",
        "log_table",
        "track",
        "output_dir",
    ),
    *FAILURE_SETTINGS,
    *("agents", "seeds"),  # a benchmark's; its finished cells know their other settings
)
"""What a resumed run may set anew: nothing that its numbers depend on."""


def check_run_dir(folder: str | Path, *, resume: bool = False, overwrite: bool = False) -> Path:
    """Return the run folder's path without touching it.

    Raises:
        UserError: it holds something already and neither resume nor overwrite is asked for, or
            both are.
    """
    path = expanded(folder)
    if resume and overwrite:
        raise UserError("--resume and --overwrite exclude each other; give one of them")
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file; name a folder for the run")
    if _holds_something(path) and not (resume or overwrite):
        raise UserError(
            f"{path} exists and is not empty; continue it with --resume, replace it with "
            f"--overwrite, or name another folder"
        )
    return path


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a run folder for this process, which may hold it again; see `locks.held`.

    Raises:
        UserError: Another process holds it; that process is named.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locks.held(folder, folder / LOCK_FILE, folder / HOLDER_FILE):
        yield


def refuse_to_delete(path: Path, inputs: Sequence[str]) -> None:
    """Raise UserError unless the folder is a run of ours that holds none of the inputs."""
    if not (path / CONFIG_FILE).exists():
        raise UserError(f"{path} holds no run of textrl (no {CONFIG_FILE}); delete it yourself")
    whole = path.resolve()
    for other in (str(Path.cwd()), *inputs):
        file = expanded(re.sub(r"^sqlite(\+\w+)?:///([^?]*).*", r"\2", other))  # a label database
        with contextlib.suppress(OSError):  # a text that can be no path
            if file.exists() and whole in (file.resolve(), *file.resolve().parents):
                raise UserError(
                    f"{path} holds {other}, which --overwrite would delete; move it first"
                )


def prepare_run_dir(
    folder: str | Path,
    settings: Mapping[str, Any],
    *,
    resume: bool = False,
    overwrite: bool = False,
    inputs: Sequence[str] = (),
) -> Path:
    """Return the run folder with config.yaml in it, made if need be, emptied with overwrite.

    Args:
        folder: of the run.
        settings: the resolved configuration.
        resume: keep what is there; its settings must be these, but for those that may change.
        overwrite: delete what is there first.
        inputs: files and folders that must not be deleted.

    Raises:
        UserError: as `check_run_dir`; other settings; a folder that is not a run of ours.
    """
    path = check_run_dir(folder, resume=resume, overwrite=overwrite)
    kept = path / CONFIG_FILE
    if overwrite and _holds_something(path):
        refuse_to_delete(path, inputs)
        for content in _contents(path):
            shutil.rmtree(content) if content.is_dir() else content.unlink()
    if resume and kept.exists():
        before = _settings(kept)
        for name, value in settings.items():
            if name not in MAY_CHANGE and before.get(name) != value:
                raise UserError(
                    f"--resume with another {name}: {kept} has {before.get(name)!r}, not {value!r}"
                )
    path.mkdir(parents=True, exist_ok=True)
    write_text(kept, yaml.safe_dump(dict(settings), sort_keys=False))
    return path


def _settings(file: Path) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is damaged; put back a copy, or start the run anew") from error
    if not isinstance(settings, dict):
        raise UserError(f"{file} holds no settings; put back a copy, or start the run anew")
    return settings


def _contents(folder: Path) -> list[Path]:
    """Return what a folder holds beside the marks of who holds it."""
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if path.name not in (LOCK_FILE, HOLDER_FILE)]


def _holds_something(folder: Path) -> bool:
    return bool(_contents(folder))
