"""Noise schedules and the weights of the noise levels."""

import re

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneg import diffusion

NAMED = {"squaredcos_cap_v2": diffusion.cosine_schedule, "linear": diffusion.linear_schedule}
# What the vectors' README says of them.
MIN_SNR_GAMMA, P2_K = 5.0, 1.0
PREDICTIONS = {"eps": "epsilon", "x0": "x0", "v": "v"}


def computed(schedule, quantity):
    """The array that a golden name stands for."""
    if quantity.startswith("minsnr_"):
        prediction = PREDICTIONS[quantity.removeprefix("minsnr_")]
        return diffusion.min_snr_weight(schedule.snr, MIN_SNR_GAMMA, prediction)
    if quantity.startswith("p2_gamma"):
        return diffusion.p2_weight(schedule.snr, float(quantity.removeprefix("p2_gamma")), P2_K)
    return getattr(schedule, quantity)


@pytest.mark.golden("ant", "weights.npz")
def test_golden(golden):
    for name, expected in golden.items():
        kind, T, quantity = re.fullmatch(r"(.+)_T(\d+)_(.+)", name).groups()
        got = computed(NAMED[kind](int(T)), quantity)
        assert isinstance(got, np.ndarray)
        assert got.dtype == np.float64
        np.testing.assert_allclose(got, expected, rtol=1e-10, err_msg=name)


@pytest.mark.golden("ant", "weights.npz")
def test_golden_float32_weights_under_jit(golden):
    for name, expected in golden.items():
        kind, T, quantity = re.fullmatch(r"(.+)_T(\d+)_(.+)", name).groups()
        if not quantity.startswith(("minsnr", "p2")):
            continue
        ratio = jnp.asarray(NAMED[kind](int(T)).snr, jnp.float32)

        def weights(ratio, quantity=quantity):
            if quantity.startswith("p2"):
                return diffusion.p2_weight(ratio, float(quantity.removeprefix("p2_gamma")))
            return diffusion.min_snr_weight(ratio, prediction=PREDICTIONS[quantity.removeprefix("minsnr_")])

        np.testing.assert_allclose(jax.jit(weights)(ratio), expected, rtol=1e-4, err_msg=name)


@pytest.mark.golden("self_npo", "gmm_denoiser.npz")
def test_golden_scaled_linear(golden):
    abar = golden["alphas_cumprod"]
    np.testing.assert_allclose(diffusion.scaled_linear_schedule(len(abar)).alphas_cumprod, abar, rtol=1e-12)


ALL = [
    diffusion.linear_schedule,
    diffusion.cosine_schedule,
    diffusion.sigmoid_schedule,
    diffusion.scaled_linear_schedule,
]


@pytest.mark.parametrize("make", ALL)
@hypothesis.given(T=st.integers(25, 1500))
@hypothesis.settings(max_examples=15, deadline=None)
def test_every_schedule(make, T):
    schedule = make(T)
    assert schedule.betas.shape == schedule.alphas_cumprod.shape == (T,)
    assert (np.diff(schedule.alphas_cumprod) < 0).all()
    assert (np.diff(schedule.log_snr) < 0).all()
    np.testing.assert_allclose(schedule.alpha**2 + schedule.sigma**2, 1, rtol=1e-14)
    np.testing.assert_allclose(schedule.snr, (schedule.alpha / schedule.sigma) ** 2, rtol=1e-9)
    again = diffusion.noise_schedule(alphas_cumprod=schedule.alphas_cumprod)
    np.testing.assert_allclose(again.betas, schedule.betas, rtol=1e-8)
    assert schedule.posterior_variance[0] == 0
    assert (schedule.posterior_variance < schedule.betas).all()


def test_posterior_variance_is_that_of_bayes():
    schedule = diffusion.linear_schedule(100)
    t = 40
    # x_t given x_{t-1}, and x_{t-1} given x_0, are Gaussian: their precisions add up.
    precision = (1 - schedule.betas[t]) / schedule.betas[t] + 1 / (1 - schedule.alphas_cumprod[t - 1])
    np.testing.assert_allclose(schedule.posterior_variance[t], 1 / precision, rtol=1e-12)


