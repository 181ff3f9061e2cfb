"""What a model can read: how many tokens of text, and which token ids."""

from collections.abc import Iterable

from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from textrl.errors import UserError
from textrl.trunks import first_position, name_of, unadapted


def max_positions(model: PreTrainedModel) -> int | None:
    """Return the maximum number of tokens that a model reads, or None if it is not stated."""
    try:
        limit = model.config.get_text_config().max_position_embeddings
    except AttributeError:
        return None
    if limit is None or limit < 1:
        return None
    body = unadapted(model)
    return int(limit) - first_position(body.base_model, body)


def has_position_table(model: PreTrainedModel) -> bool:
    """Return whether positions beyond the last one fail, rather than only being untrained."""
    limit = max_positions(model)
    if limit is None:
        return False
    words = model.get_input_embeddings()
    tables = [m.weight for m in model.modules() if isinstance(m, nn.Embedding) and m is not words]
    tables += [buffer for buffer in model.buffers() if buffer.dim() == 2]
    return any(limit <= len(table) <= limit + 8 for table in tables)


def check_lengths(model: PreTrainedModel, lengths: Iterable[int], what: str) -> None:
    """Raise UserError if a text is longer than the model has positions.

    Args:
        model: The model. Without a table of positions it reads texts of any length.
        lengths: The number of tokens of each text.
        what: What a text is called in the message, in the singular.
    """
    limit = max_positions(model)
    if limit is None:
        return
    for row, length in enumerate(lengths):
        if length > limit and has_position_table(model):
            raise UserError(
                f"{what} {row} has {length} tokens, but {name_of(model)} has {limit} positions; "
                f"shorten it or lower the limit of tokens"
            )


def embedding_rows(model: PreTrainedModel) -> int:
    """Return the number of token ids that a model has embeddings for."""
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return len(weight)


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UserError if the tokenizer has ids without an embedding in the model."""
    rows = embedding_rows(model)
    if len(tokenizer) > rows:
        raise UserError(
            f"the tokenizer has {len(tokenizer)} tokens, {name_of(model)} {rows}; call "
            f"model.resize_token_embeddings({len(tokenizer)}), or use the model's own tokenizer"
        )
