"""Task gradients: the Jacobian of a vector of losses with respect to parameters, or to what the tasks share.

One forward pass, then one backward pass for each task, by ``vmap`` of the pulled-back unit vectors. In
representation space only the heads are passed T times, and the encoder once, with the combined gradient.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

# In a loop XLA runs gradients of convolutions on a CPU tens of times slower: few tasks are unrolled there.
_UNROLLED_TASKS = 16


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
        chunk_size: how many tasks are pulled back at once; None is all of them, 1 is one after the other,
            as convolutions on a sharded batch need it: mapped over tasks they gather its activations.

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
    elif chunk_size > 1 or losses.shape[0] > _UNROLLED_TASKS:
        (jac,) = jax.lax.map(pullback, unit_vectors, batch_size=chunk_size)
    else:
        (jac,) = jax.lax.platform_dependent(
            unit_vectors,
            cpu=lambda rows: jax.tree.map(lambda *found: jnp.stack(found), *map(pullback, rows)),
            default=lambda rows: jax.lax.map(pullback, rows),
        )
    return ((losses, aux) if has_aux else losses), jac


class Representation(NamedTuple):
    """Task gradients in representation space, and the way back to the encoder: `multitask` takes one.

    Attributes:
        values: the shared representation Z ``[B, ...]``, or ``[T, B, ...]`` with a batch for each task.
        grads: dL_t/dZ ``[T, B, ...]``.
        pullback: from a gradient like Z to that of the encoder's parameters.
    """

    values: Array
    grads: Array
    pullback: Callable[[Array], Any]


def task_grads_rep(
    encode: Callable[..., Any],
    head_losses: Callable[..., Any],
    params: Any,
    batch: Any,
    *args: Any,
    has_aux: bool = False,
    own_inputs: bool = False,
    chunk_size: int | None = None,
) -> tuple[Any, Any, Representation]:
    """Losses and task gradients with respect to the shared representation only.

    ``dL_t / dZ`` with ``Z = encode(params["encoder"], batch)``: T backward passes through the heads, none
    through the encoder until `Representation.pullback` takes the combined gradient. The encoder's gradient is
    linear in it, so that equal weights give the same as `task_grads`; weights from the Gram matrix are those
    of the representation's gradients, an upper bound in MGDA-UB.

    Args:
        encode: ``(params["encoder"], batch, *args) -> Z``.
        head_losses: ``(params["heads"], Z, batch, *args) -> losses [T]``, or ``(losses, aux)``.
        params: ``{"encoder": ..., "heads": ...}``.
        batch: passed on.
        *args: passed on.
        has_aux: whether ``head_losses`` returns something beside the losses.
        own_inputs: whether Z is ``[T, B, ...]`` and loss t depends on ``Z[t]`` alone.
        chunk_size: as in `task_grads`, for the heads.

    Returns:
        ``(losses, {"heads": [T, ...]}, representation)``, or ``((losses, aux), ...)``:
        ``tx.update(jac, state, params, losses=losses, representation=representation)`` for a chain that
        starts with `multitask`.

    Raises:
        ValueError, TypeError: as `task_grads`; parameters without these two parts; with ``own_inputs`` a
            representation without an entry for each task.

    Source:
        arXiv:1810.04650, Section 3.3 (MGDA-UB); LibMTL's ``rep_grad``.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"encoder": jnp.ones((3, 4)), "heads": jnp.ones((4, 2))}
        >>> losses, jac, rep = task_grads_rep(
        ...     lambda w, x: x @ w, lambda v, Z, x: jnp.mean((Z @ v) ** 2, 0), params, jnp.eye(3)
        ... )
        >>> jac["heads"].shape, rep.grads.shape, rep.pullback(rep.grads.sum(0)).shape
        ((2, 4, 2), (2, 3, 4), (3, 4))
    """
    if not isinstance(params, Mapping) or params.keys() != {"encoder", "heads"}:
        raise ValueError(f"params: expected {{'encoder': ..., 'heads': ...}}, got {type(params).__name__}")
    Z, pullback = jax.vjp(lambda encoder: encode(encoder, batch, *args), params["encoder"])

    def back(gradient: Array) -> Any:
        return pullback(gradient.astype(Z.dtype))[0]

    def of_heads(parts: Any, batch: Any) -> Any:
        return head_losses(parts["heads"], parts.get("representation", Z), batch, *args)

    parts = {"heads": params["heads"], "representation": Z}
    if not own_inputs:
        losses, jac = task_grads(of_heads, parts, batch, has_aux=has_aux, chunk_size=chunk_size)
        return losses, {"heads": jac["heads"]}, Representation(Z, jac["representation"], back)
    losses, jac = task_grads(
        of_heads, {"heads": params["heads"]}, batch, has_aux=has_aux, chunk_size=chunk_size
    )
    tasks = (losses[0] if has_aux else losses).shape
    if Z.shape[:1] != tasks:
        raise ValueError(f"Z: expected a batch for each of {tasks[0]} tasks, got shape {Z.shape}")

    def total(Z: Array) -> Array:
        result = head_losses(params["heads"], Z, batch, *args)
        return jnp.sum(result[0] if has_aux else result)

    # Loss t sees Z[t] alone: the gradient of their sum holds each one's own.
    return losses, jac, Representation(Z, jax.grad(total)(Z), back)
