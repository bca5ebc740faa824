"""Regression onto functions that differ in little but their scale: GradNorm's toy problem.

    f_t(x) = sigma_t tanh((B + E_t) x)        B ~ N(0, 10^2), E_t ~ N(0, 3.5^2) elementwise, x ~ N(0, I)

with 250 inputs and 100 outputs. The tasks need the same features, so that a network which served them
equally would serve each as well as the other; the sum of the squared errors serves the task with the
greatest sigma. Every method gets the same first parameters and the same stream of fresh examples.

The measure of a method is the test error of each task over sigma_t^2, compared with that of a single-task
network of the same size: the mean relative increase, in percent.

Source: GradNorm, arXiv:1711.02257, the toy example of Section 3 and Figure 2.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from experiments.claims import mean_interval
from experiments.mtl_reweighting.delta import figure_limit, increases, interval_text, ranks
from experiments.mtl_reweighting.methods import FAMILY, LEARNING_RATE, SINGLE_TASK, WATCHED, weighted_step
from experiments.mtl_reweighting.network import (
    init_network,
    is_last_trunk_layer,
    is_trunk,
    single_task_networks,
    squared_errors,
)
from experiments.parallel import over_seeds
from experiments.run_dir import RunDir, Table
from jaxneg.mtl import ConflictStatistics
from jaxneg.train import TrainState, init_state, make_step

FEATURES, OUTPUTS = 250, 100
COMMON_STD, OWN_STD = 10.0, 3.5
WIDTH, DEPTH = 100, 4
BATCH = 128
TEST_BATCHES = 16
CHUNK = 50
"""Steps that run as one call on the device."""
CHUNKS_BETWEEN_REPORTS = 5
"""After so many calls, and after the last, the test errors are measured."""

PROTOTYPE = {
    "Sum": 58,
    "PCGrad": 58,
    "UPGrad": 58,
    "Uncertainty weighting": 60,
    "CAGrad c=0.4": 51,
    "IMTL-G": 41,
    "Aligned-MTL": 41,
    "Nash-MTL": 40,
    "GradNorm α=0.12": 41,
    "DB-MTL β=0": 40,
    "FAMO": 34,
    "MGDA": 32,
    "FairGrad α=2": 32,
    "Geometric mean of losses": 18,
    "Sum of log losses": 17,
    "Oracle weights 1/σ²": 18,
}
"""Percent that an independent prototype measured with sigma = (1, 100), two seeds and 1,500 steps."""
ORACLE = "Oracle weights 1/σ²"
SCALE_FREE = ("Sum of log losses", "Geometric mean of losses")
LEAN_TO_SMALL = ("MGDA", "FairGrad α=2", "FAMO")
EQUALISE_NORMS = ("Nash-MTL", "IMTL-G", "Aligned-MTL", "GradNorm α=0.12", "DB-MTL β=0")
FOLLOW_THE_LARGE = ("Sum", "PCGrad")
CLAIMED = (*SCALE_FREE, *LEAN_TO_SMALL, *EQUALISE_NORMS, *FOLLOW_THE_LARGE)
"""The methods that a claim orders."""
WORST = (*FOLLOW_THE_LARGE, "UPGrad", "Uncertainty weighting", "Uncertainty weighting, fast")
METHODS = (*FAMILY, ORACLE)
FEWEST = ("Sum of log losses", "FAMO", "IMTL-G", "Sum")
"""One method of each group, those that compile fastest: without them a claim has nothing to compare."""


class Problem(NamedTuple):
    """What one seed draws."""

    maps: Float[Array, "features tasks*outputs"]
    """``B + E_t`` for every task, side by side."""
    sigmas: Float[Array, "tasks"]
    data_key: Array
    """Every batch of examples comes from it."""


def draw_problem(key: jax.Array, sigmas: tuple[float, ...]) -> Problem:
    """Draws the tasks.

    Args:
        key: random key.
        sigmas: scale of each task.

    Returns:
        The problem.
    """
    key, data_key = jax.random.split(key)
    normal = jax.random.normal(key, (FEATURES, 1 + len(sigmas), OUTPUTS))
    maps = COMMON_STD * normal[:, :1] + OWN_STD * normal[:, 1:]
    return Problem(maps.reshape(FEATURES, -1), jnp.array(sigmas), data_key)


@partial(jax.jit, static_argnums=(0, 1))
def draw_problems(sigmas: tuple[float, ...], seeds: int) -> Problem:
    """The problem of every seed, on a leading axis."""
    keys = jax.random.split(jax.random.key(0), seeds)
    return jax.vmap(lambda key: draw_problem(key, sigmas))(keys)


def draw_examples(problem: Problem, number: int | Array, size: int) -> dict[str, Float[Array, "size ..."]]:
    """A batch of fresh examples.

    Args:
        problem: the tasks.
        number: of the batch; the same number, the same batch.
        size: examples.

    Returns:
        ``x [size, features]`` and ``y [size, tasks, outputs]`` for sigma = 1.
    """
    x = jax.random.normal(jax.random.fold_in(problem.data_key, number), (size, FEATURES))
    return {"x": x, "y": jnp.tanh(x @ problem.maps).reshape(size, -1, OUTPUTS)}


def task_losses(params: Any, batch: dict[str, Array], sigmas: Float[Array, "tasks"]) -> Float[Array, "tasks"]:
    """Mean squared error of each task, in the square of its own scale.

    Args:
        params: from `init_network`.
        batch: ``{"x": [batch, features], "y": [batch, tasks, outputs]}`` for sigma = 1.
        sigmas: scale of each task.

    Returns:
        One loss for each task.
    """
    return squared_errors(params, batch["x"], sigmas[:, None] * batch["y"])


class Training(NamedTuple):
    """A network, or several, in training: how it advances and where it stands for every seed."""

    advance: Callable[[TrainState, dict[str, Array]], tuple[TrainState, dict[str, Array]]]
    """A chunk of steps; batches ``[seeds, steps, batch, ...]``, and metrics ``[seeds, steps]`` where the
    gradients' conflict is followed."""
    state: TrainState


