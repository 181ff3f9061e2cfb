"""Direct preference optimisation on a fixed set of pairs (2305.18290).

The reference is the model before training. Its log-probs of all pairs are computed once, before the
first update, and kept, so that no second model is in memory. Losses without a reference (simpo,
orpo, sft) skip this. Chosen and rejected completions are read in one pass, in which their prompt is
computed once (`textrl.packing`).
"""

from pathlib import Path
from typing import cast

import torch
from stable_baselines3.common.logger import Logger
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from textrl.bounds import checked_config
from textrl.chat import end_ids
from textrl.config import DPOConfig
from textrl.data import Source, load_records, split_by_prompt
from textrl.errors import UserError
from textrl.limits import check_lengths, check_vocabulary
from textrl.loop import FitTask
from textrl.loss_names import loss_weights, needs_reference
from textrl.losses import dpo_loss
from textrl.models import eos_id, split_lm
from textrl.packing import filled_batches
from textrl.policy import PolicyModule
from textrl.precision import autocast, pick_precision
from textrl.shared_prompts import with_shared_prompts
from textrl.trainers.base import Trainer
from textrl.trainers.pairs import Pair as Pair
from textrl.trainers.pairs import is_unpaired, paired, unpaired
from textrl.types import Sequence, stack_sequences
from textrl.updater import LossSum


def sequence_logprobs(policy: PolicyModule, sequences: list[Sequence]) -> Tensor:
    """Return the completions' log-probs in nats per sequence, [N]."""
    return policy.logprobs_of(stack_sequences(sequences, policy.device)).sum(1)


def pair_logprobs(policy: PolicyModule, pairs: list[Pair]) -> Tensor:
    """Return the log-probs of chosen and rejected completions in nats per sequence, [2 B]."""
    sequences = [p.chosen for p in pairs] + [p.rejected for p in pairs]
    return sequence_logprobs(policy, sequences).view(2, len(pairs))


def mismatched(pairs: list[Pair], max_length: int) -> list[Sequence]:
    """Return each pair's prompt with the chosen completion of the next pair with another prompt.

    Raises:
        UserError: all pairs have the same prompt.
    """
    result = []
    for index, pair in enumerate(pairs):
        start = pair.chosen.counts.index(True)
        prompt = pair.chosen.ids[:start]
        for step in range(1, len(pairs)):
            other = pairs[(index + step) % len(pairs)]
            begin = other.chosen.counts.index(True)
            if other.chosen.ids[:begin] != prompt:
                break
        else:
            raise UserError("kto estimates the KL with other prompts' texts; give several prompts")
        ids = (prompt + other.chosen.ids[begin:])[:max_length]
        result.append(Sequence(ids=ids, counts=[i >= start for i in range(len(ids))]))
    return result


@torch.no_grad()
def all_logprobs(
    policy: PolicyModule, sequences: list[Sequence], micro_batch_tokens: int
) -> Tensor:
    """Return `sequence_logprobs` of any number of sequences, without gradient, [N]."""
    result = torch.zeros(len(sequences), device=policy.device)
    for rows in filled_batches([len(s.ids) for s in sequences], micro_batch_tokens):
        result[rows] = sequence_logprobs(policy, [sequences[i] for i in rows])
    return result


def completion_lengths(pairs: list[Pair], device: torch.device) -> Tensor:
    """Return the numbers of tokens of chosen and rejected completions, [2 B]."""
    sides = [[p.chosen.num_counted for p in pairs], [p.rejected.num_counted for p in pairs]]
    return torch.tensor(sides, device=device)


def implicit_rewards(
    logprobs: Tensor, reference: Tensor, lengths: Tensor, config: DPOConfig
) -> Tensor:
    """Return the implicit rewards by which a loss orders chosen and rejected completions, [2 B].

    They are beta (log pi - log pi_ref), or for a loss without a reference, log pi per token.
    """
    if needs_reference(config.loss_type):
        return config.beta * (logprobs - reference)
    return logprobs / lengths


