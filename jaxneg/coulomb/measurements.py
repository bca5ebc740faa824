"""What is measured on fluctuating fields: spectra in shells, slopes, relaxation, and errors of means.

Successive configurations of a simulation are correlated: a mean over them is as good as one over fewer
independent ones, by twice the integrated autocorrelation time (A. D. Sokal, "Monte Carlo methods in
statistical mechanics", 1996, Section 3).
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Inexact

from jaxneg.coulomb.arguments import known, real_array, require
from jaxneg.coulomb.grid import SpectralGrid, same_grid


class RadialSpectrum(NamedTuple):
    """Means over shells of wavevectors.

    Attributes:
        k: mean wavenumber.
        S: mean of the spectrum.
        modes: number of modes of the whole spectrum; where it is 0, the means are NaN.
    """

    k: Float[Array, " shells"]
    S: Float[Array, "*batch shells"]
    modes: Float[Array, " shells"]


class MeanWithError(NamedTuple):
    """The mean of a correlated series.

    Attributes:
        mean: over time.
        error: its standard error, autocorrelation accounted for.
        tau: integrated autocorrelation time in samples, 1/2 for independent ones.
    """

    mean: Float[Array, "..."]
    error: Float[Array, "..."]
    tau: Float[Array, "..."]


def radial_spectrum(
    spectrum: Float[Array, "*batch modes"],
    grid: SpectralGrid,
    edges: Float[Array, " edges"],
    select: Bool[Array, "*modes"] | None = None,
) -> RadialSpectrum:
    """A spectrum averaged over shells of wavevectors, the halves that ``rfftn`` leaves out counted.

    Args:
        spectrum: real numbers for the modes of half spectra, as `power_spectrum` gives them.
        grid: their grid.
        edges: of the shells, rising; a mode belongs to ``edges[i] < |k| <= edges[i + 1]``.
        select: modes that count, as those of a sector of directions; None: all.

    Returns:
        Wavenumber, mean and number of modes of each shell; the mode k = 0 is in none.

    Raises:
        TypeError: a complex spectrum.
        ValueError: a spectrum of another grid, edges that do not rise.

    Source:
        arXiv:2207.00467, the isotropic average of a structure factor.

    Example:
        >>> grid = SpectralGrid((8, 8))
        >>> radial_spectrum(jnp.ones((8, 5)), grid, jnp.array([0.0, 0.8, 1.2])).modes.tolist()
        [4.0, 4.0]
    """
    spectrum, edges = real_array("spectrum", spectrum), real_array("edges", edges)
    same_grid("spectrum", spectrum, grid)
    if edges.ndim != 1 or len(edges) < 2 or (known(edges) and not (np.diff(np.asarray(edges)) > 0).all()):
        raise ValueError(f"edges: expected at least two rising wavenumbers, got {edges}")
    k = jnp.sqrt(grid.k2())
    weights = jnp.where(k > 0, grid.weights(), 0)
    if select is not None:
        weights = jnp.where(select, weights, 0)
    shell = jnp.clip(jnp.searchsorted(edges, k), 0, len(edges)).ravel()
    size = len(edges) + 1

    def total(values: Array) -> Array:
        flat = (values * weights).reshape(*values.shape[: -grid.dimensions], -1)
        return jnp.zeros((*flat.shape[:-1], size), flat.dtype).at[..., shell].add(flat)[..., 1:-1]

    modes = total(jnp.ones_like(k))
    return RadialSpectrum(total(k) / modes, total(spectrum) / modes, modes)


def log_slope(x: ArrayLike, y: ArrayLike) -> Float[Array, "*batch"]:
    """The exponent of a power law, by least squares in logarithms.

    Args:
        x: positive numbers, ``[points]``.
        y: positive numbers, ``[*batch, points]``.

    Returns:
        ``d log y / d log x``.

    Raises:
        ValueError: fewer than two points, or as many in x as in y.

    Example:
        >>> float(log_slope(jnp.array([1.0, 2.0, 4.0]), jnp.array([3.0, 12.0, 48.0])))
        2.0
    """
    x, y = real_array("x", x), real_array("y", y)
    if x.ndim != 1 or x.shape[0] < 2 or y.shape[-1:] != x.shape:
        raise ValueError(f"y: expected as many points as x, at least two, got shapes {x.shape}, {y.shape}")
    u = jnp.log(x) - jnp.mean(jnp.log(x))
    v = jnp.log(y)
    return jnp.sum(u * (v - jnp.mean(v, -1, keepdims=True)), -1) / jnp.sum(u * u)


def time_correlation(series: Inexact[Array, "times *batch"]) -> Float[Array, "times *batch"]:
    """The autocorrelation of stationary series at every lag, the mean not subtracted.

    ``C(t) = Re <f(s + t) conj(f(s))>``, over all pairs of that lag

    Args:
        series: real or complex numbers, time first.

    Returns:
        Real numbers for the lags 0, 1, ....

    Raises:
        ValueError: an empty series.

    Source:
        Wiener and Khinchin's theorem, with zeros behind the series so that its ends do not meet.

    Example:
        >>> time_correlation(jnp.array([1.0, 1.0, 1.0])).round(4).tolist()
        [1.0, 1.0, 1.0]
    """
    series = jnp.asarray(series)
    if series.ndim < 1 or series.shape[0] < 1:
        raise ValueError(f"series: expected [times, ...], got shape {series.shape}")
    times = series.shape[0]
    spectrum = jnp.fft.fft(series, 2 * times, axis=0)
    total = jnp.fft.ifft(jnp.abs(spectrum) ** 2, axis=0)[:times].real
    pairs = times - jnp.arange(times)
    return total / pairs.reshape(-1, *[1] * (series.ndim - 1))


def correlation_time(
    C: Float[Array, "lags *batch"], dt: ArrayLike, level: float = 0.5
) -> Float[Array, "*batch"]:
    """When an autocorrelation has fallen to a share of its first value.

    Args:
        C: autocorrelations, lags first.
        dt: time between lags.
        level: the share.

    Returns:
        The time, between lags by a straight line; NaN where C does not fall so far.

    Raises:
        ValueError: a level outside (0, 1), a single lag.

    Source:
        The definition of tau(k), from which z follows as the negative `log_slope` against k.

    Example:
        >>> round(float(correlation_time(jnp.array([2.0, 1.5, 0.5]), 0.1)), 3)
        0.15
    """
    C = real_array("C", C)
    require("level", level, 0, 1, open_low=True)
    if C.ndim < 1 or C.shape[0] < 2:
        raise ValueError(f"C: expected [lags, ...] with two lags or more, got shape {C.shape}")
    ratio = C / C[0]
    below = ratio <= level
    after = jnp.argmax(below, 0)
    high = jnp.take_along_axis(ratio, jnp.maximum(after - 1, 0)[None], 0)[0]
    low = jnp.take_along_axis(ratio, after[None], 0)[0]
    fraction = (high - level) / jnp.where(high > low, high - low, 1)
    return jnp.where(below.any(0), (after - 1 + fraction) * dt, jnp.nan)


def mean_with_error(series: Float[Array, "times *batch"], window: float = 5.0) -> MeanWithError:
    """The mean of a correlated series, its standard error, and how correlated it is.

    ``error^2 = 2 tau var / times``, ``tau = 1/2 + sum_t rho(t)`` to the first lag of ``window`` tau

    Args:
        series: real numbers, time first; a hundred tau of them or more.
        window: lags that are summed, in tau: more have less bias and more noise.

    Returns:
        Mean, error and tau for each series.

    Raises:
        TypeError: complex numbers.
        ValueError: fewer than four times, a window that is not positive.

    Source:
        Sokal 1996, Section 3 (automatic windowing).

    Example:
        >>> found = mean_with_error(jnp.array([1.0, -1.0, 1.0, -1.0, 1.0, -1.0]) + 2)
        >>> float(found.mean), float(found.tau)
        (2.0, 0.5)
    """
    series = real_array("series", series)
    require("window", window, 0, open_low=True)
    if series.ndim < 1 or series.shape[0] < 4:
        raise ValueError(f"series: expected [times, ...] with four times or more, got shape {series.shape}")
    times = series.shape[0]
    mean = jnp.mean(series, 0)
    # Over all times, not over the pairs of a lag: the estimate of a long lag is then quiet.
    C = time_correlation(series - mean) * (1 - jnp.arange(times) / times).reshape(-1, *[1] * mean.ndim)
    variance = C[0]
    rho = C / jnp.where(variance > 0, variance, 1)
    taus = jnp.cumsum(rho, 0) - 0.5
    enough = jnp.arange(times).reshape(-1, *[1] * mean.ndim) >= window * taus
    last = jnp.where(enough.any(0), jnp.argmax(enough, 0), times - 1)
    tau = jnp.maximum(jnp.take_along_axis(taus, last[None], 0)[0], 0.5)
    return MeanWithError(mean, jnp.sqrt(2 * tau * variance / times), tau)