def begin_multitask(method: str, sigmas: tuple[float, ...], seeds: int) -> Training:
    """One network for all tasks, weighted by a method, for every seed.

    Args:
        method: of `METHODS`.
        sigmas: scale of each task.
        seeds: how many.

    Returns:
        The training at step 0.
    """
    scales = jnp.array(sigmas)
    factors = scales**-2 if method == ORACLE else jnp.ones(len(sigmas))
    step, transform = weighted_step(
        lambda params, batch: factors * task_losses(params, batch, scales),
        "Sum" if method == ORACLE else method,
        len(sigmas),
        is_trunk,
        last_shared=partial(is_last_trunk_layer, depth=DEPTH),
        watched=method in WATCHED,
    )
    return _training(step, transform, len(sigmas), seeds, apart=False)


def begin_single_task(tasks: int, seeds: int) -> Training:
    """One network of its own for each task, with sigma = 1, for every seed.

    Args:
        tasks: how many.
        seeds: how many.

    Returns:
        The training at step 0; its state has the axes ``[seeds, tasks]``.
    """
    transform = optax.adam(LEARNING_RATE)
    step = make_step(lambda params, batch, _: (task_losses(params, batch, jnp.ones(1)).sum(), {}), transform)

    def every_task(state: TrainState, batch: dict[str, Array]) -> tuple[TrainState, Any]:
        return jax.vmap(lambda s, y: step(s, {"x": batch["x"], "y": y[:, None]}), in_axes=(0, 1))(
            state, batch["y"]
        )

    return _training(every_task, transform, tasks, seeds, apart=True)


def _training(
    step: Callable, transform: optax.GradientTransformation, tasks: int, seeds: int, apart: bool
) -> Training:
    def begin(network: Any, run_key: Array) -> TrainState:
        if not apart:
            return init_state(network, transform, run_key)
        return jax.vmap(lambda params: init_state(params, transform, run_key))(
            single_task_networks(network, tasks)
        )

    def take(state: TrainState, batch: dict[str, Array]) -> tuple[TrainState, dict[str, Array]]:
        state, metrics = step(state, batch)
        return state, {name: metrics[name] for name in ConflictStatistics._fields if name in metrics}

    def advance(state: TrainState, batches: dict[str, Array]) -> tuple[TrainState, dict[str, Array]]:
        return jax.lax.scan(take, state, batches)

    state = jax.jit(jax.vmap(begin))(*_beginnings(tasks, seeds))
    return Training(jax.jit(over_seeds(advance), donate_argnums=0), state)


