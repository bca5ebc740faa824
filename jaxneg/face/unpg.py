"""UNPG: the negatives of class centres and those of image pairs in one softmax denominator.

Paper: J. Jung et al., "Unified Negative Pair Generation toward Well-discriminative Feature Space for Face
Recognition", arXiv:2203.11593 (BMVC 2022). The authors' code appends the similarities of all in-batch
negative pairs to every row of the logits, ``[batch, classes + pairs]``. All rows get the same ones, so that
their part of every denominator is one number, the log-partition A: the same loss in ``O(batch classes +
batch^2)``.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from jaxneg.face.arguments import (
    batch_features,
    batch_labels,
    check_positive,
    class_weights,
    everywhere,
    rows_by_rows,
    unit_rows,
)
from jaxneg.face.box_whisker import box_whisker_mask
from jaxneg.face.magface import MagFace
from jaxneg.face.margins import checked_head, lengths
from jaxneg.face.pairs import masked_logsumexp, pair_similarities


def unpg_log_partition(
    features: Float[Array, "batch dim"],
    labels: Int[Array, " batch"],
    *,
    s: ArrayLike = 64.0,
    r: ArrayLike = 1.5,
    axis_name: Hashable | None = None,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """What all negative pairs of the batch add to every denominator.

    ``A = log sum_{v in S'} exp(s v)``, S' the cosines of the pairs i < j of two classes that
    `box_whisker_mask` keeps

    Args:
        features: embeddings, of any length.
        labels: their classes.
        s: scale.
        r: length of the filter's whiskers; infinity keeps all pairs.
        axis_name: mesh axis, or a tuple of them, over which the batch is split, inside ``shard_map``: pairs,
            quartiles and A are those of the whole batch, of which each device holds its rows.

    Returns:
        A, minus infinity where no pair is kept; and ``n_neg``, ``n_kept`` (numbers of pairs), ``q1``, ``q3``,
        ``lower``, ``upper`` (the filter's, which have no gradient).

    Raises:
        TypeError: features that are not floating, labels that are not integers.
        ValueError: shapes that do not fit, a scale that is not positive, a negative r.

    Source:
        arXiv:2203.11593, Section 3.

    Example:
        >>> A, stats = unpg_log_partition(jnp.eye(3), jnp.array([0, 0, 1]), s=1.0)
        >>> round(float(A), 4), int(stats["n_neg"])
        (0.6931, 2)
    """
    check_positive(s=s)
    if axis_name is None:
        sim, _, negative = pair_similarities(features, labels)
    else:
        features = batch_features(features)
        labels = batch_labels(labels, features.shape[0])
        unit = unit_rows(features)
        sim = unit @ jax.lax.all_gather(unit, axis_name, tiled=True).T
        negative = _negative_pairs(labels, axis_name)
    kept, (q1, q3, lower, upper) = box_whisker_mask(sim, negative, r, axis_name=axis_name)
    counts = jnp.stack([jnp.sum(x, dtype=jnp.int32) for x in (negative, kept)])
    scale = jnp.asarray(s, sim.dtype)
    if axis_name is None:
        log_partition = masked_logsumexp(scale * sim, kept)
    else:
        counts = jax.lax.psum(counts, axis_name)
        log_partition = _logsumexp_over(scale * sim, kept, counts[1] > 0, axis_name)
    stats = {"n_neg": counts[0], "n_kept": counts[1], "q1": q1, "q3": q3, "lower": lower, "upper": upper}
    return log_partition, stats


def unpg_loss(
    features: Float[Array, "batch dim"],
    weights: Float[Array, "classes dim"],
    labels: Int[Array, " batch"],
    *,
    head: str = "cosface",
    s: float = 64.0,
    m: float | Sequence[float] = 0.5,
    r: ArrayLike | None = 1.5,
    mag: MagFace | Mapping[str, float] | None = None,
    axis_name: Hashable | None = None,
    monotone: bool = False,
    straight_through: bool = False,
) -> tuple[Float[Array, " batch"], dict[str, Array]]:
    """Margin softmax whose denominator also holds the batch's own negative pairs.

    ``L_i = -s p_i + log(exp(s p_i) + sum_{k != y_i} exp(s C_ik) + exp(A))``, ``p_i`` the cosine at the true
    class with its margin, ``A`` of `unpg_log_partition`

    Every anchor gets the pairs that it is no part of, too: each positive is to exceed all negatives of the
    batch.

    Args:
        features: embeddings, of any length.
        weights: class centres, of any length.
        labels: classes 0..K-1.
        head: "softmax" or "normface", "cosface", "arcface", "magface", "sphereface", "combined".
        s: scale; 16 to 32 for fewer than a thousand classes.
        m: margin, see `margin_logits`.
        r: length of the filter's whiskers; infinity keeps all pairs, None leaves the pairs out: the plain
            head.
        mag: settings of magface.
        axis_name: as in `unpg_log_partition`; the weights are whole on each device. For classes on many
            devices see `sharded_margin_softmax`.
        monotone: of arcface, see `arcface_cosine`.
        straight_through: of arcface and combined, see `arcface_cosine`.

    Returns:
        One loss for each example, nats, MagFace's regulariser included; and ``cross_entropy`` and
        ``regulariser`` (its parts, ``[batch]``), ``target`` (``p_i``), ``log_partition`` and the statistics
        of `unpg_log_partition` (of 0 kept pairs where r is None). A label of no class gives NaN under jit.

    Raises:
        TypeError: features or weights that are not floating, labels that are not integers.
        ValueError: shapes that do not fit, labels out of range, an unknown head, settings out of range.

    Source:
        arXiv:2203.11593, Section 3.

    Example:
        >>> loss, _ = unpg_loss(jnp.eye(2), jnp.eye(2), jnp.array([0, 1]), s=1.0, m=0.0)
        >>> round(float(loss[0]), 4)  # log(e + 1 + 1) - 1: a centre and a pair
        0.5514
    """
    chosen = checked_head(head, s, m, mag, monotone, straight_through)
    features = batch_features(features)
    weights = class_weights(weights, features.shape[1])
    labels = batch_labels(labels, features.shape[0], weights.shape[0])
    if r is None:
        log_partition, stats = _no_log_partition(labels, features.dtype, axis_name)
    else:
        log_partition, stats = unpg_log_partition(features, labels, s=s, r=r, axis_name=axis_name)

    norm = lengths(features)
    cosine = rows_by_rows(unit_rows(features), unit_rows(weights))
    hit = jnp.arange(weights.shape[0]) == labels[:, None]
    target = chosen.margined(jnp.sum(jnp.where(hit, cosine, 0), axis=1), norm)
    target = jnp.where((labels >= 0) & (labels < weights.shape[0]), target, jnp.nan)
    scale = chosen.scale(norm)
    positive, negative = jnp.squeeze(scale * target[:, None], 1), scale * cosine
    largest = jnp.max(negative, axis=1, where=~hit, initial=-jnp.inf)
    largest = jax.lax.stop_gradient(jnp.maximum(jnp.maximum(largest, log_partition), positive))
    total = jnp.sum(jnp.exp(negative - largest[:, None]), axis=1, where=~hit)
    total += jnp.exp(log_partition - largest) + jnp.exp(positive - largest)
    cross_entropy = jnp.log(total) + largest - positive
    regulariser = chosen.regulariser(norm)
    aux = {
        "cross_entropy": cross_entropy,
        "regulariser": regulariser,
        "target": target,
        "log_partition": log_partition,
        **stats,
    }
    return cross_entropy + regulariser, aux


def _negative_pairs(labels: Array, axis_name: Any) -> Bool[Array, "rows batch"]:
    """Pairs i < j of two classes, of which a device has the rows of its own examples."""
    if axis_name is None:
        return jnp.triu(labels[:, None] != everywhere(labels), 1)
    others = jax.lax.all_gather(labels, axis_name, tiled=True)
    rows = jax.lax.axis_index(axis_name) * len(labels) + jnp.arange(len(labels))
    return (labels[:, None] != others) & (rows[:, None] < jnp.arange(len(others)))


def _no_log_partition(labels: Array, dtype: Any, axis_name: Any) -> tuple[Array, dict[str, Array]]:
    """A and its statistics where the pairs are left out: minus infinity, and how many there are."""
    count = jnp.sum(_negative_pairs(labels, axis_name), dtype=jnp.int32)
    count = count if axis_name is None else jax.lax.psum(count, axis_name)
    bounds = dict.fromkeys(("q1", "q3", "lower", "upper"), jnp.zeros((), dtype))
    return jnp.full((), -jnp.inf, dtype), {"n_neg": count, "n_kept": jnp.zeros((), jnp.int32), **bounds}


def _logsumexp_over(values: Array, mask: Array, found: Array, axis_name: Any) -> Float[Array, ""]:
    """`masked_logsumexp` of values that lie on several devices."""
    largest = jnp.max(jax.lax.stop_gradient(values), where=mask, initial=-jnp.inf)
    largest = jnp.where(found, jax.lax.pmax(largest, axis_name), 0)
    terms = jnp.where(mask, jnp.exp(jnp.where(mask, values, largest) - largest), 0)
    total = jax.lax.psum(jnp.sum(terms), axis_name)
    return jnp.where(found, jnp.log(jnp.where(found, total, 1)) + largest, -jnp.inf)
