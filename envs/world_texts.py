"""`WorldTexts`: what a world says, as token ids after which the policy's turn begins.

With a chat template a world's text is a user's or a tool's message, and what the template writes
around it is the world's too. Without one, texts follow one another as they are, and an end token
ends each turn of the policy. The policy's own ids are never encoded again.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from textrl.chat import Chat, Messages, end_names, render
from textrl.encoding import encode_prompt
from textrl.errors import UserError
from textrl.seams import decode_whole, ids_after

OWN, REPLY = "textrlown", "textrlreply"
"""Placeholders for the policy's text and the world's in a chat that is rendered."""
THOUGHT = f"<think>\n{OWN}\n</think>\n\n"
CONTEXT = 16
"""Number of tokens before a reply with which it is decoded to find its first space."""


class WorldTexts:
    """Encodes the texts of a world for one tokenizer."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        end_token_ids: Sequence[int],
        system_prompt: str | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> None:
        """Try the chat template, if there is one.

        Raises:
            UserError: the template refuses such chats or rewrites earlier turns, or there is none
                for a system prompt or variables.
        """
        self.tokenizer, self.ends, self._end = tokenizer, set(end_token_ids), end_token_ids[0]
        self._names = end_names(tokenizer, end_token_ids)
        self._system: Messages = []
        if system_prompt is not None:
            self._system = [{"role": "system", "content": system_prompt}]
        self._variables = dict(variables or {})
        self._around: dict[tuple[str, ...], tuple[str, str]] = {}
        if tokenizer.chat_template:
            self._parts(("user",), "user")
            self._refuse_forgotten_thoughts()
        elif system_prompt is not None or variables:
            name = "chat_template_kwargs" if system_prompt is None else "system_prompt"
            raise UserError(
                f"{name} is given, but the tokenizer has no chat template; leave it out, or set "
                f"tokenizer.chat_template"
            )

    def opening(self, text: str, place: str) -> list[int]:
        """Return the ids of a world's first text, up to where the policy's first turn begins."""
        if not self.tokenizer.chat_template:
            return encode_prompt(self.tokenizer, text, place)
        return encode_prompt(self.tokenizer, self._chat([("user", text.strip())]), place)

    def reply(self, own: Sequence[int], text: str, roles: Sequence[str], role: str) -> list[int]:
        """Return the ids of a world's reply to a turn, up to where the policy's next turn begins.

        Args:
            own: The ids of the turn, at least its last ones.
            text: The world's reply.
            roles: The roles of the world's texts so far, from the first on.
            role: The role of the reply, "user" or "tool".

        Raises:
            UserError: the chat template does not take the role, or rewrites the turns before.
        """
        before, after, end = "", "", self._end
        if self.tokenizer.chat_template:
            before, after = self._parts(tuple(roles), role)
            text = text.strip()
            ending = before.lstrip()  # Llama 2 writes a space before the end token
            name = next((name for name in self._names if ending.startswith(name)), None)
            if name is not None:
                before, end = ending[len(name) :], self._names[name]
        closing = [] if own and own[-1] in self.ends else [end]
        context = [*list(own)[-CONTEXT:], *closing]
        whole = f"{before}{text}{after}"
        if not whole:
            return closing
        return closing + ids_after(
            self.tokenizer, context, decode_whole(self.tokenizer, context), whole
        )

    def _parts(self, roles: tuple[str, ...], role: str) -> tuple[str, str]:
        """Return what the template writes between a turn and a reply, and after the reply."""
        key = (*roles, role)
        if key not in self._around:
            place = f"a chat of {len(roles) + 1} turns with a world"
            said = [(name, f"textrlsaid{i}") for i, name in enumerate(roles)]
            turns = [part for one in said for part in (one, ("assistant", OWN))]
            before = self._rendered(turns[:-1], place)
            whole = self._rendered([*turns, (role, REPLY)], place)
            said_on = whole.removeprefix(before).lstrip()  # the policy says the space itself
            found = said_on.removeprefix(OWN).split(REPLY)
            appends = whole.startswith(before) and said_on.startswith(OWN)
            if not appends or len(found) != 2:
                raise UserError(
                    f"{place}: the chat template rewrites earlier turns once a reply follows, so "
                    f"that the policy would not see what it said; set a tokenizer.chat_template "
                    f"that only appends, or variables by which it does (chat_template_kwargs)"
                )
            self._around[key] = found[0], found[1]
        return self._around[key]

    def _refuse_forgotten_thoughts(self) -> None:
        """Raise UserError if the template drops the thoughts of earlier turns."""
        turns = [("user", "textrlsaid0"), ("assistant", f"{THOUGHT}{OWN}"), ("user", REPLY)]
        try:
            text = self._rendered(turns, "a chat with thoughts")
        except UserError:  # of such texts it can tell nothing
            return
        if text.count(OWN) < 2:
            raise UserError(
                "the chat template drops the thoughts (<think>...</think>) of earlier turns, which "
                "the policy would still see; set a tokenizer.chat_template that only appends"
            )

    def _rendered(self, turns: list[tuple[str, str]], place: str) -> str:
        return str(render(self.tokenizer, self._chat(turns), place, for_reply=True))

    def _chat(self, turns: list[tuple[str, str]]) -> Chat:
        messages = [{"role": role, "content": text} for role, text in turns]
        return Chat(messages=[*self._system, *messages], variables=self._variables)


def role_of(info: Mapping[str, Any]) -> str:
    """Return the role of a world's text: "tool" where its info says so, else "user".

    Other packages' worlds use the same entry for names of their own.
    """
    return "tool" if info.get("role") == "tool" else "user"
