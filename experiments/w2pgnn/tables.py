"""The tables of a run: correlations, selections beside the paper's, losses and accuracies of every
selection.
"""

from collections.abc import Sequence

import numpy as np

from experiments.claims import mean_interval
from experiments.run_dir import Table
from experiments.w2pgnn.claims import Study, negative_share
from experiments.w2pgnn.correlation import fisher_interval, split_half
from experiments.w2pgnn.scores import (
    BASELINES,
    BEST,
    BETWEENNESS,
    CLUSTERING,
    EGI,
    INTEGR,
    SPECTRUM,
    STATISTICS,
    TOPO,
    TV_H,
    TV_SMALL,
    UNIFORM,
    ZETA,
)

PAPER_SELECTION: dict[str, tuple[str, str, str, str]] = {
    "all data sets": ("74.86", "62.67", "60.58", "66.04"),
    STATISTICS: ("71.52", "62.36", "62.99", "65.62"),
    CLUSTERING: ("71.52", "61.00", "60.35", "64.29"),
    SPECTRUM: ("70.21", "65.65", "63.02", "66.29"),
    BETWEENNESS: ("71.52", "67.41", "60.35", "66.43"),
    EGI: ("68.48", "65.65", "65.21", "66.45"),
    ZETA: ("73.54", "65.46", "64.21", "67.74"),
}
"""ROC-AUC in % on BACE, BBBP and ClinTox, and their mean; a public leaderboard's extract of the paper's
table."""

PROTOTYPE_TRANSFER = {ZETA: "0.67", UNIFORM: "0.57", TV_SMALL: "0.47", TV_H: "0.30", "density": "0.34"}
"""Mean zero-shot correlations of another program, one draw of the graphs and three seeds."""

ORDER = (ZETA, UNIFORM, INTEGR, TOPO, BEST, TV_SMALL, TV_H, *BASELINES)


def interval(values: np.ndarray, digits: int = 2) -> str:
    """Mean and 95 % interval, as tables show them.

    Args:
        values: one a repetition.
        digits: after the point.

    Returns:
        The text; without an interval for one repetition.
    """
    estimate, low, high, _ = mean_interval(values)
    if not np.isfinite(low):
        return f"{estimate:.{digits}f}"
    return f"{estimate:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def names_of(study: Study) -> list[str]:
    """The scores of a study in the tables' order."""
    return [name for name in ORDER if name in study.scores]


def transfer_table(zero_shot: Study, tuned: Study) -> Table:
    """Part A: correlations of every score, over the worlds.

    Args:
        zero_shot: before fine-tuning.
        tuned: after it.

    Returns:
        The table.
    """
    rows: list[list[str | float | int]] = []
    for name in names_of(zero_shot):
        first, second = zero_shot.correlations(name), tuned.correlations(name)
        per_target = [f"{r:.2f}" for r in first.mean(0)]
        prototype = PROTOTYPE_TRANSFER.get(name, "n/a")
        rows.append([name, interval(first.mean(1)), *per_target, interval(second.mean(1)), prototype])
    pairs, worlds = len(zero_shot.selections), len(zero_shot.performance)
    return Table(
        f"Controlled transfer: Pearson r over {pairs} pairs of minus the cross-entropy with each score "
        f"(mean and 95 % interval over {worlds} worlds)",
        ["score", "zero-shot r", *zero_shot.targets, "fine-tuned r", "prototype, zero-shot"],
        rows,
    )


def real_table(study: Study) -> Table:
    """Part B: correlations of every score with the accuracies' mean over seeds.

    Args:
        study: scores and accuracies.

    Returns:
        The table; intervals are Fisher's, over the selections.
    """
    mean, count = study.performance.mean(0), len(study.selections)
    rows: list[list[str | float | int]] = []
    for name in names_of(study):
        of_targets = study.correlation_of_mean(name, mean)
        cells = []
        for r in of_targets:
            low, high = fisher_interval(float(r), count)
            cells.append(f"{r:.2f} [{low:.2f}, {high:.2f}]")
        rows.append([name, *cells, f"{of_targets.mean():.2f}", interval(study.correlations(name).mean(1))])
    reliability = split_half(study.of_selections)
    rows.append(
        [
            "split-half reliability of the accuracies",
            *[f"{r:.2f}" for r in reliability],
            f"{reliability.mean():.2f}",
            "",
        ]
    )
    return Table(
        f"Real networks: Pearson r over {count} selections of accuracy with each score (Fisher's 95 % "
        "interval)",
        ["score", *study.targets, "mean", "mean of each seed alone [95 %]"],
        rows,
    )


