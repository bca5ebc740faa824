"""What a step costs, counted: the multiplications of the program, and all operations as XLA counts them.

A backward pass counts as two forward passes. Self-NPO's step calls the teacher with and without the condition
at each of K + 1 levels, full simulation at each of S; both train the student once.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.run_dir import Table
from experiments.self_npo.arms import Part
from experiments.self_npo.fine_tuning import (
    PREFERENCE_BATCH,
    PREFERENCE_LEARNING_RATE,
    ROLLOUT_STEPS,
    SelfNPO,
    fine_tuning_step,
    optimizer,
    preference_step,
)
from experiments.self_npo.network import SOLVER_STEPS
from jaxneg.diffusion import init_self_npo
from jaxneg.train import init_state
from jaxneg.train.compile import matmul_flops


class Costs(NamedTuple):
    """Of a step, in forward passes of the network over the batch, by the program's multiplications."""

    self_npo: float
    simulation: float
    operations: dict[str, float]
    """The same by XLA's count of all operations, by name."""
    of_diffusion_npo: float
    """All steps of Self-NPO over all steps of Diffusion-NPO."""


def count(plane: Part, digits: Part) -> Costs:
    """Counts what steps cost.

    Args:
        plane: part A, on which Diffusion-NPO runs.
        digits: part B, whose steps are compared with full simulation.

    Returns:
        The costs.
    """
    forward = _forward(digits, 1)
    both = _forward(digits, 2)
    steps = {"Self-NPO": _fine_tuning(digits, False), "full simulation": _fine_tuning(digits, True)}
    turns = {"Self-NPO": ROLLOUT_STEPS + 1, "full simulation": SOLVER_STEPS}
    counted = {name: _multiplications(*step) / _multiplications(*forward) for name, step in steps.items()}
    operations = {
        # XLA counts the body of a loop once: here one call of the teacher.
        name: (_operations(*step) + (turns[name] - 1) * _operations(*both)) / _operations(*forward)
        for name, step in steps.items()
    }
    ours = plane.steps * _multiplications(*_fine_tuning(plane, False))
    theirs = plane.preference_steps * _multiplications(*_preference(plane))
    return Costs(counted["Self-NPO"], counted["full simulation"], operations, ours / theirs)


def cost_table(costs: Costs) -> Table:
    """Both counts beside the formula and the paper.

    Args:
        costs: from `count`.

    Returns:
        The table.
    """
    formula = {"Self-NPO": 2 * (ROLLOUT_STEPS + 1) + 3, "full simulation": 2 * SOLVER_STEPS + 3}
    counted = {"Self-NPO": costs.self_npo, "full simulation": costs.simulation}
    hours = {"Self-NPO": 2.0, "full simulation": 10.4}
    columns = (formula, counted, costs.operations, hours)
    rows: list[list[str | float | int]] = [
        [name, *(f"{column[name]:.4g}" for column in columns)] for name in formula
    ]
    ratios = (column["full simulation"] / column["Self-NPO"] for column in columns)
    rows.append(["ratio", *(f"{ratio:.2f}" for ratio in ratios)])
    return Table(
        "C. Cost of a fine-tuning step, in forward passes of the network over the batch (digits, w = -5)",
        ["step", "formula, backward = 2", "multiplications", "XLA's operations", "paper: GPU hours in all"],
        rows,
    )


def _forward(part: Part, times: int) -> tuple[Any, ...]:
    x, label = jax.eval_shape(part.task.draw, jax.random.key(0))
    x, label = (jax.ShapeDtypeStruct((times * a.shape[0], *a.shape[1:]), a.dtype) for a in (x, label))
    return part.task.model.apply, _params(part), x, label, label


def _fine_tuning(part: Part, simulate: bool) -> tuple[Any, ...]:
    how = SelfNPO(-5.0, simulate=simulate)
    tx = optimizer(how.learning_rate)
    x, label = jax.eval_shape(part.task.draw, jax.random.key(0))
    key = jax.random.key(0)
    state = jax.eval_shape(lambda params: init_self_npo(params, tx, key), _params(part))
    return fine_tuning_step(part.task, how, tx), state, {"x": x, "cond": label}


def _preference(part: Part) -> tuple[Any, ...]:
    params, key, tx = _params(part), jax.random.key(0), optimizer(PREFERENCE_LEARNING_RATE)
    x = jax.ShapeDtypeStruct((PREFERENCE_BATCH, part.task.features), jnp.float32)
    label = jax.ShapeDtypeStruct((PREFERENCE_BATCH,), jnp.int32)

    def step(base: Any, state: Any, batch: Any) -> Any:
        return preference_step(part.task, 10.0, base, tx)(state, batch)

    state = jax.eval_shape(lambda params: init_state(params, tx, key), params)
    return step, params, state, {"x_w": x, "x_l": x, "cond": label}


def _params(part: Part) -> Any:
    return jax.eval_shape(part.task.model.init, jax.random.key(0))


def _multiplications(function: Any, *arguments: Any) -> int:
    return matmul_flops(jax.make_jaxpr(function)(*arguments))


def _operations(function: Any, *arguments: Any) -> float:
    analysis: Any = jax.jit(function).lower(*arguments).cost_analysis()
    return analysis["flops"]
