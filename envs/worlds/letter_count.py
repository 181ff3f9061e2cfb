"""`textrl/LetterCount-v0`: a letter is to be counted in a text. With its expert."""

from typing import Any

from textrl.envs.worlds.base import (
    Reply,
    World,
    checked_letters,
    checked_text,
    checked_whole,
    read,
    verdict,
    whole_number,
)


class LetterCount(World):
    r"""A letter is to be counted, in a single turn.

    | what | text |
    |---|---|
    | first text | "count a in bacabc\n" |
    | turn | the count, such as "2" |
    | reply | "yes\n" or "no, 2\n" |

    The reward is 1.0 for the right number and 0.0 otherwise; the turn ends the game. `info` has
    "turns" and "won". `reset(options={"text": "bacabc", "letter": "a"})` sets one or both.
    """

    options_known = ("text", "letter")

    def __init__(
        self, *, length: int = 6, letters: str = "abc", render_mode: str | None = None
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
        self._count = 0

    def _check(self, options: dict[str, Any]) -> None:
        for name, length in (("text", self.length), ("letter", 1)):
            if name in options:
                checked_text(f"options['{name}']", options[name], length, self.letters)

    def _begin(self, options: dict[str, Any]) -> str:
        drawn = self.np_random.integers(len(self.letters), size=self.length + 1)
        text: str = options.get("text", "".join(self.letters[i] for i in drawn[1:]))
        letter: str = options.get("letter", self.letters[drawn[0]])
        self._count = text.count(letter)
        return f"count {letter} in {text}\n"

    def _reply(self, turn: str) -> Reply:
        return verdict(whole_number(turn) == self._count, self._count)


def expert(texts: list[str]) -> str:
    """Return the count; `experts.py` says what `texts` are."""
    letter, text = read(r"count (\w) in (\w+)\n", texts[0])
    return str(text.count(letter))
