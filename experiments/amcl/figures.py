"""The figures of the AMCL experiment: means over seeds, with their 95 % intervals."""

import matplotlib.pyplot as plt
import numpy as np

from experiments.amcl.claims import CLAIMED_TAU_MIN, FEW, MANY, Results, best_temperature
from experiments.amcl.comparison import BINS, FIXED_HEADS, OFFICIAL, amcl_name, base_name
from experiments.amcl.controlled import COUNTS, METHODS
from experiments.claims import mean_interval
from experiments.run_dir import RunDir

POSITIVE, NEGATIVE = "#2166ac", "#b2182b"
COLOURS = ("#666666", "#c2792b", "#2166ac")
NAMES = {FEW: "crops alone (a)", MANY: "five augmentations (abcde)"}


def draw_accuracies(run_dir: RunDir, results: Results) -> None:
    """Both accuracies of every arm, for few and for many augmentations."""
    figure, row = plt.subplots(1, len(results), figsize=(12, 4.6), layout="constrained", sharey=True)
    names = list(results[MANY])
    for axis, (letters, of) in zip(np.atleast_1d(row), results.items(), strict=True):
        for shift, (measure, colour) in enumerate((("linear", "#2166ac"), ("knn", "#c2792b"))):
            for place, name in enumerate(names):
                if name not in of:
                    continue
                mean, low, high, _ = mean_interval(of[name][measure])
                error = [[mean - low], [high - mean]] if np.isfinite(low) else None
                axis.errorbar(
                    100 * mean,
                    place + 0.2 * (shift - 0.5),
                    xerr=None if error is None else 100 * np.array(error),
                    fmt="o",
                    color=colour,
                    markersize=4,
                    label=measure if place == 0 else None,
                )
        axis.set(title=NAMES[letters], xlabel="top-1 accuracy, %")
        axis.set_yticks(range(len(names)), names)
        axis.grid(axis="x", linewidth=0.3)
    np.atleast_1d(row)[0].invert_yaxis()
    handles = np.atleast_1d(row)[0].get_legend_handles_labels()
    figure.legend(*handles, frameon=False, loc="outside right upper")
    run_dir.figure(
        "accuracies",
        figure,
        "Top-1 accuracy of frozen features on test images: linear probe and weighted neighbours; mean over"
        " seeds with 95 % interval.",
    )


def draw_similarities(run_dir: RunDir, results: Results, temperatures: tuple[float, ...], heads: int) -> None:
    """Histograms of similarities, the base method's beside AMCL's."""
    figure, grid = plt.subplots(
        len(results), 3, figsize=(12, 2.9 * len(results)), layout="constrained", sharex=True, squeeze=False
    )
    edges = np.linspace(-1, 1, BINS + 1)
    for line, (letters, of) in zip(grid, results.items(), strict=True):
        shown = (
            base_name(best_temperature(of, temperatures)),
            FIXED_HEADS,
            amcl_name(heads, CLAIMED_TAU_MIN),
        )
        for axis, name in zip(line, shown, strict=True):
            for kind, colour, label in (("pos", POSITIVE, "positive"), ("neg", NEGATIVE, "negative")):
                axis.stairs(of[name][f"{kind}_sim"].mean(0), edges, color=colour, fill=True, alpha=0.4)
                axis.stairs(of[name][f"{kind}_sim"].mean(0), edges, color=colour, label=label)
            overlap = of[name]["overlap"].mean()
            axis.set_title(f"{name}\noverlap {overlap:.2f}", fontsize=10)
        line[0].set(ylabel=f"share of the pairs\n{NAMES[letters]}")
    for axis in grid[-1]:
        axis.set(xlabel="cosine, mean of the heads")
    grid[0, 0].legend(frameon=False)
    run_dir.figure(
        "similarities",
        figure,
        "Similarities of views of the same test image (positive) and of different ones (negative), over all"
        " seeds; the less the two overlap, the better they are told apart.",
    )


def draw_temperatures(run_dir: RunDir, results: Results, heads: int) -> None:
    """Temperatures while training, and afterwards."""
    name, of = amcl_name(heads, CLAIMED_TAU_MIN), results[MANY]
    figure, row = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    for kind, colour, label in (("pos", POSITIVE, "positive"), ("neg", NEGATIVE, "negative")):
        curves = of[name][f"curve_tau_{kind}_mean"]
        row[0].plot(of[name]["curve_step"][0], curves.mean(0), color=colour, label=label)
        row[0].fill_between(of[name]["curve_step"][0], curves.min(0), curves.max(0), color=colour, alpha=0.15)
        values = of[name][f"{kind}_tau"].mean(0)
        edges = np.linspace(0, 2, len(values) + 1)
        row[1].stairs(values, edges, color=colour, fill=True, alpha=0.4)
        row[1].stairs(values, edges, color=colour, label=label)
    row[0].set(title=name, xlabel="step", ylabel="mean temperature of the batch")
    row[1].set(title="after training, test pairs", xlabel="temperature", ylabel="share of the pairs")
    row[0].legend(frameon=False)
    for each, colour in ((name, "#2166ac"), (OFFICIAL, "#b2182b")):
        if each in of:
            bounds = of[each]["curve_tau_pos_at_lower_bound"]
            row[2].plot(of[each]["curve_step"][0], bounds.mean(0), color=colour, label=each)
    row[2].set(title="at the lower bound", xlabel="step", ylabel="share of the positives", ylim=(-0.03, 1.03))
    row[2].legend(frameon=False)
    run_dir.figure(
        "temperatures",
        figure,
        "Left: mean temperature of positive and negative pairs while AMCL trains (range over seeds shaded)."
        " Middle: temperatures of test pairs afterwards. Right: share of the positives whose temperature has"
        " fallen to within 1 % of the range of its lower bound; the objective has no bound of its own.",
    )


def draw_controlled(run_dir: RunDir, controlled: dict[str, np.ndarray]) -> None:
    """Accuracy against the number of nuisances."""
    figure, row = plt.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained")
    for axis, measure in zip(row, ("linear", "knn"), strict=True):
        for shift, (method, colour, values) in enumerate(
            zip(METHODS, COLOURS, controlled[measure], strict=True)
        ):
            found = np.array([mean_interval(of) for of in values])
            error = np.abs(found[:, 1:3] - found[:, :1]).T
            axis.errorbar(
                np.arange(len(COUNTS)) + 0.06 * (shift - 1),
                100 * found[:, 0],
                yerr=100 * error if np.isfinite(error).all() else None,
                fmt="o-",
                color=colour,
                markersize=4,
                label=method,
            )
        axis.set_xticks(range(len(COUNTS)), [str(count) for count in COUNTS])
        axis.set(xlabel="kinds of nuisance", title=measure)
    row[0].set(ylabel="top-1 accuracy, %")
    figure.legend(*row[0].get_legend_handles_labels(), frameon=False, loc="outside right upper")
    run_dir.figure(
        "controlled_views",
        figure,
        "Controlled views: accuracy against the number of kinds of nuisance; mean over seeds with 95 %"
        " interval.",
    )
