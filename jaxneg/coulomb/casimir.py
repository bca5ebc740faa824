"""The fluctuation-induced force between neutral walls in a driven electrolyte.

Walls at z = 0 and z = H along the field, through which no ions flow and where d_z phi = 0: the modes are
cosines with ``p_n = n pi / H``, each evolves as in the bulk with ``k^2 = k_par^2 + p_n^2``, and Maxwell's
stress is a pressure ``(eps / 2) <E_par^2>`` on them. Units kBT kappa^d, in which the plasma parameter drops
out; source and other units as in `structure_factor`. That paper's abstract says the force can have either
sign; with these walls and this stress it is repulsive at every field, as in Du et al., arXiv:2404.06028.
"""

import math

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import zeta
from jaxtyping import Array, ArrayLike, Float

from jaxneg.coulomb.arguments import dimension, real_array, require, whole
from jaxneg.coulomb.propagator import quench_transient

_HALF_NODES, _HALF_WEIGHTS = np.polynomial.legendre.leggauss(8)
_GREGORY = (1 / 12, -1 / 24, 19 / 720, -3 / 160, 863 / 60480, -275 / 24192, 33953 / 3628800)
"""Gregory's end corrections of the trapezoidal rule, by forward differences of order 1 to 7."""


def casimir_amplitude(Ef: ArrayLike, d: int) -> Float[Array, "..."]:
    """The universal amplitude of the force between walls far apart, ``F = (kBT / H^d) A_d``.

    ``A_d = S_(d-1) Gamma(d) zeta(d) / [(2 pi)^(d-1) 2^d] {1 - s^(-1/2) [(d - 2) + 1/s] / (d - 1)}`` with
    ``s = 1 + Ef^2`` and ``S_m = 2 pi^(m/2) / Gamma(m/2)``: for d = 2, ``(pi / 24) (1 - s^(-3/2))``.

    Args:
        Ef: field.
        d: space dimensions, 2 or more.

    Returns:
        A_d, positive (repulsion) for every field, of the shape of Ef.

    Raises:
        ValueError: d below 2.

    Source:
        arXiv:2011.12821, derived as the module says.

    Example:
        >>> round(float(casimir_amplitude(1.0, 2)), 4)
        0.0846
    """
    whole("d", d, 2)
    Ef = real_array("Ef", Ef)
    scale = _sphere(d - 1) * math.gamma(d) / ((2 * math.pi) ** (d - 1) * 2**d)
    log_s = jnp.log1p(Ef * Ef)
    # 1 - s^(-1/2) and 1 - s^(-3/2) keep their digits in a weak field so.
    gap = ((d - 2) * -jnp.expm1(-log_s / 2) - jnp.expm1(-1.5 * log_s)) / (d - 1)
    return scale * zeta(jnp.asarray(d, gap.dtype), 1.0) * gap


def casimir_force(
    H: ArrayLike, Ef: ArrayLike, d: int, quad: int = 96, angles: int = 64
) -> Float[Array, "..."]:
    """The force between walls at any distance, per area, what the walls feel far apart subtracted.

    ``F(H) = 1/2 int d^(d-1)k / (2 pi)^(d-1) sum_j (R_j / A_j) 2 / (e^(2 H A_j) - 1)`` over the poles u_j of
    ``(k_par^2 / k^4) (s_qq(Ef) - s_qq(0))`` in ``u = k^2``, where ``A_j = (k_par^2 - u_j)^(1/2)``. The
    equilibrium part, which the thermal van der Waals force cancels, is left out.

    Args:
        H: distance of the walls, in Debye lengths.
        Ef: field, broadcasting with H.
        d: space dimensions, 2 or more.
        quad: nodes of the integral over ``|k_par|``.
        angles: nodes over a quarter turn of k_par from d = 3 on; take more for fields above 20.

    Returns:
        F in units kBT kappa^d, positive for repulsion; in float64 where jax_enable_x64 is set.

    Raises:
        TypeError: complex arguments.
        ValueError: a distance that is not positive, d below 2, too few nodes.

    Source:
        arXiv:2011.12821, derived as the module says.

    Example:
        >>> round(float(casimir_force(20.0, 1.0, 2)) * 20.0**2, 4)
        0.0845
    """
    whole("d", d, 2)
    whole("quad", quad, 16)
    whole("angles", angles, 2)
    require("H", H, 0, open_low=True)
    H, Ef = jnp.broadcast_arrays(real_array("H", H), real_array("Ef", Ef))
    # k = exp(tau - exp(-tau)) / 2H reaches every scale, and falls off twice exponentially at both ends.
    low, high = -3.5 if H.dtype == jnp.float64 else -2.7, 4.0  # squares of float32 end at 1e-38
    step = (high - low) / (quad - 1)
    tau = low + step * np.arange(quad)
    k_over = jnp.asarray(np.exp(tau - np.exp(-tau)) / 2, H.dtype)
    dlog = jnp.asarray(step * (1 + np.exp(-tau)), H.dtype)
    cosines, weights = (jnp.asarray(x, H.dtype) for x in _cosines(d, angles))
    k = k_over[:, None] / H[..., None, None]
    summed = _pole_sum(k, Ef[..., None, None] * k * cosines, H[..., None, None])
    integrand = jnp.sum(weights * summed, -1) * k[..., 0] ** (d + 1) * dlog
    return 0.5 * _sphere(d - 1) / (2 * math.pi) ** (d - 1) * jnp.sum(integrand, -1)


