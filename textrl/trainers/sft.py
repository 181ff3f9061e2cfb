"""Supervised fine-tuning: the mean negative log-likelihood of demonstrations (step 1 of RLHF)."""

from pathlib import Path

import torch
from stable_baselines3.common.logger import Logger
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from textrl.bounds import checked_config
from textrl.chat import end_ids
from textrl.config import SFTConfig
from textrl.data import Source, load_records, split_by_prompt
from textrl.encoding import sft_sequences
from textrl.limits import check_lengths, check_vocabulary
from textrl.loop import FitTask
from textrl.models import eos_id, split_lm
from textrl.packing import filled_batches
from textrl.policy import PolicyModule
from textrl.trainers.base import Trainer
from textrl.types import Sequence, stack_sequences
from textrl.updater import LossSum


class SFTTrainer(Trainer):
    """Trains a causal language model on `text`, `prompt` + `completion`, or chat `messages`.

    If heldout_share > 0, `train` returns `heldout_loss` in nats per token.
    """

    config: SFTConfig

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
            model: The model to train, in place.
            tokenizer: The tokenizer of the model.
            data: A file, `hub:OWNER/NAME`, list of dicts or `datasets.Dataset`.
            config: The hyper-parameters.
            output_dir: The folder for the checkpoint, the metrics and the state for a resume.
            logger: An SB3 logger; None makes one that writes to output_dir.
            shown: Whether to show progress.

        Raises:
            UserError: the data cannot be read; file and line are named.
        """
        super().__init__(model, tokenizer, output_dir, logger, shown)
        self.config = checked_config(self, config, SFTConfig)
        eos_id(tokenizer)  # raises an error if there is no EOS: texts could not end
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

    def _task(self) -> FitTask:
        sequences = self.train_sequences
        return FitTask(
            stage="sft",
            lengths=[len(s.ids) for s in sequences],
            weights=[float(s.num_counted) for s in sequences],
            examples=[*sequences, "held out", *self.heldout_sequences],
            loss=lambda rows: self._loss([sequences[i] for i in rows]),
        )

    @property
    def _holds_out(self) -> bool:
        return bool(self.heldout_sequences)

    def _evaluate(self) -> dict[str, float]:
        """Return the loss on the held-out part in nats per token."""
        return self._heldout_loss(self.heldout_sequences)

    def evaluate_on(self, data: Source) -> dict[str, float]:
        """Return the loss on other data of the same form in nats per token."""
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
