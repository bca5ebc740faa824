"""Batches: a grain pipeline over arrays, split over processes, and global arrays from each process's rows.

The order of the examples depends on the seed alone. Every process draws the same global batches and takes its
rows of each, so that a run on two processes sees what a run on one sees, and the position in the data is one
number. An epoch is one permutation, drawn at once: grain's own shuffle computes the place of every example
separately, which costs more than the step of a small model.
"""

import functools
import sys
from collections.abc import Mapping
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from numpy.typing import ArrayLike

from jaxneg.train.mesh import path_name


def pipeline(
    arrays: Mapping[str, ArrayLike],
    batch_size: int,
    *,
    seed: int = 0,
    shuffle: bool = True,
    epochs: int | None = None,
    shard: tuple[int, int] | None = None,
) -> grain.MapDataset[dict[str, np.ndarray]]:
    """Shuffled, repeated batches of arrays, as a grain data set that may be mapped further.

    Batches run across the ends of epochs; after the last epoch an incomplete batch is dropped.

    Args:
      arrays: Arrays by name with the examples on their leading axis.
      batch_size: Number of examples in a global batch.
      seed: Seed of the shuffle; each epoch has an order of its own.
      shuffle: Whether to shuffle.
      epochs: How often to go through the data; without end if None.
      shard: ``(index, count)``: yield the ``index``-th of ``count`` equal parts of every global batch; by
        default process i of n yields part i of n. :func:`process_shard` gives it for any sharding.

    Returns:
      The data set. :func:`fit` takes it as it is; ``data.to_iter_dataset()`` reads ahead with threads.

    Raises:
      ValueError: For no arrays, arrays of different lengths (the message names the one that differs), no
        examples, or a batch size or shard that does not fit.

    Example:
      >>> import numpy as np
      >>> from jaxneg.train import pipeline
      >>> pipeline({"x": np.arange(10)}, 4, shuffle=False, shard=(1, 2))[1]["x"].tolist()
      [6, 7]
    """
    columns = {name: np.asarray(array) for name, array in arrays.items()}
    size = _length(columns)
    index, count = shard or (jax.process_index(), jax.process_count())
    if not 0 <= index < count:
        raise ValueError(f"shard: expected (index, count) with 0 <= index < count, got {(index, count)}")
    if not 1 <= batch_size <= size:
        raise ValueError(f"batch_size: expected 1 to {size}, the number of examples, got {batch_size}")
    if batch_size % count:
        raise ValueError(f"batch_size: {batch_size} does not divide by the number of shards, {count}")
    if seed < 0:
        raise ValueError(f"seed: expected at least 0, got {seed}")
    if epochs is not None and epochs < 1:
        raise ValueError(f"epochs: expected at least 1 or None, got {epochs}")
    rows = batch_size // count

    @functools.lru_cache(maxsize=2)
    def order(epoch: int) -> np.ndarray:
        return np.random.default_rng((seed, epoch)).permutation(size) if shuffle else np.arange(size)

    def load(number: int) -> dict[str, np.ndarray]:
        epoch, start = divmod(number * batch_size + index * rows, size)
        chosen = order(epoch)[start : start + rows]
        if len(chosen) < rows:
            chosen = np.concatenate([chosen, order(epoch + 1)[: rows - len(chosen)]])
        return {name: column[chosen] for name, column in columns.items()}

    return grain.MapDataset.range(sys.maxsize if epochs is None else epochs * size // batch_size).map(load)


def process_shard(sharding: NamedSharding) -> tuple[int, int]:
    """Which part of a global batch lies on the devices of this process.

    Args:
      sharding: The sharding of the batch, whose leading axis holds the examples.

    Returns:
      ``(index, count)``, as :func:`pipeline` takes it: ``(0, 1)`` where this process holds the whole batch.

    Raises:
      ValueError: If the process's rows are no contiguous part of the batch.

    Example:
      >>> import jax
      >>> from jaxneg.train import make_mesh, process_shard
      >>> process_shard(jax.NamedSharding(make_mesh({"data": -1}), jax.P("data")))
      (0, 1)
    """
    axes = sharding.spec[0] if len(sharding.spec) else None
    names = (axes,) if isinstance(axes, str) else tuple(axes or ())
    parts = int(np.prod([sharding.mesh.shape[name] for name in names], dtype=int))
    held = NamedSharding(sharding.mesh, P(axes)).addressable_devices_indices_map((parts,))
    rows = sorted({indices[0].start or 0 for indices in held.values() if indices is not None})
    if rows != list(range(rows[0], rows[0] + len(rows))) or rows[0] % len(rows) or parts % len(rows):
        raise ValueError(f"sharding: expected one share of the batch, got the parts {rows} of {parts}")
    return rows[0] // len(rows), parts // len(rows)


def global_batch(batch: Any, sharding: Any) -> Any:
    """Global arrays of which each process contributes the rows that lie on its devices.

    Args:
      batch: This process's part of a batch: a tree of arrays. One that lies there already stays.
      sharding: A ``NamedSharding`` for all arrays, or a tree of them (``shard_step(...).batch_shardings``).

    Returns:
      A tree of ``jax.Array``s on the mesh.

    Raises:
      ValueError: If an array's shape does not divide over the sharding.

    Example:
      >>> import jax, numpy as np
      >>> from jaxneg.train import global_batch, make_mesh
      >>> sharding = jax.NamedSharding(make_mesh({"data": -1}), jax.P("data"))
      >>> global_batch({"x": np.zeros((16, 3))}, sharding)["x"].shape
      (16, 3)
    """

    def place(path: tuple[Any, ...], part: ArrayLike, placed: NamedSharding) -> jax.Array:
        if isinstance(part, jax.Array) and part.sharding == placed:
            return part
        try:
            return jax.make_array_from_process_local_data(placed, np.asarray(part))
        except ValueError as error:
            raise ValueError(f"batch: {path_name(path) or 'the array'}: {error}") from error

    return jax.tree_util.tree_map_with_path(place, batch, jax.tree.broadcast(sharding, batch))


def _length(columns: Mapping[str, np.ndarray]) -> int:
    if not columns:
        raise ValueError("arrays: expected at least one array, got none")
    first, *others = columns
    for name, column in columns.items():
        if column.ndim == 0:
            raise ValueError(f"arrays: {name!r} is a scalar; expected examples on a leading axis")
    size = len(columns[first])
    for name in others:
        if len(columns[name]) != size:
            raise ValueError(f"arrays: {name!r} has {len(columns[name])} examples, but {first!r} has {size}")
    if size == 0:
        raise ValueError(f"arrays: {first!r} holds no examples")
    return size
