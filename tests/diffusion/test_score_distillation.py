"""Score distillation: the golden of threestudio, its step in the closed form, transformations, bad input."""

import re
from functools import partial

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxneg.diffusion import (
    cebm_guidance,
    linear_schedule,
    perp_neg_guidance,
    perp_neg_sds_step,
    predict_v,
    sds_loss,
)

# The goldens' README: rtol 1e-9; in float32 rtol 2e-5 and atol 1e-5, 1e-4 for the loss.
TOLERANCES = {np.float64: {"rtol": 1e-9, "atol": 1e-12}, np.float32: {"rtol": 2e-5, "atol": 1e-5}}
LOSS_RTOL = {np.float64: 1e-9, np.float32: 1e-4}

OPTIONS = ("weighting", "grad_clip", "reduction")
loss = jax.jit(sds_loss, static_argnames=OPTIONS)
gradient = jax.jit(jax.grad(sds_loss), static_argnames=OPTIONS)
ABAR = linear_schedule(1000).alphas_cumprod


def sample(seed=0, batch=3, shape=(2, 2)):
    rng = np.random.default_rng(seed)
    x, eps_hat, noise = rng.standard_normal((3, batch, *shape)).astype(np.float32)
    return x, eps_hat, noise, rng.uniform(0.1, 0.9, batch).astype(np.float32)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.golden("perp_neg", "sds_threestudio.npz")
def test_threestudio(golden, dtype):
    with jax.enable_x64(dtype is np.float64):
        g = {name: array.astype(dtype) for name, array in golden.items()}
        scale, neg, weights = float(golden["guidance_scale"]), g["eps_neg"].swapaxes(0, 1), g["neg_weights"].T

        @jax.jit
        def found(x):
            guided = perp_neg_guidance(g["eps_uncond"], g["eps_text"], neg, weights, scale)
            terms = guided, g["noise"], g["alphas_cumprod_at_t"]
            whole = jax.value_and_grad(sds_loss)(x, *terms)
            return guided, *whole, jax.grad(partial(sds_loss, reduction="sum"))(x, *terms)

        guided, value, mean, total = found(g["latents"])
        assert guided.dtype == dtype
        np.testing.assert_allclose(guided, golden["eps_guided"], **TOLERANCES[dtype])
        np.testing.assert_allclose(total, golden["grad_latents"], **TOLERANCES[dtype])
        np.testing.assert_allclose(mean, golden["dloss_dlatents"], **TOLERANCES[dtype])
        np.testing.assert_allclose(value, golden["loss"], rtol=LOSS_RTOL[dtype])


@settings(deadline=None, max_examples=8)
@given(st.integers(0, 10_000), st.sampled_from(["sds", "uniform", "fantasia3d"]))
def test_loss_and_gradient_by_hand(seed, weighting):
    x, eps_hat, noise, abar = sample(seed)
    a = abar[:, None, None]
    weight = {"sds": 1 - a, "uniform": 1.0, "fantasia3d": np.sqrt(a) * (1 - a)}[weighting]
    g = 3.0 * weight * (eps_hat - noise)
    given = {"weighting": weighting, "guidance_weight": 3.0}
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    close(loss(x, eps_hat, noise, abar, **given), 0.5 * (g**2).sum() / 3)
    close(gradient(x, eps_hat, noise, abar, **given), g / 3)
    close(loss(x, eps_hat, noise, abar, reduction="none", **given), 0.5 * (g**2).sum((1, 2)))
    close(gradient(x, eps_hat, noise, abar, reduction="sum", **given), g)
    clipped = np.clip(g, -0.25, 0.25)
    close(gradient(x, eps_hat, noise, abar, grad_clip=0.25, reduction="sum", **given), clipped)


def test_large_images_keep_the_digits_of_a_small_gradient():
    x, eps_hat, noise, abar = sample()
    exact = gradient(x, eps_hat, noise, abar)
    np.testing.assert_array_equal(gradient(x + 1e6, eps_hat, noise, abar), exact)


def test_nothing_goes_into_the_prediction_and_nan_is_zero():
    x, eps_hat, noise, abar = sample()
    into = jax.jit(jax.grad(sds_loss, argnums=(1, 2)))(x, eps_hat, noise, abar)
    assert all(bool((array == 0).all()) for array in into)
    eps_hat[0, 0, 0] = np.nan
    found = gradient(x, eps_hat, noise, abar)
    assert float(found[0, 0, 0]) == 0
    assert bool(jnp.isfinite(loss(x, eps_hat, noise, abar)))


