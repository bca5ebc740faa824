"""Task gradients: the Jacobian of a vector of losses with respect to a pytree of parameters.

One forward pass, then one backward pass for each task, by ``vmap`` of the pulled-back unit vectors.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def task_grads(
    loss_fn: Callable[..., Any],
    params: Any,
    batch: Any,
    *args: Any,
    has_aux: bool = False,
    chunk_size: int | None = None,
) -> tuple[Any, Any]:
    """Losses and task gradients of a multi-task loss.

    ``J_i = d L_i / d params``: the forward pass runs once, the unit vectors e_1 ... e_T are pulled back
    together. Memory for the backward pass grows with the tasks that are pulled back at once; ``chunk_size``
    bounds it.

    Args:
        loss_fn: ``loss_fn(params, batch, *args) -> losses [T]``, or ``(losses, aux)`` with ``has_aux``.
        params: pytree of floating-point arrays.
        batch: passed on.
        *args: passed on.
        has_aux: whether ``loss_fn`` returns something beside the losses.
        chunk_size: how many tasks are pulled back at once; None is all of them, 1 is one after the other.

    Returns:
        ``(losses, jac)``, or ``((losses, aux), jac)`` with ``has_aux``; a leaf of ``jac`` is ``[T,
        *leaf.shape]``.

    Raises:
        ValueError: losses that are not a vector of at least one entry, an empty batch, or chunk_size below 1.
        TypeError: parameters or losses that are not floating point.

    Source:
        arXiv:2406.16232, Section 4 (Jacobian of the objectives).

    Example:
        >>> import jax.numpy as jnp
        >>> loss_fn = lambda params, batch: jnp.stack([params["w"] @ batch, -params["w"] @ batch])
        >>> losses, jac = task_grads(loss_fn, {"w": jnp.ones(3)}, jnp.arange(3.0))
        >>> losses.tolist(), jac["w"].tolist()
        ([3.0, -3.0], [[0.0, 1.0, 2.0], [0.0, -1.0, -2.0]])
    """
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size: expected at least 1 task, or None for all at once, got {chunk_size}")
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            name = f"params{jax.tree_util.keystr(path)}"
            raise TypeError(f"{name}: expected floating point to take gradients, got {dtype}")
    for path, leaf in jax.tree_util.tree_leaves_with_path(batch):
        if jnp.size(leaf) == 0:
            name = f"batch{jax.tree_util.keystr(path)}"
            raise ValueError(f"{name}: expected at least one example, got shape {jnp.shape(leaf)}")

    def losses_and_aux(params: Any) -> tuple[jax.Array, Any]:
        result = loss_fn(params, batch, *args)
        return result if has_aux else (result, None)

    losses, pullback, aux = jax.vjp(losses_and_aux, params, has_aux=True)
    if jnp.ndim(losses) != 1 or jnp.size(losses) == 0:
        raise ValueError(f"loss_fn: expected losses of shape [T] with T >= 1, got shape {jnp.shape(losses)}")
    if not jnp.issubdtype(losses.dtype, jnp.floating):
        raise TypeError(f"loss_fn: expected floating-point losses, got {losses.dtype}")
    unit_vectors = jnp.eye(losses.shape[0], dtype=losses.dtype)
    if chunk_size is None or chunk_size >= losses.shape[0]:
        (jac,) = jax.vmap(pullback)(unit_vectors)
    else:
        (jac,) = jax.lax.map(pullback, unit_vectors, batch_size=None if chunk_size == 1 else chunk_size)
    return ((losses, aux) if has_aux else losses), jac
