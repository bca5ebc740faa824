"""LEMON: negatives from the text neighbourhood of the entity that they replace.

Paper: Alam et al., "Language model-driven negative sampling", arXiv:2203.04703. Entities' texts are encoded,
reduced by PCA and clustered once, before training; a negative is then drawn in constant time. How clusters
become neighbourhoods, and that the replaced entity is the anchor, is a *proposed reading*: the paper's text
leaves both open. The authors' code, ``ColdMist/LEMON``, reads it otherwise: `nearest_cluster_neighbourhoods`
of the entity that stays.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray
from numpy.typing import ArrayLike

from jaxneg.kg.arguments import SIDES, at_least, concrete, one_of, share
from jaxneg.kg.candidate_sets import CandidateSets, candidate_sets, sample_candidates
from jaxneg.kg.known_triples import KnownTriples, is_known

ENTITIES_PER_CLUSTER = 80
FEWEST_CLUSTERS, MOST_CLUSTERS = 8, 1000
ANCHORS = ("replaced", "kept")


class Neighbourhoods(NamedTuple):
    """Clusters of entities and which of them are near each other.

    Attributes:
        members: candidates of all clusters behind each other.
        start: candidates of cluster c are members[start[c]] to members[start[c + 1]].
        order: clusters by the distance of their centres from each cluster's, itself first.
        labels: cluster of each entity; -1 for an entity without text, whose candidates are all entities.
        own: the entities of each cluster alone.
    """

    members: Int[Array, "members"]
    start: Int[Array, "clusters_and_one"]
    order: Int[Array, "clusters clusters"]
    labels: Int[Array, "entities"]
    own: CandidateSets


class EntityNeighbourhoods(NamedTuple):
    """Candidates that depend on where an entity itself lies, and not on its cluster alone.

    Attributes:
        sets: the different sets of candidates.
        row: the set of each entity; -1 for an entity without text, whose candidates are all entities.
    """

    sets: CandidateSets
    row: Int[Array, "entities"]


def default_clusters(num_entities: int) -> int:
    """How many clusters to make: one for 80 entities, from 8 to 1000 of them.

    Example:
        >>> default_clusters(8632)
        108
    """
    return min(max(round(num_entities / ENTITIES_PER_CLUSTER), FEWEST_CLUSTERS), MOST_CLUSTERS)


def text_neighbourhoods(labels: ArrayLike, centers: ArrayLike, n_min: int) -> Neighbourhoods:
    """The candidates of each cluster: its nearest clusters, as few as hold n_min entities.

    Not under ``jit``: sizes depend on the labels. An empty cluster is part of the order and adds nothing. If
    all clusters hold fewer than n_min entities, all are candidates.

    Args:
        labels: cluster of each entity; -1 for an entity without text, which is no candidate of any cluster.
        centers: centres of the clusters.
        n_min: least number of candidates.

    Returns:
        The neighbourhoods.

    Raises:
        ValueError: a label out of range, centres that are no matrix or not finite, n_min below 1.
        TypeError: an array under ``jit``.

    Source:
        arXiv:2203.04703, Section 4, a proposed reading.

    Example:
        >>> nb = text_neighbourhoods([0, 0, 1, 2], [[0.0], [1.0], [9.0]], n_min=3)
        >>> nb.members[nb.start[0] : nb.start[1]].tolist()
        [0, 1, 2]
    """
    labels, centers = _clustering(labels, centers)
    at_least("n_min", n_min, 1)
    K = len(centers)
    distance = center_distances(centers)
    order = np.argsort(distance, axis=1, kind="stable")
    count = np.bincount(labels[labels >= 0], minlength=K)
    by_cluster = np.split(np.argsort(labels, kind="stable")[np.sum(labels < 0) :], np.cumsum(count)[:-1])
    prefix = 1 + np.argmax(np.cumsum(count[order], axis=1) >= min(n_min, count.sum()), axis=1)
    chosen = [
        np.sort(np.concatenate([by_cluster[c] for c in clusters[:length]]))
        for clusters, length in zip(order, prefix, strict=True)
    ]
    return Neighbourhoods(
        members=jnp.asarray(np.concatenate(chosen).astype(np.int32)),
        start=jnp.asarray(np.append(0, np.cumsum([len(each) for each in chosen])).astype(np.int32)),
        order=jnp.asarray(order.astype(np.int32)),
        labels=jnp.asarray(labels.astype(np.int32)),
        own=CandidateSets(
            jnp.asarray(np.concatenate(by_cluster).astype(np.int32)),
            jnp.asarray(np.append(0, np.cumsum(count)).astype(np.int32)),
        ),
    )


def nearest_cluster_neighbourhoods(
    points: ArrayLike, labels: ArrayLike, centers: ArrayLike, nearest: int = 3
) -> EntityNeighbourhoods:
    """The candidates of each entity: all members of the clusters whose centres are nearest to it.

    Not under ``jit``: sizes depend on the labels. Draw with `sample_candidates`; the anchor is the entity
    that stays. The example of the authors' code takes the 3 nearest of 15 clusters in 2 principal
    components.

    Args:
        points: reduced embeddings, ``[entities, z]``; rows of entities without text are not read.
        labels: cluster of each entity; -1 for an entity without text.
        centers: centres of the clusters, ``[clusters, z]``.
        nearest: how many clusters, at most all.

    Returns:
        The neighbourhoods.

    Raises:
        ValueError: shapes that do not belong together, a label out of range, ``nearest`` out of range,
            numbers that are not finite.
        TypeError: an array under ``jit``.

    Source:
        ``ColdMist/LEMON``, ``codes/dataloader.py`` (``khop`` there).

    Example:
        >>> nb = nearest_cluster_neighbourhoods([[0.0], [4.0], [9.0]], [0, 0, 1], [[2.0], [9.0]], nearest=1)
        >>> [nb.sets.members[nb.sets.start[r] : nb.sets.start[r + 1]].tolist() for r in nb.row]
        [[0, 1], [0, 1], [2]]
    """
    points = concrete("points", points)
    labels, centers = _clustering(labels, centers)
    if points.shape != (len(labels), centers.shape[1]):
        raise ValueError(f"points: expected shape {(len(labels), centers.shape[1])}, got {points.shape}")
    if not 1 <= nearest <= len(centers):
        raise ValueError(f"nearest: expected 1 to {len(centers)}, the number of clusters, got {nearest}")
    with_text = np.flatnonzero(labels >= 0)
    if not np.isfinite(points[with_text]).all():
        raise ValueError("points: expected finite numbers")
    x, c = points[with_text].astype(np.float64), centers.astype(np.float64)
    # The squares of x are the same for all clusters.
    order = np.argsort(np.sum(c**2, axis=1) - 2 * x @ c.T, axis=1, kind="stable")
    combinations, row_of = np.unique(np.sort(order[:, :nearest], axis=1), axis=0, return_inverse=True)
    row = np.full(len(labels), -1, np.int32)
    row[with_text] = row_of.reshape(-1)
    sets = candidate_sets([np.flatnonzero(np.isin(labels, clusters)) for clusters in combinations])
    return EntityNeighbourhoods(sets, jnp.asarray(row))


def center_distances(centers: ArrayLike) -> np.ndarray:
    """Euclidean distances between centres, in float64; each is at distance 0 from itself and comes first.

    Args:
        centers: ``[clusters, z]``.

    Returns:
        ``[clusters, clusters]``.

    Example:
        >>> center_distances([[0.0], [3.0]]).tolist()
        [[0.0, 3.0], [3.0, 0.0]]
    """
    c = np.asarray(centers, np.float64)
    c = c - c.mean(axis=0)
    squares = np.sum(c**2, axis=1)
    distance = np.sqrt(np.maximum(squares[:, None] + squares - 2 * c @ c.T, 0))
    np.fill_diagonal(distance, 0)
    return distance


def _clustering(labels: ArrayLike, centers: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Labels and centres on the host; raises unless they belong together."""
    labels, centers = concrete("labels", labels), concrete("centers", centers)
    if centers.ndim != 2 or not len(centers):
        raise ValueError(f"centers: expected shape [clusters, z] with at least one, got {centers.shape}")
    if not np.isfinite(centers).all():
        raise ValueError("centers: expected finite numbers")
    K = len(centers)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"labels: expected one integer an entity, got {labels.dtype} of shape {labels.shape}"
        )
    if ((labels < -1) | (labels >= K)).any():
        wrong = int(np.flatnonzero((labels < -1) | (labels >= K))[0])
        raise ValueError(
            f"labels: entity {wrong}: expected a cluster from 0 to {K - 1}, or -1 without text, "
            f"got {labels[wrong]}"
        )
    return labels, centers


