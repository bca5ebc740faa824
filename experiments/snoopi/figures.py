"""The figures: means over seeds, with each seed or the 95 % interval beside them."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from experiments.claims import mean_interval
from experiments.run_dir import RunDir
from experiments.snoopi.claims import TITLES, Courses, Findings, value
from experiments.snoopi.distillation import EVALUATIONS, MEAN, RANDOM, STRONG, SWIFT, Arm
from experiments.snoopi.negatives import (
    ALPHAS,
    CFG,
    NAG_NAME,
    NAMES,
    NASA,
    NONE,
    PAIRS,
    SCALES,
    SETTINGS,
    SHOWN,
)

COLOURS: Mapping[Arm, str] = {RANDOM: "#2166ac", SWIFT: "#b2182b", STRONG: "#e08214", MEAN: "#5aae61"}
OTHER = "#999999"
DIGITS, ROWS = 10, 4
FIELDS = {
    "excluded": "share without the unwanted digit",
    "in_group": "share in the group",
    "distance": "distance to the nearest real digit",
}


def draw_courses(run_dir: RunDir, courses: Courses) -> None:
    """Fréchet distance over the training, for every backbone."""
    figure, row = plt.subplots(1, len(TITLES), figsize=(14, 4.2), layout="constrained", sharey=True)
    share = np.arange(1, EVALUATIONS + 1) / EVALUATIONS
    for axis, (name, title) in zip(row, TITLES.items(), strict=True):
        for (backbone, arm), course in courses.items():
            if backbone == name:
                colour, style = COLOURS.get(arm, OTHER), "o-" if arm in COLOURS else ":"
                axis.plot(
                    share, course["frechet"].mean(axis=0), style, color=colour, label=arm.name, markersize=4
                )
                axis.plot(share, course["frechet"].T, color=colour, alpha=0.3, linewidth=0.8)
        axis.set(xlabel="share of the training", title=title, yscale="log")
        axis.grid(alpha=0.3)
        axis.legend(frameon=False, fontsize=8)
    row[0].set(ylabel="Fréchet distance of one step")
    run_dir.figure(
        "stability",
        figure,
        "Fréchet distance of digits made in one step while the student learns: mean over seeds, and each seed"
        " as a thin line. The claims compare the means and the spreads of the last four points. Green is the"
        " control: a fixed guidance scale at the mean of the random ones.",
    )


def draw_digits(run_dir: RunDir, courses: Courses) -> None:
    """Digits of the first seed's students, a column of panels for each backbone."""
    arms = [RANDOM, SWIFT]
    figure, grid = plt.subplots(
        len(arms), len(TITLES), figsize=(4 * len(TITLES), 1.9 * len(arms)), layout="constrained"
    )
    for row, arm in zip(grid, arms, strict=True):
        for axis, (name, title) in zip(row, TITLES.items(), strict=True):
            _images(axis, courses[name, arm]["samples"][: ROWS * DIGITS], DIGITS)
            axis.set_title(f"{title}, {arm.name}", fontsize=9)
    run_dir.figure(
        "digits",
        figure,
        "Digits 0 to 9 in one step, the first seed's students, the same noise: a random guidance scale in the"
        " loss above, SwiftBrush's fixed one below.",
    )


def draw_sweep(run_dir: RunDir, negatives: Mapping[str, Findings]) -> None:
    """What NASA does at every strength, beside guidance of the output and NAG."""
    figure, grid = plt.subplots(
        len(negatives), 3, figsize=(13, 3.6 * len(negatives)), layout="constrained", squeeze=False
    )
    for row, (name, found) in zip(grid, negatives.items(), strict=True):
        for axis, (field, text) in zip(row, FIELDS.items(), strict=True):
            strengths = [value(found, field, each) for each in (NONE, *NASA.values())]
            _line(axis, [0.0, *ALPHAS], strengths, "NASA", "o-", "#2166ac")
            for setting, colour in (
                *((CFG[scale], shade) for scale, shade in zip(SCALES, ("#f4a582", "#b2182b"), strict=True)),
                (NAG_NAME, "#5aae61"),
            ):
                axis.axhline(value(found, field, setting).mean(), color=colour, linestyle="--", label=setting)
            axis.set(xlabel="α", title=f"{name}: {text}")
            axis.grid(alpha=0.3)
        row[0].legend(frameon=False, fontsize=8)
    run_dir.figure(
        "nasa_sweep",
        figure,
        "Negative texts by the strength of NASA, mean over seeds, 95 % interval shaded; dashed: guidance of"
        " the output and NAG.",
    )


def draw_negatives(run_dir: RunDir, negatives: Mapping[str, Findings]) -> None:
    """Images of the first seed, for some settings."""
    shown = (NONE, NASA[0.2], NASA[0.5], NASA[1.0], CFG[2.5], NAG_NAME)
    figure, grid = plt.subplots(
        len(shown), 2, figsize=(13, 0.75 * len(shown) + 0.4), layout="constrained", squeeze=False
    )
    for column, name in zip(grid.T, ("one-step", "four-steps"), strict=True):
        for axis, setting in zip(column, shown, strict=True):
            _images(axis, negatives[name]["samples"][0, SETTINGS.index(setting)], SHOWN * len(PAIRS) // 2)
        column[0].set_title(name, fontsize=9)
    for axis, setting in zip(grid[:, 0], shown, strict=True):
        axis.set_ylabel(setting, rotation=0, ha="right", va="center", fontsize=8)
    pairs = ", ".join(f"{NAMES[group]} without {digit}" for group, digit in PAIRS)
    run_dir.figure(
        "negatives",
        figure,
        f"Four images of the first seed for each pair, from the same noise in every row: {pairs}.",
    )


def _images(axis: Axes, x: np.ndarray, columns: int) -> None:
    """Images in rows of so many."""
    images = np.pad(x.reshape(-1, columns, 8, 8), ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-1)
    axis.imshow(images.swapaxes(1, 2).reshape(-1, 10 * columns).clip(-1, 1), cmap="gray", vmin=-1, vmax=1)
    axis.set(xticks=[], yticks=[])


def _line(
    axis: Axes,
    at: Sequence[float] | np.ndarray,
    values: Sequence[np.ndarray],
    label: str,
    style: str,
    colour: str,
) -> None:
    means, lows, highs, _ = np.array([mean_interval(each) for each in values]).T
    axis.plot(at, means, style, color=colour, label=label, markersize=4)
    if len(values[0]) > 2:
        axis.fill_between(at, np.maximum(lows, means / 100), highs, color=colour, alpha=0.12, linewidth=0)