CONTINUOUS = {
    diffusion.continuous_linear: diffusion.linear_schedule,
    diffusion.continuous_cosine: diffusion.cosine_schedule,
    diffusion.continuous_sigmoid: diffusion.sigmoid_schedule,
}


@pytest.mark.parametrize("make", CONTINUOUS)
def test_continuous_is_the_limit_of_the_discrete(make):
    errors = []
    for T in (2000, 4000):
        discrete = CONTINUOUS[make](T)
        inside = np.abs(discrete.log_snr) < 9
        inside[-1] = False  # the largest beta is capped
        u = np.arange(1, T + 1) / T
        errors.append(np.abs(make().log_snr(u) - discrete.log_snr)[inside].max())
        np.testing.assert_allclose(make().alpha(u)[inside], discrete.alpha[inside], atol=4 / T)
    # The other two take the same curve at more points; the linear betas are a sum, the SDE has the integral.
    assert errors[1] < (0.05 if make is diffusion.continuous_linear else 1e-6)
    assert errors[1] < 1e-9 or errors[1] < 0.55 * errors[0]


@pytest.mark.parametrize("make", CONTINUOUS)
def test_continuous(make):
    schedule = make(low=-12.0, high=11.0)
    u = np.linspace(0, 1, 101)
    log_snr = schedule.log_snr(u)
    assert log_snr.dtype == np.float64
    assert log_snr[0] == 11.0
    if make is not diffusion.continuous_linear:  # whose log-SNR ends at -10.05 by itself
        assert log_snr[-1] == -12.0
    inside = (log_snr > -12) & (log_snr < 11)
    assert inside.sum() > 95
    assert (np.diff(log_snr[inside]) < 0).all()
    np.testing.assert_allclose(schedule.snr(u), np.exp(log_snr), rtol=1e-12)
    np.testing.assert_allclose(schedule.alpha(u) ** 2 + schedule.sigma(u) ** 2, 1, rtol=1e-12)
    np.testing.assert_allclose(schedule.alpha(u) ** 2 / schedule.sigma(u) ** 2, schedule.snr(u), rtol=1e-9)

    @jax.jit
    def everything(u):
        functions = (schedule.log_snr, schedule.alpha, schedule.sigma, schedule.snr)
        return [function(u) for function in functions], jax.vmap(jax.grad(schedule.log_snr))(u)

    values, slopes = everything(jnp.asarray(u, jnp.float32))
    expected = (log_snr, schedule.alpha(u), schedule.sigma(u), schedule.snr(u))
    for got, wanted in zip(values, expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=2e-3, atol=1e-5)
    assert np.isfinite(slopes).all()
    expected = np.gradient(log_snr, u)[5:-5]
    np.testing.assert_allclose(slopes[5:-5], expected, rtol=0.05)


@pytest.mark.parametrize("make", CONTINUOUS)
def test_discretize(make):
    schedule = make()
    discrete = schedule.discretize(50)
    np.testing.assert_allclose(discrete.log_snr, schedule.log_snr(np.arange(1, 51) / 50), atol=1e-6)


def test_cosine_without_offset_is_the_tangent():
    u = np.linspace(0.01, 0.99, 50)
    expected = -2 * np.log(np.tan(np.pi * u / 2))
    np.testing.assert_allclose(diffusion.continuous_cosine(offset=0.0).log_snr(u), expected, atol=1e-12)


