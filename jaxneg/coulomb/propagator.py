"""The linear theory of a driven electrolyte in time: propagator, exact noise, quench.

A mode obeys ``d(n, q)/dt = -M (n, q) + noise`` with ``M = [[a, i G], [i G, b]]``, ``a = k^2``,
``b = k^2 + w``, ``G = Ef k_x``, and a noise of covariance rate ``2 g k^2``. Every function of M has the form
``[[u, -i x], [-i x, v]]`` with real u, v and x, here a `ModeMatrix`; every covariance the form
``[[A, i c], [-i c, B]]``, a `StructureFactor`. Units and source as in `structure_factor`.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Complex, Float

from jaxneg.coulomb.arguments import real_array, require
from jaxneg.coulomb.structure_factor import StructureFactor, mode_structure_factor

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(6)
_SMALL = 0.5
"""Times below which, over the fastest rate of a mode, integrals of the propagator are summed directly: their
closed forms are differences of nearly equal numbers there."""


class ModeMatrix(NamedTuple):
    """A function of M, ``[[nn, -i nq], [-i nq, qq]]``."""

    nn: Float[Array, "..."]
    qq: Float[Array, "..."]
    nq: Float[Array, "..."]

    def __call__(self, n: Array, q: Array) -> tuple[Array, Array]:
        """The matrix times (n, q)."""
        return self.nn * n - 1j * self.nq * q, self.qq * q - 1j * self.nq * n

    def congruence(self, S: StructureFactor) -> StructureFactor:
        """``U S U^dagger``."""
        A, B, c = S
        u, v, x = self
        return StructureFactor(
            u * u * A - 2 * u * x * c + x * x * B,
            x * x * A + 2 * v * x * c + v * v * B,
            u * x * A + (u * v - x * x) * c - v * x * B,
        )


class NoiseFactor(NamedTuple):
    """A lower Cholesky factor ``[[nn, 0], [-i qn, qq]]``."""

    nn: Float[Array, "..."]
    qq: Float[Array, "..."]
    qn: Float[Array, "..."]

    def __call__(self, first: Array, second: Array) -> tuple[Array, Array]:
        """The factor times two independent spectra."""
        return self.nn * first, self.qq * second - 1j * self.qn * first


class StepMatrices(NamedTuple):
    """What exponential integrators need: ``U``, ``p1 = int_0^t U`` and ``p2 = int_0^t s U(t-s)/t``."""

    U: ModeMatrix
    p1: ModeMatrix
    p2: ModeMatrix


def propagator(
    k2: ArrayLike, kx: ArrayLike, Ef: ArrayLike, t: ArrayLike, screening: ArrayLike = 1.0
) -> Complex[Array, "*batch 2 2"]:
    """What becomes of a mode (n, q) in the mean.

    ``exp(-M t) = e^{-m t} [cosh(w0 t) 1 - sinh(w0 t)/w0 (M - m)]``, ``m = (a + b)/2``,
    ``w0^2 = w^2/4 - G^2``: charges and density relax for a weak field, and oscillate where ``|G| > w/2``.

    Args:
        k2: squared wavenumber.
        kx: component along the field.
        Ef: field.
        t: time, 0 or more.
        screening: ``w(k)``, as in `structure_factor`.

    Returns:
        A complex matrix for each mode.

    Raises:
        TypeError: complex arguments.
        ValueError: a negative time.

    Source:
        arXiv:2104.14498, derived as `structure_factor` says.

    Example:
        >>> propagator(1.0, 0.0, 3.0, 0.0).real.tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    return _as_matrix(*_matrix_rows(mode_propagator(k2, kx, Ef, t, screening)))


def ou_noise_factor(
    k2: ArrayLike,
    kx: ArrayLike,
    Ef: ArrayLike,
    t: ArrayLike,
    g: ArrayLike = 1.0,
    screening: ArrayLike = 1.0,
) -> Complex[Array, "*batch 2 2"]:
    """The factor of the noise that an exact Ornstein-Uhlenbeck step adds.

    ``L L^dagger = g (S - U S U^dagger)``, so that ``X' = U X + L z`` for independent unit spectra z has the
    law of the process at time t, whatever t is.

    Args:
        k2: squared wavenumber.
        kx: component along the field.
        Ef: field.
        t: time step, 0 or more.
        g: plasma parameter.
        screening: ``w(k)``, as in `structure_factor`.

    Returns:
        A lower triangular complex matrix for each mode; 0 for k = 0.

    Raises:
        TypeError: complex arguments.
        ValueError: a negative time or g.

    Source:
        As `propagator`; D. T. Gillespie, Phys. Rev. E 54, 2084 (1996), for the exact step.

    Example:
        >>> L = ou_noise_factor(1.0, 0.5, 1.0, 0.1)
        >>> float(abs(L[0, 1])), bool(jnp.all(jnp.diag(L).real > 0))
        (0.0, True)
    """
    require("g", g, 0)
    factor = mode_noise_factor(k2, kx, Ef, t, g, screening)
    return _as_matrix((factor.nn, 0 * factor.nn), (-1j * factor.qn, factor.qq))


