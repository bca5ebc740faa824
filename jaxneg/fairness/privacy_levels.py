"""What a released table guarantees: k, l, t and their relatives, from class counts and class histograms.

k-anonymity: Sweeney 2002, doi:10.1142/S0218488502001648. l-diversity: Machanavajjhala et al. 2007,
doi:10.1145/1217299.1217302. t-closeness: Li et al. 2007, doi:10.1109/ICDE.2007.367856. beta-likeness: Cao and
Karras 2012, doi:10.14778/2350229.2350255. delta-disclosure: Brickell and Shmatikov 2008,
doi:10.1145/1401890.1401904. The conventions are those of pycanon, Saiz-Pardo Diaz and Lopez Garcia 2022,
doi:10.1038/s41597-022-01894-2.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxneg.fairness.arguments import Data, in_codes, integer_codes, one_of, row_weight
from jaxneg.fairness.earth_mover import checked_tree, emd_equal, emd_hierarchical

CONVENTIONS = ("pycanon", "machanavajjhala")


class PrivacyLevels(NamedTuple):
    """The levels of a table; scalars.

    Attributes:
      k: Rows of the smallest class.
      l: Least number of different sensitive values in a class.
      entropy_l: Exponential of the least entropy of a class.
      alpha: Largest frequency of a value in a class, of (alpha, k)-anonymity.
      t_ordered: Largest distance of a class to the table, values in order.
      t_equal: The same, all values equally far apart.
      t_hier: The same, values in a tree; NaN without one.
      beta: Largest relative gain of a value in a class, of basic beta-likeness.
      beta_enhanced: The same, at most the largest ``-ln P``.
      delta: Largest logarithmic change of a value that occurs in a class.
      c_recursive: c of recursive (c, l)-diversity; NaN where l is 1.
    """

    k: Int[Array, ""]
    l: Int[Array, ""]
    entropy_l: Float[Array, ""]
    alpha: Float[Array, ""]
    t_ordered: Float[Array, ""]
    t_equal: Float[Array, ""]
    t_hier: Float[Array, ""]
    beta: Float[Array, ""]
    beta_enhanced: Float[Array, ""]
    delta: Float[Array, ""]
    c_recursive: Float[Array, ""]


def privacy_levels(
    gid: Int[Data, " rows"],
    s: Int[Data, " rows"],
    num_values: int,
    weight: Float[Data, " rows"] | None = None,
    tree: Int[np.ndarray, "levels values"] | None = None,
    *,
    convention: str = "pycanon",
) -> PrivacyLevels:
    """All privacy levels of a table with one sensitive column.

    With ``Q_c`` the frequencies of the values in class c and ``P`` in the table: ``k = min_c count_c``,
    ``l = min_c |{Q_c > 0}|``, ``entropy_l = exp(min_c -sum Q_c ln Q_c)``, ``alpha = max Q_c``,
    ``t = max_c EMD(P, Q_c)``, ``beta = max (Q_c - P) / P``, ``beta_enhanced = max_v min(beta, -ln P_v)``,
    ``delta = max_(Q_c > 0) |ln(Q_c / P)|``. Values that no row has do not exist.

    Args:
      gid: Class of each row, below the number of rows, as :func:`equivalence_classes` gives it.
      s: Sensitive value of each row.
      num_values: How many sensitive values there may be.
      weight: 1 for each row of the table, 0 for rows that were dropped; all 1 by default.
      tree: Ancestors of the values, as :func:`emd_hierarchical` takes them.
      convention: Of ``c_recursive``. "pycanon" sorts the counts of a class that are not 0 in ascending order,
        ``max_c floor(r_0 / sum_(i >= l-1) r_i + 1)``; "machanavajjhala" in descending order, as the paper:
        the least upper bound of the ratios, ``max_c r_1 / (r_l + ... + r_m)``, which c must exceed.

    Returns:
      Scalars, k and l integers. Without any row that counts, k and l are 0 and the others NaN.

    Raises:
      ValueError: If shapes differ, a known code is out of range, or the convention is unknown.
      TypeError: If ``gid`` or ``s`` does not hold integers.

    Source:
      See the top of the file.

    Example:
      >>> import numpy as np
      >>> from jaxneg.fairness import privacy_levels
      >>> found = privacy_levels(np.array([0, 0, 1, 1, 1]), np.array([0, 1, 0, 1, 1]), 2)
      >>> int(found.k), int(found.l), round(float(found.t_equal), 3)
      (2, 2, 0.1)
    """
    one_of("convention", convention, CONVENTIONS)
    gid, s = integer_codes("gid", gid, 1), integer_codes("s", s, 1)
    if gid.shape != s.shape:
        raise ValueError(f"gid, s: expected equally many rows, got {gid.shape[0]} and {s.shape[0]}")
    in_codes("gid", gid, gid.shape[0])
    in_codes("s", s, num_values)
    labels = None if tree is None else tuple(map(tuple, checked_tree(tree, num_values).tolist()))
    weight = row_weight("weight", weight, gid.shape[0])
    return _privacy_levels(gid, s, weight, num_values=num_values, tree=labels, convention=convention)


@partial(jax.jit, static_argnames=("num_values", "tree", "convention"))
def _privacy_levels(
    gid: Array,
    s: Array,
    weight: Array,
    *,
    num_values: int,
    tree: tuple[tuple[int, ...], ...] | None,
    convention: str,
) -> PrivacyLevels:
    histogram = class_histogram(gid, s, num_values, weight)
    count = jnp.sum(histogram, axis=1)
    exists, anything = count > 0, jnp.sum(count) > 0
    Q = histogram / jnp.where(exists, count, 1)[:, None]
    P = jnp.sum(histogram, axis=0) / jnp.where(anything, jnp.sum(count), 1)
    has = histogram > 0
    safe_q, safe_p = jnp.where(has, Q, 1), jnp.where(P > 0, P, 1)
    k, l, t = measured(histogram)
    beta = _most((Q - P) / safe_p, exists)

    def or_nan(value: Array) -> Array:
        return jnp.where(anything, value, jnp.nan)

    hierarchical = jnp.nan if tree is None else _most(emd_hierarchical(P, Q, np.array(tree)), exists)
    return PrivacyLevels(
        k=k,
        l=l,
        entropy_l=or_nan(jnp.exp(-_most(jnp.sum(safe_q * jnp.log(safe_q), axis=1), exists))),
        alpha=or_nan(_most(Q, exists)),
        t_ordered=or_nan(t),
        t_equal=or_nan(_most(emd_equal(P, Q), exists)),
        t_hier=or_nan(jnp.asarray(hierarchical, Q.dtype)),
        beta=or_nan(beta),
        beta_enhanced=or_nan(jnp.minimum(beta, jnp.max(-jnp.log(safe_p)))),
        delta=or_nan(_most(jnp.where(has, jnp.abs(jnp.log(safe_q / safe_p)), 0), exists)),
        c_recursive=or_nan(jnp.where(l > 1, _recursive(histogram, l, exists, convention), jnp.nan)),
    )


def class_histogram(gid: Array, s: Array, num_values: int, weight: Array) -> Array:
    """``H [rows, values]``: how often each value occurs in each class."""
    return jnp.zeros((gid.shape[0], num_values), weight.dtype).at[gid, s].add(weight)


def measured(histogram: Array) -> tuple[Array, Array, Array]:
    """``k``, ``l`` and ``t`` (ordered) of a table's histogram; 0, 0 and 0 if no row counts."""
    count = jnp.sum(histogram, axis=1)
    exists, total = count > 0, jnp.sum(histogram, axis=0)
    different = jnp.sum(histogram > 0, axis=1)
    extra = histogram / jnp.where(exists, count, 1)[:, None] - total / jnp.maximum(jnp.sum(total), 1)
    # A value that does not exist is no place on the way from one value to another.
    steps = jnp.where(total > 0, jnp.abs(jnp.cumsum(extra, axis=1)), 0)
    distance = jnp.sum(steps, axis=1) / jnp.maximum(jnp.sum(total > 0) - 1, 1)
    any_class = jnp.any(exists)
    least = jnp.min(jnp.where(exists, count, jnp.inf))
    return (
        jnp.where(any_class, least, 0).astype(jnp.int32),
        jnp.where(any_class, jnp.min(jnp.where(exists, different, histogram.shape[1])), 0).astype(jnp.int32),
        jnp.maximum(_most(distance, exists), 0),
    )


def _recursive(histogram: Array, l: Array, exists: Array, convention: str) -> Array:
    place = jnp.arange(histogram.shape[1])
    if convention == "pycanon":
        # Values that a class lacks come first and are skipped.
        rows = jnp.sort(histogram, axis=1)
        missing = jnp.sum(histogram <= 0, axis=1, keepdims=True)
        first = jnp.take_along_axis(rows, jnp.minimum(missing, histogram.shape[1] - 1), axis=1)[:, 0]
        tail = jnp.sum(jnp.where(place >= missing + l - 1, rows, 0), axis=1)
        return _most(jnp.floor(first / jnp.where(tail > 0, tail, 1) + 1), exists)
    rows = -jnp.sort(-histogram, axis=1)
    tail = jnp.sum(jnp.where(place >= l - 1, rows, 0), axis=1)
    return _most(rows[:, 0] / jnp.where(tail > 0, tail, 1), exists)


def _most(values: Array, exists: Array) -> Array:
    """The largest value over classes that exist."""
    mask = jnp.reshape(exists, exists.shape + (1,) * (values.ndim - 1))
    return jnp.max(jnp.where(mask, values, -jnp.inf))