def test_snr_and_weights_keep_kind_and_precision():
    abar = np.array([1.0, 0.999999, 0.5, 1e-9])
    assert diffusion.snr(abar).dtype == np.float64
    np.testing.assert_allclose(diffusion.snr(abar), [np.inf, 0.999999 / (1 - 0.999999), 1.0, 1e-9], rtol=1e-6)
    assert isinstance(diffusion.snr(jnp.asarray(abar)), jax.Array)
    for ratio in (np.array([0.0, np.inf]), jnp.array([0.0, jnp.inf])):
        np.testing.assert_array_equal(diffusion.min_snr_weight(ratio, 5.0), [1.0, 0.0])
        np.testing.assert_array_equal(diffusion.min_snr_weight(ratio, 5.0, "x0"), [0.0, 5.0])
        np.testing.assert_array_equal(diffusion.min_snr_weight(ratio, 5.0, "v"), [0.0, 0.0])
        np.testing.assert_array_equal(diffusion.p2_weight(ratio), [1.0, 0.0])
        np.testing.assert_array_equal(diffusion.p2_weight(ratio[:1], gamma=0.0), [1.0])
    assert diffusion.p2_weight(jnp.ones(2, jnp.bfloat16)).dtype == jnp.bfloat16


def test_mistakes():
    rising = np.array([0.9, 0.8, 0.8, 0.1])
    with pytest.raises(
        ValueError, match=r"fall strictly; alphas_cumprod\[2\] = 0.8 is not below alphas_cumprod\[1\]"
    ):
        diffusion.noise_schedule(alphas_cumprod=rising)
    with pytest.raises(ValueError, match=r"alphas_cumprod: .*got alphas_cumprod\[1\] = 1.5"):
        diffusion.noise_schedule(alphas_cumprod=[0.9, 1.5])
    with pytest.raises(ValueError, match=r"alphas_cumprod: .*got alphas_cumprod\[1\] = nan"):
        diffusion.noise_schedule(alphas_cumprod=[0.9, np.nan])
    with pytest.raises(
        ValueError, match=r"betas: expected numbers above 0 and below 1, got betas\[1\] = 0.0"
    ):
        diffusion.noise_schedule([0.1, 0.0])
    with pytest.raises(ValueError, match=r"betas: .*got betas\[0\] = 0.0"):
        diffusion.noise_schedule(alphas_cumprod=[1.0, 0.5])
    with pytest.raises(ValueError, match=r"betas: .*got betas\[0\] = nan"):
        diffusion.noise_schedule([np.nan])
    with pytest.raises(
        ValueError, match=r"betas: expected one number for each timestep, \[T\], got shape \(0,\)"
    ):
        diffusion.noise_schedule(np.zeros(0))
    with pytest.raises(TypeError, match="betas: expected a floating dtype, got int64"):
        diffusion.noise_schedule([1, 2])
    with pytest.raises(ValueError, match="expected either betas or alphas_cumprod"):
        diffusion.noise_schedule()
    with pytest.raises(ValueError, match=r"betas: .*got betas\[5\] = 1.11"):
        diffusion.linear_schedule(10)
    for make in ALL:
        with pytest.raises(ValueError, match="T: expected a number of timesteps of at least 1, got 0"):
            make(0)
    with pytest.raises(ValueError, match=r"end: expected a number above start = 3.0, got -3.0"):
        diffusion.sigmoid_schedule(10, start=3.0, end=-3.0)
    with pytest.raises(ValueError, match="tau: expected a positive finite number, got 0"):
        diffusion.continuous_sigmoid(tau=0)
    with pytest.raises(ValueError, match=r"low: expected a number below high = 1.0, got 2.0"):
        diffusion.continuous_linear(low=2.0, high=1.0)
    with pytest.raises(ValueError, match="offset: expected a number of at least 0, got -1"):
        diffusion.continuous_cosine(offset=-1)
    with pytest.raises(ValueError, match="prediction: expected one of epsilon, x0, v, got 'noise'"):
        diffusion.min_snr_weight(np.ones(2), prediction="noise")
    with pytest.raises(ValueError, match="gamma: expected a positive finite number, got -5"):
        diffusion.min_snr_weight(np.ones(2), gamma=-5)
    with pytest.raises(ValueError, match="k: expected a positive finite number, got 0"):
        diffusion.p2_weight(np.ones(2), k=0)
