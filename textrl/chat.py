"""Rendering of chats to text with a tokenizer's chat template, and detection of end tokens.

All chats are rendered here. `turns.py` finds the assistant's turns in the text, and `encoding.py`
encodes the text.
"""

import contextlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from textrl.data_files import refuse_unreadable
from textrl.errors import UserError
from textrl.rows import CHAT_COLUMNS, is_conversation
from textrl.time_limit import TooLongError, time_limit

Messages = list[dict[str, Any]]
TEMPLATE_SECONDS = 10.0
"""Time that a chat template may take for one chat."""
MARK = "textrlmark"
"""A placeholder for a message's content, used to find its position in a rendered chat."""
PARTS = ("tool_calls", "reasoning_content", "reasoning", "thinking")
"""Keys of a message, other than its content, that a template must not drop."""
EMPTY: tuple[Any, ...] = (None, "", [], {})
CODE = re.compile(r"\{\{.*?\}\}|\{%.*?%\}", re.S)
"""The parts of a template that are code, not text."""
PLAIN_TEMPLATE = (
    "{{ bos_token or '' }}{% for message in messages %}"
    "{% if message.role == 'assistant' %}{{ message.content ~ eos_token }}"
    "{% else %}{{ (message.content | trim) ~ '\\n' }}{% endif %}{% endfor %}"
)
"""A chat template for tokenizers that have none: texts one after another, a line for each of the
others' and EOS after each of the assistant's. `TextTurns-v0` has the same tokens without it."""
OURS = {"tokenize", "add_generation_prompt", "continue_final_message", "tools", "return_dict"}


class RenderedText(str):
    """A text written by a chat template; the template decides whether it begins with BOS."""


