"""The paper's claims, on the tables that it can be asked for here.

A gap is an absolute difference between the groups, averaged over seeds; every claim is measured in each seed
on the same split with and without anonymisation. "At least r times" is measured as ``gap - r * gap without``,
which has no quotient of noisy numbers.
"""

import numpy as np
from numpy.typing import ArrayLike

from experiments.anonymity_fairness.studies import Key, Results
from experiments.claims import AtLeast, AtMost, Claim
from jaxneg.fairness import Setting

PAPER = "arXiv:2505.07985, results of its repository, XGBoost, mean of 40 seeds"
COMPAS, ADULT = "compas", "adult_balanced"
RAW, T45, L2 = Setting(), Setting(k=10, t=0.45), Setting(k=10, l=2)
K2, K10, K100 = Setting(k=2), Setting(k=10), Setting(k=100)
LITTLE = 0.1
"""Fraction of the table in the study of data size."""

CLAIMS: tuple[Claim, ...] = (
    Claim(
        name="t-closeness-widens-parity-gap",
        sentence="Anonymisation makes group fairness worse: the gap of selection rates between races grows.",
        source=PAPER,
        paper="|SPD| 0.836 at t = 0.45, k = 10 and 0.283 without: 3.0 times",
        measure="COMPAS, race: |SPD| at t = 0.45, k = 10 minus 2.5 times that without anonymisation",
        criterion=AtLeast(0.0),
    ),
    Claim(
        name="t-closeness-widens-opportunity-gap",
        sentence="Gaps grow by up to four times and more: so does that of true positive rates.",
        source=PAPER,
        paper="|EOD| 0.867 at t = 0.45, k = 10 and 0.143 without: 6.1 times",
        measure="COMPAS, race: |EOD| at t = 0.45, k = 10 minus 5 times that without anonymisation",
        criterion=AtLeast(0.0),
    ),
    Claim(
        name="large-k-widens-parity-gap",
        sentence="k-anonymity alone does so at a large k.",
        source=PAPER,
        paper="|SPD| 0.768 at k = 100 and 0.283 without: 2.7 times",
        measure="COMPAS, race: |SPD| at k = 100 minus 1.5 times that without anonymisation",
        criterion=AtLeast(0.0),
    ),
    Claim(
        name="l-diversity-widens-parity-gap",
        sentence="l-diversity is as harmful as strict t-closeness.",
        source=PAPER,
        paper="|SPD| between sexes 0.714 at l = 2, k = 10 and 0.127 without: 5.6 times",
        measure="COMPAS, sex: |SPD| at l = 2, k = 10 minus 2.5 times that without anonymisation",
        criterion=AtLeast(0.0),
    ),
    Claim(
        name="moderate-k-spares-groups",
        sentence="The effect of k is not monotone: a moderate k does not widen the gap between races.",
        source=PAPER,
        paper="|SPD| 0.251 at k = 10 and 0.283 without",
        measure="COMPAS, race: |SPD| at k = 10 minus that without anonymisation",
        criterion=AtMost(0.0),
    ),
    Claim(
        name="neighbours-become-alike",
        sentence="Individual fairness improves: neighbours are treated more alike (NCF).",
        source=PAPER,
        paper="NCF 0.023 at t = 0.45, k = 10 and 0.234 without: 0.1 times",
        measure="COMPAS: NCF at t = 0.45, k = 10 minus 0.4 times that without anonymisation",
        criterion=AtMost(0.0),
    ),
    Claim(
        name="similarity-fairness-improves",
        sentence="Individual fairness improves by the similarity-weighted measure (ASF) too.",
        source=PAPER,
        paper="ASF 0.029 at t = 0.45, k = 10 and 1.90 without: 0.015 times",
        measure="COMPAS: ASF at t = 0.45, k = 10 minus 0.4 times that without anonymisation",
        criterion=AtMost(0.0),
    ),
    Claim(
        name="similarity-fairness-improves-with-k",
        sentence="ASF falls with k.",
        source=PAPER,
        paper="ASF 1.04, 0.37, 0.067 at k = 2, 10, 100",
        measure="COMPAS: the smaller fall of ASF, from k = 2 to 10 or from 10 to 100",
        criterion=AtLeast(0.0),
    ),
    Claim(
        name="lipschitz-fairness-worsens-first",
        sentence="Lipschitz fairness (ALF) gets worse at small k before it improves.",
        source=PAPER,
        paper="ALF 2.96 at k = 2 and 1.81 without",
        measure="COMPAS: ALF at k = 2 minus that without anonymisation",
        criterion=AtLeast(0.0),
    ),
    Claim(
        name="large-k-costs-accuracy",
        sentence="Strong anonymisation costs accuracy: at a large k.",
        source=PAPER,
        paper="accuracy 0.630 at k = 100 and 0.794 without: 0.164 less",
        measure="COMPAS: accuracy without anonymisation minus that at k = 100",
        criterion=AtLeast(0.12),
    ),
    Claim(
        name="t-closeness-costs-accuracy",
        sentence="Strong anonymisation costs accuracy: under strict t-closeness.",
        source=PAPER,
        paper="accuracy 0.621 at t = 0.45, k = 10 and 0.794 without: 0.174 less",
        measure="COMPAS: accuracy without anonymisation minus that at t = 0.45, k = 10",
        criterion=AtLeast(0.12),
    ),
    Claim(
        name="suppression-softens-harm",
        sentence="A suppression limit of 20 % harms groups less than one of 10 %.",
        source=PAPER,
        paper="|SPD| 0.672 with 10 % and 0.251 with 20 %",
        measure="COMPAS, race, k = 10: |SPD| with a limit of 10 % minus that with 20 %",
        criterion=AtLeast(0.2),
    ),
    Claim(
        name="more-data-softens-harm",
        sentence="Small tables are harmed more.",
        source=PAPER,
        paper="|SPD| 0.551 with a tenth of the rows and 0.254 with all",
        measure="COMPAS, race, k = 10: |SPD| with a tenth of the rows minus that with all",
        criterion=AtLeast(0.0),
    ),
    Claim(
        name="harm-in-another-classifier",
        sentence="The harm does not depend on the classifier.",
        source=PAPER,
        paper="|SPD| at l = 2, k = 10 between 0.58 (XGBoost) and 0.66 (MLP)",
        measure="COMPAS, race, logistic regression: |SPD| at t = 0.45, k = 10 minus 2.5 times that without",
        criterion=AtLeast(0.0),
    ),
    Claim(
        name="adult-groups-are-harmed",
        sentence="The gap between genders on Adult grows under strict t-closeness.",
        source=PAPER + "; its Adult is the reconstructed one, cut at the median income",
        paper="|SPD| 0.854 at t = 0.45, k = 10 and 0.355 without: 2.4 times",
        measure="balanced UCI Adult, gender: |SPD| at t = 0.45, k = 10 minus 2 times that without",
        criterion=AtLeast(0.0),
    ),
    Claim(
        name="adult-neighbours-become-alike",
        sentence="Individual fairness on Adult improves.",
        source=PAPER + "; its Adult is the reconstructed one, cut at the median income",
        paper="NCF 0.001 at t = 0.45, k = 10 and 0.230 without: 0.004 times",
        measure="balanced UCI Adult: NCF at t = 0.45, k = 10 minus 0.4 times that without anonymisation",
        criterion=AtMost(0.0),
    ),
)


