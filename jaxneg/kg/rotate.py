"""RotatE: a relation is a rotation in the complex plane.

Paper: Sun et al., "RotatE: Knowledge graph embedding by relational rotation in complex space",
arXiv:1902.10197.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxneg.kg.complex import complex_conjugate, complex_product


def rotate_query(
    known: Float[Array, "*b two_d"], r: Float[Array, "*b d"], side: str, embedding_range: Array | float
) -> Float[Array, "*b two_d"]:
    """The point that the missing entity should lie at: the known one turned by the relation, or back."""
    angle = r * (jnp.pi / embedding_range)
    rotation = jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)
    return complex_product(known, rotation if side == "tail" else complex_conjugate(rotation))


def rotate_distance(query_re: Array, query_im: Array, entity_re: Array, entity_im: Array) -> Array:
    """What one coordinate adds to the distance: the modulus ``|q - e|``, with subgradient 0 where it is 0."""
    square = jnp.square(query_re - entity_re) + jnp.square(query_im - entity_im)
    # The square root of 1 stands in where its own gradient would be infinite.
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def rotate_score(
    h: Float[Array, "*b two_d"],
    r: Float[Array, "*b d"],
    t: Float[Array, "*b two_d"],
    gamma: Array | float,
    embedding_range: Array | float,
) -> Float[Array, "*b"]:
    """Plausibility of triples as rotations, one value a triple.

    s = gamma - sum_k |h_k exp(i pi r_k / rho) - t_k|

    Args:
        h: embeddings of heads, real half and imaginary half.
        r: embeddings of relations.
        t: embeddings of tails, real half and imaginary half; leading axes broadcast.
        gamma: margin.
        embedding_range: rho = (gamma + 2) / d; r = rho is half a turn.

    Returns:
        Scores; the higher the more plausible.

    Source:
        arXiv:1902.10197, equation 2; RotatE's ``model.py``.

    Example:
        >>> import jax.numpy as jnp
        >>> one = jnp.array([1.0, 0.0])
        >>> round(float(rotate_score(one, jnp.array([2.0]), -one, gamma=6.0, embedding_range=2.0)), 4)
        6.0
    """
    query = rotate_query(h, r, "tail", embedding_range)
    parts = (*jnp.split(query, 2, axis=-1), *jnp.split(t, 2, axis=-1))
    return gamma - jnp.sum(rotate_distance(*parts), axis=-1)
