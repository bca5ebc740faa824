"""The methods that this experiment compares, each as a train step with Adam behind it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from jaxneg.mtl import (
    METHODS_OF_LOSSES,
    ConflictStatistics,
    conflict_statistics,
    famo_observe,
    gram,
    multitask,
    task_grads,
)
from jaxneg.train import TrainState, make_step

LEARNING_RATE = 1e-3
SINGLE_TASK = "Single-task networks"
EPOCH = 25
"""Steps that count as an epoch where examples never repeat: those of DWA's window."""

FAMILY: dict[str, tuple[str, dict[str, Any]]] = {
    "Sum": ("equal", {}),
    "Random weights": ("rlw", {}),
    "Dynamic weight average": ("dwa", {"window": EPOCH}),
    "Uncertainty weighting": ("uw", {"optimizer": optax.adam(LEARNING_RATE)}),
    "Uncertainty weighting, fast": ("uw", {"optimizer": optax.adam(0.025)}),
    "IMTL-L": ("imtl_l", {}),
    "Sum of log losses": ("si", {}),
    "Geometric mean of losses": ("gls", {}),
    "STCH": ("stch", {}),
    "STCH of log losses": ("stch", {"steps_per_epoch": EPOCH}),
    "FAMO": ("famo", {"after": "same"}),
    "MGDA": ("mgda", {}),
    "PCGrad": ("pcgrad", {}),
    "GradVac": ("gradvac", {}),
    "CAGrad c=0.4": ("cagrad", {"c": 0.4}),
    "CAGrad c=0.5": ("cagrad", {"c": 0.5}),
    "IMTL-G": ("imtl_g", {}),
    "IMTL": ("imtl", {}),
    "Nash-MTL": ("nash", {}),
    "FairGrad α=2": ("fairgrad", {"alpha": 2.0}),
    "Aligned-MTL": ("aligned_mtl", {}),
    "UPGrad": ("upgrad", {}),
    "DualProj": ("dualproj", {}),
    "ConFIG": ("config", {}),
    "PCD": ("pcd", {}),
    "GradNorm α=0.12": ("gradnorm", {"alpha": 0.12}),
    "GradNorm α=1.5": ("gradnorm", {"alpha": 1.5}),
    "DB-MTL β=0": ("dbmtl", {"beta": 0.0}),
    "DB-MTL β=0.9": ("dbmtl", {"beta": 0.9}),
    "MoCo": ("moco", {}),
    "ExcessMTL": ("excess_mtl", {}),
    "GradDrop": ("graddrop", {}),
    "SDMGrad": ("sdmgrad", {}),
    "MoDo": ("modo", {}),
}
"""Name in tables and figures to the method of `jaxneg.mtl.multitask` and its options.

Uncertainty weighting learns its log-variances with the model's own rate, or, fast, with Nash-MTL's 0.025.
GradNorm learns with 0.025: at the model's rate its weights cannot part by a factor of 1e4 in 1,500 steps.
PCD holds the first task to be the primary one.
"""

OF_THREE_BATCHES = ("sdmgrad", "modo")
"""The methods whose weights come from the Jacobians of two more batches."""
WATCHED = ("Sum", "Sum of log losses", "MGDA", "Nash-MTL")
"""The methods under which the conflict of the gradients is followed over training."""

Step = Callable[[TrainState, Any], tuple[TrainState, dict[str, Array]]]


def weighted_step(
    task_losses: Callable[[Any, Any], Array],
    method: str,
    tasks: int,
    shared: Callable[[str], bool] | None = None,
    *,
    last_shared: Callable[[str], bool] | None = None,
    before_adam: optax.GradientTransformation | None = None,
    watched: bool = False,
    **options: Any,
) -> tuple[Step, optax.GradientTransformation]:
    """The train step of a method: its link, then Adam.

    SDMGrad and MoDo cut the batch in three, so that every method sees the same examples.

    Args:
        task_losses: ``(params, batch) -> losses [tasks]``.
        method: of `FAMILY`.
        tasks: how many.
        shared: which parameters all tasks share, by their path; None is all.
        last_shared: those of the last shared layer, of which GradNorm takes the norms; None is all shared.
        before_adam: a further link between the method and Adam.
        watched: whether the step's metrics hold the `jaxneg.mtl.ConflictStatistics` of the shared parameters.
        **options: further options of the method.

    Returns:
        The step, and the transformation for which `jaxneg.train.init_state` makes the state.
    """
    name, own = FAMILY[method]
    one_pullback = name in METHODS_OF_LOSSES and not watched
    link = multitask(
        name,
        n_tasks=tasks,
        shared=shared,
        param_filter=last_shared if name == "gradnorm" else None,
        **own,
        **options,
    )
    links = (link, before_adam or optax.identity(), optax.adam(LEARNING_RATE))
    if name in OF_THREE_BATCHES:
        transform = optax.chain(*links)
        return _step_of_three(task_losses, transform), transform
    transform = optax.chain(conflict_watch(shared), *links) if watched else optax.chain(*links)
    step = make_step(
        lambda params, batch, _: (task_losses(params, batch), {}),
        transform,
        jacobian="weighted" if one_pullback else "stacked",
        after_update=famo_observe if name == "famo" else None,
    )

    def watched_step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Array]]:
        state, metrics = step(state, batch)
        return state, metrics | state.opt_state[0]._asdict()

    return watched_step if watched else step, transform


def conflict_watch(shared: Callable[[str], bool] | None = None) -> optax.GradientTransformation:
    """A link that passes the Jacobian on, and keeps what `jaxneg.mtl.conflict_statistics` says of it.

    Args:
        shared: which parameters all tasks share, by their path; None is all.

    Returns:
        The transformation, the first of a chain; its state is a `jaxneg.mtl.ConflictStatistics`.

    Example:
        >>> import jax.numpy as jnp
        >>> watch = conflict_watch()
        >>> _, found = watch.update(jnp.array([[1.0, 0.0], [0.0, 2.0]]), watch.init(jnp.zeros(2)))
        >>> float(found.norm_ratio)
        2.0
    """

    def init(params: Any) -> ConflictStatistics:
        del params
        return ConflictStatistics(jnp.ones(()), jnp.zeros(()), jnp.ones(()))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, ConflictStatistics]:
        del state, params
        leaves = jax.tree_util.tree_leaves_with_path(updates)
        names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
        rows = [leaf for name, (_, leaf) in zip(names, leaves, strict=True) if not shared or shared(name)]
        return updates, conflict_statistics(gram(rows))

    return optax.GradientTransformation(init, update)


def _step_of_three(
    task_losses: Callable[[Any, Any], Array], transform: optax.GradientTransformationExtraArgs
) -> Step:
    """The examples 0, 3, 6, ... give the gradients that are weighted, the others the two of the weights."""

    def step(state: TrainState, batch: Any) -> tuple[TrainState, dict[str, Array]]:
        parts = [jax.tree.map(lambda leaf, k=k: leaf[k::3], batch) for k in range(3)]
        (losses, jac), *others = [task_grads(task_losses, state.params, part) for part in parts]
        updates, opt_state = transform.update(
            jac,
            state.opt_state,
            state.params,
            losses=losses,
            pair=tuple(other for _, other in others),
        )
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state, state.key), {"losses": losses}

    return step