@partial(jax.jit, static_argnums=(0, 1))
def _beginnings(tasks: int, seeds: int) -> tuple[Any, Array]:
    """The first network and the key of every seed's run."""
    network_keys, run_keys = jax.random.split(jax.random.key(1), (2, seeds))
    draw = partial(init_network, features=FEATURES, width=WIDTH, depth=DEPTH, tasks=tasks, outputs=OUTPUTS)
    return jax.vmap(draw)(network_keys), run_keys


def train(
    sigmas: tuple[float, ...], seeds: int, steps: int, run_dir: RunDir, methods: tuple[str, ...] = METHODS
) -> dict[str, np.ndarray]:
    """Trains every method and the single-task reference on the same stream of examples.

    Args:
        sigmas: scale of each task.
        seeds: problems, networks and streams.
        steps: Adam steps, a multiple of `CHUNK`.
        run_dir: shows the progress and takes the test errors on the way.
        methods: of `METHODS`.

    Returns:
        ``errors [methods, seeds, tasks]`` and ``single [seeds, tasks]``: test errors over sigma^2; and for
        the methods of `WATCHED`, in the order of ``methods``, ``conflict [methods, 3, seeds, steps]``: the
        fields of `jaxneg.mtl.ConflictStatistics`.
    """
    tasks = len(sigmas)
    problems = draw_problems(sigmas, seeds)
    watched = [method for method in methods if method in WATCHED]
    histories: dict[str, list[np.ndarray]] = {method: [] for method in watched}

    @jax.jit
    def examples(chunk: int) -> dict[str, Array]:
        numbers = 1 + chunk * CHUNK + jnp.arange(CHUNK)
        return jax.vmap(lambda p: jax.vmap(lambda n: draw_examples(p, n, BATCH))(numbers))(problems)

    def first_examples() -> tuple[dict[str, Array], dict[str, np.ndarray]]:
        # The test takes examples of the chunk before the first, so that one program draws all.
        drawn = {name: np.asarray(array)[:, :TEST_BATCHES] for name, array in examples(-1).items()}
        return examples(0), {name: a.reshape(seeds, -1, *a.shape[3:]) for name, a in drawn.items()}

    @jax.jit
    def test_errors(params: Any, test: dict[str, np.ndarray]) -> Float[Array, "seeds tasks"]:
        scales = jnp.array(sigmas)
        return jax.vmap(lambda p, batch: task_losses(p, batch, scales) / scales**2)(params, test)

    @jax.jit
    def single_errors(params: Any, test: dict[str, np.ndarray]) -> Float[Array, "seeds tasks"]:
        def of_task(p, x, y):
            return task_losses(p, {"x": x, "y": y[:, None]}, jnp.ones(1))[0]

        return jax.vmap(jax.vmap(of_task, in_axes=(0, None, 1)))(params, test["x"], test["y"])

    errors, single = np.empty((len(methods), seeds, tasks)), np.empty((seeds, tasks))
    chunks = steps // CHUNK
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        drawing = pool.submit(first_examples)
        trainings = {method: begin_multitask(method, sigmas, seeds) for method in methods}
        trainings["single"] = begin_single_task(tasks, seeds)
        batches, test = drawing.result()

        def advanced(name: str, batches: dict[str, Array], report: bool) -> np.ndarray | None:
            training = trainings[name]
            state, seen = training.advance(training.state, batches)
            trainings[name] = training._replace(state=state)
            if seen:
                histories[name].append(np.stack([seen[field] for field in ConflictStatistics._fields]))
            if not report:
                return None
            return np.asarray((single_errors if name == "single" else test_errors)(state.params, test))

        for done in run_dir.progress(range(1, chunks + 1), f"GradNorm's toy, {tasks} tasks"):
            following = pool.submit(examples, done)  # drawn while these are learned from
            report = done % CHUNKS_BETWEEN_REPORTS == 0 or done == chunks
            found = list(pool.map(partial(advanced, batches=batches, report=report), trainings))
            batches = following.result()
            if report:
                *errors[:], single[:] = found
                means = increases(errors, single).mean(axis=1)
                named = {
                    f"{tasks} tasks, {method}": mean for method, mean in zip(methods, means, strict=True)
                }
                run_dir.log(done * CHUNK, **named)
    conflict = [np.concatenate(histories[method], axis=-1) for method in watched]
    return {"errors": errors, "single": single, "conflict": np.array(conflict)}


