"""DB-MTL: gradients of log losses, smoothed over steps and brought to the length of the longest.

Lin et al., arXiv:2308.12029, Section 3. It keeps a buffer of T gradients beside the parameters, sharded as
they are; only their norms cross the mesh.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_EPS = 1e-8


def dbmtl_buffer(
    buffer: Any,
    stacked_grads: Any,
    L: Float[Array, " tasks"],
    step: chex.Numeric,
    beta: float = 0.9,
    sigma: float = 0.0,
) -> Any:
    """The moving average of the gradients of ``log L``.

    ``u_i <- J_i' + (beta / t^sigma) (u_i - J_i')`` with ``J_i' = J_i / (L_i + 1e-8)``; not corrected for its
    start at 0.

    Args:
        buffer: u, pytree of ``[T, ...]``; zeros at first.
        stacked_grads: the gradients of L, pytree of ``[T, ...]``.
        L: losses ``[T]``.
        step: t = 1, 2, ...
        beta: share of the past.
        sigma: how fast that share decays.

    Returns:
        The buffer after this step.

    Source:
        arXiv:2308.12029, Section 3.2; LibMTL, DB_MTL.

    Example:
        >>> import jax.numpy as jnp
        >>> dbmtl_buffer(jnp.zeros((2, 1)), jnp.ones((2, 1)), jnp.array([1.0, 2.0]), 1, beta=0.5).tolist()
        [[0.5], [0.25]]
    """
    kept = beta / jnp.asarray(step, float) ** sigma

    def follow(u: Array, J: Array) -> Array:
        logarithmic = J * _per_task(dbmtl_head_weights(L), J)
        return (logarithmic + kept * (u - logarithmic)).astype(u.dtype)

    return jax.tree.map(follow, buffer, stacked_grads)


def dbmtl_weights(norms: Float[Array, " tasks"]) -> Float[Array, " tasks"]:
    """Weights that bring all to the length of the longest.

    ``w_i = max_j n_j / (n_i + 1e-8)``

    Args:
        norms: n ``[T]``, of the buffer's gradients.

    Returns:
        Weights ``[T]``, about 1 and more.

    Source:
        arXiv:2308.12029, Section 3.2.

    Example:
        >>> import jax.numpy as jnp
        >>> dbmtl_weights(jnp.array([1.0, 2.0])).tolist()
        [2.0, 1.0]
    """
    return jnp.max(norms) / (norms + _EPS)


def dbmtl_head_weights(L: Float[Array, " tasks"]) -> Float[Array, " tasks"]:
    """What a task's own gradient weighs on its head: heads descend the log losses.

    ``1 / (L_i + 1e-8)``

    Args:
        L: losses ``[T]``.

    Returns:
        ``[T]``.

    Source:
        LibMTL, DB_MTL.

    Example:
        >>> import jax.numpy as jnp
        >>> dbmtl_head_weights(jnp.array([2.0, 4.0])).tolist()
        [0.5, 0.25]
    """
    return 1 / (L + _EPS)


def _per_task(values: Array, like: Array) -> Array:
    return values.reshape(-1, *(1,) * (like.ndim - 1)).astype(like.dtype)