def casimir_force_quench(
    t: ArrayLike, H: ArrayLike, Ef: ArrayLike, *, quad: int = 400
) -> Float[Array, "..."]:
    """The force at time t after the field is switched on in equilibrium, in two dimensions.

    As `casimir_force`, with the charges' structure factor at time t: `casimir_force` and `quench_excess`.

    Args:
        t: time since the quench, positive.
        H: distance of the walls.
        Ef: field after the quench; the three broadcast.
        quad: as in `quench_excess`.

    Returns:
        F(t) in units kBT kappa^2. It overshoots F, and comes back to it as ``t^(-1/2)``.

    Raises:
        TypeError: complex arguments.
        ValueError: a time or distance that is not positive, too few nodes.

    Source:
        arXiv:2104.14498, derived as the module says.

    Example:
        >>> bool(casimir_force_quench(50.0, 5.0, 1.0) > casimir_force(5.0, 1.0, 2))
        True
    """
    return casimir_force(H, Ef, 2) + quench_excess(t, H, Ef, quad=quad)


def quench_excess(t: ArrayLike, H: ArrayLike, Ef: ArrayLike, *, quad: int = 400) -> Float[Array, "..."]:
    """By how much the force after a quench differs from the stationary one, in two dimensions.

    ``1/2 {(1/H) sum_n - int dp/pi} int dk/(2 pi) (k^2 / (k^2 + p^2)^2) [U (S_eq - S) U^dagger]_qq``. Beyond
    the 24th mode the sum differs from the integral by end corrections alone (Gregory's), so that neither is
    carried on to infinity. For ``t >> H^2`` it is ``Ef^4 / [4 s H (2 pi s t)^(1/2)]``, ``s = 1 + Ef^2``.

    Args:
        t: time since the quench, positive.
        H: distance of the walls.
        Ef: field after the quench; the three broadcast.
        quad: nodes of the integral over k; half as many are taken for p.

    Returns:
        F(t) - F in units kBT kappa^2. Take float64: it is a small difference.

    Raises:
        TypeError: complex arguments.
        ValueError: a time or distance that is not positive, too few nodes.

    Source:
        arXiv:2104.14498, derived as the module says.

    Example:
        >>> bool(quench_excess(50.0, 5.0, 1.0) > 0)
        True
    """
    whole("quad", quad, 64)
    require("t", t, 0, open_low=True)
    require("H", H, 0, open_low=True)
    t, H, Ef = jnp.broadcast_arrays(*(real_array(n, v) for n, v in (("t", t), ("H", H), ("Ef", Ef))))
    whole_modes, further = 24, len(_GREGORY)
    p_modes = math.pi / H[..., None] * jnp.arange(whole_modes + further + 1)

    lowest = 1e-13 * jnp.minimum(1 / jnp.sqrt(t), 1 / H)
    log_step = jnp.log(1e3 / lowest) / (quad - 1)
    k = lowest[..., None] * jnp.exp(log_step[..., None] * jnp.arange(quad))
    dk = k * log_step[..., None]

    def over_k(p: Array) -> Array:
        k2 = k[..., None, :] ** 2 + p[..., None] ** 2
        qq = quench_transient(k2, k[..., None, :], Ef[..., None, None], t[..., None, None]).s_qq
        return jnp.sum(k[..., None, :] ** 2 / k2 * (qq / k2) * dk[..., None, :], -1) / math.pi

    # p = p_N / (1 + exp(-pi sinh tau)), as the tanh rule of Takahasi and Mori has it.
    tau = np.linspace(-3.4, 3.4, quad // 2)
    share = 1 / (1 + np.exp(-np.pi * np.sinh(tau)))
    weight = (tau[1] - tau[0]) * np.pi * np.cosh(tau) * share / (1 + np.exp(np.pi * np.sinh(tau)))
    end = p_modes[..., whole_modes, None]
    of_modes = over_k(p_modes)
    integral = jnp.sum(over_k(end * jnp.asarray(share, H.dtype)) * jnp.asarray(weight, H.dtype), -1)
    trapezoid = of_modes[..., : whole_modes + 1].sum(-1) - (of_modes[..., 0] + of_modes[..., whole_modes]) / 2
    differences, corrections = of_modes[..., whole_modes:], 0
    for coefficient in _GREGORY:
        differences = jnp.diff(differences, axis=-1)
        corrections += coefficient * differences[..., 0]
    return (trapezoid - corrections) / H - integral * end[..., 0] / math.pi


def wall_pressure(Ef: ArrayLike, d: int, quad: int = 64) -> Float[Array, "..."]:
    """The pressure on a single wall, which `casimir_force` subtracts.

    ``P(inf) = 1/2 int d^(d-1)k/(2 pi)^(d-1) int dp/pi (k_par^2 / k^4) (s_qq(Ef) - s_qq(0))``: twice what the
    stress is in the bulk.

    Args:
        Ef: field.
        d: space dimensions, 2 or 3.
        quad: nodes of each integral.

    Returns:
        P in units kBT kappa^d, of the shape of Ef.

    Raises:
        ValueError: another d, too few nodes.

    Source:
        arXiv:2011.12821, derived as the module says.

    Example:
        >>> round(float(wall_pressure(1.0, 2)), 5)
        0.00743
    """
    dimension(d, (2, 3))
    whole("quad", quad, 8)
    Ef = real_array("Ef", Ef)
    # k = u / (1 - u) turns the radius into (0, 1); everything is even in the cosines of the direction.
    node, weight = (np.asarray(x) for x in np.polynomial.legendre.leggauss(quad))
    u, du = (node + 1) / 2, weight / 2
    k, dk = u / (1 - u), du / (1 - u) ** 2
    turn = np.pi / 2 * (np.arange(quad) + 0.5) / quad
    if d == 2:
        x, par = np.cos(turn), np.cos(turn) ** 2
        solid = np.full(quad, 2 * np.pi / quad)
    else:  # cos(theta) to the walls' normal, and the angle between k_par and the field
        cos, dcos = u[:, None], du[:, None]
        par = np.broadcast_to(1 - cos**2, (quad, quad)).ravel()
        x = (np.sqrt(1 - cos**2) * np.cos(turn)).ravel()
        solid = np.broadcast_to(2 * dcos * 2 * np.pi / quad, (quad, quad)).ravel()
    x, par, solid, k, dk = (jnp.asarray(v, Ef.dtype) for v in (x, par, solid, k, dk))
    E2x2 = (Ef[..., None] * x) ** 2
    k2 = (k * k)[:, None]
    radial = jnp.sum(
        (k ** (d - 1) * dk / ((k * k + 1) * (2 * k * k + 1)))[:, None] / (k2 + 1 + E2x2[..., None, :]), -2
    )
    return jnp.sum(solid * par * E2x2 * radial, -1) / ((2 * math.pi) ** (d - 1) * 2 * math.pi)


def mode_sum_force(
    s_ex: Float[Array, "*batch modes_x modes_z"], H: ArrayLike, Lx: ArrayLike
) -> Float[Array, "*batch"]:
    """The wall pressure of a finite box in two dimensions, mode by mode.

    ``P = 1/2 (1 / (H L_x)) sum_(k_x) sum_(n in Z) (k_x^2 / k^4) s_ex``, ``k_x = +-2 pi m / L_x``,
    ``p_n = n pi / H``

    Args:
        s_ex: the charges' structure factor less that without field, or its estimate from one configuration
            or the difference of two that share their noise; ``m = 1, 2, ...`` and ``n = 0, 1, ...``.
        H: distance of the walls.
        Lx: length of the box along the field.

    Returns:
        P (without P(inf) subtracted) in units kBT kappa^2.

    Raises:
        TypeError: complex arguments.
        ValueError: an array without both axes, lengths that are not positive.

    Source:
        arXiv:2011.12821, derived as the module says.

    Example:
        >>> float(mode_sum_force(jnp.zeros((3, 4)), 2.0, 50.0))
        0.0
    """
    require("H", H, 0, open_low=True)
    require("Lx", Lx, 0, open_low=True)
    s_ex = real_array("s_ex", s_ex)
    if s_ex.ndim < 2 or 0 in s_ex.shape[-2:]:
        raise ValueError(
            f"s_ex: expected one number for each m = 1, 2, ... and n = 0, 1, ..., [..., modes_x, modes_z],"
            f" got shape {s_ex.shape}"
        )
    H, Lx = real_array("H", H), real_array("Lx", Lx)
    kx = 2 * math.pi / Lx[..., None, None] * jnp.arange(1, s_ex.shape[-2] + 1)[:, None]
    n = jnp.arange(s_ex.shape[-1])
    k2 = kx * kx + (math.pi / H[..., None, None] * n) ** 2
    both_signs = 2 * jnp.where(n == 0, 1, 2)
    return 0.5 * jnp.sum(both_signs * (kx / k2) ** 2 * s_ex, (-2, -1)) / (H * Lx)


def _sphere(m: int) -> float:
    """The area of the unit sphere in m dimensions."""
    return 2 * math.pi ** (m / 2) / math.gamma(m / 2)


def _cosines(d: int, angles: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of the mean over directions of k_par, in its cosine c with the field.

    By Gauss and Gegenbauer, weight ``(1 - c^2)^((d - 4) / 2)``: positive nodes of the even rule alone.
    """
    if d == 2:
        return np.ones(1), np.ones(1)
    n, order = np.arange(1, 2 * angles), (d - 3) / 2
    if order == 0:
        squared = np.where(n == 1, 0.5, 0.25)
    else:
        squared = n * (n + 2 * order - 1) / (4 * (n + order) * (n + order - 1))
    values, vectors = np.linalg.eigh(np.diag(np.sqrt(squared), 1) + np.diag(np.sqrt(squared), -1))
    return values[angles:], 2 * vectors[0, angles:] ** 2


def _occupation(v: Array, H: Array) -> Array:
    """``psi(v) = (1 / A) 2 / (e^(2 H A) - 1)`` with ``A = v^(1/2)``."""
    A = jnp.sqrt(v)
    return 2 * jnp.exp(-2 * H * A) / (-jnp.expm1(-2 * H * A) * A)


def _occupation_curvature(v: Array, H: Array) -> Array:
    """``psi''(v)``."""
    A = jnp.sqrt(v)
    n = jnp.exp(-2 * H * A) / -jnp.expm1(-2 * H * A)
    n1 = -2 * H * n * (1 + n)
    n2 = 4 * H * H * n * (1 + n) * (1 + 2 * n)
    first = 2 * (n1 - n / A) / A
    second = 2 * (n2 - 2 * n1 / A + 2 * n / (A * A)) / A
    return (second - first / A) / (4 * v)


def _pole_sum(k: Array, G: Array, H: Array) -> Array:
    """``sum_j (R_j / k_par^2) psi(k_par^2 - u_j)`` over the five poles, real.

    They are 0, -1, -1/2 and ``-1/2 +- w0``, ``w0^2 = 1/4 - G^2``, with residues 1, 1, ``1/(2 w0^2) - 2`` and
    twice ``-1/(4 w0^2)`` in units of k_par^2: together a second difference of psi over w0^2, which near
    ``w0 = 0`` is taken as an integral of psi''.
    """
    complex_type = jnp.result_type(k, 1j)
    k2, G2 = k * k, G * G
    W = 0.25 - G2
    near = jnp.abs(W) < 0.01
    tiny = jnp.finfo(k.dtype).eps
    w0 = jnp.sqrt((W + jnp.where(jnp.abs(W) < tiny, 2 * tiny, 0)).astype(complex_type))
    middle = k2 + 0.5
    # On a leading axis, not one by one: a program of five times the size compiles for minutes.
    # 1/2 - w0 = G^2 / (1/2 + w0) keeps its digits in a weak field.
    places = jnp.stack(jnp.broadcast_arrays(k2 + G2 / (0.5 + w0), middle + w0, k2 + 0j, k2 + 1, middle))
    low, high, at_zero, at_one, at_middle = jnp.real(_occupation(places, H))
    far = (low + high - 2 * at_middle) / jnp.where(near, 1, W)
    node = jnp.asarray(np.concatenate([_HALF_NODES + 1, -_HALF_NODES - 1]) / 2, k.dtype)
    share = jnp.asarray(np.tile(_HALF_WEIGHTS * (1 - _HALF_NODES) / 4, 2), k.dtype)
    inner = jnp.where(near, w0, 0)
    curvature = jnp.real(_occupation_curvature(middle + jnp.multiply.outer(node, inner), H))
    second_difference = jnp.where(near, jnp.tensordot(share, curvature, 1), far)
    return at_zero + at_one - 2 * at_middle - second_difference / 4
