"""Encoding of texts to token ids, and of rows of data to sequences.

A sequence has at most one BOS and exactly one end token, however its text was rendered. The ids of
a completion follow those of its prompt as the environment sees them. `chat.py` renders chats to
text. `seams.py` joins two texts without losing a space, and decodes ids.
"""

import json
import math
import reprlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from textrl.chat import (
    Chat,
    Messages,
    chat_of,
    end_ids,
    prompt_of,
    render,
    render_reply,
    split_end,
)
from textrl.data_files import refuse_unreadable
from textrl.errors import UserError
from textrl.rows import Records, Row, is_conversation
from textrl.seams import ids_after, one_bos, without_eos, without_second
from textrl.turns import assistant_spans
from textrl.types import Sequence


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: str | Messages | Chat, place: str = "prompt"
) -> list[int]:
    """Return the ids of a prompt: its text, or its messages up to the assistant's next words.

    A final EOS is removed, unless the prompt is nothing but EOS (GPT-2's empty prompt).

    Raises:
        UserError: the prompt is empty, or has messages but the tokenizer has no chat template.
    """
    refuse_unreadable(prompt.messages if isinstance(prompt, Chat) else prompt, place)
    if not prompt or (isinstance(prompt, str) and not prompt.strip()):
        raise UserError(f"{place}: the prompt is empty")
    if isinstance(prompt, str):
        ids = one_bos(tokenizer, tokenizer(prompt).input_ids)
        bare = without_eos(tokenizer, ids)
        ids = bare if set(bare) - {tokenizer.bos_token_id} else without_second(ids)
    else:
        chat = _as_chat(prompt, place)
        ids = _rendered(tokenizer, render(tokenizer, chat, place, for_reply=True))
    if not ids:
        raise UserError(f"{place}: the prompt has no tokens; give a text that the tokenizer knows")
    return ids


def encode_text(
    tokenizer: PreTrainedTokenizerBase, text: str, ends: Iterable[int] | None = None
) -> list[int]:
    """Return the ids of a whole text, with its own end token, or else with EOS added.

    Args:
        tokenizer: The tokenizer of the model that reads the text.
        text: The text. It may already begin with BOS and end with any end token.
        ends: The end tokens (see `chat.end_ids`); None stands for the tokenizer's.
    """
    body, end = split_end(tokenizer, text, end_ids(tokenizer) if ends is None else ends)
    ids = without_eos(tokenizer, one_bos(tokenizer, tokenizer(body).input_ids))
    return [*ids, *_end(tokenizer, end)]


def encode_completion(
    tokenizer: PreTrainedTokenizerBase,
    completion: str,
    prompt: str,
    prompt_ids: list[int],
    ends: Iterable[int] | None = None,
) -> list[int]:
    """Return the ids that continue a prompt: no BOS, and its own end token or else EOS."""
    body, end = split_end(tokenizer, completion, end_ids(tokenizer) if ends is None else ends)
    bos = tokenizer.bos_token
    if bos is not None and bos != tokenizer.eos_token:
        body = body.removeprefix(str(bos))
    ids = ids_after(tokenizer, prompt_ids, prompt, body, add_special_tokens=True)
    return [*ids, *_end(tokenizer, end)]


def _as_chat(prompt: object, place: str) -> Chat:
    if isinstance(prompt, Chat):
        return prompt
    if not is_conversation(prompt):
        raise UserError(f"{place}: a prompt is a string or a list of role/content messages")
    assert isinstance(prompt, list)
    return Chat(messages=prompt)


