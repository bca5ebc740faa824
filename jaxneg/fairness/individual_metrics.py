"""Individual fairness: whether people who look alike are treated alike.

Arcolezi et al., arXiv:2505.07985, Section 3, and its code: similarity fairness (ASF), Lipschitz fairness
(ALF) and neighbourhood consistency (NCF) over nearest neighbours; consistency of Zemel et al. 2013 as AIF360
has it. Features that are codes tie massively; here a row is never its own neighbour, and others are ordered
by distance and index, or all ties are counted ("invariant").
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from jaxneg.fairness.arguments import Data, one_of, row_weight, wide

TIES = ("index", "invariant")
LEAST_DISTANCE, SAME, PROBABILITY_FLOOR = 1e-6, 1e-10, 1e-7


class IndividualMetrics(NamedTuple):
    """Scalars, lower is fairer.

    Attributes:
      ASF: Mean difference of predictions times distance.
      ALF: Largest divergence of predictions over distance.
      NCF: Mean difference of predictions.
    """

    ASF: Float[Array, ""]
    ALF: Float[Array, ""]
    NCF: Float[Array, ""]


def individual_metrics(
    p: Float[Data, "rows classes"],
    z: Float[Data, "rows features"],
    k: int = 100,
    block: int = 1024,
    ties: str = "index",
    weight: Float[Data, " rows"] | None = None,
) -> IndividualMetrics:
    """ASF, ALF and NCF over the k nearest other rows.

    ``NCF = mean_i mean_(j in N(i)) |p_i - p_j|``,
    ``ASF = mean_i mean_(j in N(i)) |p_i - p_j| max(d_ij, 1e-6)``,
    ``ALF = max_i max_j KL(p_i || p_j) / d_ij`` over the k - 1 nearest others with ``d_ij > 1e-10``;
    ``|p_i - p_j|`` is the mean over classes, d the Euclidean distance

    Args:
      p: Probability of each class; clipped to [1e-7, 1 - 1e-7] in ALF, which is infinite for certain
        predictions.
      z: Features.
      k: Number of neighbours, at least 2 and below the number of rows.
      block: Rows whose distances are in memory at once.
      ties: "index" (of equally near rows the first), or "invariant": all rows as near as the k-th.
      weight: 0 for rows that are neither compared nor neighbours; others count alike. All by default. Rows
        with fewer than k neighbours have all others.

    Returns:
      Three scalars, in float32 or wider; 0 if no row has a neighbour.

    Raises:
      ValueError: If shapes differ, k is out of range, or ties is unknown.

    Source:
      arXiv:2505.07985, Section 3, and its ``utils.py``; there NCF and ASF are means of chunks' means, here of
      rows.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxneg.fairness import individual_metrics
      >>> p1 = jnp.array([0.5, 0.5, 1.0])
      >>> found = individual_metrics(jnp.stack([1 - p1, p1], 1), jnp.array([[0.0], [2.0], [4.0]]), k=2)
      >>> round(float(found.NCF), 4), round(float(found.ASF), 4)
      (0.3333, 1.0)
    """
    one_of("ties", ties, TIES)
    p, z = wide(jnp.asarray(p)), wide(jnp.asarray(z))
    if p.ndim != 2 or z.ndim != 2 or p.shape[0] != z.shape[0]:
        raise ValueError(
            f"p, z: expected rows of classes and of features, got shapes {p.shape} and {z.shape}"
        )
    n = z.shape[0]
    if not 2 <= k < n:
        raise ValueError(f"k: expected from 2 to one less than the {n} rows, got {k}")
    return _individual_metrics(p, z, row_weight("weight", weight, n) > 0, k=k, block=block, ties=ties)


@partial(jax.jit, static_argnames=("k", "block", "ties"))
def _individual_metrics(
    p: Array, z: Array, counts: Array, *, k: int, block: int, ties: str
) -> IndividualMetrics:
    n = z.shape[0]
    clipped = jnp.clip(p, PROBABILITY_FLOOR, 1 - PROBABILITY_FLOOR)
    clipped = clipped / jnp.sum(clipped, axis=1, keepdims=True)
    log_p = jnp.log(clipped)
    entropy = jnp.sum(clipped * log_p, axis=1)

    def of_block(rows: Int[Array, " block"]) -> tuple[Array, Array, Array, Array]:
        squared = _squared_distances(z, rows, counts)
        nearest, index = lax.top_k(-squared, k)
        if ties == "index":
            near = -nearest
            difference = jnp.mean(jnp.abs(p[rows][:, None] - p[index]), axis=-1)
            divergence = entropy[rows][:, None] - jnp.einsum("bc,bkc->bk", clipped[rows], log_p[index])
            chosen, lipschitz = jnp.isfinite(near), jnp.isfinite(near) & (jnp.arange(k) < k - 1)
        else:
            near = squared
            difference = jnp.mean(jnp.abs(p[rows][:, None] - p[None]), axis=-1)
            divergence = entropy[rows][:, None] - clipped[rows] @ log_p.T
            reach = jnp.max(jnp.where(jnp.isfinite(nearest), -nearest, -1), axis=1, keepdims=True)
            shorter = nearest[:, : k - 1]
            reach_less = jnp.max(jnp.where(jnp.isfinite(shorter), -shorter, -1), axis=1, keepdims=True)
            chosen, lipschitz = near <= reach, near <= reach_less
        # No root of 0, whose gradient is infinite.
        distance = jnp.where(near > 0, jnp.sqrt(jnp.where((near > 0) & jnp.isfinite(near), near, 1)), 0)
        number = jnp.sum(chosen, axis=1)
        counted = counts[rows] & (number > 0)

        def mean(values: Array) -> Array:
            of_row = jnp.sum(jnp.where(chosen, values, 0), axis=1) / jnp.maximum(number, 1)
            return jnp.where(counted, of_row, 0)

        apart = lipschitz & (distance > SAME) & counts[rows][:, None]
        ratio = jnp.where(apart, divergence / jnp.where(apart, distance, 1), 0)
        similar = mean(difference * jnp.maximum(distance, LEAST_DISTANCE))
        return similar, jnp.max(ratio, axis=1), mean(difference), counted

    similar, ratio, consistent, counted = _by_blocks(of_block, n, block)
    total = jnp.maximum(jnp.sum(counted), 1)
    return IndividualMetrics(jnp.sum(similar) / total, jnp.max(ratio), jnp.sum(consistent) / total)


def consistency(
    yhat: Float[Data, " rows"],
    z: Float[Data, "rows features"],
    k: int = 5,
    block: int = 1024,
    weight: Float[Data, " rows"] | None = None,
) -> Float[Array, ""]:
    """How near decisions are to those of the nearest rows, of which a row is its own first.

    ``1 - mean_i |yhat_i - mean_(j in N(i)) yhat_j|``

    Args:
      yhat: Decisions, or scores.
      z: Features.
      k: Number of nearest rows, the row itself among them, at least 1.
      block: Rows whose distances are in memory at once.
      weight: 0 for rows that are left out; all by default.

    Returns:
      A scalar, 1 if all neighbours agree.

    Raises:
      ValueError: If shapes differ, or k is out of range.

    Source:
      Zemel et al. 2013, "Learning Fair Representations"; AIF360 ``BinaryLabelDatasetMetric.consistency``.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxneg.fairness import consistency
      >>> float(consistency(jnp.array([0, 0, 1, 1]), jnp.array([[0.0], [1.0], [5.0], [6.0]]), k=2))
      1.0
    """
    yhat, z = wide(jnp.asarray(yhat)), wide(jnp.asarray(z))
    if yhat.ndim != 1 or z.ndim != 2 or yhat.shape[0] != z.shape[0]:
        raise ValueError(f"yhat, z: expected a decision for each row, got shapes {yhat.shape} and {z.shape}")
    n = z.shape[0]
    if not 1 <= k <= n:
        raise ValueError(f"k: expected from 1 to the {n} rows, got {k}")
    return _consistency(yhat, z, row_weight("weight", weight, n) > 0, k=k, block=block)


@partial(jax.jit, static_argnames=("k", "block"))
def _consistency(yhat: Array, z: Array, counts: Array, *, k: int, block: int) -> Array:
    n = z.shape[0]

    def of_block(rows: Int[Array, " block"]) -> tuple[Array, ...]:
        squared = _squared_distances(z, rows, counts)
        squared = jnp.where(rows[:, None] == jnp.arange(n), -1.0, squared)
        nearest, index = lax.top_k(-squared, k)
        chosen = jnp.isfinite(nearest)
        mean = jnp.sum(jnp.where(chosen, yhat[index], 0), axis=1) / jnp.maximum(jnp.sum(chosen, axis=1), 1)
        return (jnp.where(counts[rows], jnp.abs(yhat[rows] - mean), 0),)

    (apart,) = _by_blocks(of_block, n, block)
    return 1 - jnp.sum(apart) / jnp.maximum(jnp.sum(counts), 1)


def _squared_distances(z: Array, rows: Array, counts: Array) -> Array:
    """``[block, rows]``, by differences so that ties are exact; infinite to itself and to rows left out."""
    total = jnp.zeros((rows.shape[0], z.shape[0]), z.dtype)
    for feature in range(z.shape[1]):
        total = total + jnp.square(z[rows, feature][:, None] - z[:, feature])
    other = (rows[:, None] != jnp.arange(z.shape[0])) & counts
    return jnp.where(other, total, jnp.inf)


def _by_blocks(of_block: Any, n: int, block: int) -> tuple[Array, ...]:
    """Calls a function on blocks of row numbers and joins what it gives for each row."""
    size = min(block, n)
    blocks = -(-n // size)
    rows = jnp.minimum(jnp.arange(blocks * size), n - 1).reshape(blocks, size)
    return jax.tree.map(lambda array: array.reshape(-1)[:n], lax.map(of_block, rows))
