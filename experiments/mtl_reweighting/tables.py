"""Real multi-target tables: the loaders, and every method on a small network through the engine.

A table file is an ``.npz`` with ``X [rows, features]``, ``Y [rows, tasks]``, ``x_names`` and ``y_names``
(targets to regress), or with ``X_train, Y_train, X_test, Y_test`` (labels 0 and 1 to predict, with a fixed
split). The files are those of Mulan's benchmark collection: E. Spyromitros-Xioufis et al., Machine Learning
104(1), 2016.

No method is expected to win here. On tasks of like kind a tuned sum of losses is hard to beat: D. Xin et al.,
arXiv:2209.11379; V. Kurin et al., arXiv:2201.04122.
"""

import os
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from matplotlib.figure import Figure

from experiments.claims import mean_interval
from experiments.mtl_reweighting.delta import figure_limit, increases, interval_text, ranks
from experiments.mtl_reweighting.methods import (
    FAMILY,
    LEARNING_RATE,
    SINGLE_TASK,
    WATCHED,
    Step,
    weighted_step,
)
from experiments.mtl_reweighting.network import (
    init_network,
    is_last_trunk_layer,
    is_trunk,
    predict,
    single_task_networks,
)
from experiments.npz import load_npz
from experiments.parallel import in_parallel, over_seeds
from experiments.run_dir import RunDir
from experiments.run_dir import Table as ResultTable
from jaxneg.mtl import ConflictStatistics
from jaxneg.train import FitResult, fit, init_state, make_step, pipeline

DATA = Path(os.environ.get("JAXNEG_DATA", Path(__file__).parents[3] / "shared" / "data")) / "mtl_reweighting"
"""Where the table files are looked for."""
BENCHMARKS = ("enb", "jura", "atp1d", "wq", "oes97", "oes10", "yeast")
"""The tables that the presets name."""
FALLBACK = "wine"
"""The table that needs no file."""
TEST_SHARE = 0.3


METHODS = tuple(FAMILY)
PROTOTYPE = {
    ("enb", "Sum"): -4,
    ("enb", "Sum of log losses"): -15,
    ("jura", "Sum"): 0.8,
    ("jura", "Sum of log losses"): 4.8,
    ("jura", "Nash-MTL"): 8.9,
    ("oes97", "Sum"): 0.7,
    ("oes97", "Sum of log losses"): 7.5,
}
"""Percent that an independent prototype measured, with a network and a budget that are not known."""
THROUGH_FIT = "Nash-MTL"
"""The method that is also trained by `jaxneg.train.fit`, with checkpoints."""


class Table(NamedTuple):
    """A data set with several targets."""

    name: str
    X: Float[np.ndarray, "rows features"]
    Y: Float[np.ndarray, "rows tasks"]
    y_names: tuple[str, ...]
    labels: bool
    """Whether the targets are labels 0 and 1, not numbers."""
    test_rows: np.ndarray | None
    """Rows of the fixed test set, where the table has one."""


def find_tables(names: tuple[str, ...], folder: Path = DATA) -> tuple[tuple[str, ...], list[str]]:
    """Which tables can be had: benchmark tables without a file are left out; if none is left, wine stands in.

    Args:
        names: of tables.
        folder: of the files.

    Returns:
        The names that are left, and a note on those that are not.

    Raises:
        FileNotFoundError: a name is no benchmark table's, and has no file.
    """
    present = [name for name in names if name == FALLBACK or (folder / f"{name}.npz").is_file()]
    absent = [name for name in names if name not in present]
    if unknown := [name for name in absent if name not in BENCHMARKS]:
        raise FileNotFoundError(
            f"there is no table {unknown[0]!r} in {folder}: expected one of {', '.join(BENCHMARKS)}, "
            f"{FALLBACK}, "
            "or the name of an npz file there without its suffix"
        )
    note = f"Tables without a file in {folder.name}: {', '.join(absent)} (set JAXNEG_DATA)."
    if not present:
        note += f" In their place stands {FALLBACK}, real data but no paper's benchmark."
    return tuple(present or [FALLBACK]), [note] if absent else []


