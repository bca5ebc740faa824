"""DeepLab's head: against convolutions in numpy, dropout, and sharded."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxneg.nn import deeplab_head
from jaxneg.train import init_state, make_mesh, make_step, shard_step

# Compilation makes these the dearest tests: they are left to the slow suite.
pytestmark = pytest.mark.slow

RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(4, 9, 7, 6)).astype(np.float32)
HEAD = deeplab_head(6, 3, rates=(2, 4), channels=5)


@pytest.fixture(scope="module")
def params():
    """Parameters without the zeros and ones of an initialisation, which hide mistakes."""
    rng = np.random.default_rng(1)

    def draw(leaf):
        x = rng.normal(size=leaf.shape)
        x = x / np.sqrt(np.prod(leaf.shape[:3])) if leaf.ndim == 4 else 1 + 0.2 * x
        return x.astype(np.float32)

    return jax.tree.map(draw, jax.eval_shape(HEAD.init, jax.random.key(0)))


def reference(params, z):
    """The head in numpy; a convolution gathers the neighbours of one place at a time."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    _, height, width, _ = z.shape

    def layer(x, p, dilation=1):
        kernel = p["conv"]["kernel"]
        reach = kernel.shape[0] // 2
        y = np.zeros((*x.shape[:3], kernel.shape[3]))
        for row, column, i, j in np.ndindex(x.shape[1], x.shape[2], *kernel.shape[:2]):
            r, c = row + (i - reach) * dilation, column + (j - reach) * dilation
            if 0 <= r < x.shape[1] and 0 <= c < x.shape[2]:
                y[:, row, column] += x[:, r, c] @ kernel[i, j]
        rows = y.reshape(-1, y.shape[-1])
        y = (y - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-5) * p["norm"]["scale"] + p["norm"]["bias"]
        return np.maximum(y, 0)

    pooled = layer(z.mean((1, 2), keepdims=True), p["pooled"])
    branches = [layer(z, p["pointwise"])]
    branches += [layer(z, p["atrous"][str(i)], rate) for i, rate in enumerate((2, 4))]
    branches.append(np.tile(pooled, (1, height, width, 1)))
    y = layer(layer(np.concatenate(branches, -1), p["project"]), p["mix"])
    return y @ p["predict"]["kernel"][0, 0] + p["predict"]["bias"]


def test_it_is_the_reference(params):
    expected = reference(params, FEATURES.astype(np.float64))
    y, stats = jax.jit(lambda p, z: (HEAD.apply(p, z), HEAD.statistics(p, z)))(params, FEATURES)
    np.testing.assert_allclose(y, expected, rtol=1e-3, atol=1e-4)
    evaluated = jax.jit(HEAD.evaluate)(params, stats, FEATURES)
    np.testing.assert_allclose(evaluated, y, rtol=1e-4, atol=1e-5)
    assert set(stats) == {"pointwise", "atrous", "pooled", "project", "mix"}
    assert stats["atrous"]["1"]["norm"]["variance"].shape == (5,)


def test_dropout(params):
    kept = deeplab_head(6, 3, rates=(2, 4), channels=5, dropout=0.0)
    key, apply = jax.random.key(3), jax.jit(HEAD.apply)
    np.testing.assert_array_equal(apply(params, FEATURES, key=key), apply(params, FEATURES, key=key))
    assert jnp.abs(apply(params, FEATURES, key=key) - apply(params, FEATURES)).max() > 0.1
    assert (
        jnp.abs(apply(params, FEATURES, key=key) - apply(params, FEATURES, key=jax.random.key(4))).max() > 0.1
    )
    np.testing.assert_allclose(
        jax.jit(kept.apply)(params, FEATURES, key=key), apply(params, FEATURES), rtol=1e-6
    )


def test_number_of_parameters_of_a_task():
    params = jax.eval_shape(deeplab_head(2048, 13).init, jax.random.key(0))
    convolutions = 2 * 2048 * 256 + 3 * 9 * 2048 * 256 + 5 * 256 * 256 + 9 * 256 * 256
    assert sum(x.size for x in jax.tree.leaves(params)) == convolutions + 7 * 2 * 256 + 257 * 13


def test_initialisation_is_torch_s_default():
    params = jax.jit(deeplab_head(8, 50, rates=(), channels=64).init)(jax.random.key(0))
    for kernel, fan_in in ((params["mix"]["conv"]["kernel"], 9 * 64), (params["predict"]["kernel"], 64)):
        assert 0.95 / np.sqrt(fan_in) < jnp.abs(kernel).max() <= 1 / np.sqrt(fan_in)
    bias = params["predict"]["bias"]
    assert bias.shape == (50,)
    assert 0.8 / 8 < jnp.abs(bias).max() <= 1 / 8


def test_bfloat16_is_close(params):
    half = deeplab_head(6, 3, rates=(2, 4), channels=5, dtype=jnp.bfloat16)
    y, stats = jax.jit(lambda p, z: (half.apply(p, z), half.statistics(p, z)))(params, FEATURES)
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(stats)} == {jnp.dtype(jnp.float32)}
    exact = np.asarray(jax.jit(HEAD.apply)(params, FEATURES))
    assert np.linalg.norm(np.asarray(y, np.float32) - exact) < 0.05 * np.linalg.norm(exact)


@pytest.mark.parametrize("explicit", [pytest.param(False, marks=pytest.mark.slow), True])
def test_sharded_is_unsharded(explicit, params):
    tx = optax.chain(optax.stateless(lambda g, p: jax.tree.map(lambda x: x.mean(0), g)), optax.sgd(0.1))

    def losses(params, z, key):
        y = HEAD.apply(params, z, key=key)
        return jnp.stack([jnp.square(y).mean(), jnp.abs(y[..., 0]).mean()]), {}

    state, step = init_state(params, tx, jax.random.key(1)), make_step(losses, tx)
    expected, metrics = jax.jit(step)(state, FEATURES)
    sharded = shard_step(
        step, make_mesh({"data": 4, "model": 2}, explicit=explicit), state, FEATURES, min_size=1
    )
    placed, placed_metrics = sharded(sharded.place_state(state), FEATURES)
    np.testing.assert_allclose(placed_metrics["losses"], metrics["losses"], rtol=1e-4)
    np.testing.assert_allclose(placed_metrics["grad_norm"], metrics["grad_norm"], rtol=1e-3)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), placed.params, expected.params
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"features": 0}, "features: expected at least 1, got 0"),
        ({"outputs": 0}, "outputs: expected at least 1, got 0"),
        ({"channels": -1}, "channels: expected at least 1, got -1"),
        ({"rates": (12, 0)}, r"rates: expected positive dilations, got \(12, 0\)"),
        ({"dropout": 1.0}, "dropout: expected at least 0 and less than 1, got 1.0"),
    ],
)
def test_arguments_that_do_not_exist(arguments, message):
    with pytest.raises(ValueError, match=message):
        deeplab_head(**{"features": 4, "outputs": 2, **arguments})


def test_features_of_another_encoder(params):
    with pytest.raises(
        ValueError, match=r"z: expected \[batch, height, width, 6\], got shape \(1, 9, 7, 5\)"
    ):
        HEAD.apply(params, jnp.zeros((1, 9, 7, 5)))
