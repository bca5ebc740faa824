"""NDCG beside ir_measures, rank correlations beside scipy, InfoNCE and its companions beside NumPy."""

import hypothesis.strategies as st
import ir_measures
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxneg.retrieval import gradient_norm_proxy, infonce_loss, kendall_tau, mean_margin, ndcg, spearman


def rankings(seed=0, queries=16, documents=40):
    rng = np.random.default_rng(seed)
    scores = rng.permuted(np.tile(np.linspace(-1, 1, documents), (queries, 1)), axis=1).astype(np.float32)
    relevance = rng.integers(0, 4, (queries, documents)) * (rng.random((queries, documents)) < 0.2)
    relevance[1] = 0
    return scores, relevance


@pytest.mark.parametrize("k", [1, 10])
@pytest.mark.parametrize("grades", ["binary", "graded"])
def test_ndcg_equals_ir_measures(k, grades):
    scores, relevance = rankings()
    relevance = np.minimum(relevance, 1) if grades == "binary" else relevance
    qrels = [ir_measures.Qrel(str(q), str(d), int(relevance[q, d])) for q in range(16) for d in range(40)]
    run = [ir_measures.ScoredDoc(str(q), str(d), float(scores[q, d])) for q in range(16) for d in range(40)]
    measure = ir_measures.nDCG @ k
    expected = {m.query_id: m.value for m in ir_measures.iter_calc([measure], qrels, run)}
    np.testing.assert_allclose(ndcg(scores, relevance, k=k), [expected[str(q)] for q in range(16)], atol=1e-6)


def test_ndcg_masks_and_edges():
    scores, relevance = rankings()
    padded = ndcg(
        np.pad(scores, ((0, 0), (0, 4)), constant_values=9),
        np.pad(relevance, ((0, 0), (0, 4)), constant_values=3),
        np.pad(np.ones(scores.shape, bool), ((0, 0), (0, 4))),
    )
    np.testing.assert_allclose(padded, ndcg(scores, relevance), atol=1e-6)
    assert float(padded[1]) == 0  # no relevant document
    assert np.all(ndcg(scores, relevance, np.zeros(scores.shape, bool)) == 0)
    np.testing.assert_allclose(ndcg(relevance + 0.0, relevance, k=None)[2:], 1, atol=1e-6)
    np.testing.assert_allclose(jax.jit(ndcg)(scores, relevance), ndcg(scores, relevance), atol=1e-6)
    np.testing.assert_allclose(jax.vmap(ndcg)(scores, relevance), ndcg(scores, relevance), atol=1e-6)
    low = ndcg(jnp.arange(5.0, dtype=jnp.bfloat16), jnp.array([1, 0, 0, 0, 0]))
    assert low.dtype == jnp.float32
    assert float(low) == pytest.approx(1 / np.log2(6), rel=1e-5)
    with pytest.raises(ValueError, match=r"relevance: expected the shape of scores, \(16, 40\)"):
        ndcg(scores, relevance[:, :3])
    with pytest.raises(ValueError, match="k: expected at least 1, got 0"):
        ndcg(scores, relevance, k=0)
    with pytest.raises(TypeError, match="mask: expected a boolean"):
        ndcg(scores, relevance, relevance)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_sharded_equals_unsharded(axis_type):
    scores, relevance = rankings()
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    with jax.set_mesh(mesh):
        values = jax.jit(
            lambda s, r: (ndcg(s, r), infonce_loss(s[:, 0], s[:, 1:]), spearman(s, r), kendall_tau(s, r))
        )(jax.device_put(scores, rows), jax.device_put(relevance, rows))
    plain = ndcg(scores, relevance), infonce_loss(scores[:, 0], scores[:, 1:]), spearman(scores, relevance)
    for a, b in zip(values, (*plain, kendall_tau(scores, relevance)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


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


def test_infonce_and_companions():
    rng = np.random.default_rng(0)
    positive, negative = rng.uniform(-1, 1, 6), rng.uniform(-1, 1, (6, 4))
    mask = rng.random((6, 4)) < 0.6
    mask[0], mask[1] = False, True
    margin = (negative - positive[:, None]) / 0.1
    counts = np.maximum(mask.sum(1), 1)
    cases = [
        (lambda *a: infonce_loss(*a, temperature=0.1), np.log1p((np.exp(margin) * mask).sum(1))),
        (mean_margin, ((positive[:, None] - negative) * mask).sum(1) / counts),
        (lambda *a: gradient_norm_proxy(*a, temperature=0.1), (mask / (1 + np.exp(-margin))).sum(1) / counts),
    ]
    for function, expected in cases:
        np.testing.assert_allclose(function(positive, negative, mask), expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(
            jax.jit(function)(positive, negative, mask), expected, rtol=1e-5, atol=1e-6
        )
        low = function(jnp.asarray(positive, jnp.bfloat16), jnp.asarray(negative, jnp.bfloat16), mask)
        assert low.dtype == jnp.float32
        gradient = jax.grad(lambda n, f=function: f(jnp.asarray(positive), n, mask).sum())(
            jnp.asarray(negative)
        )
        assert bool(jnp.all(jnp.isfinite(gradient)))
        assert bool(jnp.all(gradient[~mask] == 0))
    # Far above the positive: no overflow.
    assert float(infonce_loss(jnp.array(-1.0), jnp.array([1.0]), temperature=0.001)) == pytest.approx(2000)
    for function in (infonce_loss, gradient_norm_proxy):
        with pytest.raises(ValueError, match="temperature: expected a positive number, got 0"):
            function(positive, negative, temperature=0)
    with pytest.raises(ValueError, match=r"sim_pos: expected .*\(6,\), got \(3,\)"):
        mean_margin(positive[:3], negative)