def reference_logprobs(policy: PolicyModule, pairs: list[Pair], micro_batch_tokens: int) -> Tensor:
    """Return `pair_logprobs` of all pairs, without gradient, [2 N]."""
    result = torch.zeros(2, len(pairs), device=policy.device)
    with torch.no_grad():
        for rows in filled_batches([p.num_tokens for p in pairs], micro_batch_tokens):
            result[:, rows] = pair_logprobs(policy, [pairs[i] for i in rows])
    return result


def dpo_loss_sum(
    policy: PolicyModule, pairs: list[Pair], reference: Tensor, config: DPOConfig, kl: Tensor
) -> LossSum:
    """Return the summed preference loss of some pairs.

    Args:
        policy: The model in training.
        pairs: The pairs of one micro-batch.
        reference: The reference's log-probs of the pairs, in nats, [2 B]; ignored by a loss without
            a reference.
        config: The loss and its settings.
        kl: Estimate of KL(policy || reference) over the whole minibatch, in nats (KTO's baseline).
    """
    logprobs = pair_logprobs(policy, pairs)
    lengths = completion_lengths(pairs, policy.device)
    losses = dpo_loss(
        logprobs[0],
        logprobs[1],
        reference[0],
        reference[1],
        beta=config.beta,
        loss_type=config.loss_type,
        label_smoothing=label_smoothing(pairs, config, policy.device),
        chosen_lengths=lengths[0],
        rejected_lengths=lengths[1],
        kl=kl,
        simpo_margin=config.simpo_margin,
    )
    rewards = implicit_rewards(logprobs.detach(), reference, lengths, config)
    metrics = {"accuracy": float((rewards[0] > rewards[1]).sum())}
    if needs_reference(config.loss_type):
        metrics |= {
            "margin": float((rewards[0] - rewards[1]).sum()),
            "chosen_reward": float(rewards[0].sum()),
            "rejected_reward": float(rewards[1].sum()),
        }
    return LossSum(loss=losses.sum(), metrics=metrics)


def label_smoothing(pairs: list[Pair], config: DPOConfig, device: torch.device) -> float | Tensor:
    """Return the assumed share of flipped labels; one number per pair if raters disagreed."""
    flipped = config.label_smoothing
    if all(p.certainty == 1.0 for p in pairs):
        return flipped
    names = list(loss_weights(config.loss_type))
    if "robust" in names or not {"sigmoid", "cdpo"} & set(names):
        raise UserError(
            f"{names[0]} takes all labels for equally certain; drop the column certainty, or take "
            f"sigmoid or cdpo"
        )
    certainty = torch.tensor([p.certainty for p in pairs], device=device)
    return certainty * flipped + (1 - certainty) * (1 - flipped)


