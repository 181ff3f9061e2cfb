"""Supervised fine-tuning: the mean negative log-likelihood of demonstrations (step 1 of RLHF)."""

from pathlib import Path

import torch
from stable_baselines3.common.logger import Logger
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from textrl.batching import filled_batches
from textrl.chat import end_ids
from textrl.checkpoint import clear_state, save_model
from textrl.config import SFTConfig
from textrl.data import Source, load_records, split_by_prompt
from textrl.encoding import sft_sequences
from textrl.engine import make_accelerator
from textrl.loop import FitTask, fit
from textrl.metrics import open_logger
from textrl.models import eos_id, split_lm
from textrl.paths import expanded
from textrl.policy import PolicyModule
from textrl.resuming import check_resume
from textrl.trunks import check_lengths, check_vocabulary
from textrl.types import Sequence, stack_sequences
from textrl.updater import LossSum


class SFTTrainer:
    """Trains a causal language model on `text`, `prompt` + `completion`, or chat `messages`."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        data: Source,
        config: SFTConfig | None = None,
        *,
        output_dir: str | Path | None = None,
        logger: Logger | None = None,
        shown: bool = True,
    ) -> None:
        """Read and encode the data.

        Args:
            model: trained in place.
            tokenizer: of the model.
            data: a file, hub name, list of dicts or `datasets.Dataset`.
            config: sizes and rates.
            output_dir: the checkpoint, the metrics and resumable states go here.
            logger: SB3's; None is one that writes to output_dir.
            shown: show progress.

        Raises:
            UserError: data that cannot be read; file and line are named.
        """
        self.model, self.tokenizer = model, tokenizer
        self.config = config or SFTConfig()
        self.output_dir = None if output_dir is None else expanded(output_dir)
        self.logger = logger
        self._shown = shown
        eos_id(tokenizer)  # without it no text would end
        check_vocabulary(model, tokenizer)
        self._ends = end_ids(tokenizer, model)
        train, heldout = split_by_prompt(
            load_records(data, "demonstrations"), self.config.heldout_share
        )
        limit = self.config.max_length
        self.train_sequences = sft_sequences(tokenizer, train, limit, self._ends)
        self.heldout_sequences = sft_sequences(tokenizer, heldout, limit, self._ends)
        for sequences in (self.train_sequences, self.heldout_sequences):
            check_lengths(model, [len(s.ids) for s in sequences], "demonstration")
        self._policy = PolicyModule(split_lm(model))

    def train(self, resume: bool = False) -> dict[str, float]:
        """Train, save to output_dir, and return the final metrics.

        Returns: `heldout_loss`, nats a token, where heldout_share > 0.

        Args:
            resume: go on, bit for bit, from the state that a run left in output_dir when it was
                stopped; with the configuration, data and model that it began with.

        Raises:
            UserError: a state lies there and resume is not asked for, or none does and it is; what
                differs from the run that left it is named. Weights or gradients not finite.
        """
        check_resume(self.output_dir, resume=resume)
        sequences = self.train_sequences
        task = FitTask(
            stage="sft",
            lengths=[len(s.ids) for s in sequences],
            weights=[float(s.num_counted) for s in sequences],
            examples=sequences,
            loss=lambda rows: self._loss([sequences[i] for i in rows]),
        )
        with open_logger(self.output_dir, self.logger) as logger:
            fit(
                self.model,
                task,
                self.config,
                accelerator=make_accelerator(self._policy.device),
                logger=logger,
                state_dir=self.output_dir,
                resume=resume,
                shown=self._shown,
            )
        if self.output_dir is not None:
            save_model(self.model, self.tokenizer, self.output_dir)
            clear_state(self.output_dir)
        return self.evaluate() if self.heldout_sequences else {}

    def evaluate(self) -> dict[str, float]:
        """Return the loss on the held-out part, nats a token."""
        return self._heldout_loss(self.heldout_sequences)

    def evaluate_on(self, data: Source) -> dict[str, float]:
        """Return the loss on other data in the same form, nats a token."""
        records = load_records(data, "demonstrations")
        limit = self.config.max_length
        return self._heldout_loss(sft_sequences(self.tokenizer, records, limit, self._ends))

    @torch.no_grad()
    def _heldout_loss(self, sequences: list[Sequence]) -> dict[str, float]:
        lengths = [len(s.ids) for s in sequences]
        batches = filled_batches(lengths, self.config.micro_batch_tokens)
        total = sum(self._loss([sequences[i] for i in rows]).loss.item() for rows in batches)
        return {"heldout_loss": total / sum(s.num_counted for s in sequences)}

    def _loss(self, sequences: list[Sequence]) -> LossSum:
        batch = stack_sequences(sequences, self._policy.device)
        return LossSum(loss=-self._policy.logprobs_of(batch).sum(), metrics={})
