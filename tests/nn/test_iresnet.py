"""Improved residual networks: insightface's counts, a block in numpy, dropout, remat, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneg.nn import bridge_normalised, iresnet
from jaxneg.nn.iresnet import BLOCKS, Block

# Trainable numbers of insightface's iresnet18 to iresnet100 for images of 112 x 112 and 512 features.
COUNTS = {18: 24_025_600, 34: 34_139_328, 50: 43_590_848, 100: 65_156_160}


def by_hand(depth, embedding=512, width=64, side=7):
    """From the structure: convolutions without bias, two numbers a feature in a norm, one in a PReLU."""
    total, inputs = 27 * width + 3 * width, width
    for stage, blocks in enumerate(BLOCKS[depth]):
        outputs = width * 2**stage
        for block in range(blocks):
            total += 2 * inputs + 9 * inputs * outputs + 3 * outputs + 9 * outputs**2 + 2 * outputs
            total += inputs * outputs + 2 * outputs if block == 0 else 0
            inputs = outputs
    return total + 2 * inputs + (inputs * side**2 + 1) * embedding + 2 * embedding


@pytest.mark.parametrize("depth", BLOCKS)
def test_parameter_counts(depth):
    params = jax.eval_shape(iresnet(depth).init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == COUNTS[depth] == by_hand(depth)


def test_a_block_in_numpy():
    block = bridge_normalised(lambda rngs: Block(3, 4, 2, None, rngs))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), block.init(jax.random.key(0))
    )
    x = rng.normal(size=(2, 6, 6, 3)).astype(np.float32)

    def norm(x, p):
        mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
        return (x - mean) / np.sqrt(variance + 1e-5) * p["scale"] + p["bias"]

    def convolution(x, kernel, stride):
        size = kernel.shape[0]
        pad = size // 2
        rows = (x.shape[1] - 1) // stride + 1
        x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        span = (rows - 1) * stride + 1
        parts = [
            x[:, i : i + span : stride, j : j + span : stride] @ kernel[i, j]
            for i in range(size)
            for j in range(size)
        ]
        return sum(parts)

    y = convolution(norm(x, params["bn1"]), params["conv1"]["kernel"], 1)
    y = norm(y, params["bn2"])
    y = np.where(y >= 0, y, params["prelu"]["slope"] * y)
    y = norm(convolution(y, params["conv2"]["kernel"], 2), params["bn3"])
    shortcut = norm(convolution(x, params["downsample"]["0"]["kernel"], 2), params["downsample"]["1"])
    np.testing.assert_allclose(jax.jit(block.apply)(params, x), y + shortcut, rtol=1e-3, atol=1e-3)


X = np.random.default_rng(1).normal(size=(4, 16, 16, 3)).astype(np.float32)


@pytest.mark.slow
def test_training_evaluation_and_dropout():
    model = iresnet(18, embedding=8, size=16, width=4, dropout=0.4)
    again = iresnet(18, embedding=8, size=16, width=4, dropout=0.4, remat=True)
    params = model.init(jax.random.key(0))

    def loss(model, params):
        y = model.apply(params, X, dropout_key=jax.random.key(1))
        return jnp.sum(jnp.sin(y)), y

    gradients, y = jax.jit(jax.grad(lambda p: loss(model, p), has_aux=True))(params)
    remat, _ = jax.jit(jax.grad(lambda p: loss(again, p), has_aux=True))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), remat, gradients)
    assert not gradients["features"]["scale"].any()
    assert gradients["features"]["bias"].any()
    plain, stats = jax.jit(lambda p: (model.apply(p, X), model.statistics(p, X)))(params)
    assert np.abs(y - plain).max() > 0.1
    np.testing.assert_allclose(jax.jit(model.evaluate)(params, stats, X), plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 20}, r"depth: expected one of \(18, 34, 50, 100\), got 20"),
        ({"depth": 18, "dropout": 1.0}, "dropout: expected at least 0 and less than 1, got 1.0"),
        ({"depth": 18, "size": 0}, "size: expected at least 1, got 0"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        iresnet(**options)


def test_images_of_another_size():
    model = iresnet(18, size=16, width=4)
    with pytest.raises(
        ValueError, match=r"x: expected images \[batch, 16, 16, 3\], got shape \(2, 8, 8, 3\)"
    ):
        jax.eval_shape(model.apply, jax.eval_shape(model.init, jax.random.key(0)), jnp.ones((2, 8, 8, 3)))
