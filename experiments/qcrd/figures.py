"""The figures of the QCRD experiment: means over seeds, with their 95 % intervals."""

import matplotlib.pyplot as plt
import numpy as np

from experiments.claims import mean_interval
from experiments.qcrd.claims import Results, values
from experiments.qcrd.comparison import KINDS
from experiments.qcrd.distillation import ARMS, NAMES, WITH_NEGATIVES, Arm
from experiments.run_dir import RunDir

COLOURS = {"true": "#2166ac", "teacher": "#e08214"}
LABELS = {"true": "true labels", "teacher": "the teacher's labels"}
GOOD, BAD = "#2166ac", "#b2182b"


def draw_arms(run_dir: RunDir, results: Results, teacher: np.ndarray) -> None:
    """Accuracy of labels and validity of rationales of every arm; the teacher's own as lines."""
    figure, row = plt.subplots(1, 2, figsize=(11, 4), layout="constrained", sharey=True)
    for axis, (name, title) in zip(
        row, (("accuracy", "accuracy of the labels"), ("validity", "rationales that are right")), strict=True
    ):
        for shift, kind in zip((-0.1, 0.1), KINDS, strict=True):
            arms: list[Arm] = [
                arm for arm in ARMS if (arm, kind) in results and name in results[arm, kind][0]
            ]
            means, low, high = (
                np.array([mean_interval(values(results, arm, kind, name))[i] for arm in arms])
                for i in range(3)
            )
            spread = np.nan_to_num(np.stack([means - low, high - means]), posinf=0)
            axis.errorbar(
                [ARMS.index(arm) + shift for arm in arms],
                means,
                spread,
                fmt="o",
                capsize=3,
                color=COLOURS[kind],
                label=LABELS[kind],
            )
        for share, style, text in zip(teacher.mean(0), (":", "--"), ("one sample", "majority"), strict=True):
            axis.axhline(share, color="k", linewidth=0.7, linestyle=style, label=f"teacher, {text}")
        axis.set(title=title, xticks=range(len(ARMS)), ylim=(-0.02, 1.02))
        axis.set_xticklabels([NAMES[arm] for arm in ARMS])
    row[0].set(ylabel="share of the test questions")
    row[0].legend(frameon=False, fontsize=8)
    run_dir.figure(
        "arms",
        figure,
        "What each arm ends with: accuracy of its labels (left) and share of its greedy rationales that tell"
        " the right operations (right), mean over seeds with 95 % intervals. Each arm adds one part to that"
        " on its left: the teacher's first rationale; all that agree with its majority; negatives written by"
        " earlier students; the judge. Lines: how often the teacher is right on the training questions.",
    )


def draw_mechanism(run_dir: RunDir, results: Results, delta: float) -> None:
    """Costs of positives and negatives over the training, with and without the judge."""
    shown: list[Arm] = [arm for arm in WITH_NEGATIVES if (arm, "true") in results]
    figure, row = plt.subplots(1, 3, figsize=(14, 3.8), layout="constrained")
    for axis, arm in zip(row, shown, strict=False):
        for name, colour, label in (("pos_ce", GOOD, "nearest positive"), ("neg_ce", BAD, "negative")):
            curves = np.stack([found[name] for found in results[arm, "true"]])
            iterations = (
                np.arange(curves.shape[1])[:, None] + (np.arange(curves.shape[2]) + 0.5) / (curves.shape[2])
            )
            for number, curve in enumerate(curves.mean(0)):  # the negatives change between two iterations
                axis.plot(iterations[number], curve, color=colour, label=label if number == 0 else None)
        axis.axhline(delta, color="k", linestyle=":", linewidth=0.8, label="margin δ")
        axis.set(title=NAMES[arm], xlabel="iteration", ylabel="cross-entropy, nats per token", ylim=(0, None))
    row[0].legend(frameon=False, fontsize=8)
    for arm in shown:
        shares = np.stack([found["valid_negatives"] for found in results[arm, "true"]])
        row[2].plot(shares.mean(0), "o-", markersize=3, label=NAMES[arm])
    row[2].set(title="negatives that are right", xlabel="iteration", ylabel="share", ylim=(0, None))
    row[2].legend(frameon=False, fontsize=8)
    run_dir.figure(
        "mechanism",
        figure,
        "Cross-entropy of the nearest positive and of the negatives over the training, mean over seeds, true"
        " labels; a line for each iteration, whose negatives an earlier student wrote. Beyond the margin δ a"
        " negative has no effect. Right: the share of these negatives that are right after all, and are"
        " pushed down unless the judge objects.",
    )


def draw_judge(run_dir: RunDir, results: Results) -> None:
    """Scores of right and of wrong rationales."""
    figure, row = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
    bins = np.linspace(0, 1, 31)
    for axis, whose, title in zip(
        row, ("teacher", "student"), ("the teacher's samples", "the student's samples"), strict=True
    ):
        scores, right = (
            np.concatenate([found[f"of_{whose}{end}"].ravel() for found in results["qcrd", "true"]])
            for end in ("", "_right")
        )
        for which, colour, label in ((right, GOOD, "right"), (~right, BAD, "wrong")):
            if which.any():
                axis.hist(scores[which], bins, density=True, alpha=0.5, color=colour, label=label)
        axis.set(title=title, xlabel="score of the judge", xlim=(0, 1))
    row[0].set(ylabel="density")
    row[0].legend(frameon=False)
    run_dir.figure(
        "judge",
        figure,
        "Scores that the judge gives to rationales of test questions after the training, all seeds: the"
        " teacher's samples (left), and the student's at the temperature of the negatives (right).",
    )
