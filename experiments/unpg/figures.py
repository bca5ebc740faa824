"""The figures of the UNPG experiment: means over seeds, with their 95 % intervals."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np

from experiments.claims import mean_interval
from experiments.run_dir import RunDir
from experiments.unpg.claims import NOISY, NOISY_ALL, NOISY_UNPG, SOFTMAX, SOFTMAX_ALL, SOFTMAX_UNPG
from experiments.unpg.training import FARS, Scores, Setting

SAME, OTHER = "#2166ac", "#b2182b"
COLOURS = {"off": "#666666", "r = 1.5": "#2166ac", "no filter": "#e08214"}


def draw_distributions(run_dir: RunDir, name: str, title: str, scores: Mapping[Setting, Scores]) -> None:
    """Histograms of the similarities of test pairs, without UNPG and with it."""
    shown = (SOFTMAX, SOFTMAX_UNPG)
    figure, row = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained", sharex=True, sharey=True)
    for axis, setting in zip(row, shown, strict=True):
        found = scores[setting]
        edges = np.linspace(-1, 1, found.histogram_sp.shape[1] + 1)
        for values, colour, label in (
            (found.histogram_sp, SAME, "one identity"),
            (found.histogram_sn, OTHER, "two identities"),
        ):
            axis.stairs(values.mean(0), edges, fill=True, color=colour, alpha=0.45, label=label)
        overlap, low, high, _ = mean_interval(found.overlap)
        interval = f" [{low:.3f}, {high:.3f}]" if np.isfinite(low) else ""
        pairs = "without UNPG" if setting.r is None else f"with UNPG, {setting.pairs}"
        axis.set(xlabel="cosine", title=f"{pairs}: overlap {overlap:.3f}{interval}")
    row[0].set(ylabel="share of the pairs")
    row[0].legend(frameon=False)
    figure.suptitle(title)
    run_dir.figure(
        name,
        figure,
        f"{title}: cosines of test pairs of one identity and of two, mean over seeds. In a"
        " well-discriminative feature space they would not overlap.",
    )


def draw_filter(run_dir: RunDir, scores: Mapping[Setting, Scores]) -> None:
    """TAR with the pairs left out, filtered and not filtered, with clean labels and with wrong ones."""
    groups = {
        "clean labels": (SOFTMAX, SOFTMAX_UNPG, SOFTMAX_ALL),
        "15 % of the labels redrawn": (NOISY, NOISY_UNPG, NOISY_ALL),
    }
    figure, row = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained", sharey=True)
    for axis, far in zip(row, (0, 1), strict=True):
        for group, settings in enumerate(groups.values()):
            for place, setting in enumerate(settings):
                values = scores[setting].tar[:, far]
                mean, low, high, _ = mean_interval(values)
                at = group + 0.26 * (place - 1)
                axis.bar(at, mean, 0.24, color=COLOURS[setting.pairs], label=f"UNPG {setting.pairs}")
                if np.isfinite(low):
                    axis.errorbar(at, mean, [[mean - low], [high - mean]], color="k", capsize=3, linewidth=1)
                spread = np.linspace(-0.06, 0.06, len(values))
                axis.plot(at + spread, values, ".", color="k", alpha=0.35, markersize=4)
        axis.set(title=f"FAR {FARS[far]:g}", xticks=range(len(groups)))
        axis.set_xticklabels(list(groups))
    row[0].set(ylabel="TAR, %")
    handles, labels = row[0].get_legend_handles_labels()
    figure.legend(handles[:3], labels[:3], loc="outside lower center", ncols=3, frameon=False)
    run_dir.figure(
        "filter",
        figure,
        "True accept rate on unseen people with a normalised softmax: mean over seeds, 95 % interval, a point"
        " for each seed. Right: too few pairs of two people for small differences.",
    )
