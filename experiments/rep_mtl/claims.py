"""What the paper claims, and how it is measured here."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from experiments.claims import AtLeast, AtMost, Claim, Within
from experiments.rep_mtl.comparison import EW, Results, delta_p, gains
from experiments.rep_mtl.spectra import BAD, HEALTHY, outside
from experiments.rep_mtl.training import EVERY, Method

TSR, CSA, FULL = Method(0.9), Method(0.0, 0.9), Method(0.9, 0.9)
WITHOUT_CSA, WITH_CSA = Method(0.3), Method(0.3, 0.3)
"""Between which the similarities are compared."""
SAFE = (0.7, 0.9, 1.1, 1.3, 1.5)
"""The paper's grid for both weights."""
LAST = 100
"""Steps at the end over which saliencies are averaged."""

PAPER = "arXiv:2507.21049"
_OFFICES = f"{PAPER}, Section 4, Office-31 and Office-Home"
_ABLATION = f"{PAPER}, Table 4"
_POINTS = "percentage points of the mean accuracy over the four domains, paired by seed"
_OFFICE = "Office-Caltech10"
_DIGITS = "overlapping digits"

CLAIMS: tuple[Claim, ...] = (
    Claim(
        "office-equal-weights-transfer-negatively",
        "Trained together with equal weights, the tasks fall behind single-task networks.",
        _OFFICES,
        "delta_p_task -0.92 % (Office-Home), -0.61 % (Office-31); -4.28 % here in an independent prototype",
        f"{_OFFICE}: delta_p_task of equal weights over single-task networks, percent.",
        AtMost(0.0),
    ),
    Claim(
        "office-entropy-term-gains",
        "The entropy term alone gains over equal weights.",
        _ABLATION,
        "+2.01 (NYUv2), +1.71 (Cityscapes) in delta_p_task; +1.32 points here in an independent prototype",
        f"{_OFFICE}: TSR 0.9 minus equal weights, {_POINTS}.",
        AtLeast(0.0),
    ),
    Claim(
        "office-rep-mtl-gains",
        "Rep-MTL gains over equal weights.",
        _OFFICES,
        "+0.97 points (Office-Home), +1.83 (Office-31); +0.89 here in an independent prototype",
        f"{_OFFICE}: TSR 0.9 + CSA 0.9 minus equal weights, {_POINTS}.",
        AtLeast(0.0),
    ),
    Claim(
        "office-rep-mtl-beats-single-tasks",
        "Rep-MTL ends the negative transfer: it is ahead of single-task networks.",
        _OFFICES,
        "delta_p_task +0.41 % (Office-Home), +1.31 % (Office-31)",
        f"{_OFFICE}: delta_p_task of TSR 0.9 + CSA 0.9 over single-task networks, percent.",
        AtLeast(0.0),
    ),
    Claim(
        "office-alignment-gains-more-than-entropy",
        "The alignment alone gains more than the entropy term alone.",
        _ABLATION,
        "+0.83 (NYUv2), +0.55 (Cityscapes) in delta_p_task",
        f"{_OFFICE}: CSA 0.9 minus TSR 0.9, {_POINTS}.",
        AtLeast(0.0),
    ),
    Claim(
        "office-alignment-adds-to-entropy",
        "Both together gain more than the entropy term alone.",
        _ABLATION,
        "+1.47 (NYUv2), +0.96 (Cityscapes) in delta_p_task",
        f"{_OFFICE}: TSR 0.9 + CSA 0.9 minus TSR 0.9, {_POINTS}.",
        AtLeast(0.0),
    ),
    Claim(
        "digits-safe-range-of-weights",
        "Both weights may be anywhere from 0.7 to 1.5.",
        f"{PAPER}, the study of sensitivity",
        "ahead of equal weights throughout the range",
        f"{_DIGITS}: gain over equal weights in the mean accuracy of both tasks, percentage points, paired by"
        " seed, averaged over both weights = 0.7, 0.9, 1.1, 1.3, 1.5.",
        AtLeast(0.0),
    ),
    Claim(
        "entropy-term-lowers-the-entropy",
        "The entropy term makes each position matter to fewer tasks.",
        f"{PAPER}, Equation 6",
        "no figure; 0.90 to 0.50 in an independent prototype",
        f"{_OFFICE}: mean entropy of the saliency over the last {LAST} steps (every {EVERY}th), nats, TSR 0.9"
        " minus equal weights.",
        AtMost(0.0),
    ),
    Claim(
        "alignment-raises-the-positive-similarity",
        "The alignment draws each task's channel affinities to those of all tasks in the example.",
        f"{PAPER}, Equation 9",
        "no figure; 0.34 to 0.61 in an independent prototype, whose heads were moved too",
        f"{_DIGITS}: mean similarity of the positives over the last {LAST} steps (every {EVERY}th), TSR 0.3 +"
        " CSA 0.3 minus TSR 0.3.",
        AtLeast(0.0),
    ),
    Claim(
        "alignment-keeps-the-negative-similarity",
        "It does so without drawing different examples together.",
        f"{PAPER}, Equation 9",
        "no figure; 0.18 to 0.15 in an independent prototype, whose heads were moved too",
        f"{_DIGITS}: mean similarity of the negatives over the last {LAST} steps (every {EVERY}th), TSR 0.3 +"
        " CSA 0.3 minus TSR 0.3.",
        AtMost(0.0),
    ),
    Claim(
        "spectrum-equal-weights-train-heads-badly",
        "With equal weights the heads' power-law exponents are those of badly trained layers.",
        f"{PAPER}, the analysis of power laws",
        "10.26, 7.01, 14.25 (NYUv2)",
        f"{_OFFICE}: mean exponent of the four heads with equal weights.",
        AtLeast(BAD),
    ),
    Claim(
        "spectrum-rep-mtl-heads-are-nearer",
        "With Rep-MTL the heads' exponents are nearer to those of well trained layers, 2 to 4.",
        f"{PAPER}, the analysis of power laws",
        "inside (2.51, 2.46, 2.53), where equal weights are 6.51 outside (NYUv2)",
        f"{_OFFICE}: distance of a head's exponent from 2 to 4, mean over the heads, equal weights minus TSR"
        " 0.9 + CSA 0.9; 0.01, since two that are inside are not apart.",
        AtLeast(0.01),
    ),
    Claim(
        "spectrum-rep-mtl-backbone-is-well-trained",
        "With Rep-MTL the backbone's exponent is that of a well trained layer.",
        f"{PAPER}, the analysis of power laws",
        "2.92 (NYUv2)",
        f"{_OFFICE}: exponent of the encoder's weights with TSR 0.9 + CSA 0.9.",
        Within(*HEALTHY),
    ),
)


