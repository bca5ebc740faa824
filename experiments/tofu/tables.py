"""The tables of the TOFU experiment."""

from collections.abc import Mapping

import numpy as np

from experiments.claims import median_interval
from experiments.run_dir import Table
from experiments.tofu.figures import Course
from experiments.tofu.metrics import Scores

PROTOTYPE: dict[str, tuple[float, float, float, float, float]] = {
    "before unlearning": (2.9e-7, 0.62, 0.89, 0.48, 0.11),
    "retrained": (1.0, 0.56, 0.78, 0.44, 7.8),
    "GA": (4e-23, 0.00, 0.000, 0.04, 22.7),
    "GA+RT": (3e-22, 0.44, 0.42, 0.47, 21.3),
    "NPO": (2e-9, 0.00, 0.001, 0.14, 9.2),
    "NPO+RT": (7e-4, 0.56, 0.68, 0.48, 2.5),
    "NPO+RT, β = 0.03": (0.92, 0.18, 0.11, 0.43, 5.8),
    "SimNPO+RT": (5e-5, 0.63, 0.92, 0.48, 1.4),
    "IDK+RT": (0.08, 0.52, 0.76, 0.40, 1.1),
}
"""One seed of an independent prototype after 40 steps: forget quality, small utility, probability and truth
ratio score on the retain set, nats per token on the forget set."""

_COLUMNS = {
    "log_quality": "forget quality",
    "utility": "small utility",
    "probability": "probability, retain",
    "ratio": "truth ratio, retain",
    "forget_nll": "nats per token, forget",
}


def end_table(before: list[Scores], retrained: list[Scores], courses: Mapping[str, Course]) -> Table:
    """Where every method ends, beside the prototype.

    Args:
        before: scores of the models before unlearning.
        retrained: of the retrained ones.
        courses: of the methods.

    Returns:
        The table.
    """
    models = {"before unlearning": before, "retrained": retrained}
    models |= {name: [seed[-1] for seed in course] for name, course in courses.items()}
    rows: list[list[str | float | int]] = []
    for name, scores in models.items():
        cells: list[str | float | int] = [name]
        for field, official in zip(_COLUMNS, PROTOTYPE.get(name, ("",) * len(_COLUMNS)), strict=True):
            estimate, low, high, _ = median_interval(np.array([getattr(each, field) for each in scores]))
            cells += [_cell(field, estimate, low, high), "" if official == "" else f"{official:.2g}"]
        rows.append(cells)
    columns = [text for label in _COLUMNS.values() for text in (f"{label} [95 %]", "prototype")]
    return Table("After the last step (median over seeds)", ["model", *columns], rows)


def course_table(steps: np.ndarray, courses: Mapping[str, Course]) -> Table:
    """Forget quality and utility along the way.

    Args:
        steps: of the evaluations, the start among them.
        courses: of the methods.

    Returns:
        The table.
    """
    rows: list[list[str | float | int]] = []
    for name, course in courses.items():
        values = np.median(np.array([[(s.log_quality, s.utility) for s in seed] for seed in course]), axis=0)
        rows.append([name, *(f"{10**quality:.1e} / {utility:.2f}" for quality, utility in values)])
    title = "Forget quality / small utility along the way (medians over seeds)"
    return Table(title, ["method", *(f"step {step}" for step in steps)], rows)


def _cell(field: str, estimate: float, low: float, high: float) -> str:
    if field == "log_quality":
        return f"{10**estimate:.1e} [{10**low:.0e}, {10**high:.0e}]"
    return f"{estimate:.2f} [{low:.2f}, {high:.2f}]"
