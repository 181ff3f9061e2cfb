"""`textrl/Mastermind-v0`: a code of letters is to be guessed. With its expert."""

import itertools
from collections import Counter
from typing import Any

from textrl.envs.worlds.base import Reply, World, checked_text, checked_whole, read, verdict

LETTERS = "ABCDEFGH"


class Mastermind(World):
    r"""A code is to be guessed; each reply says how near the guess is.

    | what | text |
    |---|---|
    | first text | "Guess my code: 3 letters from A to D.\n" |
    | turn | a code, such as "AAB"; small letters count as capitals |
    | reply | "1 right, 2 misplaced\n", "yes\n"; "3 letters?\n" to a turn that is no code |
    | reply to the last guess | "yes\n" or "no, ADB\n" |

    "right" counts the letters at their place, "misplaced" those of the rest that the code has at
    another place. A letter may occur more than once. Every turn uses up a guess. The reward is 1.0
    for the code, which ends the game, and 0.0 otherwise. The game also ends when the guesses are
    used up. `info` has "guesses" and "won". `reset(options={"code": "ADB"})` sets the code.
    """

    options_known = ("code",)

    def __init__(
        self,
        *,
        colors: int = 4,
        pegs: int = 3,
        guesses: int = 8,
        render_mode: str | None = None,
    ) -> None:
        """Make the world.

        Args:
            colors: Number of letters that codes are made of, 2 to 8.
            pegs: Length of the code, 1 to 6.
            guesses: Number of guesses.
            render_mode: "ansi" or None.

        Raises:
            UserError: an argument is out of its range.
        """
        super().__init__(render_mode)
        self.letters = LETTERS[: checked_whole("colors", colors, 2, len(LETTERS))]
        self.pegs = checked_whole("pegs", pegs, 1, 6)
        self.guesses = checked_whole("guesses", guesses, 1, 100)
        self._code = ""

    def _check(self, options: dict[str, Any]) -> None:
        if "code" in options:
            checked_text("options['code']", options["code"], self.pegs, self.letters)

    def _begin(self, options: dict[str, Any]) -> str:
        drawn = self.np_random.integers(len(self.letters), size=self.pegs)
        self._code = options.get("code", "".join(self.letters[i] for i in drawn))
        return f"Guess my code: {self.pegs} letters from A to {self.letters[-1]}.\n"

    def _reply(self, turn: str) -> Reply:
        guess = turn.upper() if turn.isascii() else ""
        if guess == self._code or self.turns >= self.guesses:
            return verdict(guess == self._code, self._code)
        if len(guess) != self.pegs or not set(guess) <= set(self.letters):
            return Reply(f"{self.pegs} letters?\n")
        return Reply(marks(guess, self._code))

    def _info(self) -> dict[str, Any]:
        return {"guesses": self.turns}


def marks(guess: str, code: str) -> str:
    r"""Return the reply to a guess of the code's length.

    >>> marks("ABB", "BAB")  # the last letter is right; A and the other B are misplaced
    '1 right, 2 misplaced\n'
    >>> marks("AAA", "ABC")  # the code has one A, and it is right: none is left to be misplaced
    '1 right, 0 misplaced\n'
    """
    right = sum(a == b for a, b in zip(guess, code, strict=True))
    common = sum((Counter(guess) & Counter(code)).values())
    return f"{right} right, {common - right} misplaced\n"


def expert(texts: list[str]) -> str:
    """Return the first code, by the alphabet, that agrees with every reply.

    It is not the fewest guesses, but of 4 letters and 3 pegs every code is found within 8.
    `experts.py` says what `texts` are.
    """
    pegs, last = read(r"Guess my code: (\d) letters from A to (\w)\.\n", texts[0])
    letters = LETTERS[: LETTERS.index(last) + 1]
    replies = [
        (turn.strip().upper(), reply)
        for turn, reply in zip(texts[1::2], texts[2::2], strict=True)
        if reply.endswith("misplaced\n")  # the others tell nothing
    ]
    for code in map("".join, itertools.product(letters, repeat=int(pegs))):
        if all(marks(guess, code) == reply for guess, reply in replies):
            return code
    return LETTERS[0] * int(pegs)  # the replies contradict one another: not of this world
