"""Polar chemotaxis at its critical point, integrated in Fourier space.

Particles that answer a chemical's gradient along it and by their polarity, the chemical made by themselves
and diffusing fast::

    d rho/dt = D lap rho - sigma rho + mu1 div(rho grad phi) + mu2 lap (grad phi)^2 + div xi
    -lap phi = rho,   <xi_i xi_j> = 2 Dn delta_ij delta delta

Mahdisoltani, Ben Ali Zinati, Duclut, Gambassi and Golestanian, arXiv:1911.08115. The prefactors of mu1 and
mu2 are a proposed reading: the paper's own could not be read. The exponents do not depend on them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Complex, Float, PRNGKeyArray

from jaxneg.coulomb.arguments import known, real_array, require
from jaxneg.coulomb.grid import SpectralGrid, same_grid
from jaxneg.coulomb.slab_fft import AnyMesh, Transforms, transforms
from jaxneg.coulomb.trajectory import trajectory

REYNOLDS, COURANT = 3.0, 0.7
"""Grid Reynolds number, and cells that the fluctuations drift in a step, above which a configuration is
refused: runs on lines and in planes blew up above them, but for some of weak coupling, and not below."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["mu1", "mu2", "D", "Dn", "sigma", "dt"],
    meta_fields=["shape", "dx", "dealias"],
)
@dataclass(frozen=True)
class ChemotaxisConfig:
    """A box of chemotactic particles. A pytree: all but ``shape``, ``dx`` and ``dealias`` may be mapped over.

    Attributes:
        shape: points along each axis, 1 to 3 axes.
        dx: distance between points.
        mu1: chemotaxis, repulsive; below 0 the particles collapse, and no step is stable.
        mu2: polarity.
        D: diffusivity.
        Dn: strength of the noise.
        sigma: mass term, 0 at the critical point.
        dt: time step.
        dealias: the 2/3 rule.

    Raises:
        ValueError: numbers out of range, or a step that is unstable.

    Example:
        >>> ChemotaxisConfig((64,), mu2=0.5).grid.spectrum_shape
        (33,)
    """

    shape: tuple[int, ...]
    dx: float = 1.0
    mu1: ArrayLike = 0.0
    mu2: ArrayLike = 0.0
    D: ArrayLike = 1.0
    Dn: ArrayLike = 1.0
    sigma: ArrayLike = 0.0
    dt: ArrayLike = 0.1
    dealias: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        require("mu1", self.mu1, 0)
        require("mu2", self.mu2, -math.inf)
        require("D", self.D, 0, open_low=True)
        require("Dn", self.Dn, 0)
        require("sigma", self.sigma, 0)
        require("dt", self.dt, 0, open_low=True)
        grid = self.grid
        if all(known(x) for x in (self.mu1, self.mu2, self.D, self.Dn, self.dt)):
            reynolds, courant = (float(np.max(x)) for x in self.stability())
            if reynolds > REYNOLDS or courant > COURANT:
                raise ValueError(
                    f"dt: unstable: expected a grid Reynolds number (lambda |rho| dx^2 / D) of at most"
                    f" {REYNOLDS:g} and a drift of at most {COURANT:g} cells a step, got {reynolds:.3g} and"
                    f" {courant:.3g} for dt = {self.dt} on {grid.shape}; take a smaller step, weaker"
                    f" coupling or more diffusion"
                )

    @property
    def grid(self) -> SpectralGrid:
        """The periodic grid."""
        return SpectralGrid(self.shape, self.dx, self.dealias)

    def stability(self) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
        """Grid Reynolds number, and cells that fluctuations drift in a step, by the linear theory's sizes.

        ``lambda (Dn / D dx^d)^(1/2) dx^2 / D`` and ``2 lambda u dt / dx``, ``lambda = |mu2 - mu1 / 2|``,
        ``u^2 = (Dn / D V) sum_k 1 / k^2``, the sum over one axis of modes in one dimension, and the integral
        otherwise.
        """
        d, length = len(self.shape), max(self.shape) * self.dx
        # numpy's: a configuration may be made of known numbers within a traced function.
        mu1, mu2, D, Dn, dt = (np.asarray(x, float) for x in (self.mu1, self.mu2, self.D, self.Dn, self.dt))
        coupling = np.abs(mu2 - mu1 / 2)
        variance = {
            1: length / 12,
            2: math.log(length / (2 * self.dx)) / (2 * math.pi),
            3: 1 / (2 * math.pi * self.dx),
        }[d]
        rho, u = np.sqrt(Dn / (D * self.dx**d)), np.sqrt(Dn / D * variance)
        return coupling * rho * self.dx**2 / D, 2 * coupling * u * dt / self.dx


