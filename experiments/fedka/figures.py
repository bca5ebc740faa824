"""The figures: means over the seeds with their 95 % intervals."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from experiments.claims import mean_interval
from experiments.fedka.results import PAPER_GAINS, Part, rows_of
from experiments.fedka.training import ALIGNED, F_DAN, F_DANN, FED_AVG, FED_KA, UNANIMOUS, Method

COLOURS = {
    FED_AVG: "tab:gray",
    F_DANN: "tab:orange",
    F_DAN: "tab:green",
    ALIGNED: "tab:blue",
    FED_KA: "tab:red",
    UNANIMOUS: "tab:purple",
}
"""The methods that are drawn."""


def drawn(part: Part) -> list[Method]:
    """The methods of a part that figures show, in the order of their colours."""
    return [method for method in COLOURS if method in part.found and method != UNANIMOUS]


def draw_rounds(parts: list[Part]) -> Figure:
    """The accuracy on every target by the round.

    Args:
        parts: a row of panels for each.

    Returns:
        The figure.
    """
    columns = max(len(part.targets) for part in parts)
    figure = Figure(figsize=(2.6 * columns, 2.5 * len(parts) + 0.5), layout="constrained")
    rows = figure.subplots(len(parts), columns, squeeze=False)
    for axes, part in zip(rows, parts, strict=True):
        for axis in axes[len(part.targets) :]:
            axis.set_axis_off()
        for place, (axis, target) in enumerate(zip(axes, part.targets, strict=False)):
            for method in drawn(part):
                accuracy = part.found[method]["average" if method.averaged else "accuracy"][place]
                _band(axis, accuracy, COLOURS[method])
            axis.set_title(f"to {target}", fontsize=10)
            axis.grid(alpha=0.3)
        axes[0].set_ylabel(f"{part.title}\naccuracy (%)")
    for axis in rows[-1][: len(parts[-1].targets)]:
        axis.set_xlabel("round")
    _legend(figure, [method for method in COLOURS if any(method in drawn(part) for part in parts)])
    return figure


def draw_effects(parts: list[Part]) -> Figure:
    """The group effect: by the round as a mean over the targets, and at the end on each target.

    Args:
        parts: a row of two panels for each.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(10.0, 2.7 * len(parts) + 0.5), layout="constrained")
    rows = figure.subplots(len(parts), 2, squeeze=False)
    for (curve, bars), part in zip(rows, parts, strict=True):
        methods = drawn(part)
        width = 0.8 / len(methods)
        for number, method in enumerate(methods):
            effect = part.found[method]["effect"]
            _band(curve, effect.mean(0), COLOURS[method])
            late = part.late(method, "effect")
            estimates, lows, highs, _ = np.array([mean_interval(values) for values in late]).T
            places = np.arange(len(late)) + (number - (len(methods) - 1) / 2) * width
            errors = [estimates - lows, highs - estimates] if late.shape[1] > 1 else None
            bars.bar(places, estimates, width, yerr=errors, color=COLOURS[method], capsize=2)
        curve.set(ylabel=f"{part.title}\ngroup effect (points)", xlabel="round", title="mean of the targets")
        bars.set_xticks(range(len(part.targets)), [f"to {target}" for target in part.targets])
        bars.set_title("last five rounds")
        for axis in (curve, bars):
            axis.axhline(0, color="black", linewidth=1)
            axis.grid(axis="y", alpha=0.3)
    _legend(figure, [method for method in COLOURS if any(method in drawn(part) for part in parts)])
    return figure


def draw_gains(parts: list[Part]) -> Figure:
    """The gain over FedAvg of every method, and the abstract's.

    Args:
        parts: a panel for each.

    Returns:
        The figure.
    """
    most = max(sum(len(rows_of(method)) for method in part.found) for part in parts)
    figure = Figure(figsize=(4.2 * len(parts) + 1.2, 1.4 + 0.3 * most), layout="constrained")
    axes = figure.subplots(1, len(parts), squeeze=False)[0]
    for axis, part in zip(axes, parts, strict=True):
        names = []
        for method in part.found:
            for row, accuracy in rows_of(method).items():
                if row == FED_AVG.name:
                    continue
                values = part.gain(method, accuracy).mean(0)
                estimate, low, high, _ = mean_interval(values)
                colour = COLOURS.get(method, "tab:brown")
                height = len(names)
                axis.plot(values, np.full(len(values), height), ".", color=colour, alpha=0.4)
                if len(values) > 1:
                    errors = [[estimate - low], [high - estimate]]
                    axis.errorbar(estimate, height, xerr=errors, fmt="o", color=colour, capsize=3)
                names.append(row)
        axis.axvline(0, color="black", linewidth=1)
        title = part.title
        if title in PAPER_GAINS:
            axis.axvline(PAPER_GAINS[title], color="black", linewidth=1, linestyle=":")
            title += f"\n(dotted: the paper's FedKA, +{PAPER_GAINS[title]:g})"
        axis.set_yticks(range(len(names)), names)
        axis.set_ylim(len(names) - 0.5, -0.5)
        axis.set(title=title, xlabel="gain over FedAvg (points)")
        axis.grid(axis="x", alpha=0.3)
    return figure


def draw_votes(parts: list[Part]) -> Figure:
    """What tuning on the votes gains, against the share of the votes that are right.

    Args:
        parts: a panel for each.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(4.6 * len(parts), 3.8), layout="constrained")
    axes = figure.subplots(1, len(parts), squeeze=False)[0]
    shown = [method for method in (FED_AVG, FED_KA, UNANIMOUS) if method in parts[0].found]
    for axis, part in zip(axes, parts, strict=True):
        for method in (each for each in shown if each in part.found):
            votes = part.late(method, "votes")
            gains = part.late(method, "accuracy") - part.late(method, "average")
            axis.plot(votes.ravel(), gains.ravel(), ".", color=COLOURS[method], alpha=0.3)
            axis.plot(votes.mean(1), gains.mean(1), "o", color=COLOURS[method])
        ceiling = axis.get_ylim()[1]
        votes = part.late(FED_KA, "votes").mean(1)
        for number, place in enumerate(np.argsort(votes)):
            axis.annotate(
                part.targets[place], (votes[place], ceiling), xytext=(0, 14 if number % 2 else 3),
                textcoords="offset points", ha="center", fontsize=8, annotation_clip=False,
            )  # fmt: skip
        axis.axhline(0, color="black", linewidth=1)
        axis.set_title(part.title, pad=26)
        axis.set(xlabel="votes that are right (%)", ylim=(None, ceiling))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("tuned minus averaged model (points)")
    names = {FED_AVG: "FedAvg + voting"}
    handles = [
        Line2D([], [], color=COLOURS[each], marker="o", linestyle="", label=names.get(each, each.name))
        for each in shown
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _band(axis: Axes, found: np.ndarray, colour: str) -> None:
    """``found [seeds, rounds]``."""
    estimates, lows, highs, _ = np.array([mean_interval(values) for values in found.T]).T
    rounds = np.arange(1, len(estimates) + 1)
    axis.plot(rounds, estimates, color=colour)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(found) > 1:
        axis.fill_between(rounds, lows, highs, color=colour, alpha=0.12, linewidth=0)


def _legend(figure: Figure, methods: list[Method]) -> None:
    handles = [Line2D([], [], color=COLOURS[method], label=method.name) for method in methods]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(methods), frameon=False)
