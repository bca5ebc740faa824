"""The parts of FedKA's networks: PyTorch's numbers and initialisation, dropout, norms, patches, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxneg.nn import NormalisedModel, bridge, feature_cnn, feature_mlp, log_probability_head
from jaxneg.nn.domain_network import _Convolution, _norm
from jaxneg.train import make_mesh

RNG = np.random.default_rng(0)
IMAGES = RNG.random((4, 10, 10, 3)).astype("f4")
ROWS = RNG.normal(size=(6, 5)).astype("f4")


def compiled(model):
    """One program for each function and shape, which takes less time than a program an operation."""
    return NormalisedModel(*(jax.jit(function) for function in model))


CNN = compiled(feature_cnn(3, (4, 6), (3, 2)))
CNN_PARAMS = CNN.init(jax.random.key(0))
MLP = compiled(feature_mlp(5, (8, 4)))
MLP_PARAMS = MLP.init(jax.random.key(1))


def standardised(x, params):
    axes = tuple(range(x.ndim - 1))
    y = (x - x.mean(axes)) / np.sqrt(x.var(axes) + 1e-5)
    return y * np.asarray(params["scale"]) + np.asarray(params["bias"])


def pooled(x):
    n, height, width, channels = x.shape
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return x.reshape(n, height // 2, 2, width // 2, 2, channels).max((2, 4))


def convolved(x, params):
    """A convolution without padding, pixel by pixel."""
    kernel, bias = (np.asarray(params[name], np.float64) for name in ("kernel", "bias"))
    size = kernel.shape[0]
    high, wide = (side - size + 1 for side in x.shape[1:3])
    out = np.empty((len(x), high, wide, kernel.shape[-1]))
    for i in range(high):
        for j in range(wide):
            out[:, i, j] = np.tensordot(x[:, i : i + size, j : j + size], kernel, 3) + bias
    return out


def test_perceptron_by_hand():
    x = ROWS.astype(np.float64)
    for i in range(2):
        layer = MLP_PARAMS["layers"][str(i)]
        x = x @ np.asarray(layer["kernel"], np.float64) + np.asarray(layer["bias"])
        x = np.maximum(standardised(x, MLP_PARAMS["norms"][str(i)]), 0)
    np.testing.assert_allclose(MLP.apply(MLP_PARAMS, ROWS), x, rtol=1e-4, atol=1e-5)


def test_convolutions_by_hand():
    x = np.maximum(pooled(standardised(convolved(IMAGES, CNN_PARAMS["first"]), CNN_PARAMS["first_norm"])), 0)
    x = np.maximum(pooled(standardised(convolved(x, CNN_PARAMS["second"]), CNN_PARAMS["second_norm"])), 0)
    found = CNN.apply(CNN_PARAMS, IMAGES)
    np.testing.assert_allclose(found, x.reshape(4, -1), rtol=1e-4, atol=1e-5)


def test_an_odd_row_is_left_out_of_the_pooling():
    """11 pixels are convolved to 9 and pooled to 4: the 9th alone, which nothing reads, sees the last."""
    images = np.pad(IMAGES, [(0, 0), (0, 1), (0, 1), (0, 0)])
    changed = images.copy()
    changed[:, -1] = changed[:, :, -1] = 1
    frozen = {
        "first_norm": {"mean": jnp.zeros(4), "variance": jnp.ones(4)},
        "second_norm": {"mean": jnp.zeros(6), "variance": jnp.ones(6)},
    }
    found = [CNN.evaluate(CNN_PARAMS, frozen, x) for x in (images, changed)]
    np.testing.assert_array_equal(*found)
    assert (
        np.abs(
            CNN.statistics(CNN_PARAMS, images)["first_norm"]["mean"]
            - CNN.statistics(CNN_PARAMS, changed)["first_norm"]["mean"]
        ).max()
        > 1e-3
    )


def test_head_gives_log_probabilities():
    head = compiled(log_probability_head(5, 7, 3))
    params = head.init(jax.random.key(2))
    logp = head.apply(params, ROWS)
    np.testing.assert_allclose(np.exp(logp).sum(1), 1, rtol=1e-5)
    hidden = ROWS @ np.asarray(params["first"]["kernel"]) + np.asarray(params["first"]["bias"])
    hidden = np.maximum(standardised(hidden, params["norm"]), 0)
    logits = hidden @ np.asarray(params["second"]["kernel"]) + np.asarray(params["second"]["bias"])
    np.testing.assert_allclose(np.diff(logp), np.diff(logits), rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(head.apply(params, ROWS, key=jax.random.key(0)), logp)


def test_the_published_sizes():
    """Parameters of the code's CNNModel: 5x5 to 64, 5x5 to 50, 800 features, heads of 100."""
    model, head = feature_cnn(), log_probability_head(800, 100, 10)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    assert shapes["first"]["kernel"].shape == (5, 5, 3, 64)
    assert shapes["second"]["kernel"].shape == (5, 5, 64, 50)
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert count == 64 * 76 + 2 * 64 + 50 * 1601 + 2 * 50
    count = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(head.init, jax.random.key(0))))
    assert count == 801 * 100 + 200 + 101 * 10


