"""`textrl/ReverseText-v0`: a text is to be said backwards. With its expert."""

from typing import Any

from textrl.envs.worlds.base import (
    Reply,
    World,
    checked_letters,
    checked_text,
    checked_whole,
    read,
    verdict,
)


class ReverseText(World):
    r"""A text is to be reversed, in a single turn.

    | what | text |
    |---|---|
    | first text | "reverse abcd\n" |
    | turn | the text backwards: "dcba" |
    | reply | "yes\n" or "no, dcba\n" |

    The reward is the share of right positions, `share_right`: 1.0 for the right answer and for no
    other. The turn ends the game. `info` has "turns" and "won". `reset(options={"text": "abcd"})`
    sets the text.
    """

    options_known = ("text",)

    def __init__(
        self, *, length: int = 4, letters: str = "abcdefgh", render_mode: str | None = None
    ) -> None:
        """Make the world.

        Args:
            length: Number of letters of a text, 1 to 100.
            letters: The letters that texts are drawn from, each as likely as the others.
            render_mode: "ansi" or None.

        Raises:
            UserError: an argument is out of its range.
        """
        super().__init__(render_mode)
        self.length = checked_whole("length", length, 1, 100)
        self.letters = checked_letters("letters", letters)
        self._answer = ""

    def _check(self, options: dict[str, Any]) -> None:
        if "text" in options:
            checked_text("options['text']", options["text"], self.length, self.letters)

    def _begin(self, options: dict[str, Any]) -> str:
        drawn = self.np_random.integers(len(self.letters), size=self.length)
        text: str = options.get("text", "".join(self.letters[i] for i in drawn))
        self._answer = text[::-1]
        return f"reverse {text}\n"

    def _reply(self, turn: str) -> Reply:
        reward = share_right(turn, self._answer)
        return verdict(reward == 1.0, self._answer)._replace(reward=reward)


def share_right(answer: str, target: str) -> float:
    """Return the number of positions where both agree, over the length of the longer one.

    >>> share_right("dcba", "dcba"), share_right("dcab", "dcba"), share_right("dcbabbbb", "dcba")
    (1.0, 0.5, 0.5)
    """
    right = sum(a == b for a, b in zip(answer, target, strict=False))
    return right / max(len(answer), len(target), 1)


def expert(texts: list[str]) -> str:
    """Return the text backwards; `experts.py` says what `texts` are."""
    (text,) = read(r"reverse (\w+)\n", texts[0])
    return text[::-1]
