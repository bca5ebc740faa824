"""Stochastic density functional theory of a driven electrolyte, integrated in Fourier space.

Dean and Kawasaki's equations for the ions' densities with Poisson's equation (units as in
`structure_factor`)::

    dn/dt = lap n - Ef d_x q + div(q grad phi) + sqrt(g) div[sqrt(1 + n + q) eta+ + sqrt(1 + n - q) eta-]
    dq/dt = lap q - q - Ef d_x n + div(n grad phi) + sqrt(g) div[sqrt(1 + n + q) eta+ - sqrt(1 + n - q) eta-]
    -lap phi = q

Mahdisoltani and Golestanian, arXiv:2011.12821 and arXiv:2207.00467; D. S. Dean, J. Phys. A 29, L613 (1996).
The linear part is always exact. Between neutral walls the box is continued evenly beyond them, the noise
with it, so that every mode is a cosine.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Complex, Float, PRNGKeyArray

from jaxneg.coulomb.arguments import known, require
from jaxneg.coulomb.grid import SpectralGrid, same_grid
from jaxneg.coulomb.propagator import (
    ModeMatrix,
    cholesky,
    mode_noise_factor,
    mode_propagator,
    mode_step_matrices,
)
from jaxneg.coulomb.slab_fft import AnyMesh, Transforms, transforms
from jaxneg.coulomb.structure_factor import mode_structure_factor
from jaxneg.coulomb.trajectory import trajectory

Scheme = Literal["linear_exact", "sdft_etd", "sdft_etdrk2"]
SCHEMES = ("linear_exact", "sdft_etd", "sdft_etdrk2")


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["Ef", "g", "dt"],
    meta_fields=["shape", "dx", "scheme", "walls"],
)
@dataclass(frozen=True)
class SdftConfig:
    """A driven electrolyte in a box. A pytree: ``Ef``, ``g`` and ``dt`` may be traced and mapped over.

    Attributes:
        shape: points along each axis, 1 to 3 axes; the field points along axis 0.
        dx: distance between points, in Debye lengths.
        Ef: field.
        g: plasma parameter ``kappa^d / (2 C0)``; above ``dx^d`` a cell holds no pair of ions.
        dt: time step, in Debye times. `linear_exact` is exact for every step.
        scheme: ``linear_exact``: the linear theory by exact Ornstein-Uhlenbeck steps. ``sdft_etd``: the
            whole theory by exponential Euler steps, multiplicative noise in the middle of the step.
            ``sdft_etdrk2``: its drift by ETDRK2 with the exact noise of the linear theory.
        walls: neutral walls at both ends of the last axis, half a cell from the outermost points.

    Raises:
        ValueError: an unknown scheme, numbers out of range, a step that a non-linear scheme does not follow,
            walls across the field.

    Example:
        >>> SdftConfig((8, 8), Ef=2.0).grid.shape
        (8, 8)
    """

    shape: tuple[int, ...]
    dx: float = 0.5
    Ef: ArrayLike = 0.0
    g: ArrayLike = 0.02
    dt: ArrayLike = 0.05
    scheme: Scheme = "sdft_etd"
    walls: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        if self.scheme not in SCHEMES:
            raise ValueError(f"scheme: expected one of {', '.join(SCHEMES)}, got {self.scheme!r}")
        if self.walls and len(self.shape) < 2:
            raise ValueError("walls: expected a box of 2 or 3 axes, whose last one is not the field's, got 1")
        require("Ef", self.Ef, -math.inf)
        require("g", self.g, 0)
        require("dt", self.dt, 0, open_low=True)
        grid = self.grid
        if self.scheme == "linear_exact" or not (known(self.g) and known(self.dt)):
            return
        g, dt = float(np.max(self.g)), float(np.max(self.dt))
        if g > grid.dx**grid.dimensions:
            raise ValueError(
                f"g: expected at most dx^d = {grid.dx**grid.dimensions:g}, a pair of ions in each cell, got"
                f" {self.g}: take larger cells, or scheme='linear_exact'"
            )
        longest = self.longest_step(g)
        if dt > longest:
            raise ValueError(
                f"dt: expected at most {longest:.3g}, above which {self.scheme} does not follow noise and"
                f" non-linear drift for g = {g:g} on cells of dx = {grid.dx:g}, got {self.dt}; linear_exact"
                f" takes any step"
            )

    @property
    def grid(self) -> SpectralGrid:
        """The periodic grid that is computed on; with walls it is twice the box."""
        twice = (*self.shape[:-1], 2 * self.shape[-1]) if self.walls else self.shape
        return SpectralGrid(twice, self.dx)

    def longest_step(self, g: float) -> float:
        """The step above which a non-linear scheme does not follow what the linear propagator leaves out.

        ``1 / (k_max E + (g / dx^d)^(1/2))``: drift in the fluctuating field, of variance
        ``E^2 = g int d^dk/(2 pi)^d / (k^2 + 1)``, across the shortest wave, and the density's own size. The
        noise in the middle of the steps of ``sdft_etd`` has ``x / sinh(x)`` of its variance, ``x = k^2 dt``:
        there also ``2 / k_max^2``.
        """
        k, d = self.grid.k_max, self.grid.dimensions
        integral = {
            1: math.atan(k) / math.pi,
            2: math.log1p(k * k) / (4 * math.pi),
            3: (k - math.atan(k)) / (2 * math.pi**2),
        }[d]
        drift = 1 / max(k * math.sqrt(g * integral) + math.sqrt(g / self.dx**d), 1e-30)
        return min(drift, 2 / k**2) if self.scheme == "sdft_etd" else drift


class SdftState(NamedTuple):
    """Half spectra (``rfftn``) of the densities; with walls, of their even continuation.

    Attributes:
        n: of ``(C+ + C-) / 2 C0 - 1``.
        q: of ``(C+ - C-) / 2 C0``.
    """

    n: Complex[Array, "*modes"]
    q: Complex[Array, "*modes"]


def sdft_init(key: PRNGKeyArray, cfg: SdftConfig, mesh: AnyMesh | None = None) -> SdftState:
    """A configuration drawn from the linear theory's stationary law.

    ``X = L z`` with ``L L^dagger = g S(k)`` and z the spectra of white noise on the grid

    Args:
        key: random key.
        cfg: the electrolyte.
        mesh: mesh whose axes together hold slabs of the grid (`sharded_rfftn`), or None.

    Returns:
        The state; for the same key it is the same on every mesh.

    Raises:
        ValueError: a grid that the mesh does not divide.

    Source:
        As `structure_factor`.

    Example:
        >>> sdft_init(jax.random.key(0), SdftConfig((8, 8))).n.shape
        (8, 5)
    """
    fft = transforms(cfg.grid, mesh)
    S = mode_structure_factor(fft.grid.k2(), fft.grid.wavenumber(0, derivative=True), cfg.Ef)
    moves = (fft.grid.k2() > 0) & (fft.grid.weights() > 0)
    factor = cholesky(type(S)(*(jnp.where(moves, x, 0) for x in S)), cfg.g)
    return SdftState(*factor(*_white(key, cfg, fft)))


def sdft_step(state: SdftState, key: PRNGKeyArray, cfg: SdftConfig, mesh: AnyMesh | None = None) -> SdftState:
    """One step of the chosen scheme.

    ``linear_exact``: ``X' = U X + L z``; ``sdft_etd``: ``X' = U(dt) X + U(dt/2) (dt N(X) + noise)``, 2/3 of
    the modes kept; ``sdft_etdrk2``: ``a = U X + p1 N(X)``, ``X' = a + p2 (N(a) - N(X)) + L z``, likewise.

    Args:
        state: before.
        key: random key of this step.
        cfg: the electrolyte.
        mesh: as in `sdft_init`.

    Returns:
        The state after ``cfg.dt``.

    Raises:
        ValueError: spectra of another grid, or a grid that the mesh does not divide.

    Source:
        S. M. Cox and P. C. Matthews, J. Comput. Phys. 176, 430 (2002), for the exponential integrators.

    Example:
        >>> cfg = SdftConfig((8, 8), Ef=1.0)
        >>> state = sdft_init(jax.random.key(0), cfg)
        >>> sdft_step(state, jax.random.key(1), cfg).q.shape
        (8, 5)
    """
    return _stepper(cfg, mesh)(state, key)


def sdft_run(
    key: PRNGKeyArray,
    cfg: SdftConfig,
    steps: int,
    *,
    observe: Callable[[SdftState], Any] | None = None,
    every: int = 1,
    state: SdftState | None = None,
    mesh: AnyMesh | None = None,
) -> tuple[SdftState, Any]:
    """A trajectory as one loop, what the steps have in common computed once.

    Args:
        key: random key; map over keys for replicas.
        cfg: the electrolyte; map over its field, g or step.
        steps: how many, a multiple of ``every``.
        observe: ``state -> tree of arrays``, after every so many steps.
        every: steps between observations.
        state: to begin with; None: `sdft_init`.
        mesh: as in `sdft_init`.

    Returns:
        The last state, and the observations stacked ``[steps // every, ...]``.

    Raises:
        ValueError: as `sdft_step`; steps that ``every`` does not divide.

    Source:
        As `sdft_step`.

    Example:
        >>> cfg = SdftConfig((8, 8), scheme="linear_exact", dt=1.0)
        >>> sdft_run(jax.random.key(0), cfg, 4, every=2, observe=lambda s: jnp.abs(s.n))[1].shape
        (2, 8, 5)
    """
    first, later = jax.random.split(key)
    start = sdft_init(first, cfg, mesh) if state is None else state
    return trajectory(_stepper(cfg, mesh), start, later, steps, every, observe)


def sdft_drift(
    n_hat: Complex[Array, "*modes"], q_hat: Complex[Array, "*modes"], grid: SpectralGrid
) -> tuple[Complex[Array, "*modes"], Complex[Array, "*modes"]]:
    """The non-linear drift, ``div(q grad phi)`` of n and ``div(n grad phi)`` of q, de-aliased.

    Args:
        n_hat: half spectrum of n.
        q_hat: half spectrum of q.
        grid: their grid.

    Returns:
        Half spectra of both.

    Raises:
        ValueError: spectra of another grid.

    Source:
        arXiv:2207.00467; the 2/3 rule on what is multiplied and on the products.

    Example:
        >>> grid = SpectralGrid((8, 8))
        >>> sdft_drift(jnp.zeros((8, 5), complex), jnp.zeros((8, 5), complex), grid)[0].shape
        (8, 5)
    """
    same_grid("n_hat", n_hat, grid)
    same_grid("q_hat", q_hat, grid)
    return _drift(transforms(grid))(n_hat, q_hat)


def density_fields(state: SdftState, cfg: SdftConfig) -> Float[Array, "two *shape"]:
    """N and q in space, between the walls where there are any.

    Args:
        state: the state, of one device.
        cfg: the electrolyte.

    Returns:
        Both, stacked.

    Raises:
        ValueError: spectra of another grid.

    Example:
        >>> cfg = SdftConfig((8, 6), walls=True)
        >>> density_fields(sdft_init(jax.random.key(0), cfg), cfg).shape
        (2, 8, 6)
    """
    same_grid("state", state.n, cfg.grid)
    return transforms(cfg.grid).inverse(jnp.stack(state))[..., : cfg.shape[-1]]


def electric_current(state: SdftState, cfg: SdftConfig) -> Float[Array, ""]:
    """The current along the field, ``J_x = Ef - <n d_x phi>``, averaged over the box.

    Args:
        state: the state.
        cfg: the electrolyte.

    Returns:
        A number; in the mean it is ``Ef (1 - g I_d(Ef))`` for small g (`conductivity_integral`).

    Raises:
        ValueError: spectra of another grid.

    Example:
        >>> cfg = SdftConfig((8, 8), Ef=1.0, g=0.0)
        >>> float(electric_current(sdft_init(jax.random.key(0), cfg), cfg))
        1.0
    """
    grid = cfg.grid
    same_grid("state", state.n, grid)
    slope = 1j * grid.wavenumber(0, derivative=True) * grid.inverse_k2() * state.q
    product = jnp.sum(grid.weights() * jnp.real(jnp.conj(state.n) * slope))
    return jnp.asarray(cfg.Ef) - product / math.prod(grid.shape) ** 2


def maxwell_wall_pressure(state: SdftState, cfg: SdftConfig) -> Float[Array, ""]:
    """Maxwell's stress on the walls of one configuration, averaged over both.

    ``P = (eps / 2) <E_par^2> = <(grad_par phi)^2> / (2 g)`` in units kBT kappa^d

    Args:
        state: the state of an electrolyte between walls.
        cfg: the electrolyte.

    Returns:
        A number; subtract the same of a run without field that shares its noise to get what
        `mode_sum_force` predicts.

    Raises:
        ValueError: an electrolyte without walls, spectra of another grid.

    Source:
        As `casimir_force`.

    Example:
        >>> cfg = SdftConfig((16, 8), walls=True)
        >>> bool(maxwell_wall_pressure(sdft_init(jax.random.key(0), cfg), cfg) > 0)
        True
    """
    if not cfg.walls:
        raise ValueError("cfg: expected walls=True, got an electrolyte without walls")
    grid = cfg.grid
    same_grid("state", state.q, grid)
    kz = grid.wavenumber(-1)
    # Half a cell before the first point the wave of every mode is at its crest.
    potential = grid.inverse_k2() * state.q * jnp.exp(-0.5j * grid.dx * kz)
    parallel: Any = sum(grid.wavenumber(axis, derivative=True) ** 2 for axis in range(grid.dimensions - 1))
    at_walls = jnp.stack(
        [
            jnp.sum(grid.weights() * sign * potential, -1)
            for sign in (1, jnp.cos(cfg.shape[-1] * grid.dx * kz))
        ]
    )
    squares = jnp.sum(parallel[..., 0] * jnp.abs(at_walls) ** 2) / 2
    return squares / (2 * jnp.asarray(cfg.g) * math.prod(grid.shape) ** 2)


def _white(key: PRNGKeyArray, cfg: SdftConfig, fft: Transforms) -> Complex[Array, "two *modes"]:
    """Spectra of two white noises of unit variance in each cell's volume."""
    drawn = _between_walls(key, cfg, fft, 2)
    return fft.forward(drawn) * fft.grid.dx ** (-fft.grid.dimensions / 2)


def _between_walls(key: PRNGKeyArray, cfg: SdftConfig, fft: Transforms, fields: int) -> Array:
    """Standard normal numbers, with walls continued evenly beyond them."""
    drawn = fft.normal(key, (fields, *cfg.shape))
    return jnp.concatenate([drawn, jnp.flip(drawn, -1)], -1) if cfg.walls else drawn


def _gradients(grid: SpectralGrid) -> list[Array]:
    return [1j * grid.wavenumber(axis, derivative=True) for axis in range(grid.dimensions)]


def _factors(fft: Transforms) -> Callable[[Array, Array], Array]:
    """n, q and the potential's slopes in space, of the kept modes."""
    kept, ik, poisson = fft.grid.kept(), _gradients(fft.grid), fft.grid.inverse_k2()

    def factors(n: Array, q: Array) -> Array:
        n, q = kept * n, kept * q
        return fft.inverse(jnp.stack([n, q, *(k * poisson * q for k in ik)]))

    return factors


def _divergences(fft: Transforms) -> Callable[[Array], tuple[Array, Array]]:
    """The divergences of two stacked vector fields, of the kept modes."""
    kept, ik = fft.grid.kept(), _gradients(fft.grid)

    def divergences(flux: Array) -> tuple[Array, Array]:
        spectra, d = fft.forward(flux), len(ik)
        first: Any = sum(k * spectra[axis] for axis, k in enumerate(ik))
        second: Any = sum(k * spectra[d + axis] for axis, k in enumerate(ik))
        return kept * first, kept * second

    return divergences


def _drift(fft: Transforms) -> Callable[[Array, Array], tuple[Array, Array]]:
    factors, divergences = _factors(fft), _divergences(fft)

    def drift(n: Array, q: Array) -> tuple[Array, Array]:
        fields = factors(n, q)
        slopes = fields[2:]
        return divergences(jnp.concatenate([fields[1] * slopes, fields[0] * slopes]))

    return drift


def _stepper(cfg: SdftConfig, mesh: AnyMesh | None) -> Callable[[SdftState, PRNGKeyArray], SdftState]:
    """A step whose operators are computed once."""
    fft = transforms(cfg.grid, mesh)
    grid = fft.grid
    mode = (grid.k2(), grid.wavenumber(0, derivative=True), cfg.Ef)
    if cfg.scheme == "sdft_etd":
        return _etd(cfg, fft, mode_propagator(*mode, cfg.dt), mode_propagator(*mode, jnp.asarray(cfg.dt) / 2))
    noise = mode_noise_factor(*mode, cfg.dt, cfg.g)

    if cfg.scheme == "linear_exact":
        U = mode_propagator(*mode, cfg.dt)

        def linear(state: SdftState, key: PRNGKeyArray) -> SdftState:
            same_grid("state", state.n, grid)
            n, q = U(*state)
            dn, dq = noise(*_white(key, cfg, fft))
            return SdftState(n + dn, q + dq)

        return linear

    drift, kept = _drift(fft), grid.kept()
    U, p1, p2 = mode_step_matrices(*mode, cfg.dt)

    def etdrk2(state: SdftState, key: PRNGKeyArray) -> SdftState:
        same_grid("state", state.n, grid)
        n, q = U(*state)
        now = drift(*state)
        dn, dq = p1(*now)
        n, q = n + dn, q + dq
        then = drift(n, q)
        dn, dq = p2(then[0] - now[0], then[1] - now[1])
        zn, zq = noise(*_white(key, cfg, fft))
        return SdftState(kept * (n + dn + zn), kept * (q + dq + zq))

    return etdrk2


def _etd(
    cfg: SdftConfig, fft: Transforms, U: ModeMatrix, half: ModeMatrix
) -> Callable[[SdftState, PRNGKeyArray], SdftState]:
    grid, factors, divergences = fft.grid, _factors(fft), _divergences(fft)
    d, kept = grid.dimensions, grid.kept()
    dt = jnp.asarray(cfg.dt, jnp.result_type(float))
    size = jnp.sqrt(cfg.g * dt / grid.dx**d)

    def step(state: SdftState, key: PRNGKeyArray) -> SdftState:
        same_grid("state", state.n, grid)
        fields = factors(*state)
        n, q, slopes = fields[0], fields[1], fields[2:]
        eta = _between_walls(key, cfg, fft, 2 * d)
        if cfg.walls:  # across the walls a current changes its sign
            beyond = jnp.where(jnp.arange(grid.shape[-1]) < cfg.shape[-1], 1.0, -1.0)
            eta = eta.at[jnp.array([d - 1, 2 * d - 1])].multiply(beyond)
        plus = size * jnp.sqrt(jnp.maximum(1 + n + q, 0)) * eta[:d]
        minus = size * jnp.sqrt(jnp.maximum(1 + n - q, 0)) * eta[d:]
        flux = jnp.concatenate([dt * q * slopes + plus + minus, dt * n * slopes + plus - minus])
        dn, dq = half(*divergences(flux))
        n_hat, q_hat = U(kept * state.n, kept * state.q)
        return SdftState(n_hat + dn, q_hat + dq)

    return step
