"""Rep-MTL: regularisers on task saliencies, the gradients of the tasks' losses in representation space.

Wang, Li & Xu, arXiv:2507.21049, Equations 3 to 10. A shared encoder gives Z ``[B, ..., C]``, each task's loss
its saliency ``S_t = dL_t / dZ``. One term makes each position matter to few tasks (entropy), the other makes
a task's channel affinities like those of all tasks in the same example (contrast). The authors' code is not
released: tau, every epsilon, and the mean over tasks in Equation 9 are this implementation's choice.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

EPS = 1e-12

# Mapped over tasks, the gradients of a convolution lose how the batch is sharded: few tasks are unrolled.
_UNROLLED_TASKS = 16


def task_saliency(
    loss_vec_fn: Callable[[Any], Array], Z: Float[Array, "..."], *, own_inputs: bool = False
) -> tuple[Float[Array, " tasks"], Float[Array, "tasks ..."]]:
    """The task losses and their gradients in representation space.

    ``S_t = dL_t / dZ``, not detached: what is computed from it can be differentiated again.

    Args:
        loss_vec_fn: ``Z -> losses [T]``, the heads.
        Z: the shared representation ``[B, ...]``; with ``own_inputs`` ``[T, B, ...]``, a batch for each task.
        own_inputs: whether loss t depends on ``Z[t]`` alone.

    Returns:
        ``(losses [T], S [T, B, ...])``.

    Raises:
        ValueError: losses that are not a vector, or with ``own_inputs`` not as many as Z has leading entries.

    Source:
        arXiv:2507.21049, Equation 3.

    Example:
        >>> import jax.numpy as jnp
        >>> losses, S = task_saliency(lambda Z: jnp.stack([Z.sum(), -Z.sum()]), jnp.ones((2, 3)))
        >>> losses.tolist(), S.shape
        ([6.0, -6.0], (2, 2, 3))
    """
    losses, pullback = jax.vjp(loss_vec_fn, Z)
    if losses.ndim != 1 or losses.shape[0] == 0:
        raise ValueError(f"loss_vec_fn: expected losses [T] with T >= 1, got shape {losses.shape}")
    if own_inputs:
        if Z.shape[:1] != losses.shape:
            raise ValueError(f"Z: expected a batch for each of {losses.shape[0]} tasks, got shape {Z.shape}")
        return losses, pullback(jnp.ones_like(losses))[0]
    unit_vectors = jnp.eye(losses.shape[0], dtype=losses.dtype)
    if losses.shape[0] > _UNROLLED_TASKS:
        return losses, jax.vmap(pullback)(unit_vectors)[0]
    return losses, jnp.stack([pullback(unit_vector)[0] for unit_vector in unit_vectors])


def saliency_distribution(
    S: Float[Array, "tasks batch ..."], channel_axis: int = -1, eps: float = EPS
) -> Float[Array, "tasks batch ..."]:
    """How much each task cares about each position, relative to all tasks.

    ``P_it = |mean_c S_itc| / (sum_k |mean_c S_ikc| + eps)``

    Args:
        S: saliencies ``[T, B, ...]``.
        channel_axis: which axis of S holds the channels.
        eps: keeps a position that no task cares about finite.

    Returns:
        ``[T, B, ...]`` without the channels; sums to 1 over the tasks, or to 0 where nothing is salient.

    Raises:
        ValueError: S with fewer than three axes, or channels on one of the first two.

    Source:
        arXiv:2507.21049, Equations 4 and 5.

    Example:
        >>> import jax.numpy as jnp
        >>> saliency_distribution(jnp.array([[[3.0]], [[1.0]]]))[:, 0].tolist()
        [0.75, 0.25]
    """
    mean = jnp.mean(_positions(S, channel_axis), axis=2)
    # The derivative of an absolute value at 0 is 0 here: jnp.abs has 1.
    size = mean * jax.lax.stop_gradient(jnp.sign(mean))
    size = size.reshape(_without(S.shape, channel_axis))
    return size / (jnp.sum(size, axis=0) + eps)


def tsr_entropy(
    S: Float[Array, "tasks batch ..."], channel_axis: int = -1, eps: float = EPS
) -> Float[Array, ""]:
    """The mean entropy of the positions' saliency over the tasks: task-specific saliency regularisation.

    ``mean_i - sum_t P_it log(P_it + eps)``, from 0 to log T; 0 for one task.

    Args:
        S: saliencies ``[T, B, ...]``.
        channel_axis: which axis of S holds the channels.
        eps: inside the logarithm and the distribution.

    Returns:
        A scalar. Under a mesh that shards the batch it is a mean.

    Raises:
        ValueError: as `saliency_distribution`.

    Source:
        arXiv:2507.21049, Equation 6.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(tsr_entropy(jnp.ones((2, 4, 3)))), 4)
        0.6931
    """
    P = saliency_distribution(S, channel_axis, eps)
    if S.shape[0] == 1:
        return jnp.zeros((), P.dtype)
    return -jnp.mean(jnp.sum(P * jnp.log(P + eps), axis=0))


def csa_terms(
    S: Float[Array, "tasks batch ..."], channel_axis: int = -1, eps: float = EPS
) -> tuple[Float[Array, "tasks batch"], Float[Array, "batch batch"]]:
    """The cosine similarities that cross-task saliency alignment contrasts.

    ``pos_tb = cos(A_b A_b^T, F_tb F_tb^T)`` and ``neg_bk = cos(A_b A_b^T, A_k A_k^T)`` with ``F_tb [C, HW]``
    the saliencies of an example and ``A_b [C, T]`` their means over the positions. The C x C matrices are
    never built: ``<A A^T, F F^T> = |A^T F|^2``.

    Args:
        S: saliencies ``[T, B, ...]``.
        channel_axis: which axis of S holds the channels.
        eps: added to each squared norm.

    Returns:
        ``(pos [T, B], neg [B, B])``.

    Raises:
        ValueError: as `saliency_distribution`.

    Source:
        arXiv:2507.21049, Equations 7 to 9 and Figure 2.

    Example:
        >>> import jax.numpy as jnp
        >>> pos, neg = csa_terms(jnp.ones((2, 4, 3)))
        >>> pos.shape, neg.shape, round(float(pos[0, 0]), 4)
        ((2, 4), (4, 4), 1.0)
    """
    F = _positions(S, channel_axis)
    A = jnp.mean(F, axis=3)
    return _positives(A, F, eps), _negatives(A, A, eps)


def csa_loss(
    S: Float[Array, "tasks batch ..."],
    tau: float = 0.5,
    task_reduction: Literal["mean", "sum"] = "mean",
    eps: float = EPS,
    channel_axis: int = -1,
) -> Float[Array, ""]:
    """Cross-task saliency alignment: each task's channel affinities against those of the other examples.

    ``mean_b mean_t ( - pos_tb / tau + log sum_(k != b) exp(neg_bk / tau) )``. The positive is not in the
    denominator, so that the loss may be negative; for one example there are no negatives, and no logarithm.

    Args:
        S: saliencies ``[T, B, ...]``.
        tau: temperature.
        task_reduction: "mean" or "sum" over the tasks.
        eps: added to each squared norm.
        channel_axis: which axis of S holds the channels.

    Returns:
        A scalar.

    Raises:
        ValueError: tau <= 0, an unknown reduction, or as `saliency_distribution`.

    Source:
        arXiv:2507.21049, Equation 9.

    Example:
        >>> import jax.numpy as jnp
        >>> round(float(csa_loss(jnp.ones((2, 1, 3)))), 4)
        -2.0
    """
    _check_contrast(tau, task_reduction)
    pos, neg = csa_terms(S, channel_axis, eps)
    return _contrast(pos, neg, jnp.arange(neg.shape[0]), tau, task_reduction)


def csa_loss_sharded(
    S: Float[Array, "tasks batch ..."],
    axis_name: str | tuple[str, ...],
    tau: float = 0.5,
    task_reduction: Literal["mean", "sum"] = "mean",
    eps: float = EPS,
    channel_axis: int = -1,
) -> Float[Array, ""]:
    """The same inside ``jax.shard_map``, where each device holds equally many examples.

    Only the pooled saliencies ``A [B, C, T]`` of all examples cross the mesh.

    Args:
        S: this device's saliencies ``[T, B_local, ...]``.
        axis_name: the mesh axis, or axes, over which the batch is split.
        tau: as `csa_loss`, and the others too.
        task_reduction: "mean" or "sum" over the tasks.
        eps: added to each squared norm.
        channel_axis: which axis of S holds the channels.

    Returns:
        A scalar, the same on all devices.

    Raises:
        ValueError: as `csa_loss`.

    Source:
        arXiv:2507.21049, Equation 9.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> parts = jnp.ones((2, 3, 4, 5))  # two devices, each [T, B_local, C]
        >>> jax.vmap(lambda S: csa_loss_sharded(S, "data"), axis_name="data")(parts).shape
        (2,)
    """
    _check_contrast(tau, task_reduction)
    F = _positions(S, channel_axis)
    A = jnp.mean(F, axis=3)
    everyone = jax.lax.all_gather(A, axis_name, axis=1, tiled=True)
    own = jax.lax.axis_index(axis_name) * A.shape[1] + jnp.arange(A.shape[1])
    local = _contrast(_positives(A, F, eps), _negatives(A, everyone, eps), own, tau, task_reduction)
    return jax.lax.pmean(local, axis_name)


def rep_mtl_loss(
    losses: Float[Array, " tasks"],
    S: Float[Array, "tasks batch ..."],
    lam_tsr: float = 0.9,
    lam_csa: float = 0.9,
    *,
    weights: Float[Array, " tasks"] | None = None,
    tau: float = 0.5,
    task_reduction: Literal["mean", "sum"] = "mean",
    eps: float = EPS,
    channel_axis: int = -1,
    rescale: bool = True,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The whole objective.

    ``sum_t w_t L_t + lam_tsr TSR(S) + lam_csa CSA(S)``. Both regularisers are blind to a common factor of S,
    but their epsilons are not: S is divided by its root mean square first.

    Args:
        losses: L ``[T]``, as they are trained: logarithms in the paper's recipes.
        S: their saliencies ``[T, B, ...]``.
        lam_tsr: of the entropy.
        lam_csa: of the alignment.
        weights: w ``[T]``; ones where None.
        tau: as `csa_loss`, and the others too.
        task_reduction: "mean" or "sum" over the tasks.
        eps: of both terms.
        channel_axis: which axis of S holds the channels.
        rescale: whether to divide S.

    Returns:
        ``(scalar, {"tsr": ..., "csa": ...})``.

    Raises:
        ValueError: as `csa_loss`, or weights of another shape.

    Source:
        arXiv:2507.21049, Equation 10.

    Example:
        >>> import jax.numpy as jnp
        >>> total, parts = rep_mtl_loss(jnp.ones(2), jnp.ones((2, 1, 3)), lam_csa=0.0)
        >>> round(float(total), 4)
        2.6238
    """
    if weights is not None and weights.shape != losses.shape:
        raise ValueError(f"weights: expected shape {losses.shape}, one for each task, got {weights.shape}")
    if rescale:
        S = S.astype(jnp.promote_types(S.dtype, jnp.float32))
        S = S / jax.lax.stop_gradient(jnp.sqrt(jnp.mean(jnp.square(S))) + 1e-20)
    tsr = tsr_entropy(S, channel_axis, eps)
    csa = csa_loss(S, tau, task_reduction, eps, channel_axis)
    task_loss = jnp.sum(losses if weights is None else weights * losses)
    return task_loss + lam_tsr * tsr + lam_csa * csa, {"tsr": tsr, "csa": csa}


