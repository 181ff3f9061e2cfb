"""`evaluate`, which computes a sum such as "37*45" without `eval`, and the drawing of questions."""

import ast
import re
from typing import Any

import numpy as np

from textrl.errors import UserError, shown

LONGEST = 100
"""Maximum length of an expression in characters."""
MOST_DIGITS = 12
"""Maximum number of digits of a number in an expression."""
DEEPEST = 50
"""Maximum number of operators inside one another; `LONGEST` keeps parentheses within as many."""
LARGEST = 10**24
"""Every value on the way is smaller than this; so are the numbers that a reply shows."""
OPERATORS = "+-*"
"""The operators that questions are made of."""


class ExpressionError(UserError):
    """An expression that is not computed; `short` says why in a few words, for a tool's reply."""

    def __init__(self, text: object, short: str, wanted: str) -> None:
        """Take the expression, the few words and what was expected."""
        super().__init__(f"the expression is {shown(text)}: {short}; expected {wanted}")
        self.short = short


def evaluate(text: str) -> int:
    """Return the value of a sum of whole numbers: + - * //, a minus sign, parentheses.

    The text is parsed to a syntax tree, and only nodes of these kinds are computed. Its length,
    depth, digits and values are limited, so that no text takes long.

    Args:
        text: The expression, such as "(2+3)*4".

    Raises:
        UserError: the text is something else, or one of the limits is passed.

    >>> evaluate("37*45"), evaluate("-(2+3)*4"), evaluate("-7//2")
    (1665, -20, -4)
    """
    if not isinstance(text, str):
        raise ExpressionError(text, "not a sum", "a str such as '37*45'")
    if len(text) > LONGEST:
        raise ExpressionError(text, "too long", f"at most {LONGEST} characters")
    # no letter, dot, comma or underscore gets as far as the parser
    if not re.fullmatch(r"[0-9+\-*/() ]+", text):
        raise ExpressionError(text, "not a sum", "digits, + - * // and parentheses")
    if re.search(f"[0-9]{{{MOST_DIGITS + 1}}}", text):
        raise ExpressionError(text, "too large", f"numbers of at most {MOST_DIGITS} digits")
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise ExpressionError(text, "not a sum", "a sum such as '37*45'") from error
    return _value(tree.body, text, DEEPEST)


def _value(node: ast.expr, text: str, depth: int) -> int:
    """Return the value of a node that may have `depth` more nodes below one another."""
    if depth < 0:
        raise ExpressionError(text, "too deep", f"at most {DEEPEST} operators in one another")
    match node:
        case ast.Constant(value=int(number)):
            value = number
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            value = -_value(operand, text, depth - 1)
        case ast.BinOp(left=left, op=op, right=right):
            value = _combined(
                _value(left, text, depth - 1), op, _value(right, text, depth - 1), text
            )
        case _:
            raise ExpressionError(text, "not a sum", "a sum such as '37*45'")
    if abs(value) >= LARGEST:
        raise ExpressionError(text, "too large", f"values below {LARGEST:.0e}")
    return value


def _combined(left: int, op: ast.operator, right: int, text: str) -> int:
    """Return the value of an operator between two numbers."""
    match op:
        case ast.Add():
            return left + right
        case ast.Sub():
            return left - right
        case ast.Mult():
            return left * right
        case ast.FloorDiv() if right == 0:
            raise ExpressionError(text, "division by zero", "another divisor")
        case ast.FloorDiv():
            return left // right
        case _:  # ** would make a short text take for ever, / would make fractions
            raise ExpressionError(text, "not a sum", "the operators + - * //")


def draw_question(generator: np.random.Generator, digits: int, operators: str) -> str:
    """Return a question such as "37*45", of two numbers below 10^digits and one operator."""
    left, right = generator.integers(10**digits, size=2)
    operator = operators[generator.integers(len(operators))]
    return f"{left}{operator}{right}"


def checked_operators(value: Any) -> str:
    """Return different operators out of + - *, or refuse the argument `operators`."""
    known = isinstance(value, str) and set(value) <= set(OPERATORS)
    if not known or not 1 <= len(value) == len(set(value)):
        raise UserError(f"operators is {shown(value)}; expected some of {OPERATORS!r}, each once")
    return str(value)


def checked_question(value: Any) -> str:
    """Return a question that has a value and is short, or refuse the option `question`."""
    try:
        evaluate(value)
    except ExpressionError as error:
        raise UserError(f"options['question']: {error}") from error
    if len(value) > 30:
        raise UserError(f"options['question'] is {value!r}; expected at most 30 characters")
    return str(value).strip()
