"""`textrl/Calculator-v0`: a question whose answer a tool may compute. With its expert.

`evaluate`, the calculator itself, is in `expressions.py` and may be imported from here.
"""

from typing import Any

from textrl.envs.worlds.base import Reply, World, checked_whole, read, verdict, whole_number
from textrl.envs.worlds.expressions import (
    OPERATORS,
    ExpressionError,
    checked_operators,
    checked_question,
    draw_question,
    evaluate,
)

__all__ = ["Calculator", "evaluate", "expert"]


class Calculator(World):
    r"""A question is to be answered, and a calculator may be called before the answer.

    | what | text |
    |---|---|
    | first text | "37*45=?\n" |
    | turn that calls the tool | "calc 37*45" |
    | reply of the tool | "1665\n", or "error: not a sum\n" and the like |
    | turn that answers | any other, such as "1665" |
    | reply to the answer | "yes\n" or "no, 1665\n" |

    A call costs nothing; `info["role"]` is "tool" for its reply. After `calls` calls the next turn
    is the answer whatever it says. The reward is 1.0 for the right number and 0.0 otherwise; an
    answer ends the game. `info` has "calls" and "won". `reset(options={"question": "37*45"})` sets
    the question, which may be any sum that `evaluate` computes, of at most 30 characters.
    """

    options_known = ("question",)

    def __init__(
        self,
        *,
        digits: int = 2,
        calls: int = 3,
        operators: str = OPERATORS,
        render_mode: str | None = None,
    ) -> None:
        """Make the world.

        Args:
            digits: Maximum number of digits of the two numbers in a question, 1 to 9.
            calls: Number of calls of the tool, at least 1.
            operators: The operators that questions are drawn from, some of "+-*".
            render_mode: "ansi" or None.

        Raises:
            UserError: an argument is out of its range.
        """
        super().__init__(render_mode)
        self.digits = checked_whole("digits", digits, 1, 9)
        self.most_calls = checked_whole("calls", calls, 1, 100)
        self.operators = checked_operators(operators)
        self._calls = 0
        self._value = 0

    def _check(self, options: dict[str, Any]) -> None:
        if "question" in options:
            checked_question(options["question"])

    def _begin(self, options: dict[str, Any]) -> str:
        drawn = draw_question(self.np_random, self.digits, self.operators)
        question = checked_question(options.get("question", drawn))
        self._calls, self._value = 0, evaluate(question)
        return f"{question}=?\n"

    def _reply(self, turn: str) -> Reply:
        if turn.split(maxsplit=1)[:1] == ["calc"] and self._calls < self.most_calls:
            self._calls += 1
            return Reply(computed(turn.removeprefix("calc").strip()), role="tool")
        return verdict(whole_number(turn) == self._value, self._value)

    def _info(self) -> dict[str, Any]:
        return {"calls": self._calls}


def computed(expression: str) -> str:
    r"""Return the tool's reply to an expression.

    >>> computed("37*45"), computed("7//0"), computed("two")
    ('1665\n', 'error: division by zero\n', 'error: not a sum\n')
    """
    try:
        return f"{evaluate(expression)}\n"
    except ExpressionError as error:
        return f"error: {error.short}\n"


def expert(texts: list[str]) -> str:
    """Return a call with the question, then its value; `experts.py` says what `texts` are."""
    (question,) = read(r"(.+)=\?\n", texts[0])
    call = f"calc {question}"
    asked = [reply for turn, reply in zip(texts[1::2], texts[2::2], strict=True) if turn == call]
    return asked[-1].strip() if asked else call
