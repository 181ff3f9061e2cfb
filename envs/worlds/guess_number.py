"""`textrl/GuessNumber-v0`: the world thinks of a number, the agent guesses it. With its expert."""

from collections.abc import Callable
from typing import Any

from textrl.envs.worlds.base import Reply, World, checked_whole, read, verdict, whole_number
from textrl.errors import UserError, shown

FARTHEST = 1_000_000
"""Maximum distance of a number from 0."""


class GuessNumber(World):
    r"""A number is to be guessed; each reply says where it lies.

    | what | text |
    |---|---|
    | first text | "Guess my number from 1 to 20.\n" |
    | turn | a whole number, such as "10" |
    | reply | "higher\n", "lower\n", "yes\n"; "a number?\n" to a turn that is none of the range |
    | reply to the last guess | "yes\n" or "no, 13\n" |

    Every turn uses up a guess. The reward is 1.0 for the right guess, which ends the game, and 0.0
    otherwise. The game also ends when the guesses are used up. `info` has "guesses" and "won".
    `reset(options={"target": 7})` sets the number.
    """

    options_known = ("target",)

    def __init__(
        self,
        *,
        low: int = 1,
        high: int = 20,
        guesses: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        """Make the world.

        Args:
            low: Smallest number that the world thinks of.
            high: Largest number that the world thinks of.
            guesses: Number of guesses, or None for one more than binary search needs at worst.
            render_mode: "ansi" or None.

        Raises:
            UserError: an argument is out of its range.
        """
        super().__init__(render_mode)
        self.low = checked_whole("low", low, -FARTHEST, FARTHEST)
        self.high = checked_whole("high", high, -FARTHEST, FARTHEST)
        if low > high:
            raise UserError(f"low is {shown(low)}; expected at most high, which is {shown(high)}")
        optimum = optimal_guesses(self.high - self.low + 1)
        self.guesses = optimum + 1 if guesses is None else checked_whole("guesses", guesses, 1, 100)
        self._target = self.low

    def _check(self, options: dict[str, Any]) -> None:
        if "target" in options:
            checked_whole("options['target']", options["target"], self.low, self.high)

    def _begin(self, options: dict[str, Any]) -> str:
        drawn = self.np_random.integers(self.low, self.high + 1)
        self._target = int(options.get("target", drawn))
        return f"Guess my number from {self.low} to {self.high}.\n"

    def _reply(self, turn: str) -> Reply:
        guess = whole_number(turn)
        if guess == self._target or self.turns >= self.guesses:
            return verdict(guess == self._target, self._target)
        if guess is None or not self.low <= guess <= self.high:
            return Reply("a number?\n")
        return Reply("higher\n" if guess < self._target else "lower\n")

    def _info(self) -> dict[str, Any]:
        return {"guesses": self.turns}


def optimal_guesses(n: int) -> int:
    """Return how many guesses the best player needs at worst for n numbers: ceil(log2(n + 1)).

    With g guesses a player tells 2^g - 1 numbers apart, since the last guess must be the number.

    >>> [optimal_guesses(n) for n in (1, 2, 3, 4, 7, 8, 20)]
    [1, 2, 2, 3, 3, 4, 5]
    """
    return checked_whole("n", n, 1, 2 * FARTHEST + 1).bit_length()


def binary_search(low: int, high: int) -> Callable[[list[str]], str]:
    r"""Return a player of the range from low to high: from the texts so far to the next guess.

    It guesses the middle of what the replies leave open, so that it needs `optimal_guesses` at
    most.

    >>> play = binary_search(1, 20)
    >>> play(["Guess my number from 1 to 20.\n"])
    '10'
    >>> play(["Guess my number from 1 to 20.\n", "10", "higher\n"])
    '15'
    """

    def play(texts: list[str]) -> str:
        first, last = low, high
        for turn, reply in zip(texts[1::2], texts[2::2], strict=True):
            guess = whole_number(turn.strip())
            if guess is not None and reply == "higher\n":
                first = max(first, guess + 1)
            elif guess is not None and reply == "lower\n":
                last = min(last, guess - 1)
        return str((first + last) // 2)

    return play


def expert(texts: list[str]) -> str:
    """Return the guess of binary search; `experts.py` says what `texts` are."""
    low, high = read(r"Guess my number from (-?\d+) to (-?\d+)\.\n", texts[0])
    return binary_search(int(low), int(high))(texts)
