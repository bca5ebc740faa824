"""Pairs within a batch, and the losses that the UNPG authors combine a margin head with.

Every unordered pair counts once: the strict upper triangle of the matrix of cosines. Circle loss: Y. Sun et
al., arXiv:2002.10857, equation 6; contrastive loss: R. Hadsell et al., CVPR 2006, equation 4; triplet loss:
F. Schroff et al., arXiv:1503.03832, equation 1.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxneg.face.arguments import (
    batch_features,
    batch_labels,
    check_positive,
    check_range,
    everywhere,
    rows_by_rows,
    unit_rows,
)


def pair_similarities(
    features: Float[Array, "batch dim"], labels: Int[Array, " batch"]
) -> tuple[Float[Array, "batch batch"], Bool[Array, "batch batch"], Bool[Array, "batch batch"]]:
    """Cosines between all examples of a batch, and which of them are pairs of one class, or of two.

    ``S = x/|x| (x/|x|)^T``; a pair (i, j) has i < j

    Args:
        features: embeddings, of any length.
        labels: their classes.

    Returns:
        All cosines, the pairs of one class, the pairs of two classes; both masks are strictly upper
        triangular.

    Raises:
        TypeError: features that are not floating, labels that are not integers.
        ValueError: shapes that do not fit.

    Source:
        arXiv:2203.11593, Section 3.

    Example:
        >>> sim, same, other = pair_similarities(jnp.eye(3), jnp.array([0, 0, 1]))
        >>> jnp.argwhere(same).tolist(), jnp.argwhere(other).tolist()
        ([[0, 1]], [[0, 2], [1, 2]])
    """
    features = batch_features(features)
    labels = batch_labels(labels, features.shape[0])
    unit = unit_rows(features)
    upper = jnp.triu(jnp.ones((len(labels),) * 2, bool), 1)
    same = labels[:, None] == everywhere(labels)
    return rows_by_rows(unit, everywhere(unit)), upper & same, upper & ~same


def circle_pair_loss(
    features: Float[Array, "batch dim"],
    labels: Int[Array, " batch"],
    *,
    m: float = 0.25,
    gamma: float = 256.0,
) -> Float[Array, ""]:
    """Circle loss over all pairs of a batch, each weighted by how far it is from where it should be.

    ``softplus(LSE_p(-gamma [1 + m - s_p]_+ (s_p - (1 - m))) + LSE_n(gamma [s_n + m]_+ (s_n - m)))``

    The brackets have no gradient.

    Args:
        features: embeddings, of any length.
        labels: their classes.
        m: relaxation, from 0 to 1.
        gamma: scale.

    Returns:
        One loss for the batch, which is one term of all its pairs; 0 where a kind of pair is missing.

    Raises:
        TypeError: features that are not floating, labels that are not integers.
        ValueError: shapes that do not fit, settings out of range.

    Source:
        arXiv:2002.10857, equation 6.

    Example:
        >>> x, y = jnp.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), jnp.array([0, 0, 1])
        >>> bool(circle_pair_loss(x, y) < circle_pair_loss(x, y[::-1]))
        True
    """
    check_range("m", m, 0, 1)
    check_positive(gamma=gamma)
    sim, same, other = pair_similarities(features, labels)
    fixed = jax.lax.stop_gradient(sim)
    positive = -gamma * jnp.maximum(1 + m - fixed, 0) * (sim - (1 - m))
    negative = gamma * jnp.maximum(fixed + m, 0) * (sim - m)
    both = masked_logsumexp(positive, same) + masked_logsumexp(negative, other)
    return jnp.where(jnp.isneginf(both), 0, jax.nn.softplus(jnp.where(jnp.isneginf(both), 0, both)))


def contrastive_pair_loss(
    features: Float[Array, "batch dim"],
    labels: Int[Array, " batch"],
    *,
    pos_margin: float = 0.0,
    neg_margin: float = 1.0,
) -> tuple[Float[Array, "batch batch"], dict[str, Array]]:
    """Contrastive loss of each pair, on the distance between unit vectors.

    ``[d - pos_margin]_+`` for one class, ``[neg_margin - d]_+`` for two

    Args:
        features: embeddings, of any length.
        labels: their classes.
        pos_margin: distance below which a pair of one class costs nothing, from 0 to 2.
        neg_margin: distance above which a pair of two classes costs nothing, from 0 to 2.

    Returns:
        One loss for each pair of the strict upper triangle, 0 elsewhere, and the masks ``positive`` and
        ``negative``. The authors add the `nonzero_mean` of each kind.

    Raises:
        TypeError: features that are not floating, labels that are not integers.
        ValueError: shapes that do not fit, settings out of range.

    Source:
        Hadsell et al., CVPR 2006, without the squares, as pytorch-metric-learning has it.

    Example:
        >>> losses, pairs = contrastive_pair_loss(jnp.eye(2), jnp.array([0, 0]))
        >>> round(float(nonzero_mean(losses, pairs["positive"])), 4)
        1.4142
    """
    check_range("pos_margin", pos_margin, 0, 2)
    check_range("neg_margin", neg_margin, 0, 2)
    sim, same, other = pair_similarities(features, labels)
    distance = _distances(sim)
    losses = jnp.where(same, jnp.maximum(distance - pos_margin, 0), 0)
    losses += jnp.where(other, jnp.maximum(neg_margin - distance, 0), 0)
    return losses, {"positive": same, "negative": other}


def triplet_margin_loss(
    features: Float[Array, "batch dim"], labels: Int[Array, " batch"], *, margin: float = 0.5
) -> Float[Array, "batch batch batch"]:
    """Triplet loss of every anchor, example of its class, and example of another class.

    ``[d(a, p) - d(a, n) + margin]_+`` on the distance between unit vectors

    Args:
        features: embeddings, of any length.
        labels: their classes.
        margin: by which the negative should be farther away, from 0 to 2.

    Returns:
        One loss for each anchor, positive and negative, 0 where these are none. The authors take the
        `nonzero_mean` of all.

    Raises:
        TypeError: features that are not floating, labels that are not integers.
        ValueError: shapes that do not fit, a margin out of range.

    Source:
        arXiv:1503.03832, equation 1, without the squares, as pytorch-metric-learning has it.

    Example:
        >>> triplet_margin_loss(jnp.eye(3), jnp.array([0, 0, 1]))[0, 1, 2].item()
        0.5
    """
    check_range("margin", margin, 0, 2)
    sim, same, other = pair_similarities(features, labels)
    distance, same, other = _distances(sim), same | same.T, other | other.T
    losses = jnp.maximum(distance[:, :, None] - distance[:, None, :] + margin, 0)
    return jnp.where(same[:, :, None] & other[:, None, :], losses, 0)


def triplet_margin_mean(
    features: Float[Array, "batch dim"], labels: Int[Array, " batch"], *, margin: float = 0.5
) -> Float[Array, ""]:
    """`nonzero_mean` of `triplet_margin_loss`, without an array of triplets: ``O(B^2 log B)``.

    With an anchor's negatives in order of distance, those that a pair (a, p) has a loss with are the first c,
    and their losses sum to ``c (d(a, p) + margin) - sum of the first c distances``.

    Args:
        features: embeddings, of any length.
        labels: their classes.
        margin: by which the negative should be farther away, from 0 to 2.

    Returns:
        The mean over the triplets whose loss is above zero; 0 where there is none.

    Raises:
        TypeError: features that are not floating, labels that are not integers.
        ValueError: shapes that do not fit, a margin out of range.

    Source:
        arXiv:1503.03832, equation 1; the order is this implementation's.

    Example:
        >>> triplet_margin_mean(jnp.eye(3), jnp.array([0, 0, 1])).item()
        0.5
    """
    check_range("margin", margin, 0, 2)
    sim, same, other = pair_similarities(features, labels)
    distance, same, other = _distances(sim), same | same.T, other | other.T
    ordered = jnp.sort(jnp.where(other, distance, jnp.inf), axis=1)
    reach = distance + margin
    closer = jax.vmap(lambda row, limit: jnp.searchsorted(row, limit))(
        *jax.lax.stop_gradient((ordered, reach))
    )
    closer = jnp.where(same, closer, 0)
    summed = jnp.cumsum(jnp.where(jnp.isfinite(ordered), ordered, 0), axis=1)
    first = jnp.take_along_axis(jnp.pad(summed, ((0, 0), (1, 0))), closer, axis=1)
    total = jnp.sum(closer * jnp.where(same, reach, 0) - first)
    return total / jnp.maximum(jnp.sum(closer), 1).astype(total.dtype)


def nonzero_mean(losses: Float[Array, "..."], where: Bool[Array, "..."] | None = None) -> Float[Array, ""]:
    """The mean over the losses that are above zero: how pair losses are usually reduced.

    Args:
        losses: of pairs or triplets.
        where: which of them count; None: all.

    Returns:
        The mean; 0 where none is above zero.

    Example:
        >>> float(nonzero_mean(jnp.array([0.0, 1.0, 3.0])))
        2.0
    """
    active = losses > 0 if where is None else (losses > 0) & where
    return jnp.sum(jnp.where(active, losses, 0)) / jnp.maximum(jnp.sum(active), 1).astype(losses.dtype)


def masked_logsumexp(values: Float[Array, "..."], mask: Bool[Array, "..."]) -> Float[Array, ""]:
    """``log sum exp`` of the chosen values; minus infinity, with a gradient of zero, where there are none."""
    found = jnp.any(mask)
    largest = jax.lax.stop_gradient(jnp.max(values, where=mask, initial=-jnp.inf))
    largest = jnp.where(found, largest, 0)
    total = jnp.sum(jnp.where(mask, jnp.exp(jnp.where(mask, values, largest) - largest), 0))
    return jnp.where(found, jnp.log(jnp.where(found, total, 1)) + largest, -jnp.inf)


def _distances(sim: Float[Array, "batch batch"]) -> Float[Array, "batch batch"]:
    """``sqrt(2 - 2 s)``, with a gradient of zero where two are the same."""
    squares = 2 - 2 * sim
    apart = squares > 1e-12
    return jnp.where(apart, jnp.sqrt(jnp.where(apart, squares, 1)), 0)