def sample_lemon(
    key: PRNGKeyArray,
    nb: Neighbourhoods,
    anchors: Int[Array, "b"],
    n: int,
    mix: float | Float[Array, ""] = 0.5,
) -> Int[Array, "b n"]:
    """Independent uniform draws from the text neighbourhood of each anchor.

    With probability ``mix`` a draw is from all entities, as are all draws of an anchor without text. Known
    triples are not left out here: see `filter_known`.

    Args:
        key: random key.
        nb: of `text_neighbourhoods`.
        anchors: the entities that are replaced (or, for another reading, those that stay).
        n: draws for each.
        mix: share of draws from all entities, in [0, 1]; 0 is the paper's.

    Returns:
        Entities.

    Raises:
        ValueError: n below 1, mix outside of [0, 1].

    Source:
        arXiv:2203.04703, Section 4, a proposed reading.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> nb = text_neighbourhoods([0, 1], [[0.0], [9.0]], n_min=1)
        >>> sample_lemon(jax.random.key(0), nb, jnp.array([1, 0]), 3, mix=0.0).tolist()
        [[1, 1, 1], [0, 0, 0]]
    """
    sets = CandidateSets(nb.members, nb.start)
    return sample_candidates(key, sets, nb.labels[anchors], n, nb.labels.shape[0], mix)


