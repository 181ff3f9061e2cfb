"""Reward modelling: Bradley-Terry on pairs and rankings (step 2 of RLHF).

All completions of a ranking are one example. So each completion is encoded once, and all pairs are
in one batch element (InstructGPT: shuffled pairs of one prompt over-fit). The trained scores are
normalised on samples of the SFT policy; their mean and std are stored in the checkpoint's config.
"""

import copy
import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from stable_baselines3.common.logger import Logger
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from textrl.bounds import checked_config
from textrl.chat import prompt_of
from textrl.classifiers import encode_for_scoring, max_text_length, split_classifier
from textrl.config import RewardConfig
from textrl.data import Source, load_records, split_by_prompt
from textrl.durable import write_text
from textrl.encoding import ranked_texts, reward_text
from textrl.errors import UserError
from textrl.limits import check_vocabulary
from textrl.loop import FitTask
from textrl.losses import bradley_terry_loss, plackett_luce_loss, ranking_loss
from textrl.models import ensure_pad, untrained_classifier
from textrl.packing import filled_batches
from textrl.rewards import RewardModel
from textrl.rows import Records, Row
from textrl.shared_prompts import with_shared_prompts
from textrl.trainers.base import Trainer
from textrl.updater import LossSum


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """The completions of one prompt, encoded for scoring, and their ranks."""

    encoded: list[list[int]]
    ranks: list[int]
    margin: float | None

    @property
    def num_tokens(self) -> int:
        """The number of tokens of all completions, each with its prompt."""
        return sum(len(ids) for ids in self.encoded)


def _refuse_ties_only(heldout: list[Ranking]) -> None:
    if heldout and all(len(set(ranking.ranks)) == 1 for ranking in heldout):
        raise UserError("the held-out part holds ties only; raise heldout_share")


