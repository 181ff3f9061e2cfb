"""Run folders: refused if they exist, saved as plain transformers checkpoints, resumable.

run/                  config.yaml, the model (safetensors, tokenizer, generation config)
run/trainer_state/    what --resume needs; a finished trainer deletes it, an agent keeps it
"""

import contextlib
import copy
import json
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from textrl.errors import UserError, did_you_mean
from textrl.paths import expanded

STATE_FOLDER = "trainer_state"
CONFIG_FILE = "config.yaml"
MAY_CHANGE = (
    *("total_timesteps", "save_every", "device", "threads", "log_table", "output_dir"),
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
    if path.is_dir() and any(path.iterdir()) and not (resume or overwrite):
        raise UserError(
            f"{path} exists and is not empty; continue it with --resume, replace it with "
            f"--overwrite, or name another folder"
        )
    return path


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
    if overwrite and path.is_dir() and any(path.iterdir()):
        refuse_to_delete(path, inputs)
        shutil.rmtree(path)
    if resume and kept.exists():
        before = yaml.safe_load(kept.read_text(encoding="utf-8"))
        if not isinstance(before, dict):
            raise UserError(f"{kept} holds no settings; put back a copy, or start the run anew")
        for name, value in settings.items():
            if name not in MAY_CHANGE and before.get(name) != value:
                raise UserError(
                    f"--resume with another {name}: the run in {path} has {before.get(name)!r}, "
                    f"not {value!r}"
                )
    path.mkdir(parents=True, exist_ok=True)
    kept.write_text(yaml.safe_dump(dict(settings), sort_keys=False), encoding="utf-8")
    return path


def check_finite(model: nn.Module, consequence: str) -> None:
    """Raise UserError if a parameter holds NaN or infinity; the first one is named.

    Args:
        model: looked through whole: a frozen weight spoils what the others learn too.
        consequence: what follows for the model, the end of "so it ...".
    """
    for name, parameter in model.named_parameters():
        finite = parameter.isfinite()
        if not finite.all():
            count = int((~finite).sum())
            raise UserError(
                f"the weights of this {type(model).__name__} are not finite, so it {consequence}: "
                f"{name} holds {count} NaN or infinite values of {parameter.numel()}; use a "
                f"checkpoint that is whole"
            )


def save_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path
) -> None:
    """Write a plain transformers checkpoint: safetensors, config, tokenizer, generation config.

    A PEFT model is merged first (a copy of it), so that plain transformers loads the result.

    Raises:
        UserError: a weight is not finite.
    """
    if hasattr(model, "merge_and_unload"):
        adapted: Any = copy.deepcopy(model)
        model = adapted.merge_and_unload()
    check_finite(model, "cannot be saved")
    model.save_pretrained(str(folder), safe_serialization=True)
    tokenizer.save_pretrained(str(folder))


def state_file(folder: Path) -> Path:
    """Return where a run's resumable state lies, if it has one."""
    return folder / STATE_FOLDER / "state.pt"


def has_state(folder: Path) -> bool:
    """Return whether a folder holds a resumable state."""
    return state_file(folder).exists()


def save_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Write a resumable state; a crash in the middle leaves the one before intact."""
    target = folder / STATE_FOLDER
    target.mkdir(parents=True, exist_ok=True)
    torch.save(dict(state), target / "state.new")
    os.replace(target / "state.new", target / "state.pt")


def load_state(folder: Path) -> dict[str, Any] | None:
    """Return the last resumable state, or None. Loads tensors and plain data only, no pickles.

    Raises:
        UserError: the file is cut off or altered: the checksums of its parts do not hold.
    """
    path = state_file(folder)
    if not path.exists():
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            wrong = archive.testzip()
        if wrong is not None:
            raise zipfile.BadZipFile(f"the checksum of {wrong} is wrong")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damage shows as an error of any kind, by what it hits
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{path} is damaged ({reason}); delete it and start anew, or put back a copy"
        ) from error
    if not isinstance(state, dict):
        raise UserError(f"{path} is not a state of textrl; delete it and start anew")
    return state


def clear_state(folder: Path) -> None:
    """Remove the resumable state of a run that is complete."""
    shutil.rmtree(folder / STATE_FOLDER, ignore_errors=True)


def read_agent(path: str | Path, name: str, config_class: type[Any]) -> tuple[dict[str, Any], Any]:
    """Return what agent.json of a folder holds, and the configuration in it.

    Args:
        path: where an agent was saved.
        name: of the agent.
        config_class: of its configuration.

    Raises:
        UserError: there is none, it is damaged, or of another agent.
    """
    file = expanded(path) / "agent.json"
    if not file.exists():
        raise UserError(f"{file.parent} holds no saved agent ({file.name} is missing)")
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
        settings, found = dict(saved["config"]), saved["agent"]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{file} is damaged ({error}); put back a copy") from error
    if found != name:
        raise UserError(f"{file.parent} holds a {found} agent, not {name}")
    known = [field.name for field in fields(config_class)]
    for option in settings:
        if option not in known:
            hint = did_you_mean(option, known)
            raise UserError(f"{file}: {config_class.__name__} has no option {option!r}{hint}")
    return saved, config_class(**settings)


def replace_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Write a folder anew so that a crash at any moment leaves the old or the new one whole."""
    fresh, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    write(fresh)
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def latest_folder(folder: Path) -> Path | None:
    """Return the folder that `replace_folder` left whole, or None."""
    old = folder.with_name(folder.name + ".old")
    return next((path for path in (folder, old) if path.exists()), None)


def write_json(path: Path, content: object) -> None:
    """Write JSON that a person can read, whole or not at all."""
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(fresh, path)
