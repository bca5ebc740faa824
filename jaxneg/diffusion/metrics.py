"""How good samples are: the Fréchet distance of features, precision and recall, and the win rate.

Papers: Fréchet distance, arXiv:1706.08500, equation 6; precision and recall, arXiv:1904.06991, Section 3.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from jaxneg.diffusion.arguments import at_least_float32, check_range, explicit_sharding


def frechet_distance(
    a: Float[Array, "n dim"], b: Float[Array, "m dim"], *, ridge: float = 0.0
) -> Float[Array, ""]:
    """The Fréchet distance between Gaussians fitted to two sets of features (FID with Inception's).

    ``|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^{1/2})``, covariances with n - 1

    With ``C = R^T R`` from a QR decomposition of the centred features, the trace of the root is the sum of
    the singular values of ``R_a R_b^T``: no complex numbers, and no root of a rounding error where a
    covariance is singular, which in float32 would be worth 3e-4 of its norm for each missing rank.

    Args:
        a: one set of features.
        b: the other, of the same width.
        ridge: added to the diagonals of both covariances. With a ridge the gradient exists always, without it
            where n and m are above dim and the covariances have full rank.

    Returns:
        The distance, a scalar of at least 0. It has a bias that falls with n and m: compare at equal counts.

    Raises:
        TypeError: features that are not floating.
        ValueError: sets that are not [n, dim] with n of at least 2, two widths, a negative ridge.

    Source:
        arXiv:1706.08500, equation 6.

    Example:
        >>> a = jax.random.normal(jax.random.key(0), (50, 3))
        >>> round(float(frechet_distance(a, a + 1.0)), 3)
        3.0
    """
    check_range("ridge", ridge, 0, float("inf"))
    a, b = _features("a", a, 2), _features("b", b, 2)
    _same_width("b", b, "a", a)
    mean_a, root_a = _mean_and_root(a, ridge)
    mean_b, root_b = _mean_and_root(b, ridge)
    singular = jnp.linalg.svd(jnp.matmul(root_a, root_b.T, precision="highest"), compute_uv=False)
    traces = jnp.sum(root_a**2) + jnp.sum(root_b**2)
    return jnp.maximum(jnp.sum((mean_a - mean_b) ** 2) + traces - 2 * jnp.sum(singular), 0)


class PrecisionRecall(NamedTuple):
    """Attributes:
    precision: share of the fakes that lie within the neighbourhood of some real.
    recall: share of the reals that lie within the neighbourhood of some fake.
    """

    precision: Float[Array, ""]
    recall: Float[Array, ""]


def precision_recall(
    real: Float[Array, "n dim"], fake: Float[Array, "m dim"], k: int = 3, *, block: int = 1024
) -> PrecisionRecall:
    """Precision and recall of samples by the k nearest neighbours.

    ``precision = mean_f 1[some r: |f - r| <= radius_k(r)]``, ``radius_k(r)`` the distance from r to its k-th
    nearest other real; recall with the roles exchanged

    Distances come from matrix products of blocks of rows: the memory is ``block max(n, m)`` numbers, not n m.

    Args:
        real: features of data.
        fake: features of samples.
        k: which neighbour sets the radius; itself does not count.
        block: rows at a time.

    Returns:
        Precision and recall, scalars in 0..1.

    Raises:
        TypeError: features that are not floating.
        ValueError: sets of k points or fewer, two widths, k below 1.

    Source:
        arXiv:1904.06991, equations 1 and 2.

    Example:
        >>> points = jnp.arange(8.0)[:, None]
        >>> [float(share) for share in precision_recall(points, points + 100.0)]
        [0.0, 0.0]
    """
    if k < 1:
        raise ValueError(f"k: expected a number of at least 1, got {k}")
    real, fake = _features("real", real, k + 1), _features("fake", fake, k + 1)
    _same_width("fake", fake, "real", real)
    centre = jnp.mean(real, axis=0)  # a product of large coordinates would swallow small distances
    real, fake = real - centre, fake - centre

    def radii(points: Array) -> Array:
        def drop_nearest(_: Array, distances: Array) -> Array:
            return jnp.where(jnp.arange(len(points)) == jnp.argmin(distances), jnp.inf, distances)

        def radius(row: Array) -> Array:
            # A few minima: a sort of every row would take ten times as long on a CPU.
            return jnp.min(jax.lax.fori_loop(0, k, drop_nearest, _squared_distances(row, points)))

        return jax.lax.map(radius, points, batch_size=block)

    def covered(points: Array, others: Array) -> Array:
        radius = radii(others)
        inside = jax.lax.map(
            lambda row: jnp.any(_squared_distances(row, others) <= radius), points, batch_size=block
        )
        return jnp.mean(inside.astype(points.dtype))

    return PrecisionRecall(covered(fake, real), covered(real, fake))


def win_rate(a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, ""]:
    """How often the first scores more than the second; a tie counts for neither.

    ``mean(1[a > b])``

    Args:
        a: scores.
        b: scores of the same examples.

    Returns:
        A share in 0..1; NaN where a score is NaN.

    Raises:
        TypeError: scores that are not floating.
        ValueError: two shapes, or no example.

    Source:
        arXiv:2505.11777, the released code (``compare_rate.py``).

    Example:
        >>> float(win_rate(jnp.array([1.0, 2.0, 3.0, 4.0]), jnp.array([0.0, 2.0, 4.0, 4.0])))
        0.25
    """
    a, b = at_least_float32("a", a), at_least_float32("b", b)
    if a.shape != b.shape or a.size == 0:
        raise ValueError(f"b: expected scores of the same examples as a, shape {a.shape}, got {b.shape}")
    unknown = jnp.any(jnp.isnan(a) | jnp.isnan(b))
    return jnp.where(unknown, jnp.nan, jnp.mean((a > b).astype(a.dtype)))


def _mean_and_root(points: Array, ridge: float) -> tuple[Array, Array]:
    """The mean, and R with ``R^T R`` the covariance plus the ridge."""
    mean = jnp.mean(points, axis=0)
    centred = points - mean
    degrees = points.shape[0] - 1
    if not (isinstance(ridge, int | float) and ridge == 0):
        edge = jnp.eye(points.shape[1], dtype=points.dtype) * jnp.sqrt(ridge * degrees).astype(points.dtype)
        centred = jnp.concatenate([centred, edge])
    return mean, jnp.linalg.qr(centred, mode="r") / jnp.sqrt(jnp.asarray(degrees, points.dtype))


def _squared_distances(row: Array, points: Array) -> Array:
    product = jnp.matmul(points, row, precision="highest")
    return jnp.maximum(jnp.sum(points**2, axis=-1) - 2 * product + jnp.sum(row**2), 0)


def _features(name: str, points: Array, least: int) -> Array:
    points = at_least_float32(name, points)
    if points.ndim != 2 or points.shape[0] < least or points.shape[1] == 0:
        raise ValueError(f"{name}: expected [n, dim] with n of at least {least}, got shape {points.shape}")
    sharding = explicit_sharding(points, 0)
    return points if sharding is None else jax.sharding.reshard(points, PartitionSpec())


def _same_width(name: str, points: Array, other: str, like: Array) -> None:
    if points.shape[1] != like.shape[1]:
        raise ValueError(f"{name}: expected the width of {other}, {like.shape[1]}, got {points.shape[1]}")
