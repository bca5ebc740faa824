"""Rank correlations with ties: Spearman's rho and Kendall's tau-b.

Papers: Spearman, "The proof and measurement of association between two things", 1904; Kendall, "The treatment
of ties in ranking problems", 1945 (tau-b). Both compare all pairs, n² numbers for n values.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxneg.retrieval.masked import at_least_float32


def _pair(x: Array, y: Array) -> tuple[Array, Array]:
    x, y = at_least_float32(x), at_least_float32(y)
    if x.ndim == 0 or x.shape[-1] < 2:
        raise ValueError(f"x: expected at least two values on the last axis, got shape {x.shape}")
    if x.shape != y.shape:
        raise ValueError(f"y: expected the shape of x, {x.shape}, got {y.shape}")
    return x, y


def _average_ranks(values: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
    """Ranks from 0; tied values share the mean of theirs."""
    mine, other = values[..., :, None], values[..., None, :]
    below = jnp.sum(other < mine, axis=-1)
    tied = jnp.sum(other == mine, axis=-1)
    return below + (tied.astype(values.dtype) - 1.0) / 2.0


def spearman(x: Float[Array, "*batch n"], y: Float[Array, "*batch n"]) -> Float[Array, "*batch"]:
    """Spearman's rank correlation over the last axis, ties at their average rank.

    rho = Pearson correlation of the ranks

    Args:
        x: values.
        y: values, same shape.

    Returns:
        rho in [-1, 1]; NaN where x or y is constant, for which it has no value.

    Raises:
        ValueError: shapes that differ, or fewer than two values.

    Source:
        Spearman 1904; equal to ``scipy.stats.spearmanr``.

    Example:
        >>> float(spearman(jnp.array([1.0, 2.0, 3.0]), jnp.array([10.0, 30.0, 20.0])))
        0.5
    """
    x, y = _pair(x, y)
    a, b = _average_ranks(x), _average_ranks(y)
    a, b = a - jnp.mean(a, axis=-1, keepdims=True), b - jnp.mean(b, axis=-1, keepdims=True)
    return jnp.sum(a * b, axis=-1) / jnp.sqrt(jnp.sum(a * a, axis=-1) * jnp.sum(b * b, axis=-1))


def kendall_tau(x: Float[Array, "*batch n"], y: Float[Array, "*batch n"]) -> Float[Array, "*batch"]:
    """Kendall's tau-b over the last axis.

    tau_b = (concordant - discordant) / sqrt((pairs not tied in x) (pairs not tied in y))

    Args:
        x: values.
        y: values, same shape.

    Returns:
        tau-b in [-1, 1]; NaN where x or y is constant, for which it has no value.

    Raises:
        ValueError: shapes that differ, or fewer than two values.

    Source:
        Kendall 1945; equal to ``scipy.stats.kendalltau``.

    Example:
        >>> round(float(kendall_tau(jnp.array([1.0, 2.0, 3.0]), jnp.array([10.0, 30.0, 20.0]))), 4)
        0.3333
    """
    x, y = _pair(x, y)
    a = jnp.sign(x[..., :, None] - x[..., None, :])
    b = jnp.sign(y[..., :, None] - y[..., None, :])
    pairs = (-2, -1)
    return jnp.sum(a * b, axis=pairs) / jnp.sqrt(jnp.sum(a * a, axis=pairs) * jnp.sum(b * b, axis=pairs))