def chemotaxis_rhs(
    rho_hat: Complex[Array, "*modes"], mu1: ArrayLike, mu2: ArrayLike, grid: SpectralGrid
) -> Complex[Array, "*modes"]:
    """The non-linear drift, ``mu1 div(rho grad phi) + mu2 lap (grad phi)^2``.

    Args:
        rho_hat: half spectrum of the density.
        mu1: chemotaxis; a Python 0 saves the transforms of its term.
        mu2: polarity.
        grid: its grid, with or without the 2/3 rule.

    Returns:
        Its half spectrum; 0 for k = 0.

    Raises:
        ValueError: a spectrum of another grid.

    Source:
        arXiv:1911.08115, a proposed reading of its prefactors.

    Example:
        >>> grid = SpectralGrid((8,))
        >>> chemotaxis_rhs(jnp.zeros(5, complex), 0.0, 0.5, grid).shape
        (5,)
    """
    same_grid("rho_hat", rho_hat, grid)
    return _drift(transforms(grid), mu1, mu2)(rho_hat)


def etdrk2_step(
    rho_hat: Complex[Array, "*modes"],
    mu1: ArrayLike,
    mu2: ArrayLike,
    grid: SpectralGrid,
    dt: ArrayLike,
    D: ArrayLike = 1.0,
    *,
    sigma: ArrayLike = 0.0,
    noise_hat: Complex[Array, "*modes"] | None = None,
) -> Complex[Array, "*modes"]:
    """One step of the exponential integrator of second order.

    ``a = E rho + p1 N(rho)``, ``rho' = a + p2 (N(a) - N(rho)) + noise`` with ``r = D k^2 + sigma``,
    ``E = e^(-r dt)``, ``p1 = (1 - E) / r``, ``p2 = (E - 1 + r dt) / (r^2 dt)``

    Args:
        rho_hat: half spectrum of the density.
        mu1: chemotaxis.
        mu2: polarity.
        grid: its grid.
        dt: time step.
        D: diffusivity.
        sigma: mass term.
        noise_hat: what the step adds; None: nothing.

    Returns:
        The half spectrum after the step.

    Raises:
        ValueError: a spectrum of another grid; a dt or D that is not positive.

    Source:
        S. M. Cox and P. C. Matthews, J. Comput. Phys. 176, 430 (2002), equation 22.

    Example:
        >>> grid = SpectralGrid((8,))
        >>> etdrk2_step(jnp.ones(5, complex), 0.0, 0.0, grid, 0.1)[0].real.tolist()
        1.0
    """
    require("dt", dt, 0, open_low=True)
    require("D", D, 0, open_low=True)
    require("sigma", sigma, 0)
    same_grid("rho_hat", rho_hat, grid)
    stepped = _etdrk2(transforms(grid), mu1, mu2, D, sigma, dt)(rho_hat)
    return stepped if noise_hat is None else stepped + noise_hat


def chemotaxis_init(
    key: PRNGKeyArray, cfg: ChemotaxisConfig, mesh: AnyMesh | None = None
) -> Complex[Array, "*modes"]:
    """A configuration of the linear theory, ``S(k) = Dn k^2 / (D k^2 + sigma)``, with a mean of 0.

    Args:
        key: random key.
        cfg: the box.
        mesh: mesh whose axes together hold slabs of the grid, or None.

    Returns:
        Its half spectrum; for the same key it is the same on every mesh.

    Raises:
        ValueError: a grid that the mesh does not divide.

    Example:
        >>> chemotaxis_init(jax.random.key(0), ChemotaxisConfig((16, 16))).shape
        (16, 9)
    """
    fft = transforms(cfg.grid, mesh)
    rate, k2 = cfg.D * fft.grid.k2() + cfg.sigma, fft.grid.k2()
    S = jnp.where(k2 > 0, cfg.Dn * k2 / jnp.where(rate > 0, rate, 1), 0)
    return _noise_size(cfg, fft, S) * fft.forward(fft.normal(key, (1, *cfg.shape)))[0]


def chemotaxis_step(
    rho_hat: Complex[Array, "*modes"], key: PRNGKeyArray, cfg: ChemotaxisConfig, mesh: AnyMesh | None = None
) -> Complex[Array, "*modes"]:
    """One step: `etdrk2_step` with the exact noise of the linear part.

    Args:
        rho_hat: half spectrum of the density.
        key: random key of this step.
        cfg: the box.
        mesh: as in `chemotaxis_init`.

    Returns:
        The half spectrum after ``cfg.dt``.

    Raises:
        ValueError: a spectrum of another grid, or a grid that the mesh does not divide.

    Source:
        As `etdrk2_step`.

    Example:
        >>> cfg = ChemotaxisConfig((16,), mu2=0.5)
        >>> chemotaxis_step(chemotaxis_init(jax.random.key(0), cfg), jax.random.key(1), cfg).shape
        (9,)
    """
    return _stepper(cfg, mesh)(rho_hat, key)