def make_rep_mtl_loss(
    encode: Callable[[Any, Any], Array],
    head_losses: Callable[[Any, Array, Any], Array],
    *,
    reg_grad_to: Literal["encoder", "all"] = "encoder",
    log_transform: bool = False,
    weighting: Callable[[Array], Array] | None = None,
    own_inputs: bool = False,
    **options: Any,
) -> Callable[[Any, Any, Any], tuple[Array, dict[str, Array]]]:
    """The loss function of a train step.

    ``loss_fn(params, batch, key) -> (loss, aux)`` for parameters ``{"encoder": ..., "heads": ...}``; aux
    holds "task_losses" ``[T]``, "tsr" and "csa".

    Args:
        encode: ``(encoder, batch) -> Z``.
        head_losses: ``(heads, Z, batch) -> losses [T]``.
        reg_grad_to: whether the regularisers move the encoder alone, or the heads too as the paper reads.
        log_transform: whether ``log(L + 1e-8)`` is trained, and its saliency regularised.
        weighting: ``losses [T] -> weights [T]``, taken as constants; None is the sum.
        own_inputs: as in `task_saliency`.
        **options: of `rep_mtl_loss`.

    Returns:
        The loss function.

    Raises:
        ValueError: an unknown ``reg_grad_to``.

    Source:
        arXiv:2507.21049, Section 3.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> loss_fn = make_rep_mtl_loss(lambda w, x: x @ w, lambda v, Z, x: jnp.mean(jnp.tanh(Z @ v) ** 2, 0))
        >>> params = {"encoder": jnp.ones((3, 4)), "heads": jnp.ones((4, 2))}
        >>> loss, aux = loss_fn(params, jnp.eye(3), None)
        >>> aux["task_losses"].shape
        (2,)
    """
    if reg_grad_to not in ("encoder", "all"):
        raise ValueError(f"reg_grad_to: expected 'encoder' or 'all', got {reg_grad_to!r}")

    def loss_fn(params: Any, batch: Any, key: Any) -> tuple[Array, dict[str, Array]]:
        del key
        Z = encode(params["encoder"], batch)

        def trained(heads: Any, Z: Array) -> Array:
            losses = head_losses(heads, Z, batch)
            return jnp.log(losses + 1e-8) if log_transform else losses

        heads = params["heads"]
        if reg_grad_to == "all":
            losses, S = task_saliency(lambda Z: trained(heads, Z), Z, own_inputs=own_inputs)
        else:
            losses = trained(heads, Z)
            still = jax.lax.stop_gradient(heads)
            _, S = task_saliency(lambda Z: trained(still, Z), Z, own_inputs=own_inputs)
        weights = None if weighting is None else jax.lax.stop_gradient(weighting(losses))
        loss, aux = rep_mtl_loss(losses, S, weights=weights, **options)
        return loss, {"task_losses": losses, **aux}

    return loss_fn


