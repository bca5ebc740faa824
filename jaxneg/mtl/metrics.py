"""How a multi-task method compares with single-task baselines and with its rivals.

Delta m: Maninis et al., arXiv:1904.08918, as in arXiv:2202.01017, Section 6; Delta p: arXiv:2308.12029,
Section 4; mean rank: arXiv:2202.01017, Section 6.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def delta_m(
    metrics: Float[Array, "*methods metrics"],
    baseline: Float[Array, " metrics"],
    higher_is_better: Bool[Array, " metrics"],
) -> Float[Array, "*methods"]:
    """The mean relative fall behind single-task networks, in percent; lower is better.

    ``100 mean_k (-1)^(h_k) (M_k - B_k) / B_k`` with ``h_k = 1`` where higher is better.

    Args:
        metrics: ``[..., K]``, the method's.
        baseline: ``[K]``, the single-task networks'.
        higher_is_better: ``[K]``.

    Returns:
        ``[...]``, percent.

    Raises:
        ValueError: shapes that differ on K.

    Source:
        arXiv:2202.01017, Section 6.

    Example:
        >>> import jax.numpy as jnp
        >>> float(delta_m(jnp.array([1.5, 2.0]), jnp.array([1.0, 2.0]), jnp.array([False, True])))
        25.0
    """
    return -delta_p_metric(metrics, baseline, higher_is_better)


def delta_p_metric(
    metrics: Float[Array, "*methods metrics"],
    baseline: Float[Array, " metrics"],
    higher_is_better: Bool[Array, " metrics"],
) -> Float[Array, "*methods"]:
    """The mean relative gain over single-task networks over all metrics, in percent; higher is better.

    ``100 mean_k (-1)^(1 - h_k) (M_k - B_k) / B_k``, the negative of `delta_m`.

    Args:
        metrics: ``[..., K]``.
        baseline: ``[K]``.
        higher_is_better: ``[K]``.

    Returns:
        ``[...]``, percent.

    Raises:
        ValueError: shapes that differ on K.

    Source:
        arXiv:2308.12029, Section 4.

    Example:
        >>> import jax.numpy as jnp
        >>> float(delta_p_metric(jnp.array([1.5, 2.0]), jnp.array([1.0, 2.0]), jnp.array([False, True])))
        -25.0
    """
    return jnp.mean(_gain(metrics, baseline, higher_is_better), axis=-1)


def delta_p_task(
    metrics: Float[Array, "*methods metrics"],
    baseline: Float[Array, " metrics"],
    higher_is_better: Bool[Array, " metrics"],
    group: Int[Array, " metrics"],
) -> Float[Array, "*methods"]:
    """The mean over tasks of each task's mean relative gain, in percent; higher is better.

    Args:
        metrics: ``[..., K]``.
        baseline: ``[K]``.
        higher_is_better: ``[K]``.
        group: ``[K]``, the task to which each metric belongs; concrete.

    Returns:
        ``[...]``, percent.

    Raises:
        ValueError: shapes that differ on K.

    Source:
        arXiv:2308.12029, Section 4.

    Example:
        >>> import jax.numpy as jnp
        >>> better = jnp.array([True, True, True])
        >>> float(delta_p_task(jnp.array([2.0, 1.0, 2.0]), jnp.ones(3), better, jnp.array([0, 0, 1])))
        75.0
    """
    gain = _gain(metrics, baseline, higher_is_better)
    if group.shape != gain.shape[-1:]:
        raise ValueError(f"group: expected shape {gain.shape[-1:]}, one for each metric, got {group.shape}")
    tasks = jnp.unique(group)
    member = (group == tasks[:, None]).astype(gain.dtype)
    return jnp.mean(gain @ member.T / jnp.sum(member, axis=1), axis=-1)


def mean_rank(
    metrics: Float[Array, "methods metrics"], higher_is_better: Bool[Array, " metrics"]
) -> Float[Array, " methods"]:
    """Each method's rank, averaged over the metrics; 1 is best and ties share the mean of their ranks.

    Args:
        metrics: ``[M, K]``, one row for each method.
        higher_is_better: ``[K]``.

    Returns:
        ``[M]``.

    Raises:
        ValueError: metrics that are not ``[M, K]``, or another K.

    Source:
        arXiv:2202.01017, Section 6.

    Example:
        >>> import jax.numpy as jnp
        >>> mean_rank(jnp.array([[0.9, 1.0], [0.8, 1.0]]), jnp.array([True, False])).tolist()
        [1.25, 1.75]
    """
    if metrics.ndim != 2 or higher_is_better.shape != metrics.shape[1:]:
        raise ValueError(
            f"metrics, higher_is_better: expected shapes [methods, K] and [K], got {metrics.shape} and "
            f"{higher_is_better.shape}"
        )
    cost = jnp.where(jnp.asarray(higher_is_better, bool), -metrics, metrics)
    below = jnp.sum(cost[None] < cost[:, None], axis=1)
    ties = jnp.sum(cost[None] == cost[:, None], axis=1)
    return jnp.mean(below + (ties + 1) / 2, axis=1)


def _gain(metrics: Array, baseline: Array, higher_is_better: Array) -> Array:
    if baseline.shape != metrics.shape[-1:] or higher_is_better.shape != metrics.shape[-1:]:
        raise ValueError(
            f"baseline, higher_is_better: expected shape {metrics.shape[-1:]}, one for each metric, got "
            f"{baseline.shape} and {higher_is_better.shape}"
        )
    sign = jnp.where(jnp.asarray(higher_is_better, bool), 100, -100)
    return sign * (metrics - baseline) / baseline