def lemon_probabilities(
    nb: Neighbourhoods,
    triples: Int[Array, "b 3"],
    known: KnownTriples,
    side: str,
    n_min: int,
    mix: float = 0.0,
    *,
    anchor: str = "replaced",
) -> Float[Array, "b entities"]:
    """The distribution that `sample_lemon` with a filter stands for, in closed form; for tests and checks.

    Uniform over the candidates that make no known triple, where nearest clusters are added until n_min such
    candidates are there; over all entities if there are none at all. Redrawing what is known keeps to the
    candidates before the filter instead, which is the same where n_min of them survive and mix is 0; with
    a mix
    it draws somewhat more from all entities, since fewer of those are rejected.

    Args:
        nb: of `text_neighbourhoods`.
        triples: positives.
        known: training triples.
        side: which entity is replaced, "head" or "tail".
        n_min: least number of candidates that survive.
        mix: share of draws from all entities that make no known triple.
        anchor: "replaced" or "kept": whose neighbourhood counts.

    Returns:
        A probability for each entity; rows sum to 1.

    Raises:
        ValueError: an unknown side or anchor, n_min below 1, mix outside of [0, 1].

    Source:
        arXiv:2203.04703, Section 4, a proposed reading.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxneg.kg import known_triples
        >>> nb = text_neighbourhoods([0, 0, 1], [[0.0], [9.0]], n_min=1)
        >>> known, triples = known_triples([[2, 0, 1]], num_entities=3), jnp.array([[2, 0, 1]])
        >>> lemon_probabilities(nb, triples, known, "tail", n_min=1).tolist()
        [[1.0, 0.0, 0.0]]
    """
    one_of("side", side, SIDES)
    one_of("anchor", anchor, ANCHORS)
    at_least("n_min", n_min, 1)
    share("mix", mix)
    entities, clusters = nb.labels.shape[0], nb.order.shape[0]
    everyone = jnp.broadcast_to(jnp.arange(entities), (triples.shape[0], entities))
    free = ~is_known(known, triples, everyone, side)
    anchors = triples[:, 2 if (side == "tail") == (anchor == "replaced") else 0]
    label = nb.labels[anchors]

    # The place of every entity's cluster in the order of the anchor's cluster.
    place_of = jnp.argsort(nb.order, axis=1)
    place = jnp.where(nb.labels < 0, clusters, place_of[jnp.maximum(label, 0)][:, jnp.maximum(nb.labels, 0)])
    surviving = jnp.sum(
        free[:, None, :] & (place[:, None, :] <= jnp.arange(clusters)[None, :, None]), axis=-1
    )
    enough = surviving >= n_min
    last = jnp.where(jnp.any(enough, axis=1), jnp.argmax(enough, axis=1), clusters - 1)
    near = free & ((place <= last[:, None]) | (label < 0)[:, None])

    def uniform(chosen: Array) -> Array:
        count = jnp.sum(chosen, axis=1, keepdims=True)
        return jnp.where(count > 0, chosen / jnp.maximum(count, 1), 1 / entities)

    return (1 - mix) * uniform(near) + mix * uniform(free)
