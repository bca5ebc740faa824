"""What the paper claims, as word problems whose rationales can be checked show it, and the measurements."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from experiments.claims import AtLeast, AtMost, Claim
from experiments.qcrd.comparison import LabelKind
from experiments.qcrd.distillation import Arm

PAPER = "arXiv:2405.13014"
ArmAndLabels = tuple[Arm, LabelKind]

NEEDED: tuple[ArmAndLabels, ...] = (
    ("finetune", "true"),
    ("dss", "true"),
    ("ed", "true"),
    ("nk", "true"),
    ("qcrd", "true"),
    ("dss", "teacher"),
    ("qcrd", "teacher"),
)
"""The arms that the claims compare."""
FURTHER: tuple[ArmAndLabels, ...] = (("finetune", "teacher"), ("ed", "teacher"), ("nk", "teacher"))

_ACCURACY = "word problems, accuracy of the labels on test questions (points), paired by seed"

CLAIMS: tuple[Claim, ...] = (
    Claim(
        "qcrd-beats-step-by-step-with-teacher-labels",
        "With the teacher's labels, QCRD is more accurate than distilling-step-by-step.",
        f"{PAPER}, Table 3",
        "+0.65 (CQA), +2.60 (ANLI1), +0.00 (e-SNLI) points, T5-base",
        f"{_ACCURACY}: QCRD minus DSS; a gate of 3 points was set beforehand",
        AtLeast(3.0),
    ),
    Claim(
        "step-by-step-beats-finetuning",
        "To learn a rationale beside the label makes the label more accurate.",
        f"{PAPER}, Table 1",
        "+2.5 (SVAMP), +1.04 (CQA), +9.22 (ANLI1), +1.71 (e-SNLI) points, T5-base",
        f"{_ACCURACY}, true labels: DSS minus finetuning; a gate of 5 points was set beforehand",
        AtLeast(5.0),
    ),
    Claim(
        "agreeing-rationales-teach-valid-ones",
        "Rationales that agree with the self-consistent answer teach a student to reason better.",
        f"{PAPER}, Section 3 and the ablation",
        "+1.5 points of accuracy on SVAMP; rationales were not checked",
        "word problems, share of greedy rationales that tell the right operations (points), true labels,"
        " paired by seed: +ED minus DSS; a gate of 5 points was set beforehand",
        AtLeast(5.0),
    ),
    Claim(
        "judge-knows-good-rationales",
        "The judge tells good rationales from bad ones.",
        f"{PAPER}, Figure 6",
        "scores of the teacher's near 0.95; of a student's at temperature 1.5 near 0 or 1",
        "area under the ROC curve of its scores, right against wrong, of rationales of test questions: the"
        " teacher's samples and one of the student's at its temperature for each",
        AtLeast(0.8),
    ),
    Claim(
        "negatives-become-unlikely",
        "The contrastive loss makes the negatives less likely, up to the margin.",
        f"{PAPER}, Section 3",
        "qualitative only",
        "cross-entropy of an iteration's negatives (nats per token), its last fifth minus its first, mean"
        " over the second half of the iterations, +ED +NK with true labels",
        AtLeast(0.0),
    ),
    Claim(
        "positives-become-likely",
        "And the positives more likely.",
        f"{PAPER}, Section 3",
        "qualitative only",
        "cross-entropy of the nearest positive (nats per token), the last iteration minus the first,"
        " +ED +NK with true labels",
        AtMost(0.0),
    ),
    Claim(
        "negatives-help",
        "Negatives that earlier students wrote make the labels more accurate.",
        f"{PAPER}, the ablation",
        "+1.5 points (SVAMP, T5-base, one run)",
        f"{_ACCURACY}, true labels: +ED +NK minus +ED",
        AtLeast(0.0),
    ),
    Claim(
        "the-judge-helps",
        "The judge's scores make them more accurate still.",
        f"{PAPER}, the ablation",
        "+0.5 points (SVAMP, T5-base, one run)",
        f"{_ACCURACY}, true labels: QCRD minus +ED +NK",
        AtLeast(0.0),
    ),
)

Results = Mapping[ArmAndLabels, list[dict[str, np.ndarray]]]
"""Of every arm what `run_arm` found, seed by seed."""


def values(results: Results, arm: Arm, kind: LabelKind, name: str) -> np.ndarray:
    """One number for each seed."""
    return np.array([found[name] for found in results[arm, kind]], float)


def auc(scores: np.ndarray, right: np.ndarray) -> float:
    """The area under the ROC curve; 0.5 where all are right, or none.

    Example:
        >>> auc(np.array([0.1, 0.8, 0.9]), np.array([False, False, True]))
        1.0
    """
    right = right.astype(bool)
    n_right, n_wrong = int(right.sum()), int((~right).sum())
    if not n_right or not n_wrong:
        return 0.5
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]  # equal scores share their mean rank
    return float(ranks[right].sum() - n_right * (n_right + 1) / 2) / (n_right * n_wrong)


def judge_auc(found: Mapping[str, np.ndarray], whose: str = "both") -> float:
    """How well the judge tells right from wrong rationales of the "teacher", of the "student", or of both."""
    of = ("teacher", "student") if whose == "both" else (whose,)
    return auc(
        np.concatenate([found[f"of_{name}"].ravel() for name in of]),
        np.concatenate([found[f"of_{name}_right"].ravel() for name in of]),
    )


def rise(neg_ce: np.ndarray) -> float:
    """By how much the costs ``[iterations, portions]`` rise within an iteration of the second half."""
    late = neg_ce[len(neg_ce) // 2 :]
    return float((late[:, -1] - late[:, 0]).mean())


def measurements(results: Results) -> dict[str, ArrayLike]:
    """One value for each seed of every claim.

    Args:
        results: of all arms.

    Returns:
        Values by the claim's name.
    """

    def points(first: ArmAndLabels, second: ArmAndLabels, name: str = "accuracy") -> np.ndarray:
        return 100 * (values(results, *first, name) - values(results, *second, name))

    with_negatives = results["nk", "true"]
    return {
        "qcrd-beats-step-by-step-with-teacher-labels": points(("qcrd", "teacher"), ("dss", "teacher")),
        "step-by-step-beats-finetuning": points(("dss", "true"), ("finetune", "true")),
        "agreeing-rationales-teach-valid-ones": points(("ed", "true"), ("dss", "true"), "validity"),
        "judge-knows-good-rationales": [judge_auc(found) for found in results["qcrd", "true"]],
        "negatives-become-unlikely": [rise(found["neg_ce"]) for found in with_negatives],
        "positives-become-likely": [
            found["pos_ce"][-1].mean() - found["pos_ce"][0].mean() for found in with_negatives
        ],
        "negatives-help": points(("nk", "true"), ("ed", "true")),
        "the-judge-helps": points(("qcrd", "true"), ("nk", "true")),
    }
