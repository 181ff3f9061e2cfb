"""Encoding and decoding of a text that follows another text, without losing or adding a space."""

from collections.abc import Iterable, Sequence

from transformers import PreTrainedTokenizerBase


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Return the text of token ids without special tokens and ids beyond the tokenizer."""
    return _decoded(tokenizer, ids, skip_special_tokens=True)


def decode_whole(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Return the text of token ids with special tokens, but without ids beyond the tokenizer."""
    return _decoded(tokenizer, ids, skip_special_tokens=False)


def decode_completion(
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Sequence[int],
    completion_ids: Sequence[int],
    ends: Iterable[int],
) -> str:
    """Return the text that a completion adds to its prompt, decoded together with it.

    Many tokenizers drop a leading space, so it would be lost if the completion were decoded alone.
    The end token is not part of the text, even if it is not a special token.
    """
    own = list(completion_ids)
    if own and own[-1] in set(ends):
        own.pop()
    before, whole = decode(tokenizer, prompt_ids), decode(tokenizer, [*prompt_ids, *own])
    same = 0
    while same < min(len(before), len(whole)) and before[same] == whole[same]:
        same += 1
    return whole[same:]


CONTEXT = 8
"""Number of tokens before a token that decide how it is decoded."""


def token_texts(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], begin: int = 0
) -> list[str]:
    """Return what each token from `begin` on adds to the text; a special token is its name.

    A token that ends within a character adds nothing, and the one that completes it adds it whole.
    """
    texts = []
    for place in range(begin, len(ids)):
        first = max(0, place - CONTEXT)
        before = decode_whole(tokenizer, ids[first:place])
        whole = decode_whole(tokenizer, ids[first : place + 1])
        before = before.rstrip("\ufffd")
        known = whole.startswith(before) and not whole.endswith("\ufffd")
        texts.append(whole[len(before) :] if known else "")
    return texts


def without_eos(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    """Return ids without the EOS that a tokenizer or a user has added at their end."""
    return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids


def without_second(ids: list[int]) -> list[int]:
    """Return ids without the last one if it repeats the one before it."""
    return ids[:-1] if len(ids) > 1 and ids[-1] == ids[-2] else ids


def one_bos(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    """Return ids with one BOS if the text had one and the tokenizer added another."""
    first = {tokenizer.bos_token_id, tokenizer.cls_token_id} - {None}
    while len(ids) > 1 and ids[0] == ids[1] and ids[0] in first:
        ids = ids[1:]
    return ids


def _decoded(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], *, skip_special_tokens: bool
) -> str:
    known = [int(token) for token in ids if token < len(tokenizer)]
    return str(
        tokenizer.decode(
            known, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
        )
    )


def ids_after(
    tokenizer: PreTrainedTokenizerBase,
    before_ids: list[int],
    before: str,
    text: str,
    *,
    add_special_tokens: bool = False,
) -> list[int]:
    """Return the ids of a text that follows another one, so that both together decode correctly.

    The text is encoded alone if that is correct, since the environment's prompt ends there too. A
    tokenizer that adds a space before every text needs another way: the text is encoded together
    with the text before it, or after a marker.
    """

    def right(ids: list[int]) -> bool:
        start = _decoded(tokenizer, before_ids, skip_special_tokens=False)
        return _decoded(tokenizer, before_ids + ids, skip_special_tokens=False) == start + text

    alone: list[int] = tokenizer(text, add_special_tokens=False).input_ids
    if not before_ids or right(alone):
        return alone
    whole = tokenizer(before + text, add_special_tokens=add_special_tokens).input_ids
    whole = without_eos(tokenizer, one_bos(tokenizer, whole)) if add_special_tokens else whole
    if whole[: len(before_ids)] == before_ids:
        return list(whole[len(before_ids) :])
    for mark in ("\n", ".", "a"):
        ids = tokenizer(mark + text, add_special_tokens=False).input_ids
        start = tokenizer(mark, add_special_tokens=False).input_ids
        if ids[: len(start)] == start and right(ids[len(start) :]):
            return list(ids[len(start) :])
    return alone