def quench_structure_factor(
    k2: ArrayLike, kx: ArrayLike, Ef: ArrayLike, t: ArrayLike, screening: ArrayLike = 1.0
) -> Complex[Array, "*batch 2 2"]:
    """Correlations at time t after the field is switched on in equilibrium.

    ``S(t) = S + U (S_eq - S) U^dagger``, ``S_eq = diag(1, k^2 / (k^2 + w))``

    Args:
        k2: squared wavenumber.
        kx: component along the field.
        Ef: field after the quench.
        t: time since then, 0 or more.
        screening: ``w(k)``, as in `structure_factor`.

    Returns:
        A Hermitian matrix ``[[<n n*>, <n q*>], [<q n*>, <q q*>]] / g`` for each mode.

    Raises:
        TypeError: complex arguments.
        ValueError: a negative time.

    Source:
        arXiv:2104.14498, derived as `structure_factor` says.

    Example:
        >>> quench_structure_factor(1.0, 1.0, 2.0, 0.0).real.tolist()
        [[1.0, 0.0], [0.0, 0.5]]
    """
    S = mode_quench(k2, kx, Ef, t, screening)
    return _as_matrix((S.s_nn, 1j * S.s_nq_imag), (-1j * S.s_nq_imag, S.s_qq))


def mode_propagator(
    k2: ArrayLike, kx: ArrayLike, Ef: ArrayLike, t: ArrayLike, screening: ArrayLike = 1.0
) -> ModeMatrix:
    """`propagator` as the three real numbers that an integrator multiplies with."""
    require("t", t, 0)
    a, w, G, t = _mode(k2, kx, Ef, t, screening)
    m, G2 = a + w / 2, G * G
    D = w * w / 4 - G2  # w0^2
    x = D * t * t
    near = jnp.abs(x) < 0.05
    safe = jnp.where(near, 1.0, D)
    root = jnp.sqrt(jnp.abs(safe))
    # Slowly decaying exponent first: m - w0 = (m^2 - w0^2) / (m + w0) keeps its digits at small k.
    slow = (a * (a + w) + G2) / (m + root)
    decay = jnp.exp(-jnp.where(safe > 0, slow, m) * t)
    over = jnp.where(safe > 0, 2 * root * t, 0.0)
    cosh = jnp.where(safe > 0, decay * (1 + jnp.exp(-over)) / 2, decay * jnp.cos(root * t))
    sinh = jnp.where(safe > 0, -decay * jnp.expm1(-over) / (2 * root), decay * jnp.sin(root * t) / root)
    y = jnp.where(near, x, 0.0)
    fall = jnp.exp(-m * t)
    cosh_near = 1 + y / 2 * (1 + y / 12 * (1 + y / 30 * (1 + y / 56 * (1 + y / 90))))
    sinh_near = 1 + y / 6 * (1 + y / 20 * (1 + y / 42 * (1 + y / 72 * (1 + y / 110))))
    cosh = jnp.where(near, fall * cosh_near, cosh)
    sinh = jnp.where(near, fall * t * sinh_near, sinh)
    return ModeMatrix(cosh + w / 2 * sinh, cosh - w / 2 * sinh, G * sinh)


def mode_quench(
    k2: ArrayLike, kx: ArrayLike, Ef: ArrayLike, t: ArrayLike, screening: ArrayLike = 1.0
) -> StructureFactor:
    """`quench_structure_factor` as real numbers."""
    S = mode_structure_factor(k2, kx, Ef, screening)
    rest = quench_transient(k2, kx, Ef, t, screening)
    return StructureFactor(*(x + y for x, y in zip(S, rest, strict=True)))


def quench_transient(
    k2: ArrayLike, kx: ArrayLike, Ef: ArrayLike, t: ArrayLike, screening: ArrayLike = 1.0
) -> StructureFactor:
    """What of `mode_quench` has yet to decay, ``U (S_eq - S) U^dagger``, to its last digit."""
    a, w, G, _ = _mode(k2, kx, Ef, t, screening)
    moves = a > 0
    a = jnp.where(moves, a, 1)
    b, G2 = a + w, G * G
    inner = (a + b) * (a * b + G2)
    excess = G2 * w / inner
    gap = StructureFactor(excess, -a / b * excess, -a * G * w / inner)
    gap = StructureFactor(*(jnp.where(moves, x, 0) for x in gap))
    return mode_propagator(k2, kx, Ef, t, screening).congruence(gap)


