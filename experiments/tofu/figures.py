"""The figures of the TOFU experiment: medians over seeds, with their 95 % intervals shaded."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

from experiments.claims import median_interval
from experiments.run_dir import RunDir
from experiments.tofu.metrics import Scores

STYLES: dict[str, tuple[str, str]] = {
    "GA": ("#b2182b", "--"),
    "GA+RT": ("#b2182b", "-"),
    "GA+KL": ("#b2182b", ":"),
    "NPO": ("#2166ac", "--"),
    "NPO+RT": ("#2166ac", "-"),
    "NPO+RT, β = 0.03": ("#67a9cf", "-"),
    "NPO+KL": ("#2166ac", ":"),
    "SimNPO+RT": ("#762a83", "-"),
    "IDK+RT": ("#666666", "-"),
    "DPO+RT": ("#1b7837", "-"),
    "KTO+RT": ("#c2792b", "-"),
}
"""Colour for the forget loss; dashed without a retain term, solid with RT, dotted with KL."""

RATIOS_SHOWN = ("GA+RT", "NPO+RT", "SimNPO+RT", "IDK+RT")

Course = list[list[Scores]]
"""Of a method, for each seed its scores at each evaluation, the start among them."""


def draw_way(run_dir: RunDir, courses: Mapping[str, Course], retrained: list[Scores]) -> None:
    """The whole way of each method through forget quality and utility."""
    figure, axis = plt.subplots(figsize=(7.6, 5.4), layout="constrained")
    for name, course in courses.items():
        way = _medians(course)
        colour, dash = STYLES[name]
        axis.plot(way["utility"], way["log_quality"], dash, color=colour, marker=".", markersize=5)
        end = way["utility"][-1], way["log_quality"][-1]
        axis.plot(*end, "o", color=colour, markersize=7, zorder=3)
        label = axis.annotate(
            name, end, xytext=(0, -14), ha="center", textcoords="offset points", color=colour
        )
        label.set_path_effects([withStroke(linewidth=3, foreground="white")])
    start = _medians(next(iter(courses.values())))
    axis.plot(start["utility"][0], start["log_quality"][0], "k*", markersize=13, zorder=3)
    axis.annotate(
        "before", (start["utility"][0], start["log_quality"][0]), (0, 9), textcoords="offset points"
    )
    aim = np.median([[scores.utility, scores.log_quality] for scores in retrained], axis=0)
    axis.plot(*aim, "k^", markersize=10, zorder=3)
    axis.annotate("retrained", tuple(aim), (8, -4), textcoords="offset points")
    axis.axhline(np.log10(0.05), color="k", linewidth=0.8, linestyle=":")
    axis.set(
        xlabel="small utility: probability and truth ratio on the retain set",
        ylabel="log₁₀ forget quality",
    )
    axis.margins(0.08)
    run_dir.figure(
        "way",
        figure,
        "Forget quality (p of the Kolmogorov-Smirnov test against the retrained model; above the dotted line,"
        " 0.05, the two cannot be told apart) against what is left of the retain set, along the way of each"
        " method from the start (star) over every evaluation (points) to the last step (circle). Median over"
        " seeds. Upper right is better; the triangle is the retrained model.",
    )


def draw_courses(run_dir: RunDir, steps: np.ndarray, courses: Mapping[str, Course]) -> None:
    """Every score against steps."""
    figure, axes = plt.subplots(2, 2, figsize=(10.4, 7.6), layout="constrained")
    for axis, field, label in zip(
        axes.flat,
        ("log_quality", "utility", "forget_nll", "probability"),
        (
            "log₁₀ forget quality",
            "small utility",
            "forget set: nats per token",
            "retain set: probability of answers",
        ),
        strict=True,
    ):
        for name, course in courses.items():
            values = np.array([[getattr(scores, field) for scores in seed] for seed in course])
            _line(axis, steps, values, name)
        axis.set(xlabel="unlearning step", ylabel=label, xlim=(0, steps[-1]))
    axes[0, 0].axhline(np.log10(0.05), color="k", linewidth=0.8, linestyle=":")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    run_dir.figure(
        "courses",
        figure,
        "Forget quality, what is left of the retain set, and how unlikely the forgotten answers have become,"
        " against steps of unlearning. Median over seeds, 95 % interval shaded (the range, where the seeds"
        " are too few). Forget quality rises as a model passes the retrained one and falls again when it goes"
        " too far.",
    )


def draw_ratios(run_dir: RunDir, ratios: Mapping[str, np.ndarray]) -> None:
    """The distributions that the test of forget quality compares."""
    figure, axis = plt.subplots(figsize=(7.6, 4.6), layout="constrained")
    plain = {"before": ("k", ":"), "retrained": ("k", "-")}
    for name, values in ratios.items():
        ordered = np.sort(np.log10(np.maximum(values.ravel(), 1e-12)))
        share = np.arange(1, ordered.size + 1) / ordered.size
        colour, dash = (plain | STYLES)[name]
        axis.step(ordered, share, where="post", color=colour, linestyle=dash, label=name)
    axis.set(
        xlabel="log₁₀ truth ratio (wrong answers over the right one)",
        ylabel="share of the forget set's questions",
        xlim=(-2.5, 4),
    )
    axis.legend(frameon=False)
    run_dir.figure(
        "truth_ratios",
        figure,
        "Cumulative distribution of the truth ratio over the forget set's questions of all seeds, before"
        " unlearning, after the last step of some methods, and of the retrained model. Forget quality asks"
        " whether a curve could be the retrained model's.",
    )


def _medians(course: Course) -> dict[str, np.ndarray]:
    medians = np.median(np.array(course), axis=0).T
    return dict(zip(Scores._fields, medians, strict=True))


def _line(axis: Axes, steps: np.ndarray, values: np.ndarray, name: str) -> None:
    medians, lows, highs, _ = np.array([median_interval(column) for column in values.T]).T
    colour, dash = STYLES[name]
    axis.plot(steps, medians, dash, color=colour, label=name)
    if len(values) > 1:
        axis.fill_between(steps, lows, highs, color=colour, alpha=0.1, linewidth=0)
