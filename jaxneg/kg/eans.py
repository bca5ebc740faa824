"""EANS: negatives from clusters whose distance in rank from the anchor's is Gaussian.

Paper: Je et al., "Entity aware negative sampling with auxiliary loss of false negative prediction for
knowledge graph embedding", arXiv:2210.06242; here over the clusters of texts of `jaxneg.kg.lemon`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

from jaxneg.kg.candidate_sets import sample_candidates
from jaxneg.kg.lemon import Neighbourhoods


def sample_eans(
    key: PRNGKeyArray, nb: Neighbourhoods, anchors: Int[Array, "b"], n: int, sigma: float
) -> Int[Array, "b n"]:
    """Draws whose cluster is the ``|round(sigma z)|``-th nearest to the anchor's, z standard normal.

    Ranks beyond the last cluster are the last; an empty cluster stands for all entities, as does an anchor
    without text.

    Args:
        key: random key.
        nb: of `text_neighbourhoods`; its ``n_min`` does not matter here.
        anchors: the entities that are replaced.
        n: draws for each.
        sigma: standard deviation, in ranks.

    Returns:
        Entities.

    Raises:
        ValueError: sigma that is not positive, n below 1.

    Source:
        arXiv:2210.06242, Section 3.1.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from jaxneg.kg import text_neighbourhoods
        >>> nb = text_neighbourhoods([0, 1], [[0.0], [9.0]], n_min=1)
        >>> sample_eans(jax.random.key(0), nb, jnp.array([1]), 2, sigma=1e-3).tolist()
        [[1, 1]]
    """
    if not sigma > 0:
        raise ValueError(f"sigma: expected a positive number of ranks, got {sigma}")
    of_rank, of_entity = jax.random.split(key)
    rank = jnp.abs(jnp.round(sigma * jax.random.normal(of_rank, (*anchors.shape, n)))).astype(jnp.int32)
    label = nb.labels[anchors][:, None]
    cluster = nb.order[jnp.maximum(label, 0), jnp.minimum(rank, nb.order.shape[0] - 1)]
    drawn_from = jnp.where(label < 0, -1, cluster).reshape(-1)
    drawn = sample_candidates(of_entity, nb.own, drawn_from, 1, nb.labels.shape[0])
    return drawn.reshape(rank.shape)
