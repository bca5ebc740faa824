"""ArcFace: a margin on the angle.

Paper: J. Deng et al., "ArcFace: Additive Angular Margin Loss for Deep Face Recognition", arXiv:1801.07698,
equation 3. ``cos(theta + m)`` is computed from the cosine alone: arccos has no finite derivative at 1.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxneg.face.arguments import check_range, wide


def arcface_cosine(
    cosine: Float[Array, "..."], m: float = 0.5, *, monotone: bool = False, straight_through: bool = False
) -> Float[Array, "..."]:
    """The cosine at the true class, with a margin added to its angle.

    ``cos(theta + m) = cos(theta) cos(m) - sin(theta) sin(m)``

    Args:
        cosine: between examples and the centres of their classes.
        m: margin in radians, from 0 to pi.
        monotone: beyond ``theta = pi - m``, where ``cos(theta + m)`` would rise again, take
            ``cos(theta) - m sin(m)``. The authors' code and UNPG's do not.
        straight_through: pass the gradient as if the result were the cosine, as insightface does, which
            computes the margin without gradient.

    Returns:
        What stands in for the cosine, before scaling.

    Raises:
        TypeError: a cosine that is not floating.
        ValueError: a margin outside 0..pi.

    Source:
        arXiv:1801.07698, equation 3; monotone: as pytorch-metric-learning has it.

    Example:
        >>> round(float(arcface_cosine(jnp.array(0.5), jnp.pi / 3)), 4)
        -0.5
    """
    check_range("m", m, 0, math.pi, " radians")
    cosine = wide("cosine", cosine)
    margined = cosine * jnp.cos(m) - sine(cosine) * jnp.sin(m)
    if monotone:
        margined = jnp.where(cosine >= -jnp.cos(m), margined, cosine - m * jnp.sin(m))
    if straight_through:
        return cosine + jax.lax.stop_gradient(margined - cosine)
    return margined.astype(cosine.dtype)


def sine(cosine: Float[Array, "..."]) -> Float[Array, "..."]:
    """``sin(theta) = sqrt(max(1 - cos^2(theta), 1e-12))``; at the poles its gradient is 0."""
    return jnp.sqrt(jnp.maximum(1 - jnp.square(cosine), 1e-12))
