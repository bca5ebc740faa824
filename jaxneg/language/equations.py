"""The value of an equation that a model wrote, without running it as code.

Implements the metric of distilling-step-by-step on SVAMP, Hsieh et al., arXiv:2305.02301, Section 4: the
label is an equation, and it is right if it has the value of the true one. The official code hands the
model's text to Python's ``eval``; here a grammar of numbers, ``+ - * /`` and parentheses is parsed, with the
``and`` and ``or`` between equations that teachers' texts hold, which have the values that Python gives them.
"""

import math
import re
from collections.abc import Sequence

_TOKEN = re.compile(r"\s*(\d+\.?\d*|\.\d+|[-+*/()]|and\b|or\b)")
_DEEPEST = 100
"""Parentheses and signs inside one another; no equation of a text problem comes near."""


def equation_value(text: str) -> float:
    """The value of an equation.

    ``either = both (or both)*``, ``both = sum (and sum)*``, ``sum = product (+|- product)*``, ``product =
    factor (*|/ factor)*``, ``factor = (+|-) factor | number | ( either )``; ``a and b`` is b unless a is 0,
    ``a or b`` is a unless a is 0.

    Args:
        text: such as "( 84.0 / 2.0 )"; numbers are decimal, without exponents or separators.

    Returns:
        The value; NaN if the text is no such equation, divides by zero, overflows, or nests deeper than 100.

    Source:
        arXiv:2305.02301, Section 4.

    Example:
        >>> equation_value("( 7.0 * ( 30.0 - 2 ) )")
        196.0
        >>> equation_value("__import__('os')")
        nan
    """
    tokens = _tokens(text)
    if not tokens:
        return math.nan
    try:
        value, position = _either(tokens, 0, 0)
    except (ValueError, ZeroDivisionError, OverflowError):
        return math.nan
    return value if position == len(tokens) and math.isfinite(value) else math.nan


def equation_accuracy(predictions: Sequence[str], references: Sequence[str]) -> float:
    """The share of equations that have the value of the true one.

    ``mean_i [value(predictions[i]) = value(references[i])]``; what cannot be parsed, on either side, is
    wrong.

    Args:
        predictions: equations that a model wrote.
        references: the true ones.

    Returns:
        A number between 0 and 1.

    Raises:
        ValueError: other numbers of both, or none.

    Source:
        arXiv:2305.02301, Section 4, as the official metric compares.

    Example:
        >>> equation_accuracy(["2 + 2", "?"], ["( 4.0 )", "?"])
        0.5
    """
    if len(predictions) != len(references) or not references:
        raise ValueError(
            "predictions: expected as many as references, at least one,"
            f" got {len(predictions)} and {len(references)}"
        )
    right = [
        equation_value(predicted) == equation_value(true)
        for predicted, true in zip(predictions, references, strict=True)
    ]
    return sum(right) / len(right)


def _tokens(text: str) -> list[str] | None:
    tokens, position, text = [], 0, text.rstrip()
    while position < len(text):
        found = _TOKEN.match(text, position)
        if found is None:
            return None
        tokens.append(found[1])
        position = found.end()
    return tokens


def _either(tokens: list[str], position: int, depth: int) -> tuple[float, int]:
    value, position = _both(tokens, position, depth)
    while position < len(tokens) and tokens[position] == "or":
        other, position = _both(tokens, position + 1, depth)
        value = value or other
    return value, position


def _both(tokens: list[str], position: int, depth: int) -> tuple[float, int]:
    value, position = _sum(tokens, position, depth)
    while position < len(tokens) and tokens[position] == "and":
        other, position = _sum(tokens, position + 1, depth)
        value = value and other
    return value, position


def _sum(tokens: list[str], position: int, depth: int) -> tuple[float, int]:
    value, position = _product(tokens, position, depth)
    while position < len(tokens) and tokens[position] in "+-":
        sign = 1 if tokens[position] == "+" else -1
        term, position = _product(tokens, position + 1, depth)
        value += sign * term
    return value, position


def _product(tokens: list[str], position: int, depth: int) -> tuple[float, int]:
    value, position = _factor(tokens, position, depth)
    while position < len(tokens) and tokens[position] in "*/":
        operator = tokens[position]
        factor, position = _factor(tokens, position + 1, depth)
        value = value * factor if operator == "*" else value / factor
    return value, position


def _factor(tokens: list[str], position: int, depth: int) -> tuple[float, int]:
    if position == len(tokens) or depth > _DEEPEST:
        raise ValueError("the equation ends too early or nests too deep")
    token = tokens[position]
    if token in "+-":
        value, position = _factor(tokens, position + 1, depth + 1)
        return (value if token == "+" else -value), position
    if token == "(":
        value, position = _either(tokens, position + 1, depth + 1)
        if position == len(tokens) or tokens[position] != ")":
            raise ValueError("a parenthesis is not closed")
        return value, position + 1
    return float(token), position + 1
