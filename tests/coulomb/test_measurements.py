"""What is measured on fields, against brute force and series of known correlation."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxneg import coulomb
from jaxneg.coulomb import SpectralGrid


def test_radial_spectrum_counts_the_whole_spectrum():
    shape = (7, 6, 8)
    grid = SpectralGrid(shape, 0.5)
    field = np.random.default_rng(0).normal(size=shape)
    edges = np.array([0.0, 2.0, 4.0, 7.0])
    found = coulomb.radial_spectrum(
        coulomb.power_spectrum(jnp.fft.rfftn(jnp.asarray(field)), grid), grid, jnp.asarray(edges)
    )
    whole = np.abs(np.fft.fftn(field)) ** 2 * 0.5**6 / grid.volume
    k = np.sqrt(
        sum(
            (2 * np.pi * np.fft.fftfreq(n, 0.5)).reshape([-1 if a == axis else 1 for a in range(3)]) ** 2
            for axis, n in enumerate(shape)
        )
    )
    for shell in range(3):
        inside = (k > edges[shell]) & (k <= edges[shell + 1])
        assert found.modes[shell] == inside.sum()
        np.testing.assert_allclose(found.S[shell], whole[inside].mean(), rtol=1e-5)
        np.testing.assert_allclose(found.k[shell], k[inside].mean(), rtol=1e-5)
    # Parseval: the shells' sums and the mean make up the variance.
    everything = coulomb.radial_spectrum(
        coulomb.power_spectrum(jnp.fft.rfftn(jnp.asarray(field)), grid), grid, jnp.array([0.0, 1e3])
    )
    variance = everything.S[0] * everything.modes[0] / grid.volume
    np.testing.assert_allclose(variance, np.var(field), rtol=1e-5)
    padded = SpectralGrid(shape, 0.5, padding=3)
    assert padded.weights().sum() == grid.weights().sum() == np.prod(shape)
    assert not np.asarray(padded.kept())[..., -3:].any()


def test_errors_account_for_autocorrelation():
    """An autoregressive series of known time: the error covers the truth as often as it should."""
    rho, times, series = 0.9, 4000, 200
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(times, series)) * np.sqrt(1 - rho**2)
    x = np.empty((times, series))
    x[0] = rng.normal(size=series)
    for t in range(1, times):
        x[t] = rho * x[t - 1] + noise[t]
    found = jax.jit(coulomb.mean_with_error)(jnp.asarray(x))
    np.testing.assert_allclose(np.mean(found.tau), (1 + rho) / (2 * (1 - rho)), rtol=0.07)
    covered = np.abs(np.asarray(found.mean)) < 2 * np.asarray(found.error)
    assert 0.9 < covered.mean() < 0.99
    naive = x.std(0) / np.sqrt(times)
    assert np.mean(np.abs(np.asarray(found.mean)) < 2 * naive) < 0.5
    independent = coulomb.mean_with_error(jnp.asarray(rng.normal(size=(1000, 5))))
    assert np.all(np.asarray(independent.tau) < 0.8)


def test_time_correlation_is_its_sum():
    rng = np.random.default_rng(0)
    f = rng.normal(size=(9, 2)) + 1j * rng.normal(size=(9, 2))
    found = np.asarray(coulomb.time_correlation(jnp.asarray(f)))
    for lag in range(9):
        expected = np.mean((f[lag:] * f[: 9 - lag].conj()).real, 0)
        np.testing.assert_allclose(found[lag], expected, atol=1e-5)


def test_correlation_time_and_slope():
    t = np.arange(1000) * 0.01
    k = np.array([0.5, 1.0, 2.0])
    C = 3 * np.exp(-t[:, None] * k**2)
    found = coulomb.correlation_time(jnp.asarray(C), 0.01)
    np.testing.assert_allclose(found, np.log(2) / k**2, rtol=2e-3)
    np.testing.assert_allclose(coulomb.log_slope(jnp.asarray(k), found), -2, atol=5e-3)
    assert np.isnan(coulomb.correlation_time(jnp.ones((4,)), 1.0))
