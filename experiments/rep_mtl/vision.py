"""The paper's own benchmarks: image networks at its scale, by `experiments.vision`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from experiments.run_dir import RunDir, Table
from jaxneg.mtl import multitask

if TYPE_CHECKING:
    from jaxneg.train import Target

BENCHMARKS = ("nyuv2", "cityscapes", "office-31", "office-home")
SINGLE_TASK, REP_MTL = "single-task", "rep-mtl"
METHODS = (SINGLE_TASK, "equal", "si", REP_MTL)
"""Beside the paper's: "si", the sum of the losses' logarithms, which is Rep-MTL without its regularisers."""


def require_method(name: str) -> None:
    """Checks that a method can be trained on a benchmark.

    Args:
        name: "single-task", "rep-mtl", or a method of `jaxneg.mtl.multitask`.

    Raises:
        ValueError: it cannot.
    """
    if name not in (SINGLE_TASK, REP_MTL):
        multitask(name, n_tasks=2)


def run_benchmarks(
    names: Sequence[str], methods: Sequence[str], data_dir: Path, seeds: int, run_dir: RunDir
) -> tuple[list[Table], list[str]]:
    """Trains every method on the benchmarks whose data are there.

    Args:
        names: of `BENCHMARKS`.
        methods: as `require_method` takes them.
        data_dir: with a folder for each of them, and torchvision's ImageNet weights in
            ``resnet50.safetensors`` (NYUv2 and Cityscapes) and ``resnet18.safetensors`` (Office); LibMTL's
            split lists of Office in ``data_txt``, where these are not in ``JAXNEG_DATA``.
        seeds: runs of each method, whose mean is shown.
        run_dir: keeps what is done.

    Returns:
        A table for each benchmark, and notes on what is missing.
    """
    tables, notes = [], []
    for name in names:
        folder = data_dir / name
        if not folder.is_dir():
            notes.append(f"There is no folder {folder}: {name} was left out (--data-dir says where to look).")
            continue
        from experiments.vision.results import benchmark_table
        from experiments.vision.training import RECIPES, higher_is_better, train_benchmark

        weights = data_dir / ("resnet18.safetensors" if name.startswith("office") else "resnet50.safetensors")
        recipe = replace(RECIPES[name], data=str(folder), weights=str(weights) if weights.is_file() else "")
        if (data_dir / "data_txt").is_dir():
            recipe = replace(recipe, lists=str(data_dir / "data_txt"))
        if not recipe.weights:
            notes.append(f"There is no {weights}: {name} began at random weights, the paper's at ImageNet's.")

        def once(method: str, seed: int, name: str = name, recipe=recipe) -> dict[str, np.ndarray]:
            of_run = run_dir.path / "vision" / name / f"{method}-{seed}"
            own = replace(recipe, seed=seed)
            found = train_benchmark(name, method, own, of_run, resume=True)  # pyright: ignore[reportArgumentType]
            return {metric: np.array(value) for metric, value in found.items()}

        better = higher_is_better(name)  # pyright: ignore[reportArgumentType]
        results = {}
        for method in methods:
            runs = [
                run_dir.stage(f"vision-{name}-{method}-{seed}", lambda m=method, s=seed, do=once: do(m, s))
                for seed in range(seeds)
            ]
            results[method] = {metric: float(np.mean([run[metric] for run in runs])) for metric in better}
        tables.append(benchmark_table(name, results, better))
    return tables, notes


def pod_target(name: str, method: str, batch: int) -> "Target":
    """A method's step on a benchmark in bfloat16, its batch split over all chips.

    Args:
        name: of `BENCHMARKS`.
        method: "rep-mtl" or a method of `jaxneg.mtl.multitask`.
        batch: images of a global batch, for each task if these have images of their own.

    Returns:
        What `jaxneg.train.compile_for` compiles.
    """
    from experiments.vision.training import RECIPES, benchmark_target

    recipe = replace(RECIPES[name], batch_size=batch, precision="bfloat16")
    return benchmark_target(name, method, recipe, {"data": -1})
