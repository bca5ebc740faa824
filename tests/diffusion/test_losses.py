"""Predictions and how they convert, and the denoising loss."""

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxneg import diffusion

KINDS = ("epsilon", "x0", "v")
CONVERT = {"epsilon": diffusion.predict_noise, "x0": diffusion.predict_x0, "v": diffusion.predict_v}
SCHEDULE = diffusion.cosine_schedule(100)


def draws(shape, seed=0, dtype=np.float32):
    random = np.random.default_rng(seed)
    return random.normal(size=shape).astype(dtype), random.normal(size=shape).astype(dtype)


@hypothesis.given(angle=st.lists(st.floats(0.05, 1.5), min_size=1, max_size=4), seed=st.integers(0, 99))
@hypothesis.settings(max_examples=10, deadline=None)
def test_every_prediction_converts_to_every_other(angle, seed):
    alpha, sigma = np.cos(angle), np.sin(angle)
    x0, noise = draws((len(angle), 2, 3), seed)
    x = diffusion.add_noise(x0, noise, alpha, sigma)
    np.testing.assert_allclose(
        x, alpha[:, None, None] * x0 + sigma[:, None, None] * noise, rtol=1e-5, atol=1e-6
    )
    truth = {"epsilon": noise, "x0": x0, "v": alpha[:, None, None] * noise - sigma[:, None, None] * x0}
    for given in KINDS:
        for wanted in KINDS:
            got = CONVERT[wanted](truth[given], x, alpha, sigma, given)
            np.testing.assert_allclose(
                got, truth[wanted], rtol=1e-4, atol=1e-4, err_msg=f"{given} -> {wanted}"
            )


def test_scalars_and_precision(x64):
    x0, noise = draws((3, 2), dtype=np.float64)
    x = diffusion.add_noise(x0, noise, 0.6, 0.8)
    assert x.dtype == jnp.float64
    np.testing.assert_allclose(diffusion.predict_x0(noise, x, 0.6, jnp.full(3, 0.8)), x0, rtol=1e-12)
    low = diffusion.predict_x0(jnp.asarray(noise, jnp.bfloat16), jnp.asarray(x, jnp.bfloat16), 0.6, 0.8)
    assert low.dtype == jnp.float32
    np.testing.assert_allclose(low, x0, atol=0.05)
    # One number for the batch does not make float32 data float64.
    assert (
        diffusion.add_noise(x0.astype(np.float32), noise.astype(np.float32), 0.6, np.float64(0.8)).dtype
        == jnp.float32
    )


def network(scale, x, t, cond):
    """Something that depends on all its inputs."""
    t = t.reshape((-1,) + (1,) * (x.ndim - 1)).astype(x.dtype)
    return scale * x + 0.01 * t + (0 if cond is None else cond[:, None])


def by_hand(scale, x0, t, noise, prediction, cond):
    abar = SCHEDULE.alphas_cumprod[t].reshape((-1,) + (1,) * (x0.ndim - 1))
    x = np.sqrt(abar) * x0 + np.sqrt(1 - abar) * noise
    target = {"epsilon": noise, "x0": x0, "v": np.sqrt(abar) * noise - np.sqrt(1 - abar) * x0}[prediction]
    output = scale * x + 0.01 * t.reshape(abar.shape) + (0 if cond is None else cond[:, None])
    return np.mean((output - target) ** 2, axis=tuple(range(1, x0.ndim)))


@pytest.mark.parametrize("shape", [(5,), (5, 3), (5, 2, 2, 3)])
@pytest.mark.parametrize("prediction", KINDS)
def test_loss_by_hand(shape, prediction):
    x0, noise = draws(shape)
    t = np.array([0, 1, 50, 98, 99])
    got = diffusion.denoising_loss(
        lambda x, t, cond: network(0.3, x, t, cond),
        x0,
        t,
        noise,
        SCHEDULE.alphas_cumprod,
        prediction=prediction,
    )
    np.testing.assert_allclose(got, by_hand(0.3, x0, t, noise, prediction, None), rtol=1e-4, atol=1e-6)


def loss(scale, x0, t, noise, cond, weight, abar=SCHEDULE.alphas_cumprod):
    return diffusion.denoising_loss(
        lambda x, t, cond: network(scale, x, t, cond), x0, t, noise, abar, cond=cond, weight=weight
    )


def test_weights_jit_vmap_grad_and_precision():
    x0, noise = draws((6, 4))
    t = np.array([3, 20, 40, 60, 80, 95])
    cond = np.linspace(-1, 1, 6, dtype=np.float32)
    weight = diffusion.min_snr_weight(SCHEDULE.snr)[t].astype(np.float32)
    expected = weight * by_hand(0.3, x0, t, noise, "epsilon", cond)
    arguments = (x0, t, noise, cond, weight)
    np.testing.assert_allclose(loss(0.3, *arguments), expected, rtol=1e-4)
    jitted = jax.jit(loss)
    np.testing.assert_allclose(jitted(0.3, *arguments), expected, rtol=1e-4)
    # A schedule that is itself traced, in float32.
    traced = jitted(0.3, *arguments, jnp.asarray(SCHEDULE.alphas_cumprod))
    np.testing.assert_allclose(traced, expected, rtol=1e-3)
    pairs = jax.tree.map(lambda array: array.reshape(2, 3, *array.shape[1:]), arguments)
    together = jax.vmap(jitted, in_axes=(None, 0, 0, 0, 0, 0))(0.3, *pairs)
    np.testing.assert_allclose(together.reshape(6), expected, rtol=1e-4)
    slope = jax.grad(lambda scale: jitted(scale, *arguments).sum())(0.3)
    ends = [(weight * by_hand(0.3 + step, x0, t, noise, "epsilon", cond)).sum() for step in (1e-3, -1e-3)]
    np.testing.assert_allclose(slope, (ends[0] - ends[1]) / 2e-3, rtol=1e-3)
    low = jitted(
        0.3, x0.astype(jnp.bfloat16), t, noise.astype(jnp.bfloat16), cond.astype(jnp.bfloat16), weight
    )
    assert low.dtype == jnp.float32
    np.testing.assert_allclose(low, expected, rtol=0.05)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_sharded_loss(kind):
    x0, noise = draws((16, 4))
    arguments = (x0, np.arange(16, dtype=np.int32), noise, np.ones(16, np.float32), np.ones(16, np.float32))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    placed = jax.device_put(arguments, NamedSharding(mesh, P("data")))
    with jax.set_mesh(mesh):
        got = jax.jit(loss)(0.3, *placed)
    assert got.sharding.spec == P("data")
    np.testing.assert_allclose(got, loss(0.3, *arguments), rtol=1e-5)