class DPOTrainer(Trainer):
    """Trains a causal language model on `prompt`, `chosen`, `rejected`, as plain text or chat.

    Without a prompt, chosen and rejected are whole chats, and their common beginning is the prompt.
    For the losses "kto" and "apo_zero" the rows may be `prompt`, `completion` and `label` (true for
    a good completion) instead; see `textrl.trainers.pairs.unpaired`.
    With a column `certainty` (the share of raters who preferred the chosen completion, in [0, 1])
    the losses "sigmoid" and "cdpo" use it as a soft label; the other losses refuse it.

    If heldout_share > 0, `train` returns `heldout_accuracy`: the share of held-out pairs that
    `implicit_rewards` puts in the right order.
    """

    config: DPOConfig

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        data: Source | list[Pair],
        config: DPOConfig | None = None,
        *,
        output_dir: str | Path | None = None,
        logger: Logger | None = None,
        shown: bool = True,
    ) -> None:
        """Read and encode the data, and compute the reference's log-probs.

        Args:
            model: The model to train, in place. Before training, it is the reference.
            tokenizer: The tokenizer of the model.
            data: A file, `hub:OWNER/NAME`, list of dicts or `datasets.Dataset`; or pairs that are
                already encoded (such as tokens that a policy sampled), of which none is held out.
            config: The hyper-parameters.
            output_dir: The folder for the checkpoint, the metrics and the state for a resume.
            logger: An SB3 logger; None makes one that writes to output_dir.
            shown: Whether to show progress.

        Raises:
            UserError: the data cannot be read; file and line are named.
        """
        super().__init__(model, tokenizer, output_dir, logger, shown)
        self.config = checked_config(self, config, DPOConfig)
        eos_id(tokenizer)  # raises an error if there is no EOS: texts could not end
        check_vocabulary(model, tokenizer)
        self._policy = PolicyModule(split_lm(model))
        self._precision = pick_precision(self.config.precision, model, self._policy.device)
        model.eval()
        self.train_pairs, self.heldout_pairs = self._pairs_of(data)
        for pairs in (self.train_pairs, self.heldout_pairs):
            longer = [max(len(p.chosen.ids), len(p.rejected.ids)) for p in pairs]
            check_lengths(model, longer, "pair")
        tokens = self.config.micro_batch_tokens
        self._kl = torch.zeros((), device=self._policy.device)
        self._strangers = (
            mismatched(self.train_pairs, self.config.max_length) if self._needs_kl else []
        )
        with autocast(self._precision, self._policy.device):
            self._reference_of_strangers = all_logprobs(self._policy, self._strangers, tokens)
            self._reference = self._reference_of(self.train_pairs)
            self._heldout_reference = self._reference_of(self.heldout_pairs)

    def _pairs_of(self, data: Source | list[Pair]) -> tuple[list[Pair], list[Pair]]:
        """Return the pairs to train on and the held-out ones."""
        if isinstance(data, list) and data and isinstance(data[0], Pair):
            return cast(list[Pair], data), []
        records = with_shared_prompts(load_records(cast(Source, data), "pairs"), texts=True)
        train, heldout = split_by_prompt(records, self.config.heldout_share)
        ends, limit = end_ids(self.tokenizer, self.model), self.config.max_length
        encode = unpaired if is_unpaired(records) else paired
        train_pairs, heldout_pairs = (
            encode(self.tokenizer, part, self.config.loss_type, limit, ends)
            for part in (train, heldout)
        )
        return train_pairs, heldout_pairs

    def _task(self) -> FitTask:
        pairs = self.train_pairs
        return FitTask(
            stage="dpo",
            lengths=[p.num_tokens for p in pairs],
            weights=[1.0] * len(pairs),
            examples=[*pairs, "held out", *self.heldout_pairs],
            loss=lambda rows: dpo_loss_sum(
                self._policy,
                [pairs[i] for i in rows],
                self._reference[:, rows],
                self.config,
                self._kl,
            ),
            prepare=self._estimate_kl,
        )

    @property
    def _holds_out(self) -> bool:
        return bool(self.heldout_pairs)

    @torch.no_grad()
    def _evaluate(self) -> dict[str, float]:
        """Return the share of held-out pairs whose implicit reward is in the right order."""
        pairs, right = self.heldout_pairs, 0.0
        tokens = self.config.micro_batch_tokens
        for rows in filled_batches([p.num_tokens for p in pairs], tokens):
            some, reference = [pairs[i] for i in rows], self._heldout_reference[:, rows]
            with autocast(self._precision, self._policy.device):
                logprobs = pair_logprobs(self._policy, some)
            lengths = completion_lengths(some, self._policy.device)
            rewards = implicit_rewards(logprobs, reference, lengths, self.config)
            right += float((rewards[0] > rewards[1]).sum())
        return {"heldout_accuracy": right / len(pairs)}

    def _reference_of(self, pairs: list[Pair]) -> Tensor:
        """Return `reference_logprobs`, or zeros for a loss without a reference, [2 N]."""
        if not needs_reference(self.config.loss_type):
            return torch.zeros(2, len(pairs), device=self._policy.device)
        return reference_logprobs(self._policy, pairs, self.config.micro_batch_tokens)

    @property
    def _needs_kl(self) -> bool:
        return "kto" in loss_weights(self.config.loss_type)

    def _estimate_kl(self, rows: list[int]) -> None:
        """Estimate KL(policy || reference) from a minibatch's mismatched texts, for KTO.

        The chosen completion of another prompt is used in place of a sample of the policy
        (2402.01306, section 4.2). Every process reads the whole minibatch, so that all use the same
        estimate.
        """
        if self._needs_kl:
            strangers = [self._strangers[i] for i in rows]
            with autocast(self._precision, self._policy.device):
                found = all_logprobs(self._policy, strangers, self.config.micro_batch_tokens)
            self._kl = (found - self._reference_of_strangers[rows]).mean()
