"""Group metrics: vectors of the official code and fairlearn, empty groups, masks, the soft gap."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxneg import fairness

NAMES = {
    "fl_dp_diff": "demographic_parity_difference",
    "fl_dp_ratio": "demographic_parity_ratio",
    "fl_eo_diff": "equalized_odds_difference",
    "fl_eo_ratio": "equalized_odds_ratio",
}
INPUTS = ("a", "y", "p", "yhat")


@pytest.mark.golden("anonymity_fairness", "group_metrics*.npz")
@pytest.mark.parametrize("wide", [pytest.param(False, marks=pytest.mark.slow), True])
def test_official_code_and_fairlearn(golden, wide):
    """All cases in tables of one size, filled up with rows of weight 0: they share a program."""
    cases = sorted({name.partition("_")[0] for name in golden})
    rows = max(len(golden[f"{case}_y"]) for case in cases)
    with jax.enable_x64(wide):
        for case in cases:
            y, yhat, a = (
                np.pad(golden[f"{case}_{name}"].astype(int), (0, rows - len(golden[f"{case}_y"])))
                for name in ("y", "yhat", "a")
            )
            if f"{case}_p" in golden:
                np.testing.assert_array_equal(golden[f"{case}_p"] > 0.5, golden[f"{case}_yhat"] == 1)
            found = fairness.group_metrics(y, yhat, a, np.arange(rows) < len(golden[f"{case}_y"]))
            for name in golden:
                of, _, metric = name.partition("_")
                if of == case and metric not in INPUTS:
                    np.testing.assert_allclose(
                        found[NAMES.get(metric, metric)],
                        golden[name],
                        rtol=1e-10 if wide else 1e-5,
                        atol=1e-12 if wide else 1e-6,
                        err_msg=name,
                    )


def rates(y, yhat):
    """By hand, 0 / 0 = 0."""

    def share(part, whole):
        return part.sum() / whole.sum() if whole.any() else 0.0

    return {
        "SPD": share(yhat == 1, yhat >= 0),
        "EOD": share((yhat == 1) & (y == 1), y == 1),
        "PED": share((yhat == 1) & (y == 0), y == 0),
        "PRD": share((y == 1) & (yhat == 1), yhat == 1),
        "MAD": share(y == yhat, y >= 0),
    }


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.floats(0, 1), st.floats(0, 1))
def test_masked_rows_do_not_exist(seed, positive, selected):
    rng = np.random.default_rng(seed)
    y, yhat, a = (rng.random((3, 12)) < np.array([[positive], [selected], [0.5]])).astype(int)
    kept = rng.random(12) < 0.7
    found = fairness.group_metrics(y, yhat, a, kept)
    groups = [rates(y[kept & (a == g)], yhat[kept & (a == g)]) for g in (0, 1)]
    for name in groups[0]:
        assert float(found[name]) == pytest.approx(groups[1][name] - groups[0][name], abs=1e-6)
    assert float(found["AOD"]) == pytest.approx((float(found["EOD"]) + float(found["PED"])) / 2, abs=1e-6)
    swapped = fairness.group_metrics(y, yhat, 1 - a, kept)
    for name in ("SPD", "EOD", "MAD", "PED", "PRD"):
        assert float(swapped[name]) == pytest.approx(-float(found[name]), abs=1e-6)
    assert all(np.isfinite(np.asarray(value, float)).all() for value in found.values())
    both = [np.any(kept & (a == g) & (y == 0)) for g in (0, 1)]
    assert bool(found["PED_defined"]) == all(both)


def test_fairlearn_itself():
    metrics = pytest.importorskip("fairlearn.metrics")
    rng = np.random.default_rng(3)
    y, yhat, a = (rng.random((3, 12)) < 0.5).astype(int)
    found = fairness.group_metrics(y, yhat, a)
    for name in NAMES.values():
        expected = getattr(metrics, name)(y, yhat, sensitive_features=a)
        assert float(found[name]) == pytest.approx(expected, abs=1e-6)


def test_a_table_of_several_groups():
    rng = np.random.default_rng(4)
    y, yhat, a = rng.integers(0, 2, 30), rng.integers(0, 2, 30), rng.integers(0, 3, 30)
    found = fairness.group_table(y, yhat == 1, a, 4)
    for group in range(3):
        expected = rates(y[a == group], yhat[a == group])
        for name, key in (("selection_rate", "SPD"), ("TPR", "EOD"), ("FPR", "PED"), ("precision", "PRD")):
            assert float(found[name][group]) == pytest.approx(expected[key], abs=1e-6)
    assert float(found["count"][3]) == 0
    assert float(found["accuracy"][3]) == 0


@pytest.mark.slow
def test_jit_and_vmap():
    rng = np.random.default_rng(5)
    y, yhat, a = (jnp.asarray(rng.integers(0, 2, (3, 12))) for _ in range(3))
    together = jax.jit(jax.vmap(fairness.group_metrics))(y, yhat, a)
    for i, name in itertools.product(range(3), ("SPD", "theil", "CM")):
        alone = fairness.group_metrics(y[i], yhat[i], a[i])
        np.testing.assert_allclose(together[name][i], alone[name], rtol=1e-6, atol=1e-7)


def test_the_soft_gap_becomes_the_hard_one():
    rng = np.random.default_rng(6)
    y, a = rng.integers(0, 2, 12), rng.integers(0, 2, 12)
    logits = rng.normal(size=12)
    hard = fairness.group_metrics(y, (logits > 0).astype(int), a)
    for kind in ("SPD", "EOD", "PED", "MAD"):
        soft = fairness.soft_group_gap(jnp.asarray(1e4 * logits), y, a, kind)
        assert float(soft) == pytest.approx(float(hard[kind]), abs=1e-6)
    gradient = jax.grad(lambda x: fairness.soft_group_gap(x, y, a, "EOD"))(jnp.asarray(logits, jnp.float32))
    p = 1 / (1 + np.exp(-logits))
    expected = np.where(y == 1, p * (1 - p) * np.where(a == 1, 1 / np.sum((a == 1) & (y == 1)), 0), 0)
    expected -= np.where(y == 1, p * (1 - p) * np.where(a == 0, 1 / np.sum((a == 0) & (y == 1)), 0), 0)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-7)
    assert fairness.soft_group_gap(jnp.ones(12, jnp.bfloat16), y, a).dtype == jnp.float32
    assert float(fairness.soft_group_gap(jnp.ones(12), y, np.zeros(12, int))) == pytest.approx(-0.7310586)


def test_what_is_refused():
    good = np.array([0, 1])
    for arguments, error, message in (
        ((good, good, good[:1]), ValueError, "y, yhat, a: expected equally many rows, got 2, 2 and 1"),
        ((good, good, good + 1), ValueError, "a: expected codes from 0 to 1, got 2"),
        ((good, good * 0.7, good), TypeError, "yhat: expected integer codes, got float64"),
        (
            (good, good, good, np.array([1.0, -1.0])),
            ValueError,
            "weight: expected finite numbers, none negative",
        ),
    ):
        with pytest.raises(error, match=message):
            fairness.group_metrics(*arguments)
    with pytest.raises(ValueError, match="kind: expected one of SPD, EOD, PED, MAD, got 'XYZ'"):
        fairness.soft_group_gap(jnp.ones(2), good, good, "XYZ")
    with pytest.raises(ValueError, match="logits, y, a: expected equally many rows"):
        fairness.soft_group_gap(jnp.ones(3), good, good)
