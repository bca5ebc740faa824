"""The best full-domain transformation of all, by a search of the lattice of levels.

Ours, for comparison with the greedy path: bounded suppression as there, the generalisation loss of Iyengar
2002, doi:10.1145/775047.775089, and the monotonicity of k-anonymity (Samarati 2001, doi:10.1109/69.971193) to
leave out what cannot be released. Which transformation is found does not depend on the order of the search.
"""

import itertools
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxneg.fairness.arguments import Data, known, row_weight
from jaxneg.fairness.equivalence_classes import classes
from jaxneg.fairness.greedy import cardinalities
from jaxneg.fairness.hierarchies import generalised, is_nested, table_and_maps


class LatticeResult(NamedTuple):
    """The transformation of least loss, on the host.

    Attributes:
      levels: Level of each column; the top ones if nothing can be released.
      keep: Whether each row is released.
      ok: Whether anything can be.
      loss: Generalisation loss, from 0 to 1; NaN if not ok.
      evaluated: How many transformations were tried, of all.
    """

    levels: Int[np.ndarray, " columns"]
    keep: Bool[np.ndarray, " rows"]
    ok: bool
    loss: float
    evaluated: int


def optimal_lattice(
    X: Int[Data, "rows columns"],
    maps: Int[Data, "columns levels values"],
    n_levels: Int[Data, " columns"],
    k: int,
    supp: float = 0.0,
    weight: Float[Data, " rows"] | None = None,
    *,
    chunk: int = 32,
) -> LatticeResult:
    """The k-anonymous transformation of least generalisation loss.

    ``loss = mean over rows and columns of (|values of the label| - 1) / (|values| - 1)``, 1 in a dropped row.
    Rows in classes smaller than k are dropped; at most ``supp`` percent may be. Of equal losses the first
    levels in lexicographic order are taken.

    Args:
      X: Codes of base values.
      maps: Hierarchies, as :func:`compose_hierarchy` gives them; known here, for this function runs on the
        host and evaluates transformations on the device.
      n_levels: Number of levels of each column.
      k: Least number of rows of a class, at least 1.
      supp: Rows that may be dropped, in percent of all.
      weight: 1 for rows of the table, 0 for others.
      chunk: Transformations that are evaluated at once.

    Returns:
      The best transformation.

    Raises:
      ValueError: As :func:`k_anonymise`.
      TypeError: If an argument is traced, or codes are not integers.

    Source:
      Ours; see the top of the file.

    Example:
      >>> import numpy as np
      >>> from jaxneg.fairness import compose_hierarchy, optimal_lattice
      >>> maps, n_levels = compose_hierarchy([[["a", "*"], ["b", "*"]], [["x", "*"], ["y", "*"]]])
      >>> found = optimal_lattice(np.array([[0, 0], [0, 1], [1, 0], [1, 1]]), maps, n_levels, 2)
      >>> found.levels.tolist(), found.loss
      ([0, 1], 0.5)
    """
    if not known(X, maps, n_levels, k, supp, weight):
        raise TypeError("optimal_lattice runs on the host: expected known arrays, got traced ones")
    if k < 1 or not 0 <= supp <= 100 or chunk < 1:
        raise ValueError(
            f"k, supp, chunk: expected k and chunk from 1 and supp from 0 to 100, got {k}, {supp}, {chunk}"
        )
    X, maps, n_levels = table_and_maps(X, maps, n_levels, "n_levels")
    X, maps, weight = jnp.asarray(X), jnp.asarray(maps), row_weight("weight", weight, X.shape[0])
    host_maps, host_levels = np.asarray(maps), np.asarray(n_levels)
    # Nodes in lexicographic order, each with the loss that it has at least: its own without suppression.
    nodes = np.array(list(itertools.product(*(range(count) for count in host_levels))), np.int32)
    sizes, width = _label_sizes(host_maps)
    rows = np.asarray(weight) > 0
    total = float(np.asarray(weight).sum())
    per_level = np.stack(
        [
            (np.asarray(weight)[rows] @ (sizes[j][:, np.asarray(X)[rows, j]].T - 1)) / width[j]
            for j in range(len(width))
        ]
    ) / max(total, 1.0)
    least = per_level[np.arange(len(width)), nodes].mean(axis=1)
    evaluate = partial(
        _evaluate, X, maps, weight, jnp.asarray(sizes), float(k), float(supp), cards=cardinalities(maps)
    )
    nested = is_nested(host_maps, host_levels)
    open_nodes = np.ones(len(nodes), bool)
    best, best_loss, evaluated = -1, np.inf, 0
    # From the top first: it is released if anything is, and bounds the loss.
    batch = np.array([len(nodes) - 1])
    while len(batch):
        padded = np.concatenate([batch, np.full(-len(batch) % chunk, batch[-1])])
        released, dropped, spread = (np.asarray(x) for x in evaluate(jnp.asarray(nodes[padded])))
        evaluated += len(batch)
        open_nodes[batch] = False
        for number, i in enumerate(batch):
            if released[number]:
                loss = float((spread[number] / width).sum() + dropped[number] * len(width)) / (
                    total * len(width)
                )
                if loss < best_loss or (loss == best_loss and i < best):
                    best, best_loss = int(i), loss
            elif nested:
                open_nodes &= ~(nodes <= nodes[i]).all(axis=1)
        # 1e-9: the bound is summed in another order than the loss.
        open_nodes &= least <= best_loss + 1e-9
        candidates = np.flatnonzero(open_nodes)
        candidates = candidates[np.argsort(least[candidates], kind="stable")]
        batch = (
            candidates[np.unique(np.linspace(0, len(candidates) - 1, chunk).astype(int))]
            if len(candidates)
            else candidates
        )
    if best < 0:
        return LatticeResult(host_levels - 1, np.zeros(len(rows), bool), False, float("nan"), evaluated)
    keep = _released(X, maps, weight, float(k), jnp.asarray(nodes[best]), cards=cardinalities(maps))
    return LatticeResult(nodes[best], np.asarray(keep), True, best_loss, evaluated)