def load_table(name: str, folder: Path = DATA) -> Table:
    """Reads a table, or makes the one that needs no file.

    Args:
        name: of the file without suffix, or ``wine``: scikit-learn's wine data, of whose 13 measurements
            three (flavanoids, colour intensity, proline) are to be predicted from the other ten. It is real
            and the scales of its targets are as 1 : 2 : 300, but it is no benchmark of any paper.
        folder: of the files.

    Returns:
        The table.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no table. The message names the file, what is wrong, and the remedy.
    """
    if name == FALLBACK:
        return _wine()
    path = folder / f"{name}.npz"
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no table {path}: set JAXNEG_DATA to the folder that holds mtl_reweighting/{name}.npz, "
            f"or take the table {FALLBACK!r}, which needs no file"
        )
    arrays = load_npz(path)
    return _labels(name, path, arrays) if "X_train" in arrays else _regression(name, path, arrays)


def _regression(name: str, path: Path, arrays: dict[str, np.ndarray]) -> Table:
    X, Y = _numbers(path, arrays, "X", "x_names"), _numbers(path, arrays, "Y", "y_names")
    _require_rows(path, X, Y, "X", "Y")
    names = arrays.get("y_names", np.array([f"task {t}" for t in range(Y.shape[1])]))
    if constant := np.flatnonzero(Y.std(0) == 0).tolist():
        raise ValueError(
            f"{path}: column {constant[0]} of 'Y' ({names[constant[0]]}) is constant: there is nothing to "
            "predict, "
            "remove it"
        )
    return Table(name, X, Y, tuple(map(str, names)), labels=False, test_rows=None)


def _labels(name: str, path: Path, arrays: dict[str, np.ndarray]) -> Table:
    parts = []
    for part in ("train", "test"):
        X, Y = (_numbers(path, arrays, f"{letter}_{part}") for letter in "XY")
        _require_rows(path, X, Y, f"X_{part}", f"Y_{part}")
        if bad := np.argwhere((Y != 0) & (Y != 1)).tolist():
            row, column = bad[0]
            raise ValueError(
                f"{path}: array 'Y_{part}', row {row}, column {column} holds {Y[row, column]:g}: labels are "
                "0 or 1"
            )
        parts.append((X, Y))
    (X, Y), (X_test, Y_test) = parts
    for letter, first, second in (("X", X, X_test), ("Y", Y, Y_test)):
        if first.shape[1] != second.shape[1]:
            raise ValueError(
                f"{path}: '{letter}_train' has {first.shape[1]} columns and '{letter}_test' "
                f"{second.shape[1]}: "
                "both parts need the same columns"
            )
    names = tuple(f"label {t}" for t in range(Y.shape[1]))
    rows = np.arange(len(X), len(X) + len(X_test))
    return Table(name, np.concatenate([X, X_test]), np.concatenate([Y, Y_test]), names, True, rows)


def _numbers(
    path: Path, arrays: dict[str, np.ndarray], key: str, names: str = ""
) -> Float[np.ndarray, "rows columns"]:
    if key not in arrays:
        raise ValueError(
            f"{path}: array {key!r} is missing, it holds {', '.join(sorted(arrays)) or 'nothing'}: a table "
            "needs "
            "X and Y, or X_train, Y_train, X_test and Y_test"
        )
    array = arrays[key]
    if array.dtype.kind not in "biuf" or array.ndim != 2 or 0 in array.shape:
        raise ValueError(
            f"{path}: array {key!r} has shape {array.shape} and dtype {array.dtype}: expected numbers of "
            "shape "
            "[rows, columns]"
        )
    columns = arrays.get(names)
    if columns is not None and columns.shape != array.shape[1:]:
        raise ValueError(
            f"{path}: {names!r} names {columns.size} columns, but {key!r} has {array.shape[1]}: name each "
            "once"
        )
    array = array.astype(np.float64)
    if bad := np.argwhere(~np.isfinite(array)).tolist():
        row, column = bad[0]
        title = f" ({columns[column]})" if columns is not None else ""
        raise ValueError(
            f"{path}: array {key!r}, row {row}, column {column}{title} holds {array[row, column]}: remove "
            "the row "
            "or fill the value in"
        )
    return array


