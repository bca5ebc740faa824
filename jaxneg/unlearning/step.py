"""A whole unlearning step, for who has no training loop: gradients, optimizer, and the reference beside them.

Zhang et al., arXiv:2404.05868, Section 2. ``jaxneg.train.make_step`` with `make_unlearn_loss` does the same
with accumulation, mixed precision and checkpoints; this one needs optax alone.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from jaxneg.unlearning.methods import Batch, UnlearnConfig, hidden_parts_of, reference_needs
from jaxneg.unlearning.objective import make_unlearn_loss
from jaxneg.unlearning.reference import precompute_reference


class UnlearnStep(NamedTuple):
    """What a step gives back."""

    params: Any
    opt_state: optax.OptState
    metrics: dict[str, Any]
    """``loss`` and what `unlearning_loss` tells of it, before the update."""


def make_unlearn_step(
    apply_fn: Callable[[Any, Any], Array],
    cfg: UnlearnConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh | None = None,
    *,
    reference: Callable[[Any, Any], Array] | None = None,
    donate: bool = False,
) -> Callable[..., UnlearnStep]:
    """A compiled unlearning step: ``step(params, opt_state, batch) -> (params, opt_state, metrics)``.

    ``params <- params + optimizer(grad (gamma forget + alpha retain))``

    The reference comes in one of three ways: as numbers in the batch that `precompute_reference` computed
    once (the cheapest); as a second tree of parameters, ``step(params, opt_state, batch, ref_params)``, which
    the step runs; or as ``reference``, a function of the parameters that are trained: with LoRA, the model
    with its adapters off.

    Args:
        apply_fn: ``apply_fn(params, tokens) -> logits [B, T, V]``.
        cfg: the method and its coefficients; RMU needs `make_unlearn_loss` with its ``hidden``.
        optimizer: any optax transformation; its state begins as ``optimizer.init(params)``.
        mesh: over whose axis "data" the batch's rows lie, a whole number for each device; parameters stay
            where they are. Sums run over the whole batch. None for the devices of the arguments.
        reference: ``reference(params, tokens)`` gives the reference's logits, without gradient.
        donate: whether the step may overwrite ``params`` and ``opt_state``, which cannot be used again then.

    Returns:
        The step. The loss is not a number where the batch's reference was computed for other rows.

    Raises:
        ValueError: a method that reads hidden states, a mesh without the axis "data"; from the step, a part
            or a reference that the method needs and does not get, or reference parameters beside
            ``reference``.

    Source:
        arXiv:2404.05868, Section 2.

    Example:
        >>> import jax.numpy as jnp
        >>> part = {"tokens": jnp.ones((2, 3), int), "labels": jnp.ones((2, 3), int)}
        >>> params, tx = jnp.zeros((8, 8)), optax.sgd(0.1)
        >>> step = make_unlearn_step(lambda params, tokens: params[tokens], UnlearnConfig("npo"), tx)
        >>> float(step(params, tx.init(params), {"forget": part}, params).metrics["npo_weight"])
        1.0
    """
    if hidden_parts_of(cfg.method):
        raise ValueError(
            f"cfg: {cfg.method!r} reads hidden states: build its loss by make_unlearn_loss(..., hidden=...)"
        )
    if mesh is not None and "data" not in mesh.axis_names:
        raise ValueError(f"mesh: expected an axis 'data', got {mesh.axis_names}")
    loss_fn = make_unlearn_loss(apply_fn, cfg, reference=reference)

    def update(params: Any, opt_state: Any, batch: Batch, ref_params: Any) -> UnlearnStep:
        if ref_params is not None and reference_needs(cfg.method):
            batch = precompute_reference(apply_fn, ref_params, batch, cfg)
        (loss, aux), gradient = jax.value_and_grad(loss_fn, has_aux=True)(params, batch, None)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return UnlearnStep(optax.apply_updates(params, updates), opt_state, {"loss": loss, **aux})

    rows: dict[str, Any] = {}
    if mesh is not None:
        rows["in_shardings"] = (None, None, NamedSharding(mesh, P("data")), None)
    compiled = jax.jit(update, donate_argnums=(0, 1) if donate else (), **rows)

    def step(params: Any, opt_state: Any, batch: Batch, ref_params: Any = None) -> UnlearnStep:
        if ref_params is not None and reference is not None:
            raise ValueError("ref_params: expected None where the step was made with a reference")
        if mesh is None:
            return compiled(params, opt_state, batch, ref_params)
        with jax.set_mesh(mesh):
            return compiled(params, opt_state, batch, ref_params)

    return step