def _label_sizes(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``[columns, levels, values]``: base values with the same label; and their number less one."""
    sizes = np.ones(maps.shape, np.int64)
    for j, levels in enumerate(maps):
        for level, labels in enumerate(levels):
            valid = labels >= 0
            sizes[j, level, valid] = np.bincount(labels[valid])[labels[valid]] if valid.any() else 1
    # A column of one value loses nothing: 0 over 1.
    return sizes, np.maximum((maps[:, 0] >= 0).sum(axis=1) - 1, 1)


@partial(jax.jit, static_argnames="cards")
def _released(
    X: Array, maps: Array, weight: Array, k: Any, levels: Array, *, cards: tuple[int, ...]
) -> Array:
    gid, count = classes(generalised(X, maps, levels), cards, weight)
    return (count[gid] >= k) & (weight > 0)


@partial(jax.jit, static_argnames="cards")
def _evaluate(
    X: Array,
    maps: Array,
    weight: Array,
    sizes: Array,
    k: Any,
    supp: Any,
    nodes: Array,
    *,
    cards: tuple[int, ...],
) -> tuple[Array, Array, Array]:
    """For each node: whether it is released, rows dropped, and by column the others' sum of ``size - 1``."""

    def of_node(levels: Array) -> tuple[Array, Array, Array]:
        gid, count = classes(generalised(X, maps, levels), cards, weight)
        kept = jnp.where(count[gid] >= k, weight, 0)
        dropped = jnp.sum(weight) - jnp.sum(kept)
        spread = jnp.sum(kept[:, None] * (generalised(X, sizes, levels) - 1), axis=0)
        return (100 * dropped <= supp * jnp.sum(weight)) & (jnp.sum(kept) > 0), dropped, spread

    return lax.map(of_node, nodes)
