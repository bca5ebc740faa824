"""The figures of the experiment."""

from collections.abc import Mapping
from typing import Literal

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.claims import mean_interval

MARKERS = "osD^vP"
"""One shape for each number of negatives."""
COLORS = plt.get_cmap("tab10").colors  # pyright: ignore[reportAttributeAccessIssue]
HIGHLIGHT, PLAIN = "#c0392b", "#7f8c8d"


def _half_width(values: np.ndarray) -> float:
    estimate, low, _, _ = mean_interval(values)
    return estimate - low if np.isfinite(low) else 0.0


def _style(axes: Axes, grid: Literal["both", "x"] = "both") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.92", axis=grid)
    axes.set_axisbelow(True)


def draw_scatter(
    panels: Mapping[str, tuple[list[str], list[int], np.ndarray, np.ndarray, float]],
) -> Figure:
    """ECI against nDCG@10, one panel a collection.

    Args:
        panels: by collection: sources, ks, ECI and nDCG@10 ``[sources, ks, seeds]``, nDCG@10 before training.

    Returns:
        The figure.
    """
    figure, row = plt.subplots(1, len(panels), figsize=(5.2 * len(panels) + 2.4, 4.8), squeeze=False)
    sources, ks = [], []
    for axes, (name, (sources, ks, eci, ndcg, zero_shot)) in zip(row[0], panels.items(), strict=True):
        _style(axes)
        axes.axhline(zero_shot, color="0.4", linestyle="--", linewidth=1)
        # A seed's folds and batches are the same for all sources: what they change for all is no noise.
        common = ndcg.mean(axis=(0, 1)) - ndcg.mean()
        for i, color in zip(range(len(sources)), COLORS, strict=False):
            for j, marker in zip(range(len(ks)), MARKERS, strict=False):
                axes.errorbar(
                    eci[i, j].mean(),
                    ndcg[i, j].mean(),
                    yerr=_half_width(ndcg[i, j] - common),
                    color=color,
                    marker=marker,
                    markersize=6.5,
                    markeredgecolor="white",
                    markeredgewidth=0.6,
                    elinewidth=1,
                    alpha=0.9,
                )
        axes.set_title(name)
        axes.set_xscale("log" if eci.mean(axis=-1).min() > 0 else "linear")
        axes.set_xlabel("ECI of the source (nats)")
        axes.set_ylabel("nDCG@10 on held-out queries")
    handles = [
        *(
            Line2D([], [], color=color, marker="o", linestyle="", label=source)
            for source, color in zip(sources, COLORS, strict=False)
        ),
        *(
            Line2D([], [], color="0.4", marker=marker, linestyle="", label=f"K = {k}")
            for k, marker in zip(ks, MARKERS, strict=False)
        ),
        Line2D([], [], color="0.4", linestyle="--", label="frozen encoder"),
    ]
    figure.tight_layout()
    figure.legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)
    return figure


def draw_correlations(panels: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Rank correlation of each predictor with nDCG@10, one panel a collection.

    Args:
        panels: by collection: Spearman correlation of each predictor, one number a seed.

    Returns:
        The figure.
    """
    first = next(iter(panels.values()))
    figure, row = plt.subplots(
        1, len(panels), figsize=(4.2 * len(panels) + 2.2, 0.33 * len(first) + 1.3), sharey=True, squeeze=False
    )
    order = sorted(first, key=lambda key: np.mean([panel[key].mean() for panel in panels.values()]))
    for axes, (name, panel) in zip(row[0], panels.items(), strict=True):
        _style(axes, "x")
        axes.axvline(0, color="0.4", linewidth=1)
        axes.barh(
            order,
            [panel[key].mean() for key in order],
            xerr=[_half_width(panel[key]) for key in order],
            color=[HIGHLIGHT if key == "ECI" else PLAIN for key in order],
            error_kw={"elinewidth": 1, "capsize": 2, "ecolor": "0.2"},
            height=0.7,
        )
        axes.set_xlim(-1, 1)
        axes.set_xticks([-1, -0.5, 0, 0.5, 1])
        axes.set_title(name)
        axes.set_xlabel("Spearman correlation with nDCG@10")
    figure.tight_layout()
    return figure


def draw_eci(panels: Mapping[str, tuple[list[str], list[int], np.ndarray]]) -> Figure:
    """ECI by source and number of negatives, one panel a collection.

    Args:
        panels: by collection: sources, ks, ECI ``[sources, ks, seeds]``.

    Returns:
        The figure.
    """
    sources = next(iter(panels.values()))[0]
    figure, row = plt.subplots(
        1,
        len(panels),
        figsize=(4.2 * len(panels) + 2.2, 0.5 * len(sources) + 1.4),
        sharey=True,
        squeeze=False,
    )
    for axes, (name, (sources, ks, eci)) in zip(row[0], panels.items(), strict=True):
        _style(axes, "x")
        height = 0.8 / len(ks)
        shades = plt.get_cmap("viridis")(np.linspace(0.15, 0.85, len(ks)))
        for j, (k, shade) in enumerate(zip(ks, shades, strict=True)):
            place = np.arange(len(sources)) + (j - (len(ks) - 1) / 2) * height
            axes.barh(place, eci[:, j].mean(axis=-1), height=height, color=shade, label=f"K = {k}")
        axes.set_yticks(range(len(sources)), sources)
        axes.set_title(name)
        axes.set_xlabel("ECI of the source (nats)")
    row[0, 0].invert_yaxis()  # shared: the first source on top
    row[0, -1].legend(frameon=False, fontsize=9)
    figure.tight_layout()
    return figure
