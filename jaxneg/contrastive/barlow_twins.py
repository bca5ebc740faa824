"""Barlow Twins: the cross-correlation of the features of two views must be the identity; no negatives.

J. Zbontar et al. 2021, "Barlow Twins: self-supervised learning via redundancy reduction", arXiv:2103.03230,
Equations 1 and 2.
"""

from functools import partial
from typing import Literal

import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from jaxneg.contrastive.arguments import alike, check_negatives, one_of
from jaxneg.contrastive.shards import AxisName, averaged, explicit_axis, on_shards, shards, summed

NORMS = ("unbiased", "batchnorm")


def standardised(
    z: Float[Array, "batch *axes"], norm: str, axis_name: AxisName
) -> Float[Array, "batch *axes"]:
    """Each feature with mean 0 and standard deviation 1 over the batch.

    Args:
        z: features.
        norm: "unbiased", over the unbiased deviation + 1e-9; or "batchnorm", over sqrt(variance + 1e-5).
        axis_name: mesh axis over which the batch lies.

    Returns:
        The features.
    """
    count = len(z) * shards(axis_name)
    centred = z - averaged(z.mean(0), axis_name)
    squares = summed(jnp.sum(jnp.square(centred), 0), axis_name)
    if norm == "batchnorm":
        return centred / jnp.sqrt(squares / count + 1e-5)
    varies = squares > 0
    deviation = jnp.where(varies, jnp.sqrt(jnp.where(varies, squares, 1.0) / (count - 1)), 0.0)
    return centred / (deviation + 1e-9)


def without_diagonal(matrix: Float[Array, "*heads dim dim"]) -> Float[Array, "*heads dim dim"]:
    """The matrix with zeros on its diagonal."""
    return jnp.where(jnp.eye(matrix.shape[-1], dtype=bool), 0.0, matrix)


def products_of_features(
    a: Float[Array, "batch dim"], b: Float[Array, "batch dim"], axis_name: AxisName
) -> tuple[Float[Array, "dim"], Float[Array, ""]]:
    """The diagonal of ``a^T b``, summed over the mesh axis, and the sum of its squares off the diagonal.

    Where features are at least twice as many as images, no product of features is formed:
    ``|a^T b|^2 = sum_ij (a a^T)_ij (b b^T)_ij``. Of features that vary alike half of the whole or more is
    then off the diagonal, whatever they are, since the rank is small: the difference loses no digits.

    Args:
        a: features.
        b: features.
        axis_name: mesh axis over which the batch lies.

    Returns:
        Both.
    """
    images, dim = a.shape
    if axis_name is None and 2 * images <= dim and a.dtype.itemsize >= 4:
        diagonal = jnp.sum(a * b, 0)
        whole = jnp.sum((a @ a.T) * (b @ b.T))
        return diagonal, whole - jnp.sum(jnp.square(diagonal))
    matrix = summed(a.T @ b, axis_name)
    return jnp.diagonal(matrix), jnp.sum(jnp.square(without_diagonal(matrix)))


def barlow_twins_loss(
    z1: Float[Array, "batch dim"],
    z2: Float[Array, "batch dim"],
    *,
    lambd: float = 5e-3,
    norm: Literal["unbiased", "batchnorm"] = "unbiased",
    axis_name: AxisName = None,
) -> Float[Array, ""]:
    """Squared distance of the cross-correlation from the identity, its off-diagonal weighted.

    ``L = sum_l (1 - C_ll)^2 + lambda sum_{l != m} C_lm^2,  C = a1^T a2 / B``

    with a1, a2 the features, standardised over the batch. It is a statistic of the batch: no axis is left.

    Args:
        z1: features of the first views.
        z2: features of the second views.
        lambd: weight of the off-diagonal.
        norm: how features are standardised: by the unbiased deviation (the AMCL code), or as batch
            normalisation does (lightly, solo-learn).
        axis_name: mesh axis over which the batch lies, inside `jax.shard_map`: the correlation is that of
            the whole batch.

    Returns:
        The loss of the batch.

    Raises:
        ValueError: shapes that differ, fewer than two images, a norm that does not exist.
        TypeError: arrays that are not floating.

    Source:
        arXiv:2103.03230, Equations 1 and 2.

    Example:
        >>> z = jnp.array([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
        >>> round(float(barlow_twins_loss(z, z, norm="batchnorm")), 4)
        0.0
    """
    z1, z2 = alike("batch dim", z1=z1, z2=z2)
    one_of("norm", norm, NORMS)
    if axis_name is None and explicit_axis(z1):
        return on_shards(partial(barlow_twins_loss, lambd=lambd, norm=norm), (z1, z2), out_specs=P())
    check_negatives("z1", len(z1) * shards(axis_name))
    a1, a2 = (standardised(z, norm, axis_name) for z in (z1, z2))
    count = len(z1) * shards(axis_name)
    diagonal, off_diagonal = products_of_features(a1, a2, axis_name)
    return jnp.sum(jnp.square(1 - diagonal / count)) + lambd * off_diagonal / count**2
