"""What was measured of every method on every target, and the tables."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from experiments.claims import mean_interval
from experiments.fedka.sources import Domains
from experiments.fedka.training import ALIGNED, FED_AVG, FED_KA, LAST, Method
from experiments.run_dir import Table


class Part(NamedTuple):
    """The results of one set of domains."""

    title: str
    targets: tuple[str, ...]
    """Names of the domains, each of which was the target once."""
    found: Mapping[Method, Mapping[str, np.ndarray]]
    """What `experiments.fedka.training.train` found, with the targets on the leading axis."""

    def late(self, method: Method, name: str) -> Float[np.ndarray, "targets seeds"]:
        """The mean over the last five rounds."""
        return self.found[method][name][:, :, -LAST:].mean(2)

    def over_targets(self, method: Method, name: str) -> Float[np.ndarray, "seeds"]:
        """The mean over the last five rounds and all targets."""
        return self.late(method, name).mean(0)

    def gain(self, method: Method, name: str = "accuracy") -> Float[np.ndarray, "targets seeds"]:
        """The accuracy over that of FedAvg, points, paired by seed."""
        return self.late(method, name) - self.late(FED_AVG, "average")


def part_of(
    domains: Domains,
    methods: Sequence[Method],
    found: Mapping[tuple[Method, int], Mapping[str, np.ndarray]],
) -> Part:
    """Puts the targets of each method side by side.

    Args:
        domains: each of them was the target.
        methods: the methods.
        found: what each found on each target, by the target's place.

    Returns:
        The results.
    """
    places = range(len(domains.parts))
    stacked = {
        method: {
            name: np.stack([found[method, place][name] for place in places]) for name in found[method, 0]
        }
        for method in methods
    }
    return Part(domains.title, tuple(domain.name for domain in domains.parts), stacked)


def rows_of(method: Method) -> dict[str, str]:
    """The rows of a table that a run fills, each with the accuracy that it shows.

    Example:
        >>> rows_of(FED_AVG), rows_of(FED_KA)
        ({'FedAvg': 'average', 'FedAvg + voting': 'accuracy'}, {'FedKA': 'accuracy'})
    """
    if method.averaged:
        return {method.name: "average", f"{method.name} + voting": "accuracy"}
    return {method.name: "accuracy"}


REVIEWS: dict[str, tuple[float, ...]] = {
    "FedAvg": (74.4, 76.1, 81.4, 82.3, 78.6, 0.56),
    "f-DANN": (74.6, 76.0, 81.7, 82.3, 78.7, 0.49),
    "FedKA without voting": (74.4, 76.6, 81.6, 82.8, 78.8, 0.67),
    "FedKA": (74.4, 75.2, 81.3, 82.7, 78.4, 0.64),
}
"""What a prototype found on the reviews, 3 seeds: percent on each target and on all, group effect in
points."""
DIGITS: dict[str, tuple[float, ...]] = {
    "FedAvg": (82.9, 50.5, 85.0, 62.6, 18.0),
    "FedKA without voting": (85.2, 51.8, 85.4, 65.9, 21.4),
}
"""Likewise on the digits, 1 seed, on mm and sy 3; without the mean."""


def accuracy_table(part: Part, prototype: Mapping[str, tuple[float, ...]]) -> Table:
    """Accuracies on each target, gains and group effects of all methods.

    Args:
        part: the results.
        prototype: what an independent program found, on each target.

    Returns:
        The table.
    """
    seeds = part.found[FED_AVG]["accuracy"].shape[1]
    tested = "test" in part.found[FED_AVG]
    rows: list[list[str | float | int]] = []
    for method, found in part.found.items():
        for row, name in rows_of(method).items():
            own = part.late(method, name)
            others = prototype.get(row, ())
            cells = []
            for place, values in enumerate(own):
                beside = f" ({others[place]:.1f})" if others else ""
                cells.append(f"{values.mean():.1f} ± {values.std(ddof=1):.1f}{beside}")
            cells.append(f"{own.mean():.2f}")
            cells.append("" if row == FED_AVG.name else interval(part.gain(method, name).mean(0)))
            cells.append(f"{found[name].max(2).mean():.1f}")
            cells.append(interval(part.over_targets(method, "effect")))
            if tested:
                test = found["test" if name == "accuracy" else "average_test"]
                cells.append(f"{test.mean():.2f}")
            rows.append([row, *cells])
    beside = ", in brackets a prototype's" if prototype else ""
    title = (
        f"{part.title}: accuracy on the target, percent, mean of the last {LAST} rounds ± standard deviation"
        f" of {seeds} seeds{beside}; gain over FedAvg and group effect in points, ± 95 %"
    )
    columns = ["method", *part.targets, "mean", "gain", "best round", "group effect"]
    return Table(title, [*columns, "test rows"] if tested else columns, rows)


def voting_table(part: Part) -> Table:
    """What tuning on the votes gains on each target, beside how often the votes are right.

    Args:
        part: the results.

    Returns:
        The table.
    """
    rows: list[list[str | float | int]] = []
    for method in (each for each in part.found if each.vote):
        gains = part.late(method, "accuracy") - part.late(method, "average")
        votes = part.late(method, "votes").mean(1)
        cells = (f"{interval(gain)} ({vote:.0f})" for gain, vote in zip(gains, votes, strict=True))
        rows.append(
            [method.name if method.match else f"{method.name} + voting", *cells, interval(gains.mean(0))]
        )
    return Table(
        f"{part.title}: the tuned model's accuracy minus the averaged one's in the same run, points ± 95 %"
        " (votes that are right, percent)",
        ["method", *part.targets, "mean"],
        rows,
    )


PAPER_GAINS = {
    "Five digit domains": 8.8,
    "Digit-Five": 8.8,
    "Amazon reviews": 0.7,
    "Amazon reviews, processed_acl": 0.7,
    "Office-Caltech10": 3.5,
}
"""Of FedKA, in points, as the abstract has them; the small digit domains stand beside Digit-Five."""


def paper_table(parts: list[Part]) -> Table:
    """The abstract's figures beside ours.

    Args:
        parts: results of all sets of domains.

    Returns:
        The table.
    """
    rows: list[list[str | float | int]] = []
    for part in parts:
        paper = PAPER_GAINS.get(part.title)
        gains = (interval(part.gain(method).mean(0)) for method in (FED_KA, ALIGNED))
        effects = [part.over_targets(method, "effect") for method in (FED_AVG, FED_KA, ALIGNED)]
        ratios = (f"{effect.mean() / effects[0].mean():.2f}" for effect in effects[1:])
        rows.append([part.title, "" if paper is None else f"+{paper:g}", *gains, "4", *ratios])
    columns = [
        "domains",
        "gain, paper",
        "FedKA, ours",
        "without voting",
        "group effect, paper",
        "FedKA, ours",
    ]
    title = "Beside the abstract: gain over FedAvg, points ± 95 %; group effect as a multiple of FedAvg's"
    return Table(title, [*columns, "without voting, ours"], rows)


def interval(values: Float[np.ndarray, "seeds"]) -> str:
    """The mean and half the width of its 95 % interval.

    Example:
        >>> interval(np.array([1.0, 2.0, 3.0]))
        '+2.00 ± 2.48'
    """
    estimate, _, high, _ = mean_interval(values)
    return f"{estimate:+.2f} ± {high - estimate:.2f}"
