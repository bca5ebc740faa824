"""VICReg: views must agree, each feature must vary, and features must not be correlated; no negatives.

A. Bardes, J. Ponce and Y. LeCun 2022, "VICReg: variance-invariance-covariance regularization for
self-supervised learning", arXiv:2105.04906, Equations 1 to 6.
"""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from jaxneg.contrastive.arguments import alike, check_negatives, one_of
from jaxneg.contrastive.barlow_twins import products_of_features
from jaxneg.contrastive.shards import AxisName, averaged, explicit_axis, on_shards, shards


def vicreg_loss(
    z1: Float[Array, "batch dim"],
    z2: Float[Array, "batch dim"],
    *,
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
    std_reduce: Literal["mean", "sum"] = "mean",
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    """Mean squared difference, a hinge on each feature's deviation, and squared covariances.

    ``L = 25 mean (z1 - z2)^2 + 25 V + sum_v sum_{l != m} cov_lm(z_v)^2 / d,
    V = mean_j relu(1 - sqrt(var_j + 1e-4))``

    with unbiased variances and covariances, and V averaged or summed over the two views. It is a statistic
    of the batch: no axis is left.

    Args:
        z1: features of the first views.
        z2: features of the second views.
        invariance: weight of the first part.
        variance: weight of the second part.
        covariance: weight of the third part.
        std_reduce: whether V is the mean over the views (the paper's code, lightly) or the sum (solo-learn).
        axis_name: mesh axis over which the batch lies, inside `jax.shard_map`: variances are those of the
            whole batch.

    Returns:
        The loss of the batch.

    Raises:
        ValueError: shapes that differ, fewer than two images, a reduction that does not exist.
        TypeError: arrays that are not floating.

    Source:
        arXiv:2105.04906, Equations 1 to 6.

    Example:
        >>> round(float(vicreg_loss(jnp.ones((4, 2)), jnp.ones((4, 2)))), 3)  # both features are constant
        24.75
    """
    z1, z2 = alike("batch dim", z1=z1, z2=z2)
    one_of("std_reduce", std_reduce, ("mean", "sum"))
    if axis_name is None and explicit_axis(z1):
        own = partial(
            vicreg_loss,
            invariance=invariance,
            variance=variance,
            covariance=covariance,
            std_reduce=std_reduce,
        )
        return on_shards(own, (z1, z2), out_specs=P())
    dim, count = z1.shape[1], len(z1) * shards(axis_name)
    check_negatives("z1", count)
    hinge = spread = jnp.zeros((), z1.dtype)
    for z in (z1, z2):
        centred = z - averaged(z.mean(0), axis_name)
        squares, off_diagonal = products_of_features(centred, centred, axis_name)
        hinge += jnp.mean(jax.nn.relu(1 - jnp.sqrt(squares / (count - 1) + 1e-4)))
        spread += off_diagonal / (count - 1) ** 2 / dim
    apart = averaged(jnp.mean(jnp.square(z1 - z2)), axis_name)
    return (
        invariance * apart + variance * (hinge / 2 if std_reduce == "mean" else hinge) + covariance * spread
    )
