"""When a trainer's run may go on from a save, and what a save of it holds.

A run goes on when it is asked to, with the configuration and the data that it began with; how a
save is written and read is in `checkpoint.py`.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from textrl.checkpoint import STATE_FILE, Checkpoints, load_state, save_state
from textrl.config import TrainingConfig
from textrl.digests import data_digest, weights_digest
from textrl.errors import UserError
from textrl.run_folder import MAY_CHANGE
from textrl.stopping import uninterrupted
from textrl.updater import Updater


def is_complete(folder: Path) -> bool:
    """Return whether a trainer's folder holds its model and no save of an unfinished run."""
    return any(folder.glob("model*.safetensors*")) and not Checkpoints(folder).exist()


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
    elif resume and not Checkpoints(folder).exist():
        raise UserError(
            f"{folder} holds no save to resume from ({Checkpoints(folder).folder} has none); start "
            f"the run anew, without resume"
        )
    elif not resume and Checkpoints(folder).exist():
        raise UserError(
            f"{folder} holds the saves of a run that is not finished; continue it with "
            f"train(resume=True), or delete {Checkpoints(folder).folder} to start anew"
        )


OTHER = {
    "data": "the examples are not those that the run in {} began with; give the same file and "
    "tokenizer",
    "model": "the weights are not those that the run in {} began with; give the same model",
}
"""What is wrong where a digest has changed, for which no value can be shown."""


def run_identity(
    stage: str, config: TrainingConfig, examples: Iterable[object], model: nn.Module
) -> dict[str, Any]:
    """Return what a resumed run must share with the one that saved its state.

    Args:
        stage: The name of the trainer.
        config: Its configuration, of which some fields may change.
        examples: The data as they are trained on; a digest of them is kept.
        model: The model before the first update; a digest of its weights is kept.
    """
    settings = {name: v for name, v in asdict(config).items() if name not in MAY_CHANGE}
    return {
        "stage": stage,
        **settings,
        "data": data_digest(examples),
        "model": weights_digest(model),
    }


def check_identity(folder: Path, saved: Any, present: dict[str, Any]) -> None:
    """Raise UserError, naming what differs, if a state is not of the present run."""
    if not isinstance(saved, dict):
        raise UserError(f"{folder} holds no state of a trainer on a fixed data set")
    for name, value in present.items():
        if saved.get(name) == value:
            continue
        if name in OTHER:
            raise UserError(
                f"resume with another {name}: {OTHER[name].format(folder)}, or start anew in "
                f"another folder"
            )
        raise UserError(
            f"resume with another {name}: the run in {folder} has {saved.get(name)!r}, not "
            f"{value!r}; give the same, or start anew in another folder"
        )


@dataclass(frozen=True, kw_only=True)
class States:
    """A trainer's run as its saves see it."""

    model: nn.Module
    updater: Updater
    checkpoints: Checkpoints
    identity: dict[str, Any]
    """What a resumed run must share, see `run_identity`."""

    def save(self) -> None:
        """Save what the updates so far have made, in the main process."""
        if self.updater.accelerator.is_main_process:
            with uninterrupted():
                self.checkpoints.save(self.updater.updates, self._write)

    def _write(self, folder: Path) -> None:
        state = {"run": self.identity, "model": self.model.state_dict()}
        save_state(folder / STATE_FILE, state | self.updater.state())

    def restore(self, save: Path) -> None:
        """Go on from a save, which must be of this run."""
        state = load_state(save / STATE_FILE)
        check_identity(self.checkpoints.run, state.get("run"), self.identity)
        try:
            self.model.load_state_dict(state["model"])
            self.updater.load(state)
        except (RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"{save / STATE_FILE} is of another model ({reason}); give the one that the run "
                f"began with"
            ) from error
