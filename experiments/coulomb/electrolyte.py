"""Simulated driven electrolytes beside the linear theory: structure factors, and tails in space."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxneg import coulomb
from jaxneg.coulomb import SdftConfig

SECTORS = {"along": (0.9, 1.0), "across": (0.0, 0.3), "between": (0.3, 0.9)}
"""Cosines of the angle between wavevector and field."""
EDGES = np.array([0.3, 0.6, 0.9, 1.2, 1.5, 1.8, 2.1, 2.5])
"""Of the shells of wavenumbers, in inverse Debye lengths."""
KINDS = ("s_nn", "s_qq", "s_nq_imag")
RINGS = np.arange(4.0, 16.0)
"""Radii, in Debye lengths, at which the tail's second harmonic is measured."""


class Series(NamedTuple):
    """What a simulation of one field and seed gives.

    Attributes:
        spectra: means over time of the structure factors over g, ``[3, *modes]``.
        bins: means in sectors and shells, ``[3, sectors, shells]``; of Im <n q*> with the sign of k_x.
        errors: their standard errors, autocorrelation accounted for.
        taus: integrated autocorrelation times in samples.
        conductivity: ``J_x / Ef`` and its standard error; NaN without a field.
        snapshot: n and q at the end, ``[2, *shape]``.
    """

    spectra: np.ndarray
    bins: np.ndarray
    errors: np.ndarray
    taus: np.ndarray
    conductivity: np.ndarray
    snapshot: np.ndarray


