"""`Trainer`, the base class of the three trainers: it trains, saves, logs and resumes a run."""

from abc import ABC, abstractmethod
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from stable_baselines3.common.logger import Logger
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from textrl.adapters import save_adapter
from textrl.callbacks import MaybeCallback, OneRow, UpdateCallbacks, as_callback
from textrl.checkpoint import Checkpoints, logged_by, save_model
from textrl.config import TrackerName, TrainingConfig
from textrl.durable import save_files
from textrl.engine import make_accelerator
from textrl.errors import UserError
from textrl.loop import FitTask, fit
from textrl.metrics import open_logger
from textrl.paths import expanded
from textrl.resuming import check_resume
from textrl.run_folder import held
from textrl.stopping import terminable, uninterrupted
from textrl.trackers import trackers
from textrl.trainable import check_trainable


class Trainer(ABC):
    """Trains a model on a fixed data set; a subclass defines the examples and the loss."""

    config: TrainingConfig
    what: ClassVar[str] = "policy"
    """The name of the model in error messages."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        output_dir: str | Path | None,
        logger: Logger | None,
        shown: bool,
    ) -> None:
        """Keep the model and the settings of the run (see the subclasses).

        Raises:
            UserError: there is no model or no tokenizer, or the model has no weights to train.
        """
        check_trainable(model, self.what)
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise UserError(
                f"the tokenizer is {tokenizer!r}; expected a live one: "
                f"textrl.models.load_tokenizer(NAME)"
            )
        self.model, self.tokenizer, self._given = model, tokenizer, logger
        self.logger = logger or Logger(folder=None, output_formats=[])
        self.num_timesteps = 0
        self.output_dir = None if output_dir is None else expanded(output_dir)
        self._shown = shown

    @abstractmethod
    def _task(self) -> FitTask:
        """Return the examples and their loss."""

    def evaluate(self) -> dict[str, float]:
        """Return the metrics of the held-out part (see the class docstring).

        Raises:
            UserError: nothing is held out.
        """
        if not self._holds_out:
            raise UserError("nothing is held out to evaluate on; set heldout_share")
        return self._evaluate()

    @abstractmethod
    def _evaluate(self) -> dict[str, float]:
        """Return the metrics of the held-out part, which is not empty."""

    @property
    @abstractmethod
    def _holds_out(self) -> bool:
        """Whether there is a held-out part."""

    def _keep(self, folder: Path) -> None:
        """Write further files about the trained model to the run folder."""
        return

    def _finish(self) -> dict[str, float]:
        """Do the last work before the trained model is saved; return metrics to report."""
        return {}

    @property
    def iteration(self) -> int:
        """The number of updates taken, by the name that callbacks know."""
        return self.num_timesteps

    @property
    def env_steps(self) -> int:
        """The number of updates taken, by the name that callbacks know."""
        return self.num_timesteps

    def get_env(self) -> OneRow:
        """Return what SB3's callbacks count by: a trainer acts in no environment."""
        return OneRow()

    def save(self, path: str | Path) -> None:
        """Save the model and its tokenizer to a folder, which is replaced as a whole."""
        save_files(expanded(path), self._write)

    def _write(self, folder: Path) -> None:
        """Write the model and its tokenizer, and beside a merged model its adapter and base."""
        save_model(self.model, self.tokenizer, folder)
        save_adapter(self.model, self.tokenizer, folder)

    def train(
        self,
        resume: bool = False,
        callback: MaybeCallback = None,
        *,
        log_table: bool = False,
        track: TrackerName | None = None,
    ) -> dict[str, float]:
        """Train, save to output_dir, and return the final metrics (see the class).

        Args:
            resume: Whether to go on, bit for bit, from the newest save that a stopped run left in
                output_dir; with the configuration, data and model that it began with.
            callback: of SB3 or of ours, a list of them, or a function; see `textrl.callbacks`. One
                that returns False ends the training after the update.
            log_table: Whether SB3's table of the metrics is printed as well.
            track: A tracker that gets the metrics too, "wandb" or "trackio".

        Raises:
            UserError: a save lies there and resume is not asked for, or none does and it is; what
                differs from the run that left it is named. Weights or gradients not finite.
            Terminated: the process was asked to end by SIGTERM; as with Ctrl+C, a save is left.
        """
        given = as_callback(callback)
        if given is not None and make_accelerator(self.model.device).num_processes > 1:
            raise UserError("callbacks run in one process; leave the callback out, or the others")
        if track is not None and self.output_dir is None:
            raise UserError(f"{track} follows the metrics of a run folder; give output_dir")
        callbacks = UpdateCallbacks(self, given)
        check_resume(self.output_dir, resume=resume)
        if self.output_dir is None:
            return self._train(None, callbacks, None, log_table=log_table)
        accelerator = make_accelerator(self.model.device)
        saves = Checkpoints(self.output_dir)
        with held(self.output_dir) if accelerator.is_main_process else nullcontext(), terminable():
            with accelerator.main_process_first():  # it moves damaged saves aside
                save = saves.newest() if resume else None
            return self._train(save, callbacks, track, log_table=log_table)

    def _train(
        self,
        save: Path | None,
        callbacks: UpdateCallbacks,
        track: TrackerName | None,
        *,
        log_table: bool,
    ) -> dict[str, float]:
        rows = b"" if save is None else logged_by(save)
        accelerator = make_accelerator(self.model.device)
        folder = self.output_dir if accelerator.is_main_process else None
        more = trackers(track, folder)
        with open_logger(
            folder, self._given, table=log_table, begin_with=rows, more=more
        ) as logger:
            self.logger = logger
            heldout = fit(
                self.model,
                replace(self._task(), evaluate=self._evaluate if self._holds_out else None),
                self.config,
                accelerator=accelerator,
                logger=logger,
                folder=self.output_dir,
                resume_from=save,
                shown=self._shown,
                callbacks=callbacks,
            )
        metrics = self._finish()
        if folder is not None:
            with uninterrupted():
                save_files(folder, self._write)
                self._keep(folder)
                Checkpoints(folder).clear()
        accelerator.wait_for_everyone()
        if self._holds_out and not heldout:  # the save was one after the last update
            heldout = self.evaluate()
        return metrics | heldout
