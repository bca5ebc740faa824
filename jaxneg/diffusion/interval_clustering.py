"""Noise levels in contiguous intervals: interval costs, and the partition that minimises their sum.

Go et al., "Addressing Negative Transfer in Diffusion Models", arXiv:2306.00354, Section 4 (interval
clustering with timestep, SNR and gradient costs, by dynamic programming). The authors' code shifts inner
boundaries by one, forbids costs of zero, and rounds some centres away from the middle; this is the problem as
the paper states it, solved exactly.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

CostKind = Literal["timestep", "snr", "gradient"]

_POWERS = {"timestep": 2, "snr": 1}


def interval_cost(kind: CostKind, values: Any, power: float | None = None) -> Float[Array, "n n"]:
    """How far the noise levels of every interval are from the one in its middle.

    ``C[l, r] = sum_(t=l..r) |v_t - v_c|^p`` with the middle ``c = floor((l + r + 1) / 2)``, and
    ``C[l, r] = -sum_(t=l..r) A[c, t]`` for "gradient"

    Sums run outwards from the middle, so that no digits cancel in float32.

    Args:
        kind: "timestep", "snr" or "gradient".
        values: v ``[n]``: timesteps (or n, for 0 to n - 1), or log signal-to-noise ratios; for "gradient" the
            affinities A ``[n, n]`` of `task_affinity`.
        power: p; 2 for timesteps and 1 for "snr" unless given.

    Returns:
        ``[n, n]``, float32 at least; infinity where l > r.

    Raises:
        ValueError: an unknown kind, values of another shape, no values, a power that is not positive or comes
            with "gradient".

    Source:
        arXiv:2306.00354, Section 4.2.

    Example:
        >>> interval_cost("timestep", 3)[0].tolist()
        [0.0, 1.0, 2.0]
    """
    if kind not in ("timestep", "snr", "gradient"):
        raise ValueError(f"kind: expected 'timestep', 'snr' or 'gradient', got {kind!r}")
    if kind == "gradient":
        affinity = _at_least_float32(values)
        if affinity.ndim != 2 or affinity.shape[0] != affinity.shape[1] or affinity.size == 0:
            raise ValueError(f"values: expected affinities [n, n], got shape {affinity.shape}")
        if power is not None:
            raise ValueError(f"power: expected None for 'gradient', which has no power, got {power}")
        return _sums_from_the_middle(-affinity)
    power = _POWERS[kind] if power is None else power
    if not power > 0:
        raise ValueError(f"power: expected a positive number, got {power}")
    if kind == "timestep" and isinstance(values, int | np.integer):
        values = np.arange(values)
    v = _at_least_float32(values)
    if v.ndim != 1 or v.size == 0:
        raise ValueError(f"values: expected one for each noise level, [n] with n >= 1, got shape {v.shape}")
    return _sums_from_the_middle(jnp.abs(v - v[:, None]) ** power)


def interval_clustering(
    cost: Float[Array, "n n"], k: int, min_size: int = 1, max_size: int | None = None
) -> tuple[Int[Array, " k+1"], Float[Array, ""]]:
    """The best partition of n noise levels into k contiguous intervals.

    ``min sum_i C[b_(i-1), b_i - 1]`` over ``0 = b_0 < b_1 < ... < b_k = n``, by dynamic programming:
    ``D_j(m) = min_m' D_(j-1)(m') + C[m', m - 1]``, the first minimum where several are equal. It takes k
    minima over an ``[n, n]`` array, and runs in the type of the cost, float32 at least.

    Args:
        cost: C ``[n, n]``, the cost of the interval l..r, both ends included; read where l <= r. Infinity
            forbids an interval.
        k: number of intervals.
        min_size: how many noise levels an interval has at least. Affinities of few examples are noisy, and
            invite tiny intervals at low noise.
        max_size: how many it has at most; None is any number.

    Returns:
        The boundaries b ``[k + 1]``, int32 (interval i holds ``b[i]`` to ``b[i + 1] - 1``), and their cost.

    Raises:
        ValueError: a cost that is not square, k or sizes that no partition has; outside of ``jit`` also costs
            of which every partition is infinite, or NaN.

    Source:
        arXiv:2306.00354, Section 4.2 and Appendix.

    Example:
        >>> boundaries, cost = interval_clustering(interval_cost("timestep", 10), 2)
        >>> boundaries.tolist(), float(cost)
        ([0, 5, 10], 20.0)
    """
    cost = _at_least_float32(cost)
    if cost.ndim != 2 or cost.shape[0] != cost.shape[1]:
        raise ValueError(f"cost: expected a square matrix [n, n], got shape {cost.shape}")
    n = cost.shape[0]
    if not 1 <= k <= n:
        raise ValueError(f"k: expected from 1 to {n} intervals of {n} noise levels, got {k}")
    largest = n if max_size is None else max_size
    if min_size < 1 or k * min_size > n:
        raise ValueError(f"min_size: expected from 1 to {n // k} for {k} intervals of {n}, got {min_size}")
    if largest < min_size or k * largest < n:
        least = max(min_size, -(-n // k))
        raise ValueError(f"max_size: expected at least {least} for {k} intervals of {n}, got {max_size}")
    boundaries, total = _partition(cost, k, min_size, largest)
    if not isinstance(total, Tracer) and not np.isfinite(total):
        raise ValueError(
            f"cost: no partition into {k} intervals has a finite cost, the best is {total}: cost holds NaN or"
            " infinities"
        )
    return boundaries, total


def timestep_intervals(T: int, k: int) -> np.ndarray:
    """Boundaries of k intervals of equal length, or as equal as can be.

    ``b_i = floor(T i / k)``: optimal for the timestep cost where k divides T; the authors' code takes these.

    Args:
        T: number of timesteps.
        k: number of intervals.

    Returns:
        ``[k + 1]`` integers.

    Raises:
        ValueError: k below 1 or above T.

    Source:
        arXiv:2306.00354, Section 4.2; the authors' ``initialize_cluster``.

    Example:
        >>> timestep_intervals(1000, 5).tolist()
        [0, 200, 400, 600, 800, 1000]
    """
    if not 1 <= k <= T:
        raise ValueError(f"k: expected from 1 to {T} intervals of {T} timesteps, got {k}")
    return np.arange(k + 1) * T // k


def checked_boundaries(boundaries: Sequence[int] | np.ndarray | Array) -> np.ndarray:
    """Boundaries as integers on the host, strictly rising from 0 or more; raises ValueError otherwise."""
    found = np.asarray(boundaries)
    if found.ndim != 1 or found.size < 2 or not np.issubdtype(found.dtype, np.integer):
        raise ValueError(
            f"boundaries: expected integers [k + 1] with k >= 1, got {found.dtype} of shape {found.shape}"
        )
    if found[0] < 0 or np.any(np.diff(found) <= 0):
        raise ValueError(f"boundaries: expected strictly rising integers from 0 on, got {found.tolist()}")
    return found


def _at_least_float32(values: Any) -> Array:
    values = jnp.asarray(values)
    if not jnp.issubdtype(values.dtype, jnp.floating):
        return values.astype(float)
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))


@jax.jit
def _sums_from_the_middle(distance: Array) -> Array:
    """From ``d[c, t]`` to ``C[l, r]``, the sum over the interval l..r with its middle at c."""
    n = distance.shape[0]
    index = jnp.arange(n)
    upper = index >= index[:, None]
    after = jnp.cumsum(jnp.where(upper, distance, 0), axis=1)
    before = jax.lax.cumsum(jnp.where(upper, 0, distance), axis=1, reverse=True)
    left, right = index[:, None], index[None, :]
    middle = jnp.minimum((left + right + 1) // 2, n - 1)
    return jnp.where(upper, after[middle, right] + before[middle, left], jnp.inf)


@partial(jax.jit, static_argnums=(1, 2, 3))
def _partition(cost: Array, k: int, min_size: int, max_size: int) -> tuple[Array, Array]:
    n = cost.shape[0]
    index = jnp.arange(n, dtype=jnp.int32)
    sizes = index - index[:, None] + 1
    cost = jnp.where((sizes >= min_size) & (sizes <= max_size), cost, jnp.inf)

    def add_interval(best: Array, _: None) -> tuple[Array, Array]:
        # best[m - 1]: the first m levels in j intervals; begins[l]: where the next interval begins at l.
        begins = jnp.concatenate([jnp.full((1,), jnp.inf, cost.dtype), best[:-1]])
        return jnp.min(begins[:, None] + cost, axis=0), begins

    def cut(end: Array, begins: Array) -> tuple[Array, Array]:
        begin = jnp.argmin(begins + cost[:, end - 1]).astype(jnp.int32)
        return begin, begin

    best, begins = jax.lax.scan(add_interval, cost[0], None, length=k - 1)
    end = jnp.full((), n, jnp.int32)
    _, inner = jax.lax.scan(cut, end, begins, reverse=True)
    return jnp.concatenate([jnp.zeros((1,), jnp.int32), inner, end[None]]), best[-1]