def _require_rows(path: Path, X: np.ndarray, Y: np.ndarray, x_key: str, y_key: str) -> None:
    if len(X) != len(Y):
        raise ValueError(
            f"{path}: {x_key!r} has {len(X)} rows and {y_key!r} {len(Y)}: each row of one belongs to one of "
            "the other"
        )


def _wine() -> Table:
    from sklearn.datasets import load_wine

    wine: Any = load_wine()
    targets = [wine.feature_names.index(name) for name in ("flavanoids", "color_intensity", "proline")]
    features = np.setdiff1d(np.arange(wine.data.shape[1]), targets)
    names = tuple(wine.feature_names[t] for t in targets)
    return Table(FALLBACK, wine.data[:, features], wine.data[:, targets], names, labels=False, test_rows=None)


class Split(NamedTuple):
    """A table cut into training and test rows, in the units in which a network sees it."""

    x: Float[Array, "train features"]
    """Standardised by the training rows."""
    y: Float[Array, "train tasks"]
    """Centred, in units of the root mean square of the targets' standard deviations; labels as they are."""
    x_test: Float[Array, "test features"]
    """Standardised likewise, and clipped to [-8, 8]."""
    y_test: Float[Array, "test tasks"]
    spread: Float[Array, "tasks"]
    """Standard deviation of each target in the training rows, in the units of ``y``; 1 for labels."""


def split_table(table: Table, seed: int) -> Split:
    """Cuts a table at random and standardises it.

    The targets keep their relative scales, which are what the reweighting methods are about.

    Args:
        table: the table.
        seed: of the cut; a table with a fixed test set is not cut.

    Returns:
        Arrays in float32.
    """
    order = np.random.default_rng(seed).permutation(len(table.X))
    test = table.test_rows if table.test_rows is not None else order[: round(TEST_SHARE * len(order))]
    train = np.setdiff1d(order, test)
    X, Y = table.X[train], table.Y[train]
    standard = (table.X - X.mean(0)) / (X.std(0) + 1e-8)
    if table.labels:
        scaled, spread = table.Y, np.ones(Y.shape[1])
    else:
        unit = np.sqrt(np.mean(Y.var(0)))
        scaled, spread = (table.Y - Y.mean(0)) / unit, Y.std(0) / unit
    arrays = standard[train], scaled[train], np.clip(standard[test], -8, 8), scaled[test], spread
    return Split(*(jnp.asarray(array, jnp.float32) for array in arrays))


def losses(
    params: Any, batch: dict[str, Float[Array, "batch columns"]], labels: bool
) -> Float[Array, "tasks"]:
    """Mean loss of each task: squared error, or the cross entropy of labels.

    Args:
        params: from `init_network`.
        batch: ``{"x": [batch, features], "y": [batch, tasks]}``.
        labels: whether the targets are labels.

    Returns:
        One loss for each task.
    """
    outputs = predict(params, batch["x"])
    each = optax.sigmoid_binary_cross_entropy if labels else optax.squared_error
    return jnp.mean(each(outputs, batch["y"]), axis=0)


def errors(
    params: Any,
    x: Float[Array, "test features"],
    y: Float[Array, "test tasks"],
    spread: Float[Array, "tasks"],
    labels: bool,
) -> Float[Array, "tasks"]:
    """Test error of each task: mean squared error over the variance, or the share of wrong labels.

    Args:
        params: from `init_network`.
        x: examples.
        y: targets.
        spread: standard deviations of the targets.
        labels: whether the targets are labels.

    Returns:
        One error for each task, smaller is better.
    """
    outputs = predict(params, x)
    if labels:
        return jnp.mean((outputs > 0) != (y > 0.5), axis=0)
    return jnp.mean((outputs - y) ** 2, axis=0) / spread**2


