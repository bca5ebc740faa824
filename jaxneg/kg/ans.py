"""Affinity-dependent negative sampling: clusters of the embeddings that are being trained, in place of texts.

Paper: Alam et al., "Affinity dependent negative sampling for knowledge graph embeddings", DL4KG 2020, with
k-means over the current entity table.
"""

import jax
from jaxtyping import Array, Float, PRNGKeyArray

from jaxneg.kg.kmeans import kmeans
from jaxneg.kg.lemon import Neighbourhoods, text_neighbourhoods


def affinity_neighbourhoods(
    key: PRNGKeyArray, entity: Float[Array, "entities width"], K: int, n_min: int = 1
) -> Neighbourhoods:
    """Clusters of entities by their current embeddings, to draw from with `sample_lemon`.

    Make them anew every few epochs. Not under ``jit``.

    Args:
        key: random key of the seeding.
        entity: entity table, without padding rows.
        K: number of clusters.
        n_min: least number of candidates; 1: the anchor's cluster alone.

    Returns:
        The neighbourhoods.

    Raises:
        ValueError: as `kmeans` and `text_neighbourhoods`.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> nb = affinity_neighbourhoods(jax.random.key(0), jnp.array([[0.0], [0.1], [9.0]]), K=2)
        >>> bool(nb.labels[0] == nb.labels[1])
        True
    """
    labels, centers, _ = jax.jit(kmeans, static_argnums=2)(key, entity, K)
    return text_neighbourhoods(labels, centers, n_min)
