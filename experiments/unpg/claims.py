"""What the paper claims, as small open-set verification can show it, and the measurements."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from experiments.claims import AtLeast, AtMost, Claim, Within
from experiments.unpg.training import Scores, Setting

PAPER = "arXiv:2203.11593"
NOISE = 0.15
WHISKERS = 1.5

SOFTMAX, SOFTMAX_UNPG, SOFTMAX_ALL = Setting(), Setting(r=WHISKERS), Setting(r=np.inf)
NOISY, NOISY_UNPG, NOISY_ALL = (
    Setting(noise=NOISE),
    Setting(r=WHISKERS, noise=NOISE),
    Setting(r=np.inf, noise=NOISE),
)
COSFACE, COSFACE_UNPG = Setting(32.0, 0.35), Setting(32.0, 0.35, WHISKERS)
PEOPLE_SETTINGS = (
    SOFTMAX,
    SOFTMAX_UNPG,
    SOFTMAX_ALL,
    NOISY,
    NOISY_UNPG,
    NOISY_ALL,
    COSFACE,
    COSFACE_UNPG,
)
CHARACTER_SETTINGS = (SOFTMAX, SOFTMAX_UNPG, SOFTMAX_ALL, COSFACE, COSFACE_UNPG)

REFERENCE: dict[Setting, tuple[float, float, float, float]] = {
    SOFTMAX: (57.3, 34.7, 86.8, 97.5),
    SOFTMAX_UNPG: (61.4, 37.4, 88.8, 98.2),
    SOFTMAX_ALL: (62.0, 36.3, 88.8, 97.8),
    NOISY: (50.6, 30.5, 85.5, 96.5),
    NOISY_UNPG: (56.1, 34.2, 86.8, 97.0),
    NOISY_ALL: (48.5, 28.3, 84.9, 94.4),
    COSFACE: (61.5, 37.7, 88.3, 98.2),
    COSFACE_UNPG: (62.3, 37.5, 89.4, 98.0),
}
"""TAR at FAR 1e-2 and 1e-3, 10-fold accuracy and rank-1 of an independent run on ORL, 10 seeds."""

_FACES = "unseen people, TAR at FAR 1e-2, points, paired by seed"

CLAIMS: tuple[Claim, ...] = (
    Claim(
        "unpg-raises-tar",
        "In-batch negative pairs in the denominator make verification of unseen identities better.",
        f"{PAPER}, Table 3 and the authors' README",
        "CosFace to CosFace+UNPG, IJB-B at FAR 1e-5: 89.38 to 90.61",
        f"{_FACES}: normalised softmax with UNPG minus without",
        AtLeast(0.0),
    ),
    Claim(
        "unpg-raises-tar-by-two-points",
        "The gain is not a matter of decimals where the head alone has no margin.",
        f"{PAPER}, the authors' README",
        "K-FACE Q4 at FAR 1e-5: ArcFace 0.05, ArcFace+UNPG 29.89",
        f"{_FACES}: normalised softmax with UNPG minus without",
        AtLeast(2.0),
    ),
    Claim(
        "unpg-raises-tar-of-cosface",
        "UNPG makes a margin head better, too.",
        f"{PAPER}, the authors' README",
        "IJB-C at FAR 1e-4: 96.35 to 96.39",
        f"{_FACES}: CosFace with UNPG minus without",
        AtLeast(0.0),
    ),
    Claim(
        "unpg-raises-ten-fold-accuracy-of-cosface",
        "On balanced pairs UNPG does no harm to a margin head.",
        f"{PAPER}, the authors' README",
        "LFW: 99.83 to 99.81",
        "unseen people, 10-fold accuracy, points, paired by seed: CosFace with UNPG minus without",
        AtLeast(0.0),
    ),
    Claim(
        "the-filter-matters-with-label-noise",
        "The box-and-whisker filter takes out pairs that wrong labels call negative.",
        f"{PAPER}, Section 3 and its ablation",
        "qualitative only",
        f"{_FACES}: 15 % of the labels redrawn, r = 1.5 minus no filter",
        AtLeast(4.0),
    ),
    Claim(
        "without-the-filter-pairs-do-not-help-under-noise",
        "Without the filter wrong labels undo what the pairs give.",
        f"{PAPER}, Section 3 and its ablation",
        "qualitative only",
        f"{_FACES}: 15 % of the labels redrawn, UNPG without filter minus no UNPG",
        AtMost(0.0),
    ),
    Claim(
        "the-filter-keeps-nearly-all-pairs",
        "The filter takes out outliers only.",
        f"{PAPER}, Section 3",
        "qualitative only",
        "training on people, share of negative pairs kept, mean over the steps, r = 1.5, clean labels",
        Within(0.97, 0.999),
    ),
    Claim(
        "the-distributions-overlap-less",
        "The similarities of pairs of one person and of two come apart: a well-discriminative feature space.",
        f"{PAPER}, Section 3, figures of the similarity distributions",
        "qualitative only",
        "unseen people, overlap of both histograms, softmax with UNPG minus without, paired by seed",
        AtMost(0.0),
    ),
    Claim(
        "unpg-raises-tar-on-characters",
        "The same with more classes: characters of alphabets that were never seen.",
        f"{PAPER}, the authors' README",
        "CosFace to CosFace+UNPG, IJB-B at FAR 1e-4: 94.39 to 94.99",
        "unseen alphabets, TAR at FAR 1e-3, points, paired by choice of alphabets: softmax with UNPG minus"
        " without",
        AtLeast(0.0),
    ),
    Claim(
        "no-negatives-is-the-plain-head",
        "A batch of one class has no negative pairs: UNPG is then the plain head.",
        "the definition",
        "equal",
        "largest relative difference of the losses",
        AtMost(1e-5),
    ),
    Claim(
        "one-number-is-all-the-pairs",
        "All pairs beside every row, as the authors' code has them, are one number in every denominator.",
        "the definition",
        "equal",
        "largest relative difference from the tiled form in float64",
        AtMost(1e-5),
    ),
    Claim(
        "sharded-is-whole",
        "Classes on 1, 2, 4 or 8 devices give the loss and the gradients of classes on one.",
        "arXiv:2010.05222, Section 3",
        "equal",
        "largest relative difference of loss and gradients, UNPG with CosFace, 21 classes",
        AtMost(1e-5),
    ),
)


def measurements(
    people: Mapping[Setting, Scores],
    characters: Mapping[Setting, Scores],
    errors: Mapping[str, np.ndarray],
) -> dict[str, ArrayLike]:
    """One value for each seed of every claim.

    Args:
        people: scores of `PEOPLE_SETTINGS`.
        characters: scores of `CHARACTER_SETTINGS`.
        errors: of `relative_errors`.

    Returns:
        Values by the claim's name.
    """

    def gain(setting: Setting, other: Setting) -> np.ndarray:
        return people[setting].tar[:, 0] - people[other].tar[:, 0]

    plain = gain(SOFTMAX_UNPG, SOFTMAX)
    return {
        "unpg-raises-tar": plain,
        "unpg-raises-tar-by-two-points": plain,
        "unpg-raises-tar-of-cosface": gain(COSFACE_UNPG, COSFACE),
        "unpg-raises-ten-fold-accuracy-of-cosface": people[COSFACE_UNPG].tenfold - people[COSFACE].tenfold,
        "the-filter-matters-with-label-noise": gain(NOISY_UNPG, NOISY_ALL),
        "without-the-filter-pairs-do-not-help-under-noise": gain(NOISY_ALL, NOISY),
        "the-filter-keeps-nearly-all-pairs": people[SOFTMAX_UNPG].kept,
        "the-distributions-overlap-less": people[SOFTMAX_UNPG].overlap - people[SOFTMAX].overlap,
        "unpg-raises-tar-on-characters": characters[SOFTMAX_UNPG].tar[:, 1] - characters[SOFTMAX].tar[:, 1],
        "no-negatives-is-the-plain-head": errors["without_pairs"],
        "one-number-is-all-the-pairs": errors["scalar"],
        "sharded-is-whole": errors["sharded"],
    }