class Recipe(NamedTuple):
    """How a network is trained on a table."""

    width: int
    depth: int
    batch: int
    steps: int


def train_together(
    splits: list[Split], method: str, recipe: Recipe, labels: bool
) -> dict[str, Float[np.ndarray, "..."]]:
    """Trains one network for all tasks on every split at once.

    Seed s takes the first parameters, the order of the rows and the random draws of key s, as
    `train_through_fit` does.

    Args:
        splits: one for each seed.
        method: of `METHODS`.
        recipe: size and budget.
        labels: whether the targets are labels.

    Returns:
        ``errors [seeds, tasks]`` on the test rows; for the methods of `WATCHED` also ``conflict [3, seeds,
        steps]``, the fields of `jaxneg.mtl.ConflictStatistics`.
    """
    watched = method in WATCHED
    step, transform = _step(method, splits[0], recipe, labels, watched)

    def one(seed: Array, network: Any, rows: Array, split: Split) -> dict[str, Array]:
        state = init_state(network, transform, jax.random.key(seed))

        def take(state, chosen):
            state, metrics = step(state, {"x": split.x[chosen], "y": split.y[chosen]})
            return state, [metrics[name] for name in ConflictStatistics._fields] if watched else ()

        state, seen = jax.lax.scan(take, state, rows)
        found = {"errors": errors(state.params, split.x_test, split.y_test, split.spread, labels)}
        return found | ({"conflict": jnp.stack(seen)} if watched else {})

    found = {name: np.asarray(of) for name, of in jax.jit(over_seeds(one))(*_stacked(splits, recipe)).items()}
    return found | ({"conflict": found["conflict"].swapaxes(0, 1)} if watched else {})


def train_apart(
    splits: list[Split], recipe: Recipe, labels: bool
) -> dict[str, Float[np.ndarray, "seeds tasks"]]:
    """Trains a network of its own for each task: the single-task reference, with the same trunk and budget.

    Args:
        splits: one for each seed.
        recipe: size and budget.
        labels: whether the targets are labels.

    Returns:
        ``errors`` on the test rows.
    """
    transform = optax.adam(LEARNING_RATE)
    step = make_step(lambda p, b, _: (losses(p, b, labels).sum(), {}), transform)

    def one(seed: Array, network: Any, rows: Array, split: Split) -> Array:
        def task(network: Any, y: Array, y_test: Array, spread: Array) -> Array:
            # In units of its own spread, since there is no other task to compare with.
            alone = split._replace(y=y[:, None] / spread, y_test=y_test[:, None] / spread, spread=jnp.ones(1))
            state = init_state(network, transform, jax.random.key(seed))

            def take(state, chosen):
                return step(state, {"x": alone.x[chosen], "y": alone.y[chosen]})[0], None

            state, _ = jax.lax.scan(take, state, rows)
            return errors(state.params, alone.x_test, alone.y_test, alone.spread, labels)[0]

        networks = single_task_networks(network, split.y.shape[1])
        return jax.vmap(task, in_axes=(0, 1, 1, 0))(networks, split.y, split.y_test, split.spread)

    return {"errors": np.asarray(jax.jit(over_seeds(one))(*_stacked(splits, recipe)))}


