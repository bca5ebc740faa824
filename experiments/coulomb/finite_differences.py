"""What a generic integrator does instead: Euler and Maruyama's steps with central differences.

The linear theory of a driven electrolyte in two dimensions, in which Poisson's equation leaves ``-q``.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxneg.coulomb import SdftConfig, power_spectrum


def longest_step(dx: float, Ef: float) -> float:
    """The step above which a mode of the explicit scheme grows.

    Its amplification ``1 - dt mu`` stays within the unit circle up to ``2 Re mu / |mu|^2`` for each
    eigenvalue ``mu = k^2 + 1/2 +- (1/4 - G^2)^(1/2)`` of the discrete operator.

    Args:
        dx: distance between points.
        Ef: field.
    """
    angle = np.linspace(0, np.pi, 257)[:, None]
    k2 = (4 / dx**2) * (np.sin(angle / 2) ** 2 + np.sin(angle.T / 2) ** 2)
    G = Ef * np.sin(angle) / dx
    root = np.sqrt((0.25 - G**2).astype(complex))
    rates = np.stack([k2 + 0.5 + root, k2 + 0.5 - root])[:, k2 > 0]
    return float((2 * rates.real / np.abs(rates) ** 2).min())


@partial(jax.jit, static_argnums=(2, 3, 4))
def _spectra(key: jax.Array, cfg: SdftConfig, burn_in: int, steps: int, every: int) -> Array:
    grid, dx = cfg.grid, cfg.dx
    cells = grid.shape
    size = jnp.sqrt(2 * cfg.g * cfg.dt / dx**2)

    def lap(f: Array) -> Array:
        around: Array = sum((jnp.roll(f, s, a) for a in (0, 1) for s in (1, -1)), -4 * f)
        return around / dx**2

    def slope(f: Array) -> Array:
        return (jnp.roll(f, -1, 0) - jnp.roll(f, 1, 0)) / (2 * dx)

    def div(flux: Array) -> Array:
        return sum(((flux[a] - jnp.roll(flux[a], 1, a)) / dx for a in (0, 1)), jnp.zeros(cells))

    def step(i: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        n, q = state
        eta = jax.random.normal(jax.random.fold_in(key, i), (2, 2, *cells))
        return (
            n + cfg.dt * (lap(n) - cfg.Ef * slope(q)) + size * div(eta[0]),
            q + cfg.dt * (lap(q) - q - cfg.Ef * slope(n)) + size * div(eta[1]),
        )

    def block(state: tuple[Array, Array], b: Array) -> tuple[tuple[Array, Array], Array]:
        state = jax.lax.fori_loop(0, every, lambda i, s: step(burn_in + b * every + i, s), state)
        return state, jnp.stack([power_spectrum(jnp.fft.rfftn(x), grid) / cfg.g for x in state])

    zero = jnp.zeros(cells)
    state = jax.lax.fori_loop(0, burn_in, step, (zero, zero))
    return jax.lax.scan(block, state, jnp.arange(steps // every))[1].mean(0)


def euler_maruyama_spectra(
    key: jax.Array, cfg: SdftConfig, burn_in: int, steps: int, every: int
) -> Float[np.ndarray, "two *modes"]:
    """Mean s_nn and s_qq of the generic integrator.

    Args:
        key: random key.
        cfg: the electrolyte, in two dimensions; its scheme has no part in this.
        burn_in: steps that are left out, from a flat start.
        steps: steps that are measured.
        every: steps between samples.

    Returns:
        Both, over g.

    Raises:
        ValueError: a step for which the scheme is unstable.
    """
    limit = longest_step(cfg.dx, float(np.asarray(cfg.Ef)))
    if float(np.asarray(cfg.dt)) > limit:
        raise ValueError(
            f"dt: expected at most {limit:.3g}, above which explicit steps are unstable for Ef = {cfg.Ef} on"
            f" cells of dx = {cfg.dx:g}, got {cfg.dt}"
        )
    return np.asarray(_spectra(key, cfg, burn_in, steps, every))