def late(found: np.ndarray) -> np.ndarray:
    """The mean over the last steps.

    Args:
        found: ``[seeds, steps / 10]``.

    Returns:
        One value for each seed.
    """
    return found[:, -LAST // EVERY :].mean(axis=1)


def measurements(office: Results, digits: Results, safe: Sequence[Method]) -> dict[str, ArrayLike]:
    """One value for each seed of every claim.

    Args:
        office: part A.
        digits: part B.
        safe: the methods of part B whose weights are in the paper's range.

    Returns:
        Values by the claim's name.
    """

    def change(results: Results, name: str, of: Method, to: Method) -> np.ndarray:
        return late(results[to][name]) - late(results[of][name])

    heads = {method: office[method]["heads"] for method in (EW, FULL)}
    return {
        "office-equal-weights-transfer-negatively": delta_p(office, EW),
        "office-entropy-term-gains": gains(office, TSR),
        "office-rep-mtl-gains": gains(office, FULL),
        "office-rep-mtl-beats-single-tasks": delta_p(office, FULL),
        "office-alignment-gains-more-than-entropy": gains(office, CSA) - gains(office, TSR),
        "office-alignment-adds-to-entropy": gains(office, FULL) - gains(office, TSR),
        "digits-safe-range-of-weights": np.mean([gains(digits, method) for method in safe], axis=0),
        "entropy-term-lowers-the-entropy": change(office, "entropy", EW, TSR),
        "alignment-raises-the-positive-similarity": change(digits, "positive", WITHOUT_CSA, WITH_CSA),
        "alignment-keeps-the-negative-similarity": change(digits, "negative", WITHOUT_CSA, WITH_CSA),
        "spectrum-equal-weights-train-heads-badly": np.nanmean(heads[EW], axis=1),
        "spectrum-rep-mtl-heads-are-nearer": outside(heads[EW]) - outside(heads[FULL]),
        "spectrum-rep-mtl-backbone-is-well-trained": office[FULL]["encoder"],
    }
