"""Exact exponents of polar chemotaxis at its critical point.

Mahdisoltani, Ben Ali Zinati, Duclut, Gambassi and Golestanian, arXiv:1911.08115.
"""

from typing import NamedTuple

from jaxneg.coulomb.arguments import whole


class Exponents(NamedTuple):
    """Scaling of the density's fluctuations.

    Attributes:
        z: of time, ``t ~ x^z``; below 2 the particles superdiffuse.
        chi: of the density, ``rho ~ x^chi``.
        S_exponent: of the structure factor, ``S ~ k^S_exponent``; above 0 number fluctuations are suppressed.
        chi_phi: roughness of the potential.
    """

    z: float
    chi: float
    S_exponent: float
    chi_phi: float


def exponents(d: int) -> Exponents:
    """The exponents that the emergent Galilean symmetry fixes.

    Below four dimensions ``z = (d + 2) / 3``, ``chi = -(d + 2) / 3``, ``S ~ k^((4 - d) / 3)``; from there on
    mean field, ``z = 2``, ``chi = -d / 2``, S constant; ``chi_phi = 2 - z``, in mean field ``2 - d / 2``.

    Args:
        d: space dimensions, 1 or more.

    Returns:
        Their values.

    Raises:
        ValueError: d below 1.

    Source:
        arXiv:1911.08115; from ``chi + z = 0`` (the polar coupling is not renormalised) and
        ``z - 2 chi - d - 2 = 0`` (neither is the noise).

    Example:
        >>> exponents(1)
        Exponents(z=1.0, chi=-1.0, S_exponent=1.0, chi_phi=1.0)
    """
    whole("d", d)
    if d >= 4:
        return Exponents(2.0, -d / 2, 0.0, 2 - d / 2)
    return Exponents((d + 2) / 3, -(d + 2) / 3, (4 - d) / 3, 2 - (d + 2) / 3)
