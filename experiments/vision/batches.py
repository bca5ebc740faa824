"""Batches of examples that are read one at a time, as grain data sets with a position.

The n-th example of a run is augmented by random numbers of n alone, so that a resumed run, and one on
several processes, sees the same images.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import grain
import numpy as np

from jaxneg.train import pipeline

Example = dict[str, np.ndarray]


class Source(Protocol):
    """Examples by number."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Example: ...


def training_batches(
    source: Source,
    batch_size: int,
    seed: int,
    shard: tuple[int, int],
    augment: Callable[[Example, np.random.Generator], Example] | None = None,
) -> grain.MapDataset[Example]:
    """Shuffled batches without end.

    Args:
        source: of the examples.
        batch_size: examples of a batch of all processes.
        seed: of order and augmentation.
        shard: which part of each batch is this process's, as `jaxneg.train.pipeline` takes it.
        augment: changes an example at random.

    Returns:
        The data set.
    """
    index, count = shard
    rows = batch_size // count

    def load(number: int, chosen: dict[str, np.ndarray]) -> Example:
        first = number * batch_size + index * rows
        examples = [source[int(example)] for example in chosen["example"]]
        if augment is not None:
            examples = [
                augment(example, np.random.default_rng((seed, first + row)))
                for row, example in enumerate(examples)
            ]
        return _stacked(examples)

    numbers = {"example": np.arange(len(source))}
    return pipeline(numbers, batch_size, seed=seed, shard=shard).map_with_index(load)


def evaluation_batches(
    source: Source, batch_size: int, shard: tuple[int, int], batches: int | None = None
) -> grain.MapDataset[Example]:
    """Every example once, in order; what is missing in the last batch is filled with unlabelled ones.

    Args:
        source: of the examples.
        batch_size: examples of a batch of all processes.
        shard: which part of each batch is this process's.
        batches: how many, if more than the examples need.

    Returns:
        The data set.
    """
    index, count = shard
    rows = batch_size // count
    blank = {
        kind: np.full_like(array, -1 if array.dtype.kind == "i" else 0) for kind, array in source[0].items()
    }

    def load(number: int) -> Example:
        first = number * batch_size + index * rows
        return _stacked([source[n] if n < len(source) else blank for n in range(first, first + rows)])

    return grain.MapDataset.range(batches or -(-len(source) // batch_size)).map(load)


def side_by_side(datasets: Sequence[grain.MapDataset[Example]]) -> grain.MapDataset[Example]:
    """The batches of several data sets with a leading axis for the data set.

    Args:
        datasets: all without end, or of the same length.

    Returns:
        The data set.
    """
    length = len(datasets[0])
    return grain.MapDataset.range(length).map(
        lambda number: _stacked([dataset[number] for dataset in datasets])
    )


def read_ahead(dataset: grain.MapDataset[Example], threads: int) -> grain.IterDataset[Example]:
    """The batches in order, some of them read before they are asked for.

    Args:
        dataset: of batches.
        threads: that read, each a batch; 0 reads when asked.

    Returns:
        An iterable whose iterator knows its position.
    """
    return dataset.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads))


def _stacked(examples: Sequence[Any]) -> Example:
    return {kind: np.stack([example[kind] for example in examples]) for kind in examples[0]}