def linear_denoiser(x, t, cond):
    """A prediction that says which image, timestep and prompt it saw."""
    return cond["a"][:, None] * x + 0.01 * t[:, None] + cond["b"]


def scene(batch=6):
    rng = np.random.default_rng(0)
    x, pos_b = rng.standard_normal((2, batch, 3)).astype(np.float32)
    pos = {"a": rng.uniform(0.5, 1, batch).astype(np.float32), "b": pos_b}
    neg = {"a": np.full((2, batch), 0.25, np.float32), "b": rng.standard_normal((2, 1, 3)).astype(np.float32)}
    null = {"a": np.float32(0.5), "b": np.zeros(3, np.float32)}
    return x, pos, neg, null, rng.uniform(-2, 0, (2, batch)).astype(np.float32)


def recorded(key, x, **options):
    """A step, and the x_t and t that its denoiser saw, one row for each prompt of each sample."""
    _, pos, neg, null, weights = scene()
    seen = []

    def denoise(x, t, cond):
        seen.append((x, t))
        return linear_denoiser(x, t, cond)

    found = jax.grad(
        lambda x: perp_neg_sds_step(key, denoise, x, pos, neg, null, weights, ABAR, scale=3.0, **options)
    )(x)
    return found, *seen[0]


@pytest.mark.parametrize("rule", [perp_neg_guidance, cebm_guidance])
def test_the_step_composes_the_parts(rule):
    """Every prompt of a sample sees one x_t and one t; gradient and loss are those of the parts."""
    x, pos, neg, null, weights = scene()
    step = jax.jit(partial(recorded, guidance=rule))
    found, x_t, t = step(jax.random.key(1), x)
    x_t, t = (np.asarray(array).reshape(6, 4, -1) for array in (x_t, t))
    assert np.all(t == t[:, :1])
    assert np.all(x_t == x_t[:, :1])
    x_t, t = x_t[:, 0], t[:, 0, 0]
    assert np.all((t >= 20) & (t <= 980))
    alpha, sigma = np.sqrt(ABAR[t])[:, None], np.sqrt(1 - ABAR[t])[:, None]
    noise = (x_t - alpha * x) / sigma

    def of(a, b):
        return np.broadcast_to(np.asarray(a), (6,))[:, None] * x_t + 0.01 * t[:, None] + b

    u, p = of(**null), of(**pos)
    n = np.stack([of(neg["a"][k], neg["b"][k]) for k in range(2)])
    guided = jax.jit(rule)(*(array.astype(np.float32) for array in (u, p, n)), weights, 3.0)
    np.testing.assert_allclose(found, sigma**2 * (guided - noise) / 6, rtol=2e-3, atol=2e-3)


@pytest.mark.slow
def test_timesteps_reach_both_ends_and_keys_decide():
    x = scene()[0]
    step = jax.jit(jax.vmap(partial(recorded, t_range=(7, 9)), (0, None)))
    _, _, t = step(jax.random.split(jax.random.key(0), 50), x)
    counts = np.bincount(np.asarray(t).reshape(-1), minlength=10)
    assert counts[:7].sum() == 0
    assert counts[7:10].min() > 0.2 * counts.sum()
    assert len(counts) == 10
    one = jax.jit(partial(recorded, t_range=(500, 500)))
    a, b, other = (one(jax.random.key(k), x)[1] for k in (3, 3, 4))
    np.testing.assert_array_equal(a, b)
    assert float(np.abs(a - other).max()) > 0.1


@pytest.mark.slow
def test_a_network_of_velocities():
    """The same loss whatever it is that the network predicts."""
    x, pos, neg, null, weights = scene()
    alphas, sigmas = np.sqrt(ABAR), np.sqrt(1 - ABAR)

    def velocity(x, t, cond):
        alpha, sigma = (jnp.asarray(table, x.dtype)[t] for table in (alphas, sigmas))
        eps = linear_denoiser(x, t, cond)
        return predict_v(eps, x, alpha, sigma, "epsilon")

    def step(denoise, prediction):
        key = jax.random.key(0)
        options = {"scale": 3.0, "prediction": prediction}
        return jax.jit(
            lambda x: perp_neg_sds_step(key, denoise, x, pos, neg, null, weights, ABAR, **options)
        )(x)

    np.testing.assert_allclose(step(velocity, "v"), step(linear_denoiser, "epsilon"), rtol=1e-4)