def measurements(results: Results) -> dict[str, ArrayLike]:
    """A value of each claim for each seed.

    Args:
        results: metrics of every study.

    Returns:
        Claim name to ``[seeds]``.
    """

    def of(name: str, setting: Setting, table: str = COMPAS, classifier: str = "mlp") -> np.ndarray:
        return np.abs(results[Key("privacy", table, classifier, "", setting)][name])

    def over(name: str, setting: Setting, times: float, **which: str) -> np.ndarray:
        return of(name, setting, **which) - times * of(name, RAW, **which)

    little = results[Key("fraction", COMPAS, "mlp", f"{LITTLE:g}", K10)]
    logistic = {s: results[Key("classifier", COMPAS, "logistic", "", s)]["race/SPD"] for s in (RAW, T45)}
    asf = [of("ASF", setting) for setting in (K2, K10, K100)]
    return {
        "t-closeness-widens-parity-gap": over("race/SPD", T45, 2.5),
        "t-closeness-widens-opportunity-gap": over("race/EOD", T45, 5),
        "large-k-widens-parity-gap": over("race/SPD", K100, 1.5),
        "l-diversity-widens-parity-gap": over("sex/SPD", L2, 2.5),
        "moderate-k-spares-groups": over("race/SPD", K10, 1),
        "neighbours-become-alike": over("NCF", T45, 0.4),
        "similarity-fairness-improves": over("ASF", T45, 0.4),
        "similarity-fairness-improves-with-k": np.minimum(asf[0] - asf[1], asf[1] - asf[2]),
        "lipschitz-fairness-worsens-first": over("ALF", K2, 1),
        "large-k-costs-accuracy": -over("ACC", K100, 1),
        "t-closeness-costs-accuracy": -over("ACC", T45, 1),
        "suppression-softens-harm": of("race/SPD", K10._replace(supp=10.0)) - of("race/SPD", K10),
        "more-data-softens-harm": np.abs(little["race/SPD"]) - of("race/SPD", K10),
        "harm-in-another-classifier": np.abs(logistic[T45]) - 2.5 * np.abs(logistic[RAW]),
        "adult-groups-are-harmed": over("gender/SPD", T45, 2, table=ADULT),
        "adult-neighbours-become-alike": over("NCF", T45, 0.4, table=ADULT),
    }


