"""Pooling bias, simulated where everything is judged, and the filters that CET is compared with.

Cai et al., arXiv:2209.05072: annotators judge what a basic retriever returned, the pool. On a collection with
full judgments the pool can be simulated, and the false negatives among mined negatives counted exactly.
"""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from jaxneg.retrieval.masked import at_least_float32


def pool_labels(
    basic_scores: Float[Array, "*queries documents"], rel: Array, k: int
) -> Bool[Array, "*queries documents"]:
    """What annotators would have labelled: relevant, and among the basic retriever's first k.

    label = rel and rank(basic_scores) <= k

    Args:
        basic_scores: of the retriever that made the pool; the higher the better, equal ones in the order of
            the documents; minus infinity or NaN: not retrieved.
        rel: true relevance; above 0 is relevant.
        k: depth of the pool, at least 1.

    Returns:
        Labels; a query without a relevant document in its pool has none.

    Raises:
        ValueError: shapes that differ, or a k below 1.

    Source:
        arXiv:2209.05072, the pooling process.

    Example:
        >>> pool_labels(jnp.array([3.0, 2.0, 1.0]), jnp.array([0, 1, 1]), 2).tolist()
        [False, True, False]
    """
    scores, rel = at_least_float32(basic_scores), jnp.asarray(rel)
    if rel.shape != scores.shape or scores.ndim == 0:
        raise ValueError(f"rel: expected the shape of basic_scores, {scores.shape}, got {rel.shape}")
    if k < 1:
        raise ValueError(f"k: expected at least 1, got {k}")
    rank = jnp.argsort(jnp.argsort(-scores, axis=-1, stable=True), axis=-1)
    return (rel > 0) & (rank < k) & (scores > -jnp.inf)


def top_negatives(
    scores: Float[Array, "*queries documents"], label: Array, n: int
) -> Int[Array, "*queries n"]:
    """The n first documents of a retriever that are not labelled.

    Args:
        scores: of the retriever; equal ones in the order of the documents; minus infinity or NaN: not
            retrieved.
        label: what is labelled positive, as of `pool_labels`.
        n: number of negatives, at least 1.

    Returns:
        Document numbers, the best first; -1 where a query has no further document.

    Raises:
        ValueError: shapes that differ, or an n below 1.

    Source:
        arXiv:2209.05072: negatives are top-ranked unlabelled documents.

    Example:
        >>> top_negatives(jnp.array([3.0, 2.0, 1.0]), jnp.array([False, True, False]), 3).tolist()
        [0, 2, -1]
    """
    scores, label = at_least_float32(scores), jnp.asarray(label)
    if label.shape != scores.shape or scores.ndim == 0:
        raise ValueError(f"label: expected the shape of scores, {scores.shape}, got {label.shape}")
    if n < 1:
        raise ValueError(f"n: expected at least 1, got {n}")
    usable = (label <= 0) & (scores > -jnp.inf)
    found, index = jax.lax.top_k(jnp.where(usable, scores, -jnp.inf), min(n, scores.shape[-1]))
    index = jnp.where(found > -jnp.inf, index, -1)
    missing = [(0, 0)] * (index.ndim - 1) + [(0, n - index.shape[-1])]
    return jnp.pad(index, missing, constant_values=-1)


def oracle_weight(neg_rel: ArrayLike) -> Float[Array, "*pairs"]:
    """Weight 1 for a negative that is truly not relevant, else 0: the ceiling, where all is judged.

    Args:
        neg_rel: true relevance of the negative; above 0 is relevant.

    Returns:
        Weights for ``pair_weight`` of `make_cet_step`.

    Source:
        A baseline of ours for arXiv:2209.05072.

    Example:
        >>> oracle_weight(jnp.array([0, 1])).tolist()
        [1.0, 0.0]
    """
    return (jnp.asarray(neg_rel) <= 0).astype(jnp.float32)


def denoise_weight(neg_teacher: ArrayLike, threshold: float | Array) -> Float[Array, "*pairs"]:
    """Weight 1 for a negative that a teacher scores no higher than a threshold, else 0.

    Args:
        neg_teacher: the teacher's score of the negative.
        threshold: for instance the teacher's median score of labelled positives.

    Returns:
        Weights for ``pair_weight`` of `make_cet_step`; 0 where a score is NaN.

    Source:
        Qu et al., RocketQA, arXiv:2010.08191, denoised hard negatives.

    Example:
        >>> denoise_weight(jnp.array([0.2, 0.9]), 0.5).tolist()
        [1.0, 0.0]
    """
    return (jnp.asarray(neg_teacher) <= threshold).astype(jnp.float32)


def perc_pos_weight(
    pos_score: ArrayLike, neg_score: ArrayLike, share: float = 0.95
) -> Float[Array, "*pairs"]:
    """Weight 1 for a negative that scores at most a share of the positive's score, else 0.

    w = 1[s(d-) <= s(d+) - (1 - share) |s(d+)|]

    Args:
        pos_score: similarity of query and positive.
        neg_score: similarity of query and negative.
        share: of the positive's score, in (0, 1].

    Returns:
        Weights for ``pair_weight`` of `make_cet_step`; 0 where a score is NaN.

    Raises:
        ValueError: shapes that differ, or a share out of range.

    Source:
        TopK-PercPos of NV-Retriever, arXiv:2407.15831, safe where the positive's score is negative.

    Example:
        >>> perc_pos_weight(jnp.array([1.0, 1.0]), jnp.array([0.94, 0.96])).tolist()
        [1.0, 0.0]
    """
    pos, neg = (at_least_float32(jnp.asarray(scores)) for scores in (pos_score, neg_score))
    if pos.shape != neg.shape:
        raise ValueError(f"neg_score: expected the shape of pos_score, {pos.shape}, got {neg.shape}")
    if not 0 < share <= 1:
        raise ValueError(f"share: expected a number in (0, 1], got {share}")
    return (neg <= pos - (1 - share) * jnp.abs(pos)).astype(jnp.float32)
