"""The paper's figures: means over seeds with their 95 % intervals."""

import textwrap
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from experiments.anonymity_fairness.claims import OFFICIAL
from experiments.anonymity_fairness.studies import Results, method_of, short_name
from experiments.claims import mean_interval
from experiments.run_dir import RunDir
from jaxneg.fairness import Setting

METRICS = (
    ("SPD", "|SPD|, gap of selection rates"),
    ("EOD", "|EOD|, gap of true positive rates"),
    ("ACC", "accuracy"),
    ("ASF", "ASF, similarity fairness"),
    ("ALF", "ALF, Lipschitz fairness"),
    ("NCF", "NCF, neighbourhood consistency"),
)
"""In the order of `OFFICIAL`."""
COLOURS = {"k-anonymity": "#2166ac", "l-diversity": "#c2792b", "t-closeness": "#b2182b"}
SHADES = ("#b2182b", "#e0644c", "#f4a582", "#7f3b08")
GREY = "#888888"


def values_of(found: dict[str, np.ndarray], attribute: str, metric: str) -> np.ndarray:
    """A metric of a configuration, one number a seed, in absolute value; seeds that were not reached are left
    out.

    Args:
        found: metrics by name.
        attribute: protected attribute, for group metrics.
        metric: its name.
    """
    values = np.abs(found.get(f"{attribute}/{metric}", found.get(metric, np.empty(0))))
    return values[np.isfinite(values)]


def interval_of(found: dict[str, np.ndarray], attribute: str, metric: str) -> tuple[float, float, float]:
    """Mean and 95 % interval of `values_of`; the interval of one seed is its value.

    Args:
        found: metrics by name.
        attribute: protected attribute.
        metric: its name.
    """
    values = values_of(found, attribute, metric)
    if not len(values):
        return np.nan, np.nan, np.nan
    mean, low, high, _ = mean_interval(values)
    return (mean, low, high) if np.isfinite(low) else (mean, mean, mean)


def _curve(
    axes: Axes,
    x: Sequence[float],
    rows: Sequence[tuple[float, float, float]],
    label: str,
    colour: str,
    marker: str,
) -> None:
    mean, low, high = np.array(rows).T
    axes.plot(x, mean, marker=marker, markersize=4, color=colour, label=label, linewidth=1.4)
    axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)


def _style(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.92")
    axes.set_axisbelow(True)


def draw_privacy(run_dir: RunDir, results: Results, table: str, attribute: str) -> None:
    """Every metric against k, and at their k the variants.

    Args:
        run_dir: takes the figure.
        results: metrics of every study.
        table: its name.
        attribute: protected attribute.
    """
    own = {
        key.setting: found
        for key, found in results.items()
        if key.study == "privacy"
        and key.table == table
        and key.classifier == "mlp"
        and key.setting.supp == 20
    }
    lines: dict[str, list[Setting]] = {}
    for setting in sorted(own):
        name = method_of(setting)
        extra = {
            "k-anonymity": "",
            "l-diversity": f", l = {setting.l}",
            "t-closeness": f", t = {setting.t:g}",
        }[name]
        lines.setdefault(name + extra, []).append(setting)
    figure, grid = plt.subplots(2, 3, figsize=(13, 7), layout="constrained")
    for place, (axes, (metric, title)) in enumerate(zip(grid.flat, METRICS, strict=True)):
        _style(axes)
        for number, (label, settings) in enumerate(lines.items()):
            rows = [interval_of(own[setting], attribute, metric) for setting in settings]
            ks = [setting.k for setting in settings]
            if label == "k-anonymity":
                _curve(axes, ks, rows, label, COLOURS[label], "o")
                continue
            shade = COLOURS["l-diversity"] if "l =" in label else SHADES[number % len(SHADES)]
            if len(ks) > 1:
                _curve(axes, ks, rows, label, shade, "s")
                continue
            mean, low, high = rows[0]
            axes.errorbar(
                # Side by side: they have the same k.
                ks[0] * 1.12 ** (number - len(lines) / 2),
                mean,
                yerr=[[mean - low], [high - mean]],
                fmt="s" if "l =" in label else "D",
                color=shade,
                label=label,
                markersize=5,
                capsize=2,
            )
        official = [
            (setting.k, numbers[place])
            for (name, of, setting), numbers in OFFICIAL.items()
            if (name, of) == (table, attribute) and method_of(setting) == "k-anonymity"
        ]
        if official:
            x, y = zip(*sorted(official), strict=True)
            axes.plot(
                x, y, "x--", color=GREY, linewidth=0.9, markersize=5, label="k-anonymity, paper (XGBoost)"
            )
        axes.set_xscale("log")
        ticks = [k for k in (1, 2, 5, 10, 25, 50, 100) if k <= max(own).k]
        axes.set_xticks(ticks, [str(k) for k in ticks])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("k")
        axes.set_title(title, fontsize=10)
        axes.set_ylim(bottom=0.5 if metric == "ACC" else 0)
        if metric == "ASF":
            axes.set_yscale("symlog", linthresh=0.1)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 6), frameon=False)
    figure.suptitle(f"{table}, {attribute}")
    run_dir.figure(
        f"privacy_{table}_{attribute}",
        figure,
        f"{table}, protected attribute {attribute}: fairness and accuracy of an MLP against k, mean over"
        " seeds, 95 % interval; k = 1 is the table as it is. Group gaps (first two) should be small, and"
        " so should ASF, ALF and NCF. Crosses are the official results for k-anonymity with XGBoost"
        + (", on another version of Adult." if table.startswith("adult") else "."),
    )