def reward_model_from(name: str | Path, seed: int = 0) -> PreTrainedModel:
    """Return a one-label classifier with the trunk of a language model or encoder and a new head.

    The head is drawn from N(0, 1 / (d + 1)) with d its input width, as in 1909.08593. The tokenizer
    needs a padding token before training, from `textrl.models.ensure_pad`; the trainer calls it.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, missing = untrained_classifier(name)
        for child_name, child in model.named_children():
            if isinstance(child, nn.Linear) and f"{child_name}.weight" in missing:
                nn.init.normal_(child.weight, std=(child.in_features + 1) ** -0.5)
    return model


class RewardTrainer(Trainer):
    """Trains a sequence classifier to order completions as people did.

    The data have the columns `chosen` and `rejected` (and optionally `prompt` and `margin`), or
    `completions` and `ranks` (0 is best, ties allowed), as plain text or chat.

    `train` returns `score_mean` and `score_std` (raw units). If heldout_share > 0, it also returns
    `heldout_accuracy`, the share of held-out pairs that are ordered as people did, and
    `heldout_loss`; both are logged after each epoch.
    """

    config: RewardConfig
    what = "reward model"

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        data: Source,
        config: RewardConfig | None = None,
        *,
        normalize_on: list[str] | None = None,
        output_dir: str | Path | None = None,
        logger: Logger | None = None,
        shown: bool = True,
    ) -> None:
        """Read and encode the data.

        Args:
            model: A classifier with one label, trained in place (see `reward_model_from`).
            tokenizer: The tokenizer of the model. If necessary, a copy of it gets a padding token
                other than EOS.
            data: A file, `hub:OWNER/NAME`, list of dicts or `datasets.Dataset`.
            config: The hyper-parameters.
            normalize_on: Texts (samples of the SFT policy) on which the score gets mean 0, std 1;
                by default the texts of the data.
            output_dir: The folder for the checkpoint, the metrics and the state for a resume.
            logger: An SB3 logger; None makes one that writes to output_dir.
            shown: Whether to show progress.

        Raises:
            UserError: the data cannot be read, or the model has more than one label.
        """
        tokenizer = copy.deepcopy(tokenizer)  # it may get a padding token
        super().__init__(model, tokenizer, output_dir, logger, shown)
        if model.config.num_labels != 1:
            raise UserError(f"a reward model has 1 label, this one {model.config.num_labels}")
        check_vocabulary(model, tokenizer)
        ensure_pad(tokenizer, model)
        self._classifier = split_classifier(model)
        self.config = checked_config(self, config, RewardConfig)
        records = with_shared_prompts(load_records(data, "rankings"))
        train, heldout = split_by_prompt(records, self.config.heldout_share)
        self.train_rankings = self._encode(train)
        self.heldout_rankings = self._encode(heldout)
        _refuse_ties_only(self.heldout_rankings)
        if isinstance(normalize_on, str):
            found = f"normalize_on is one text, {normalize_on[:40]!r}"
            raise UserError(f"{found}; expected a list of texts")
        self._normalize_on = normalize_on or self._some_texts(records)
        if len(set(self._normalize_on)) < 2:
            raise UserError("normalize_on holds one text; scores of several are needed")
        for row, text in enumerate(self._normalize_on):  # finds texts that are too long
            self._encode_text(text, f"text {row}")

    def _task(self) -> FitTask:
        rankings = self.train_rankings
        return FitTask(
            stage="reward",
            lengths=[r.num_tokens for r in rankings],
            weights=[1.0] * len(rankings),
            examples=[
                *rankings,
                *("held out", *self.heldout_rankings),
                *("normalise on", *self._normalize_on),
            ],
            loss=lambda rows: self._loss([rankings[i] for i in rows]),
        )

    @property
    def _holds_out(self) -> bool:
        return bool(self.heldout_rankings)

    def _finish(self) -> dict[str, float]:
        return self.normalize(self._normalize_on)

    @torch.no_grad()
    def normalize(self, texts: list[str]) -> dict[str, float]:
        """Store mean and std of these texts' scores in the model's config, and return them."""
        self.model.eval()
        encoded = [self._encode_text(text, f"text {row}") for row, text in enumerate(texts)]
        scores = self._classifier.scores(encoded).double()
        mean, std = float(scores.mean()), float(scores.std(unbiased=False))
        if not std > 0:
            raise UserError("the reward model gives all texts one score; it has learned nothing")
        self.model.config.score_mean, self.model.config.score_std = mean, std
        return {"score_mean": mean, "score_std": std}

    @torch.no_grad()
    def _evaluate(self) -> dict[str, float]:
        """Return the loss, and the share of pairs (without ties) ordered correctly, held out."""
        rankings, sums = self.heldout_rankings, dict.fromkeys(("loss", "right_pairs", "pairs"), 0.0)
        sizes = [ranking.num_tokens for ranking in rankings]
        for rows in filled_batches(sizes, self.config.micro_batch_tokens):
            found = self._loss([rankings[row] for row in rows])
            for name, value in (found.metrics | {"loss": float(found.loss)}).items():
                if name in sums:
                    sums[name] += value
        return {
            "heldout_accuracy": sums["right_pairs"] / sums["pairs"],
            "heldout_loss": sums["loss"] / len(rankings),
        }

    @torch.no_grad()
    def heldout_margins(self) -> list[dict[str, float]]:
        """Return each held-out pair: score of the better less score of the worse; both lengths."""
        found = []
        for ranking in self.heldout_rankings:
            scores = self._classifier.scores(ranking.encoded).tolist()
            texts = list(zip(scores, ranking.ranks, map(len, ranking.encoded), strict=True))
            for better, worse in itertools.permutations(texts, 2):
                if better[1] < worse[1]:
                    found.append(
                        {
                            "margin": better[0] - worse[0],
                            "better_length": better[2],
                            "worse_length": worse[2],
                        }
                    )
        return found

    def _keep(self, folder: Path) -> None:
        """Write the held-out pairs, for the calibration in a report."""
        lines = [json.dumps(pair) + "\n" for pair in self.heldout_margins()]
        (folder / "heldout_pairs.jsonl").unlink(missing_ok=True)
        if lines:
            write_text(folder / "heldout_pairs.jsonl", "".join(lines))

    def reward_model(self) -> RewardModel:
        """Return the trained model as a frozen reward function."""
        return RewardModel(self.model, self.tokenizer)

    def _loss(self, rankings: list[Ranking]) -> LossSum:
        scores, ranks, mask = self._score_rankings(rankings)
        margins = [r.margin for r in rankings]
        if any(m is not None for m in margins):
            margin = torch.tensor([m or 0.0 for m in margins], device=scores.device)
            losses = bradley_terry_loss(scores[:, 0], scores[:, 1], margin)
        elif self.config.loss_type == "plackett_luce":
            losses = plackett_luce_loss(scores, ranks, mask)
        else:
            losses = ranking_loss(scores, ranks, mask)
        centre = scores.square().sum(1) / mask.sum(1)
        pairs = (ranks.unsqueeze(2) < ranks.unsqueeze(1)) & mask.unsqueeze(2) & mask.unsqueeze(1)
        right = (scores.unsqueeze(2) > scores.unsqueeze(1)) & pairs
        count = pairs.sum((1, 2)).clamp_min(1)
        return LossSum(
            loss=(losses + self.config.center_coef * centre).sum(),
            metrics={
                "accuracy": float((right.sum((1, 2)) / count).sum()),
                "right_pairs": float(right.sum()),
                "pairs": float(pairs.sum()),
            },
        )

    def _score_rankings(self, rankings: list[Ranking]) -> tuple[Tensor, Tensor, Tensor]:
        """Return scores, ranks and mask, each [B K], from one pass over all completions."""
        device, most = self.model.device, max(len(r.ranks) for r in rankings)
        mask = torch.tensor([[k < len(r.ranks) for k in range(most)] for r in rankings])
        ranks = torch.tensor([r.ranks + [0] * (most - len(r.ranks)) for r in rankings])
        flat = self._classifier.scores([ids for r in rankings for ids in r.encoded])
        scores = torch.zeros(mask.shape, device=device).masked_scatter(mask.to(device), flat)
        return scores, ranks.to(device), mask.to(device)

    def _encode(self, records: Records) -> list[Ranking]:
        rankings = []
        for row, place in zip(records.rows, records.places, strict=True):
            if row.get("certainty") not in (None, "", 1, 1.0):
                raise UserError(
                    f"{place}: a reward model takes every label for certain; leave the column "
                    f"certainty out"
                )
            _, ranks, margin = ranked_texts(row, place)
            encoded = [self._encode_text(text, place) for text in self._whole_texts(row, place)]
            _refuse_same_tokens(encoded, ranks, place)
            rankings.append(Ranking(encoded=encoded, ranks=ranks, margin=margin))
        margins = any(r.margin is not None for r in rankings)
        if margins and any(len(r.ranks) > 2 for r in rankings):
            raise UserError("a margin belongs to a pair; data with margins can hold no rankings")
        return rankings

    def _encode_text(self, text: str, place: str) -> list[int]:
        limit = min(self.config.max_length, max_text_length(self.model, self.tokenizer))
        try:
            return encode_for_scoring(self.tokenizer, text, limit)
        except UserError as error:
            raise UserError(f"{place}: {error}") from None

    def _whole_texts(self, row: Row, place: str) -> list[str]:
        """Return each completion after its prompt, as the text that the environment would score."""
        prompt = prompt_of(row, place)
        return [
            reward_text(self.tokenizer, prompt, completion, row, place)
            for completion in ranked_texts(row, place)[0]
        ]

    def _some_texts(self, records: Records) -> list[str]:
        pairs = list(zip(records.rows, records.places, strict=True))[:256]
        return [text for row, place in pairs for text in self._whole_texts(row, place)]


def _refuse_same_tokens(encoded: list[list[int]], ranks: list[int], place: str) -> None:
    """Raise UserError if two completions with different ranks have the same token ids."""
    for (first, rank), (second, other) in itertools.combinations(
        zip(encoded, ranks, strict=True), 2
    ):
        if rank != other and first == second:
            raise UserError(
                f"{place}: two completions of different ranks are the same {len(first)} tokens, "
                f"so that no score can tell them apart; drop the row"
            )
