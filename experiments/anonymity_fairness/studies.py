"""The paper's studies: privacy levels, suppression, target threshold, data size, classifiers; and our
baselines.

A study is a list of cells; every cell has a table, a classifier and configurations, and its metrics
``[seeds, configs]`` are one stage of the run.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from experiments.anonymity_fairness.grid import (
    BASELINES,
    Arm,
    Options,
    Sample,
    anonymised,
    baseline,
    classify,
    measured,
    samples,
)
from experiments.anonymity_fairness.tables import Table
from experiments.run_dir import RunDir
from jaxneg.fairness import Setting

K, L, T = "k-anonymity", "l-diversity", "t-closeness"
NEVER = float("inf")
SEEDS_AT_ONCE = 10
"""Of the paper's 40, the tables of all settings and seeds at once would fill a small machine's memory."""


class Key(NamedTuple):
    """What a column of numbers belongs to."""

    study: str
    """"privacy", "threshold", "fraction", "classifier" or "baseline"."""
    table: str
    classifier: str
    variant: str
    """Threshold, fraction or baseline; empty else."""
    setting: Setting


Results = dict[Key, dict[str, np.ndarray]]
"""Every metric, one number a seed."""


@dataclass(frozen=True)
class Cell:
    """Configurations that are trained together."""

    study: str
    table: str
    classifier: str
    variant: str
    settings: tuple[Setting, ...]
    source: Callable[[int], Table]
    """The table of a seed."""

    @property
    def stage(self) -> str:
        """The name of its stage."""
        at_k = f"k{self.settings[0].k}" if self.study == "baseline" else ""
        parts = (self.study, self.table, self.classifier, self.variant, at_k)
        return "-".join(part.replace(" ", "_") for part in parts if part)


def method_of(setting: Setting) -> str:
    """What the paper calls it.

    Example:
        >>> method_of(Setting(k=10, l=2))
        'l-diversity'
    """
    return L if setting.l > 1 else T if setting.t < NEVER else K


def short_name(setting: Setting) -> str:
    """A label for tables and figures.

    Example:
        >>> short_name(Setting(k=10, t=0.45))
        't=0.45, k=10'
    """
    extra = {K: "", L: f"l={setting.l}, ", T: f"t={setting.t:g}, "}[method_of(setting)]
    return f"{extra}k={setting.k}"


def run_cell(cell: Cell, seeds: Sequence[int], options: Options, run_dir: RunDir) -> Results:
    """Anonymises, trains and measures a cell, or reads the finished stage.

    Args:
        cell: what to do.
        seeds: of splits and classifiers.
        options: of encoding and training.
        run_dir: keeps the stage.

    Returns:
        Metrics of each configuration, one number a seed.
    """
    found = run_dir.stage(cell.stage, lambda: _computed(cell, seeds, options, run_dir))
    return {
        Key(cell.study, cell.table, cell.classifier, cell.variant, setting): {
            name: values[:, c] for name, values in found.items()
        }
        for c, setting in enumerate(cell.settings)
    }


def _computed(cell: Cell, seeds: Sequence[int], options: Options, run_dir: RunDir) -> dict[str, np.ndarray]:
    parts = [seeds[start : start + SEEDS_AT_ONCE] for start in range(0, len(seeds), SEEDS_AT_ONCE)]
    found = [_of_seeds(cell, part, options, run_dir) for part in parts]
    return {name: np.concatenate([of[name] for of in found]) for name in found[0]}


def _of_seeds(cell: Cell, seeds: Sequence[int], options: Options, run_dir: RunDir) -> dict[str, np.ndarray]:
    chosen = samples(cell.source, seeds, options)
    attributes = list(chosen[0].table.protected)
    if options.protected_in_test == "generalised":
        # Nothing but the metrics depends on the attribute: the same classifiers serve all.
        return _measured(cell, chosen, attributes, options, run_dir)
    found = [_measured(cell, chosen, [attribute], options, run_dir) for attribute in attributes]
    return {name: values for of in reversed(found) for name, values in of.items()}


def _measured(
    cell: Cell, chosen: list[Sample], attributes: list[str], options: Options, run_dir: RunDir
) -> dict[str, np.ndarray]:
    def arm(sample: Sample) -> Arm:
        if cell.variant in BASELINES:
            return baseline(cell.variant, sample, cell.settings[0], options, attributes[0])
        return anonymised(sample, cell.settings, options, attributes[0])

    arms = [arm(sample) for sample in chosen]
    p = classify(cell.classifier, chosen, arms, options, run_dir, cell.stage)
    return measured(chosen, arms, p, attributes, options)