def simulate(key: jax.Array, cfg: SdftConfig, burn_in: int, steps: int, every: int) -> Series:
    """A trajectory from the linear theory's stationary law, and what it is in the mean.

    Args:
        key: random key.
        cfg: the electrolyte.
        burn_in: steps that are left out, a multiple of ``every``.
        steps: steps that are measured.
        every: steps between samples.

    Returns:
        Means, errors and a snapshot.

    Raises:
        FloatingPointError: the run blew up.
    """
    samples, fields = _samples(key, cfg, burn_in + steps, every)
    spectra, bins, current = (np.asarray(x)[burn_in // every :] for x in samples)
    if not np.isfinite(current).all():
        first = int(np.argmin(np.isfinite(current)))
        raise FloatingPointError(
            f"the run of Ef = {cfg.Ef}, g = {cfg.g} on {cfg.shape} blew up before step"
            f" {burn_in + (first + 1) * every}: take a smaller dt than {cfg.dt}"
        )
    found, along = jax.jit(lambda *series: [coulomb.mean_with_error(x) for x in series])(bins, current)
    field = float(np.asarray(cfg.Ef))
    ratio = np.array([along.mean, along.error]) / field if field else np.full(2, np.nan)
    return Series(
        spectra.mean(0),
        np.asarray(found.mean),
        np.asarray(found.error),
        np.asarray(found.tau),
        ratio,
        np.asarray(fields),
    )


@partial(jax.jit, static_argnums=(2, 3))
def _samples(key: jax.Array, cfg: SdftConfig, steps: int, every: int) -> Any:
    grid = cfg.grid
    scale = grid.dx ** (2 * grid.dimensions) / grid.volume / cfg.g

    def observe(state: coulomb.SdftState) -> Any:
        nq = scale * jnp.imag(state.n * jnp.conj(state.q))
        spectra = jnp.stack([*(coulomb.power_spectrum(x, grid) / cfg.g for x in state), nq])
        return spectra, in_bins(spectra, grid), coulomb.electric_current(state, cfg)

    state, samples = coulomb.sdft_run(key, cfg, steps, observe=observe, every=every)
    return samples, coulomb.density_fields(state, cfg)


def in_bins(spectra: Any, grid: coulomb.SpectralGrid) -> jax.Array:
    """Spectra ``[3, *modes]`` averaged in sectors and shells ``[3, sectors, shells]``.

    Args:
        spectra: s_nn, s_qq and Im s_nq; the last is multiplied with the sign of k_x.
        grid: their grid.
    """
    kx = grid.wavenumber(0, derivative=True)
    k2 = grid.k2()
    cosine = jnp.abs(kx) / jnp.sqrt(jnp.where(k2 > 0, k2, 1))
    # The Nyquist row has no derivative along the field.
    whole = jnp.broadcast_to(jnp.abs(grid.wavenumber(0)) == jnp.abs(kx), grid.spectrum_shape)
    signed = jnp.stack([spectra[0], spectra[1], spectra[2] * jnp.sign(kx)])
    shells = [
        coulomb.radial_spectrum(
            signed, grid, jnp.asarray(EDGES), whole & (cosine >= low) & (cosine <= high)
        ).S
        for low, high in SECTORS.values()
    ]
    return jnp.stack(shells, 1)


def theory(cfg: SdftConfig) -> np.ndarray:
    """The linear theory's spectra ``[3, *modes]`` on the same grid."""
    grid = cfg.grid
    found = coulomb.mode_structure_factor(grid.k2(), grid.wavenumber(0, derivative=True), cfg.Ef)
    return np.stack([np.broadcast_to(x, grid.spectrum_shape) for x in found])


def pointwise_error(spectra: np.ndarray, cfg: SdftConfig, low: float = 0.3, high: float = 2.5) -> float:
    """The root mean square of the relative error of s_nn and s_qq over modes with ``low < |k| < high``."""
    expected, k = theory(cfg), np.sqrt(np.asarray(cfg.grid.k2()))
    inside = (k > low) & (k < high)
    return float(np.sqrt(np.mean((spectra[:2, inside] / expected[:2, inside] - 1) ** 2)))


def sampled_tail(key: jax.Array, cfg: SdftConfig, samples: int) -> dict[str, np.ndarray]:
    """The density's correlation in space from independent configurations of the linear theory.

    Args:
        key: random key.
        cfg: the electrolyte, in two dimensions.
        samples: configurations.

    Returns:
        ``harmonic`` on the rings, ``exact``: the same from the grid's own modes, ``tail``: the asymptotic
        law, ``signs``: <nn> along and across the field, each summed over radii 6 to 12 and over the sum of
        the law, ``map``: the correlation around the origin.
    """
    mean, harmonic, exact = (np.asarray(x) for x in _correlations(key, cfg, samples))
    field = float(np.asarray(cfg.Ef))
    s = 1 + field**2
    half = cfg.shape[0] // 2
    return {
        "harmonic": harmonic,
        "exact": exact,
        "tail": field**2 / (2 * np.pi * s**1.5 * RINGS**2),
        "signs": _signs(mean, cfg),
        "map": np.fft.fftshift(mean)[half - 32 : half + 33, half - 32 : half + 33],
    }


def _signs(mean: np.ndarray, cfg: SdftConfig) -> np.ndarray:
    """Over the law, which is positive along the field and negative across it."""
    field = float(np.asarray(cfg.Ef))
    along, across = (
        np.arange(round(6 * stretch / cfg.dx), round(12 * stretch / cfg.dx) + 1)
        for stretch in (np.sqrt(1 + field**2), 1.0)
    )
    law = jax.jit(lambda x, y: coulomb.real_space_tail(x, y, field, 2))
    expected = law(along * cfg.dx, 0.0), law(0.0, across * cfg.dx)
    values = mean[along, 0], mean[0, across]
    return np.array([np.sum(x) / np.sum(y) for x, y in zip(values, expected, strict=True)])


@partial(jax.jit, static_argnums=2)
def _correlations(key: jax.Array, cfg: SdftConfig, samples: int) -> Any:
    grid = cfg.grid

    def add(i: Any, total: Any) -> Any:
        return total + coulomb.power_spectrum(coulomb.sdft_init(jax.random.fold_in(key, i), cfg).n, grid)

    mean = jax.lax.fori_loop(0, samples, add, jnp.zeros(grid.spectrum_shape)) / (samples * cfg.g)
    in_space = jnp.fft.irfftn(mean, grid.shape) / grid.dx**grid.dimensions
    both = jnp.stack([in_space, coulomb.grid_correlation(grid, cfg.Ef).s_nn])
    return in_space, *coulomb.second_harmonic(both, cfg.dx, cfg.Ef, jnp.asarray(RINGS))
