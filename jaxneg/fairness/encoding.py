"""Generalised tables as numbers for a model, and the split of their rows.

The official pipeline of arXiv:2505.07985 gives each label its place among the labels of its column that occur
in the training and the test table together.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxneg.fairness.arguments import Data, wide
from jaxneg.fairness.hierarchies import generalised

ENCODINGS = ("lexicographic", "rank", "onehot")
LEAST_DEVIATION = 1e-6


class Split(NamedTuple):
    """Rows for training and for the test.

    Attributes:
      train: Row numbers.
      test: Row numbers.
    """

    train: Int[np.ndarray, " train"]
    test: Int[np.ndarray, " test"]


def train_test_split(n: int, seed: int, test_size: float = 0.2) -> Split:
    """The split that scikit-learn's function of this name makes with ``random_state=seed``.

    A permutation of the rows; its first ``ceil(test_size n)`` are the test.

    Args:
      n: Number of rows.
      seed: Of numpy's legacy generator.
      test_size: Share of the test.

    Returns:
      Row numbers, in the order of the permutation.

    Raises:
      ValueError: If one of the two would be empty.

    Source:
      scikit-learn ``ShuffleSplit``.

    Example:
      >>> from jaxneg.fairness import train_test_split
      >>> train_test_split(5, 0).test.tolist()
      [2]
    """
    tests = int(np.ceil(test_size * n))
    if not 0 < tests < n:
        raise ValueError(
            f"n, test_size: expected rows for training and test, got {n} rows and a share of {test_size}"
        )
    # The official splits are of this legacy generator.
    order = np.random.RandomState(seed).permutation(n)
    return Split(order[tests:].astype(np.int32), order[:tests].astype(np.int32))


def encode(
    X_train: Int[Data, "train columns"],
    X_test: Int[Data, "test columns"],
    ranks: Int[Data, "columns levels values"],
    levels: Int[Data, " columns"],
    test_levels: Int[Data, " columns"],
    keep: Bool[Data, " train"],
    num_ranks: int,
) -> tuple[Int[Array, "train columns"], Int[Array, "test columns"]]:
    """The place of each label among those that occur in the released rows or the test.

    Args:
      X_train: Codes of base values.
      X_test: Likewise.
      ranks: Places of the labels, as :func:`label_ranks` gives them.
      levels: Of the columns in the training table.
      test_levels: Of the columns in the test table.
      keep: The released rows; others get the place of the next smaller label that occurs.
      num_ranks: A number above all ranks.

    Returns:
      Codes from 0 without gaps.

    Example:
      >>> import numpy as np
      >>> from jaxneg.fairness import encode, label_ranks
      >>> ranks, level = label_ranks([[["2", "*"], ["10", "*"]]]), np.array([0])
      >>> codes = encode(np.array([[0]]), np.array([[1]]), ranks, level, level, np.array([True]), 3)
      >>> [code.tolist() for code in codes]
      [[[1]], [[0]]]
    """
    ranks, keep = jnp.asarray(ranks), jnp.asarray(keep)
    train = generalised(jnp.asarray(X_train), ranks, jnp.asarray(levels))
    test = generalised(jnp.asarray(X_test), ranks, jnp.asarray(test_levels))
    columns = jnp.arange(train.shape[1])
    present = jnp.zeros((train.shape[1], num_ranks), bool)
    present = present.at[columns, train].max(keep[:, None]).at[columns, test].set(True)
    place = jnp.maximum(jnp.cumsum(present, axis=1, dtype=jnp.int32) - 1, 0)
    return place[columns, train], place[columns, test]


def standardise(
    train: Float[Data, "train features"], test: Float[Data, "test features"], weight: Float[Data, " train"]
) -> tuple[Float[Array, "train features"], Float[Array, "test features"]]:
    """Both tables less the training table's mean, over its deviation.

    Args:
      train: Numbers.
      test: Numbers.
      weight: Of the training rows, 0 where a row was dropped.

    Returns:
      In float32 or wider. A column with a population deviation below 1e-6 is not divided.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxneg.fairness import standardise
      >>> train, test = jnp.array([[0.0], [2.0], [9.0]]), jnp.array([[3.0]])
      >>> standardise(train, test, jnp.array([1.0, 1.0, 0.0]))[1].tolist()
      [[2.0]]
    """
    train, test = wide(jnp.asarray(train)), wide(jnp.asarray(test))
    weight = wide(jnp.asarray(weight)).astype(train.dtype)
    total = jnp.maximum(jnp.sum(weight), 1)
    mean = weight @ train / total
    deviation = jnp.sqrt(weight @ jnp.square(train - mean) / total)
    deviation = jnp.where(deviation < LEAST_DEVIATION, 1, deviation)
    return (train - mean) / deviation, (test - mean) / deviation


def one_hot(codes: Int[Data, "rows columns"], num_codes: int) -> Float[Array, "rows features"]:
    """A feature for each code of each column.

    Args:
      codes: Below ``num_codes``.
      num_codes: The most codes that a column has.

    Returns:
      Zeros and ones, ``columns * num_codes`` of them in a row.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxneg.fairness import one_hot
      >>> one_hot(jnp.array([[1, 0]]), 2).tolist()
      [[0.0, 1.0, 1.0, 0.0]]
    """
    return jax.nn.one_hot(jnp.asarray(codes), num_codes).reshape(codes.shape[0], -1)


def features_of(
    train: Array, test: Array, weight: Array, encoding: str, num_codes: Any
) -> tuple[Array, Array]:
    """What a network reads for integer codes: one-hot, or standardised."""
    if encoding == "onehot":
        return one_hot(train, num_codes), one_hot(test, num_codes)
    return standardise(train, test, weight)