def train_through_fit(
    splits: list[Split], recipe: Recipe, labels: bool, folder: Path, config: dict
) -> FitResult:
    """Trains `THROUGH_FIT` on the split of seed 0 by the engine's loop, with metrics and checkpoints.

    Args:
        splits: one for each seed.
        recipe: size and budget.
        labels: whether the targets are labels.
        folder: of this training; one that was interrupted is continued.
        config: what the folder's config.json says.

    Returns:
        The result of `jaxneg.train.fit`.
    """
    split = splits[0]
    step, transform = _step(THROUGH_FIT, split, recipe, labels)
    evaluate = jax.jit(lambda params: errors(params, split.x_test, split.y_test, split.spread, labels))
    every = max(1, recipe.steps // 4)
    network = jax.tree.map(lambda leaf: np.asarray(leaf)[0], _first_networks(splits, recipe))
    return fit(
        jax.jit(step, donate_argnums=0),
        init_state(network, transform, jax.random.key(0)),
        pipeline({"x": split.x, "y": split.y}, recipe.batch, seed=0),
        steps=recipe.steps,
        run_dir=folder,
        config=config,
        resume=True,
        log_every=max(1, recipe.steps // 20),
        evaluate=lambda state: {"error": evaluate(state.params)},
        evaluate_every=every,
        checkpoint_every=every,
    )


def _step(
    method: str, split: Split, recipe: Recipe, labels: bool, watched: bool = False
) -> tuple[Step, optax.GradientTransformation]:
    return weighted_step(
        lambda p, b: losses(p, b, labels),
        method,
        split.y.shape[1],
        is_trunk,
        last_shared=partial(is_last_trunk_layer, depth=recipe.depth),
        watched=watched,
    )


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _drawn(seeds: int, features: int, tasks: int, recipe: Recipe) -> Any:
    keys = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), 1))(jnp.arange(seeds))
    return jax.vmap(lambda key: init_network(key, features, recipe.width, recipe.depth, tasks))(keys)


def _first_networks(splits: list[Split], recipe: Recipe) -> Any:
    """The first network of every seed, on a leading axis."""
    return _drawn(len(splits), splits[0].x.shape[1], splits[0].y.shape[1], recipe)


def _stacked(splits: list[Split], recipe: Recipe) -> tuple[np.ndarray, Any, np.ndarray, Split]:
    """For every seed the seed, a first network, the rows of each batch ``[steps, batch]``, and the split."""
    rows = []
    for seed, split in enumerate(splits):
        batches = pipeline({"row": np.arange(len(split.x))}, recipe.batch, seed=seed)
        rows.append(np.stack([batches[i]["row"] for i in range(recipe.steps)]))  # pyright: ignore[reportOptionalSubscript]
    together = jax.tree.map(lambda *arrays: np.stack(arrays), *splits)
    return np.arange(len(splits)), _first_networks(splits, recipe), np.stack(rows), together


class TableResult(NamedTuple):
    """What was measured on one table."""

    table: Table
    methods: tuple[str, ...]
    errors: Float[np.ndarray, "methods seeds tasks"]
    single: Float[np.ndarray, "seeds tasks"]
    through_fit: Float[np.ndarray, "tasks"] | None
    """Test errors of `THROUGH_FIT` on the split of seed 0, trained by the engine's loop."""
    conflict: dict[str, Float[np.ndarray, "3 seeds steps"]]
    """Of the methods of `WATCHED`, the fields of `jaxneg.mtl.ConflictStatistics`."""


def run_tables(
    names: tuple[str, ...],
    seeds: int,
    recipe: Recipe,
    run_dir: RunDir,
    methods: tuple[str, ...] = METHODS,
    folder: Path = DATA,
) -> list[TableResult]:
    """Trains every method and the single-task reference on every table.

    The first table is also trained through `jaxneg.train.fit`, into ``fit/`` of the run folder.

    Args:
        names: of tables.
        seeds: splits and networks.
        recipe: size and budget.
        run_dir: keeps what is done.
        methods: of `METHODS`.
        folder: of the files.

    Returns:
        One result for each table.
    """
    results = []
    for name in names:
        table = load_table(name, folder)
        splits = [split_table(table, seed) for seed in range(seeds)]
        jobs = {"apart": partial(train_apart, splits, recipe, table.labels)} | {
            str(METHODS.index(method)): partial(train_together, splits, method, recipe, table.labels)
            for method in methods
        }

        def kept(job: str, name: str = name, jobs: dict[str, partial] = jobs) -> dict[str, np.ndarray]:
            return run_dir.stage(f"table-{name}-{job}", jobs[job])

        title = f"Table {name}, {table.Y.shape[1]} tasks"
        apart, *found = in_parallel(kept, list(jobs), run_dir, title)
        fitted = None
        if not results:
            description = {"table": name, "method": THROUGH_FIT, **recipe._asdict()}
            done = train_through_fit(splits, recipe, table.labels, run_dir.path / "fit", description)
            fitted = np.array(done.history[-1]["eval/error"])
        together = dict(zip(methods, found, strict=True))
        conflict = {method: arrays["conflict"] for method, arrays in together.items() if "conflict" in arrays}
        errors = np.stack([arrays["errors"] for arrays in found])
        results.append(TableResult(table, methods, errors, apart["errors"], fitted, conflict))
    return results


