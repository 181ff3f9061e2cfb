"""Location of the assistant's turns in the text of a rendered chat.

They are found by rendering beginnings of the chat. This is also correct for templates whose
generation prompt differs from the beginning of a turn, or that shorten earlier turns.
"""

import re
from collections.abc import Iterable

from transformers import PreTrainedTokenizerBase

from textrl.chat import MARK, Chat, RenderedText, end_names, render
from textrl.errors import UserError


def assistant_spans(
    tokenizer: PreTrainedTokenizerBase,
    chat: Chat,
    place: str,
    ends: Iterable[int],
    prompt: Chat | None = None,
) -> tuple[str, list[tuple[int, int]]]:
    """Return the text of a chat, and the beginning and end of each part that the assistant wrote.

    Args:
        tokenizer: The tokenizer with the chat template.
        chat: The chat, which ends with the assistant.
        place: The place of the row, for error messages.
        ends: The tokens that end a turn. The end token of a turn is included in its part.
        prompt: The beginning of the chat, in which no turn counts; None if all turns count.

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
        self.ends = "|".join(re.escape(name) for name in end_names(tokenizer, ends)) or r"(?!)"

    def span(self, turn: int, before: Chat, *, new_turn: bool = False) -> tuple[int, int]:
        """Return where a turn begins and ends, given what the assistant saw before it."""
        start = self._start(turn, before, new_turn)
        return start, self._stop(turn, start)

    def _start(self, turn: int, before: Chat, new: bool) -> int:
        """Return where the model's output begins: after the generation prompt or at the content."""
        header = ""
        if before.messages:
            prompted = render(self.tokenizer, before, self.place, for_reply=True, new_turn=new)
            if self.whole.startswith(prompted):
                return len(prompted)
            header = render(self.tokenizer, before, self.place)
        # The generation prompt contains text that the turn does not, such as an opening <think>.
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
        # The template renders this turn differently when other turns follow.
        around = None if self.chat.messages[turn].get("tool_calls") else self._around(turn)
        if around is None:  # there are tool calls after the content, or instead of it
            return self._first_end(turn, start)
        if around[1] < start:
            raise self._rewritten(turn)
        end = re.match(rf"\s*({self.ends})", self.whole[around[1] :])
        return around[1] + (end.end() if end else 0)

    def _first_end(self, turn: int, start: int) -> int:
        """Return the end of the first end token after start and before the next message."""
        last = turn + 1 == len(self.chat.messages)
        following = None if last else self._around(turn + 1)
        found = re.search(self.ends, self.whole[start : following[0] if following else None])
        if found is None or not (last or following):
            raise self._rewritten(turn)
        return start + found.end()

    def _around(self, turn: int) -> tuple[int, int] | None:
        """Return the position of a message's content in the text, or None if it is unclear."""
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
