"""Matrix multiplication whose result's sharding is never ambiguous.

Under explicit mesh axes JAX refuses a product that contracts a sharded axis, since its result could be
sharded in several ways. Here it is sharded as the axes that remain are, and the sum over the contracted axis
is an all-reduce (Shoeybi et al. 2019, arXiv:1909.08053, Section 3).
"""

from typing import Any

import jax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from jaxtyping import Array


def contract(lhs: Array, rhs: Array, dimension_numbers: Any, **options: Any) -> Array:
    """``jax.lax.dot_general`` under auto and explicit mesh axes alike.

    Args:
      lhs: Left factor.
      rhs: Right factor.
      dimension_numbers: As in ``jax.lax.dot_general``.
      **options: Further arguments of ``jax.lax.dot_general``; ``out_sharding`` is found if it is not given.

    Returns:
      The product; its axes are sharded as the factors' axes are.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxneg.nn import contract
      >>> contract(jnp.ones((2, 3)), jnp.ones((3, 4)), (((1,), (0,)), ((), ()))).shape
      (2, 4)
    """
    left, right = jax.typeof(lhs).sharding, jax.typeof(rhs).sharding
    if options.get("out_sharding") is None and AxisType.Explicit in left.mesh.axis_types:
        (lhs_contracted, rhs_contracted), (lhs_batch, rhs_batch) = dimension_numbers
        gone_left, gone_right = {*lhs_contracted, *lhs_batch}, {*rhs_contracted, *rhs_batch}
        options["out_sharding"] = P(
            *(left.spec[i] or right.spec[j] for i, j in zip(lhs_batch, rhs_batch, strict=True)),
            *(axis for i, axis in enumerate(left.spec) if i not in gone_left),
            *(axis for i, axis in enumerate(right.spec) if i not in gone_right),
        )
    return jax.lax.dot_general(lhs, rhs, dimension_numbers, **options)


def contract_rows(lhs: Array, rhs: Array, dimension_numbers: Any, **options: Any) -> Array:
    """:func:`contract` of the last axis with a matrix's first, as one product of two matrices.

    The axes of examples and tokens become one: on a CPU, XLA takes twice as long for the matrix's gradient
    if they are two. Only the first of them may be sharded.

    Args:
      lhs: Rows, in any number of axes.
      rhs: The matrix.
      dimension_numbers: Ignored: they follow from the shapes.
      **options: As in :func:`contract`.

    Returns:
      The rows, multiplied.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxneg.nn.contraction import contract_rows
      >>> contract_rows(jnp.ones((2, 5, 3)), jnp.ones((3, 4)), None).shape
      (2, 5, 4)
    """
    del dimension_numbers
    rows = contract(lhs.reshape(-1, lhs.shape[-1]), rhs, (((1,), (0,)), ((), ())), **options)
    return rows.reshape(*lhs.shape[:-1], rhs.shape[1])
