"""Rows to token ids: plain text, prompt and completion, chat messages, pairs, rankings.

Prompt and completion are encoded apart and joined, exactly as the environment sees them: the
completion's ids follow the prompt's, without a BOS in between, and end with EOS.
"""

import json
from typing import Any

from transformers import PreTrainedTokenizerBase

from textrl.data import Records, Row, is_conversation
from textrl.errors import UserError
from textrl.types import Sequence

Messages = list[dict[str, str]]


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: str | Messages, place: str = "prompt"
) -> list[int]:
    """Return the ids of a prompt: its text, or its messages up to the assistant's turn.

    Raises:
        UserError: the prompt is empty, or messages meet a tokenizer without chat template.
    """
    if not prompt or (isinstance(prompt, str) and not prompt.strip()):
        raise UserError(f"{place}: the prompt is empty")
    if isinstance(prompt, str):
        return _without_final_eos(tokenizer, tokenizer(prompt).input_ids)
    if not is_conversation(prompt):
        raise UserError(f"{place}: a prompt is a string or a list of role/content messages")
    return render_chat(tokenizer, prompt, place, for_reply=True)


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the ids of a whole text, its end marked by EOS."""
    ids = _without_final_eos(tokenizer, tokenizer(text).input_ids)
    return [*ids, *_eos(tokenizer)]


def encode_completion(tokenizer: PreTrainedTokenizerBase, completion: str) -> list[int]:
    """Return the ids that continue a prompt, its end marked by EOS; no BOS in between."""
    ids: list[int] = tokenizer(completion, add_special_tokens=False).input_ids
    return [*ids, *_eos(tokenizer)]


def encode_reply(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, reply: Messages, place: str
) -> list[int]:
    """Return the ids that a chat template adds for a reply, cut after EOS.

    Raises:
        UserError: the template renders the prompt differently once the reply follows.
    """
    prompt_ids = render_chat(tokenizer, messages, place, for_reply=True)
    whole = render_chat(tokenizer, messages + reply, place, for_reply=False)
    if whole[: len(prompt_ids)] != prompt_ids:
        raise UserError(
            f"{place}: the chat template rewrites the prompt when a reply follows, so the reply's "
            f"tokens cannot be told apart; use a template that only appends"
        )
    ids = whole[len(prompt_ids) :]
    eos = tokenizer.eos_token_id
    # A template may put a newline after EOS: it is no token of the answer.
    return ids[: len(ids) - ids[::-1].index(eos)] if eos in ids else ids


def render_chat(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, place: str, *, for_reply: bool
) -> list[int]:
    """Return the chat template's ids for the messages, with the reply's header if for_reply."""
    if not tokenizer.chat_template:
        raise UserError(
            f"{place}: holds chat messages but the tokenizer has no chat template; set "
            f"tokenizer.chat_template or give plain text"
        )
    try:
        encoded: Any = tokenizer.apply_chat_template(
            messages, add_generation_prompt=for_reply, tokenize=True, return_dict=True
        )
    except Exception as error:  # a template is code of its own and raises what it likes
        raise UserError(f"{place}: the chat template refuses these messages: {error}") from error
    return list(encoded["input_ids"])


def _eos(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]


def _without_final_eos(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    if ids and ids[-1] == tokenizer.eos_token_id:
        return ids[:-1]
    return ids


def sft_sequence(
    tokenizer: PreTrainedTokenizerBase, row: Row, place: str, max_length: int
) -> Sequence:
    """Return a demonstration: `text`, `prompt` + `completion`, or chat `messages`.

    The loss counts every token of a text after the first, the completion only, or the assistant's
    turns only. What lies beyond max_length is cut.

    Raises:
        UserError: none of these columns, an empty text, a prompt that leaves no room.
    """
    if "messages" in row:
        return _chat_sequence(tokenizer, row["messages"], place, max_length)
    if "prompt" in row and "completion" in row:
        return continuation(tokenizer, row["prompt"], row["completion"], place, max_length)
    if "text" not in row:
        raise UserError(
            f"{place}: no 'text', no 'prompt' and 'completion', no 'messages'; found {sorted(row)}"
        )
    if not isinstance(row["text"], str) or not row["text"].strip():
        raise UserError(f"{place}: the text is empty")
    ids = encode_text(tokenizer, row["text"])[:max_length]
    return Sequence(ids=ids, counts=[False] + [True] * (len(ids) - 1))


def sft_sequences(
    tokenizer: PreTrainedTokenizerBase, records: Records, max_length: int
) -> list[Sequence]:
    """Return the demonstrations of all records, see `sft_sequence`."""
    return [
        sft_sequence(tokenizer, row, place, max_length)
        for row, place in zip(records.rows, records.places, strict=True)
    ]


def continuation(
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | Messages,
    completion: str | Messages,
    place: str,
    max_length: int,
) -> Sequence:
    """Return prompt and completion as one sequence in which the completion alone counts.

    Raises:
        UserError: an empty prompt or completion, or a prompt that leaves no room.
    """
    prompt_ids = encode_prompt(tokenizer, prompt, place)
    if len(prompt_ids) >= max_length:
        raise UserError(
            f"{place}: the prompt has {len(prompt_ids)} tokens and max_length is {max_length}; "
            f"raise it or drop the row (a cut prompt would train on nonsense)"
        )
    if not completion or (isinstance(completion, str) and not completion.strip()):
        raise UserError(f"{place}: the completion is empty")
    if isinstance(prompt, str) != isinstance(completion, str):
        raise UserError(f"{place}: prompt and completion must both be text or both be messages")
    if isinstance(completion, str):
        completion_ids = encode_completion(tokenizer, completion)
    else:
        assert not isinstance(prompt, str)
        completion_ids = encode_reply(tokenizer, prompt, completion, place)
    ids = (prompt_ids + completion_ids)[:max_length]
    counts = [False] * len(prompt_ids) + [True] * (len(ids) - len(prompt_ids))
    return Sequence(ids=ids, counts=counts)


def _chat_sequence(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, place: str, max_length: int
) -> Sequence:
    """Return a whole chat in which the assistant's turns count."""
    if not is_conversation(messages) or messages[-1]["role"] != "assistant":
        raise UserError(f"{place}: messages must be role/content dicts that end with the assistant")
    whole = render_chat(tokenizer, messages, place, for_reply=False)
    counts = [False] * len(whole)
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = render_chat(tokenizer, messages[:turn], place, for_reply=True)
        reply = encode_reply(tokenizer, messages[:turn], [message], place)
        end = len(before) + len(reply)
        if whole[:end] != before + reply:
            raise UserError(
                f"{place}: the chat template rewrites earlier turns, so the assistant's tokens "
                f"cannot be told apart; use a template that only appends"
            )
        counts[len(before) : end] = [True] * len(reply)
    ids, counts = whole[:max_length], counts[:max_length]
    if not any(counts):
        raise UserError(f"{place}: no token of the assistant lies within max_length {max_length}")
    last = max(i for i, counted in enumerate(counts) if counted) + 1
    return Sequence(ids=ids[:last], counts=counts[:last])


