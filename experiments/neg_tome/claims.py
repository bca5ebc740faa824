"""What the paper claims, as tiny models of digits can show it: the settings, and the measurements."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from experiments.claims import AtLeast, AtMost, Claim
from experiments.neg_tome.sampling import Setting

PAPER = "arXiv:2412.01339"
GUIDANCES = (1.5, 3.0, 5.0)
MAIN = 3.0
"""The scale of classifier-free guidance where there is only one."""


def plain(guidance: float = MAIN) -> Setting:
    """Without negative token merging."""
    return Setting(guidance=guidance)


def first(guidance: float = MAIN) -> Setting:
    """Away from the first image, as the released code does."""
    return Setting("first", guidance)


def others(
    guidance: float = MAIN, alpha: float = 2.0, *, threshold: float = 0.65, t_end: float = 600.0
) -> Setting:
    """Away from all other images."""
    return Setting("leave-one-out", guidance, alpha, threshold, t_end)


THRESHOLDS = (0.8, 0.65, 0.5)
OFFICIAL, RANDOM, CADS = Setting("official"), Setting("random match"), Setting(cads=True)
DIVERSITY: dict[Setting, str] = {
    **{plain(g): f"none, CFG {g:g}" for g in GUIDANCES},
    **{first(g): f"first image, CFG {g:g}" for g in GUIDANCES},
    **{others(g): f"other images, α 2, CFG {g:g}" for g in GUIDANCES},
    others(alpha=0.9, t_end=0.0): "other images, α 0.9, all steps, CFG 3",
    others(t_end=900.0): "other images, α 2, t ≥ 900, CFG 3",
    others(threshold=0.8): "other images, α 2, τ 0.8, CFG 3",
    others(threshold=0.5): "other images, α 2, τ 0.5, CFG 3",
    others(alpha=5.0): "other images, α 5, CFG 3",
    OFFICIAL: "first image, released code's axis, CFG 3",
    RANDOM: "first image, random match, CFG 3",
    CADS: "CADS, CFG 3",
}
"""Part A, and what the table calls its settings; unless it says otherwise α 0.9, τ 0.65, t ≥ 600."""

DIVERSITY_REFERENCE: dict[Setting, tuple[float, float, float]] = {
    plain(1.5): (0.598, 1.187, 2.68),
    plain(3.0): (0.682, 1.144, 8.48),
    plain(5.0): (0.717, 1.133, 14.17),
    first(1.5): (0.577, 1.196, 2.51),
    first(3.0): (0.651, 1.158, 8.10),
    first(5.0): (0.672, 1.149, 13.28),
    others(1.5): (0.526, 1.223, 1.93),
    others(3.0): (0.585, 1.189, 7.34),
    others(5.0): (0.608, 1.178, 12.10),
    others(alpha=0.9, t_end=0.0): (0.537, 1.210, 6.46),
    others(t_end=900.0): (0.671, np.nan, np.nan),
    others(threshold=0.8): (0.645, np.nan, np.nan),
    others(threshold=0.5): (0.546, np.nan, np.nan),
    others(alpha=5.0): (0.568, np.nan, np.nan),
}
"""Similarity, Vendi score and Fréchet distance of an independent run in PyTorch, one seed; NaN: not noted."""


def away(alpha: float, t_end: float = 600.0, *, noised: bool = True, masked: bool = False) -> Setting:
    """Away from a given image."""
    return Setting("first", MAIN, alpha, t_end=t_end, noised=noised, masked=masked)


ALPHAS = (0.9, 2.0, 3.0)
GUIDED: dict[Setting, str] = {
    plain(): "none",
    **{away(a): f"α {a:g}, t ≥ 600" for a in ALPHAS},
    **{away(a, 0.0): f"α {a:g}, all steps" for a in ALPHAS},
    away(0.9, noised=False): "α 0.9, t ≥ 600, clean reference",
    away(0.9, 0.0, noised=False): "α 0.9, all steps, clean reference",
    away(2.0, masked=True): "α 2, t ≥ 600, upper half of the reference",
}
"""Part B, and what the table calls its settings."""

GUIDED_REFERENCE: dict[Setting, float] = {
    plain(): 0.696,
    away(0.9): 0.675,
    away(2.0): 0.656,
    away(3.0): 0.648,
    away(0.9, 0.0): 0.635,
    away(2.0, 0.0): 0.583,
    away(3.0, 0.0): 0.558,
    away(0.9, noised=False): 0.669,
    away(0.9, 0.0, noised=False): 0.627,
}
"""Similarity to the reference in the independent run."""

_SCALES = f"over the CFG scales {', '.join(f'{g:g}' for g in GUIDANCES)}"
_PAIRS = "mean cosine of the pixels of two images of a prompt, around the mean of the data"
_FIGURE_4 = f"{PAPER}, Figure 4"

CLAIMS: tuple[Claim, ...] = (
    Claim(
        "first-image-raises-diversity",
        "Pushed away from the first image of the batch, the images of a prompt become more different.",
        _FIGURE_4,
        "DreamSim similarity 0.812 to 0.780 (Flux)",
        f"{_PAIRS}: how far it falls, the least {_SCALES}",
        AtLeast(0.02),
    ),
    Claim(
        "other-images-raise-diversity",
        "Pushed away from all other images of the batch they become more different still.",
        f"{PAPER}, Section 3",
        "qualitative only",
        f"{_PAIRS}: how far it falls with α 2, the least {_SCALES}",
        AtLeast(0.06),
    ),
    Claim(
        "first-image-keeps-the-distribution",
        "The gain in diversity does not cost quality: the Fréchet distance does not rise.",
        _FIGURE_4,
        "lower FID, in a plot",
        f"rise of the Fréchet distance to the data in a classifier's features, first image, most {_SCALES}",
        AtMost(0.0),
    ),
    Claim(
        "other-images-keep-the-distribution",
        "The same with all other images of the batch.",
        _FIGURE_4,
        "lower FID, in a plot",
        f"rise of the Fréchet distance to the data, other images with α 2, the most {_SCALES}",
        AtMost(0.0),
    ),
    Claim(
        "the-prompt-is-followed",
        "Images still show what the prompt asks for.",
        f"{PAPER}, the table with prompt rewriting",
        "CLIPScore 0.334 to 0.336",
        f"loss of a classifier's accuracy, both references, the most {_SCALES}",
        AtMost(0.01),
    ),
    Claim(
        "inception-score-is-kept",
        "The inception score does not fall.",
        _FIGURE_4,
        "inception score 3.197 to 3.355",
        f"fall of the inception score, both references, the most {_SCALES}",
        AtMost(0.1),
    ),
    Claim(
        "a-lower-threshold-pushes-more",
        "The threshold sets how many tokens are pushed: diversity grows as it falls.",
        f"{PAPER}, Section 3",
        "qualitative only",
        f"{_PAIRS}: the lesser fall from τ 0.8 to 0.65 and from there to 0.5, other images, CFG 3",
        AtLeast(0.0),
    ),
    Claim(
        "a-reference-is-avoided",
        "Pushed away from a given image throughout, images look less like it.",
        f"{PAPER}, abstract",
        "similarity to copyrighted characters -34.57 %",
        "relative fall of the mean cosine to the class's medoid, pixels around their mean, α 2, all steps",
        AtLeast(0.10),
    ),
    Claim(
        "what-avoids-a-reference-shows-its-class",
        "An image that avoids the reference still shows what the prompt asks for.",
        f"{PAPER}, abstract",
        "qualitative only",
        "a classifier's accuracy, α 2, all steps",
        AtLeast(0.99),
    ),
    Claim(
        "a-mask-chooses-what-is-avoided",
        "With a mask only the masked part of the reference is avoided.",
        f"{PAPER}, Section 4",
        "qualitative only",
        "fall of the cosine of the upper halves minus that of the lower ones, upper half avoided, α 2",
        AtLeast(0.0),
    ),
    Claim(
        "it-costs-little",
        "Sampling takes less than 4 % longer.",
        f"{PAPER}, abstract",
        "13.2 s to 13.7 s",
        "multiplications of all 25 steps with the first image over those without, minus 1, at Flux's width"
        " and number of tokens, 4 images; counted, the same for all seeds",
        AtMost(0.04),
    ),
)

Values = Mapping[str, Float[np.ndarray, "seeds settings"]]
"""Measurements by name."""


def measurements(diversity: Values, guided: Values, share: float) -> dict[str, ArrayLike]:
    """One value for each seed of every claim.

    Args:
        diversity: `experiments.neg_tome.judges.Quality` of all of ``DIVERSITY``.
        guided: `experiments.neg_tome.judges.Likeness` of all of ``GUIDED``.
        share: by how much the multiplications of a run grow.

    Returns:
        Values by the claim's name.
    """

    def at(name: str, settings: Sequence[Setting]) -> np.ndarray:
        return column(diversity, DIVERSITY, name, settings)

    def rise(name: str, how: Sequence[Setting]) -> np.ndarray:
        return at(name, how) - at(name, without)

    without, of_first, of_others = ([f(g) for g in GUIDANCES] for f in (plain, first, others))
    by_threshold = at("similarity", [others(threshold=tau) for tau in THRESHOLDS])
    whole, masked = away(2.0, 0.0), away(2.0, masked=True)

    def reference(name: str, *settings: Setting) -> np.ndarray:
        return column(guided, GUIDED, name, settings)

    base, pushed = reference("similarity", plain(), whole).T
    upper, lower = (np.diff(reference(half, masked, plain()))[:, 0] for half in ("upper", "lower"))
    seeds = len(base)

    def lost(name: str) -> np.ndarray:
        return np.concatenate([-rise(name, of_first), -rise(name, of_others)], axis=1).max(1)

    return {
        "first-image-raises-diversity": -rise("similarity", of_first).max(1),
        "other-images-raise-diversity": -rise("similarity", of_others).max(1),
        "first-image-keeps-the-distribution": rise("frechet", of_first).max(1),
        "other-images-keep-the-distribution": rise("frechet", of_others).max(1),
        "the-prompt-is-followed": lost("accuracy"),
        "inception-score-is-kept": lost("inception"),
        "a-lower-threshold-pushes-more": -np.diff(by_threshold).max(1),
        "a-reference-is-avoided": 1 - pushed / base,
        "what-avoids-a-reference-shows-its-class": reference("accuracy", whole)[:, 0],
        "a-mask-chooses-what-is-avoided": upper - lower,
        "it-costs-little": np.full(seeds, share),
    }


def column(
    values: Values, names: Mapping[Setting, str], name: str, settings: Sequence[Setting]
) -> Float[np.ndarray, "seeds chosen"]:
    """The values of some settings.

    Args:
        values: by name.
        names: all settings, in the order of the values.
        name: of the measurement.
        settings: which ones.

    Returns:
        A column for each.
    """
    order = list(names)
    return values[name][:, [order.index(setting) for setting in settings]]
