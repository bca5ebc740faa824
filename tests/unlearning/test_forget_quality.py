"""Forget quality: against scipy, against enumeration, at the ends of the range, and wrong samples."""

import itertools
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from jaxneg.unlearning import forget_quality

values = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=12)


@settings(deadline=None, max_examples=60)
@given(values, values)
def test_small_samples_with_ties_equal_scipy(a, b):
    with warnings.catch_warnings(record=True) as left:
        warnings.simplefilter("always")
        found, expected = forget_quality(a, b), stats.ks_2samp(a, b)
    # Where the exact probability is 1 and scipy's rounds to more, scipy leaves the exact method and warns.
    np.testing.assert_allclose(found.p, 1.0 if left else expected.pvalue, rtol=1e-10)
    np.testing.assert_allclose(found.stat, expected.statistic, rtol=1e-12)


@pytest.mark.parametrize("shift", [0.0, 0.3, 2.0, 20.0])
@pytest.mark.parametrize(("n", "m"), [(400, 400), (300, 400), (40, 397), (1, 5), (7, 7)])
def test_equals_scipy_down_to_the_smallest_probabilities(n, m, shift):
    random = np.random.default_rng(n + m)
    a, b = random.normal(size=n), random.normal(size=m) + shift
    found, expected = forget_quality(a, b), stats.ks_2samp(a, b)
    np.testing.assert_allclose(np.log10(found.p), np.log10(expected.pvalue), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.stat, expected.statistic, rtol=1e-12)


def test_equals_the_share_of_all_orders():
    a, b = np.array([0.1, 2.0, 3.5]), np.array([0.2, 0.3, 1.0, 5.0])
    pooled = np.concatenate([a, b])

    def distance(chosen):
        rest = [i for i in range(7) if i not in chosen]
        below = [[np.mean(pooled[list(group)] <= x) for x in pooled] for group in (chosen, rest)]
        return np.abs(np.subtract(*below)).max()

    observed = distance((0, 1, 2))
    orders = [distance(chosen) for chosen in itertools.combinations(range(7), 3)]
    found = forget_quality(a, b)
    np.testing.assert_allclose(found, (np.mean(np.array(orders) >= observed - 1e-12), observed), rtol=1e-12)


@pytest.mark.parametrize(
    ("n", "m"), [(10_001, 3), (10_001, 150), pytest.param(12_000, 6_000, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("shift", [0.0, 0.02, 0.06, 1.0])
def test_large_samples_follow_scipys_rule(n, m, shift):
    random = np.random.default_rng(m)
    a, b = random.normal(size=n), random.normal(size=m) + shift
    found, expected = forget_quality(a, b), stats.ks_2samp(a, b)
    np.testing.assert_allclose(found.p, expected.pvalue, rtol=1e-5, atol=1e-12)
    np.testing.assert_allclose(found.stat, expected.statistic, rtol=1e-12)


def test_the_rule_changes_beyond_ten_thousand():
    """At 10,000 values the p-value is that of the exact distribution, which scipy's "asymp" misses."""
    random = np.random.default_rng(0)
    a, b = random.normal(size=10_000), random.normal(size=20)
    exact, other = (stats.ks_2samp(a, b, method=method).pvalue for method in ("exact", "asymp"))
    assert abs(exact - other) > 1e-4
    np.testing.assert_allclose(forget_quality(a, b).p, exact, rtol=1e-9)
    longer = np.concatenate([a, random.normal(size=1)])
    np.testing.assert_allclose(
        forget_quality(longer, b).p, stats.ks_2samp(longer, b, method="asymp").pvalue, rtol=1e-6
    )


@settings(deadline=None, max_examples=20)
@given(values, values)
def test_symmetric_and_invariant_to_increasing_maps(a, b):
    found = forget_quality(a, b)
    np.testing.assert_allclose(forget_quality(b, a), found, rtol=1e-10)
    np.testing.assert_allclose(forget_quality(np.exp(a), np.exp(b)), found, rtol=1e-12)
    # TOFU tests 1/R, open-unlearning R.
    np.testing.assert_allclose(forget_quality(1 / np.exp(a), 1 / np.exp(b)), found, rtol=1e-10)


def test_identical_samples_and_infinite_ratios():
    assert forget_quality([1.0, 2.0], [1.0, 2.0]) == (1.0, 0.0)
    assert forget_quality([np.inf, 1.0], [np.inf, 1.0]) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([], [1.0], r"tr_a: expected a one-dimensional array of at least one, got shape \(0,\)"),
        ([1.0], [[1.0]], r"tr_b: expected a one-dimensional array .* got shape \(1, 1\)"),
        ([1.0, np.nan], [1.0], "tr_a: expected numbers, got NaN at 1"),
    ],
)
def test_wrong_samples(a, b, message):
    with pytest.raises(ValueError, match=message):
        forget_quality(a, b)
