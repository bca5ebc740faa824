"""The figures of the negative-bias experiment."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np

from experiments.neg_bias.claims import Seed, format_metrics, repair_metrics
from experiments.neg_bias.evaluation import FORMATS
from experiments.neg_bias.world import CORRECT, GROUPS, INCORRECT, INSUFFICIENT, KNOWN
from experiments.run_dir import RunDir

COLOURS = ("#2166ac", "#5aae61", "#b2182b", "#e08214", "#666666")


def draw_bias(run_dir: RunDir, seeds: Sequence[Seed]) -> None:
    """The bias of every format, by what the model knows; a dot for each seed."""
    found = [format_metrics(seed) for seed in seeds]
    figure, axis = plt.subplots(figsize=(9, 4), layout="constrained")
    for group, (name, colour) in enumerate(zip(GROUPS, COLOURS, strict=True)):
        place = np.arange(len(FORMATS)) + 0.16 * (group - 2)
        bias = np.array([[metrics[fmt][group]["negative_bias"] for fmt in FORMATS] for metrics in found])
        axis.bar(place, np.median(bias, 0), 0.15, color=colour, alpha=0.6, label=name)
        axis.plot(np.tile(place, (len(seeds), 1)), bias, ".", color=colour, markersize=5)
    axis.axhline(0, color="k", linewidth=0.5)
    axis.set(xticks=range(len(FORMATS)), ylabel="rate of false No less rate of false Yes")
    axis.set_xticklabels(FORMATS)
    figure.legend(
        loc="outside lower center",
        frameon=False,
        ncols=len(GROUPS),
        title="what the model was taught of the facts",
    )
    run_dir.figure(
        "bias",
        figure,
        "Negative bias by format and knowledge, median over seeds (bars) and every seed (dots); 0: none, 1"
        " says No to everything. Yes and No were equally often right in training.",
    )


def draw_heads(run_dir: RunDir, seeds: Sequence[Seed]) -> None:
    """The score of every head, and what its ablation does."""
    figure, row = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    first = seeds[0]["scores"]
    limit = np.abs(first).max()
    image = row[0].imshow(first, cmap="RdBu_r", vmin=-limit, vmax=limit)
    row[0].set(xlabel="head", ylabel="layer", title="negative attention score, first world")
    row[0].set(xticks=range(first.shape[1]), yticks=range(first.shape[0]))
    figure.colorbar(image, ax=row[0], shrink=0.7)
    for seed in seeds:
        row[1].plot(seed["scores"].ravel(), seed["effects"].ravel(), "o", markersize=4, alpha=0.7)
    row[1].axhline(0, color="k", linewidth=0.5)
    row[1].axvline(0, color="k", linewidth=0.5)
    row[1].set(
        xlabel="negative attention score of the head",
        ylabel="change of logit(No) - logit(Yes)",
        title="ablation of one head",
    )
    run_dir.figure(
        "heads",
        figure,
        "Left: the mean score of every head on questions about known facts; positive heads look more at No."
        " Right: the change of logit(No) - logit(Yes) when a head's attention to both words is made equal, a"
        " dot for each head, a colour for each world. A head that spoke for No would lie below zero.",
    )


def draw_remedies(run_dir: RunDir, seeds: Sequence[Seed]) -> None:
    """The bias that each remedy leaves, and what it costs."""
    methods = [str(name) for name in seeds[0]["remedy_names"]]
    found = {name: [repair_metrics(seed, name) for seed in seeds] for name in methods}
    figure, row = plt.subplots(1, 2, figsize=(11, 3.8), layout="constrained", sharey=True)
    panels = (
        ("negative_bias", (CORRECT, INCORRECT, INSUFFICIENT), "negative bias"),
        ("accuracy_all", (KNOWN, CORRECT), "share of right answers"),
    )
    for axis, (metric, groups, title) in zip(row, panels, strict=True):
        for place, group in enumerate(groups):
            height = np.arange(len(methods)) + 0.22 * (place - (len(groups) - 1) / 2)
            values = np.array([[metrics[group][metric] for metrics in found[name]] for name in methods])
            axis.plot(np.median(values, 1), height, "D", color=COLOURS[group], label=list(GROUPS)[group])
            axis.plot(values, height, ".", color=COLOURS[group], alpha=0.4, markersize=4)
        axis.set(title=title, yticks=range(len(methods)))
        axis.set_yticklabels(methods)
        axis.grid(axis="y", linewidth=0.3)
        axis.legend(frameon=False)
    row[0].axvline(0, color="k", linewidth=0.5)
    row[0].invert_yaxis()
    run_dir.figure(
        "remedies",
        figure,
        "What each remedy does: the bias that is left (left; 0 is none) and the share of right answers about"
        " what the model knows (right). Diamonds: medians over seeds; dots: seeds.",
    )
