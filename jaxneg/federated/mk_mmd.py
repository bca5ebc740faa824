"""The maximum mean discrepancy with a sum of Gaussian kernels, whose widths follow from the data.

Gretton et al. 2012 (JMLR 13, Equations 3 and 5); several kernels as in Long et al. 2015 (arXiv:1502.02791),
with the widths that FedKA's published code takes (Sun, Chong and Ochiai 2022, arXiv:2203.11635).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxneg.federated.arguments import wide


def kernel_bandwidths(
    x: Float[Array, "n features"],
    y: Float[Array, "m features"],
    *,
    kernel_mul: float = 2.0,
    kernel_num: int = 5,
    bandwidth: float | None = None,
) -> Float[Array, " kernels"]:
    """The widths of the kernels, from the mean squared distance of all points.

    ``b = sum_ij |z_i - z_j|^2 / (N^2 - N),  b_j = b mul^(j - num // 2)`` for ``j = 0 .. num - 1``

    Args:
      x: Points.
      y: More points; z are both together, N of them.
      kernel_mul: Ratio of a width to the one before.
      kernel_num: Number of kernels.
      bandwidth: Takes the place of b.

    Returns:
      The widths, constants for differentiation; zeros if all points are equal.

    Raises:
      ValueError: If shapes do not fit, or a number is not positive.

    Source:
      FedKA's published code.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxneg.federated import kernel_bandwidths
      >>> kernel_bandwidths(jnp.zeros((1, 1)), jnp.ones((1, 1))).tolist()
      [0.25, 0.5, 1.0, 2.0, 4.0]
    """
    _check(x, y, kernel_mul, kernel_num, bandwidth)
    z = wide(jnp.concatenate([x, y]))
    if bandwidth is None:
        # sum_ij |z_i - z_j|^2 = 2 N sum_i |z_i - mean|^2
        base = 2 * jnp.sum(jnp.square(z - z.mean(0))) / (len(z) - 1)
    else:
        base = jnp.asarray(bandwidth, z.dtype)
    powers = jnp.arange(kernel_num, dtype=z.dtype) - kernel_num // 2
    return jax.lax.stop_gradient(base * kernel_mul**powers)


def mk_mmd(
    x: Float[Array, "n features"],
    y: Float[Array, "m features"],
    *,
    kernel_mul: float = 2.0,
    kernel_num: int = 5,
    bandwidth: float | None = None,
    unbiased: bool = False,
) -> Float[Array, ""]:
    """The squared maximum mean discrepancy of two samples, with several Gaussian kernels.

    ``k(a, b) = sum_j exp(-|a - b|^2 / b_j)``;
    ``MMD^2 = mean k(x, x') + mean k(y, y') - 2 mean k(x, y)``, pairs of a point with itself included

    Args:
      x: First sample.
      y: Second sample; the sizes may differ.
      kernel_mul: As in :func:`kernel_bandwidths`.
      kernel_num: Likewise; the kernels are summed.
      bandwidth: Likewise.
      unbiased: Leaves out the pairs of a point with itself: the U-statistic, which may be negative.

    Returns:
      A scalar, in float32 or wider; 0 if all points are equal. Widths count as constants in its gradient.

    Raises:
      ValueError: If shapes do not fit, a number is not positive, or ``unbiased`` with fewer than two points.
      TypeError: If a sample is not floating-point.

    Source:
      Gretton et al. 2012, JMLR 13, Equations 3 (unbiased) and 5; FedKA's published code.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxneg.federated import mk_mmd
      >>> round(float(mk_mmd(jnp.zeros((4, 2)), jnp.ones((4, 2)))), 3)
      7.465
    """
    widths = kernel_bandwidths(x, y, kernel_mul=kernel_mul, kernel_num=kernel_num, bandwidth=bandwidth)
    n, m = len(x), len(y)
    if unbiased and min(n, m) < 2:
        raise ValueError(f"unbiased: expected at least two points in each sample, got {n} and {m}")
    z = wide(jnp.concatenate([x, y]))
    z = z - jax.lax.stop_gradient(z.mean(0))  # distances stay; products lose fewer digits
    squares = jnp.sum(jnp.square(z), axis=1)
    products = jnp.matmul(z, z.T, precision=jax.lax.Precision.HIGHEST)
    distances = jnp.maximum(squares[:, None] + squares[None] - 2 * products, 0)
    spread = widths[-1] > 0  # also false for NaN, which the last line lets through
    k = jnp.sum(jnp.exp(-distances / jnp.where(spread, widths, 1)[:, None, None]), axis=0)
    if unbiased:
        k = k * (1 - jnp.eye(n + m, dtype=z.dtype))
        of_x, of_y = n * (n - 1), m * (m - 1)
    else:
        of_x, of_y = n * n, m * m
    value = k[:n, :n].sum() / of_x + k[n:, n:].sum() / of_y - (k[:n, n:].sum() + k[n:, :n].sum()) / (n * m)
    return jnp.where(spread | jnp.isnan(widths[-1]), value, 0)


def _check(x: Array, y: Array, mul: float, num: int, bandwidth: float | None) -> None:
    for name, points in (("x", x), ("y", y)):
        if not jnp.issubdtype(points.dtype, jnp.floating):
            raise TypeError(f"{name}: expected a floating dtype, got {points.dtype}")
        if points.ndim != 2 or 0 in points.shape:
            raise ValueError(f"{name}: expected points [n, features], at least one, got shape {points.shape}")
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"y: expected {x.shape[1]} features as x has, got {y.shape[1]}")
    if num < 1:
        raise ValueError(f"kernel_num: expected at least 1, got {num}")
    if not mul > 0:
        raise ValueError(f"kernel_mul: expected a positive number, got {mul}")
    if bandwidth is not None and not bandwidth > 0:
        raise ValueError(f"bandwidth: expected a positive number or None, got {bandwidth}")
