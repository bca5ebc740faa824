"""Yes-no metrics and their intervals: goldens, scikit-learn, limits, pairing, wrong answers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from jaxneg.language import binary_metrics, paired_bootstrap, soft_bias
from jaxneg.language.binary_metrics import METRICS

PREFIXES = {
    "m": lambda golden: (golden["gold"], golden["pred"]),
    "m2": lambda golden: (golden["gold"], golden["pred_no_idk"]),
    # What only the README says of the edges.
    "edge_allno": lambda golden: (np.ones(7, int), np.zeros(7, int)),
    "edge_allidk": lambda golden: (np.array([1, 0, 1]), np.full(3, 2)),
}


@pytest.mark.golden("neg_bias", "neg_bias*.npz")
@pytest.mark.parametrize("prefix", PREFIXES)
def test_golden_metrics(golden, prefix):
    expected = {
        name.removeprefix(f"{prefix}_"): golden[name] for name in golden if name.startswith(f"{prefix}_")
    }
    found = binary_metrics(*PREFIXES[prefix](golden))
    assert expected.keys() == found.keys() == set(METRICS)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-12, atol=1e-12, err_msg=name)


@pytest.mark.golden("neg_bias", "neg_bias*.npz")
def test_golden_predictions_without_refusals(golden):
    np.testing.assert_array_equal(golden["pred_no_idk"], np.where(golden["pred"] == 2, 0, golden["pred"]))


@pytest.mark.golden("neg_bias", "neg_bias*.npz")
def test_golden_soft_bias(golden, x64):
    found = soft_bias(golden["logit_yes"], golden["logit_no"], golden["gold"])
    np.testing.assert_allclose(found, golden["soft_bias"], rtol=1e-12)
    narrow = soft_bias(
        *(golden[name].astype(np.float32) for name in ("logit_yes", "logit_no")), golden["gold"]
    )
    assert narrow.dtype == jnp.float32
    np.testing.assert_allclose(narrow, golden["soft_bias"], rtol=1e-6, atol=1e-6)


answers = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 2)), min_size=1, max_size=20)


@settings(deadline=None, max_examples=60)
@given(answers)
def test_equal_scikit_learns(pairs):
    gold, pred = np.array(pairs).T
    found = binary_metrics(gold, pred)
    said = pred != 2
    np.testing.assert_allclose(found["accuracy_all"], np.mean(gold == pred))
    np.testing.assert_allclose(found["idk_rate"], np.mean(~said))
    if said.any():
        y, p = gold[said], pred[said]
        for name, function in (
            ("precision", "precision_score"),
            ("recall", "recall_score"),
            ("f1", "f1_score"),
        ):
            expected = getattr(sklearn_metrics, function)(y, p, zero_division=0)
            np.testing.assert_allclose(found[name], expected, rtol=1e-12, err_msg=name)
        weighted = sklearn_metrics.f1_score(y, p, average="weighted", zero_division=0)
        np.testing.assert_allclose(found["weighted_f1"], weighted, rtol=1e-12)
        np.testing.assert_allclose(found["accuracy_answered"], np.mean(y == p))


@settings(deadline=None, max_examples=30)
@given(answers)
def test_negating_all_answers_turns_the_bias_around(pairs):
    gold, pred = np.array(pairs).T
    turned = np.where(pred == 2, 2, 1 - pred)
    one, other = binary_metrics(gold, pred), binary_metrics(1 - gold, turned)
    np.testing.assert_allclose(one["negative_bias"], -other["negative_bias"], atol=1e-12)
    assert -1 <= one["negative_bias"] <= 1


def test_always_no_is_the_whole_bias_and_chance_is_none():
    gold = np.tile([1, 0], 50)
    assert binary_metrics(gold, np.zeros(100, int))["negative_bias"] == 1
    assert binary_metrics(gold, np.ones(100, int))["negative_bias"] == -1
    assert binary_metrics(gold, np.repeat([1, 0], 50))["negative_bias"] == 0


def test_soft_bias_weighs_both_answers_the_same():
    yes, no = jnp.array([3.0, 3.0, 3.0, 0.0]), jnp.array([0.0, 0.0, 0.0, 3.0])
    gold = jnp.array([1, 1, 1, 0])
    assert float(soft_bias(yes, no, gold)) == 0
    assert float(soft_bias(yes, no + 1, gold)) == 1
    assert float(soft_bias(yes[:3], no[:3], gold[:3])) == -1.5


def test_soft_bias_under_transformations():
    random = np.random.default_rng(0)
    yes, no, gold = random.normal(size=(2, 8)), random.normal(size=(2, 8)), np.tile([1, 0], (2, 4))
    eager = soft_bias(yes[0], no[0], gold[0])
    vmapped = jax.jit(jax.vmap(soft_bias))(yes, no, gold)
    np.testing.assert_allclose(vmapped[0], eager, rtol=1e-5, atol=1e-7)
    gradient = jax.grad(lambda no: soft_bias(jnp.asarray(yes[0]), no, gold[0]))(jnp.asarray(no[0]))
    np.testing.assert_allclose(gradient, np.full(8, 1 / 8), rtol=1e-6)
    narrow = soft_bias(jnp.asarray(yes[0], jnp.bfloat16), jnp.asarray(no[0], jnp.bfloat16), gold[0])
    assert narrow.dtype == jnp.float32
    np.testing.assert_allclose(narrow, eager, atol=0.02)


def _twins(seed=0, items=40, lean=0.7):
    """Twins that are always both right or both wrong."""
    random = np.random.default_rng(seed)
    right = random.random(items) < lean
    gold = np.tile([1, 0], (items, 1))
    return gold, np.where(right[:, None], gold, 1 - gold)


def test_intervals_against_a_loop():
    gold, pred = _twins()
    key = jax.random.key(3)
    found = paired_bootstrap(gold, pred, "accuracy_all", draws=500, confidence=0.8, key=key)
    chosen = np.asarray(jax.random.randint(key, (500, 40), 0, 40))
    values = [binary_metrics(gold[row].ravel(), pred[row].ravel())["accuracy_all"] for row in chosen]
    np.testing.assert_allclose(found, np.quantile(values, [0.1, 0.9]), rtol=1e-12)


@pytest.mark.parametrize("metric", ["negative_bias", "weighted_f1", "idk_rate"])
def test_intervals_hold_the_estimate(metric):
    random = np.random.default_rng(1)
    gold, pred = np.tile([1, 0], (60, 1)), random.integers(0, 3, (60, 2))
    low, high = paired_bootstrap(gold, pred, metric)
    assert low < binary_metrics(gold.ravel(), pred.ravel())[metric] < high
    assert paired_bootstrap(gold, pred, metric) == (low, high)
    narrow = paired_bootstrap(gold, pred, metric, confidence=0.5)
    assert low < narrow.low < narrow.high < high


def test_twins_are_drawn_together():
    """Twins that fail together vary more than as many questions on their own."""
    gold, pred = _twins(lean=0.5, items=60)
    together = paired_bootstrap(gold, pred, "accuracy_all")
    alone = paired_bootstrap(gold.reshape(-1, 1), pred.reshape(-1, 1), "accuracy_all")
    ratio = (together.high - together.low) / (alone.high - alone.low)
    assert 1.2 < ratio < 1.65


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: binary_metrics([], []), TypeError, "gold: expected an integer dtype, got float64"),
        (
            lambda: binary_metrics(np.ones(0, int), np.ones(0, int)),
            ValueError,
            r"gold: .* at least one, got \(0,\)",
        ),
        (lambda: binary_metrics([1], [1.0]), TypeError, "pred: expected an integer dtype, got float64"),
        (
            lambda: binary_metrics([1, 0], [1]),
            ValueError,
            r"pred: expected the shape of gold, \(2,\), got \(1,\)",
        ),
        (lambda: binary_metrics([2, 0], [1, 1]), ValueError, r"gold: expected 1 \(Yes\) or 0 \(No\), got 2"),
        (lambda: binary_metrics([1, 0], [1, -1]), ValueError, r"pred: expected .* or 2 \(neither\), got -1"),
        (lambda: binary_metrics([[1, 0]], [[1, 1]]), ValueError, r"gold: expected the shape \[items\]"),
        (lambda: paired_bootstrap([1, 0], [1, 1]), ValueError, r"gold: expected the shape \[items, twins\]"),
        (
            lambda: paired_bootstrap([[1]], [[1]], "bias"),
            ValueError,
            "metric: expected one of accuracy_all, .*'bias'",
        ),
        (lambda: paired_bootstrap([[1]], [[1]], draws=0), ValueError, "draws: expected at least 1, got 0"),
        (
            lambda: paired_bootstrap([[1]], [[1]], confidence=1),
            ValueError,
            "confidence: expected a number between",
        ),
        (
            lambda: soft_bias(jnp.ones(2), jnp.ones(3), jnp.ones(2, int)),
            ValueError,
            "logit_no: expected the shape",
        ),
        (
            lambda: soft_bias(jnp.ones(2, int), jnp.ones(2), jnp.ones(2, int)),
            TypeError,
            "logit_yes: .* floating",
        ),
    ],
)
def test_wrong_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()