def selection_table(study: Study, title: str, scale: float, digits: int) -> Table:
    """What each score's first choice gives, beside the paper's selections.

    Args:
        study: scores and performance.
        title: of the table.
        scale: of the performance.
        digits: after the point.

    Returns:
        The table; what either lacks is n/a.
    """
    rows: list[list[str | float | int]] = []

    def row(name: str, performance: np.ndarray) -> None:
        paper = PAPER_SELECTION.get(name, ("n/a",) * 4)
        ours = [f"{value:.{digits}f}" for value in scale * performance.mean(0)]
        rows.append([name, *paper, *ours, interval(scale * performance.mean(1), digits)])

    row("no pre-training", study.scratch)
    row("all data sets", study.all_sets)
    for name in names_of(study):
        row(name, study.chosen(name))
    best = study.of_selections.mean(0).argmax(0)
    row("best selection, with hindsight", study.of_selections[:, best, np.arange(len(best))])
    columns = ["selection by", "BACE, paper", "BBBP, paper", "ClinTox, paper", "mean, paper"]
    return Table(title, [*columns, *study.targets, "mean [95 %]"], rows)


def choices_table(study: Study, alpha: np.ndarray, title: str, names: Sequence[str]) -> Table:
    """The selection of highest zeta for each downstream set, with the weights of its best mixture.

    Args:
        study: scores and performance.
        alpha: ``[selections, targets, sets]``.
        title: of the table.
        names: of the sets.

    Returns:
        The table, with the selection that was best in hindsight beside.
    """

    def label(selection: np.ndarray, weights: np.ndarray | None = None) -> str:
        held = np.flatnonzero(selection).tolist()
        texts = [names[s] if weights is None else f"{weights[s]:.2f} {names[s]}" for s in held]
        return " + ".join(texts)

    zeta, best = study.scores[ZETA].mean(0), study.of_selections.mean(0).argmax(0)
    rows: list[list[str | float | int]] = []
    for t, target in enumerate(study.targets):
        first = int(zeta[:, t].argmax())
        mixture = label(study.selections[first], alpha[first, t])
        rows.append([target, mixture, f"{zeta[first, t]:.3f}", label(study.selections[best[t]])])
    return Table(title, ["downstream", "highest ζ, with weights", "ζ", "best in hindsight"], rows)


def results_table(study: Study, title: str, scale: float, digits: int, names: Sequence[str]) -> Table:
    """Every selection's zeta and performance.

    Args:
        study: scores and performance.
        title: of the table.
        scale: of the performance.
        digits: after the point.
        names: of the sets, short.

    Returns:
        The table: zeta, then the performance, for every downstream set.
    """
    mean, zeta = scale * study.performance.mean(0), study.scores[ZETA].mean(0)
    rows: list[list[str | float | int]] = []
    for index, selection in enumerate(study.selections):
        label = " + ".join(name for name, held in zip(names, selection, strict=True) if held)
        cells = [f"{zeta[index, t]:.3f}: {mean[index, t]:.{digits}f}" for t in range(len(study.targets))]
        rows.append([label, *cells])
    rows.append(["all", *[f"{value:.{digits}f}" for value in mean[-2]]])
    rows.append(["none", *[f"{value:.{digits}f}" for value in mean[-1]]])
    rows.append(["worse than none, %", *[f"{100 * share:.0f}" for share in negative_share(study).mean(0)]])
    return Table(title, ["pre-training on", *study.targets], rows)
