"""The tables: means over the seeds, beside the numbers of an independent prototype."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from experiments.claims import mean_interval
from experiments.run_dir import Table
from experiments.self_npo.arms import CFG, Arm, Results
from experiments.self_npo.claims import (
    AUTOGUIDANCE,
    DPO_ARMS,
    INVERSE,
    INVERSE_FROM_NOISE,
    LONGER_DPO_ARM,
    NPO,
    OTHERS,
    PLAIN,
    UNCONDITIONAL,
    WEAKLY_INVERSE,
    gain,
    ratio,
    value,
    wins,
)

PLANE_PROTOTYPE: Mapping[Arm, tuple[str, ...]] = {
    CFG: ("-0.088 / .072 / .285", "-0.820 / .157 / .414", "-3.251 / .435 / .635"),
    INVERSE: ("0.284 / .008 / .397", "0.155 / .014 / .557", "0.414 / .019 / .774"),
    INVERSE_FROM_NOISE: ("0.219 / .002 / .455", "0.010 / .007 / .636", "0.134 / .009 / .789"),
    UNCONDITIONAL: ("-0.043 / .063 / .284", "-0.720 / .144 / .408", "-3.018 / .383 / .620"),
    WEAKLY_INVERSE: ("0.345 / .012 / .336", "0.179 / .032 / .474", "-0.051 / .072 / .649"),
    PLAIN: ("0.143", "-0.269", "-1.404"),
    NPO[10.0]: ("0.209 / .035 / .325", "-0.018 / .064 / .459", "-0.412 / .134 / .652"),
    NPO[2.0]: ("0.401 / .006 / .415", "0.332 / .004 / .600", "0.158 / .021 / .732"),
    AUTOGUIDANCE: ("0.338 / .054 / .380", "-0.175 / .140 / .565", "-3.956 / .673 / .795"),
}
"""Reward, outliers and variation at w_g = 0.5, 1, 2: 3 seeds; w = -2 and w = 0 with 2 seeds, on which CFG had
0.038, -0.594, -2.658."""

DIGIT_PROTOTYPE: Mapping[Arm, tuple[str, ...]] = {
    CFG: ("2.012 / 1.65", "1.984 / 5.29", "2.304 / 12.36", "3.575 / 22.51"),
    INVERSE: ("1.741 / 1.67", "1.550 / 3.90", "1.457 / 6.57", "1.454 / 9.02"),
    WEAKLY_INVERSE: ("1.809 / 1.33", "1.615 / 3.20", "1.507 / 5.62", "1.494 / 7.84"),
    UNCONDITIONAL: ("1.993 / 1.44", "1.933 / 4.54", "2.150 / 10.42", "3.123 / 18.69"),
    PLAIN: ("2.079 / 1.47", "2.102 / 4.76", "2.515 / 11.16", "3.965 / 19.90"),
}
"""Distance and Fréchet distance at w_g = 0.5, 1, 2, 4: 2 seeds."""

DIGIT_RATIOS: Mapping[Arm, tuple[str, ...]] = {
    INVERSE: (".86 / 1.01 / .93", ".78 / .73 / .93", ".63 / .53 / .97"),
    WEAKLY_INVERSE: (".90 / .82 / .94", ".81 / .62 / .94", ".65 / .47 / .97"),
    UNCONDITIONAL: (".99 / .87 / .67", ".98 / .85 / .73", ".94 / .83 / .81"),
}
"""Ratios to CFG of both distances, and the share of wins, at w_g = 0.5, 1, 2: 3 seeds."""

PAPER_TABLE = Table(
    "The papers' own numbers (nothing here is of that size)",
    ["model", "PickScore", "HPSv2.1", "ImageReward", "Aesthetic"],
    [
        ["SD1.5", "20.75", "26.84", "0.1064", "5.539"],
        ["SD1.5 + Diffusion-NPO", "21.26", "27.36", "0.2028", "5.667"],
        ["SD1.5 + Self-NPO", "21.00", "27.04", "0.2816", "5.609"],
        ["SDXL", "22.06", "28.04", "0.6246", "6.114"],
        ["SDXL + Self-NPO", "22.26", "28.24", "0.6697", "6.226"],
        ["SDXL, Diffusion-DPO", "22.57", "29.76", "0.8624", "6.099"],
        ["SDXL, Diffusion-DPO + Self-NPO", "22.67", "29.83", "0.8784", "6.179"],
    ],
)


def plane_table(title: str, results: Results, prototype: Mapping[Arm, tuple[str, ...]]) -> Table:
    """Reward, outliers and variation of every arm that has the base network as its positive one.

    Args:
        title: of the table.
        results: of part A.
        prototype: its numbers, by arm.

    Returns:
        The table.
    """

    def cell(arm: Arm, guidance: float) -> str:
        reward, outliers, variation = (
            value(results, arm, name, guidance).mean() for name in ("reward", "outliers", "variation")
        )
        return f"{reward:.3f} / {outliers:.3f} / {variation:.3f}"

    return _beside(
        f"{title}: reward (nats) / outliers / total variation",
        [arm for arm in results if arm.positive is None],
        cell,
        prototype,
    )


def gain_table(title: str, results: Results) -> Table:
    """What the negatives gain over CFG, paired, and how they stand to the base network.

    Args:
        title: of the table.
        results: of part A.

    Returns:
        The table.
    """
    rows: list[list[str | float | int]] = []
    for arm, found in results.items():
        if arm.positive is None and arm != CFG:
            cells = []
            for w in OTHERS:
                gains = gain(results, arm, w)
                better = int((gains > 0).sum())
                cells.append(f"{_interval(gains)} ({better}); {wins(results, arm, w).mean():.2f}")
            rows.append([arm.name, *cells, f"{found['alone'].mean():.2f}", f"{found['cosine'].mean():.4f}"])
    seeds = len(results[CFG]["cosine"])
    columns = [f"w_g = {w:g}" for w in OTHERS]
    return Table(
        f"{title}: gain in reward over CFG from the same noise (nats ± 95 %; in how many of {seeds} seeds"
        " above 0; share of samples that win)",
        ["negative", *columns, "the network alone", "cosine to the positive"],
        rows,
    )


def dpo_table(results: Results) -> Table:
    """A network that learnt the preference, with every negative.

    Args:
        results: of part A.

    Returns:
        The table.
    """
    rows: list[list[str | float | int]] = []
    named = {(name, f"{alpha:g}"): arm for (name, alpha), arm in DPO_ARMS.items()}
    named["base, DPO twice as long", "1"] = LONGER_DPO_ARM
    for (name, alpha), arm in named.items():
        if arm in results:
            cells = []
            for w in OTHERS:
                found = (value(results, arm, each, w).mean() for each in ("reward", "outliers", "variation"))
                cells.append(" / ".join(f"{number:.3f}" for number in found))
            rows.append([name, alpha, *cells])
    columns = [f"w_g = {w:g}" for w in OTHERS]
    return Table(
        "A. Plane, DPO (β = 10) as the positive network: reward (nats) / outliers / total variation; a is how"
        " much of DPO's offset the negative has too (a prototype at w_g = 1: base, a = 0: -0.675; Self-NPO,"
        " a = 1: 0.165)",
        ["negative", "a", *columns],
        rows,
    )


def digit_table(results: Results) -> Table:
    """Both distances and the accuracy of every arm.

    Args:
        results: of part B.

    Returns:
        The table.
    """

    def cell(arm: Arm, guidance: float) -> str:
        distance, frechet, accuracy = (
            value(results, arm, name, guidance).mean() for name in ("distance", "frechet", "accuracy")
        )
        return f"{distance:.3f} / {frechet:.2f} / {accuracy:.3f}"

    distance, frechet = (value(results, CFG, name, 0.0).mean() for name in ("distance", "frechet"))
    return _beside(
        "B. Digits: distance to the nearest held-out digit of the class / Fréchet distance / accuracy of a"
        f" second classifier (without guidance {distance:.3f} / {frechet:.2f}; a prototype 2.306 / 0.84)",
        list(results),
        cell,
        DIGIT_PROTOTYPE,
    )


def ratio_table(results: Results) -> Table:
    """Both distances over those of CFG, and the share of wins.

    Args:
        results: of part B.

    Returns:
        The table.
    """

    def cell(arm: Arm, guidance: float) -> str:
        distance, frechet = (ratio(results, arm, name, guidance).mean() for name in ("distance", "frechet"))
        return f"{distance:.2f} / {frechet:.2f} / {wins(results, arm, guidance).mean():.2f}"

    return _beside(
        "B. Digits, paired with CFG: ratio of the distances / of the Fréchet distances / share of wins",
        [arm for arm in results if arm != CFG],
        cell,
        DIGIT_RATIOS,
    )


def _beside(
    title: str,
    arms: Sequence[Arm],
    cell: Callable[[Arm, float], str],
    prototype: Mapping[Arm, tuple[str, ...]],
) -> Table:
    """Our numbers at every guidance above 0, beside the prototype's where it has some."""
    shown = max(map(len, prototype.values()), default=0)
    columns, rows = ["arm"], [[arm.name] for arm in arms]
    for place, guidance in enumerate(OTHERS):
        columns.append(f"w_g = {guidance:g}")
        for row, arm in zip(rows, arms, strict=True):
            row.append(cell(arm, guidance))
        if place < shown:
            columns.append("a prototype's")
            for row, arm in zip(rows, arms, strict=True):
                row.append(prototype[arm][place] if arm in prototype else "")
    return Table(title, columns, [list(row) for row in rows])


def _interval(values: np.ndarray) -> str:
    estimate, _, high, _ = mean_interval(values)
    return f"{estimate:+.2f} ± {high - estimate:.2f}"
