"""MoCo: gradients that are tracked over steps, and weights that follow their common descent direction.

Fernando et al., "Mitigating Gradient Bias in Multi-objective Learning" (ICLR 2023), as LibMTL has it. It
keeps T tracked gradients beside the parameters, sharded as they are; only their Gram matrix crosses the mesh.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxneg.mtl.solvers import gradient_norms


def moco_tracker(
    tracked: Any,
    stacked_grads: Any,
    G: Float[Array, "tasks tasks"],
    L: Float[Array, " tasks"],
    step: chex.Numeric,
    beta: float = 0.5,
    beta_sigma: float = 0.5,
) -> Any:
    """The tracked gradients.

    ``y_i <- y_i - (beta / t^beta_sigma) (y_i - h_i)`` with ``h_i = L_i J_i / (|J_i| + 1e-8)``

    Args:
        tracked: y, pytree of ``[T, ...]``; zeros at first.
        stacked_grads: the gradients J, pytree of ``[T, ...]``.
        G: their Gram matrix ``[T, T]``, of which the diagonal is read.
        L: losses ``[T]``.
        step: t = 1, 2, ...
        beta: how fast y follows.
        beta_sigma: how fast that decays.

    Returns:
        y after this step.

    Source:
        ICLR 2023, Algorithm 1; LibMTL, MoCo.

    Example:
        >>> import jax.numpy as jnp
        >>> J = jnp.array([[2.0], [0.0]])
        >>> moco_tracker(0 * J, J, J @ J.T, jnp.ones(2), 1).tolist()
        [[0.5], [0.0]]
    """
    rate = beta / jnp.asarray(step, float) ** beta_sigma
    scales = L / (gradient_norms(G) + 1e-8)

    def follow(y: Array, J: Array) -> Array:
        h = J * scales.reshape(-1, *(1,) * (J.ndim - 1)).astype(J.dtype)
        return (y - rate * (y - h)).astype(y.dtype)

    return jax.tree.map(follow, tracked, stacked_grads)


def moco_weights(
    lam: Float[Array, " tasks"],
    G: Float[Array, "tasks tasks"],
    step: chex.Numeric,
    gamma: float = 0.1,
    gamma_sigma: float = 0.5,
    rho: float = 0.0,
) -> Float[Array, " tasks"]:
    """The next weights.

    ``lam <- softmax(lam - (gamma / t^gamma_sigma) (G + rho I) lam)``

    Args:
        lam: ``[T]``; 1/T each at first.
        G: Gram matrix of the tracked gradients, ``[T, T]``.
        step: t = 1, 2, ...
        gamma: rate.
        gamma_sigma: how fast it decays.
        rho: regularisation.

    Returns:
        Positive weights ``[T]`` that sum to 1.

    Source:
        ICLR 2023, Algorithm 1, with LibMTL's softmax in place of the projection.

    Example:
        >>> import jax.numpy as jnp
        >>> moco_weights(jnp.full(2, 0.5), jnp.eye(2), 1).tolist()
        [0.5, 0.5]
    """
    rate = gamma / jnp.asarray(step, float) ** gamma_sigma
    return jax.nn.softmax(lam - rate * (G @ lam + rho * lam))
