"""What the experiment must show, and the numbers that decide it."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from experiments.claims import AtLeast, AtMost, Claim
from experiments.w2pgnn.correlation import jackknife, pearson
from experiments.w2pgnn.scores import BASELINES, DENSITY, TV_H, UNIFORM, ZETA
from experiments.w2pgnn.transfer import NEGATIVE

PAPER = "arXiv:2303.16458"
EVALUATION = f"{PAPER}, evaluation: Pearson correlation of feasibility with downstream performance"
CONTROLLED = "controlled transfer, one value a world"
REAL = "real networks"


class Study(NamedTuple):
    """Scores and results of all selections."""

    sets: list[str]
    targets: list[str]
    selections: np.ndarray
    """``[selections, sets]``."""
    scores: dict[str, np.ndarray]
    """By name, ``[repetitions or 1, selections, targets]``."""
    performance: np.ndarray
    """Larger is better, ``[repetitions, selections + 2, targets]``: the selections, all sets, none of
    them."""

    @property
    def of_selections(self) -> np.ndarray:
        """Performance of the selections alone."""
        return self.performance[:, :-2]

    def correlations(self, name: str) -> np.ndarray:
        """Of a score with the performance of each repetition, ``[repetitions, targets]``."""
        score = np.broadcast_to(self.scores[name], self.of_selections.shape)
        return np.stack([pearson(s, p) for s, p in zip(score, self.of_selections, strict=True)])

    def correlation_of_mean(self, name: str, performance: np.ndarray) -> np.ndarray:
        """Of a score with a mean performance ``[selections + 2, targets]``, ``[targets]``."""
        return pearson(self.scores[name].mean(0), performance[:-2])

    def chosen(self, name: str) -> np.ndarray:
        """Performance of the selection that a score ranks first, ``[repetitions, targets]``."""
        first = np.broadcast_to(self.scores[name], self.of_selections.shape).argmax(1)
        return np.take_along_axis(self.of_selections, first[:, None], 1)[:, 0]

    @property
    def all_sets(self) -> np.ndarray:
        """Performance after pre-training on all sets, ``[repetitions, targets]``."""
        return self.performance[:, -2]

    @property
    def scratch(self) -> np.ndarray:
        """Performance without pre-training, ``[repetitions, targets]``."""
        return self.performance[:, -1]


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "feasibility-foretells-transfer",
        "Feasibility correlates positively with what pre-training gives, on every downstream set",
        EVALUATION,
        "not available; a prototype: 0.49, 0.65, 0.61, 0.69, 0.91",
        f"smallest of five Pearson correlations of zeta with minus the zero-shot cross-entropy; {CONTROLLED}",
        AtLeast(0.0),
    ),
    Claim(
        "correlation-is-high",
        "The correlation is high",
        EVALUATION,
        "not available; a prototype: 0.67",
        f"mean of the five Pearson correlations; {CONTROLLED}",
        AtLeast(0.5),
    ),
    Claim(
        "above-density",
        "Feasibility foretells transfer better than the density of the graphs does",
        EVALUATION,
        "not available; a prototype: 0.67 and 0.34",
        f"mean correlation of zeta minus that of the density baseline; {CONTROLLED}",
        AtLeast(0.15),
    ),
    Claim(
        "above-every-baseline",
        "Feasibility foretells transfer better than every baseline does",
        EVALUATION,
        "not available; no prototype",
        "mean correlation of zeta minus the largest of the six baselines' mean correlations (graph "
        f"statistics, density, clustering, betweenness, Laplacian spectrum, EGI); {CONTROLLED}",
        AtLeast(0.0),
    ),
    Claim(
        "learned-weights-help",
        "The best mixture of the basis foretells transfer better than equal weights",
        EVALUATION,
        "not available; a prototype: 0.67 and 0.57",
        f"mean correlation of zeta minus that at uniform alpha; {CONTROLLED}",
        AtLeast(0.0),
    ),
    Claim(
        "feasible-sets-benefit",
        "Pre-training on feasible selections benefits more than on infeasible ones",
        f"{PAPER}, abstract",
        "qualitative only; a prototype: +0.062 and -0.009 nats",
        "benefit over training from scratch, in nats after fine-tuning: mean of the three pairs of highest "
        f"zeta minus that of the three lowest, mean over downstream sets; {CONTROLLED}",
        AtLeast(0.0),
    ),
    Claim(
        "transfer-can-be-negative",
        "Where no mechanism of the pre-training sets could have generated the downstream graphs, "
        "pre-training hurts",
        f"{PAPER}, abstract: negative transfer",
        "qualitative only; a prototype: 73 % of the pairs",
        "share of the pairs that end worse than from scratch, in %, on graphs whose edges all cross the "
        f"two halves; {CONTROLLED}",
        AtLeast(50.0),
    ),
    Claim(
        "denoising-hides-structure",
        "With the published code's TV weight h the graphon is only a density: zeta is no better than that "
        "baseline",
        "published code, estimators (an observation of ours, no claim of the paper's)",
        "n/a; a prototype: 0.30 and 0.34",
        f"mean correlation of zeta with TV weight h minus that of the density baseline; {CONTROLLED}",
        AtMost(0.0),
    ),
    Claim(
        "selection-beats-all-data",
        "Pre-training on the selection of highest feasibility is better than on all data",
        f"{PAPER}, data selection (as a public leaderboard has it)",
        "67.74 % and 66.04 % ROC-AUC, mean over BACE, BBBP and ClinTox",
        "cross-entropy after fine-tuning from all six sets minus that from the chosen pair, in nats; "
        f"{CONTROLLED}",
        AtLeast(0.0),
    ),
    Claim(
        "real-correlation-positive",
        "On real networks feasibility correlates positively with accuracy, on the mean over downstream sets",
        EVALUATION,
        "not available; a prototype: 0.31",
        f"{REAL}: mean over downstream sets of the Pearson correlation of zeta with one seed's accuracies; "
        "one value a seed",
        AtLeast(0.0),
    ),
    Claim(
        "real-correlations-all-positive",
        "On real networks feasibility correlates positively with accuracy, on every downstream set",
        EVALUATION,
        "not available; a prototype: 0.26, 0.32, 0.45, 0.22",
        f"{REAL}: smallest over downstream sets of the Pearson correlation of zeta with the accuracies' "
        "mean over seeds; pseudo-values of the jackknife over seeds",
        AtLeast(0.0),
    ),
    Claim(
        "real-above-every-baseline",
        "On real networks feasibility foretells accuracy better than every baseline does",
        EVALUATION,
        "not available; in a prototype density did better",
        f"{REAL}: mean over downstream sets of zeta's correlation with one seed's accuracies, minus the "
        "largest of the six baselines' means; one value a seed",
        AtLeast(0.0),
    ),
    Claim(
        "real-selection-beats-all-data",
        "On real networks the selection of highest feasibility is better than all data",
        f"{PAPER}, data selection (as a public leaderboard has it)",
        "67.74 % and 66.04 % ROC-AUC, mean over BACE, BBBP and ClinTox",
        f"{REAL}: accuracy of the chosen selection minus that of all networks, in % points, mean over "
        "downstream sets; one value a seed",
        AtLeast(0.0),
    ),
)


def measurements(zero_shot: Study, tuned: Study, real: Study) -> dict[str, ArrayLike]:
    """The numbers of every claim.

    Args:
        zero_shot: part A, minus the cross-entropy before fine-tuning; one repetition a world.
        tuned: the same after it.
        real: part B, accuracies; one repetition a seed.

    Returns:
        Claim name to one value a repetition.
    """
    zeta, density, uniform, flat = (zero_shot.correlations(name) for name in (ZETA, DENSITY, UNIFORM, TV_H))
    mean_r = zeta.mean(1)
    smallest = jackknife(real.performance, lambda mean: float(real.correlation_of_mean(ZETA, mean).min()))
    return {
        "feasibility-foretells-transfer": zeta.min(1),
        "correlation-is-high": mean_r,
        "above-density": mean_r - density.mean(1),
        "above-every-baseline": above_baselines(zero_shot),
        "learned-weights-help": mean_r - uniform.mean(1),
        "feasible-sets-benefit": benefit_by_rank(tuned)[0] - benefit_by_rank(tuned)[1],
        "transfer-can-be-negative": 100 * negative_share(tuned)[:, NEGATIVE],
        "denoising-hides-structure": flat.mean(1) - density.mean(1),
        "selection-beats-all-data": (tuned.chosen(ZETA) - tuned.all_sets).mean(1),
        "real-correlation-positive": real.correlations(ZETA).mean(1),
        "real-correlations-all-positive": smallest,
        "real-above-every-baseline": above_baselines(real),
        "real-selection-beats-all-data": 100 * (real.chosen(ZETA) - real.all_sets).mean(1),
    }


def above_baselines(study: Study) -> np.ndarray:
    """Mean correlation of zeta over the downstream sets, minus that of the best baseline of all repetitions.

    Args:
        study: scores and performance.

    Returns:
        ``[repetitions]``.
    """
    means = {name: study.correlations(name).mean(1) for name in (ZETA, *BASELINES)}
    best = max(BASELINES, key=lambda name: float(means[name].mean()))
    return means[ZETA] - means[best]


def benefit_by_rank(study: Study, count: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Mean benefit over no pre-training of the selections of highest and of lowest zeta.

    Args:
        study: scores and performance.
        count: selections at each end.

    Returns:
        Both means over downstream sets, ``[repetitions]``.
    """
    benefit = study.of_selections - study.scratch[:, None]
    order = np.broadcast_to(study.scores[ZETA], benefit.shape).argsort(1)
    ranked = np.take_along_axis(benefit, order, 1)
    return ranked[:, -count:].mean((1, 2)), ranked[:, :count].mean((1, 2))


def negative_share(study: Study) -> np.ndarray:
    """Share of the selections that end worse than no pre-training.

    Args:
        study: performance.

    Returns:
        ``[repetitions, targets]``.
    """
    return (study.of_selections < study.scratch[:, None]).mean(1)
