"""When a trainer's run may go on from its state, and how Ctrl+C leaves it one.

A run goes on when it is asked to, with the configuration and the data that it began with; the
state itself is written and read in `checkpoint.py`.
"""

import hashlib
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from textrl.checkpoint import MAY_CHANGE, has_state, load_state, save_state, state_file
from textrl.config import TrainingConfig
from textrl.errors import UserError
from textrl.updater import Updater


def is_complete(folder: Path) -> bool:
    """Return whether a trainer's folder holds its model and no state of an unfinished run."""
    return any(folder.glob("model*.safetensors*")) and not has_state(folder)


def check_resume(folder: Path | None, *, resume: bool) -> None:
    """Raise UserError if a run would go on unasked, or is asked to where it cannot.

    Args:
        folder: output_dir of the run; None where nothing is saved.
        resume: whether it is to go on.
    """
    if folder is None:
        if resume:
            raise UserError("resume=True needs output_dir, the folder of the run to continue")
    elif resume and is_complete(folder):
        raise UserError(f"the run in {folder} is complete; nothing to resume")
    elif resume and not has_state(folder):
        raise UserError(
            f"{folder} holds no state to resume ({state_file(folder)} is missing); start the run "
            f"anew, without resume"
        )
    elif not resume and has_state(folder):
        raise UserError(
            f"{folder} holds the state of a run that is not finished; continue it with "
            f"train(resume=True), or delete {state_file(folder)} to start anew"
        )


def run_identity(stage: str, config: TrainingConfig, examples: Iterable[object]) -> dict[str, Any]:
    """Return what a resumed run must share with the one that saved its state.

    Args:
        stage: the trainer.
        config: all of it but what may change.
        examples: the data as they are trained on; a digest of them is kept.
    """
    digest = hashlib.sha256()
    for example in examples:
        digest.update(repr(example).encode())
    settings = {name: v for name, v in asdict(config).items() if name not in MAY_CHANGE}
    return {"stage": stage} | settings | {"data": digest.hexdigest()}


def check_identity(folder: Path, saved: Any, present: dict[str, Any]) -> None:
    """Raise UserError, naming what differs, if a state is not of the present run."""
    if not isinstance(saved, dict):
        raise UserError(f"{state_file(folder)} is not the state of a trainer on a fixed data set")
    for name, value in present.items():
        if saved.get(name) == value:
            continue
        if name == "data":
            raise UserError(
                f"resume with other data: the examples are not those that the run in {folder} "
                f"began with; give the same file and tokenizer, or start anew in another folder"
            )
        raise UserError(
            f"resume with another {name}: the run in {folder} has {saved.get(name)!r}, not "
            f"{value!r}; give the same, or start anew in another folder"
        )


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold Ctrl+C back until the block has ended, so that no update is left half done."""
    if threading.current_thread() is not threading.main_thread():  # where Python handles no signal
        yield
        return
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        signal.raise_signal(signal.SIGINT)


@dataclass(frozen=True, kw_only=True)
class States:
    """A run's resumable states."""

    model: nn.Module
    updater: Updater
    folder: Path
    identity: dict[str, Any]
    """Of the run, see `run_identity`."""

    def save(self) -> None:
        """Write the state after the updates so far, in the main process."""
        if self.updater.accelerator.is_main_process:
            with uninterrupted():
                state = {"run": self.identity, "model": self.model.state_dict()}
                save_state(self.folder, state | self.updater.state())

    def restore(self) -> None:
        """Go on from the state in the folder, which must be of this run."""
        state = load_state(self.folder) or {}
        check_identity(self.folder, state.get("run"), self.identity)
        try:
            self.model.load_state_dict(state["model"])
            self.updater.load(state)
        except (RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"{state_file(self.folder)} is of another model ({reason}); give the one that the "
                f"run began with"
            ) from error
