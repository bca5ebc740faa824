"""The methods that this experiment compares, each as a train step of the engine with Adam behind it."""

from collections.abc import Callable
from typing import Any

import optax
from jaxtyping import Array

from jaxneg.mtl import famo_observe, multitask
from jaxneg.train import TrainState, make_step

LEARNING_RATE = 1e-3

FAMILY: dict[str, tuple[str, dict[str, Any]]] = {
    "Sum": ("equal", {}),
    "Random weights": ("rlw", {}),
    "Uncertainty weighting": ("uw", {"optimizer": optax.adam(LEARNING_RATE)}),
    "Uncertainty weighting, fast": ("uw", {"optimizer": optax.adam(0.025)}),
    "Sum of log losses": ("si", {}),
    "Geometric mean of losses": ("gls", {}),
    "MGDA": ("mgda", {}),
    "PCGrad": ("pcgrad", {}),
    "CAGrad c=0.4": ("cagrad", {"c": 0.4}),
    "CAGrad c=0.5": ("cagrad", {"c": 0.5}),
    "IMTL-G": ("imtl_g", {}),
    "Nash-MTL": ("nash", {}),
    "FairGrad α=2": ("fairgrad", {"alpha": 2.0}),
    "Aligned-MTL": ("aligned_mtl", {}),
    "UPGrad": ("upgrad", {}),
    "GradNorm α=0.12": ("gradnorm", {"alpha": 0.12, "optimizer": optax.adam(0.025)}),
    "DB-MTL β=0": ("dbmtl", {"beta": 0.0}),
    "FAMO": ("famo", {"after": "same"}),
}
"""Name in tables and figures to the method of `jaxneg.mtl.multitask` and its options.

Uncertainty weighting learns its log-variances with the model's own rate, or, fast, with Nash-MTL's 0.025.
GradNorm learns with 0.025: at the model's rate its weights cannot part by a factor of 1e4 in 1,500 steps.
"""

Step = Callable[[TrainState, Any], tuple[TrainState, dict[str, Array]]]


def weighted_step(
    task_losses: Callable[[Any, Any], Array],
    method: str,
    tasks: int,
    shared: Callable[[str], bool] | None = None,
    before_adam: optax.GradientTransformation | None = None,
    **options: Any,
) -> tuple[Step, optax.GradientTransformation]:
    """The train step of a method: its link, then Adam.

    Args:
        task_losses: ``(params, batch) -> losses [tasks]``.
        method: of `FAMILY`.
        tasks: how many.
        shared: which parameters all tasks share, by their path; None is all.
        before_adam: a further link between the method and Adam.
        **options: further options of the method.

    Returns:
        The step, and the transformation for which `jaxneg.train.init_state` makes the state.
    """
    name, own = FAMILY[method]
    link = multitask(name, n_tasks=tasks, shared=shared, **own, **options)
    transform = optax.chain(link, before_adam or optax.identity(), optax.adam(LEARNING_RATE))
    step = make_step(
        lambda params, batch, _: (task_losses(params, batch), {}),
        transform,
        after_update=famo_observe if name == "famo" else None,
    )
    return step, transform
