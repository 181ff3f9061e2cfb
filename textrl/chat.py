"""Chats to text: a tokenizer's template, its end-of-turn token, and the assistant's turns in it.

A chat is rendered to text here and nowhere else; `encoding.py` makes ids of it. Which part of a
rendered chat the assistant wrote is found by rendering beginnings of it, so that templates whose
generation prompt differs from how a turn begins, or that shorten earlier turns, are read rightly.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from textrl.errors import UserError
from textrl.rows import CHAT_COLUMNS, is_conversation

Messages = list[dict[str, Any]]
MARK = "textrlmark"
"""Stands for a message's content where its place in a rendered chat is looked for."""
OURS = {"tokenize", "add_generation_prompt", "continue_final_message", "tools", "return_dict"}


class RenderedText(str):
    """A text as a chat template wrote it: whether it begins with BOS is the template's to say."""


@dataclass(frozen=True, kw_only=True)
class Chat:
    """Messages, and what their template gets beside them."""

    messages: Messages
    tools: list[Any] | None = None
    variables: dict[str, Any] = field(default_factory=dict)

    def having(self, messages: Messages) -> "Chat":
        """Return the chat with other messages."""
        return replace(self, messages=messages)

    @property
    def awaits_more(self) -> bool:
        """Whether it ends with the beginning of an assistant's turn."""
        return bool(self.messages) and self.messages[-1]["role"] == "assistant"

    def with_reply(self, reply: Messages) -> "Chat":
        """Return the chat with a reply; a beginning of the assistant's turn is continued by it."""
        if not self.awaits_more or reply[0]["role"] != "assistant":
            return self.having([*self.messages, *reply])
        last, first = self.messages[-1], reply[0]
        content = f"{last.get('content') or ''}{first.get('content') or ''}"
        joined = {**last, **first, "content": content}
        return self.having([*self.messages[:-1], joined, *reply[1:]])

    def unread_by(self, tokenizer: PreTrainedTokenizerBase) -> list[str]:
        """Return which of `tools` and the variables a tokenizer's template does not name.

        Empty ones ask for nothing. Comments, texts and parts of messages do not count.
        """
        template = tokenizer.get_chat_template(tools=self.tools)
        template = re.sub(r"\{#.*?#\}", "", template, flags=re.S)
        given = {"tools": self.tools, **self.variables}
        asked = [name for name, value in given.items() if value not in (None, "", [], {})]
        return [
            name for name in asked if not re.search(rf"(?<![.\w'\"]){re.escape(name)}\b", template)
        ]

    def read_by(self, tokenizer: PreTrainedTokenizerBase) -> "Chat":
        """Return the chat without what a tokenizer's template does not name."""
        unread = self.unread_by(tokenizer)
        kept = {name: value for name, value in self.variables.items() if name not in unread}
        return replace(self, tools=None if "tools" in unread else self.tools, variables=kept)


def chat_of(messages: Messages, row: Mapping[str, Any], place: str) -> Chat:
    """Return messages with the columns `tools` and `chat_template_kwargs` of their row.

    A CSV cell holds these columns as JSON.

    Raises:
        UserError: tools are no list, or the variables no mapping, or one of them is set by us.
    """
    tools, variables = (_parsed(row.get(name)) for name in CHAT_COLUMNS)
    if tools is not None and not isinstance(tools, list):
        raise UserError(f"{place}: tools are {tools!r}; expected a list of JSON schemas")
    if variables is not None and not isinstance(variables, Mapping):
        raise UserError(
            f"{place}: chat_template_kwargs are {variables!r}; expected a mapping, name to value"
        )
    given = {name: value for name, value in (variables or {}).items() if value is not None}
    if taken := sorted(OURS & set(given)):
        raise UserError(f"{place}: chat_template_kwargs may not set {taken[0]!r}; leave it out")
    return Chat(messages=messages, tools=tools or None, variables=given)


def prompt_of(row: Mapping[str, Any], place: str) -> Any:
    """Return a row's prompt: a `Chat` where it is messages, else the column as it is."""
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
    """Return the chat template's text of a chat.

    With for_reply it ends where the assistant goes on: after the header of a new turn, or, if the
    last message is the assistant's and new_turn is not set, right after its content.

    Raises:
        UserError: there is no template, or it refuses the messages, writes them as no text, or
            would ignore tools or a variable.
    """
    if not tokenizer.chat_template:
        raise UserError(
            f"{place}: holds chat messages but the tokenizer has no chat template; set "
            f"tokenizer.chat_template or give plain text"
        )
    continued = for_reply and chat.awaits_more and not new_turn
    try:
        unread = chat.unread_by(tokenizer)
        text: str = tokenizer.apply_chat_template(  # type: ignore[assignment]  # tokenize=False
            chat.messages,
            tools=chat.tools,
            add_generation_prompt=for_reply and not continued,
            continue_final_message=continued,
            tokenize=False,
            **chat.variables,
        )
    except Exception as error:  # a template is code of its own and raises what it likes
        reason = str(error).split("\n", maxsplit=1)[0]
        raise UserError(f"{place}: the chat template refuses these messages: {reason}") from error
    if unread:
        raise UserError(
            f"{place}: the chat template does not read {unread[0]!r}; leave that out, or set a "
            f"tokenizer.chat_template that does"
        )
    _check_contents(chat, text, place)
    return RenderedText(text)


def _check_contents(chat: Chat, text: str, place: str) -> None:
    """Raise UserError for contents that a template writes as Python shows them."""
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
    """Return the template's text of a chat with a completion as the assistant's reply.

    White space around the completion is the policy's template's and no part of the message.
    """
    content = completion.rstrip() if chat.awaits_more else completion.strip()
    whole = chat.with_reply([{"role": "assistant", "content": content}])
    return render(tokenizer, whole, place)


