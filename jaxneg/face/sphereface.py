"""SphereFace: a margin that multiplies the angle.

Paper: W. Liu et al., "SphereFace: Deep Hypersphere Embedding for Face Recognition", arXiv:1704.08063,
equation 6.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxneg.face.arguments import wide


def sphereface_cosine(cosine: Float[Array, "..."], m: int = 4) -> Float[Array, "..."]:
    """The cosine at the true class, with its angle multiplied, made to fall all the way to 180 degrees.

    ``psi(theta) = (-1)^k cos(m theta) - 2 k``, ``k = floor(m theta / pi)``

    ``cos(m theta)`` is Chebyshev's polynomial of the cosine, whose derivative is finite everywhere.

    Args:
        cosine: between examples and the centres of their classes.
        m: how many times the angle counts, a whole number from 1.

    Returns:
        What stands in for the cosine, before scaling; ``k`` has no gradient.

    Raises:
        TypeError: a cosine that is not floating.
        ValueError: an ``m`` that is not a whole number from 1.

    Source:
        arXiv:1704.08063, equation 6.

    Example:
        >>> sphereface_cosine(jnp.array([1.0, 0.0, -1.0]), 4).tolist()
        [1.0, -3.0, -7.0]
    """
    if isinstance(m, jax.Array) or not (m == int(m) and m >= 1):
        raise ValueError(f"m: expected a whole number from 1, got {m}")
    cosine = wide("cosine", cosine)
    before, multiplied = jnp.ones_like(cosine), cosine
    for _ in range(int(m) - 1):
        before, multiplied = multiplied, 2 * cosine * multiplied - before
    theta = jnp.arccos(jnp.clip(jax.lax.stop_gradient(cosine), -1, 1))
    k = jnp.clip(jnp.floor(int(m) * theta / jnp.pi), 0, int(m) - 1)
    return jnp.where(k % 2 == 0, multiplied, -multiplied) - 2 * k
