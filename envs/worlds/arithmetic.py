"""`textrl/Arithmetic-v0`: one question, one answer, without a tool. With its expert."""

from typing import Any

from textrl.envs.worlds.base import Reply, World, checked_whole, read, verdict, whole_number
from textrl.envs.worlds.expressions import (
    checked_operators,
    checked_question,
    draw_question,
    evaluate,
)


class Arithmetic(World):
    r"""A sum is to be computed, in a single turn.

    | what | text |
    |---|---|
    | first text | "3+4=?\n" |
    | turn | the value, such as "7" |
    | reply | "yes\n" or "no, 7\n" |

    The reward is 1.0 for the right number and 0.0 otherwise; the turn ends the game. `info` has
    "turns" and "won". `reset(options={"question": "3+4"})` sets the question, which may be any sum
    that `evaluate` computes, of at most 30 characters.
    """

    options_known = ("question",)

    def __init__(
        self, *, digits: int = 1, operators: str = "+", render_mode: str | None = None
    ) -> None:
        """Make the world.

        Args:
            digits: Maximum number of digits of the two numbers in a question, 1 to 9.
            operators: The operators that questions are drawn from, some of "+-*".
            render_mode: "ansi" or None.

        Raises:
            UserError: an argument is out of its range.
        """
        super().__init__(render_mode)
        self.digits = checked_whole("digits", digits, 1, 9)
        self.operators = checked_operators(operators)
        self._value = 0

    def _check(self, options: dict[str, Any]) -> None:
        if "question" in options:
            checked_question(options["question"])

    def _begin(self, options: dict[str, Any]) -> str:
        drawn = draw_question(self.np_random, self.digits, self.operators)
        question = checked_question(options.get("question", drawn))
        self._value = evaluate(question)
        return f"{question}=?\n"

    def _reply(self, turn: str) -> Reply:
        return verdict(whole_number(turn) == self._value, self._value)


def expert(texts: list[str]) -> str:
    """Return the value of the question; `experts.py` says what `texts` are."""
    (question,) = read(r"(.+)=\?\n", texts[0])
    return str(evaluate(question))