def chemotaxis_run(
    key: PRNGKeyArray,
    cfg: ChemotaxisConfig,
    steps: int,
    *,
    observe: Callable[[Array], Any] | None = None,
    every: int = 1,
    state: Complex[Array, "*modes"] | None = None,
    mesh: AnyMesh | None = None,
) -> tuple[Complex[Array, "*modes"], Any]:
    """A trajectory as one loop.

    Args:
        key: random key; map over keys for replicas.
        cfg: the box; map over its couplings.
        steps: how many, a multiple of ``every``.
        observe: ``rho_hat -> tree of arrays``, after every so many steps.
        every: steps between observations.
        state: half spectrum to begin with; None: a flat density. The linear theory's own,
            `chemotaxis_init`, has long waves that the couplings suppress and that a step may be too long for.
        mesh: as in `chemotaxis_init`.

    Returns:
        The last half spectrum, and the observations stacked ``[steps // every, ...]``.

    Raises:
        ValueError: as `chemotaxis_step`; steps that ``every`` does not divide.

    Source:
        As `etdrk2_step`.

    Example:
        >>> cfg = ChemotaxisConfig((16,), mu2=0.5)
        >>> chemotaxis_run(jax.random.key(0), cfg, 4, every=2, observe=lambda rho: rho[1])[1].shape
        (2,)
    """
    if state is None:
        state = 0 * chemotaxis_init(key, cfg, mesh)
    return trajectory(_stepper(cfg, mesh), state, key, steps, every, observe)


def _drift(fft: Transforms, mu1: ArrayLike, mu2: ArrayLike) -> Callable[[Array], Array]:
    grid = fft.grid
    d, kept, k2, poisson = grid.dimensions, grid.kept(), grid.k2(), grid.inverse_k2()
    ik = [1j * grid.wavenumber(axis, derivative=True) for axis in range(d)]
    repels = not (isinstance(mu1, int | float) and mu1 == 0)

    def drift(rho_hat: Array) -> Array:
        if grid.dealias:
            rho_hat = kept * rho_hat
        slopes_hat = [k * (poisson * rho_hat) for k in ik]
        fields = fft.inverse(jnp.stack([*slopes_hat, rho_hat] if repels else slopes_hat))
        slopes = fields[:d]
        products = jnp.sum(slopes * slopes, 0, keepdims=True)
        if repels:
            products = jnp.concatenate([products, fields[d] * slopes])
        spectra = fft.forward(products)
        total = -(jnp.asarray(mu2) * k2) * spectra[0]
        for axis in range(d if repels else 0):
            total += mu1 * ik[axis] * spectra[1 + axis]
        return kept * total if grid.dealias else total

    return drift


def _etdrk2(
    fft: Transforms, mu1: ArrayLike, mu2: ArrayLike, D: ArrayLike, sigma: ArrayLike, dt: ArrayLike
) -> Callable[[Array], Array]:
    drift = _drift(fft, mu1, mu2)
    dt, rate = real_array("dt", dt), real_array("D", D) * fft.grid.k2() + sigma
    x = rate * dt
    E = jnp.exp(-x)
    # For small x the quotients lose their digits: their series, to the tenth power.
    small = x < 0.3
    safe = jnp.where(small, 1, x)
    near = jnp.where(small, x, 0)
    series = jnp.ones_like(near)
    for order in range(11, 2, -1):
        series = 1 - near / order * series
    p2 = dt * jnp.where(small, series / 2, (jnp.expm1(-safe) + safe) / (safe * safe))
    p1 = dt * jnp.where(small, 1 - near * series / 2, -jnp.expm1(-safe) / safe)

    def stepped(rho_hat: Array) -> Array:
        now = drift(rho_hat)
        middle = E * rho_hat + p1 * now
        return middle + p2 * (drift(middle) - now)

    return stepped


def _noise_size(cfg: ChemotaxisConfig, fft: Transforms, variance: Array) -> Array:
    """What the spectrum of standard normal numbers in the cells is multiplied with."""
    inside = fft.grid.weights() > 0
    return jnp.sqrt(jnp.where(inside, variance, 0) * cfg.dx ** -len(cfg.shape))


def _stepper(cfg: ChemotaxisConfig, mesh: AnyMesh | None) -> Callable[[Array, PRNGKeyArray], Array]:
    fft = transforms(cfg.grid, mesh)
    deterministic = _etdrk2(fft, cfg.mu1, cfg.mu2, cfg.D, cfg.sigma, cfg.dt)
    k2 = fft.grid.k2()
    rate = cfg.D * k2 + cfg.sigma
    moved = jnp.where(k2 > 0, -jnp.expm1(-2 * rate * cfg.dt) * k2 / jnp.where(k2 > 0, rate, 1), 0)
    size = _noise_size(cfg, fft, jnp.asarray(cfg.Dn) * moved)

    def step(rho_hat: Array, key: PRNGKeyArray) -> Array:
        same_grid("rho_hat", rho_hat, fft.grid)
        return deterministic(rho_hat) + size * fft.forward(fft.normal(key, (1, *cfg.shape)))[0]

    return step
