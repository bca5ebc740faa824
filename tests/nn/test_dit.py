"""The diffusion transformer: against plain numpy, its paper's sizes, its start, its options, and sharded."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxneg.nn import DIT_B_2, DIT_L_2, DIT_RULES, DIT_S_2, DIT_XL_2, DiTConfig, dit
from jaxneg.nn.dit import plane_positions
from jaxneg.train import init_state, make_mesh, make_step, partition_specs, shard_step

SMALL = DiTConfig(size=6, channels=2, patch=2, width=16, layers=2, heads=2, classes=3, mlp_ratio=2)
MODEL = dit(SMALL)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 6, 6, 2)).astype(np.float32)
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


def reference(config, params, x, t, label):
    """The same model in numpy, one latent, one patch and one head at a time."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    side, patch, width = config.size // config.patch, config.patch, config.width

    def dense(x, layer):
        return x @ layer["kernel"] + layer["bias"]

    def norm(x, shift, scale):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * (1 + scale) + shift

    def gelu(x):
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    outputs = []
    for latent, step, name in zip(x, t, label, strict=True):
        angles = step * np.exp(-np.log(1e4) * np.arange(128) / 128)
        told = p["conditioning"]
        c = dense(np.concatenate([np.cos(angles), np.sin(angles)]), told["time"]["0"])
        c = silu(dense(silu(c), told["time"]["1"]) + told["label"]["embedding"][name])
        h = np.empty((side * side, width))
        for row in range(side):
            for column in range(side):
                square = latent[row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
                h[row * side + column] = dense(square.ravel(), p["patches"])
                for i in range(width // 4):
                    w = 10_000 ** (-i / (width // 4))
                    places = [f(v * w) for v in (column, row) for f in (np.sin, np.cos)]
                    h[row * side + column, i :: width // 4] += places
        for layer in range(config.layers):
            block = p["blocks"][str(layer)]
            b, s, g, b2, s2, g2 = np.split(dense(c, block["modulation"]), 6)
            qkv = dense(norm(h, b, s), block["attention"]["qkv"])
            mixed = []
            for head in np.split(qkv, config.heads, axis=1):
                query, key, value = np.split(head, 3, axis=1)
                scores = query @ key.T / np.sqrt(query.shape[1])
                weights = np.exp(scores - scores.max(1, keepdims=True))
                mixed.append(weights / weights.sum(1, keepdims=True) @ value)
            h = h + g * dense(np.concatenate(mixed, 1), block["attention"]["out"])
            up = dense(norm(h, b2, s2), block["feed_forward"]["up"])
            h = h + g2 * dense(gelu(up), block["feed_forward"]["down"])
        shift, scale = np.split(dense(c, p["final"]["modulation"]), 2)
        pixels = dense(norm(h, shift, scale), p["final"]["out"])
        output = np.empty_like(latent)
        for row in range(side):
            for column in range(side):
                square = pixels[row * side + column].reshape(patch, patch, -1)
                output[row * patch : (row + 1) * patch, column * patch : (column + 1) * patch] = square
        outputs.append(output)
    return np.stack(outputs)


def test_it_is_the_reference(params, predicted):
    np.testing.assert_allclose(predicted, reference(SMALL, params, X, T, LABEL), rtol=1e-4, atol=1e-4)


def test_the_last_class_is_no_class(params, predicted):
    none = MODEL.apply(params, X, T)
    np.testing.assert_allclose(none[3], predicted[3], rtol=1e-4, atol=1e-5)
    assert float(jnp.abs(none - predicted).max((1, 2, 3))[:3].min()) > 1e-2


@pytest.mark.parametrize(
    ("config", "millions"), [(DIT_S_2, 33), (DIT_B_2, 130), (DIT_L_2, 458), (DIT_XL_2, 675)]
)
def test_the_paper_counts_as_many_parameters(config, millions):
    """Table 1 of the paper, in whole millions; it counts fixed positions, and outputs for the variance."""
    params = jax.eval_shape(dit(config).init, jax.random.key(0))
    ours = sum(leaf.size for leaf in jax.tree.leaves(params))
    positions = (config.size // config.patch) ** 2 * config.width
    variance = config.patch**2 * config.channels * (config.width + 1)
    assert millions <= round((ours + positions + variance) / 1e6, 1) < millions + 1


def test_it_starts_at_zero_with_open_residuals():
    params = MODEL.init(jax.random.key(0))
    assert not MODEL.apply(params, X, T, LABEL).any()
    for block in params["blocks"].values():
        assert not block["modulation"]["kernel"].any()
        bound = np.sqrt(6 / (16 + 48))  # Glorot and Bengio 2010, Eq. 16, for query, key and value as one
        kernel = np.abs(block["attention"]["qkv"]["kernel"])
        assert 0.9 * bound < kernel.max() <= bound


def test_positions_differ_and_do_not_depend_on_what_comes_after_the_row():
    small, large = plane_positions(3, 8), plane_positions(5, 8)
    assert len(np.unique(small.round(6), axis=0)) == 9
    np.testing.assert_allclose(small.reshape(3, 3, 8), large.reshape(5, 5, 8)[:3, :3])
    np.testing.assert_allclose(large.reshape(5, 5, 8)[2, :, 4:], np.tile(large[10, 4:], (5, 1)))  # one row


@pytest.mark.slow
@pytest.mark.parametrize("remat", [False, True])
def test_a_loop_over_the_blocks_is_the_blocks(params, remat):
    scanned = dit(dataclasses.replace(SMALL, scan=True, remat=remat))
    blocks = [params["blocks"][str(i)] for i in range(SMALL.layers)]
    stacked = {**params, "blocks": jax.tree.map(lambda *x: jnp.stack(x), *blocks)}
    assert jax.tree.map(jnp.shape, scanned.init(jax.random.key(0))) == jax.tree.map(jnp.shape, stacked)

    def loss(apply, params):
        return jnp.square(apply(params, X, T, LABEL)).mean()

    value, grads = jax.jit(jax.value_and_grad(lambda p: loss(MODEL.apply, p)))(params)
    other, others = jax.jit(jax.value_and_grad(lambda p: loss(scanned.apply, p)))(stacked)
    np.testing.assert_allclose(other, value, rtol=1e-5)
    for i in range(SMALL.layers):
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-3, atol=1e-4),
            others["blocks"],
            grads["blocks"][str(i)],
        )


def test_the_blocks_of_a_loop_start_different():
    params = dit(dataclasses.replace(SMALL, scan=True)).init(jax.random.key(0))
    first, second = params["blocks"]["attention"]["qkv"]["kernel"]
    assert float(jnp.abs(first - second).max()) > 0.01


@pytest.mark.slow
def test_its_gradient_is_the_slope(params):
    """Against central differences, along one direction: what is recomputed backwards must be the same."""
    direction = jax.tree.map(lambda x: jnp.asarray(RNG.normal(size=x.shape)), params)

    @jax.jit
    def loss(epsilon):
        moved = jax.tree.map(lambda x, d: x + epsilon * d, params, direction)
        return jnp.square(MODEL.apply(moved, X, T, LABEL)).mean()

    with jax.enable_x64(True):
        slope = (loss(jnp.float64(1e-6)) - loss(jnp.float64(-1e-6))) / 2e-6
        np.testing.assert_allclose(jax.grad(loss)(jnp.float64(0)), slope, rtol=1e-3)


def test_bfloat16_is_close(params, predicted):
    half = dit(dataclasses.replace(SMALL, dtype=jnp.bfloat16))
    eps = half.apply(params, X, T, LABEL)
    assert eps.dtype == jnp.bfloat16
    scale = float(jnp.abs(predicted).max())
    np.testing.assert_allclose(np.asarray(eps, np.float32), predicted, atol=0.03 * scale)


def noise_loss(model):
    def loss_fn(params, batch, key):
        del key
        eps = model.apply(params, batch["x"], batch["t"], batch["label"])
        return jnp.square(eps - batch["x"]).mean((1, 2, 3)).mean(), {}

    return loss_fn


@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize("scan", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_sharded_is_unsharded(params, scan, explicit):
    if scan:
        blocks = [params["blocks"][str(i)] for i in range(SMALL.layers)]
        params = {**params, "blocks": jax.tree.map(lambda *x: jnp.stack(x), *blocks)}
    mesh = make_mesh({"data": 4, "model": 2}, explicit=explicit)
    model, tx = dit(dataclasses.replace(SMALL, scan=scan, remat=scan)), optax.sgd(0.1)
    batch = {"x": X, "t": T, "label": LABEL}
    state = init_state(params, tx, jax.random.key(1))
    step = make_step(noise_loss(model), tx)
    sharded = shard_step(step, mesh, state, batch, rules=DIT_RULES)
    placed, metrics = sharded(sharded.place_state(state), batch)
    state, expected = jax.jit(step)(state, batch)
    np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), placed.params, state.params
    )
    blocks = placed.params["blocks"]
    kernel = (blocks if scan else blocks["0"])["attention"]["qkv"]["kernel"]
    assert kernel.addressable_shards[0].data.shape[-2:] == (4, 24)


def test_rules_reach_every_matrix():
    mesh = make_mesh({"data": 4, "model": 2})
    for config in (SMALL, dataclasses.replace(SMALL, scan=True)):
        params = jax.eval_shape(dit(config).init, jax.random.key(0))
        specs = partition_specs(params, mesh, DIT_RULES)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            spec = specs
            for part in path:
                spec = spec[part.key]
            name = jax.tree_util.keystr(path)
            assert ("data" in spec) == ("bias" not in name), name
            if "blocks" in name and "kernel" in name:
                assert "model" in spec, name
            assert len(spec) <= leaf.ndim


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch": 4}, "patch: expected a divisor of size = 6, got 4"),
        ({"heads": 3}, "heads: expected a divisor of width = 16, got 3"),
        ({"width": 18}, "width: expected a multiple of 4 for positions in a plane, got 18"),
        ({"layers": 0}, "layers: expected at least 1, got 0"),
        ({"classes": 0}, "classes: expected at least 1, or None, got 0"),
    ],
)
def test_config_that_does_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **options)


def test_latents_of_another_size(params):
    with pytest.raises(ValueError, match=r"x: expected latents \[batch, 6, 6, 2\], got shape \(4, 6, 6, 1\)"):
        MODEL.apply(params, X[..., :1], T, LABEL)