@dataclass(frozen=True, kw_only=True)
class Chat:
    """Messages, and the tools and variables that their template gets with them."""

    messages: Messages
    tools: list[Any] | None = None
    variables: dict[str, Any] = field(default_factory=dict)

    def having(self, messages: Messages) -> "Chat":
        """Return the chat with other messages."""
        return replace(self, messages=messages)

    @property
    def awaits_more(self) -> bool:
        """Whether the chat ends with the beginning of an assistant's turn."""
        return bool(self.messages) and self.messages[-1]["role"] == "assistant"

    def with_reply(self, reply: Messages) -> "Chat":
        """Return the chat with a reply, which continues the assistant's turn if one has begun."""
        if not self.awaits_more or reply[0]["role"] != "assistant":
            return self.having([*self.messages, *reply])
        last, first = self.messages[-1], reply[0]
        content = f"{last.get('content') or ''}{first.get('content') or ''}"
        joined = {**last, **first, "content": content}
        return self.having([*self.messages[:-1], joined, *reply[1:]])

    def unread_by(self, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """Return the names of what the chat has but the tokenizer's template does not use.

        These may be `tools`, variables, and the tool calls and reasoning in messages. Empty values
        are ignored. A name in a comment or text of the template does not count as a use.
        """
        code = " ".join(CODE.findall(_without_comments(tokenizer, self.tools)))
        names = re.sub(r"'[^']*'|\"[^\"]*\"", "", code)  # names in quotes are not variables
        given = {"tools": self.tools, **self.variables}
        unread = [
            name
            for name, value in given.items()
            if value not in EMPTY and not re.search(rf"(?<![.\w]){re.escape(name)}\b", names)
        ]
        parts = {
            part for message in self.messages for part in PARTS if message.get(part) not in EMPTY
        }
        return unread + [part for part in sorted(parts) if not re.search(rf"\b{part}\b", code)]

    def read_by(self, tokenizer: PreTrainedTokenizerBase) -> "Chat":
        """Return the chat without the tools, variables and parts that a template does not use."""
        unread = self.unread_by(tokenizer)
        kept = {name: value for name, value in self.variables.items() if name not in unread}
        messages = [
            {name: value for name, value in message.items() if name not in unread}
            for message in self.messages
        ]
        tools = None if "tools" in unread else self.tools
        return replace(self, messages=messages, tools=tools, variables=kept)


def chat_of(messages: Messages, row: Mapping[str, Any], place: str) -> Chat:
    """Return messages as a `Chat` with the columns `tools` and `chat_template_kwargs` of their row.

    A CSV cell holds these columns as JSON. None values in the dicts of tools and messages are
    dropped, because Arrow gives every dict the keys of all dicts.

    Raises:
        UserError: tools are not a list, the variables are not a mapping, or a variable is one that
            textrl sets itself.
    """
    tools, variables = (_parsed(row.get(name)) for name in CHAT_COLUMNS)
    refuse_unreadable([messages, tools, variables], place)
    if tools is not None and not isinstance(tools, list):
        raise UserError(f"{place}: tools are {tools!r}; expected a list of JSON schemas")
    if variables is not None and not isinstance(variables, Mapping):
        raise UserError(
            f"{place}: chat_template_kwargs are {variables!r}; expected a mapping, name to value"
        )
    given = {name: value for name, value in (variables or {}).items() if value is not None}
    if taken := sorted(OURS & set(given)):
        raise UserError(f"{place}: chat_template_kwargs may not set {taken[0]!r}; leave it out")
    messages = [
        {"content": None, **_without_nones(message)}
        if "content" in message
        else _without_nones(message)
        for message in messages
    ]
    return Chat(messages=messages, tools=_without_nones(tools) or None, variables=given)


def prompt_of(row: Mapping[str, Any], place: str) -> Any:
    """Return a row's prompt: a `Chat` if it consists of messages, else the column unchanged."""
    prompt = row.get("prompt")
    if isinstance(prompt, list) and is_conversation(prompt):
        return chat_of(prompt, row, place)
    return prompt


def render(
    tokenizer: PreTrainedTokenizerBase,
    chat: Chat,
    place: str,
    *,
    for_reply: bool = False,
    new_turn: bool = False,
) -> RenderedText:
    """Return a chat as text, written by the chat template.

    With for_reply the text ends where the assistant continues: after the header of a new turn, or,
    if the last message is the assistant's and new_turn is not set, right after its content.

    Raises:
        UserError: there is no template, or it refuses the messages, does not write them as text, or
            would ignore tools or a variable.
    """
    if not tokenizer.chat_template:
        raise UserError(
            f"{place}: holds chat messages but the tokenizer has no chat template; set "
            f"tokenizer.chat_template (textrl.chat.PLAIN_TEMPLATE is a plain one), or give plain "
            f"text"
        )
    continued = for_reply and chat.awaits_more and not new_turn
    try:
        unread = chat.unread_by(tokenizer)
        text = _applied(
            tokenizer,
            chat,
            chat.messages,
            add_generation_prompt=for_reply and not continued,
            continue_final_message=continued,
        )
    except Exception as error:  # a template is code and may raise any exception
        reason = str(error).split("\n", maxsplit=1)[0]
        raise UserError(f"{place}: the chat template refuses these messages: {reason}") from error
    if unread:
        raise UserError(
            f"{place}: the chat template does not read {unread[0]!r}; leave that out, or set a "
            f"tokenizer.chat_template that does"
        )
    _check_contents(chat, text, place)
    if lost := _lost_message(tokenizer, chat, text):
        raise UserError(
            f"{place}: the chat template leaves out message {lost - 1} (its role is "
            f"{chat.messages[lost - 1]['role']!r}); give it one that the template writes"
        )
    return RenderedText(text)


def _applied(
    tokenizer: PreTrainedTokenizerBase, chat: Chat, messages: Messages, **options: Any
) -> str:
    """Return what the template writes of messages, with a chat's tools and variables.

    Raises:
        TooLongError: it takes longer than TEMPLATE_SECONDS.
        Exception: whatever the template raises, which is code.
    """
    try:
        with time_limit(TEMPLATE_SECONDS):
            return str(
                tokenizer.apply_chat_template(
                    messages, tools=chat.tools, tokenize=False, **options, **chat.variables
                )
            )
    except TooLongError:
        raise TooLongError(f"it takes longer than {TEMPLATE_SECONDS:g} s") from None


def _lost_message(tokenizer: PreTrainedTokenizerBase, chat: Chat, text: str) -> int:
    """Return the number (from 1) of the first message that the template drops, or 0 for none."""
    contents = [message.get("content") for message in chat.messages]
    if MARK in contents:
        return 0
    for turn, content in enumerate(contents):
        if not isinstance(content, str) or content.strip() in text:
            continue
        texts = set()
        for other in (MARK, MARK[::-1]):
            messages = list(chat.messages)
            messages[turn] = {**messages[turn], "content": other}
            with contextlib.suppress(Exception):  # a template is code and may raise any exception
                texts.add(_applied(tokenizer, chat, messages))
        if len(texts) == 1:
            return turn + 1
    return 0


def _without_comments(tokenizer: PreTrainedTokenizerBase, tools: list[Any] | None) -> str:
    template = tokenizer.get_chat_template(tools=tools)
    return re.sub(r"\{#.*?#\}", "", template, flags=re.S)


def _without_nones(value: Any) -> Any:
    """Return a value without the None values in its dicts."""
    if isinstance(value, Mapping):
        return {name: _without_nones(part) for name, part in value.items() if part is not None}
    return [_without_nones(part) for part in value] if isinstance(value, list) else value


def _check_contents(chat: Chat, text: str, place: str) -> None:
    """Raise UserError if a template writes a content in Python's notation (a list or dict)."""
    for turn, message in enumerate(chat.messages):
        content = message.get("content")
        if isinstance(content, Real):
            raise UserError(f"{place}: the content of message {turn} is {content!r}; expected text")
        if isinstance(content, list) and content and str(content) in text:
            raise UserError(
                f"{place}: the content of message {turn} is a list of parts and the chat template "
                f"takes texts; join the texts of its parts"
            )


def render_reply(
    tokenizer: PreTrainedTokenizerBase, chat: Chat, completion: str, place: str
) -> RenderedText:
    """Return the text of a chat with a completion as the assistant's reply.

    White space around the completion comes from the policy's template and is removed.
    """
    content = completion.rstrip() if chat.awaits_more else completion.strip()
    whole = chat.with_reply([{"role": "assistant", "content": content}])
    return render(tokenizer, whole, place)


def end_ids(
    tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | None = None
) -> tuple[int, ...]:
    """Return every token that ends a text or a turn: EOS (if there is one) first, then the others.

    They are the tokenizer's EOS, the end tokens of the model's generation config and config, and
    the token that the chat template writes after an assistant's turn. From configs and template,
    only special and added tokens are taken. The default id of the config's class is ignored, since
    it is unrelated to this tokenizer.
    """
    found: list[int] = []
    if tokenizer.eos_token_id is not None:
        found.append(int(tokenizer.eos_token_id))
    added = set(tokenizer.added_tokens_decoder) | set(tokenizer.all_special_ids)
    added -= {tokenizer.bos_token_id, tokenizer.unk_token_id}
    for token in [*_turn_end(tokenizer), *_model_ends(model)]:
        if token in added and token not in found:
            found.append(token)
    return tuple(found)


def split_end(
    tokenizer: PreTrainedTokenizerBase, text: str, ends: Iterable[int]
) -> tuple[str, int | None]:
    r"""Return a text without the end tokens at its end, and the first of these tokens.

    White space after or between end tokens is removed too: "no<|im_end|>\n" gives ("no", im_end).
    """
    names = end_names(tokenizer, ends)
    found = None
    while True:
        bare = text.rstrip()
        name = next((name for name in names if bare.endswith(name)), None)
        if name is None:
            return text, found
        text, found = bare[: -len(name)], names[name]


def _turn_end(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the first token that the chat template writes after an assistant's turn, if any."""
    if not tokenizer.chat_template:
        return []
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": MARK}]
    try:
        text = render(tokenizer, Chat(messages=messages), "chat template")
    except UserError:  # it needs other roles or variables: only the configs can tell
        return []
    _, found, tail = text.rpartition(MARK)
    if not found:  # it needs another form of content
        return []
    ids: list[int] = tokenizer(tail.strip(), add_special_tokens=False).input_ids
    return ids[:1]


def _model_ends(model: PreTrainedModel | None) -> list[int]:
    if model is None:
        return []
    values = [model.config.to_dict().get("eos_token_id")]
    if model.can_generate() and model.generation_config is not None:
        values.insert(0, model.generation_config.eos_token_id)
    unset = type(model.config)().to_dict().get("eos_token_id")
    found: list[int] = []
    for value in values:
        if value is not None and value != unset:
            found += [value] if isinstance(value, int) else value
    return found


def end_names(tokenizer: PreTrainedTokenizerBase, ends: Iterable[int]) -> dict[str, int]:
    """Return the ids of the end tokens by their names in a text."""
    return {str(tokenizer.convert_ids_to_tokens(token)): token for token in ends}


def _parsed(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except (ValueError, RecursionError):
        return value  # the caller reports the error