def result_table(
    sigmas: tuple[float, ...], methods: tuple[str, ...], errors: np.ndarray, single: np.ndarray
) -> Table:
    """``delta_m`` of every method with its interval over the seeds, and its mean rank.

    Args:
        sigmas: scale of each task.
        methods: the rows.
        errors: ``[methods, seeds, tasks]``, test errors over sigma^2.
        single: ``[seeds, tasks]``, those of the single-task networks.

    Returns:
        The table, best method first.
    """
    reference = tuple(sigmas) == (1.0, 100.0)
    measured, rank = increases(errors, single), ranks(errors)
    rows: list[list[str | float | int]] = [[SINGLE_TASK, "0", "  ".join("0" for _ in sigmas), "", ""]]
    for row in np.argsort(measured.mean(axis=1)):
        method = methods[row]
        each = 100 * np.mean(errors[row] / single - 1, axis=0)
        rows.append(
            [
                method,
                interval_text(measured[row]),
                "  ".join(f"{value:.0f}" for value in each),
                f"{rank[row]:.1f}",
                PROTOTYPE.get(method, "") if reference else "",
            ]
        )
    scales = ", ".join(f"{sigma:g}" for sigma in sigmas)
    return Table(
        f"Every method on GradNorm's toy with σ = {scales}: Δm, the increase of the test error over "
        "single-task networks, percent",
        ["method", "Δm, mean over tasks (95 % interval)", "each task", "mean rank", "prototype"],
        rows,
    )


def draw(
    sigmas: tuple[float, ...], methods: tuple[str, ...], errors: np.ndarray, single: np.ndarray
) -> Figure:
    """Mean relative increase of every method with its interval, and each task's.

    Args:
        sigmas: scale of each task.
        methods: the rows.
        errors: ``[methods, seeds, tasks]``, test errors over sigma^2.
        single: ``[seeds, tasks]``, those of the single-task networks.

    Returns:
        The figure.
    """
    measured = increases(errors, single)
    order = np.argsort(measured.mean(axis=1))[::-1]
    groups = {
        "free of scale": (SCALE_FREE, "tab:green"),
        "lean to the small task": (LEAN_TO_SMALL, "tab:blue"),
        "equalise gradient norms": (EQUALISE_NORMS, "tab:purple"),
        "follow the large task": (FOLLOW_THE_LARGE, "tab:red"),
        "in no ordered group": (set(METHODS) - set(CLAIMED), "tab:gray"),
    }
    color = {method: color for members, color in groups.values() for method in members}
    figure = Figure(figsize=(8.5, 1.5 + 0.25 * len(methods)), layout="constrained")
    axis = figure.subplots()
    for height, row in enumerate(order):
        method = methods[row]
        estimate, low, high, _ = mean_interval(measured[row])
        error = None if np.isinf(low) else [[estimate - low], [high - estimate]]
        axis.barh(height, estimate, xerr=error, color=color[method], alpha=0.7, capsize=3)
        for sigma in sorted(set(sigmas)):
            chosen = [t for t, s in enumerate(sigmas) if s == sigma]
            value = 100 * np.mean(errors[row][:, chosen] / single[:, chosen] - 1)
            marker = "o^s"[sorted(set(sigmas)).index(sigma) % 3]
            axis.plot(value, height, marker, color="black", markerfacecolor="white", markersize=5)
    means, each = measured.mean(axis=1), 100 * np.mean(errors / single - 1, axis=1)
    limit = 1.1 * figure_limit(np.concatenate([means, each.ravel()]))
    for height, row in enumerate(order):
        if means[row] > limit:
            axis.text(limit, height, f"{means[row]:.0f} ▸ ", ha="right", va="center", fontweight="bold")
    axis.set_xlim(right=limit)
    axis.axvline(0, color="black", linewidth=1)
    axis.set_yticks(range(len(order)), [methods[row] for row in order])
    axis.set_xlabel("increase of the test error over single-task networks (percent)")
    axis.grid(axis="x", alpha=0.3)
    handles: list[Any] = [Patch(color=shade, alpha=0.7, label=name) for name, (_, shade) in groups.items()]
    handles += [
        Line2D(
            [],
            [],
            color="black",
            markerfacecolor="white",
            linestyle="",
            marker="o^s"[i % 3],
            label=f"task σ = {s:g}",
        )
        for i, s in enumerate(sorted(set(sigmas)))
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    return figure
