"""TransE: a relation is a translation.

Paper: Bordes et al., "Translating embeddings for modeling multi-relational data", NeurIPS 2013, with the L1
norm and the margin gamma inside the score as in RotatE's code (Sun et al., arXiv:1902.10197).
"""

import jax.numpy as jnp
from jaxtyping import Array, Float


def transe_query(known: Float[Array, "*b d"], r: Float[Array, "*b d"], side: str) -> Float[Array, "*b d"]:
    """The point that the missing entity of ``side`` should lie at: ``h + r``, or ``t - r``."""
    return known + r if side == "tail" else known - r


def transe_distance(query: Array, entity: Array) -> Array:
    """What one coordinate adds to the distance: ``|q - e|``."""
    return jnp.abs(query - entity)


def transe_score(
    h: Float[Array, "*b d"], r: Float[Array, "*b d"], t: Float[Array, "*b d"], gamma: Float[Array, ""] | float
) -> Float[Array, "*b"]:
    """Plausibility of triples as translations, one value a triple.

    s = gamma - ||h + r - t||_1

    Args:
        h: embeddings of heads.
        r: embeddings of relations.
        t: embeddings of tails; leading axes broadcast.
        gamma: margin.

    Returns:
        Scores; the higher the more plausible.

    Source:
        Bordes et al. 2013, equation 1; RotatE's ``model.py``.

    Example:
        >>> import jax.numpy as jnp
        >>> float(transe_score(jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0]), jnp.array([1.0, 1.0]), 6.0))
        6.0
    """
    return gamma - jnp.sum(transe_distance(transe_query(h, r, "tail"), t), axis=-1)
