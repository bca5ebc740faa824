"""The figures of the experiment."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.claims import mean_interval
from experiments.lemon.results import GraphResult
from experiments.lemon.training import Arm

COLORS = {
    "uniform": "#7f8c8d",
    "bernoulli": "#34495e",
    "nscaching": "#8e44ad",
    "sans": "#2980b9",
    "lemon": "#d4a017",
    "lemon_code": "#a0522d",
}


def _style(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.92", axis="x")
    axes.set_axisbelow(True)


def _half_width(values: np.ndarray) -> float:
    estimate, low, _, _ = mean_interval(values)
    return estimate - low if np.isfinite(low) else 0.0


def draw_quality(result: GraphResult) -> Figure:
    """MRR and Hits@10 of every arm, with intervals; open marks are self-adversarial.

    Args:
        result: of a graph.

    Returns:
        The figure.
    """
    figure, row = plt.subplots(1, 2, figsize=(10.5, 0.33 * len(result.arms) + 1.4), sharey=True)
    order = sorted(result.arms, key=lambda arm: (arm.adversarial, float(result.test["MRR"][arm].mean())))
    for axes, (metric, label) in zip(
        row, (("MRR", "MRR, filtered"), ("HITS@10", "Hits@10, filtered")), strict=True
    ):
        _style(axes)
        # A seed's tables and batches are the same for all arms: what they change for all is no noise.
        common = np.mean([result.test[metric][arm] for arm in order], axis=0)
        common = common - common.mean()
        axes.axvline(result.test[metric][Arm("uniform")].mean(), color="0.6", linestyle="--", linewidth=1)
        for place, arm in enumerate(order):
            values, color = result.test[metric][arm], COLORS[arm.sampler]
            axes.errorbar(
                values.mean(),
                place,
                xerr=_half_width(values - common),
                color=color,
                marker="o",
                markersize=7,
                markerfacecolor="white" if arm.adversarial else color,
                elinewidth=1.2,
                capsize=3,
            )
        axes.set_xlabel(f"{label}, test triples of {result.plan.graph}")
    row[0].set_yticks(range(len(order)), [arm.name for arm in order])
    figure.tight_layout()
    return figure


def draw_shares(results: list[GraphResult]) -> Figure:
    """How plausible and how false the draws are, one row a graph.

    Args:
        results: of the graphs.

    Returns:
        The figure.
    """
    figure, grid = plt.subplots(
        len(results),
        2,
        figsize=(10.5, 0.42 * sum(len(r.plausible) for r in results) + 1.3 * len(results)),
        squeeze=False,
    )
    for (left, right), result in zip(grid, results, strict=True):
        names = [arm.name for arm in result.plausible]
        colors = [COLORS[arm.sampler] for arm in result.plausible]
        for axes, shares, label in (
            (left, result.plausible, "plausible: seen on this side of the relation (%)"),
            (right, result.false, "false negatives: true in validation or test (%)"),
        ):
            _style(axes)
            values = [100 * shares[arm].mean() for arm in shares]
            bars = axes.barh(names, values, color=colors, height=0.7)
            axes.bar_label(bars, [f"{value:.3g}" for value in values], padding=3, fontsize=9)
            axes.set_xlim(0, 1.15 * max(max(values), 1e-9))
            axes.invert_yaxis()
            axes.set_xlabel(label)
        left.set_title(result.plan.graph, loc="left")
        right.set_yticklabels([])
    figure.tight_layout()
    return figure


def draw_clusters(result: GraphResult, most: int = 28) -> Figure:
    """Entities in the plane of the first two principal components of their texts, by cluster.

    Args:
        result: of a small graph.
        most: entities with a name beside them.

    Returns:
        The figure.
    """
    figure, axes = plt.subplots(figsize=(9, 6.2))
    axes.spines[["top", "right"]].set_visible(False)
    x, y = result.reduced[:, 0], result.reduced[:, 1]
    axes.scatter(x, y, c=result.labels % 20, cmap="tab20", s=34, edgecolors="white", linewidths=0.5)
    taken: list[tuple[float, float]] = []
    spread = np.ptp(x), np.ptp(y)
    for i in np.argsort(-np.hypot(x - x.mean(), y - y.mean())):
        near = any(abs(x[i] - a) < 0.24 * spread[0] and abs(y[i] - b) < 0.04 * spread[1] for a, b in taken)
        if near or len(taken) >= most:
            continue
        taken.append((float(x[i]), float(y[i])))
        name = result.names[i].replace("_", " ")
        axes.annotate(name[:26], (x[i], y[i]), xytext=(4, 3), textcoords="offset points", fontsize=7.5)
    axes.set_xlabel("first principal component of the texts' embeddings")
    axes.set_ylabel("second")
    figure.tight_layout()
    return figure