OFFICIAL: dict[tuple[str, str, Setting], tuple[float, ...]] = {
    ("compas", "race", Setting()): (0.283, 0.143, 0.794, 1.900, 1.81, 0.234),
    ("compas", "race", Setting(k=2)): (0.261, 0.100, 0.792, 1.037, 2.96, 0.263),
    ("compas", "race", Setting(k=5)): (0.287, 0.122, 0.792, 0.488, 2.64, 0.184),
    ("compas", "race", Setting(k=10)): (0.251, 0.081, 0.767, 0.369, 2.00, 0.157),
    ("compas", "race", Setting(k=25)): (0.594, 0.642, 0.671, 0.169, 1.93, 0.084),
    ("compas", "race", Setting(k=50)): (0.541, 0.562, 0.667, 0.163, 1.72, 0.083),
    ("compas", "race", Setting(k=100)): (0.768, 0.790, 0.630, 0.067, 0.28, 0.029),
    ("compas", "race", Setting(k=10, l=2)): (0.581, 0.644, 0.671, 0.014, 0.92, 0.014),
    ("compas", "race", Setting(k=10, t=0.5)): (0.359, 0.242, 0.735, 0.322, 1.92, 0.140),
    ("compas", "race", Setting(k=10, t=0.45)): (0.836, 0.867, 0.621, 0.029, 0.47, 0.023),
    ("compas", "sex", Setting()): (0.127, 0.024, 0.794, 1.900, 1.81, 0.234),
    ("compas", "sex", Setting(k=100)): (0.552, 0.665, 0.630, 0.067, 0.28, 0.029),
    ("compas", "sex", Setting(k=10, l=2)): (0.714, 0.898, 0.670, 0.045, 1.40, 0.035),
    ("adult_balanced", "gender", Setting()): (0.355, 0.204, 0.815, 1.562, 1.46, 0.230),
    ("adult_balanced", "gender", Setting(k=50)): (0.488, 0.433, 0.772, 0.081, 1.99, 0.073),
    ("adult_balanced", "gender", Setting(k=10, t=0.45)): (0.854, 0.827, 0.653, 0.001, 0.43, 0.001),
}
"""|SPD|, |EOD|, accuracy, ASF, ALF, NCF of the official results, XGBoost, mean of 40 seeds."""