def draw_lines(run_dir: RunDir, results: Results, study: str, table: str, attribute: str, label: str) -> None:
    """|SPD|, accuracy and NCF against what a study varies: suppression, threshold or fraction.

    Args:
        run_dir: takes the figure.
        results: metrics of every study.
        study: "suppression", "threshold" or "fraction".
        table: its name.
        attribute: protected attribute.
        label: of the horizontal axis.
    """
    lines: dict[str, dict[float, dict[str, np.ndarray]]] = {}
    for key, found in results.items():
        if key.table != table or key.classifier != "mlp":
            continue
        if study == "suppression" and key.study == "privacy":
            lines.setdefault(short_name(key.setting), {})[key.setting.supp] = found
        elif key.study == study:
            lines.setdefault(short_name(key.setting), {})[float(key.variant)] = found
        elif study == "fraction" and key.study == "privacy" and key.setting.supp == 20:
            lines.setdefault(short_name(key.setting), {})[1.0] = found
    lines = {name: points for name, points in lines.items() if len(points) > 1}
    if not lines:
        return
    figure, row = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    colours = ("#2166ac", "#c2792b", "#b2182b", "#1b7837", "#762a83")
    for axes, metric in zip(row, ("SPD", "ACC", "NCF"), strict=True):
        _style(axes)
        for colour, (name, points) in zip(colours, sorted(lines.items()), strict=False):
            x = sorted(points)
            shown = "no anonymisation" if name == "k=1" else name
            _curve(axes, x, [interval_of(points[at], attribute, metric) for at in x], shown, colour, "o")
        axes.set_xlabel(label)
        axes.set_title(dict(METRICS)[metric], fontsize=10)
        axes.set_ylim(bottom=0.5 if metric == "ACC" else 0)
    row[0].legend(frameon=False, fontsize=8)
    run_dir.figure(
        study,
        figure,
        f"{table}, {attribute}: gap, accuracy and consistency of an MLP against the {label}, mean over"
        " seeds, 95 % interval.",
    )


def draw_bars(run_dir: RunDir, results: Results, study: str, table: str, attribute: str) -> None:
    """|SPD|, accuracy and NCF of every classifier, or of every baseline.

    Args:
        run_dir: takes the figure.
        results: metrics of every study.
        study: "classifier" or "baseline".
        table: its name.
        attribute: protected attribute.
    """
    groups: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    settings = {key.setting for key in results if key.study == study and key.table == table}
    for key, found in results.items():
        if key.table != table or key.setting not in settings | (
            {Setting()} if study == "baseline" else set()
        ):
            continue
        if study == "classifier" and key.study in ("classifier", "privacy"):
            groups.setdefault(key.classifier, {})[short_name(key.setting)] = found
        elif study == "baseline" and key.study == "baseline":
            groups.setdefault(key.variant, {})[short_name(key.setting)] = found
        elif study == "baseline" and key.study == "privacy" and key.classifier == "mlp":
            name = "none" if key.setting == Setting() else "greedy, as the paper"
            groups.setdefault(name, {})[short_name(key.setting)] = found
    if not settings:
        return
    names = list(dict.fromkeys(name for of in groups.values() for name in of))
    shades = dict(zip(names, plt.get_cmap("viridis")(np.linspace(0.1, 0.85, len(names))), strict=True))
    width = 0.8 / max(len(of) for of in groups.values())
    figure, row = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    for axes, metric in zip(row, ("SPD", "ACC", "NCF"), strict=True):
        _style(axes)
        for place, of in enumerate(groups.values()):
            for number, (name, found) in enumerate(of.items()):
                mean, low, high = interval_of(found, attribute, metric)
                axes.bar(
                    place + (number - (len(of) - 1) / 2) * width,
                    mean,
                    width,
                    yerr=[[mean - low], [high - mean]],
                    color=shades[name],
                    label="no anonymisation" if name == "k=1" else name,
                    error_kw={"elinewidth": 1, "capsize": 2},
                )
        labels = [textwrap.fill(name, 9, break_long_words=False) for name in groups]
        axes.set_xticks(range(len(groups)), labels, fontsize=7)
        axes.set_title(dict(METRICS)[metric], fontsize=10)
        if metric == "ACC":
            axes.set_ylim(bottom=0.5)
    # Each name once, of the first bar that has it.
    labels, handles = zip(
        *dict(zip(*row[0].get_legend_handles_labels()[::-1], strict=True)).items(), strict=True
    )
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    what = (
        "classifiers, on the same released tables"
        if study == "classifier"
        else "baselines at equal k, by an MLP"
    )
    run_dir.figure(study, figure, f"{table}, {attribute}: {what}; mean over seeds, 95 % interval.")
