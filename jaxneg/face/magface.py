"""MagFace: a margin that grows with the length of the feature, and a regulariser that lengthens features.

Paper: Q. Meng et al., "MagFace: A Universal Representation for Face Recognition and Quality Assessment",
arXiv:2103.06627, equations 3 and 4, with the "easy margin" of the authors' code.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxneg.face.arcface import sine
from jaxneg.face.arguments import check_positive, check_range, wide


class MagFace(NamedTuple):
    """Settings of MagFace: which lengths count, the margins at both ends, the weight of the regulariser."""

    l_a: float = 10.0
    """Shorter features count as this long."""
    u_a: float = 110.0
    """Longer features count as this long."""
    l_m: float = 0.45
    """Margin at ``l_a``, radians."""
    u_m: float = 0.8
    """Margin at ``u_a``, radians."""
    lambda_g: float = 35.0
    """Weight of the regulariser."""


DEFAULTS = MagFace()
"""As the authors train."""


def magface_cosine(
    cosine: Float[Array, "..."], norm: Float[Array, "..."], mag: MagFace = DEFAULTS
) -> Float[Array, "..."]:
    """The cosine at the true class, with a margin on its angle that grows with the feature's length.

    ``cos(theta + m(a))`` where ``cos(theta) > 0``, else ``cos(theta)``;
    ``m(a) = l_m + (u_m - l_m) (a - l_a) / (u_a - l_a)``, ``a = clip(|x|, l_a, u_a)``

    The gradient also flows through the length, and so through the margin, where it is not clipped.

    Args:
        cosine: between examples and the centres of their classes.
        norm: lengths of the features.
        mag: settings.

    Returns:
        What stands in for the cosine, before scaling.

    Raises:
        TypeError: an argument that is not floating.
        ValueError: settings out of range.

    Source:
        arXiv:2103.06627, equation 3.

    Example:
        >>> short = magface_cosine(jnp.array(0.8), jnp.array(10.0))
        >>> float(short) > float(magface_cosine(jnp.array(0.8), jnp.array(110.0)))
        True
    """
    _checked(mag)
    cosine, a = wide("cosine", cosine), _clipped(norm, mag)
    margin = mag.l_m + (mag.u_m - mag.l_m) * (a - mag.l_a) / (mag.u_a - mag.l_a)
    margined = cosine * jnp.cos(margin) - sine(cosine) * jnp.sin(margin)
    return jnp.where(cosine > 0, margined, cosine)


def magface_regulariser(norm: Float[Array, "..."], mag: MagFace = DEFAULTS) -> Float[Array, "..."]:
    """What MagFace adds to the loss of each example; it falls as the feature grows up to ``u_a``.

    ``lambda_g (a / u_a^2 + 1 / a)``, ``a = clip(|x|, l_a, u_a)``

    Args:
        norm: lengths of the features.
        mag: settings.

    Returns:
        One value for each length.

    Raises:
        TypeError: lengths that are not floating.
        ValueError: settings out of range.

    Source:
        arXiv:2103.06627, equation 4.

    Example:
        >>> round(float(magface_regulariser(jnp.array(50.0))), 4)
        0.8446
    """
    _checked(mag)
    a = _clipped(norm, mag)
    return mag.lambda_g * (a / mag.u_a**2 + 1 / a)


def _clipped(norm: Array, mag: MagFace) -> Array:
    return jnp.clip(wide("norm", norm), mag.l_a, mag.u_a)


def _checked(mag: MagFace) -> None:
    check_positive(**{"mag.l_a": mag.l_a, "mag.u_a": mag.u_a})
    if not mag.l_a < mag.u_a:
        raise ValueError(f"mag.u_a: expected more than mag.l_a = {mag.l_a}, got {mag.u_a}")
    check_range("mag.l_m", mag.l_m, 0, jnp.pi, " radians")
    check_range("mag.u_m", mag.u_m, mag.l_m, jnp.pi, " radians")
    check_range("mag.lambda_g", mag.lambda_g, 0, jnp.inf)
