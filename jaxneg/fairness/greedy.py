"""Anonymisers by greedy full-domain generalisation: to k-anonymity, and from there to l-diversity or
t-closeness.

The column with most different labels is generalised by one level until the classes are large enough, but for
a share of the rows that may be suppressed. This is the anonymiser of Arcolezi et al., arXiv:2505.07985,
ANJANA's (Saiz-Pardo Diaz and Lopez Garcia 2024, doi:10.1038/s41597-024-04019-z), after Datafly (Sweeney 2002,
doi:10.1142/S021848850200165X).

The next column depends on the different labels alone, and neither on k nor on the suppression limit: tables
for many of them lie on one path, which is walked once.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxneg.fairness.arguments import Data, in_codes, integer_codes, known, number_of_values, row_weight
from jaxneg.fairness.equivalence_classes import class_sizes, classes
from jaxneg.fairness.hierarchies import generalised, table_and_maps
from jaxneg.fairness.privacy_levels import class_histogram, measured


class AnonResult(NamedTuple):
    """A transformation and the rows that it releases; with vectors of settings their axis comes first.

    Attributes:
      levels: Level of each column; the top ones if the goal cannot be reached.
      keep: Whether each row is released; no row if the goal cannot be reached.
      ok: Whether it is reached.
      k: Rows of the smallest released class; 0 if not ok.
      l: Least number of different sensitive values in a released class; 0 if not ok.
      t: Largest ordered earth mover's distance of a class to the released table; NaN if not ok.
    """

    levels: Int[Array, "*settings columns"]
    keep: Bool[Array, "*settings rows"]
    ok: Bool[Array, "*settings"]
    k: Int[Array, "*settings"]
    l: Int[Array, "*settings"]
    t: Float[Array, "*settings"]


def k_anonymise(
    X: Int[Data, "rows columns"],
    s: Int[Data, " rows"],
    maps: Int[Data, "columns levels values"],
    n_levels: Int[Data, " columns"],
    k: Int[Data, "*settings"] | int,
    supp: Float[Data, "*settings"] | float,
    weight: Float[Data, " rows"] | None = None,
    *,
    num_values: int | None = None,
) -> AnonResult:
    """The first table on the greedy path whose classes have at least k rows.

    Start at level 0 everywhere. Stop if every class has k rows; or if some class has, and the rows of the
    others are at most ``supp`` percent of all: those are dropped. Else raise the level of the column with
    most different labels (the first of several), among those not at their top.

    Args:
      X: Codes of base values.
      s: Sensitive value of each row, for the levels that are reported.
      maps: Hierarchies, as :func:`compose_hierarchy` gives them.
      n_levels: Number of levels of each column.
      k: Least number of rows of a class, at least 1; a number or a vector of settings.
      supp: Rows that may be dropped, in percent of all; likewise. A vector costs little more than one
        setting.
      weight: 1 for rows of the table, 0 for others; all 1 by default.
      num_values: Number of sensitive values; needed only where ``s`` is traced.

    Returns:
      The transformation and the released rows. A table with fewer than k rows is not ok.

    Raises:
      ValueError: If shapes differ, a code has no label, k is below 1 or supp not from 0 to 100.
      TypeError: If codes are not integers.

    Source:
      arXiv:2505.07985, Section 3; ANJANA ``k_anonymity``.

    Example:
      >>> import numpy as np
      >>> from jaxneg.fairness import compose_hierarchy, k_anonymise
      >>> maps, n_levels = compose_hierarchy([[["20", "2x", "*"], ["25", "2x", "*"], ["30", "3x", "*"]]])
      >>> found = k_anonymise(np.array([[0], [1], [2], [2]]), np.array([0, 1, 0, 1]), maps, n_levels, 2, 0.0)
      >>> found.levels.tolist(), int(found.k)
      ([1], 2)
    """
    return anonymise(X, s, maps, n_levels, k, 1, jnp.inf, supp, weight, num_values=num_values)


def l_diversify(
    X: Int[Data, "rows columns"],
    s: Int[Data, " rows"],
    maps: Int[Data, "columns levels values"],
    n_levels: Int[Data, " columns"],
    k: Int[Data, "*settings"] | int,
    l: Int[Data, "*settings"] | int,
    supp: Float[Data, "*settings"] | float,
    weight: Float[Data, " rows"] | None = None,
    *,
    num_values: int | None = None,
) -> AnonResult:
    """A k-anonymous table, generalised on until each class has l different sensitive values.

    After :func:`k_anonymise` no further row is dropped; different labels are counted among the released rows.

    Args:
      X: Codes of base values.
      s: Sensitive value of each row.
      maps: Hierarchies.
      n_levels: Number of levels of each column.
      k: Least number of rows of a class.
      l: Least number of different sensitive values of a class, at least 1.
      supp: Rows that may be dropped, in percent of all.
      weight: 1 for rows of the table, 0 for others.
      num_values: Number of sensitive values; needed only where ``s`` is traced.

    Returns:
      The transformation and the released rows; not ok if the released rows have fewer than l different
      values.

    Raises:
      ValueError: As :func:`k_anonymise`, or if l is below 1.
      TypeError: As :func:`k_anonymise`.

    Source:
      arXiv:2505.07985, Section 3; ANJANA ``l_diversity``.

    Example:
      >>> import numpy as np
      >>> from jaxneg.fairness import compose_hierarchy, l_diversify
      >>> maps, n_levels = compose_hierarchy([[["a", "*"], ["b", "*"]]])
      >>> X, s = np.array([[0], [0], [1], [1]]), np.array([0, 0, 0, 1])
      >>> found = l_diversify(X, s, maps, n_levels, 2, 2, 0.0)
      >>> found.levels.tolist(), int(found.l)
      ([1], 2)
    """
    return anonymise(X, s, maps, n_levels, k, l, jnp.inf, supp, weight, num_values=num_values)


def t_close(
    X: Int[Data, "rows columns"],
    s: Int[Data, " rows"],
    maps: Int[Data, "columns levels values"],
    n_levels: Int[Data, " columns"],
    k: Int[Data, "*settings"] | int,
    t: Float[Data, "*settings"] | float,
    supp: Float[Data, "*settings"] | float,
    weight: Float[Data, " rows"] | None = None,
    *,
    num_values: int | None = None,
) -> AnonResult:
    """A k-anonymous table, generalised on until each class is near the released table.

    After :func:`k_anonymise` no further row is dropped; stops when the largest ordered distance is at most t.

    Args:
      X: Codes of base values.
      s: Sensitive value of each row, codes in their order.
      maps: Hierarchies.
      n_levels: Number of levels of each column.
      k: Least number of rows of a class.
      t: Largest ordered earth mover's distance of a class to the released table, not negative.
      supp: Rows that may be dropped, in percent of all.
      weight: 1 for rows of the table, 0 for others.
      num_values: Number of sensitive values; needed only where ``s`` is traced.

    Returns:
      The transformation and the released rows; not ok if not even one class for all is near enough.

    Raises:
      ValueError: As :func:`k_anonymise`, or if t is negative.
      TypeError: As :func:`k_anonymise`.

    Source:
      arXiv:2505.07985, Section 3; ANJANA ``t_closeness``.

    Example:
      >>> import numpy as np
      >>> from jaxneg.fairness import compose_hierarchy, t_close
      >>> maps, n_levels = compose_hierarchy([[["a", "*"], ["b", "*"]]])
      >>> X, s = np.array([[0], [0], [1], [1]]), np.array([0, 0, 0, 1])
      >>> found = t_close(X, s, maps, n_levels, 2, 0.1, 0.0)
      >>> found.levels.tolist(), float(found.t)
      ([1], 0.0)
    """
    return anonymise(X, s, maps, n_levels, k, 1, t, supp, weight, num_values=num_values)


def anonymise(
    X: Int[Data, "rows columns"],
    s: Int[Data, " rows"],
    maps: Int[Data, "columns levels values"],
    n_levels: Int[Data, " columns"],
    k: Int[Data, "*settings"] | int,
    l: Int[Data, "*settings"] | int,
    t: Float[Data, "*settings"] | float,
    supp: Float[Data, "*settings"] | float,
    weight: Float[Data, " rows"] | None = None,
    *,
    num_values: int | None = None,
) -> AnonResult:
    """A grid of settings at once: k-anonymity, l-diversity where l > 1, t-closeness where t is finite.

    Args:
      X: Codes of base values.
      s: Sensitive value of each row.
      maps: Hierarchies.
      n_levels: Number of levels of each column.
      k: Least number of rows of a class; a number or a vector, as the next three.
      l: Least number of different sensitive values of a class; 1 asks nothing.
      t: Largest ordered distance of a class to the released table; infinity asks nothing.
      supp: Rows that may be dropped, in percent of all.
      weight: 1 for rows of the table, 0 for others.
      num_values: Number of sensitive values; needed only where ``s`` is traced.

    Returns:
      As :func:`k_anonymise`; a row for each setting where one of them is a vector.

    Raises:
      ValueError: As :func:`l_diversify` and :func:`t_close`, or if vectors have different lengths.
      TypeError: As :func:`k_anonymise`.

    Example:
      >>> import numpy as np
      >>> from jaxneg.fairness import anonymise, compose_hierarchy
      >>> maps, n_levels = compose_hierarchy([[["a", "*"], ["b", "*"]]])
      >>> X, s = np.array([[0], [0], [1], [1]]), np.array([0, 0, 0, 1])
      >>> anonymise(X, s, maps, n_levels, np.array([1, 2, 3]), 1, np.inf, 0.0).levels.tolist()
      [[0], [0], [1]]
    """
    X, maps, n_levels = table_and_maps(X, maps, n_levels, "n_levels")
    s = integer_codes("s", s, 1)
    if s.shape[0] != X.shape[0]:
        raise ValueError(f"s: expected one value for each of {X.shape[0]} rows, got {s.shape[0]}")
    in_codes("n_levels", n_levels - 1, maps.shape[1])
    weight = (row_weight("weight", weight, X.shape[0]) > 0) * 1.0
    k, l, t, supp = (jnp.asarray(setting) for setting in (k, l, t, supp))
    for name, values, low, high in (
        ("k", k, 1, np.inf),
        ("l", l, 1, np.inf),
        ("t", t, 0, np.inf),
        ("supp", supp, 0, 100),
    ):
        if known(values) and not ((np.asarray(values) >= low) & (np.asarray(values) <= high)).all():
            raise ValueError(f"{name}: expected numbers from {low} to {high:g}, got {np.asarray(values)}")
    settings = jnp.broadcast_shapes(*(values.shape for values in (k, l, t, supp)))
    if len(settings) > 1:
        raise ValueError(f"k, l, t, supp: expected numbers or vectors of one length, got shape {settings}")
    vectors = [jnp.broadcast_to(v, settings or (1,)).astype(weight.dtype) for v in (k, l, t, supp)]
    return _anonymise(
        X,
        s,
        maps,
        n_levels,
        weight,
        *vectors,
        cards=cardinalities(maps),
        num_values=number_of_values("s", s, num_values),
        single=not settings,
    )


def cardinalities(maps: Array) -> tuple[int, ...]:
    """A static bound of the codes of each column: exact if the hierarchies are known, else their width."""
    if known(maps):
        return tuple(int(largest) + 1 for largest in np.max(np.asarray(maps), axis=(1, 2)))
    return (maps.shape[2],) * maps.shape[0]


@partial(jax.jit, static_argnames=("cards", "num_values", "single"))
def _anonymise(
    X: Array,
    s: Array,
    maps: Array,
    n_levels: Array,
    weight: Array,
    k: Array,
    l: Array,
    t: Array,
    supp: Array,
    *,
    cards: tuple[int, ...],
    num_values: int,
    single: bool,
) -> AnonResult:
    levels, reached = _walk_to_k(X, maps, n_levels, weight, k, supp, cards)
    walk_on = partial(_walk_on, X, s, maps, n_levels, weight, cards=cards, num_values=num_values)
    if single:
        return walk_on(levels[0], reached[0], k[0], l[0], t[0])
    return jax.vmap(walk_on)(levels, reached, k, l, t)


def _walk_to_k(
    X: Array, maps: Array, n_levels: Array, weight: Array, k: Array, supp: Array, cards: tuple[int, ...]
) -> tuple[Array, Array]:
    """The levels at which each setting ``[settings]`` is reached, and whether it is."""
    rows = weight > 0
    different, total = _different_labels(X, maps, rows), jnp.sum(rows)

    def reached_at(levels: Array) -> Array:
        sizes = class_sizes(generalised(X, maps, levels), cards, rows)
        small = jnp.sum(jnp.where(sizes < k[:, None], sizes, 0), axis=1)
        return (total > 0) & (k <= jnp.max(sizes)) & ((small == 0) | (100.0 * small <= supp * total))

    def step(state: tuple[Array, ...]) -> tuple[Array, ...]:
        levels, chosen, reached, _ = state
        chosen = jnp.where(reached[:, None], chosen, levels)
        reached = reached | reached_at(levels)
        coarser, at_top = _coarser(levels, different, n_levels)
        return coarser, chosen, reached, at_top

    start = jnp.zeros_like(n_levels)
    state = (
        start,
        jnp.zeros((k.shape[0], start.shape[0]), start.dtype),
        jnp.zeros(k.shape[0], bool),
        jnp.array(False),
    )
    _, chosen, reached, _ = lax.while_loop(lambda state: ~(jnp.all(state[2]) | state[3]), step, state)
    return chosen, reached


class _Walk(NamedTuple):
    """Where a setting stands, and whether it stops there."""

    levels: Array
    keep: Array
    different: Array
    found: tuple[Array, Array, Array]
    first: Array
    stop: Array


def _walk_on(
    X: Array,
    s: Array,
    maps: Array,
    n_levels: Array,
    weight: Array,
    levels: Array,
    reached: Array,
    k: Array,
    l: Array,
    t: Array,
    *,
    cards: tuple[int, ...],
    num_values: int,
) -> AnonResult:
    """Drops the small classes of a k-anonymous table, and goes on to l and t without suppression."""

    def met(found: tuple[Array, Array, Array]) -> Array:
        return reached & (found[1] >= l) & (found[2] <= t)

    def step(walk: _Walk) -> _Walk:
        gid, count = classes(generalised(X, maps, walk.levels), cards, weight)
        keep = jnp.where(walk.first, reached & (count[gid] >= k) & (weight > 0), walk.keep)
        found = measured(class_histogram(gid, s, num_values, jnp.where(keep, weight, 0)))
        stop = ~reached | met(found) | jnp.all(walk.levels == n_levels - 1)
        different = lax.cond(
            walk.first & ~stop, lambda: _different_labels(X, maps, keep), lambda: walk.different
        )
        coarser, _ = _coarser(walk.levels, different, n_levels)
        levels = jnp.where(stop, walk.levels, coarser)
        return _Walk(levels, keep, different, found, jnp.array(False), stop)

    nothing = measured(jnp.zeros((1, num_values), weight.dtype))
    start = _Walk(
        levels,
        jnp.zeros(weight.shape, bool),
        jnp.zeros(maps.shape[:2], jnp.int32),
        nothing,
        jnp.array(True),
        jnp.array(False),
    )
    end = lax.while_loop(lambda walk: ~walk.stop, step, start)
    ok = met(end.found)
    k_out, l_out, t_out = end.found
    return AnonResult(
        end.levels,
        end.keep & ok,
        ok,
        jnp.where(ok, k_out, 0),
        jnp.where(ok, l_out, 0),
        jnp.where(ok, t_out, jnp.nan),
    )


def _different_labels(X: Array, maps: Array, rows: Array) -> Array:
    """``[columns, levels]``: how many labels occur in the rows."""
    columns, levels, values = maps.shape
    present = jnp.zeros((columns, values), bool).at[jnp.arange(columns), X].max(rows[:, None])
    places = jnp.where(present[:, None] & (maps >= 0), maps, values)
    seen = jnp.zeros((columns, levels, values + 1), bool)
    seen = seen.at[jnp.arange(columns)[:, None, None], jnp.arange(levels)[:, None], places].set(True)
    return jnp.sum(seen[..., :values], axis=-1, dtype=jnp.int32)


def _coarser(levels: Array, different: Array, n_levels: Array) -> tuple[Array, Array]:
    """The next levels on the path, and whether there are none."""
    can = levels < n_levels - 1
    now = jnp.take_along_axis(different, levels[:, None], axis=1)[:, 0]
    column = jnp.argmax(jnp.where(can, now, -1))
    any_can = jnp.any(can)
    return levels.at[column].add(any_can.astype(levels.dtype)), ~any_can
