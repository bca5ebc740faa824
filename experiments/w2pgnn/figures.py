"""The figures of the experiment."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.claims import mean_interval
from experiments.w2pgnn.claims import Study
from experiments.w2pgnn.correlation import fisher_interval
from experiments.w2pgnn.scores import ZETA
from experiments.w2pgnn.tables import names_of

OURS, THEIRS, NONE, ALL = "#2166ac", "#b0b0b0", "#b2182b", "#e08214"


def draw_scatter(
    studies: Mapping[str, Study], scale: float = 1.0, *, untrained: Sequence[str] = ()
) -> Figure:
    """Feasibility against what pre-training gave, a row for each study and a column for each downstream set.

    Args:
        studies: scores and performance by the label of the performance; means over repetitions are drawn.
        scale: of the performance.
        untrained: studies whose networks without pre-training have not learnt anything: they are not drawn.

    Returns:
        The figure.
    """
    columns = max(len(study.targets) for study in studies.values())
    figure, grid = plt.subplots(
        len(studies),
        columns,
        figsize=(2.9 * max(columns, 2), 2.9 * len(studies) + 0.4),
        squeeze=False,
        layout="constrained",
    )
    for row, (label, study) in zip(grid, studies.items(), strict=True):
        zeta, mean = study.scores[ZETA].mean(0), scale * study.performance.mean(0)
        correlations = study.correlations(ZETA).mean(0)
        if len(study.scores[ZETA]) == 1:
            correlations = study.correlation_of_mean(ZETA, study.performance.mean(0))
        for axes in row[len(study.targets) :]:
            axes.axis("off")
        for t, (axes, target) in enumerate(zip(row, study.targets, strict=False)):
            axes.spines[["top", "right"]].set_visible(False)
            axes.scatter(
                zeta[:, t], mean[:-2, t], s=28, color=OURS, edgecolor="white", linewidth=0.6, zorder=3
            )
            if len(np.unique(zeta[:, t])) > 1:
                slope, offset = np.polyfit(zeta[:, t], mean[:-2, t], 1)
                ends = np.array([zeta[:, t].min(), zeta[:, t].max()])
                axes.plot(ends, slope * ends + offset, color=OURS, linewidth=1, alpha=0.6)
            if label not in untrained:
                axes.axhline(mean[-1, t], color=NONE, linestyle="--", linewidth=1, label="no pre-training")
            axes.axhline(mean[-2, t], color=ALL, linestyle=":", linewidth=1.4, label="all sets")
            axes.set_title(f"{target}, r = {correlations[t]:.2f}", fontsize=10)
            axes.set_xlabel("feasibility ζ")
        row[0].set_ylabel(label)
    handles, names = grid[-1][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2, frameon=False)
    return figure


def draw_correlations(study: Study, *, over_selections: bool) -> Figure:
    """The mean correlation of each score with its interval, and those of each downstream set as dots.

    Args:
        study: scores and performance.
        over_selections: whether the correlations are those of mean performances, with Fisher's intervals on
        the dots,
            in place of intervals over repetitions.

    Returns:
        The figure.
    """
    names = names_of(study)
    figure, axes = plt.subplots(figsize=(8, 0.36 * len(names) + 1.2), layout="constrained")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="0.92")
    axes.set_axisbelow(True)
    markers = "osD^vP*X"
    for place, name in enumerate(names):
        color = OURS if name.startswith("W2PGNN") else THEIRS
        if over_selections:
            dots = study.correlation_of_mean(name, study.performance.mean(0))
        else:
            dots = study.correlations(name).mean(0)
        axes.barh(place, dots.mean(), 0.62, color=color, alpha=0.55)
        for t, dot in enumerate(dots):
            at = place + 0.13 * (t - (len(dots) - 1) / 2)
            if over_selections:
                low, high = fisher_interval(float(dot), len(study.selections))
                axes.plot([low, high], [at, at], color="0.55", linewidth=0.7)
            label = study.targets[t] if place == 0 else None
            axes.plot(
                dot, at, markers[t % len(markers)], color="0.15", markersize=4, label=label, linestyle=""
            )
        if not over_selections:
            estimate, low, high, _ = mean_interval(study.correlations(name).mean(1))
            if np.isfinite(low):
                ends = [[estimate - low], [high - estimate]]
                axes.errorbar(estimate, place, xerr=ends, color="black", capsize=3, linewidth=1.3)
    axes.axvline(0, color="0.3", linewidth=0.8)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(-1, 1)
    axes.set_xlabel("Pearson correlation with performance")
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    return figure


def draw_graphons(graphons: np.ndarray, names: Sequence[str], sets: int) -> Figure:
    """The estimated graphons, pre-training above, downstream below.

    Args:
        graphons: ``[sets + targets, r, r]``.
        names: of each.
        sets: how many of them are for pre-training.

    Returns:
        The figure.
    """
    columns = max(sets, len(names) - sets)
    figure, grid = plt.subplots(
        2, columns, figsize=(1.75 * columns + 0.8, 4.1), layout="constrained", squeeze=False
    )
    top = float(graphons.max())
    image = None
    for row, (first, last) in zip(grid, ((0, sets), (sets, len(names))), strict=True):
        for axes in row[last - first :]:
            axes.axis("off")
        for axes, graphon, name in zip(row, graphons[first:last], names[first:last], strict=False):
            image = axes.imshow(graphon, vmin=0, vmax=top, cmap="viridis", interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_title(name, fontsize=9)
    grid[0][0].set_ylabel("pre-training")
    grid[1][0].set_ylabel("downstream")
    assert image is not None
    figure.colorbar(image, ax=grid, shrink=0.8, label="probability of an edge")
    return figure


def draw_curves(curves: np.ndarray, labels: Sequence[str]) -> Figure:
    """Losses of pre-training.

    Args:
        curves: ``[runs, steps]``.
        labels: of the runs.

    Returns:
        The figure.
    """
    figure, axes = plt.subplots(figsize=(7.5, 3.6), layout="constrained")
    axes.spines[["top", "right"]].set_visible(False)
    window = max(1, curves.shape[1] // 30)
    shown = curves[:, : curves.shape[1] // window * window].reshape(len(curves), -1, window).mean(-1)
    steps = (np.arange(shown.shape[1]) + 0.5) * window
    for curve, label in zip(shown, labels, strict=True):
        color, width = (ALL, 2.0) if label == "all" else ("0.6", 0.8)
        axes.plot(steps, curve, color=color, linewidth=width, zorder=3 if label == "all" else 2)
    axes.plot([], [], color="0.6", label="selections")
    axes.plot([], [], color=ALL, label="all sets")
    axes.set_xlabel("step of pre-training")
    axes.set_ylabel("loss (nats)")
    axes.legend(frameon=False)
    return figure