def ranked_texts(row: Row, place: str) -> tuple[list[str | Messages], list[int], float | None]:
    """Return the completions of a row, their ranks (0 is best) and the margin of a pair.

    Reads `chosen`/`rejected` with an optional `margin`, or `completions`/`ranks` with ties.

    Raises:
        UserError: columns missing, lengths that differ, fewer than two completions.
    """
    if "chosen" in row and "rejected" in row:
        margin = row.get("margin")
        return [row["chosen"], row["rejected"]], [0, 1], _number(margin, "margin", place)
    completions, ranks = _as_list(row.get("completions")), _as_list(row.get("ranks"))
    if completions is None or ranks is None:
        raise UserError(
            f"{place}: no 'chosen' and 'rejected', no 'completions' and 'ranks'; found "
            f"{sorted(row)}"
        )
    if len(completions) != len(ranks) or len(completions) < 2:
        raise UserError(
            f"{place}: {len(completions)} completions and {len(ranks)} ranks; expected as many "
            f"ranks as completions, at least 2"
        )
    try:
        order = sorted({float(rank) for rank in ranks})
        return completions, [order.index(float(rank)) for rank in ranks], None
    except (TypeError, ValueError):
        raise UserError(f"{place}: ranks are {ranks!r}; expected numbers, 0 is best") from None


def chat_text(
    tokenizer: PreTrainedTokenizerBase, prompt: Messages | None, completion: Messages, place: str
) -> str:
    """Return a chat as the text that the environment has scored: prompt rendered, reply decoded.

    Without a prompt the last message is the reply.
    """
    if prompt is None:
        prompt, completion = completion[:-1], completion[-1:]
    prompt_ids = render_chat(tokenizer, prompt, place, for_reply=True)
    reply_ids = encode_reply(tokenizer, prompt, completion, place)
    reply = tokenizer.decode(reply_ids, skip_special_tokens=True)
    return f"{tokenizer.decode(prompt_ids)}{reply}"


def _number(value: Any, column: str, place: str) -> float | None:
    try:
        return None if value in (None, "") else float(value)
    except (TypeError, ValueError):
        raise UserError(f"{place}: {column} is {value!r}; expected a number") from None


def _as_list(value: Any) -> list[Any] | None:
    """Return a list column; a CSV cell holds it as JSON."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            return None
    return value if isinstance(value, list) else None
