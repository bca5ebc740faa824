"""Correlations of a driven electrolyte in space: tails that fall with a power of the distance.

Units, field and source as in `structure_factor`. In equilibrium correlations die beyond the Debye length;
a field leaves ``<nn> ~ r^-d``, positive along it and negative across it.
"""

import math
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from jaxneg.coulomb.arguments import real_array, require, whole
from jaxneg.coulomb.grid import SpectralGrid
from jaxneg.coulomb.structure_factor import StructureFactor, mode_structure_factor


def real_space_tail(
    x: ArrayLike, rperp: ArrayLike, Ef: ArrayLike, d: int, field: Literal["nn", "qq"] = "nn"
) -> Float[Array, "..."]:
    """Correlations far away, for ``r >> 1 + Ef``.

    With ``s = 1 + Ef^2`` and ``R^2 = r_perp^2 + x^2 / s``:
    ``<nn> = g Ef^2 Gamma(d/2) / (2 pi^(d/2) s^(3/2)) [(d - 1) x^2 / s - r_perp^2] / R^(d + 2)``;
    ``<qq> = -g Ef^4 d_x^4 [Gamma(d/2 - 1) R^(2 - d) / (4 pi^(d/2) s^(1/2))]``, which falls as ``r^-(d + 2)``.

    Args:
        x: distance along the field, in Debye lengths.
        rperp: distance across it.
        Ef: field.
        d: space dimensions, 2 or more.
        field: "nn" for the density, "qq" for the charges.

    Returns:
        The correlation over g, of the broadcast shape.

    Raises:
        TypeError: complex arguments.
        ValueError: d below 2, or another field.

    Source:
        arXiv:2011.12821, derived as `structure_factor` says.

    Example:
        >>> float(real_space_tail(20.0, 0.0, 1.0, 2)) > 0 > float(real_space_tail(0.0, 20.0, 1.0, 2))
        True
    """
    whole("d", d, 2)
    if field not in ("nn", "qq"):
        raise ValueError(f"field: expected 'nn' or 'qq', got {field!r}")
    x, rperp, Ef = real_array("x", x), real_array("rperp", rperp), real_array("Ef", Ef)
    s = 1 + Ef * Ef
    y2 = x * x / s
    R2 = rperp * rperp + y2
    if field == "nn":
        scale = math.gamma(d / 2) / (2 * math.pi ** (d / 2))
        return scale * Ef**2 * s**-1.5 * ((d - 1) * y2 - rperp * rperp) * R2 ** (-d / 2 - 1)
    # The fourth derivative of f(R^2) along y = x / s^(1/2), where f' = -Gamma(d/2) (R^2)^(-d/2) / (4 ...).
    second, third, fourth = (
        (-1) ** order * math.gamma(d / 2 + order - 1) * R2 ** (-d / 2 - order + 1) for order in (2, 3, 4)
    )
    derivative = 12 * second + 48 * y2 * third + 16 * y2 * y2 * fourth
    return -(Ef**4) * s**-2.5 * derivative / (4 * math.pi ** (d / 2))


def grid_correlation(grid: SpectralGrid, Ef: ArrayLike, screening: ArrayLike = 1.0) -> StructureFactor:
    """Correlations of the linear theory on a periodic grid, its modes summed.

    ``C(r) = irfftn(s(k)) / dx^d``, with ``s_nn(0) = 1`` and ``s_qq(0) = s_nq(0) = 0``

    Args:
        grid: the grid.
        Ef: field, a number.
        screening: ``w(k)``, as in `structure_factor`.

    Returns:
        ``<n(r) n(0)>``, ``<q(r) q(0)>`` and ``<n(r) q(0)>`` over g, ``[*grid.shape]``; r = 0 comes first.
        Constants have no meaning: they depend on the value at k = 0.

    Raises:
        ValueError: a grid with padding.

    Source:
        As `structure_factor`; E_x is left out of the grid's Nyquist row.

    Example:
        >>> C = grid_correlation(SpectralGrid((8, 8)), 0.0)
        >>> bool(jnp.allclose(C.s_nn[0, 0], 1.0)), bool(jnp.allclose(C.s_nq_imag, 0))
        (True, True)
    """
    if grid.padding:
        raise ValueError(f"grid: expected no padding, got {grid.padding}")
    S = mode_structure_factor(grid.k2(), grid.wavenumber(0, derivative=True), Ef, screening)
    cell = grid.dx**grid.dimensions

    def in_space(spectrum: Array) -> Array:
        return jnp.fft.irfftn(spectrum, grid.shape) / cell

    return StructureFactor(in_space(S.s_nn), in_space(S.s_qq), in_space(1j * S.s_nq_imag))


def second_harmonic(
    C: Float[Array, "*batch N M"], dx: ArrayLike, Ef: ArrayLike, R: ArrayLike, angles: int = 256
) -> Float[Array, "*batch radii"]:
    """The second harmonic of a two-dimensional correlation on rings that the field stretches.

    ``a2(R) = 2 <C cos 2T>`` with ``x = s^(1/2) R cos T``, ``y = R sin T``, ``s = 1 + Ef^2``: of the tail it
    is ``Ef^2 / (2 pi s^(3/2) R^2)``; a constant, and all else that the rings see as one, drops out.

    Args:
        C: correlation on a periodic grid, r = 0 first; the field along the first of its two axes.
        dx: distance between points.
        Ef: field.
        R: radii ``[radii]`` or one number; ``s^(1/2) R`` should stay below half the box.
        angles: points on a ring, between which C is interpolated by cubics.

    Returns:
        ``a2`` for each radius.

    Raises:
        TypeError: complex arguments.
        ValueError: an array of fewer than two axes, a dx that is not positive.

    Source:
        Derived as `structure_factor` says.

    Example:
        >>> second_harmonic(jnp.ones((16, 16)), 1.0, 1.0, jnp.array([2.0, 3.0])).shape
        (2,)
    """
    C = real_array("C", C)
    if C.ndim < 2:
        raise ValueError(f"C: expected a correlation in two dimensions, [..., N, M], got shape {C.shape}")
    require("dx", dx, 0, open_low=True)
    whole("angles", angles, 4)
    T = 2 * math.pi / angles * jnp.arange(angles)
    R, Ef = real_array("R", R), real_array("Ef", Ef)
    x = jnp.sqrt(1 + Ef * Ef) * R[..., None] * jnp.cos(T)
    values = _periodic_cubic(C, x / dx, R[..., None] * jnp.sin(T) / dx)
    return 2 * jnp.mean(values * jnp.cos(2 * T), -1)


def _periodic_cubic(C: Array, row: Array, column: Array) -> Array:
    """C at fractional places, by the cubic through the four nearest points along each axis."""

    def weights(fraction: Array) -> list[Array]:
        p, m, n = fraction + 1, fraction - 1, fraction - 2
        f = fraction
        return [-f * m * n / 6, p * m * n / 2, -p * f * n / 2, p * f * m / 6]

    first, second = jnp.floor(row), jnp.floor(column)
    along, across = weights(row - first), weights(column - second)
    i, j = first.astype(int) - 1, second.astype(int) - 1
    rows, columns = C.shape[-2:]
    total = 0
    for a in range(4):
        for b in range(4):
            total += along[a] * across[b] * C[..., (i + a) % rows, (j + b) % columns]
    return jnp.asarray(total)
