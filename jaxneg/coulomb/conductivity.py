"""How much the ions' correlations slow the current of a driven electrolyte.

Units, field and source as in `structure_factor`.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from jaxneg.coulomb.arguments import dimension, real_array, whole


def conductivity_integral(Ef: ArrayLike, d: int, quad: int = 256) -> Float[Array, "..."]:
    """The relaxation term of the conductivity, ``J_x / Ef = 1 - g I_d(Ef)``.

    ``I_d = int d^dk/(2 pi)^d k_x^2 / {(2 k^2 + 1) [k^2 (k^2 + 1) + Ef^2 k_x^2]}``. For d = 3 and a weak field
    it is Onsager's, ``(1 - 2^(-1/2)) / (12 pi)``; it falls with the field (Wien's effect).

    Args:
        Ef: field.
        d: space dimensions, 1, 2 or 3; the integral has no limit in four.
        quad: nodes of the integral over angles; the radius is integrated in closed form.

    Returns:
        I_d, of the shape of Ef.

    Raises:
        ValueError: another d, too few nodes.

    Source:
        L. Onsager, Phys. Z. 28, 277 (1927); arXiv:2207.00467, derived as `structure_factor` says.

    Example:
        >>> round(float(conductivity_integral(0.0, 3)), 6)
        0.007769
    """
    dimension(d, (1, 2, 3))
    whole("quad", quad, 8)
    Ef = real_array("Ef", Ef)
    if d == 1:
        return _radial(1 + Ef * Ef, 1) / 2
    if d == 2:
        cos = jnp.asarray(np.cos(np.pi / 2 * (np.arange(quad) + 0.5) / quad), Ef.dtype)
        return jnp.mean(cos**2 * _radial(1 + (Ef[..., None] * cos) ** 2, 2), -1) / (2 * math.pi)
    node, weight = np.polynomial.legendre.leggauss(quad)
    u, du = (jnp.asarray(x, Ef.dtype) for x in ((node + 1) / 2, weight / 2))
    # Ef c = sinh(Y u) takes the singularities at c = +-i / Ef away from the cosine's axis.
    Y = jnp.arcsinh(Ef)[..., None]
    some = jnp.abs(Y) > 1e-3
    safe = jnp.where(some, Y, 1)
    c = jnp.where(some, jnp.sinh(safe * u) / jnp.sinh(safe), u * (1 + Y * Y * (u * u - 1) / 6))
    dc = jnp.where(some, safe * jnp.cosh(safe * u) / jnp.sinh(safe), 1 + Y * Y * (3 * u * u - 1) / 6)
    return jnp.sum(du * dc * c * c * _radial(1 + (Ef[..., None] * c) ** 2, 3), -1) / (2 * math.pi**2)


def _radial(sigma: Array, d: int) -> Array:
    """``int_0^inf k^(d-1) dk / [(2 k^2 + 1) (k^2 + sigma)]``; in one dimension over pi / 2."""
    if d == 1:
        root = jnp.sqrt(sigma)
        return 1 / (root * (root + math.sqrt(0.5)) * 2 * math.sqrt(0.5))
    if d == 2:
        return jnp.log(2 * sigma) / (2 * (2 * sigma - 1))
    return math.pi / 4 / (jnp.sqrt(sigma) + math.sqrt(0.5))
