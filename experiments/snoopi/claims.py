"""What the paper claims of a random guidance scale and of negative attention, and what is measured here."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from experiments.claims import AtLeast, AtMost, Claim
from experiments.snoopi.distillation import MEAN, RANDOM, STRONG, SWIFT, Arm, last
from experiments.snoopi.negatives import ALPHAS, CFG, NASA, NONE, SETTINGS

PAPER = "arXiv:2412.02687"

Courses = Mapping[tuple[str, Arm], Mapping[str, np.ndarray]]
"""By backbone and arm "frechet" and "accuracy" ``[seeds, evaluations]``, and samples of the first seed."""
Findings = Mapping[str, np.ndarray]
"""Fields of `negatives.Found`, ``[seeds, settings, ...]``."""

TITLES = {
    "mlp": "residual MLP",
    "gmm": "exact mixture",
    "dit": "DiT with texts",
}
_FRECHET = "Fréchet distance to real digits in one step, mean of the last four measurements"
_PAPER_FID = "FID 9.03 against 10.72 of the fixed scale (Table 2 of the first version, SD 2.1)"
_NEGATIVE = "1600 images of 8 pairs of a group and an unwanted digit"
_HOWS = {"one-step": ("One step", "student"), "four-steps": ("Four steps of DDIM", "teacher")}


def _of_backbone(name: str) -> tuple[Claim, ...]:
    title = TITLES[name]
    return (
        Claim(
            f"{name}-random-scale-is-nearer",
            f"With a random guidance scale the student comes nearer to real images than with SwiftBrush's"
            f" fixed one ({title}).",
            f"{PAPER}, Section 4 and its ablation",
            _PAPER_FID,
            f"{_FRECHET}: {RANDOM.name} over {SWIFT.name}.",
            AtMost(0.75),
        ),
        Claim(
            f"{name}-random-scale-is-steadier",
            f"Its training is more stable ({title}).",
            f"{PAPER}, Section 4",
            "qualitative only",
            "Standard deviation of the last four Fréchet distances of a training:"
            f" {RANDOM.name} minus {SWIFT.name}.",
            AtMost(0.0),
        ),
    )


def _of_strength(name: str) -> tuple[Claim, ...]:
    title = TITLES[name]
    return (
        Claim(
            f"{name}-stronger-scale-is-worse",
            f"A fixed scale that is too large spoils the distillation ({title}).",
            f"{PAPER}, Section 4 and Table 1 of the first version",
            "FID of the teacher alone 9.60 at 3, 10.35 at 4, 11.53 at 5",
            f"{_FRECHET}: {STRONG.name} over {SWIFT.name}.",
            AtLeast(1.5),
        ),
        Claim(
            f"{name}-random-scale-beats-its-mean",
            "It is the randomness that helps: a scale that is always the mean of the random ones does worse"
            f" ({title}).",
            f"{PAPER}, Section 4; the paper has no such control",
            "no such control; the gradient is linear in the scale, so that on average both are the same",
            f"{_FRECHET}: {RANDOM.name} over {MEAN.name}.",
            AtMost(1.0),
        ),
    )


def _of_negatives(slug: str) -> tuple[Claim, ...]:
    title, who = _HOWS[slug]
    return (
        Claim(
            f"{slug}-exclusion-rises",
            f"{title}: the more of the negative attention is subtracted, the rarer is what is unwanted.",
            f"{PAPER}, third version, Figure 7",
            "qualitative only",
            f"{_NEGATIVE}, {who}: the least rise of the share without the unwanted digit between successive"
            f" α of 0, {', '.join(f'{alpha:g}' for alpha in ALPHAS)}.",
            AtLeast(0.0),
        ),
        Claim(
            f"{slug}-unwanted-images-fall",
            f"{title}: NASA removes unwanted features.",
            f"{PAPER}, third version, Table 2",
            "share of images without the feature from 44 to 99 % (FLUX-schnell, one step), 25 to 100 %"
            " (SDXL-DMD2, one step)",
            f"{_NEGATIVE}, {who}: by which part unwanted images become rarer at α = 0.2.",
            AtLeast(0.4),
        ),
        Claim(
            f"{slug}-nasa-keeps-quality",
            f"{title}: NASA leaves the images as good as they were.",
            f"{PAPER}, Table 4 of the first version",
            "HPSv2 30.34 to 31.08 (PixArt-α)",
            f"{_NEGATIVE}, {who}: distance to the nearest real digit at α = 0.2, over that without negative.",
            AtMost(1.03),
        ),
    )


CLAIMS: tuple[Claim, ...] = (
    *_of_backbone("mlp"),
    *_of_strength("mlp"),
    *_of_backbone("gmm"),
    *_of_strength("gmm"),
    *_of_backbone("dit"),
    *_of_negatives("one-step"),
    *_of_negatives("four-steps"),
    *(
        Claim(
            f"one-step-guided-output-costs-quality-at-{slug}",
            f"Guidance of the output of one step, κ = {scale:g}, takes images away from real ones.",
            f"{PAPER}, third version, the comparison with guidance of the output",
            f"HPSv2 of DMD {paper} instead of 28.71",
            f"{_NEGATIVE}: distance to the nearest real digit, over that without negative.",
            AtLeast(threshold),
        )
        for scale, slug, paper, threshold in (
            (1.5, "one-and-a-half", "28.38", 1.05),
            (2.5, "two-and-a-half", "25.10", 1.3),
        )
    ),
    Claim(
        "one-step-too-much-nasa-breaks-images",
        "With α = 1 the images of one step are broken.",
        f"{PAPER}, third version, Figure 7",
        "quality turns down; qualitative only",
        f"{_NEGATIVE}: distance to the nearest real digit at α = 1, over that without negative.",
        AtLeast(1.3),
    ),
)


def ratio(courses: Courses, backbone: str, arm: Arm, over: Arm) -> np.ndarray:
    """Mean Fréchet distance at the end of the training, over that of another arm.

    Args:
        courses: of all arms.
        backbone: its name.
        arm: one arm.
        over: the other one.

    Returns:
        One for each seed.
    """
    above, below = (last(courses[backbone, each]["frechet"])[0] for each in (arm, over))
    return above / below


def value(found: Findings, field: str, setting: str) -> np.ndarray:
    """What was measured of a setting.

    Args:
        found: with one sampler.
        field: of `negatives.Found`.
        setting: one of `negatives.SETTINGS`.

    Returns:
        One for each seed.
    """
    return found[field][:, SETTINGS.index(setting)]


def farther(found: Findings, setting: str) -> np.ndarray:
    """Distance to real digits over that without a negative text.

    Args:
        found: with one sampler.
        setting: one of `negatives.SETTINGS`.

    Returns:
        One for each seed.
    """
    return value(found, "distance", setting) / value(found, "distance", NONE)


def measurements(courses: Courses, negatives: Mapping[str, Findings]) -> dict[str, ArrayLike]:
    """One value for each seed of every claim.

    Args:
        courses: of part A.
        negatives: of part B, "one-step" and "four-steps".

    Returns:
        Values by the claim's name.
    """
    measured: dict[str, ArrayLike] = {}
    for name in TITLES:
        spread, of_swift = (last(courses[name, arm]["frechet"])[1] for arm in (RANDOM, SWIFT))
        measured[f"{name}-random-scale-is-nearer"] = ratio(courses, name, RANDOM, SWIFT)
        measured[f"{name}-random-scale-is-steadier"] = spread - of_swift
        if name != "dit":
            measured[f"{name}-stronger-scale-is-worse"] = ratio(courses, name, STRONG, SWIFT)
            measured[f"{name}-random-scale-beats-its-mean"] = ratio(courses, name, RANDOM, MEAN)
    for slug, found in negatives.items():
        excluded = np.stack([value(found, "excluded", each) for each in (NONE, *NASA.values())])
        measured[f"{slug}-exclusion-rises"] = np.diff(excluded, axis=0).min(axis=0)
        measured[f"{slug}-unwanted-images-fall"] = fewer(found, NASA[0.2])
        measured[f"{slug}-nasa-keeps-quality"] = farther(found, NASA[0.2])
    student = negatives["one-step"]
    measured["one-step-guided-output-costs-quality-at-one-and-a-half"] = farther(student, CFG[1.5])
    measured["one-step-guided-output-costs-quality-at-two-and-a-half"] = farther(student, CFG[2.5])
    measured["one-step-too-much-nasa-breaks-images"] = farther(student, NASA[1.0])
    return measured


def fewer(found: Findings, setting: str) -> np.ndarray:
    """By which part images with the unwanted digit become rarer.

    Args:
        found: with one sampler.
        setting: one of `negatives.SETTINGS`.

    Returns:
        One for each seed; 0 where there were none.
    """
    without, with_ = (1 - value(found, "excluded", each) for each in (setting, NONE))
    return np.where(with_ > 0, 1 - without / np.where(with_ > 0, with_, 1), 0.0)
