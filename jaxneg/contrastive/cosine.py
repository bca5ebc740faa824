"""Cosine similarity, with the small number that PyTorch's ``normalize`` has."""

import jax.numpy as jnp
from jaxtyping import Array, Float

EPSILON = 1e-12


def normalised(x: Float[Array, "*axes dim"]) -> Float[Array, "*axes dim"]:
    """Vectors over their length, ``x / max(|x|, 1e-12)``; a vector of zeros stays, with gradient 0.

    Args:
        x: vectors on the last axis, in float32 or wider.

    Returns:
        Vectors of length one.

    Example:
        >>> normalised(jnp.array([[3.0, 4.0], [0.0, 0.0]])).round(1).tolist()
        [[0.6..., 0.8...], [0.0, 0.0]]
    """
    squared = jnp.sum(jnp.square(x), -1, keepdims=True)
    present = squared > EPSILON**2
    return jnp.where(present, x / jnp.sqrt(jnp.where(present, squared, 1.0)), x / EPSILON)


def cosine_similarity(a: Float[Array, "*axes dim"], b: Float[Array, "*axes dim"]) -> Float[Array, "*axes"]:
    """Cosine of the angle between vectors, pair by pair.

    Args:
        a: vectors on the last axis.
        b: others, of the same shape.

    Returns:
        From -1 to 1.

    Example:
        >>> cosine_similarity(jnp.array([[1.0, 0.0]]), jnp.array([[2.0, 0.0]])).tolist()
        [1.0]
    """
    return jnp.sum(normalised(a) * normalised(b), -1)
