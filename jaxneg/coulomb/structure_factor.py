"""Stationary correlations of a driven electrolyte, linear theory in closed form.

Mahdisoltani and Golestanian, arXiv:2011.12821 and arXiv:2207.00467. Their equations could not be read: the
formulas are derived from the model that their abstracts name (stochastic density functional theory with
Poisson's equation, linearised). Lengths are in Debye lengths 1/kappa, times in 1/(D kappa^2), the field is
``Ef = Q E / (kBT kappa)`` along axis 0, and structure factors are divided by the plasma parameter g.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from jaxneg.coulomb.arguments import real_array, require


class StructureFactor(NamedTuple):
    """Correlations of the densities ``n = (C+ + C-)/2C0 - 1`` and ``q = (C+ - C-)/2C0`` of a mode.

    Attributes:
        s_nn: ``<n n*> / g``.
        s_qq: ``<q q*> / g``.
        s_nq_imag: ``Im <n q*> / g``; the real part is 0.
    """

    s_nn: Float[Array, "..."]
    s_qq: Float[Array, "..."]
    s_nq_imag: Float[Array, "..."]


def structure_factor(
    kvec: Float[Array, "*batch d"], Ef: ArrayLike, screening: ArrayLike = 1.0
) -> StructureFactor:
    """Stationary structure factors of the linear theory.

    With ``a = k^2``, ``b = k^2 + w``, ``G = Ef k_x``:
    ``s_nn = 1 - G^2 w / [(a + b)(a b + G^2)]``,
    ``s_qq = (a / b) {1 + G^2 w / [(a + b)(a b + G^2)]}``,
    ``s_nq = i a G w / [(a + b)(a b + G^2)]``.

    Args:
        kvec: wavevectors in units of kappa, the field along their first component.
        Ef: field, broadcasting over ``batch``.
        screening: ``w(k)``, 1 for point charges, the squared form factor for smeared ones.

    Returns:
        Arrays of the broadcast shape. At k = 0 there is no limit (it depends on the direction): 1, 0 and 0.

    Raises:
        TypeError: complex arguments.
        ValueError: a kvec without components.

    Source:
        arXiv:2011.12821, derived as the module says; d_x is i k_x, as numpy's FFT has it.

    Example:
        >>> s = structure_factor(jnp.array([1.0, 0.0]), 2.0)
        >>> [round(float(x), 4) for x in s]
        [0.7778, 0.6111, 0.1111]
    """
    k = real_array("kvec", kvec)
    if k.ndim < 1 or k.shape[-1] < 1:
        raise ValueError(f"kvec: expected wavevectors, shape [..., d], got shape {k.shape}")
    return mode_structure_factor(jnp.sum(k * k, -1), k[..., 0], Ef, screening)


def mode_structure_factor(
    k2: ArrayLike, kx: ArrayLike, Ef: ArrayLike, screening: ArrayLike = 1.0
) -> StructureFactor:
    """`structure_factor` of modes that are given by their squared length and component along the field.

    Args:
        k2: ``|k|^2``.
        kx: component along the field; 0 on a grid's Nyquist row.
        Ef: field.
        screening: ``w(k)``.

    Returns:
        Arrays of the broadcast shape.

    Raises:
        TypeError: complex arguments.

    Source:
        As `structure_factor`.

    Example:
        >>> [round(float(x), 4) for x in mode_structure_factor(1.0, 1.0, 2.0)]
        [0.7778, 0.6111, 0.1111]
    """
    a, kx, Ef, w = (
        real_array(name, value)
        for name, value in (("k2", k2), ("kx", kx), ("Ef", Ef), ("screening", screening))
    )
    moves = a > 0
    a = jnp.where(moves, a, 1)
    b, G = a + w, Ef * kx
    G2 = G * G
    inner = (a + b) * (a * b + G2)
    # Without the difference 1 - G^2 w / inner, which loses the digits of a strong field.
    s_nn = a * ((a + b) * b + 2 * G2) / inner
    s_qq = a / b * (1 + G2 * w / inner)
    s_nq = a * G * w / inner
    return StructureFactor(jnp.where(moves, s_nn, 1), jnp.where(moves, s_qq, 0), jnp.where(moves, s_nq, 0))


def long_wavelength_limit(theta: ArrayLike, Ef: ArrayLike) -> Float[Array, "..."]:
    """The density's structure factor for k -> 0: another number for every direction, no screening length.

    ``s_nn -> 1 / (1 + Ef^2 cos^2 theta)``

    Args:
        theta: angle between wavevector and field, radians.
        Ef: field.

    Returns:
        An array of the broadcast shape.

    Raises:
        TypeError: complex arguments.

    Source:
        arXiv:2011.12821, derived as the module says.

    Example:
        >>> float(long_wavelength_limit(0.0, 1.0))
        0.5
    """
    return 1 / (1 + (real_array("Ef", Ef) * jnp.cos(real_array("theta", theta))) ** 2)


class PhysicalStructureFactor(NamedTuple):
    """Correlations in physical units.

    Attributes:
        cc: of the total density of ions C+ + C-.
        rr: of the charge density over Q, C+ - C-.
    """

    cc: Float[Array, "..."]
    rr: Float[Array, "..."]


def physical_structure_factor(
    kvec: Float[Array, "*batch d"], Ef: ArrayLike, kappa: ArrayLike, C0: ArrayLike
) -> PhysicalStructureFactor:
    """Structure factors of the ions' densities in physical units.

    ``<c c>(k) = 2 C0 s_nn(k / kappa)``, ``<rho rho>(k) = 2 C0 s_qq(k / kappa)``

    Args:
        kvec: wavevectors, in any unit of inverse length.
        Ef: field in units of kBT kappa / Q.
        kappa: inverse Debye length, in the same unit.
        C0: mean density of each kind of ion.

    Returns:
        Both, in the unit of C0.

    Raises:
        ValueError: kappa or C0 that are not positive.

    Source:
        arXiv:2207.00467, its dimensionless units undone.

    Example:
        >>> s = physical_structure_factor(jnp.array([2.0, 0.0]), 0.0, 2.0, 3.0)
        >>> float(s.cc), float(s.rr)
        (6.0, 3.0)
    """
    require("kappa", kappa, 0, open_low=True)
    require("C0", C0, 0, open_low=True)
    kappa = real_array("kappa", kappa)
    found = structure_factor(real_array("kvec", kvec) / kappa[..., None], Ef)
    density = 2 * real_array("C0", C0)
    return PhysicalStructureFactor(density * found.s_nn, density * found.s_qq)
