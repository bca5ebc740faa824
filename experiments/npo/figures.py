"""The figures of the NPO experiment: medians over seeds, with their 95 % intervals shaded."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, NullFormatter

from experiments.claims import median_interval
from experiments.npo.divergence import Setting
from experiments.run_dir import RunDir

STYLES: dict[str, tuple[str, str]] = {
    "GA": ("#b2182b", "--"),
    "GA+RT": ("#b2182b", "-"),
    "GA+KL": ("#b2182b", ":"),
    "IDK+RT": ("#666666", "-"),
    "DPO": ("#1b7837", "--"),
    "DPO+RT": ("#1b7837", "-"),
    "DPO+KL": ("#1b7837", ":"),
    "NPO": ("#2166ac", "--"),
    "NPO+RT": ("#2166ac", "-"),
    "NPO+KL": ("#2166ac", ":"),
    "KTO": ("#c2792b", "--"),
}
"""Colour for the forget loss; dashed without a retain term, solid with RT, dotted with KL."""

SHOWN = ("GA", "GA+RT", "IDK+RT", "DPO", "DPO+RT", "NPO", "NPO+RT")
"""The methods of the paper's figure; the table has all of them."""

POPULATIONS = {1.0: "populations apart (α = 1)", 0.0: "populations overlap (α = 0)"}


def draw_distances(
    run_dir: RunDir, steps: np.ndarray, curves: Mapping[float, Mapping[str, np.ndarray]]
) -> None:
    """Distance to the retrained model against steps, as in the paper's Figure 4."""
    figure, axes = _figure(len(curves), 2, height=3.6)
    for row, (alpha, by_name) in zip(axes, curves.items(), strict=True):
        for side, kind in enumerate(("forget", "retain")):
            axis = row[side]
            for name in SHOWN:
                if name in by_name:
                    _line(axis, steps, by_name[name][:, :, side], name, *STYLES[name])
            axis.set(
                yscale="log",
                xlim=(0, steps[-1]),
                xlabel="unlearning step",
                ylabel=f"{kind} distance (KL, nats)",
                title=f"{kind} data, {POPULATIONS[alpha]}",
            )
            _plain_ticks(axis.yaxis)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    run_dir.figure(
        "distances",
        figure,
        "Mean KL divergence from the retrained model to the model being unlearned, on fresh forget points"
        " (left) and fresh retain points (right), against gradient steps; lower is better. Median over"
        " seeds, 95 % interval shaded. Where the populations are apart, gradient ascent passes the retrained"
        " model and then destroys the rest; NPO+RT forgets as much and stays flat on the retain data.",
    )


def draw_frontier(run_dir: RunDir, curves: Mapping[str, np.ndarray]) -> None:
    """Retain distance against forget distance along the way, where the populations are apart."""
    figure, axis = plt.subplots(figsize=(6.4, 5.2), layout="constrained")
    for name in SHOWN:
        way = np.median(curves[name], axis=0)
        colour, dash = STYLES[name]
        axis.plot(way[:, 0], way[:, 1], dash, color=colour)
        axis.plot(*way[-1], "o", color=colour, markersize=6, zorder=3)
        label = axis.annotate(
            name, tuple(way[-1]), xytext=(0, 8), ha="center", textcoords="offset points", color=colour
        )
        label.set_path_effects([withStroke(linewidth=3, foreground="white")])
    start = np.median(curves[SHOWN[0]][:, 0], axis=0)
    axis.plot(*start, "k*", markersize=12, zorder=3)
    axis.annotate("start", tuple(start), xytext=(0, -16), ha="center", textcoords="offset points")
    axis.set(
        xscale="log",
        yscale="log",
        xlabel="forget distance (KL, nats)",
        ylabel="retain distance (KL, nats)",
        title=POPULATIONS[1.0],
    )
    axis.margins(0.1)
    _plain_ticks(axis.xaxis, axis.yaxis)
    run_dir.figure(
        "frontier",
        figure,
        "The way of each method through forget and retain distance, median over seeds, from the start (star)"
        " to the last step (dot); the retrained model lies beyond the lower left corner. NPO+RT ends nearest"
        " to it; gradient ascent and DPO turn away.",
    )


