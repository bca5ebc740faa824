"""Which shard holds which classes, in which layout, and which of them take part in a step.

The first half of Partial FC: X. An et al., arXiv:2010.05222 and arXiv:2203.15565, as insightface's
``partial_fc_v2.py`` has it. All shapes are static: every shard has as many rows as the largest, and the rows
that are no class are masked.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, PRNGKeyArray

from jaxneg.face.order_statistics import kth_smallest


def shard_class_ranges(num_classes: int, num_shards: int) -> tuple[np.ndarray, np.ndarray]:
    """Where each shard's classes begin, and how many they are.

    ``n_r = K // P + (r < K mod P)``, ``c_r = (K // P) r + min(r, K mod P)``

    Args:
        num_classes: K, all classes.
        num_shards: P, of which none may be left without a class.

    Returns:
        First classes and numbers of classes, ``[num_shards]`` each.

    Raises:
        ValueError: no shard, or fewer classes than shards.

    Source:
        insightface, ``partial_fc_v2.py``.

    Example:
        >>> [part.tolist() for part in shard_class_ranges(10, 4)]
        [[0, 3, 6, 8], [3, 3, 2, 2]]
    """
    if num_shards < 1:
        raise ValueError(f"num_shards: expected at least 1, got {num_shards}")
    if num_classes < num_shards:
        raise ValueError(
            f"num_classes: expected at least one for each of {num_shards} shards, got {num_classes}"
        )
    each, more = divmod(num_classes, num_shards)
    shards = np.arange(num_shards)
    return each * shards + np.minimum(shards, more), each + (shards < more)


def padded_classes(num_classes: int, num_shards: int) -> int:
    """Rows of a matrix of class centres whose shards are all as large as the largest.

    Args:
        num_classes: all classes.
        num_shards: of the matrix.

    Returns:
        ``P ceil(K / P)``.

    Example:
        >>> padded_classes(10, 4)
        12
    """
    _, sizes = shard_class_ranges(num_classes, num_shards)
    return num_shards * int(sizes.max())


def class_rows(num_classes: int, num_shards: int) -> np.ndarray:
    """The row that each class has in the padded matrix.

    Args:
        num_classes: all classes.
        num_shards: of the matrix.

    Returns:
        ``[num_classes]``, rising.

    Example:
        >>> class_rows(5, 2).tolist()
        [0, 1, 2, 3, 4]
        >>> class_rows(7, 3).tolist()
        [0, 1, 2, 3, 4, 6, 7]
    """
    starts, sizes = shard_class_ranges(num_classes, num_shards)
    classes = np.arange(num_classes)
    shard = np.searchsorted(starts, classes, side="right") - 1
    return shard * sizes.max() + classes - starts[shard]


def pad_class_shards(weights: Float[Array, "classes dim"], num_shards: int) -> Float[Array, "rows dim"]:
    """Class centres with rows of zeros at the end of each shard that has a class less than others.

    Args:
        weights: of all classes.
        num_shards: that the rows are to be split into.

    Returns:
        ``P ceil(K / P)`` rows; ``padded[class_rows(K, P)]`` are the classes again.

    Example:
        >>> pad_class_shards(jnp.ones((7, 1)), 3).ravel().tolist()
        [1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0]
    """
    classes = weights.shape[0]
    rows = padded_classes(classes, num_shards)
    if rows == classes:
        return weights
    return (
        jnp.zeros((rows, *weights.shape[1:]), weights.dtype).at[class_rows(classes, num_shards)].set(weights)
    )


def sample_class_centres(
    key: PRNGKeyArray | None,
    labels_local: Int[Array, " batch"],
    size: int,
    num_sample: ArrayLike,
    uniform: Float[Array, " size"] | None = None,
    *,
    present: ArrayLike | None = None,
    rows: int | None = None,
) -> tuple[Int[Array, " rows"], Bool[Array, " rows"], Int[Array, " batch"]]:
    """The classes of a shard that take part in a step: those of the batch, and random others.

    ``max(num_sample, positives)`` of them, without replacement, all positives among them.

    Args:
        key: random key; may be None if ``uniform`` is given.
        labels_local: classes 0..size-1 of this shard, -1 for those of other shards.
        size: rows of the shard.
        num_sample: how many classes to take; more if the batch has more.
        uniform: random numbers in [0, 1) to draw with: the largest are taken. None draws them.
        present: how many of the rows are classes, the first ones; None: all. May differ between devices.
        rows: length of the result, needed where ``num_sample`` is traced.

    Returns:
        Rows of the shard, rising, -1 where there are no more; which of them are true; and the labels as
        places in that list, -1 where they were.

    Raises:
        ValueError: num_sample below 0, uniform of another shape, no key.

    Source:
        insightface, ``partial_fc_v2.py``, ``sample``.

    Example:
        >>> u = jnp.array([0.9, 0.1, 0.5, 0.2])
        >>> index, mask, labels = sample_class_centres(None, jnp.array([3, -1]), 4, 2, u)
        >>> index.tolist(), mask.tolist(), labels.tolist()
        ([0, 3], [True, True], [1, -1])
    """
    if isinstance(num_sample, int) and num_sample < 0:
        raise ValueError(f"num_sample: expected 0 or more, got {num_sample}")
    if uniform is None and key is None:
        raise ValueError("key: expected a random key, got None without uniform")
    if uniform is not None and jnp.shape(uniform) != (size,):
        raise ValueError(f"uniform: expected one number for each row, ({size},), got {jnp.shape(uniform)}")
    if rows is None:
        rows = min(size, max(int(num_sample), labels_local.shape[0]))  # pyright: ignore[reportArgumentType]
    u = jax.random.uniform(key, (size,)) if uniform is None else jnp.asarray(uniform)  # pyright: ignore
    present = size if present is None else present
    true = jnp.arange(size) < present
    positive = (
        jnp.zeros(size, bool).at[jnp.where(labels_local >= 0, labels_local, size)].set(True, mode="drop")
    )
    u = jnp.where(positive, 2, u).astype(u.dtype)
    taken = jnp.clip(jnp.maximum(num_sample, jnp.sum(positive)), 0, jnp.minimum(present, rows))
    # The threshold of the largest, then of those equal to it as many as are missing, the first ones.
    rank = jnp.clip(present - taken, 0, size - 1).astype(jnp.int32)
    (threshold,) = kth_smallest(u, true, rank[None])
    above, equal = true & (u > threshold), true & (u == threshold)
    kept = above | (equal & (jnp.cumsum(equal) <= taken - jnp.sum(above)))
    (index,) = jnp.nonzero(kept, size=rows, fill_value=size)
    mask = index < size
    remapped = jnp.where(labels_local >= 0, jnp.searchsorted(index, labels_local), -1)
    return jnp.where(mask, index, -1), mask, remapped.astype(labels_local.dtype)