def end_ids(
    tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel | None = None
) -> tuple[int, ...]:
    """Return every token that ends a text or a turn: EOS (if there is one) first, then the others.

    They are the tokenizer's EOS, those of the model's generation config and config, and what the
    chat template writes after an assistant's turn. Of the configs and the template only special and
    added tokens count, and not the number that the config's class has by default, which says
    nothing of this tokenizer.
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
    r"""Return a text without the end tokens that it ends with, and the first one of these.

    White space behind or between end tokens goes with them: "no<|im_end|>\n" is ("no", im_end).
    """
    names = _names(tokenizer, ends)
    found = None
    while True:
        bare = text.rstrip()
        name = next((name for name in names if bare.endswith(name)), None)
        if name is None:
            return text, found
        text, found = bare[: -len(name)], names[name]


def assistant_spans(
    tokenizer: PreTrainedTokenizerBase,
    chat: Chat,
    place: str,
    ends: Iterable[int],
    prompt: Chat | None = None,
) -> tuple[str, list[tuple[int, int]]]:
    """Return the text of a chat, and the beginning and end of each part that the assistant wrote.

    Args:
        tokenizer: has the template.
        chat: ends with the assistant.
        place: for error messages.
        ends: the tokens that end a turn; the one that does belongs to the part.
        prompt: the beginning of the chat, of which nothing counts; None if all turns do.

    Raises:
        UserError: the template shows the beginning of the chat differently once a turn follows.
    """
    turns = _Turns(tokenizer, chat, place, ends)
    first = 0 if prompt is None else len(prompt.messages)
    spans = []
    if prompt is not None and prompt.awaits_more:
        spans.append(turns.span(first - 1, prompt))
    for turn, message in enumerate(chat.messages):
        if turn >= first and message["role"] == "assistant":
            spans.append(turns.span(turn, chat.having(chat.messages[:turn]), new_turn=True))
    return turns.whole, spans


class _Turns:
    """Finds the assistant's turns in the text of one chat."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, chat: Chat, place: str, ends: Iterable[int]
    ) -> None:
        self.tokenizer = tokenizer
        self.chat = chat
        self.place = place
        self.whole = render(tokenizer, chat, place)
        self.ends = "|".join(re.escape(name) for name in _names(tokenizer, ends)) or r"(?!)"

    def span(self, turn: int, before: Chat, *, new_turn: bool = False) -> tuple[int, int]:
        """Return where a turn begins and ends, given what the assistant saw before it."""
        start = self._start(turn, before, new_turn)
        return start, self._stop(turn, start)

    def _start(self, turn: int, before: Chat, new: bool) -> int:
        """Return where the model goes on: after what it is prompted with, or with the content."""
        header = ""
        if before.messages:
            prompted = render(self.tokenizer, before, self.place, for_reply=True, new_turn=new)
            if self.whole.startswith(prompted):
                return len(prompted)
            header = render(self.tokenizer, before, self.place)
        # The generation prompt writes what the turn does not, such as an opened <think>.
        around = self._around(turn)
        continued = before.awaits_more and not new
        if around is None or continued or not self.whole.startswith(header):
            raise self._rewritten(turn)
        return around[0]

    def _stop(self, turn: int, start: int) -> int:
        alone = render(self.tokenizer, self.chat.having(self.chat.messages[: turn + 1]), self.place)
        # Of several end tokens in a row (Phi's <|end|> and EOS) the first one ends the turn.
        pattern = rf"({self.ends})(?:\s*(?:{self.ends}))*"
        clusters = list(re.finditer(pattern, alone[start:]))
        if clusters:
            alone = RenderedText(alone[: start + clusters[-1].end(1)])
        if len(alone) > start and self.whole.startswith(alone):
            return len(alone)
        around = self._around(turn)  # the template shortens this turn once others follow
        if around is None or around[1] < start:
            raise self._rewritten(turn)
        end = re.match(rf"\s*({self.ends})", self.whole[around[1] :])
        return around[1] + (end.end() if end else 0)

    def _around(self, turn: int) -> tuple[int, int] | None:
        """Return where the content of a message stands in the text, None if it cannot be told."""
        messages = self.chat.messages
        if not isinstance(messages[turn].get("content"), str):
            return None
        marked = [*messages[:turn], {**messages[turn], "content": MARK}, *messages[turn + 1 :]]
        text = render(self.tokenizer, self.chat.having(marked), self.place)
        before, found, after = text.partition(MARK)
        fits = found and self.whole.startswith(before) and self.whole.endswith(after)
        if not fits or len(before) + len(after) > len(self.whole):
            return None
        return len(before), len(self.whole) - len(after)

    def _rewritten(self, turn: int) -> UserError:
        return UserError(
            f"{self.place}: the chat template rewrites what stands before message {turn} once it "
            f"follows, so the assistant's tokens cannot be told apart; use one that only appends"
        )


def _turn_end(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the first token that the chat template writes after an assistant's turn, if any."""
    if not tokenizer.chat_template:
        return []
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": MARK}]
    try:
        text = render(tokenizer, Chat(messages=messages), "chat template")
    except UserError:  # it wants other roles or variables: only the configs can say
        return []
    _, found, tail = text.rpartition(MARK)
    if not found:  # it wants another form of content
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


def _names(tokenizer: PreTrainedTokenizerBase, ends: Iterable[int]) -> dict[str, int]:
    return {str(tokenizer.convert_ids_to_tokens(token)): token for token in ends}


def _parsed(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except json.JSONDecodeError:
        return value  # the caller says what was expected
