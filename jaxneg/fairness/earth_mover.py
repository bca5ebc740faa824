"""Earth mover's distances between distributions of a sensitive value.

Li, Li and Venkatasubramanian 2007, "t-Closeness", doi:10.1109/ICDE.2007.367856, Section 5.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxneg.fairness.arguments import Data, integer_codes, known, wide


def emd_ordered(P: Float[Data, "*batch values"], Q: Float[Data, "*batch values"]) -> Float[Array, "*batch"]:
    """The distance where values are in order and neighbours are ``1 / (m - 1)`` apart.

    ``1 / (m - 1) sum_i | sum_(j <= i) (Q_j - P_j) |``;  0 for a single value

    Args:
      P: A distribution.
      Q: Another one.

    Returns:
      One number for each pair.

    Raises:
      ValueError: If the numbers of values differ.

    Source:
      Li et al. 2007, Section 5.1.

    Example:
      >>> import numpy as np
      >>> from jaxneg.fairness import emd_ordered
      >>> float(emd_ordered(np.array([1.0, 0.0, 0.0]), np.array([0.0, 0.0, 1.0])))
      1.0
    """
    return _ordered(_extra(P, Q))


def emd_equal(P: Float[Data, "*batch values"], Q: Float[Data, "*batch values"]) -> Float[Array, "*batch"]:
    """The distance where all different values are equally far apart.

    ``1/2 sum_i |Q_i - P_i|``

    Args:
      P: A distribution.
      Q: Another one.

    Returns:
      One number for each pair.

    Raises:
      ValueError: If the numbers of values differ.

    Source:
      Li et al. 2007, Section 5.2.

    Example:
      >>> import numpy as np
      >>> from jaxneg.fairness import emd_equal
      >>> float(emd_equal(np.array([0.5, 0.5, 0.0]), np.array([0.0, 0.5, 0.5])))
      0.5
    """
    return _equal(_extra(P, Q))


def emd_hierarchical(
    P: Float[Data, "*batch values"], Q: Float[Data, "*batch values"], tree: Int[np.ndarray, "levels values"]
) -> Float[Array, "*batch"]:
    """The distance where two values are as far apart as their lowest common ancestor is high.

    ``sum_N height(N) / H min(pos(N), neg(N))`` over inner nodes, with ``pos`` and ``neg`` the sums of the
    positive and negative extras of N's children, ``extra(leaf) = Q - P``, ``extra(N)`` the sum of its
    children's

    Args:
      P: A distribution.
      Q: Another one.
      tree: Label of each value's ancestor at each height: row 0 the values themselves, the last row one
        label. Known when the program is traced.

    Returns:
      One number for each pair.

    Raises:
      ValueError: If the numbers of values differ, the rows are not nested, or the last has several labels.
      TypeError: If the tree does not hold integers, or is traced.

    Source:
      Li et al. 2007, Section 5.2.

    Example:
      >>> import numpy as np
      >>> from jaxneg.fairness import emd_hierarchical
      >>> tree = np.array([[0, 1, 2, 3], [0, 0, 1, 1], [0, 0, 0, 0]])
      >>> float(emd_hierarchical(np.array([1.0, 0, 0, 0]), np.array([0.0, 1, 0, 0]), tree))
      0.5
    """
    extra = _extra(P, Q)
    return _hierarchical(extra, tuple(map(tuple, checked_tree(tree, extra.shape[-1]).tolist())))


@jax.jit
def _ordered(extra: Array) -> Array:
    return jnp.sum(jnp.abs(jnp.cumsum(extra, axis=-1)), axis=-1) / max(extra.shape[-1] - 1, 1)


@jax.jit
def _equal(extra: Array) -> Array:
    return 0.5 * jnp.sum(jnp.abs(extra), axis=-1)


@partial(jax.jit, static_argnums=1)
def _hierarchical(extra: Array, tree: tuple[tuple[int, ...], ...]) -> Array:
    labels = np.array(tree)
    height = len(labels) - 1
    total = jnp.zeros(extra.shape[:-1], extra.dtype)
    children, _ = _summed(extra, labels[0])
    first = np.unique(labels[0], return_index=True)[1]
    for h in range(1, height + 1):
        parents = np.unique(labels[h][first], return_inverse=True)[1]
        positive, _ = _summed(jnp.maximum(children, 0), parents)
        negative, _ = _summed(jnp.maximum(-children, 0), parents)
        total = total + h / height * jnp.sum(jnp.minimum(positive, negative), axis=-1)
        children, _ = _summed(children, parents)
        first = first[np.unique(parents, return_index=True)[1]]
    return total


def checked_tree(tree: Any, values: int) -> np.ndarray:
    """The tree on the host, after the checks of :func:`emd_hierarchical`."""
    if not known(tree):
        raise TypeError("tree: expected an array that is known when the program is traced, got a traced one")
    labels = np.asarray(integer_codes("tree", tree, 2))
    if labels.shape[1] != values or labels.shape[0] < 2:
        raise ValueError(f"tree: expected at least 2 rows of {values} labels, got shape {labels.shape}")
    for h in range(1, len(labels)):
        if len(set(zip(labels[h - 1], labels[h], strict=True))) != len(set(labels[h - 1])):
            raise ValueError(f"tree: row {h} gives two labels to values that are one node in row {h - 1}")
    if len(set(labels[-1])) > 1:
        raise ValueError(
            f"tree: expected one label in the last row, the root's, got {sorted(set(labels[-1]))}"
        )
    return labels


def _summed(values: Array, groups: np.ndarray) -> tuple[Array, int]:
    """Sums over the last axis by group."""
    numbers = np.unique(groups, return_inverse=True)[1]
    count = int(numbers.max()) + 1
    summed = jax.ops.segment_sum(jnp.moveaxis(values, -1, 0), jnp.asarray(numbers), count)
    return jnp.moveaxis(summed, 0, -1), count


def _extra(P: Any, Q: Any) -> Array:
    P, Q = wide(jnp.asarray(P)), wide(jnp.asarray(Q))
    if P.ndim < 1 or Q.ndim < 1 or P.shape[-1] != Q.shape[-1]:
        raise ValueError(
            f"P, Q: expected equally many values on the last axis, got shapes {P.shape} and {Q.shape}"
        )
    return Q - P
