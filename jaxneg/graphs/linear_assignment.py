"""The linear assignment problem, with prices that the next problem can begin from.

Jonker and Volgenant 1987 (Computing 38): a greedy start, then shortest augmenting paths. The results are
those of ``optax.assignment.hungarian_algorithm``, which begins with all rows free, updates prices at every
step of a path and cannot begin from known prices: it takes five times as long for 300 rows.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def assignment(
    cost: Float[Array, "n n"], prices: Float[Array, " n"] | None = None
) -> tuple[Int[Array, " n"], Float[Array, " n"]]:
    """The permutation of least cost.

    ``min_sigma sum_i cost[i, sigma_i]``

    Args:
      cost: Finite costs, in float32 or wider.
      prices: Of the columns, where the search begins: those that a like problem ended with. Any finite
        numbers are right. The columns' least costs by default.

    Returns:
      The column of each row, and the prices, a solution of the dual: ``cost[i, j] - prices[j]`` is least in
      row i at its own column, up to rounding. Where a cost or price is not finite, any permutation, and
      prices that are NaN.

    Source:
      Jonker and Volgenant 1987, Section 3.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxneg.graphs import assignment
      >>> assignment(jnp.array([[8.0, 4.0, 7.0], [5.0, 2.0, 3.0], [9.0, 6.0, 9.0]]))[0].tolist()
      [1, 2, 0]
    """
    n = len(cost)
    index = jnp.arange(n, dtype=jnp.int32)
    # What is not finite would keep the search from ending.
    finite = jnp.all(jnp.isfinite(cost)) & (prices is None or jnp.all(jnp.isfinite(prices)))
    cost, prices = jax.tree.map(lambda x: jnp.where(finite, x, 0), (cost, prices))
    v = first_prices(cost, prices)
    # Each row bids for its cheapest column; of several bidders the first gets it.
    wanted = _first_least(cost - v)
    row_of = jnp.full(n, n, jnp.int32).at[wanted].min(index)
    row_of = jnp.where(row_of == n, -1, row_of)
    column_of = jnp.where(row_of[wanted] == index, wanted, -1)

    state = jax.lax.while_loop(
        lambda s: jnp.any(s[2] < 0), lambda s: _augment(cost, s), (v, row_of, column_of)
    )
    return state[2], jnp.where(finite, state[0], jnp.nan)


def sorted_prices(cost: Float[Array, "n n"]) -> Float[Array, " n"]:
    """Prices that solve the problem at once where a sorted matrix satisfies Monge's inequality.

    With rows and columns sorted by their sums, ``c_ij + c_(i+1)(j+1) <= c_i(j+1) + c_(i+1)j`` makes the
    sorted matching the cheapest, as for ``-a b^T`` of nonnegative numbers, where greedy bids all go for one
    column.

    Args:
      cost: Finite costs.

    Returns:
      Prices to begin :func:`assignment` with.

    Source:
      Burkard, Klinz and Rudolf 1996, Perspectives of Monge properties, Section 3.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxneg.graphs.linear_assignment import sorted_prices
      >>> sorted_prices(-jnp.outer(jnp.arange(3.0), jnp.arange(3.0))).tolist()
      [2.0, 1.5, 0.0]
    """
    rows, columns = jnp.argsort(cost.sum(1)), jnp.argsort(cost.sum(0))
    own = cost[rows, columns]
    right, below = cost[rows[:-1], columns[1:]], cost[rows[1:], columns[:-1]]
    # Row i must not want column i + 1, nor row i + 1 column i: between these two differences of prices.
    rise = (right - own[:-1] + own[1:] - below) / 2
    sorted_by = jnp.concatenate([jnp.zeros(1, cost.dtype), jnp.cumsum(rise)])
    return jnp.zeros_like(sorted_by).at[columns].set(sorted_by)


State = tuple[Array, Array, Array]  # prices, row of each column, column of each row; -1: none


def first_prices(cost: Float[Array, "n n"], known: Float[Array, " n"] | None = None) -> Float[Array, " n"]:
    """The prices at which most rows find a column for themselves.

    Args:
      cost: Finite costs.
      known: Prices to choose from, beside those of :func:`sorted_prices` and the columns' least costs.

    Returns:
      Prices to begin :func:`assignment` with.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxneg.graphs.linear_assignment import first_prices
      >>> first_prices(jnp.array([[1.0, 9.0], [9.0, 2.0]])).tolist()
      [0.0, 0.5]
    """
    candidates = jnp.stack([sorted_prices(cost), cost.min(0), *([] if known is None else [known])])

    def served(prices: Array) -> Array:
        return jnp.zeros(len(cost), bool).at[_first_least(cost - prices)].set(True).sum()

    return candidates[jnp.argmax(jax.lax.map(served, candidates))]


def _augment(cost: Array, state: State) -> State:
    """Gives one more row a column, along the shortest path of exchanges."""
    n = len(cost)
    index = jnp.arange(n, dtype=jnp.int32)
    v, row_of, column_of = state
    # Under vmap this runs for problems that are solved too, where no path would end.
    solved = jnp.all(column_of >= 0)
    start = jnp.where(solved, -1, jnp.argmin(column_of)).astype(jnp.int32)

    def scan(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        i, offset, distance, before, done, _ = carry
        new = cost[i] - v - offset
        nearer = (new < distance) & ~done
        distance = jnp.where(nearer, new, distance)
        before = jnp.where(nearer, i, before)
        j = _first_least(jnp.where(done, jnp.inf, distance))
        done = done | (index == j)
        i = row_of[j]
        offset = cost[i, j] - v[j] - distance[j]
        return i, offset, distance, before, done, j

    zero = jnp.zeros((), cost.dtype)
    nowhere = jnp.full(n, -1, jnp.int32)
    carry = (start, zero, jnp.full(n, jnp.inf, cost.dtype), nowhere, jnp.zeros(n, bool), start)
    _, _, distance, before, done, end = jax.lax.while_loop(lambda c: c[0] >= 0, scan, carry)
    v = v + jnp.where(done & ~solved, distance - distance[end], 0)

    def exchange(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        j, row_of, column_of, _ = carry
        i = before[j]
        return column_of[i], row_of.at[j].set(i), column_of.at[i].set(j), i == start

    carry = (end, row_of, column_of, solved)
    _, row_of, column_of, _ = jax.lax.while_loop(lambda c: ~c[3], exchange, carry)
    return v, row_of, column_of


def _first_least(x: Array) -> Array:
    """Where the last axis is least, at the first of several places.

    ``jnp.argmin`` without its care for NaN, which keeps a CPU from comparing several numbers at once.
    """
    index = jnp.arange(x.shape[-1], dtype=jnp.int32)
    return jnp.min(jnp.where(x == x.min(-1, keepdims=True), index, x.shape[-1]), axis=-1)