def _positions(S: Array, channel_axis: int) -> Array:
    """``[T, B, C, positions]``, float32 at least."""
    axis = channel_axis % S.ndim if S.ndim else 0
    if S.ndim < 3 or axis < 2:
        raise ValueError(
            f"S: expected [T, B, ...] with the channels on an axis after these, got shape {S.shape} and"
            f" channel_axis {channel_axis}"
        )
    S = jnp.moveaxis(S.astype(jnp.promote_types(S.dtype, jnp.float32)), axis, 2)
    return S.reshape(*S.shape[:3], -1)


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    axis %= len(shape)
    return (*shape[:axis], *shape[axis + 1 :])


def _product(subscripts: str, *operands: Array) -> Array:
    return jnp.einsum(subscripts, *operands, precision=jax.lax.Precision.HIGHEST)


def _positives(A: Array, F: Array, eps: float) -> Array:
    inner = jnp.sum(_product("sbc,tbcp->tbsp", A, F) ** 2, axis=(2, 3))
    narrow = F.shape[3] <= F.shape[2]
    affinity = _product("tbcp,tbcq->tbpq" if narrow else "tbcp,tbdp->tbcd", F, F)
    return inner / (_anchor_norm(A, eps) * jnp.sqrt(jnp.sum(affinity**2, axis=(2, 3)) + eps))