def test_prompts_of_weight_zero_are_not_computed():
    x, pos, neg, null, _ = scene()
    rows = []

    def denoise(x, t, cond):
        rows.append(len(x))
        return linear_denoiser(x, t, cond)

    def step(weights):
        return jax.eval_shape(
            lambda x: perp_neg_sds_step(jax.random.key(0), denoise, x, pos, neg, null, weights, ABAR), x
        )

    for weights in ([-1.0, -1.0], [0.0, -1.0], [0.0, 0.0]):
        step(weights)
    assert rows == [24, 18, 12]


def test_bfloat16():
    x, pos, neg, null, weights = scene()
    x, pos, neg, null = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), (x, pos, neg, null))

    def denoise(x, t, cond):
        assert x.dtype == jnp.bfloat16
        return linear_denoiser(x, t, cond).astype(jnp.bfloat16)

    step = partial(perp_neg_sds_step, jax.random.key(0), denoise)
    value, found = jax.jit(jax.value_and_grad(lambda x: step(x, pos, neg, null, weights, ABAR)))(x)
    assert (value.dtype, found.dtype) == (jnp.float32, jnp.bfloat16)
    assert bool(jnp.isfinite(found).all())


@pytest.mark.parametrize("kind", [pytest.param(AxisType.Auto, marks=pytest.mark.slow), AxisType.Explicit])
def test_sharded(kind):
    """The batch over devices: the same numbers, whatever the mesh."""
    x, pos, neg, null, weights = scene(16)

    def step(x, pos, neg, weights):
        return perp_neg_sds_step(
            jax.random.key(0), linear_denoiser, x, pos, neg, null, weights, ABAR, scale=3.0
        )

    expected = jax.jit(jax.value_and_grad(step))(x, pos, neg, weights)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        first, second = (
            NamedSharding(mesh, spec) for spec in (PartitionSpec("data"), PartitionSpec(None, "data"))
        )
        neg = {"a": jax.device_put(neg["a"], second), "b": jnp.asarray(neg["b"])}
        placed = jax.device_put((x, pos), first)
        found = jax.jit(jax.value_and_grad(step))(*placed, neg, jax.device_put(weights, second))
    for array, same in zip(found, expected, strict=True):
        np.testing.assert_allclose(array, same, rtol=1e-4, atol=1e-5)


GIVEN = sample()
SCENE = scene()


def step(**options):
    x, pos, neg, null, weights = SCENE
    arguments = {"weights": weights, "alphas_cumprod": ABAR} | options
    return perp_neg_sds_step(jax.random.key(0), linear_denoiser, x, pos, neg, null, **arguments)


MISTAKES = {
    "weighting": (
        lambda: sds_loss(*GIVEN, weighting="dreamfusion"),
        ValueError,
        "weighting: expected one of sds, uniform, fantasia3d, got 'dreamfusion'",
    ),
    "reduction": (
        lambda: sds_loss(*GIVEN, reduction="mean"),
        ValueError,
        "reduction: expected one of batch_mean, sum, none, got 'mean'",
    ),
    "clip": (
        lambda: sds_loss(*GIVEN, grad_clip=0.0),
        ValueError,
        "grad_clip: expected a positive finite number, got 0.0",
    ),
    "integers": (
        lambda: sds_loss(np.ones((3, 2, 2), int), *GIVEN[1:]),
        TypeError,
        "x: expected a floating dtype",
    ),
    "eps_hat": (
        lambda: sds_loss(GIVEN[0], GIVEN[1][:1], *GIVEN[2:]),
        ValueError,
        "eps_hat: expected the shape of x, (3, 2, 2), got (1, 2, 2)",
    ),
    "noise": (
        lambda: sds_loss(*GIVEN[:2], GIVEN[2][:1], GIVEN[3]),
        ValueError,
        "noise: expected the shape of x, (3, 2, 2), got (1, 2, 2)",
    ),
    "abar": (
        lambda: sds_loss(*GIVEN[:3], np.ones(2, np.float32)),
        ValueError,
        "abar_t: expected a number, or",
    ),
    "range": (
        lambda: step(t_range=(20, 1000)),
        ValueError,
        "t_range: expected 0 <= low <= high < 1000, the length of alphas_cumprod, got (20, 1000)",
    ),
    "empty range": (lambda: step(t_range=(30, 20)), ValueError, "t_range: expected 0 <= low <= high < 1000"),
    "weights": (
        lambda: step(weights=[-1.0]),
        ValueError,
        "weights: expected one for each prompt of neg_cond",
    ),
    "rising": (
        lambda: step(alphas_cumprod=ABAR[::-1]),
        ValueError,
        "alphas_cumprod: expected numbers that fall strictly",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_bad_input(mistake):
    call, error, message = MISTAKES[mistake]
    with pytest.raises(error, match=re.escape(message)):
        call()
