"""The U-Net: against plain numpy, its paper's size, its start, its options, and sharded."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxneg.nn import UNetConfig, unet
from jaxneg.train import init_state, make_mesh, make_step, shard_step

SMALL = UNetConfig(
    size=4, channels=2, width=4, multipliers=(1, 2), blocks=1, attention=(2,), heads=2, groups=2, classes=3
)
MODEL = unet(SMALL)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 4, 4, 2)).astype(np.float32)
T, LABEL = np.array([0, 7, 500, 999]), np.array([0, 1, 2, 3])


@pytest.fixture(scope="module")
def params():
    """Without the zeros of an initialisation, which hide mistakes."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0))
    return jax.tree.map(lambda x: rng.normal(scale=0.3, size=x.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def predicted(params):
    return jax.jit(MODEL.apply)(params, X, T, LABEL)


def silu(x):
    return x / (1 + np.exp(-x))


def dense(x, layer):
    return x @ layer["kernel"] + layer["bias"]


def convolved(x, layer, stride=1):
    """Of one image, pixel by pixel; with stride 2 an even image is padded below and on the right."""
    kernel = layer["kernel"]
    size, before = kernel.shape[0], 0 if stride == 2 else kernel.shape[0] // 2
    padded = np.pad(x, ((before, size), (before, size), (0, 0)))
    height, width = x.shape[0] // stride, x.shape[1] // stride
    y = np.empty((height, width, kernel.shape[3]))
    for row in range(height):
        for column in range(width):
            square = padded[row * stride : row * stride + size, column * stride : column * stride + size]
            y[row, column] = np.einsum("hwi,hwio->o", square, kernel) + layer["bias"]
    return y


def norm(x, p, groups):
    y = x.reshape(-1, groups, x.shape[-1] // groups)
    y = (y - y.mean((0, 2), keepdims=True)) / np.sqrt(y.var((0, 2), keepdims=True) + 1e-6)
    return y.reshape(x.shape) * p["group"]["scale"] + p["group"]["bias"]


def reference(config, params, images, t, label, hook=lambda h, block: h):
    """The network of one level down and up, one image and one head at a time."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def residual(x, e, block):
        y = convolved(silu(norm(x, block["norm1"], config.groups)), block["conv1"]) + dense(e, block["told"])
        y = convolved(silu(norm(y, block["norm2"], config.groups)), block["conv2"])
        return y + (convolved(x, block["shortcut"]) if "shortcut" in block else x)

    def attention(x, block, name):
        tokens = norm(x, block["norm"], config.groups).reshape(-1, x.shape[-1])
        mixed = []
        for head in np.split(dense(tokens, block["qkv"]), config.heads, axis=1):
            query, key, value = np.split(head, 3, axis=1)
            weights = np.exp(query @ key.T / np.sqrt(query.shape[1]))
            mixed.append(weights / weights.sum(1, keepdims=True) @ value)
        result = x + dense(np.concatenate(mixed, 1), block["out"]).reshape(x.shape)
        return hook(result.reshape(-1, x.shape[-1]), name).reshape(x.shape)

    def level(x, e, p, i, name):
        x = residual(x, e, p["blocks"][str(i)])
        if "attention" not in p:
            return x
        return attention(x, p["attention"][str(i)], f"{name}.attentions.{i}")

    outputs = []
    for x, step, name in zip(images, t, label, strict=True):
        half = config.width // 2
        angles = step * np.exp(-np.log(1e4) * np.arange(half) / half)
        told = p["conditioning"]
        e = dense(np.concatenate([np.cos(angles), np.sin(angles)]), told["time"]["0"])
        e = silu(dense(silu(e), told["time"]["1"]) + told["label"]["embedding"][name])
        kept = [convolved(x, p["inputs"])]
        kept.append(level(kept[-1], e, p["down"]["0"], 0, "down_blocks.0"))
        kept.append(convolved(kept[-1], p["smaller"]["0"], stride=2))
        kept.append(level(kept[-1], e, p["down"]["1"], 0, "down_blocks.1"))
        h = residual(kept[-1], e, p["middle1"])
        h = residual(attention(h, p["attention"], "mid_block.attentions.0"), e, p["middle2"])
        for i in range(2):
            h = level(np.concatenate([h, kept.pop()], 2), e, p["up"]["0"], i, "up_blocks.0")
        h = convolved(h.repeat(2, 0).repeat(2, 1), p["larger"]["0"])
        for i in range(2):
            h = level(np.concatenate([h, kept.pop()], 2), e, p["up"]["1"], i, "up_blocks.1")
        outputs.append(convolved(silu(norm(h, p["norm"], config.groups)), p["outputs"]))
    return np.stack(outputs)


def test_it_is_the_reference(params, predicted):
    np.testing.assert_allclose(predicted, reference(SMALL, params, X, T, LABEL), rtol=2e-4, atol=2e-4)


@pytest.mark.slow
def test_a_hook_changes_what_attention_gives(params):
    """Upwards only, and differently in each; every attention calls it by its name."""
    scales = {"up_blocks.0.attentions.0": 0.5, "up_blocks.0.attentions.1": -2.0}
    heard = []

    def hook(h, block):
        heard.append((block, h.shape))
        return scales.get(block, 1) * h

    changed = jax.jit(lambda p: MODEL.apply(p, X, T, LABEL, attention_hook=hook))(params)
    expected = reference(SMALL, params, X, T, LABEL, lambda h, block: scales.get(block, 1) * h)
    np.testing.assert_allclose(changed, expected, rtol=2e-4, atol=2e-4)
    names = ["down_blocks.1.attentions.0", "mid_block.attentions.0", *scales]
    assert heard == [(name, (4, 4, 8)) for name in names]


def test_a_hook_that_changes_the_shape(params):
    message = r"attention_hook: expected a result of shape \(4, 4, 8\), got \(4, 2, 8\)"
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda p: MODEL.apply(p, X, T, LABEL, attention_hook=lambda h, _: h[:, :2]), params)


@pytest.mark.slow
def test_the_last_class_is_no_class(params, predicted):
    none = jax.jit(MODEL.apply)(params, X, T)
    np.testing.assert_allclose(none[3], predicted[3], rtol=1e-4, atol=1e-4)
    assert float(jnp.abs(none - predicted).max((1, 2, 3))[:3].min()) > 1e-2


def test_the_paper_counts_as_many_parameters():
    """Appendix B: 35.7 million for CIFAR-10."""
    config = UNetConfig(size=32, width=128, multipliers=(1, 2, 2, 2), attention=(16,))
    params = jax.eval_shape(unet(config).init, jax.random.key(0))
    assert round(sum(leaf.size for leaf in jax.tree.leaves(params)) / 1e6, 1) == 35.7


@pytest.mark.slow
def test_it_starts_at_zero():
    params = MODEL.init(jax.random.key(0))
    assert not jax.jit(MODEL.apply)(params, X, T, LABEL).any()
    assert not params["middle1"]["conv2"]["kernel"].any()
    assert not params["attention"]["out"]["kernel"].any()


@pytest.mark.slow
def test_bfloat16_is_close(params, predicted):
    half = unet(dataclasses.replace(SMALL, dtype=jnp.bfloat16))
    eps = jax.jit(half.apply)(params, X, T, LABEL)
    assert eps.dtype == jnp.bfloat16
    scale = float(jnp.abs(predicted).max())
    np.testing.assert_allclose(np.asarray(eps, np.float32), predicted, atol=0.05 * scale)


@pytest.mark.slow
@pytest.mark.parametrize("explicit", [False, True])
def test_sharded_is_unsharded(params, explicit):
    def loss_fn(params, batch, key):
        del key
        eps = MODEL.apply(params, batch["x"], batch["t"], batch["label"])
        return jnp.square(eps - batch["x"]).mean((1, 2, 3)).mean(), {}

    mesh, tx = make_mesh({"data": 4, "model": 2}, explicit=explicit), optax.sgd(0.1)
    batch = {"x": X, "t": T, "label": LABEL}
    state = init_state(params, tx, jax.random.key(1))
    step = make_step(loss_fn, tx)
    sharded = shard_step(step, mesh, state, batch, min_size=32)
    placed, metrics = sharded(sharded.place_state(state), batch)
    state, expected = jax.jit(step)(state, batch)
    np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), placed.params, state.params
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 5, "attention": ()}, "size: expected a multiple of 2, since there are 2 levels, got 5"),
        ({"groups": 3}, "groups: expected a divisor of width = 4, got 3"),
        ({"width": 3, "groups": 1}, "width: expected an even number for the sinusoids, got 3"),
        ({"attention": (3,)}, r"attention: expected sizes among \(4, 2\), got 3"),
        ({"heads": 3}, "heads: expected a divisor of the 8 features at size 2, got 3"),
        ({"multipliers": ()}, r"multipliers: expected positive numbers, got \(\)"),
        ({"blocks": 0}, "blocks: expected at least 1, got 0"),
        ({"classes": 0}, "classes: expected at least 1, or None, got 0"),
    ],
)
def test_config_that_does_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **options)


def test_images_of_another_size(params):
    with pytest.raises(
        ValueError, match=r"x: expected images \['batch', 4, 4, 2\], got shape \(4, 4, 2, 2\)"
    ):
        MODEL.apply(params, X[:, :, :2], T, LABEL)
