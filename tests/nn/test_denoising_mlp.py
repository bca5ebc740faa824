"""The small denoising network and what it is told: against numpy, its classes, its start, and sharded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxneg.nn import denoising_mlp, timestep_embedding
from jaxneg.train import make_mesh

MODEL = denoising_mlp(3, hidden=8, classes=4)
RNG = np.random.default_rng(0)
X, T, LABEL = RNG.normal(size=(6, 3)).astype(np.float32), np.array([0, 1, 9, 500, 998, 999]), np.arange(6) % 5


@pytest.fixture(scope="module")
def params():
    """Without the zeros of an initialisation, which hide mistakes."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0))
    return jax.tree.map(lambda x: rng.normal(scale=0.3, size=x.shape).astype(np.float32), shapes)


def silu(x):
    return x / (1 + np.exp(-x))


def reference(params, x, t, label):
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def dense(x, layer):
        return x @ layer["kernel"] + layer["bias"]

    angles = t[:, None] * np.exp(-np.log(1e4) * np.arange(32) / 32)
    sinusoids = np.concatenate([np.cos(angles), np.sin(angles)], 1)
    told = p["conditioning"]
    e = (
        dense(silu(dense(sinusoids, told["time"]["0"])), told["time"]["1"])
        + told["label"]["embedding"][label]
    )
    h = dense(x, p["inputs"])
    for i in sorted(p["blocks"]):
        h = h + dense(silu(dense(silu(h + e), p["blocks"][i]["first"])), p["blocks"][i]["second"])
    return dense(silu(h), p["outputs"])


def test_it_is_the_reference(params):
    eps = MODEL.apply(params, X, T, LABEL)
    np.testing.assert_allclose(eps, reference(params, X, T, LABEL), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(jax.jit(MODEL.apply)(params, X, T, LABEL), eps, rtol=1e-5, atol=1e-5)


def test_the_last_class_is_no_class(params):
    none = MODEL.apply(params, X, T)
    np.testing.assert_allclose(MODEL.apply(params, X, T, np.full(6, 4)), none, rtol=1e-6)
    assert float(jnp.abs(MODEL.apply(params, X, T, np.full(6, 3)) - none).max(1).min()) > 1e-4


def test_a_label_beyond_the_classes_does_not_pass_silently(params):
    eps = MODEL.apply(params, X, T, np.array([0, 1, 2, 3, 4, 5]))
    assert np.isnan(eps).any(1).tolist() == [False] * 5 + [True]


def test_it_starts_as_the_formula_says():
    params = denoising_mlp(50, hidden=400, blocks=1, classes=500).init(jax.random.key(0))
    scales = {
        ("inputs",): 50**-0.5,
        ("outputs",): 0.1 * 400**-0.5,
        ("blocks", "0", "first"): 400**-0.5,
        ("blocks", "0", "second"): 0.1 * 400**-0.5,
        ("conditioning", "time", "0"): 64**-0.5,
        ("conditioning", "time", "1"): 400**-0.5,
    }
    for path, scale in scales.items():
        layer = params
        for part in path:
            layer = layer[part]
        np.testing.assert_allclose(layer["kernel"].std(), scale, rtol=0.03)
        assert not layer["bias"].any()
    np.testing.assert_allclose(params["conditioning"]["label"]["embedding"].std(), 0.5, rtol=0.03)


def test_without_classes():
    model = denoising_mlp(3, hidden=8)
    params = model.init(jax.random.key(0))
    assert "label" not in params["conditioning"]
    assert model.apply(params, X, T).shape == X.shape
    with pytest.raises(ValueError, match="label: expected None, since the network was made without classes"):
        model.apply(params, X, T, LABEL)


def test_models_side_by_side(params):
    other = jax.tree.map(lambda x: x + 0.1, params)
    both = jax.tree.map(lambda *x: jnp.stack(x), params, other)
    eps = jax.vmap(MODEL.apply, (0, None, None, None))(both, X, T, LABEL)
    for i, single in enumerate((params, other)):
        np.testing.assert_allclose(eps[i], MODEL.apply(single, X, T, LABEL), rtol=1e-4, atol=1e-5)


def test_bfloat16(params):
    half = denoising_mlp(3, hidden=8, classes=4, dtype=jnp.bfloat16)
    eps = half.apply(params, X, T, LABEL)
    assert eps.dtype == jnp.bfloat16
    expected = MODEL.apply(params, X, T, LABEL)
    np.testing.assert_allclose(
        np.asarray(eps, np.float32), expected, atol=0.05 * float(np.abs(expected).max())
    )


@pytest.mark.parametrize("explicit", [False, True])
def test_sharded_is_unsharded(explicit, params):
    def loss(params, x, t, label):
        return jnp.square(MODEL.apply(params, x, t, label)).mean()

    x, t, label = X[:4], T[:4], LABEL[:4]
    expected, expected_grads = jax.jit(jax.value_and_grad(loss))(params, x, t, label)
    mesh = make_mesh({"data": 2, "model": 4}, explicit=explicit)
    with jax.set_mesh(mesh):
        placed = [jax.device_put(array, NamedSharding(mesh, P("data"))) for array in (x, t, label)]
        everywhere = jax.device_put(params, NamedSharding(mesh, P()))
        value, grads = jax.jit(jax.value_and_grad(loss))(everywhere, *placed)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), grads, expected_grads)


def test_sinusoids():
    e = np.asarray(timestep_embedding(jnp.array([0.0, 2.5]), 6, longest=100.0))
    angles = 2.5 * 100.0 ** (-np.arange(3) / 3)
    np.testing.assert_allclose(e, [[1, 1, 1, 0, 0, 0], [*np.cos(angles), *np.sin(angles)]], rtol=1e-5)
    with pytest.raises(ValueError, match="features: expected an even number of at least 2, got 5"):
        timestep_embedding(jnp.arange(2), 5)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((X[:, :2], T), r"x: expected vectors \[batch, 3\], got shape \(6, 2\)"),
        ((X, np.asarray(3)), r"t: expected one timestep for each example \[batch\], got shape \(\)"),
        ((X, T, LABEL[:5]), r"label: expected integers of shape \(6,\), got int64 \(5,\)"),
        ((X, T, LABEL.astype(np.float32)), r"label: expected integers of shape \(6,\), got float32 \(6,\)"),
    ],
)
def test_inputs_that_do_not_fit(params, inputs, message):
    with pytest.raises(ValueError, match=message):
        MODEL.apply(params, *inputs)


@pytest.mark.parametrize("options", [{"hidden": 0}, {"blocks": -1}, {"classes": 0}])
def test_sizes_that_are_not_positive(options):
    with pytest.raises(
        ValueError, match="features, hidden, blocks, classes: expected positive sizes, got 3, "
    ):
        denoising_mlp(3, **options)
