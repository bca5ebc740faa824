"""Uniform negative sampling: any entity in place of the true one.

Paper: Bordes et al., "Translating embeddings for modeling multi-relational data", NeurIPS 2013.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

from jaxneg.kg.arguments import at_least


def sample_uniform(
    key: PRNGKeyArray, anchors: Int[Array, "b"], n: int, num_entities: int
) -> Int[Array, "b n"]:
    """Independent uniform draws over all entities.

    Args:
        key: random key.
        anchors: the entities to replace; only their number matters.
        n: draws for each.
        num_entities: number of entities.

    Returns:
        Entities.

    Raises:
        ValueError: n or num_entities below 1.

    Source:
        Bordes et al. 2013, Section 2.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> sample_uniform(jax.random.key(0), jnp.array([4, 2]), 3, num_entities=1).tolist()
        [[0, 0, 0], [0, 0, 0]]
    """
    at_least("n", n, 1)
    at_least("num_entities", num_entities, 1)
    bits = jax.random.bits(key, (*jnp.shape(anchors), n))
    return (bits % jnp.uint32(num_entities)).astype(jnp.int32)
