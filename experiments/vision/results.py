"""The papers' results on the image benchmarks, and the table that puts ours beside them.

The figures are those that Rep-MTL, arXiv:2507.21049, prints: means of three runs of LibMTL's networks.
"""

from collections.abc import Mapping

import jax.numpy as jnp

from experiments.run_dir import Table
from jaxneg.mtl import delta_p_task

SINGLE_TASK = "single-task"

PAPER: dict[str, dict[str, tuple[float, ...]]] = {
    "nyuv2": {
        SINGLE_TASK: (53.50, 75.39, 0.3926, 0.1605, 21.99, 15.16, 39.04, 65.00, 75.16),
        "equal": (53.93, 75.53, 0.3825, 0.1577, 23.57, 17.01, 35.04, 60.99, 72.05),
        "gls": (54.59, 76.06, 0.3785, 0.1555, 22.71, 16.07, 36.89, 63.11, 73.81),
        "cagrad": (53.97, 75.54, 0.3885, 0.1588, 22.47, 15.71, 37.77, 63.82, 74.30),
        "nash": (53.41, 74.95, 0.3867, 0.1612, 22.57, 15.94, 37.30, 63.40, 74.09),
        "dbmtl": (53.92, 75.60, 0.3768, 0.1557, 21.97, 15.37, 38.43, 64.81, 75.24),
        "rep-mtl": (54.59, 76.04, 0.3750, 0.1542, 21.91, 15.28, 38.37, 64.72, 75.05),
    },
    "cityscapes": {
        SINGLE_TASK: (69.06, 91.54, 0.01282, 43.53),
        "equal": (68.93, 91.58, 0.01315, 45.90),
        "rep-mtl": (69.72, 91.85, 0.01270, 43.42),
    },
    "office-31": {
        SINGLE_TASK: (86.61, 95.63, 96.85),
        "equal": (83.53, 97.27, 96.85),
        "rep-mtl": (85.93, 98.54, 98.67),
    },
    "office-home": {
        SINGLE_TASK: (65.59, 79.60, 90.47, 80.00),
        "equal": (65.34, 78.04, 89.80, 79.50),
        "rep-mtl": (67.40, 78.75, 90.37, 80.04),
    },
}
"""Benchmark and method to the metrics, in the order of the tasks and of each task's metrics."""


def benchmark_table(
    name: str,
    results: Mapping[str, Mapping[str, float]],
    higher_is_better: Mapping[str, bool],
) -> Table:
    """Our metrics beside the paper's, and the mean relative gain of each over its single-task networks.

    Args:
        name: of the benchmark.
        results: method to its metrics, by "task/metric", all methods the same ones.
        higher_is_better: the metrics in the paper's order.

    Returns:
        A table with two rows for each method that both have. The gain is empty without single-task networks.
    """
    metrics = list(higher_is_better)
    owners = [metric.rpartition("/")[0] for metric in metrics]
    group = jnp.array([owners.index(owner) for owner in owners])
    better = jnp.array(list(higher_is_better.values()))
    ours = {method: [values[metric] for metric in metrics] for method, values in results.items()}
    rows: list[list[str | float | int]] = []
    for method in dict.fromkeys([*PAPER[name], *ours]):
        for title, found in (("paper", PAPER[name]), ("ours", ours)):
            if method not in found:
                continue
            gain: str | float = ""
            if SINGLE_TASK in found:
                base = jnp.asarray(found[SINGLE_TASK])
                gain = round(float(delta_p_task(jnp.asarray(found[method]), base, better, group)), 2)
            rows.append([method, title, *(float(f"{value:.4g}") for value in found[method]), gain])
    return Table(f"{name}: metrics beside the paper's", ["method", "", *metrics, "Δp task (%)"], rows)
