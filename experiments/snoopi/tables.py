"""The tables, beside the numbers of an independent prototype, and what a reader must know."""

from collections.abc import Mapping

import numpy as np

from experiments.claims import mean_interval
from experiments.run_dir import Table
from experiments.snoopi.claims import TITLES, Courses, Findings, ratio, value
from experiments.snoopi.distillation import MEAN, PLAIN, RANDOM, STRONG, SWIFT, TTUR, Arm, last
from experiments.snoopi.negatives import CFG, NAG_NAME, NASA, NONE, SETTINGS
from experiments.snoopi.teachers import GUIDANCES

PROTOTYPE: Mapping[tuple[str, Arm], str] = {
    ("mlp", RANDOM): "12.6 ± 3.4, 14.6 ± 7.4, 9.6 ± 1.9",
    ("mlp", SWIFT): "19.2 ± 6.2, 30.9 ± 15.3, 18.9 ± 8.6",
    ("mlp", STRONG): "64.8 ± 61",
    ("mlp", MEAN): "9.7 ± 2.2",
    ("mlp", PLAIN): "8.5 ± 2.1",
    ("mlp", TTUR): "3.6 ± 0.4",
    ("gmm", RANDOM): "8.6 ± 3.8, 15.3 ± 8.0, 11.6 ± 2.9",
    ("gmm", SWIFT): "37.0 ± 20.3, 41.9 ± 18.0, 49.4 ± 15.2",
    ("gmm", STRONG): "152 ± 43",
    ("gmm", MEAN): "9.1 ± 4.3",
    ("gmm", PLAIN): "6.6 ± 4.1",
    ("dit", RANDOM): "7.1 ± 0.6",
    ("dit", SWIFT): "16.5 ± 4.0",
}
"""Mean and standard deviation of the last four Fréchet distances, of each seed, at the sizes of the preset
cpu."""

NEGATIVE_PROTOTYPE: Mapping[str, Mapping[str, str]] = {
    "one-step": {
        NONE: ".848 / .756 / 3.74",
        NASA[0.1]: ".899 / .727 / 3.62",
        NASA[0.2]: ".936 / .697 / 3.67",
        NASA[0.35]: ".968 / .644 / 4.06",
        NASA[0.5]: ".982 / .595 / 4.76",
        NASA[1.0]: ".994 / .478 / 8.75",
        CFG[1.5]: ".974 / .720 / 4.08",
        CFG[2.5]: ".999 / .677 / 5.57",
        NAG_NAME: ".968 / .690 / 3.74",
    },
    "four-steps": {
        NONE: ".827 / .799 / 2.79",
        NASA[0.1]: ".891 / .774 / 2.75",
        NASA[0.2]: ".934 / .751 / 2.72",
        NASA[0.35]: ".982 / .691 / 2.69",
        NASA[0.5]: ".992 / .646 / 2.68",
        NASA[1.0]: "1.00 / .499 / 2.77",
        CFG[1.5]: ".976 / .782 / 2.84",
        CFG[2.5]: ".999 / .742 / 3.26",
        NAG_NAME: ".981 / .724 / 2.75",
    },
}
"""Share without the unwanted digit, share in the group, distance to the nearest real digit; one seed."""

TEACHER_PROTOTYPE = (0.60, 2.06, 4.73, 16.9)


def course_table(courses: Courses, backbone: str) -> Table:
    """How the students of a backbone end.

    Args:
        courses: of all arms.
        backbone: its name.

    Returns:
        The table.
    """
    rows: list[list[str | float | int]] = []
    for (name, arm), course in courses.items():
        if name == backbone:
            mean, spread = last(course["frechet"])
            each = ", ".join(f"{m:.3g} ± {s:.2g}" for m, s in zip(mean, spread, strict=True))
            worst = course["frechet"].max(axis=1).mean()
            accuracy = last(course["accuracy"])[0].mean()
            cells = [_interval(mean), each, f"{worst:.3g}", f"{accuracy:.3f}"]
            rows.append([arm.name, *cells, PROTOTYPE.get((name, arm), "")])
    columns = ["guidance scale", "mean of the last four [95 %]", "each seed", "largest", "right digit"]
    return Table(
        f"A. Fréchet distance of one step, {TITLES[backbone]}", [*columns, "prototype, each seed"], rows
    )


def negative_table(name: str, found: Findings) -> Table:
    """What negative texts do.

    Args:
        name: of the sampler.
        found: with it.

    Returns:
        The table.
    """
    prototype = NEGATIVE_PROTOTYPE.get(name, {})
    rows: list[list[str | float | int]] = [
        [
            setting,
            *(_interval(value(found, field, setting)) for field in ("excluded", "in_group", "distance")),
            prototype.get(setting, ""),
        ]
        for setting in SETTINGS
    ]
    columns = ["negative text", "without the digit [95 %]", "in the group [95 %]", "distance [95 %]"]
    return Table(f"B. Negative texts, {name}", [*columns, "prototype"], rows)


def teacher_table(frechet: np.ndarray) -> Table:
    """What the residual MLP makes in many steps.

    Args:
        frechet: ``[seeds, guidances]``.

    Returns:
        The table.
    """
    rows: list[list[str | float | int]] = [
        [f"{guidance:g}", _interval(of), f"{reference:g}"]
        for guidance, of, reference in zip(GUIDANCES, frechet.T, TEACHER_PROTOTYPE, strict=True)
    ]
    return Table(
        "Residual MLP as a teacher, 25 steps of DDIM",
        ["guidance scale", "Fréchet distance [95 %]", "prototype"],
        rows,
    )


def notes(courses: Courses, negatives: Mapping[str, Findings]) -> list[str]:
    """What limits the claims, in numbers of this run.

    Args:
        courses: of part A.
        negatives: of part B, "one-step" and "four-steps".

    Returns:
        Sentences.
    """
    control = ", ".join(
        f"{TITLES[name]} {ratio(courses, name, RANDOM, MEAN).mean():.2f}"
        for name in TITLES
        if (name, MEAN) in courses
    )
    student = negatives["one-step"]
    guided, plain = (value(student, "excluded", setting).mean() for setting in (CFG[2.5], NONE))
    found = [
        "The gradient is linear in the guidance scale, so that a random scale gives on average that of its"
        f" mean. Fréchet distance of {RANDOM.name} over the fixed mean {MEAN.low:g}: {control}; it is below 1"
        " where randomness itself helps.",
        f"Guidance of the output of one step, κ = 2.5, leaves {guided:.1%} of these digits without the"
        f" unwanted one; without a negative text it is {plain:.1%}. Of SDXL's and FLUX's images it left 0 %"
        " (third version, Table 2).",
        "Share of one-step images in the group that was asked for:"
        f" {value(student, 'in_group', NASA[0.2]).mean():.3f} with NASA at α = 0.2,"
        f" {value(student, 'in_group', NONE).mean():.3f} without a negative text.",
        "The prototype's numbers are of the sizes of the preset cpu, and of its own architecture.",
    ]
    if ("mlp", TTUR) in courses:
        found.insert(
            1,
            "Five LoRA steps for one of the student: Fréchet distance over that of"
            f" {MEAN.name} with one step {ratio(courses, 'mlp', TTUR, MEAN).mean():.2f} (residual MLP).",
        )
    return found


def _interval(values: np.ndarray) -> str:
    estimate, low, high, _ = mean_interval(values)
    return f"{estimate:.3f} [{low:.3f}, {high:.3f}]"
