"""What the three trainers share: where a run goes, and how it is trained, saved and resumed."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from stable_baselines3.common.logger import Logger
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from textrl.checkpoint import clear_state, save_model
from textrl.config import TrainingConfig
from textrl.engine import make_accelerator
from textrl.errors import UserError
from textrl.loop import FitTask, fit
from textrl.metrics import open_logger
from textrl.paths import expanded
from textrl.resuming import check_resume
from textrl.trainable import check_trainable


class Trainer(ABC):
    """Trains a model on a fixed data set; a subclass says what is read and what is minimised."""

    config: TrainingConfig
    what: ClassVar[str] = "policy"
    """What the model is called in error messages."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        output_dir: str | Path | None,
        logger: Logger | None,
        shown: bool,
    ) -> None:
        """Take what is trained, and where the run goes (see a subclass).

        Raises:
            UserError: no model, or one without weights to train; no tokenizer.
        """
        check_trainable(model, self.what)
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise UserError(
                f"the tokenizer is {tokenizer!r}; expected a live one: "
                f"textrl.models.load_tokenizer(NAME)"
            )
        self.model, self.tokenizer, self.logger = model, tokenizer, logger
        self.output_dir = None if output_dir is None else expanded(output_dir)
        self._shown = shown

    @abstractmethod
    def _task(self) -> FitTask:
        """Return the examples and their loss."""

    def evaluate(self) -> dict[str, float]:
        """Return the metrics of the held-out part (see the class).

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

    def _finish(self) -> dict[str, float]:
        """Do what is left to do before the trained model is saved; return what to report of it."""
        return {}

    def train(self, resume: bool = False) -> dict[str, float]:
        """Train, save to output_dir, and return the final metrics (see the class).

        Args:
            resume: go on, bit for bit, from the state that a run left in output_dir when it was
                stopped; with the configuration, data and model that it began with.

        Raises:
            UserError: a state lies there and resume is not asked for, or none does and it is; what
                differs from the run that left it is named. Weights or gradients not finite.
        """
        check_resume(self.output_dir, resume=resume)
        with open_logger(self.output_dir, self.logger) as logger:
            fit(
                self.model,
                self._task(),
                self.config,
                accelerator=make_accelerator(self.model.device),
                logger=logger,
                state_dir=self.output_dir,
                resume=resume,
                shown=self._shown,
            )
        metrics = self._finish()
        if self.output_dir is not None:
            save_model(self.model, self.tokenizer, self.output_dir)
            clear_state(self.output_dir)
        return metrics | (self.evaluate() if self._holds_out else {})