def result_table(results: list[TableResult]) -> ResultTable:
    """``delta_m`` of every method on every table, with its interval over the seeds, and its mean rank.

    Args:
        results: of the tables.

    Returns:
        The table.
    """
    columns = [f"{r.table.name} ({r.table.Y.shape[1]} tasks)" for r in results]
    measured = [increases(result.errors, result.single) for result in results]
    # Every table counts the same, however many tasks it has.
    rank = np.mean([ranks(result.errors) for result in results], axis=0)
    first = results[0]
    rows: list[list[str | float | int]] = [[SINGLE_TASK, *["0"] * len(results), "", ""]]
    for row, method in enumerate(first.methods):
        known = [(r.table.name, PROTOTYPE.get((r.table.name, method))) for r in results]
        prototype = "  ".join(f"{name} {value:g}" for name, value in known if value is not None)
        rows.append([method, *(interval_text(of[row]) for of in measured), f"{rank[row]:.1f}", prototype])
    if first.through_fit is not None:
        increase = 100 * np.mean(first.through_fit / first.single[0] - 1)
        same = measured[0][first.methods.index(THROUGH_FIT), 0]
        text = f"{increase:.1f} ({same:.1f} without the loop)"
        rows.append([f"{THROUGH_FIT} by fit, seed 0", text, *[""] * (len(results) + 1)])
    return ResultTable(
        "Every method on real tables: Δm, the increase of the test error over single-task networks, mean "
        "over tasks, percent (95 % interval; negative is better)",
        ["method", *columns, "mean rank", "prototype"],
        rows,
    )


def draw(results: list[TableResult]) -> Figure:
    """``delta_m`` of every method on every table, with its interval and the seeds.

    Args:
        results: of the tables.

    Returns:
        The figure.
    """
    figure = Figure(
        figsize=(1.8 + 3.0 * len(results), 1.2 + 0.25 * len(results[0].methods)), layout="constrained"
    )
    axes = figure.subplots(1, len(results), sharey=True, squeeze=False)[0]
    for axis, result in zip(axes, results, strict=True):
        measured = increases(result.errors, result.single)
        least, limit = np.nanmin(measured), figure_limit(measured)
        limit += 0.05 * (limit - least)
        axis.set_xlim(least - 0.05 * (limit - least), limit)
        for height, values in enumerate(measured):
            estimate, low, high, _ = mean_interval(values)
            if not estimate <= limit:
                text = f"{estimate:.0f} ▸ " if np.isfinite(estimate) else "not finite ▸ "
                axis.text(limit, height, text, ha="right", va="center", fontweight="bold")
                continue
            axis.plot(values, np.full(len(values), height), ".", color="tab:gray", alpha=0.5)
            ends = None if np.isinf(low) else [[estimate - low], [high - estimate]]
            axis.errorbar(estimate, height, xerr=ends, fmt="o", color="tab:blue", capsize=3)
        axis.axvline(0, color="black", linewidth=1)
        kind = "labels" if result.table.labels else "targets"
        axis.set_title(f"{result.table.name}: {result.table.Y.shape[1]} {kind}", fontsize=11)
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(results[0].methods)), results[0].methods)
    axes[0].invert_yaxis()
    figure.supxlabel(
        "increase of the test error over single-task networks (percent; left is better)", fontsize=10
    )
    return figure
