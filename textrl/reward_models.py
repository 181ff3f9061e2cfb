"""`RewardModel`, a frozen sequence classifier as a reward function. Next to read: `rewards.py`."""

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from textrl.chat import Chat, render_reply
from textrl.classifiers import encode_for_scoring, max_text_length, split_classifier
from textrl.errors import UserError
from textrl.limits import check_vocabulary
from textrl.models import freeze, load_classifier, load_tokenizer


class RewardModel:
    """A frozen sequence classifier with its own tokenizer, as a reward function.

    The score of a text is the classifier's logit (one label) or the log-odds of label 1 (two
    labels). If the checkpoint's config has `score_mean` and `score_std`, the mean is subtracted
    and the result is divided by the std.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Freeze the model.

        Raises:
            UserError: it has neither one nor two labels.
        """
        if model.config.num_labels not in (1, 2):
            raise UserError(
                f"a reward model needs 1 label (or 2: negative, positive), this one has "
                f"{model.config.num_labels}; wrap it in a function that returns one number"
            )
        check_vocabulary(model, tokenizer)
        self.model = freeze(model)
        self.tokenizer = tokenizer
        self.classifier = split_classifier(model)
        self.max_length = max_text_length(model, tokenizer)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device | None = None,
    ) -> "RewardModel":
        """Load the reward model of a folder or hub id; its head must be trained.

        Raises:
            UserError: there is no such model, or the checkpoint has no trained head.
        """
        return cls(load_classifier(name, dtype=dtype, device=device), load_tokenizer(name))

    def __call__(
        self,
        prompts: list[str],
        completions: list[str],
        *,
        chats: list[Chat | None] | None = None,
        **columns: list[Any],
    ) -> list[float]:
        """Return the normalised score of each prompt + completion.

        Args:
            prompts: The prompts as texts.
            completions: The completions as texts.
            chats: The prompts that are messages, and None for those that are plain text.
            columns: Other columns, which are ignored.

        Raises:
            UserError: a text is longer than the model can read; none is ever cut.
        """
        given = chats or [None] * len(prompts)
        texts = [
            self.text_of(*sample, place=f"sample {row}")
            for row, sample in enumerate(zip(prompts, completions, given, strict=True))
        ]
        config = self.model.config.to_dict()
        mean, std = config.get("score_mean", 0.0), config.get("score_std", 1.0)
        return [(score - mean) / std for score in self.raw_scores(texts)]

    def text_of(self, prompt: str, completion: str, chat: Chat | None, place: str) -> str:
        """Return the text to score; a chat is rendered by this model's own template.

        Tools and template variables are meant for the policy's template. Those that this model's
        template does not use are dropped.
        """
        if chat is None or not self.tokenizer.chat_template:
            return prompt + completion
        return render_reply(self.tokenizer, chat.read_by(self.tokenizer), completion, place)

    @torch.no_grad()
    def raw_scores(self, texts: list[str]) -> list[float]:
        """Return the classifier's score of each text without normalisation."""
        if not texts:
            return []
        encoded = []
        for row, text in enumerate(texts):
            try:
                encoded.append(encode_for_scoring(self.tokenizer, text, self.max_length))
            except UserError as error:
                raise UserError(f"sample {row}: {error}") from None
        if not all(encoded):
            raise UserError(
                f"text {encoded.index([])} of the batch is empty and the reward model's tokenizer "
                f"has no EOS token to stand for it; give it one"
            )
        scores: list[float] = self.classifier.scores(encoded).tolist()
        return scores
