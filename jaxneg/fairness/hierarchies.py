"""Generalisation hierarchies: for each base value of a column, its label at each level.

Level 0 is the identity, the top level is one label for all. A table holds codes of base values,
``X [rows, columns]``; hierarchies become ``maps [columns, levels, values]``, which take a base value to the
code of its label at a level. A *transformation* is one level for each column (full-domain generalisation:
Samarati 2001, doi:10.1109/69.971193; the rule "first" is that of ANJANA, Saiz-Pardo Diaz and Lopez Garcia
2024, doi:10.1038/s41597-024-04019-z).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxneg.fairness.arguments import Data, in_codes, integer_codes, known, one_of

RULES = ("first", "direct")
ORDERS = ("lexicographic", "rank")
TOP = "*"
"""The label of the top level, and of a base value that the hierarchy does not know."""

Column = Sequence[Sequence[Any]] | Mapping[int, Sequence[Any]] | np.ndarray
"""A row of labels for each base value, finest first; or the labels of all base values by level."""


class Hierarchies(NamedTuple):
    """The hierarchies of all columns as arrays.

    Attributes:
      maps: Code of the label of each base value at each level; -1 where a column has fewer of either.
      n_levels: Number of levels of each column.
    """

    maps: Int[np.ndarray, "columns levels values"]
    n_levels: Int[np.ndarray, " columns"]


def interval_hierarchy(
    lo: float, hi: float, steps: Sequence[float], values: Iterable[float] | None = None
) -> list[list[str]]:
    """Labels of integers: themselves, intervals of each length, and ``*``.

    ``a -> [e_i, e_(i+1))`` with edges ``lo, lo + step, ...`` up to and including the first at or above
    ``hi``; values at or past the last edge go to the last interval.

    Args:
      lo: The first edge.
      hi: What the edges must reach.
      steps: Length of the intervals of each level, finest first.
      values: Base values, each at least ``lo``; by default the integers from ``lo`` to ``hi``.

    Returns:
      A row for each base value, which :func:`compose_hierarchy` takes as a column.

    Raises:
      ValueError: If ``hi`` is not above ``lo``, a step is not positive, or a value is below ``lo``.

    Source:
      ANJANA's ``generate_intervals``.

    Example:
      >>> from jaxneg.fairness import interval_hierarchy
      >>> interval_hierarchy(0, 5, [2], values=[1, 5])
      [['1', '[0, 2)', '*'], ['5', '[4, 6)', '*']]
    """
    if not hi > lo:
        raise ValueError(f"hi: expected more than lo = {lo}, got {hi}")
    if any(not step > 0 for step in steps):
        raise ValueError(f"steps: expected positive lengths, got {list(steps)}")
    rows = []
    for value in range(math.floor(lo), math.ceil(hi) + 1) if values is None else values:
        if value < lo:
            raise ValueError(f"values: expected at least lo = {lo}, got {value}")
        labels = [str(value)]
        for step in steps:
            last = math.ceil((hi - lo) / step) - 1
            left = min(math.floor((value - lo) / step), last)
            labels.append(f"[{lo + left * step}, {lo + (left + 1) * step})")
        rows.append([*labels, TOP])
    return rows


def compose_hierarchy(columns: Sequence[Column], rule: str = "first") -> Hierarchies:
    """The hierarchies of all columns as one array of codes.

    ``direct: code[l, v] = label[v][l]``;
    ``first: code[l, v] = label[first v' with label[v'][l-1] = code[l-1, v]][l]``

    Under "first" each level is a function of the one below, also where the labels of a file are not nested;
    under "direct" it is a function of the base value alone. Labels are numbered by first appearance at their
    level.

    Args:
      columns: For each column a row of labels for each base value, finest first (what
        :func:`interval_hierarchy` returns, or the lines of a hierarchy file); or labels by level.
      rule: "first" or "direct".

    Returns:
      Arrays of the host.

    Raises:
      ValueError: If there is no column, a column is empty, its rows have different lengths, a base value
        occurs twice, or the rule is unknown. The message names column and row.

    Source:
      ANJANA ``anonymity/utils/utils.py``: a table is generalised from label to label.

    Example:
      >>> from jaxneg.fairness import compose_hierarchy
      >>> compose_hierarchy([[["a", "x", "*"], ["b", "x", "*"], ["c", "y", "*"]]]).maps.tolist()
      [[[0, 1, 2], [0, 0, 1], [0, 0, 0]]]
    """
    tables = _composed(columns, rule)
    shape = len(tables), max(len(levels) for levels in tables), max(len(levels[0]) for levels in tables)
    maps = np.full(shape, -1, np.int32)
    for j, levels in enumerate(tables):
        for level, labels in enumerate(levels):
            numbers = {label: number for number, label in enumerate(dict.fromkeys(labels))}
            maps[j, level, : len(labels)] = [numbers[label] for label in labels]
    return Hierarchies(maps, np.array([len(levels) for levels in tables], np.int32))


def label_ranks(
    columns: Sequence[Column], rule: str = "first", order: str = "lexicographic"
) -> Int[np.ndarray, "columns levels values"]:
    """The place of each label among all labels of its column, over all levels.

    Args:
      columns: As in :func:`compose_hierarchy`.
      rule: As in :func:`compose_hierarchy`.
      order: "lexicographic", of the labels as text ("10" before "2"), as scikit-learn's label encoder has
        them; or "rank": labels of a column of numbers by the mean of their base values, others as text.

    Returns:
      Ranks in the layout of ``maps``, -1 where that has none. Equal labels have equal ranks at all levels.

    Raises:
      ValueError: As :func:`compose_hierarchy`, or if the order is unknown.

    Example:
      >>> from jaxneg.fairness import label_ranks
      >>> label_ranks([[["2", "*"], ["10", "*"]]]).tolist()
      [[[2, 1], [0, 0]]]
      >>> label_ranks([[["2", "*"], ["10", "*"]]], order="rank").tolist()
      [[[0, 2], [1, 1]]]
    """
    one_of("order", order, ORDERS)
    tables = _composed(columns, rule)
    shape = len(tables), max(len(levels) for levels in tables), max(len(levels[0]) for levels in tables)
    ranks = np.full(shape, -1, np.int32)
    for j, levels in enumerate(tables):
        base = _numbers(levels[0]) if order == "rank" else None
        members: dict[str, list[float]] = {}
        for labels in levels:
            for v, label in enumerate(labels):
                known_value = base is not None and not math.isnan(base[v])
                members.setdefault(label, []).extend([base[v]] if known_value else [])  # pyright: ignore
        key = {label: (float(np.mean(of)) if of else -math.inf, label) for label, of in members.items()}
        place = {label: number for number, label in enumerate(sorted(members, key=key.__getitem__))}
        for level, labels in enumerate(levels):
            ranks[j, level, : len(labels)] = [place[label] for label in labels]
    return ranks


def is_nested(maps: Int[np.ndarray, "columns levels values"], n_levels: Int[np.ndarray, " columns"]) -> bool:
    """Whether every level is a function of the one below, so that a coarser table never has smaller classes.

    Args:
      maps: Known on the host.
      n_levels: Number of levels of each column.

    Example:
      >>> import numpy as np
      >>> from jaxneg.fairness import is_nested
      >>> bool(is_nested(np.array([[[0, 1, 2], [0, 0, 1], [0, 1, 1]]]), np.array([3])))
      False
    """
    for levels, count in zip(np.asarray(maps), np.asarray(n_levels), strict=True):
        for below, above in pairwise(levels[:count]):
            valid = below >= 0
            if len(set(zip(below[valid], above[valid], strict=True))) != len(set(below[valid])):
                return False
    return True


def generalise(
    X: Int[Data, "rows columns"],
    maps: Int[Data, "columns levels values"],
    levels: Int[Data, " columns"],
) -> Int[Array, "rows columns"]:
    """The table under a transformation.

    ``G[i, j] = maps[j, levels[j], X[i, j]]``

    Args:
      X: Codes of base values, each below the number of values of its column.
      maps: Hierarchies, as :func:`compose_hierarchy` gives them.
      levels: One level for each column.

    Returns:
      Codes of labels.

    Raises:
      ValueError: If shapes differ, or a known code or level is out of range.
      TypeError: If an argument does not hold integers.

    Example:
      >>> import numpy as np
      >>> from jaxneg.fairness import generalise
      >>> generalise(np.array([[2], [0]]), np.array([[[0, 1, 2], [0, 0, 1]]]), np.array([1])).tolist()
      [[1], [0]]
    """
    X, maps, levels = table_and_maps(X, maps, levels)
    in_codes("levels", levels, maps.shape[1])
    return _generalised(X, maps, levels)


def generalised(X: Array, maps: Array, levels: Array) -> Array:
    """:func:`generalise` without its checks."""
    chosen = jnp.take_along_axis(jnp.asarray(maps), jnp.asarray(levels)[:, None, None], axis=1)[:, 0]
    return jax.vmap(lambda codes, column: codes[column], (0, 1), 1)(chosen, jnp.asarray(X))


_generalised = jax.jit(generalised)


def table_and_maps(X: Any, maps: Any, per_column: Any, name: str = "levels") -> tuple[Array, Array, Array]:
    """A table, its hierarchies and a number for each column, after the checks that they fit each other."""
    X = integer_codes("X", X, 2)
    maps = integer_codes("maps", maps, 3)
    per_column = integer_codes(name, per_column, 1)
    if maps.shape[0] != X.shape[1] or per_column.shape[0] != X.shape[1]:
        raise ValueError(
            f"maps, {name}: expected those of the {X.shape[1]} columns of X, got shapes {maps.shape} and"
            f" {per_column.shape}"
        )
    if known(X, maps):
        codes, valid = np.asarray(X), np.asarray(maps)[:, 0] >= 0
        inside = (codes >= 0) & (codes < maps.shape[2])
        inside &= valid[np.arange(X.shape[1]), np.where(inside, codes, 0)]
        if not inside.all():
            row, column = (int(i) for i in np.argwhere(~inside)[0])
            raise ValueError(
                f"X: row {row}, column {column}: code {codes[row, column]} has no label in maps: drop rows"
                " with missing values, or give such values a code and a label"
            )
    return X, maps, per_column


def _composed(columns: Sequence[Column], rule: str) -> list[list[list[str]]]:
    """For each column its levels, each the labels of all base values, as text."""
    one_of("rule", rule, RULES)
    if not len(columns):
        raise ValueError("columns: expected the hierarchy of at least one column, got none")
    tables = []
    for j, column in enumerate(columns):
        levels = _levels(j, column)
        composed = levels[:1]
        for below, above in pairwise(levels):
            if rule == "direct":
                composed.append(above)
                continue
            coarser: dict[str, str] = {}
            for label, of_label in zip(below, above, strict=True):
                coarser.setdefault(label, of_label)
            composed.append([coarser[label] for label in composed[-1]])
        tables.append(composed)
    return tables


def _levels(j: int, column: Column) -> list[list[str]]:
    if isinstance(column, Mapping):
        levels = [[str(label) for label in column[level]] for level in sorted(column)]
    else:
        rows = [[str(label) for label in row] for row in column]
        for number, row in enumerate(rows):
            if len(row) != len(rows[0]):
                raise ValueError(
                    f"columns: column {j}, row {number}: expected {len(rows[0])} labels, one for each level,"
                    f" got {len(row)}"
                )
        levels = [list(labels) for labels in zip(*rows, strict=True)]
    if not levels or not levels[0] or any(len(labels) != len(levels[0]) for labels in levels):
        raise ValueError(
            f"columns: column {j}: expected a label of each base value at each level, got {levels}"
        )
    if len(set(levels[0])) < len(levels[0]):
        twice = next(label for label in levels[0] if levels[0].count(label) > 1)
        raise ValueError(f"columns: column {j}: the base value {twice!r} has two rows")
    return levels


def _numbers(labels: Sequence[str]) -> list[float] | None:
    """The base values as numbers, NaN for ``*``; None if another one is no number."""
    try:
        return [math.nan if label == TOP else float(label) for label in labels]
    except ValueError:
        return None
