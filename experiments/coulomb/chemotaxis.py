"""Polar chemotaxis at its critical point: the structure factor's exponent, and how fast modes relax."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxneg import coulomb
from jaxneg.coulomb import ChemotaxisConfig

LOWEST = 11
"""Modes of the line from which exponents are read off, the first left out for the relaxation time: few of
its times fit into a run."""
SHELL_EDGES = np.arange(0.0, 0.5, 0.0125 * 2)
"""Of the shells of the plane."""
FIT = (0.05, 0.25)
"""Wavenumbers between which the plane's exponent is read off."""
COUPLINGS = {"polar": (0.0, 0.5), "polar and repulsive": (1.0, 1.0), "linear": (0.0, 0.0)}
"""(mu1, mu2) on the line, at diffusivity, noise and spacing 1; the first two have one lambda, 0.5."""


def on_a_line(
    key: jax.Array, cfg: ChemotaxisConfig, replicas: int, steps: int, every: int
) -> dict[str, np.ndarray]:
    """Structure factor and relaxation times of the lowest modes on a line.

    Args:
        key: random key.
        cfg: the box.
        replicas: runs that are averaged.
        steps: steps of each, of which the first third is left out.
        every: steps between samples.

    Returns:
        ``S`` and ``tau`` of the modes 1, 2, ..., their exponents ``S_slope`` and ``z``, the mean ``balance``
        ``-Re <rho* F> / (Dn k^2 V)`` of the lowest modes (1 in a steady state), and the ``history`` of the
        density [times, points] of one replica afterwards.

    Raises:
        FloatingPointError: a run blew up.
    """
    measured = steps // 3 // every
    modes, balance, last = _line(key, cfg, replicas, steps, every)
    modes, balance = np.asarray(modes), np.asarray(balance)
    modes, balance = modes[measured:], balance[measured:]
    if not np.isfinite(modes).all():
        raise FloatingPointError(
            f"the run with mu1 = {cfg.mu1}, mu2 = {cfg.mu2} blew up: take a smaller dt than {cfg.dt}"
        )
    grid = cfg.grid
    k = 2 * np.pi / grid.volume * np.arange(1, modes.shape[-1] + 1)
    S = np.mean(np.abs(modes) ** 2, (0, 1)) * grid.dx**2 / grid.volume
    tau = np.asarray(_relaxation_times(modes, every * float(np.asarray(cfg.dt))))
    resolved = np.isfinite(tau) & (np.arange(1, len(k) + 1) > 1)
    return {
        "k": k,
        "S": S,
        "tau": tau,
        "S_slope": np.asarray(coulomb.log_slope(jnp.asarray(k), jnp.asarray(S))),
        "z": -np.asarray(coulomb.log_slope(jnp.asarray(k[resolved]), jnp.asarray(tau[resolved]))),
        "balance": balance.mean((0, 1)),
        "history": np.asarray(_history(jax.random.fold_in(key, 1), cfg, last[0])),
    }


@partial(jax.jit, static_argnums=(2, 3, 4))
def _line(key: jax.Array, cfg: ChemotaxisConfig, replicas: int, steps: int, every: int) -> Any:
    grid = cfg.grid
    k2 = grid.k2()[1 : LOWEST + 1]
    noise = cfg.Dn * k2 * grid.volume / grid.dx**2  # of spectra that are not multiplied with the cells' size

    def observe(rho_hat: Any) -> Any:
        modes = rho_hat[1 : LOWEST + 1]
        drift = coulomb.chemotaxis_rhs(rho_hat, cfg.mu1, cfg.mu2, grid)[1 : LOWEST + 1]
        drift = drift - (cfg.D * k2 + cfg.sigma) * modes
        return modes, -jnp.real(jnp.conj(modes) * drift) / noise

    def run(key: Any) -> Any:
        first, later = jax.random.split(key)
        # Diffusion alone would take longer than the run to fill the longest waves.
        linear = (cfg.mu1 == 0) & (cfg.mu2 == 0)
        start = jnp.where(linear, coulomb.chemotaxis_init(first, cfg), 0)
        return coulomb.chemotaxis_run(later, cfg, steps, observe=observe, every=every, state=start)

    last, (modes, balance) = jax.vmap(run, out_axes=(0, 1))(jax.random.split(key, replicas))
    return modes, balance, last


@jax.jit
def _relaxation_times(modes: Any, dt: Any) -> Any:
    """From series [times, replicas, modes]."""
    return coulomb.correlation_time(coulomb.time_correlation(modes).mean(1), dt)


@jax.jit
def _history(key: jax.Array, cfg: ChemotaxisConfig, rho_hat: Any) -> Any:
    """The density at 300 later times, [times, points]."""
    return coulomb.chemotaxis_run(
        key, cfg, 3000, observe=lambda f: jnp.fft.irfft(f, cfg.shape[0]), every=10, state=rho_hat
    )[1]


def in_the_plane(key: jax.Array, cfg: ChemotaxisConfig, steps: int, every: int) -> dict[str, np.ndarray]:
    """Structure factor in shells and its exponent in two dimensions.

    Args:
        key: random key.
        cfg: the box.
        steps: steps, of which the last two thirds are measured.
        every: steps between samples.

    Returns:
        ``k`` and ``S`` of the shells, ``error`` with autocorrelation accounted for, the exponent ``slope``
        over `FIT` without the lowest shell, and a ``snapshot``.

    Raises:
        FloatingPointError: the run blew up.
    """
    k, S, rho = (np.asarray(x) for x in _plane(key, cfg, steps, every))
    S = S[steps // every // 3 :]
    if not np.isfinite(S).any(1).all():
        raise FloatingPointError(
            f"the run with mu1 = {cfg.mu1}, mu2 = {cfg.mu2} blew up: take a smaller dt than {cfg.dt}"
        )
    filled = np.isfinite(k)
    filled[np.argmax(filled)] = False
    found = jax.jit(coulomb.mean_with_error)(S[:, filled])
    k, mean = k[filled], np.asarray(found.mean)
    fitted = (k > FIT[0]) & (k < FIT[1])
    return {
        "k": k,
        "S": mean,
        "error": np.asarray(found.error),
        "slope": np.asarray(coulomb.log_slope(jnp.asarray(k[fitted]), jnp.asarray(mean[fitted]))),
        "snapshot": rho,
    }


@partial(jax.jit, static_argnums=(2, 3))
def _plane(key: jax.Array, cfg: ChemotaxisConfig, steps: int, every: int) -> Any:
    grid, edges = cfg.grid, jnp.asarray(SHELL_EDGES)

    def observe(rho_hat: Any) -> Any:
        return coulomb.radial_spectrum(coulomb.power_spectrum(rho_hat, grid), grid, edges).S

    # Repulsion is absent here, and its transforms with it.
    polar = ChemotaxisConfig(cfg.shape, cfg.dx, 0.0, cfg.mu2, cfg.D, cfg.Dn, cfg.sigma, cfg.dt)
    rho_hat, S = coulomb.chemotaxis_run(key, polar, steps, observe=observe, every=every)
    k = coulomb.radial_spectrum(grid.k2(), grid, edges).k
    return k, S, jnp.fft.irfftn(rho_hat, grid.shape)