def mode_noise_factor(
    k2: ArrayLike,
    kx: ArrayLike,
    Ef: ArrayLike,
    t: ArrayLike,
    g: ArrayLike = 1.0,
    screening: ArrayLike = 1.0,
) -> NoiseFactor:
    """`ou_noise_factor` as real numbers."""
    U = mode_propagator(k2, kx, Ef, t, screening)
    S = mode_structure_factor(k2, kx, Ef, screening)
    left = U.congruence(S)
    a, w, G, t = _mode(k2, kx, Ef, t, screening)

    def rate(s: Array) -> tuple[Array, Array, Array]:  # 2 k^2 U U^dagger
        u, v, x = mode_propagator(k2, kx, Ef, s, screening)
        return 2 * a * (u * u + x * x), 2 * a * (v * v + x * x), 2 * a * x * (u - v)

    early = _early_integral(rate, t, U.nn.ndim)
    slow = _is_slow(a, w, G, t)
    nn, qq, c = (jnp.where(slow, near, full - part) for near, full, part in zip(early, S, left, strict=True))
    return cholesky(StructureFactor(*(jnp.where(a > 0, x, 0) for x in (nn, qq, c))), g)


def cholesky(covariance: StructureFactor, g: ArrayLike = 1.0) -> NoiseFactor:
    """The lower Cholesky factor of ``g`` times a covariance; 0 where that is 0."""
    nn, qq, c = covariance
    some = nn > 0
    root = jnp.sqrt(jnp.where(some, nn, 1))
    below = jnp.where(some, c / root, 0)
    rest = qq - below * below
    positive = rest > 0
    scale = jnp.sqrt(real_array("g", g))
    return NoiseFactor(
        scale * jnp.where(some, root, 0),
        scale * jnp.where(positive, jnp.sqrt(jnp.where(positive, rest, 1)), 0),
        scale * below,
    )


def mode_step_matrices(
    k2: ArrayLike, kx: ArrayLike, Ef: ArrayLike, t: ArrayLike, screening: ArrayLike = 1.0
) -> StepMatrices:
    """The matrices of ETDRK2 for the whole linear part, after Cox and Matthews (2002)."""
    U = mode_propagator(k2, kx, Ef, t, screening)
    a, w, G, t = _mode(k2, kx, Ef, t, screening)
    slow = _is_slow(a, w, G, t)
    b = a + w
    determinant = a * b + G * G
    determinant = jnp.where(slow | (determinant == 0), 1, determinant)

    def solved(u: Array, v: Array, x: Array) -> tuple[Array, Array, Array]:  # M^-1 [[u, -i x], [-i x, v]]
        inverse = b / determinant, a / determinant, G / determinant
        # M^-1 = [[b, -i G], [-i G, a]] / det, and both are functions of M.
        return (
            inverse[0] * u - inverse[2] * x,
            inverse[1] * v - inverse[2] * x,
            inverse[0] * x + inverse[2] * v,
        )

    def early_p2(s: Array) -> tuple[Array, Array, Array]:
        u, v, x = mode_propagator(k2, kx, Ef, s, screening)
        weight = 1 - s / t
        return weight * u, weight * v, weight * x

    late1 = solved(1 - U.nn, 1 - U.qq, -U.nq)
    late2 = solved(1 - late1[0] / t, 1 - late1[1] / t, -late1[2] / t)
    early1 = _early_integral(lambda s: mode_propagator(k2, kx, Ef, s, screening), t, U.nn.ndim)
    early2 = _early_integral(early_p2, t, U.nn.ndim)
    p1 = ModeMatrix(*(jnp.where(slow, x, y) for x, y in zip(early1, late1, strict=True)))
    p2 = ModeMatrix(*(jnp.where(slow, x, y) for x, y in zip(early2, late2, strict=True)))
    return StepMatrices(U, p1, p2)


def _mode(k2: ArrayLike, kx: ArrayLike, Ef: ArrayLike, t: ArrayLike, screening: ArrayLike) -> list[Array]:
    """``a``, ``w``, ``G`` and the time."""
    a, w, t = real_array("k2", k2), real_array("screening", screening), real_array("t", t)
    return [a, w, real_array("Ef", Ef) * real_array("kx", kx), t]


def _is_slow(a: Array, w: Array, G: Array, t: Array) -> Array:
    return (a + w / 2 + jnp.sqrt(jnp.abs(w * w / 4 - G * G))) * t <= _SMALL


def _early_integral(function: Callable[[Array], Iterable[Array]], t: Array, axes: int) -> list[Array]:
    """``int_0^t`` of functions of the time that hardly change within it, by Gauss and Legendre.

    The nodes lie on a leading axis before the ``axes`` of what the functions return.
    """
    shape = (-1, *[1] * axes)
    times = t * jnp.asarray((_NODES + 1) / 2, t.dtype).reshape(shape)
    weights = t * jnp.asarray(_WEIGHTS / 2, t.dtype).reshape(shape)
    return [jnp.sum(weights * values, 0) for values in function(times)]


def _matrix_rows(U: ModeMatrix) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    return (U.nn, -1j * U.nq), (-1j * U.nq, U.qq)


def _as_matrix(*rows: tuple[Array, Array]) -> Complex[Array, "*batch 2 2"]:
    entries = jnp.broadcast_arrays(*(1j * 0 + entry for row in rows for entry in row))
    return jnp.stack(entries, -1).reshape(*entries[0].shape, 2, 2)
