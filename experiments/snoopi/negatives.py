"""Part B: images of a group of digits without one of them, by negative texts in many ways.

A text asks for a group ("even"), a negative text for one of its digits ("4"). Counted is how often that digit
does not appear, how often the image is of the group, and how far it is from real digits.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from experiments.snoopi.distillation import ABAR_T
from experiments.snoopi.judge import judge
from experiments.snoopi.networks import ALPHAS_CUMPROD, PIXELS, TIMESTEPS, Params
from experiments.snoopi.text_dit import EVEN, LARGE, ODD, PAD, SIDE, SMALL, nag, nasa, steered, told
from jaxneg.diffusion import cfg_combine, ddim_sample, one_step_predict

PAIRS = ((EVEN, 4), (EVEN, 0), (ODD, 3), (ODD, 7), (SMALL, 1), (SMALL, 2), (LARGE, 8), (LARGE, 6))
MEMBERS = {EVEN: (0, 2, 4, 6, 8), ODD: (1, 3, 5, 7, 9), SMALL: (0, 1, 2, 3, 4), LARGE: (5, 6, 7, 8, 9)}
NAMES = {EVEN: "even", ODD: "odd", SMALL: "small", LARGE: "large"}
ALPHAS = (0.1, 0.2, 0.35, 0.5, 1.0)
SCALES = (1.5, 2.5)
NAG = (4.0, 2.5, 0.25)
"""Its scale, tau and alpha."""
SUBTRACTED = 0.5
"""How much of the negative text's embeddings is subtracted from those of the text."""
FOUR_STEPS = np.arange(TIMESTEPS - 1, 0, -250)
SHOWN = 4

NONE = "none"
NASA = {alpha: f"NASA, α = {alpha:g}" for alpha in ALPHAS}
CFG = {scale: f"guided output, κ = {scale:g}" for scale in SCALES}
NAG_NAME = "NAG, φ = {:g}, τ = {:g}, a = {:g}".format(*NAG)
EMBEDDINGS = f"subtracted embeddings, {SUBTRACTED:g}"
SETTINGS = (NONE, *NASA.values(), *CFG.values(), NAG_NAME, EMBEDDINGS)


class Found(NamedTuple):
    """What was measured of every setting, in the order of `SETTINGS`."""

    excluded: Float[Array, " settings"]
    """Share of the images that are not taken for the negative digit."""
    in_group: Float[Array, " settings"]
    """Share that are taken for a digit of the group."""
    distance: Float[Array, " settings"]
    """Mean distance to the nearest real digit."""
    samples: Float[Array, "settings shown 64"]
    """The first of each pair."""


def measure(params: Params, images: int, draw: Callable[[Any, Array], Array], key: PRNGKeyArray) -> Found:
    """Samples every setting from the same noise.

    Args:
        params: of the DiT.
        images: of each pair of texts.
        draw: ``(denoise(x, t), noise) -> images``; `in_one_step` or `in_four_steps`.
        key: random key.

    Returns:
        What was found.
    """
    pairs = np.repeat(np.array(PAIRS, np.int32), images, axis=0)
    text, negative = (jnp.stack([jnp.asarray(words), jnp.full(len(words), PAD)], 1) for words in pairs.T)
    group = np.zeros((len(pairs), 10), bool)
    for row, (first, _) in enumerate(pairs):
        group[row, list(MEMBERS[int(first)])] = True
    noise = jax.random.normal(key, (len(pairs), SIDE, SIDE, 1))
    words = params["words"]

    def found(denoise: Callable[[Array, Array], Array]) -> tuple[Array, ...]:
        x = draw(denoise, noise).reshape(-1, PIXELS)
        label = judge().label(x)
        shown = x.reshape(len(PAIRS), images, PIXELS)[:, :SHOWN].reshape(-1, PIXELS)
        in_group = jnp.asarray(group)[jnp.arange(len(pairs)), label]
        return jnp.mean(label != negative[:, 0]), jnp.mean(in_group), judge().nearest(x).mean(), shown

    def by_nasa(alpha: Array) -> tuple[Array, ...]:
        return found(lambda x, t: steered(params, x, t, text, negative, nasa(alpha)))

    def by_guidance(scale: Array) -> tuple[Array, ...]:
        def guided(x: Array, t: Array) -> Array:
            # Linear in the output: guided noise makes guided samples of one step.
            away, to = (told(params, x, t, words[each]) for each in (negative, text))
            return cfg_combine(away, to, scale)

        return found(guided)

    single = (
        found(lambda x, t: steered(params, x, t, text, negative, nag(*NAG))),
        found(lambda x, t: told(params, x, t, words[text] - SUBTRACTED * words[negative])),
    )
    parts = (
        jax.lax.map(by_nasa, jnp.array([0.0, *ALPHAS])),
        jax.lax.map(by_guidance, jnp.array(SCALES)),
        *(jax.tree.map(lambda leaf: leaf[None], each) for each in single),
    )
    return Found(*jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts))


def in_one_step(denoise: Callable[[Array, Array], Array], noise: Array) -> Array:
    """A student's samples."""
    last = jnp.full(len(noise), TIMESTEPS - 1)
    return one_step_predict(denoise(noise, last), noise, ABAR_T)


def in_four_steps(denoise: Callable[[Array, Array], Array], noise: Array) -> Array:
    """A teacher's samples by DDIM in four steps."""
    return ddim_sample(lambda x, t, _: denoise(x, t), noise, FOUR_STEPS, ALPHAS_CUMPROD)
