"""pRotatE: RotatE with all moduli alike, so that only phases are left.

Paper: Sun et al., arXiv:1902.10197, Section 4.2. The official file mistypes pi; the true one is used here.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float


def protate_query(
    known: Float[Array, "*b d"], r: Float[Array, "*b d"], side: str, embedding_range: Array | float
) -> Float[Array, "*b d"]:
    """The phase that the missing entity should have, in units of the embedding."""
    del embedding_range
    return known + r if side == "tail" else known - r


def protate_distance(query: Array, entity: Array, embedding_range: Array | float) -> Array:
    """What one coordinate adds to the distance: ``|sin(pi (q - e) / rho)|``."""
    return jnp.abs(jnp.sin((query - entity) * (jnp.pi / embedding_range)))


def protate_score(
    h: Float[Array, "*b d"],
    r: Float[Array, "*b d"],
    t: Float[Array, "*b d"],
    modulus: Array | float,
    gamma: Array | float,
    embedding_range: Array | float,
) -> Float[Array, "*b"]:
    """Plausibility of triples as rotations on one circle, one value a triple.

    s = gamma - m sum_k |sin(pi (h_k + r_k - t_k) / rho)|

    Args:
        h: phases of heads.
        r: phases of relations.
        t: phases of tails; leading axes broadcast.
        modulus: m, learned; rho / 2 at the start.
        gamma: margin.
        embedding_range: rho = (gamma + 2) / d, half a turn.

    Returns:
        Scores; the higher the more plausible.

    Source:
        arXiv:1902.10197, Section 4.2; RotatE's ``model.py``.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.array([0.5])
        >>> float(protate_score(x, x, 2 * x, modulus=1.0, gamma=6.0, embedding_range=2.0))
        6.0
    """
    distance = protate_distance(protate_query(h, r, "tail", embedding_range), t, embedding_range)
    return gamma - jnp.reshape(modulus, ()) * jnp.sum(distance, axis=-1)
