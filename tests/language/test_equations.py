"""Equations: their values, Python's own arithmetic, hostile text, the golden values of SVAMP."""

import ast
import gzip
import json
import math
import os
import re
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from jaxneg.language import equation_accuracy, equation_value

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("JAXNEG_DATA", ROOT.parent / "shared" / "data")) / "qcrd"

numbers = st.decimals(0, 1000, places=2).map(str)
equations = st.recursive(
    numbers,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-*/"), inner).map(" ".join),
        inner.map(lambda text: f"( {text} )"),
        inner.map(lambda text: f"-{text}"),
        st.tuples(inner, st.sampled_from(("and", "or")), inner).map(" ".join),
    ),
    max_leaves=6,
)


@settings(deadline=None, max_examples=200)
@given(equations)
def test_values_are_those_of_python(text):
    """On text that is nothing but arithmetic, what Python computes from the same syntax tree."""
    try:
        expected = eval(compile(ast.parse(text, mode="eval"), "equation", "eval"), {"__builtins__": {}})
    except ZeroDivisionError:
        expected = math.nan
    np.testing.assert_allclose(equation_value(text), expected, rtol=1e-12, equal_nan=True)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("( 84.0 / 2.0 )", 42.0),
        ("8-3-2", 3.0),
        ("8/4/2", 1.0),
        ("2+3*4", 14.0),
        ("--3", 3.0),
        (".5 * 4.", 2.0),
        ("(53 + 17) and (14 - 10)", 4.0),
        ("(1 - 1) and 7 or 2 * (0 or 3)", 6.0),
    ],
)
def test_values(text, value):
    assert equation_value(text) == value


@pytest.mark.parametrize(
    "text",
    [
        *("", "  ", "1 +", "( 1", "1 )", "1 2", "1 / 0", "2 ** 3", "1e3", "x", "()", "__import__('os')"),
        *("1,000", "1 // 2", "NaN", "1 and", "or 2", "1 andy", "9" * 400),
        *("(" * 100_000 + "1" + ")" * 100_000, "-" * 100_000 + "1"),
    ],
)
def test_what_is_no_equation(text):
    assert math.isnan(equation_value(text))


def test_accuracy():
    assert equation_accuracy(["1 + 1", "3", "?", "2"], ["2", "4", "?", "(2.0)"]) == 0.5
    for predictions, references in ((["1"], []), ([], [])):
        with pytest.raises(ValueError, match=re.escape("predictions: expected as many as references")):
            equation_accuracy(predictions, references)


@pytest.mark.golden("qcrd", "svamp_eval_*.npz")
def test_golden_svamp(golden, request):
    """Values of PaLM's equations and of the true ones, in the order of the file."""
    split = request.node.callspec.id.removeprefix("svamp_eval_")
    file = DATA / f"svamp_{split}.jsonl.gz"
    if not file.is_file():
        pytest.skip(f"there is no {file}: set JAXNEG_DATA to the folder of the data")
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    palm, gold = ([row[name] for row in rows] for name in ("palm_equation", "equation"))
    for name, texts in (("palm_value", palm), ("gold_value", gold)):
        np.testing.assert_array_equal(list(map(equation_value, texts)), golden[name])
    right = [equation_value(a) == equation_value(b) for a, b in zip(palm, gold, strict=True)]
    np.testing.assert_array_equal(right, golden["correct"])
    assert equation_accuracy(palm, gold) == pytest.approx(float(golden["accuracy"]), abs=1e-12)
