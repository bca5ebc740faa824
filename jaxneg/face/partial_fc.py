"""Margin softmax over classes that lie on many devices, with or without sampling of their centres.

Partial FC: X. An et al., arXiv:2010.05222 and arXiv:2203.15565. Each device compares all examples with the
centres of its own classes; only one number an example and reduction crosses the mesh. Gradients are exact:
the transpose of ``shard_map`` sums those of the features over the shards once, where insightface multiplies
by the number of processes what DistributedDataParallel then divides by it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxneg.face.arguments import batch_features, batch_labels, check_range, class_weights, unit_rows
from jaxneg.face.class_shards import (
    pad_class_shards,
    padded_classes,
    sample_class_centres,
    shard_class_ranges,
)
from jaxneg.face.magface import MagFace
from jaxneg.face.margins import Head, checked_head, lengths


def sharded_margin_softmax(
    features: Float[Array, "batch dim"],
    weights_shard: Float[Array, "rows dim"],
    labels: Int[Array, " batch"],
    *,
    mesh: Mesh,
    axis: str | tuple[str, ...] = "classes",
    sample_rate: float = 1.0,
    key: PRNGKeyArray | None = None,
    head: str = "cosface",
    s: float = 64.0,
    m: float | Sequence[float] = 0.5,
    extra_log_partition: Float[Array, ""] | None = None,
    interclass_threshold: float = 0.0,
    num_classes: int | None = None,
    uniform: Float[Array, " rows"] | None = None,
    mag: MagFace | Mapping[str, float] | None = None,
    monotone: bool = False,
    straight_through: bool = False,
    return_sampled: bool = False,
) -> Any:
    """Margin softmax whose classes lie on the devices of a mesh axis.

    ``L_i = log(sum_k exp(s C'_ik) + exp(A)) - s C'_iy``, the sum over the classes of all shards that were
    sampled, ``C'`` as in `margin_logits`

    Args:
        features: embeddings of the whole batch; however they lie, each device gets all of them.
        weights_shard: class centres. ``[K, dim]``, or with ``num_classes`` the ``[P ceil(K / P), dim]`` of
            `pad_class_shards`, which lies on the devices as it is when sharded over ``axis``.
        labels: classes 0..K-1.
        mesh: the mesh, with automatic or explicit axes.
        axis: the mesh axis of the classes, or several of them.
        sample_rate: share of each shard's classes that takes part, above 0 and at most 1; the classes of the
            batch always do.
        key: random key of this step, needed with a sample_rate below 1: each shard folds its number into it.
        head: as in `unpg_loss`.
        s: scale.
        m: margin.
        extra_log_partition: A of `unpg_log_partition`, which enters each denominator once.
        interclass_threshold: cosines with other classes above it count as 0, for label noise across classes;
            0 leaves them as they are.
        num_classes: K, where the weights are padded.
        uniform: random numbers to sample with, one for each row of ``weights_shard``, in place of the key's.
        mag: settings of magface, whose regulariser is added.
        monotone: of arcface.
        straight_through: of arcface and combined.
        return_sampled: also return which rows of ``weights_shard`` took part, for `update_sampled_rows`.

    Returns:
        One loss for each example, nats; with ``return_sampled`` also booleans ``[rows]``. Compare losses of
        one sample_rate only: with fewer classes the loss is lower.

    Raises:
        TypeError: features or weights that are not floating, labels that are not integers.
        ValueError: an axis that the mesh has not, shapes that do not fit, labels or settings out of range.

    Source:
        arXiv:2010.05222, Section 3; arXiv:2203.15565, Section 3.

    Example:
        >>> mesh = jax.make_mesh((1,), ("classes",))
        >>> x, labels = jnp.eye(2), jnp.array([0, 1])
        >>> loss = sharded_margin_softmax(x, jnp.eye(2), labels, mesh=mesh, s=1.0, m=0.0)
        >>> round(float(loss[0]), 4)  # log(e + 1) - 1
        0.3133
    """
    axes = (axis,) if isinstance(axis, str) else tuple(axis)
    if missing := [name for name in axes if name not in mesh.shape]:
        raise ValueError(f"axis: the mesh has axes {tuple(mesh.axis_names)}, not {missing[0]!r}")
    check_range("sample_rate", sample_rate, 0, 1)
    if sample_rate == 0:
        raise ValueError("sample_rate: expected more than 0, got 0")
    check_range("interclass_threshold", interclass_threshold, 0, 1)
    if sample_rate < 1 and key is None and uniform is None:
        raise ValueError(f"key: expected a random key with sample_rate {sample_rate}, got None")
    chosen = checked_head(head, s, m, mag, monotone, straight_through)
    features = batch_features(features)
    weights = class_weights(weights_shard, features.shape[1], "weights_shard")
    shards = math.prod(mesh.shape[name] for name in axes)
    given = weights.shape[0]
    classes = given if num_classes is None else num_classes
    if given not in (classes, padded_classes(classes, shards)):
        raise ValueError(
            f"weights_shard: expected {classes} rows, or {padded_classes(classes, shards)} with padding for"
            f" {shards} shards, got {given}"
        )
    labels = batch_labels(labels, features.shape[0], classes)
    if uniform is not None and jnp.shape(uniform) != (given,):
        raise ValueError(
            f"uniform: expected one number for each row of weights_shard, ({given},), got"
            f" {jnp.shape(uniform)}"
        )
    starts, sizes = shard_class_ranges(classes, shards)
    rows = _rows(sizes, sample_rate, len(labels))
    if given == classes:
        weights = pad_class_shards(weights, shards)
        uniform = None if uniform is None else pad_class_shards(jnp.asarray(uniform), shards)
    if extra_log_partition is None:
        extra_log_partition = jnp.full((), -jnp.inf, features.dtype)
    replicated = {"features": features, "labels": labels, "extra": extra_log_partition}
    sharded = {"weights": weights}
    if sample_rate < 1:
        if uniform is None:
            replicated["key"] = jax.random.key_data(key)  # pyright: ignore[reportArgumentType]
        else:
            sharded["uniform"] = jnp.asarray(uniform)
    if any(kind == AxisType.Explicit for kind in mesh.axis_types):
        replicated = jax.tree.map(lambda x: jax.reshard(x, NamedSharding(mesh, P())), replicated)
        sharded = jax.tree.map(lambda x: jax.reshard(x, NamedSharding(mesh, P(axes))), sharded)

    def on_a_shard(replicated: dict[str, Array], sharded: dict[str, Array]) -> tuple[Array, Array]:
        shard = jax.lax.axis_index(axes)
        start, size = jnp.asarray(starts, jnp.int32)[shard], jnp.asarray(sizes, jnp.int32)[shard]
        labels, weights = replicated["labels"], sharded["weights"]
        local = jnp.where((labels >= start) & (labels < start + size), labels - start, -1)
        if sample_rate < 1:
            fresh = None
            if "key" in replicated:
                fresh = jax.random.fold_in(jax.random.wrap_key_data(replicated["key"]), shard)
            counts = jnp.asarray(np.floor(sample_rate * sizes), jnp.int32)
            index, mask, local = sample_class_centres(
                fresh,
                local,
                weights.shape[0],
                counts[shard],
                sharded.get("uniform"),
                present=size,
                rows=rows,
            )
            sampled = (
                jnp.zeros(weights.shape[0], bool)
                .at[jnp.where(mask, index, weights.shape[0])]
                .set(True, mode="drop")
            )
            weights = weights[jnp.maximum(index, 0)]
        else:
            mask = sampled = jnp.arange(weights.shape[0]) < size
        losses = _losses_of_a_shard(
            chosen,
            replicated["features"],
            weights,
            local,
            mask,
            replicated["extra"],
            interclass_threshold,
            axes,
        )
        valid = (labels >= 0) & (labels < classes)
        return jnp.where(valid, losses, jnp.nan), sampled

    losses, sampled = jax.shard_map(on_a_shard, mesh=mesh, in_specs=(P(), P(axes)), out_specs=(P(), P(axes)))(
        replicated, sharded
    )
    losses += chosen.regulariser(lengths(features))
    return (losses, sampled) if return_sampled else losses


def _rows(sizes: np.ndarray, sample_rate: float, batch: int) -> int:
    """How many centres a shard gathers: enough for its sample, and for a batch of its own classes alone."""
    largest = int(sizes.max())
    return min(largest, max(int(np.floor(sample_rate * largest)), min(batch, largest)))


def _losses_of_a_shard(
    head: Head,
    features: Array,
    weights: Array,
    local: Array,
    mask: Array,
    extra: Array,
    interclass_threshold: float,
    axes: tuple[str, ...],
) -> Float[Array, " batch"]:
    """Losses of all examples, from the logits with the classes of this shard and sums over all shards."""
    norm = lengths(features)
    cosine = jnp.clip(unit_rows(features) @ unit_rows(weights).T, -1, 1)
    hit = jnp.arange(weights.shape[0]) == local[:, None]
    target = jax.lax.psum(jnp.sum(jnp.where(hit, cosine, 0), axis=1), axes)
    target = head.margined(target, norm)
    if interclass_threshold:
        cosine = jnp.where(cosine > interclass_threshold, 0, cosine)
    scale = head.scale(norm)
    positive, negative = jnp.squeeze(scale * target[:, None], 1), scale * cosine
    others = mask & ~hit
    largest = jnp.max(jax.lax.stop_gradient(negative), axis=1, where=others, initial=-jnp.inf)
    largest = jax.lax.stop_gradient(jnp.maximum(jnp.maximum(jax.lax.pmax(largest, axes), extra), positive))
    total = jax.lax.psum(jnp.sum(jnp.exp(negative - largest[:, None]), axis=1, where=others), axes)
    total += jnp.exp(extra - largest) + jnp.exp(positive - largest)
    return jnp.log(total) + largest - positive
