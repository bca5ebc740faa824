"""Rank correlations beside scipy."""

import hypothesis.strategies as st
import jax
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings

from jaxneg.retrieval import kendall_tau, spearman


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(-4, 4), st.integers(-4, 4)), min_size=12, max_size=12))
def test_rank_correlations_equal_scipy(pairs):
    x, y = np.array(pairs, np.float32).T
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert np.isnan(spearman(x, y))
        assert np.isnan(kendall_tau(x, y))
        return
    assert float(spearman(x, y)) == pytest.approx(scipy.stats.spearmanr(x, y).statistic, abs=1e-5)
    assert float(kendall_tau(x, y)) == pytest.approx(scipy.stats.kendalltau(x, y).statistic, abs=1e-5)


def test_rank_correlations_transform_and_refuse():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 3, 10)).astype(np.float32)
    for correlation in (spearman, kendall_tau):
        rows = [float(correlation(a, b)) for a, b in zip(x, y, strict=True)]
        np.testing.assert_allclose(correlation(x, y), rows, rtol=1e-6)
        np.testing.assert_allclose(jax.jit(jax.vmap(correlation))(x, y), rows, rtol=1e-6)
        np.testing.assert_allclose(correlation(np.exp(x), y), rows, rtol=1e-6)
        with pytest.raises(ValueError, match="x: expected at least two values"):
            correlation(x[:, :1], y[:, :1])
        with pytest.raises(ValueError, match=r"y: expected the shape of x, \(3, 10\), got \(3, 9\)"):
            correlation(x, y[:, :9])
