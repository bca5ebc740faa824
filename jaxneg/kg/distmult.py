"""DistMult: a relation is a diagonal bilinear form.

Paper: Yang et al., "Embedding entities and relations for learning and inference in knowledge bases",
arXiv:1412.6575.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float


def distmult_query(known: Float[Array, "*b d"], r: Float[Array, "*b d"], side: str) -> Float[Array, "*b d"]:
    """The direction that the missing entity should lie in: ``h r`` on both sides."""
    del side
    return known * r


def distmult_score(
    h: Float[Array, "*b d"], r: Float[Array, "*b d"], t: Float[Array, "*b d"]
) -> Float[Array, "*b"]:
    """Plausibility of triples as a product of three, one value a triple.

    s = sum_k h_k r_k t_k

    Args:
        h: embeddings of heads.
        r: embeddings of relations.
        t: embeddings of tails; leading axes broadcast.

    Returns:
        Scores; the higher the more plausible. The same for (h, r, t) and (t, r, h).

    Source:
        arXiv:1412.6575, Table 1; RotatE's ``model.py``.

    Example:
        >>> import jax.numpy as jnp
        >>> float(distmult_score(jnp.array([1.0, 2.0]), jnp.array([1.0, 1.0]), jnp.array([3.0, 4.0])))
        11.0
    """
    return jnp.sum(distmult_query(h, r, "tail") * t, axis=-1)