def _negatives(A: Array, others: Array, eps: float) -> Array:
    inner = jnp.sum(_product("sbc,tkc->bkst", A, others) ** 2, axis=(2, 3))
    return inner / (_anchor_norm(A, eps)[:, None] * _anchor_norm(others, eps))


def _anchor_norm(A: Array, eps: float) -> Array:
    return jnp.sqrt(jnp.sum(_product("sbc,tbc->bst", A, A) ** 2, axis=(1, 2)) + eps)


def _contrast(pos: Array, neg: Array, own: Array, tau: float, task_reduction: str) -> Array:
    values = -pos / tau
    if neg.shape[1] > 1:
        others = jnp.arange(neg.shape[1]) != own[:, None]
        values = values + jax.nn.logsumexp(jnp.where(others, neg / tau, -jnp.inf), axis=1)
    over_tasks = jnp.mean(values, axis=0) if task_reduction == "mean" else jnp.sum(values, axis=0)
    return jnp.mean(over_tasks)


def _check_contrast(tau: float, task_reduction: str) -> None:
    if tau <= 0:
        raise ValueError(f"tau: expected a positive temperature, got {tau}")
    if task_reduction not in ("mean", "sum"):
        raise ValueError(f"task_reduction: expected 'mean' or 'sum', got {task_reduction!r}")
