"""Mondrian: the vectors, a plain recursion, rows that do not count, degenerate tables."""

import jax
import numpy as np
import pytest

from jaxneg import fairness


@pytest.mark.golden("anonymity_fairness", "lattice_mondrian*.npz")
def test_recursion(golden, x64):
    for name in [name for name in golden if name.endswith("_gid")]:
        k = int(name.removeprefix("m_k").removesuffix("_gid"))
        gid = fairness.mondrian(golden["Xn"], k)
        np.testing.assert_array_equal(gid, golden[name], err_msg=name)
        assert int(gid.max()) + 1 == int(golden[f"m_k{k}_n"])


def recursion(X, k):
    """The specification, depth first."""
    span = np.maximum(np.ptp(X, axis=0), 1e-30)
    gid, count = np.zeros(len(X), int), 0

    def split(rows):
        nonlocal count
        width = np.ptp(X[rows], axis=0) / span
        for column in np.argsort(-width, kind="stable"):
            if width[column] == 0:
                break
            values = X[rows, column]
            left = values <= np.sort(values)[(len(rows) - 1) // 2]
            if min(left.sum(), (~left).sum()) >= k:
                split(rows[left])
                split(rows[~left])
                return
        gid[rows], count = count, count + 1

    split(np.arange(len(X)))
    return gid


def test_ties_and_rows_that_do_not_count():
    """Small integers, which tie; test rows fall where the splits put them."""
    rng = np.random.default_rng(0)
    X = rng.integers(0, 6, (64, 3)).astype(float)
    X[:, 2] = 1.0
    counts = rng.random(64) < 0.6
    for k in (1, 3, 10):
        np.testing.assert_array_equal(fairness.mondrian(X, k), recursion(X, k))
        gid = np.asarray(fairness.mondrian(X, k, counts))
        expected = recursion(X[counts], k)
        np.testing.assert_array_equal(gid[counts], expected)
        for row in np.flatnonzero(~counts):
            twin = np.flatnonzero((X[counts] == X[row]).all(axis=1))
            assert gid[row] == expected[twin[0]] if len(twin) else 0 <= gid[row] <= expected.max()
    sizes = np.bincount(fairness.mondrian(X, 5))
    assert sizes.min() >= 5


def test_degenerate_tables():
    X = np.arange(64.0)[:, None] * np.ones(3)
    assert not np.any(fairness.mondrian(X, 65))  # k larger than the table: one part, which is smaller
    assert not np.any(fairness.mondrian(np.ones((64, 3)), 1))
    assert sorted(np.asarray(jax.jit(fairness.mondrian)(X, 1))) == list(range(64))  # unique rows, k = 1


def test_what_is_refused():
    X = np.ones((3, 2))
    X[1, 1] = np.nan
    for arguments, message in (
        ((X, 2), r"Xnum: expected finite numbers, got nan at \(1, 1\)"),
        ((np.ones((3, 2)), 0), "k: expected at least 1, got 0"),
        ((np.ones(3), 2), "Xnum: expected rows and columns"),
        ((np.ones((3, 2)), 2, np.ones(2)), "weight: expected one number for each of 3 rows"),
    ):
        with pytest.raises(ValueError, match=message):
            fairness.mondrian(*arguments)
