"""The combined margin: on the angle, by multiplication and by addition, and on the cosine.

Paper: J. Deng et al., arXiv:1801.07698, equation 4, as insightface trains with it.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxneg.face.arcface import arcface_cosine
from jaxneg.face.arguments import check_positive, check_range, wide


def combined_cosine(
    cosine: Float[Array, "..."], m: Sequence[float] = (1.0, 0.3, 0.2), *, straight_through: bool = False
) -> Float[Array, "..."]:
    """The cosine at the true class with the margins of SphereFace, ArcFace and CosFace together.

    ``cos(m1 theta + m2) - m3``

    Args:
        cosine: between examples and the centres of their classes.
        m: ``(m1, m2, m3)``; (1, m, 0) is ArcFace, (1, 0, m) is CosFace.
        straight_through: pass the gradient as if the result were the cosine, as insightface does.

    Returns:
        What stands in for the cosine, before scaling. With ``m1`` other than 1 the cosine is clipped to
        1e-7 within 1, where its angle has a derivative.

    Raises:
        TypeError: a cosine that is not floating.
        ValueError: not three margins, or one out of range.

    Source:
        arXiv:1801.07698, equation 4.

    Example:
        >>> round(float(combined_cosine(jnp.array(0.5), (1.0, 0.0, 0.25))), 4)
        0.25
    """
    if len(m) != 3:
        raise ValueError(f"m: expected three margins (m1, m2, m3), got {m!r}")
    m1, m2, m3 = m
    check_positive(**{"m[0]": m1})
    check_range("m[1]", m2, 0, jnp.pi, " radians")
    check_range("m[2]", m3, 0, 1)
    cosine = wide("cosine", cosine)
    if m1 == 1.0:
        margined = arcface_cosine(cosine, m2) if m2 else cosine
    else:
        margined = jnp.cos(m1 * jnp.arccos(jnp.clip(cosine, -1 + 1e-7, 1 - 1e-7)) + m2)
    margined = margined - m3
    return cosine + jax.lax.stop_gradient(margined - cosine) if straight_through else margined