@pytest.mark.parametrize(
    ("params", "fan_in"),
    [
        (CNN_PARAMS["first"], 27),
        (CNN_PARAMS["second"], 16),
        (MLP_PARAMS["layers"]["0"], 5),
        (MLP_PARAMS["layers"]["1"], 8),
    ],
)
def test_pytorch_initialisation(params, fan_in):
    """Uniform between plus and minus fan_in ** -1/2, kernel and bias."""
    kernel = np.abs(params["kernel"])
    assert 0.8 * fan_in**-0.5 < kernel.max() < fan_in**-0.5
    assert np.abs(params["bias"]).max() < fan_in**-0.5
    assert kernel.mean() == pytest.approx(0.5 * fan_in**-0.5, rel=0.3)


def test_dropout_only_with_a_key():
    """Whole channels of the convolutions, single numbers of the perceptron; the others are the larger."""
    plain = np.asarray(CNN.apply(CNN_PARAMS, IMAGES)).reshape(4, -1, 6)
    dropped = np.asarray(CNN.apply(CNN_PARAMS, IMAGES, key=jax.random.key(3))).reshape(4, -1, 6)
    kept = (dropped != 0).any(1)
    assert 0 < kept.mean() < 1
    for image in range(4):
        for channel in range(6):
            expected = 2 * plain[image, :, channel] * kept[image, channel]
            np.testing.assert_allclose(dropped[image, :, channel], expected, rtol=1e-5)
    wide = compiled(feature_mlp(5, (400,), dropout=0.25))
    params = wide.init(jax.random.key(0))
    plain, dropped = (np.asarray(wide.apply(params, ROWS, key=key)) for key in (None, jax.random.key(1)))
    kept = dropped[plain > 0] != 0
    assert kept.mean() == pytest.approx(0.75, abs=0.05)
    np.testing.assert_allclose(dropped[plain > 0][kept], plain[plain > 0][kept] / 0.75, rtol=1e-5)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_group_norm_sees_each_example_alone(norm):
    model = compiled(feature_mlp(5, (8,), norm=norm))
    params = model.init(jax.random.key(0))
    alone = np.concatenate([model.apply(params, row[None]) for row in ROWS])
    together = model.apply(params, ROWS)
    assert np.allclose(alone, together, atol=1e-5) == (norm == "group")
    stats = model.statistics(params, ROWS)
    assert bool(jax.tree.leaves(stats)) == (norm == "batch")
    np.testing.assert_allclose(model.evaluate(params, stats, ROWS), together, rtol=1e-4, atol=1e-5)


def test_group_norm_by_hand():
    """Each image over its positions and the features of a group; eight groups where that divides."""
    norm = bridge(lambda rngs: _norm("group", 12, rngs))
    params = {"scale": jnp.arange(1.0, 13.0), "bias": jnp.ones(12)}
    x = np.concatenate([IMAGES, 2 * IMAGES, 3 * IMAGES, 1 - IMAGES], axis=3)
    y = x.astype(np.float64).reshape(4, 10, 10, 4, 3)
    y = (y - y.mean((1, 2, 4), keepdims=True)) / np.sqrt(y.var((1, 2, 4), keepdims=True) + 1e-5)
    expected = y.reshape(x.shape) * np.arange(1, 13) + 1
    np.testing.assert_allclose(norm.apply(params, x), expected, rtol=1e-4, atol=1e-4)
    assert [_norm("group", features, None).groups for features in (64, 50, 12, 7)] == [8, 2, 4, 1]


