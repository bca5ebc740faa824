"""Normalisation by the batch's statistics and by given ones, and how batches are pooled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxneg.nn import BatchNorm, bridge_normalised, mean_statistics
from jaxneg.train import make_mesh

RNG = np.random.default_rng(0)
X = (3 + 2 * RNG.normal(size=(8, 5, 4, 3))).astype(np.float32)
PARAMS = {"scale": jnp.array([1.0, -0.5, 2.0]), "bias": jnp.array([0.5, 0.0, -1.0])}
NORM = bridge_normalised(lambda rngs: BatchNorm(3))


def reference(x, params, mean, variance):
    x, scale, bias = (np.asarray(a, np.float64) for a in (x, params["scale"], params["bias"]))
    return scale * (x - mean) / np.sqrt(variance + 1e-5) + bias


def test_a_batch_is_normalised_by_its_own_statistics():
    rows = X.reshape(-1, 3).astype(np.float64)
    stats = NORM.statistics(PARAMS, X)
    np.testing.assert_allclose(stats["mean"], rows.mean(0), rtol=1e-5)
    np.testing.assert_allclose(stats["variance"], rows.var(0), rtol=1e-5)
    y = NORM.apply(PARAMS, X)
    np.testing.assert_allclose(y, reference(X, PARAMS, rows.mean(0), rows.var(0)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(jax.jit(NORM.apply)(PARAMS, X), y, rtol=1e-5, atol=1e-6)


def test_evaluation_takes_each_example_alone():
    stats = {"mean": jnp.array([1.0, 2.0, 3.0]), "variance": jnp.array([4.0, 1.0, 0.0])}
    y = NORM.evaluate(PARAMS, stats, X)
    np.testing.assert_allclose(y, reference(X, PARAMS, stats["mean"], stats["variance"]), rtol=1e-4)
    np.testing.assert_allclose(NORM.evaluate(PARAMS, stats, X[2:3]), y[2:3], rtol=1e-6)


def test_large_means_do_not_cost_the_variance():
    x = (1000 + RNG.normal(size=(512, 3))).astype(np.float32)
    variance = NORM.statistics(PARAMS, x)["variance"]
    np.testing.assert_allclose(variance, x.astype(np.float64).var(0), rtol=1e-3)


def test_a_feature_that_does_not_vary():
    grads = jax.jit(jax.grad(lambda x: NORM.apply(PARAMS, x).sum()))(jnp.full((4, 3), 7.0))
    assert np.isfinite(grads).all()
    np.testing.assert_allclose(NORM.apply(PARAMS, jnp.full((4, 3), 7.0))[0], PARAMS["bias"], atol=1e-6)


def test_bfloat16_has_statistics_in_float32():
    x = X.astype(jnp.bfloat16)
    y, stats = NORM.apply(PARAMS, x), NORM.statistics(PARAMS, x)
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(stats)} == {jnp.dtype(jnp.float32)}
    np.testing.assert_allclose(stats["mean"], x.astype(np.float64).mean((0, 1, 2)), rtol=1e-5)
    expected = NORM.apply(PARAMS, x.astype(np.float32))
    np.testing.assert_allclose(y.astype(np.float32), expected, rtol=0.01, atol=0.01)


@pytest.mark.usefixtures("x64")
def test_float64_stays():
    x = X.astype(np.float64)
    assert NORM.apply(PARAMS, x).dtype == jnp.float64
    stats = NORM.statistics(PARAMS, x)
    assert stats["variance"].dtype == jnp.float64
    np.testing.assert_allclose(stats["variance"], x.var((0, 1, 2)), rtol=1e-12)


def test_one_model_a_seed():
    params = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), PARAMS)
    both = jax.vmap(NORM.apply, (0, None))(params, X)
    np.testing.assert_allclose(both[1], 2 * both[0], rtol=1e-6)
    stats = jax.vmap(NORM.statistics, (None, 0))(PARAMS, X.reshape(2, 4, 5, 4, 3))
    assert stats["mean"].shape == (2, 3)


def test_batches_together():
    halves = [NORM.statistics(PARAMS, half) for half in (X[:4], X[4:] + 1)]
    together = NORM.statistics(PARAMS, np.concatenate([X[:4], X[4:] + 1]))
    pooled = mean_statistics(halves)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), pooled, together)
    nested = mean_statistics([{"layer": {"0": {"norm": half}}} for half in halves])
    np.testing.assert_array_equal(nested["layer"]["0"]["norm"]["mean"], pooled["mean"])


def test_no_batch():
    with pytest.raises(ValueError, match="statistics: expected those of at least one batch, got none"):
        mean_statistics([])


@pytest.mark.parametrize("explicit", [False, True])
def test_sharded_is_unsharded(explicit):
    mesh = make_mesh({"data": 4, "model": 2}, explicit=explicit)

    def run(params, x):
        def loss(params):
            return jnp.square(NORM.apply(params, x) - 1).mean()

        return jax.grad(loss)(params), NORM.statistics(params, x)

    expected = jax.jit(run)(PARAMS, X)
    with jax.set_mesh(mesh):
        actual = jax.jit(run)(PARAMS, jax.device_put(X, NamedSharding(mesh, P("data"))))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), actual, expected)


def test_statistics_of_another_model():
    with pytest.raises(ValueError, match="stats: 'variance' is missing or too much"):
        NORM.evaluate(PARAMS, {"mean": jnp.zeros(3)}, X)
    with pytest.raises(ValueError, match="params: 'bias' is missing or too much"):
        NORM.apply({"scale": PARAMS["scale"]}, X)


class Noisy(nnx.Module):
    def __init__(self, rngs):
        self.norm = BatchNorm(3)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)


def test_module_with_other_state():
    with pytest.raises(TypeError, match=r"holds nnx.Param and nnx.BatchStat only, got also"):
        bridge_normalised(Noisy)


def test_without_scale_and_bias():
    model = bridge_normalised(lambda rngs: BatchNorm(3, affine=False))
    params = model.init(jax.random.key(0))
    assert params == {}
    plain = {"scale": jnp.ones(3), "bias": jnp.zeros(3)}
    np.testing.assert_allclose(model.apply(params, X), NORM.apply(plain, X), rtol=1e-5, atol=1e-5)