def test_exact_denoiser_has_the_least_loss():
    """No prediction beats the conditional mean: around the exact mixture model the loss is stationary."""
    mixture = diffusion.gaussian_mixture_denoiser(
        np.array([[-1.0], [2.0]]), np.array([0.3, 0.7]), np.array([0.5, 0.2]), SCHEDULE.alphas_cumprod
    )
    random = np.random.default_rng(0)
    n = 200_000
    which = random.random((n, 1)) < 0.7
    x0 = np.where(which, 2.0, -1.0) + np.where(which, 0.2, 0.5) * random.normal(size=(n, 1))
    x0, noise = x0.astype(np.float32), random.normal(size=(n, 1)).astype(np.float32)
    t = random.integers(0, 100, n)

    @jax.jit
    @jax.value_and_grad
    def mean_loss(moved):
        def denoise(x, t, cond):
            return mixture.noise(x, t) + moved[0] + moved[1] * x

        return diffusion.denoising_loss(denoise, x0, t, noise, SCHEDULE.alphas_cumprod).mean()

    best, slopes = mean_loss(np.zeros(2, np.float32))
    assert np.abs(slopes).max() < 0.02  # the standard error of the second is 0.005
    for move in (np.eye(2), -np.eye(2)):
        assert all(mean_loss(np.float32(0.1) * row.astype(np.float32))[0] > best for row in move)


def test_mistakes():
    x, t, abar = jnp.ones((2, 3)), jnp.array([0, 1]), np.array([0.9, 0.5])

    def denoise(x, t, cond):
        return x

    with pytest.raises(ValueError, match="prediction: expected one of epsilon, x0, v, got 'score'"):
        diffusion.denoising_loss(denoise, x, t, x, abar, prediction="score")
    with pytest.raises(ValueError, match=r"noise: expected the shape of x0, \(2, 3\), got \(2, 2\)"):
        diffusion.denoising_loss(denoise, x, t, x[:, :2], abar)
    with pytest.raises(
        ValueError, match=r"t: expected one timestep for each example, shape \(2,\), got \(1,\)"
    ):
        diffusion.denoising_loss(denoise, x, t[:1], x, abar)
    with pytest.raises(ValueError, match=r"t: expected timesteps in 0..1, got t\[1\] = 2"):
        diffusion.denoising_loss(denoise, x, jnp.array([0, 2]), x, abar)
    with pytest.raises(TypeError, match="t: expected integers, got dtype float32"):
        diffusion.denoising_loss(denoise, x, t.astype(float), x, abar)
    with pytest.raises(TypeError, match="x0: expected a floating dtype, got int32"):
        diffusion.denoising_loss(denoise, x.astype(int), t, x, abar)
    with pytest.raises(ValueError, match="x0: expected a batch axis, got a scalar"):
        diffusion.denoising_loss(denoise, 1.0, t, 1.0, abar)
    with pytest.raises(
        ValueError, match=r"denoise: expected an output of the shape of x, \(2, 3\), got \(2, 6\)"
    ):
        diffusion.denoising_loss(lambda x, t, c: jnp.concatenate([x, x], 1), x, t, x, abar)
    with pytest.raises(ValueError, match=r"weight: expected one for each example, shape \(2,\), got \(3,\)"):
        diffusion.denoising_loss(denoise, x, t, x, abar, weight=jnp.ones(3))
    with pytest.raises(ValueError, match=r"alphas_cumprod: expected numbers that fall strictly"):
        diffusion.denoising_loss(denoise, x, t, x, abar[::-1])
    for convert in CONVERT.values():
        with pytest.raises(ValueError, match="prediction: expected one of epsilon, x0, v, got 'eps'"):
            convert(x, x, 0.5, 0.5, "eps")
        with pytest.raises(ValueError, match=r"output: expected the shape of x, \(2, 3\), got \(3,\)"):
            convert(x[0], x, 0.5, 0.5)
        with pytest.raises(
            ValueError, match=r"alpha: expected a number, or one for each example, \(2,\), got"
        ):
            convert(x, x, jnp.ones(3), 0.5)
    with pytest.raises(
        ValueError, match=r"sigma: expected a number, or one for each example, \(2,\), got shape \(3,\)"
    ):
        diffusion.add_noise(x, x, 0.5, jnp.ones(3))
    with pytest.raises(TypeError, match="noise: expected a floating dtype, got int32"):
        diffusion.add_noise(x, x.astype(int), 0.5, 0.5)


def test_one_trace_for_all_timesteps():
    """The timesteps are data: other ones do not compile again."""
    counted = jax.jit(chex.assert_max_traces(loss, n=1))
    x0, noise = draws((4, 2))
    for t in ([0, 1, 2, 3], [9, 8, 7, 6]):
        counted(0.3, x0, np.array(t), noise, np.ones(4, np.float32), np.ones(4, np.float32))
