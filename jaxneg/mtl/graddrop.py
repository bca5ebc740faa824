"""GradDrop: of every coordinate only the gradients of one sign pass, drawn by how much they agree.

Chen et al., arXiv:2010.06808, Algorithm 1, in its form on parameters and in that on a shared representation.
It is elementwise, not a function of the Gram matrix: one draw for each parameter, nothing crosses the mesh;
on a representation the signed gradients are summed over the batch, so that one number for each feature does.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def graddrop_masked(stacked_grads: Any, draws: Any, leak: Float[Array, " tasks"] | float = 0.0) -> Any:
    """The gradients with what is dropped set to 0; their sum over the tasks is the direction.

    ``P = (1 + sum_i J_i / sum_i |J_i|) / 2``; where ``P > U`` positive entries pass, where ``P < U`` negative
    ones. ``(l_i + (1 - l_i) M_i) J_i``, 0 in a coordinate that no task moves.

    Args:
        stacked_grads: J, pytree of ``[T, ...]``.
        draws: U, a pytree without the task axis, uniform in [0, 1): `graddrop_draws`.
        leak: l, how much of what is dropped passes; ``[T]`` or one number.

    Returns:
        A pytree of ``[T, ...]``.

    Source:
        arXiv:2010.06808, Algorithm 1; torchjd's GradDrop.

    Example:
        >>> import jax.numpy as jnp
        >>> graddrop_masked(jnp.array([[3.0], [-1.0]]), jnp.array([0.5])).tolist()
        [[3.0], [-0.0]]
    """
    return jax.tree.map(lambda J, U: _passing(J, U, leak) * J, stacked_grads, draws)


def graddrop_representation(
    Z: Float[Array, "..."],
    grads: Float[Array, "tasks batch ..."],
    draws: Float[Array, "..."],
    leak: Float[Array, " tasks"] | float = 0.0,
) -> Float[Array, "tasks batch ..."]:
    """The gradients in representation space with what is dropped set to 0.

    Signs are those of ``sign(Z) dL_i/dZ``, summed over the batch: a feature passes or is dropped in all
    examples alike.

    Args:
        Z: the shared representation ``[B, ...]``, or ``[T, B, ...]`` with a batch for each task.
        grads: dL_i/dZ ``[T, B, ...]``.
        draws: U ``[...]``, one for each feature.
        leak: as `graddrop_masked`.

    Returns:
        ``[T, B, ...]``.

    Source:
        arXiv:2010.06808, Section 3.3; LibMTL's GradDrop.

    Example:
        >>> import jax.numpy as jnp
        >>> grads = jnp.array([[[3.0], [1.0]], [[-1.0], [0.0]]])
        >>> graddrop_representation(jnp.ones((2, 1)), grads, jnp.array([0.5])).tolist()
        [[[3.0], [1.0]], [[-0.0], [0.0]]]
    """
    return _passing(jnp.sum(grads * jnp.sign(Z), axis=1), draws, leak)[:, None] * grads


def _passing(J: Array, U: Array, leak: Float[Array, " tasks"] | float) -> Array:
    """What is left of each entry: 1, or the leak."""
    size = jnp.sum(jnp.abs(J), axis=0)
    purity = 0.5 * (1 + jnp.sum(J, axis=0) / jnp.where(size > 0, size, 1.0))
    passes = jnp.where(purity > U, J > 0, (purity < U) & (J < 0))
    leaks = jnp.asarray(leak, J.dtype).reshape(-1, *(1,) * (J.ndim - 1))
    return leaks + (1 - leaks) * passes


def graddrop_draws(key: jax.Array, stacked_grads: Any) -> Any:
    """One uniform number for each parameter.

    Args:
        key: PRNG key.
        stacked_grads: pytree of ``[T, ...]``, for its shapes.

    Returns:
        The pytree without the task axis.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> graddrop_draws(jax.random.key(0), {"w": jnp.zeros((2, 3))})["w"].shape
        (3,)
    """
    leaves, structure = jax.tree.flatten(stacked_grads)
    keys = jax.random.split(key, len(leaves))
    draws = [jax.random.uniform(k, J.shape[1:], J.dtype) for k, J in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, draws)