def _rendered(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the ids of a text from a template, which writes BOS and EOS itself."""
    return one_bos(tokenizer, tokenizer(text, add_special_tokens=False).input_ids)


def _end(tokenizer: PreTrainedTokenizerBase, found: int | None) -> list[int]:
    if found is not None:
        return [found]
    return [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]


def sft_sequence(
    tokenizer: PreTrainedTokenizerBase,
    row: Row,
    place: str,
    max_length: int,
    ends: Iterable[int] | None = None,
) -> Sequence:
    """Encode a demonstration: `text`, `prompt` + `completion`, or chat `messages`.

    The loss counts every token of a text after the first, only the completion, or only the
    assistant's turns. Tokens beyond max_length are cut.

    Raises:
        UserError: the row has none of these columns, a text is empty, or the prompt leaves no room.
    """
    ends = end_ids(tokenizer) if ends is None else tuple(ends)
    if row.get("messages") is not None:
        messages = row["messages"]
        if not is_conversation(messages) or messages[-1]["role"] != "assistant":
            raise UserError(
                f"{place}: messages must be role/content dicts that end with the assistant"
            )
        return _chat_sequence(
            tokenizer, chat_of(messages, row, place), None, place, max_length, ends
        )
    pair = {"prompt", "completion"} <= set(row)
    if pair and not (row["prompt"] is row["completion"] is None and "text" in row):
        prompt = prompt_of(row, place)
        return continuation(tokenizer, prompt, row["completion"], place, max_length, ends)
    if "text" not in row:
        raise UserError(
            f"{place}: no 'text', no 'prompt' and 'completion', no 'messages'; found "
            f"{sorted(map(str, row))}"
        )
    if not isinstance(row["text"], str) or not row["text"].strip():
        raise UserError(f"{place}: the text is empty")
    ids = encode_text(tokenizer, row["text"], ends)
    if not set(ids) - {tokenizer.bos_token_id, *ends}:
        raise UserError(f"{place}: the text {row['text']!r} has no tokens but its begin and end")
    ids = ids[:max_length]
    return Sequence(ids=ids, counts=[False] + [True] * (len(ids) - 1))


def sft_sequences(
    tokenizer: PreTrainedTokenizerBase,
    records: Records,
    max_length: int,
    ends: Iterable[int] | None = None,
) -> list[Sequence]:
    """Encode the demonstrations of all records with `sft_sequence`."""
    ends = end_ids(tokenizer) if ends is None else tuple(ends)
    return [
        sft_sequence(tokenizer, row, place, max_length, ends)
        for row, place in zip(records.rows, records.places, strict=True)
    ]


def continuation(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | Messages | Chat,
    completion: str | Messages,
    place: str,
    max_length: int,
    ends: Iterable[int] | None = None,
) -> Sequence:
    """Encode prompt and completion as one sequence in which only the completion counts.

    In a chat's completion only the assistant's turns count, not the answers of tools.

    Raises:
        UserError: the prompt or the completion is empty, or the prompt leaves no room.
    """
    ends = end_ids(tokenizer) if ends is None else tuple(ends)
    prompt_ids = encode_prompt(tokenizer, prompt, place)
    if len(prompt_ids) >= max_length:
        raise UserError(
            f"{place}: the prompt has {len(prompt_ids)} tokens and max_length is {max_length}; "
            f"raise it or drop the row (a cut prompt would train on nonsense)"
        )
    if not completion or (isinstance(completion, str) and not completion.strip()):
        raise UserError(f"{place}: the completion is empty")
    if not isinstance(prompt, str) and isinstance(completion, str):  # as `textrl generate` writes
        completion = [{"role": "assistant", "content": completion}]
    if isinstance(prompt, str) and not isinstance(completion, str):
        raise UserError(f"{place}: the prompt is text, the completion messages; give both as one")
    if isinstance(prompt, str):
        assert isinstance(completion, str)
        if not split_end(tokenizer, completion, ends)[0].strip():
            raise UserError(f"{place}: the completion {completion!r} is empty but for its end")
        ids = prompt_ids + encode_completion(tokenizer, completion, prompt, prompt_ids, ends)
        ids = ids[:max_length]
        counts = [False] * len(prompt_ids) + [True] * (len(ids) - len(prompt_ids))
        return Sequence(ids=ids, counts=counts)
    assert not isinstance(completion, str)
    chat = _as_chat(prompt, place)
    if not is_conversation(completion) or completion[-1]["role"] != "assistant":
        raise UserError(
            f"{place}: a completion must be role/content dicts that end with the assistant"
        )
    if completion[: len(chat.messages)] == chat.messages:
        raise UserError(
            f"{place}: the completion repeats the prompt's messages, which would stand twice; "
            f"leave them out of it"
        )
    whole = chat.with_reply(completion)
    return _chat_sequence(tokenizer, whole, chat, place, max_length, ends)


def _chat_sequence(
    tokenizer: PreTrainedTokenizerBase,
    chat: Chat,
    prompt: Chat | None,
    place: str,
    max_length: int,
    ends: Iterable[int],
) -> Sequence:
    """Encode a chat in which the assistant's turns after the prompt count."""
    text, spans = assistant_spans(tokenizer, chat, place, ends, prompt)
    ids: list[int] = []
    counts: list[bool] = []
    done = 0
    for start, stop in spans:
        for begin, end, counted in ((done, start, False), (start, stop, True)):
            new = ids_after(tokenizer, ids, text[:begin], text[begin:end])
            ids = ids + new if ids else one_bos(tokenizer, new)
            counts += [counted] * (len(ids) - len(counts))
        done = stop
    if not ids or ids[-1] not in set(ends):  # the template writes no end token, so add EOS
        ids, counts = [*ids, *_end(tokenizer, None)], [*counts, True]
        counts = counts[: len(ids)]
    ids, counts = ids[:max_length], counts[:max_length]
    counts[:1] = [False] * len(counts[:1])  # nothing stands before it that could predict it
    if not any(counts):
        raise UserError(f"{place}: no token of the assistant lies within max_length {max_length}")
    last = max(i for i, counted in enumerate(counts) if counted) + 1
    return Sequence(ids=ids[:last], counts=counts[:last])


def ranked_texts(row: Row, place: str) -> tuple[list[str | Messages], list[int], float | None]:
    """Return the completions of a row, their ranks (0 is best) and the margin of a pair.

    The row has `chosen` and `rejected` with an optional `margin`, or `completions` and `ranks` with
    ties.

    Raises:
        UserError: columns are missing, lengths differ, or there are fewer than two completions.
    """
    pair = {"chosen", "rejected"} <= set(row)
    if pair and not (row["chosen"] is row["rejected"] is None and "completions" in row):
        margin = row.get("margin")
        return [row["chosen"], row["rejected"]], [0, 1], _number(margin, "margin", place)
    completions, ranks = _as_list(row.get("completions")), _as_list(row.get("ranks"))
    if completions is None or ranks is None:
        if {"completions", "ranks"} <= set(row):
            raise UserError(
                f"{place}: completions and ranks are {reprlib.repr(row['completions'])} and "
                f"{reprlib.repr(row['ranks'])}; expected two lists"
            )
        raise UserError(
            f"{place}: no 'chosen' and 'rejected', no 'completions' and 'ranks'; found "
            f"{sorted(map(str, row))}"
        )
    if len(completions) != len(ranks) or len(completions) < 2:
        raise UserError(
            f"{place}: {len(completions)} completions and {len(ranks)} ranks; expected as many "
            f"ranks as completions, at least 2"
        )
    if _number(row.get("margin"), "margin", place) is not None:
        raise UserError(f"{place}: a margin is of chosen and rejected; a ranking takes none")
    try:
        order = sorted({float(rank) for rank in ranks})
        if not all(map(math.isfinite, order)):
            raise ValueError
        return completions, [order.index(float(rank)) for rank in ranks], None
    except (TypeError, ValueError):
        raise UserError(f"{place}: ranks are {ranks!r}; expected numbers, 0 is best") from None


def reward_text(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Any,
    completion: str | Messages,
    row: Row,
    place: str,
) -> str:
    """Return prompt and completion as the text that a reward model scores in the environment.

    The end token of a plain completion is removed, as in the environment; the classifier adds its
    own EOS. A chat is rendered by the reward model's own template, without the tools and variables
    that the template does not use. If a chat has no prompt, its last message is the reply.
    """
    prompt = prompt or None
    if not completion:
        raise UserError(f"{place}: a completion is empty")
    if isinstance(completion, str) and isinstance(prompt, str | None):
        body, _ = split_end(tokenizer, completion, end_ids(tokenizer))
        if not f"{prompt or ''}{body}".strip():
            raise UserError(f"{place}: a completion is empty")
        return f"{prompt or ''}{body}"
    if isinstance(completion, str) or not isinstance(prompt, Chat | None):
        raise UserError(f"{place}: prompt and completions must be all text or all messages")
    if not is_conversation(completion):
        raise UserError(f"{place}: a completion is {completion!r}; expected a text")
    if prompt is None:
        prompt, completion = chat_of(completion[:-1], row, place), completion[-1:]
    prompt = prompt.read_by(tokenizer) if tokenizer.chat_template else prompt
    *others, last = completion
    content = last.get("content")
    if others or last["role"] != "assistant" or not isinstance(content, str):
        return render(tokenizer, prompt.with_reply(completion), place)
    return render_reply(tokenizer, prompt, content, place)


def _number(value: Any, column: str, place: str) -> float | None:
    try:
        number = None if value in (None, "") else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if number is not None and not math.isfinite(number):
        raise UserError(f"{place}: {column} is {value!r}; expected a finite number")
    return number


def _as_list(value: Any) -> list[Any] | None:
    """Return a column as a list; it may be a tuple, an array, or JSON in a CSV cell."""
    if isinstance(value, tuple | np.ndarray):
        return list(value)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, list) else None