def draw_sweep(run_dir: RunDir, steps: np.ndarray, curves: Mapping[str, np.ndarray]) -> None:
    """NPO for every beta beside gradient ascent."""
    figure, axes = _figure(1, 2, height=3.8)
    colours = plt.get_cmap("viridis")(np.linspace(0.85, 0.0, max(len(curves) - 1, 1)))
    for side, kind in enumerate(("forget", "retain")):
        axis = axes[0][side]
        npo = [name for name in curves if name != "GA"]
        for name, colour in zip(npo, colours, strict=True):
            _line(axis, steps, curves[name][:, :, side], name, colour, "-")
        _line(axis, steps, curves["GA"][:, :, side], "GA", STYLES["GA"][0], "--")
        axis.set(
            yscale="log",
            xlim=(0, steps[-1]),
            xlabel="unlearning step",
            ylabel=f"{kind} distance (KL, nats)",
            title=f"{kind} data, {POPULATIONS[1.0]}",
        )
        _plain_ticks(axis.yaxis)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    run_dir.figure(
        "beta_sweep",
        figure,
        "NPO at one learning rate for several inverse temperatures, and gradient ascent at the same rate:"
        " the smaller β, the closer NPO is to gradient ascent (Proposition 1). Median over seeds, 95 %"
        " interval shaded.",
    )


def draw_divergence(run_dir: RunDir, ascent: np.ndarray, npo: np.ndarray, setting: Setting) -> None:
    """The two rates of Theorem 2."""
    steps = np.arange(1, ascent.shape[1] + 1)
    figure, axes = _figure(1, 2, height=3.8)
    left, right = axes[0]
    for name, distance in (("GA", ascent), ("NPO", npo)):
        _line(left, steps, distance, name, STYLES[name][0], "-")
    anchor = len(steps) // 2
    line = np.median(ascent[:, anchor]) * steps / steps[anchor]
    left.plot(steps, line, "k:", linewidth=1, label="slope 1: linear in t")
    left.set(
        xscale="log",
        yscale="log",
        xlabel="step t",
        ylabel="‖X(θₜ − θ₀)‖",
        title="distance from the start, both axes logarithmic",
    )
    left.legend(frameon=False)
    scaled = setting.beta * npo / np.sqrt(setting.n_forget)
    _line(right, steps, scaled, "NPO", STYLES["NPO"][0], "-")
    line = np.median(scaled[:, anchor]) + np.log(steps / steps[anchor])
    right.plot(steps[line > 0], line[line > 0], "k:", linewidth=1, label="slope 1: logarithmic in t")
    right.set(
        xscale="log", xlabel="step t", ylabel="β ‖X(θₜ − θ₀)‖ / √n", title="NPO alone, linear against log t"
    )
    right.legend(frameon=False)
    run_dir.figure(
        "divergence",
        figure,
        f"How fast unlearning leaves its start in logistic regression ({setting.n_forget} points,"
        f" {setting.dimension} dimensions): gradient ascent linearly, NPO logarithmically in the number of"
        " steps (Theorem 2). Median over seeds, 95 % interval shaded.",
    )


def _figure(rows: int, columns: int, height: float) -> tuple[Figure, np.ndarray]:
    return plt.subplots(
        rows, columns, figsize=(5.2 * columns, height * rows + 0.4), layout="constrained", squeeze=False
    )


def _line(
    axis: Axes, steps: np.ndarray, values: np.ndarray, name: str, colour: str | Sequence[float], dash: str
) -> None:
    """The median of ``values [seeds, steps]`` over the seeds, with its interval."""
    medians, lows, highs, _ = np.array([median_interval(column) for column in values.T]).T
    axis.plot(steps, medians, dash, color=colour, label=name)
    if len(values) > 1:
        axis.fill_between(steps, lows, highs, color=colour, alpha=0.12, linewidth=0)


def _plain_ticks(*axes: Axis) -> None:
    """Numbers such as 0.02, at 1, 2 and 5 of each decade where less than two decades are shown."""
    for axis in axes:
        low, high = axis.get_view_interval()
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())
