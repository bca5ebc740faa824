"""Experiment A: a negative prompt that shares its concept with the main one, where the truth is known.

Eight Gaussians in 16 dimensions, four concepts times two attributes ("views"). The main prompt asks for
attribute 1 of concept 0 and gets attribute 0 seven times in ten, as image models favour one view; the
negative prompt is attribute 0 of the same concept. Every denoiser is exact: what differs is guidance alone.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxneg.diffusion import (
    cebm_guidance,
    cfg_guidance,
    ddim_sample,
    gaussian_mixture_denoiser,
    linear_schedule,
    perp_neg_guidance,
    plain_negative_guidance,
)

DIM, CONCEPTS, ATTRIBUTES = 16, 4, 2
GEOMETRY_SEED = 0
CONCEPT_LENGTH, ATTRIBUTE_LENGTH, STD = 3.0, 1.0, 1.0

UNCONDITIONAL = np.full(CONCEPTS * ATTRIBUTES, 1 / (CONCEPTS * ATTRIBUTES))
MAIN = np.array([0.7, 0.3, 0, 0, 0, 0, 0, 0])
NEGATIVE = np.array([1.0, 0, 0, 0, 0, 0, 0, 0])
"""Prompts as weights of the components; component 2 c + a is attribute a of concept c."""

ALPHAS_CUMPROD = np.concatenate([[1.0], linear_schedule(1000).alphas_cumprod])
"""Alpha-bar at t = 0 (clean), 1, ..., 1000."""

RULES = ("CFG", "plain negative", "CEBM", "Perp-Neg")


class Setting(NamedTuple):
    """A rule and the weight of the negative prompt, which is subtracted; 0 for rules that have none."""

    rule: str
    weight: float


class Scores(NamedTuple):
    """Shares of the samples, and how far these are from the data; ``[settings, seeds]`` each."""

    concept: Float[np.ndarray, "settings seeds"]
    attribute: Float[np.ndarray, "settings seeds"]
    joint: Float[np.ndarray, "settings seeds"]
    distance: Float[np.ndarray, "settings seeds"]


def all_settings(weights: Sequence[float]) -> list[Setting]:
    """The two rules without a weight, and the two others with each of the weights."""
    weighted = [Setting(rule, weight) for rule in ("CEBM", "Perp-Neg") for weight in weights]
    return [Setting("CFG", 0.0), Setting("plain negative", 0.0), *weighted]


def axes() -> Float[np.ndarray, "dim dim"]:
    """The orthonormal directions of the concepts and, after them, of the attributes."""
    return np.linalg.qr(np.random.default_rng(GEOMETRY_SEED).standard_normal((DIM, DIM)))[0]


def component_means() -> Float[np.ndarray, "components dim"]:
    """The means of the components, concept by concept."""
    q = axes()
    concepts = CONCEPT_LENGTH * q[:CONCEPTS, None]
    attributes = ATTRIBUTE_LENGTH * q[None, CONCEPTS : CONCEPTS + ATTRIBUTES]
    return (concepts + attributes).reshape(-1, DIM)


def sample(
    settings: Sequence[Setting],
    starts: Float[Array, "seeds samples dim"],
    *,
    scale: float,
    steps: int,
    eps: float,
) -> Float[Array, "settings seeds samples dim"]:
    """Samples of every setting and seed, in one program.

    Args:
        settings: rules and weights.
        starts: standard normal noise, the same for all settings.
        scale: guidance scale.
        steps: of DDIM, from t = 1000 to 0.
        eps: floor of Perp-Neg's denominator.

    Returns:
        The samples.
    """
    rules = jnp.array([RULES.index(setting.rule) for setting in settings])
    weights = jnp.array([setting.weight for setting in settings])
    return _sample(rules, weights, starts, scale, steps=steps, eps=eps)


@partial(jax.jit, static_argnames=("steps", "eps"))
def _sample(
    rules: Int[Array, " settings"],
    weights: Float[Array, " settings"],
    starts: Float[Array, "seeds samples dim"],
    scale: float,
    *,
    steps: int,
    eps: float,
) -> Float[Array, "settings seeds samples dim"]:
    noise = gaussian_mixture_denoiser(component_means(), UNCONDITIONAL, np.array(STD), ALPHAS_CUMPROD).noise
    grid = np.round(np.linspace(len(ALPHAS_CUMPROD) - 1, 0, steps + 1)).astype(np.int32)

    def of_setting(rule: Array, weight: Array, x_T: Array) -> Array:
        def denoise(x: Array, t: Array, _: None) -> Array:
            u, p, n = (noise(x, t, prompt.astype(x.dtype)) for prompt in (UNCONDITIONAL, MAIN, NEGATIVE))
            choices = (
                lambda: cfg_guidance(u, p, scale),
                lambda: plain_negative_guidance(n, p, scale),
                lambda: cebm_guidance(u, p, n[None], -weight[None], scale),
                lambda: perp_neg_guidance(u, p, n[None], -weight[None], scale, eps=eps),
            )
            return jax.lax.switch(rule, choices)

        return ddim_sample(denoise, x_T, grid[:-1], ALPHAS_CUMPROD)

    of_seeds = jax.vmap(of_setting, (None, None, 0))
    return jax.vmap(of_seeds, (0, 0, None))(rules, weights, starts)


def score(found: Float[np.ndarray, "settings seeds samples dim"]) -> Scores:
    """How often the nearest mean is what was asked for, and how far away it is.

    Args:
        found: samples.

    Returns:
        Shares, and the median distance to the nearest mean over ``STD sqrt(DIM)``: about 1 on the data.
    """
    means = component_means()
    squared = (found**2).sum(-1)[..., None] - 2 * found @ means.T.astype(found.dtype) + (means**2).sum(-1)
    concept, attribute = np.divmod(squared.argmin(-1), ATTRIBUTES)
    right_concept, right_attribute = concept == 0, attribute == 1
    distance = np.sqrt(squared.min(-1).clip(0)) / (STD * np.sqrt(DIM))
    return Scores(
        right_concept.mean(-1),
        right_attribute.mean(-1),
        (right_concept & right_attribute).mean(-1),
        np.median(distance, axis=-1),
    )