def test_statistics_are_the_batch_s():
    stats = CNN.statistics(CNN_PARAMS, IMAGES)
    first = convolved(IMAGES, CNN_PARAMS["first"])
    np.testing.assert_allclose(stats["first_norm"]["mean"], first.mean((0, 1, 2)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(stats["first_norm"]["variance"], first.var((0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(
        CNN.evaluate(CNN_PARAMS, stats, IMAGES), CNN.apply(CNN_PARAMS, IMAGES), rtol=1e-4, atol=1e-5
    )


def test_patches_have_the_gradients_of_the_convolution():
    """What runs on a CPU in place of XLA's convolution."""
    model = bridge(lambda rngs: _Convolution(3, 4, 3, rngs))

    def reference(params, x):
        layout = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(x, params["kernel"], (1, 1), "VALID", dimension_numbers=layout)
        return jnp.sum(jnp.sin(y + params["bias"]))

    def patches(params, x):
        return jnp.sum(jnp.sin(model.apply(params, x)))

    expected, found = (
        jax.jit(jax.value_and_grad(f, (0, 1)))(CNN_PARAMS["first"], jnp.asarray(IMAGES))
        for f in (reference, patches)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), found, expected)
    assert "convolution" not in jax.jit(patches).lower(CNN_PARAMS["first"], IMAGES).as_text()


def test_one_model_a_client():
    """Mapped over clients with images of their own, under jit, as FedKA's round does."""
    many = jax.tree.map(lambda x: jnp.stack([x, -x]), CNN_PARAMS)
    images = jnp.stack([IMAGES, 1 - IMAGES])
    mapped = jax.jit(jax.vmap(CNN.apply))(many, images)
    for client in range(2):
        alone = CNN.apply(jax.tree.map(lambda x, k=client: x[k], many), images[client])
        np.testing.assert_allclose(mapped[client], alone, rtol=1e-4, atol=1e-5)


def test_bfloat16_images():
    """Parameters in float32: so is the result, also where XLA's own convolution runs."""
    found = CNN.apply(CNN_PARAMS, jnp.asarray(IMAGES, jnp.bfloat16))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, CNN.apply(CNN_PARAMS, IMAGES), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("explicit", [False, True])
def test_sharded_is_unsharded(explicit):
    """The batch over four devices: gradients, and statistics of the whole batch."""
    mesh = make_mesh({"data": 4, "model": 2}, explicit=explicit)

    model = feature_mlp(5, (4,))
    params = {part: {"0": MLP_PARAMS[part]["1"]} for part in ("layers", "norms")}
    params["layers"]["0"] = {"kernel": ROWS[:5, :4], "bias": ROWS[0, :4]}

    def run(params, x):
        grads = jax.grad(lambda params: jnp.square(model.apply(params, x) - 1).mean())(params)
        return grads, model.statistics(params, x)

    x = np.concatenate([ROWS, 2 * ROWS[:2]])
    expected = jax.jit(run)(params, x)
    with jax.set_mesh(mesh):
        found = jax.jit(run)(params, jax.device_put(x, NamedSharding(mesh, P("data"))))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: feature_mlp(0), "inputs: expected at least 1, got 0"),
        (lambda: feature_mlp(3, (4, 0)), r"hidden\[1\]: expected at least 1, got 0"),
        (lambda: feature_mlp(3, ()), "hidden: expected at least one layer, got none"),
        (lambda: feature_mlp(3, dropout=1.0), "dropout: expected a share from 0 to below 1, got 1.0"),
        (lambda: feature_mlp(3, norm="layer"), "norm: expected 'batch' or 'group', got 'layer'"),
        (lambda: feature_cnn(0), "channels: expected at least 1, got 0"),
        (lambda: feature_cnn(3, (4, 0)), r"widths\[1\]: expected at least 1, got 0"),
        (lambda: feature_cnn(3, kernels=(0, 3)), r"kernels\[0\]: expected at least 1, got 0"),
        (lambda: log_probability_head(4, 0, 2), "hidden: expected at least 1, got 0"),
    ],
)
def test_mistakes(make, message):
    with pytest.raises(ValueError, match=message):
        make()
