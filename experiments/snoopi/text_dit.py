"""A small DiT that is told texts of two words, and what a negative text does inside its cross-attention.

It has 16 tokens of 2 x 2 pixels and two blocks, whose norms know the timestep alone; the text comes in by
cross-attention, as in PixArt-alpha (arXiv:2310.00426, Section 2.3). The word for padding is a word as any
other, and attended to.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from experiments.digits import CLASSES
from experiments.snoopi.networks import Network, Params, drawn
from jaxneg.diffusion import nag_combine, nasa_cross_attention, paired_attention
from jaxneg.nn.dit import DiTConfig, dit

SIDE = 8
EVEN, ODD, SMALL, LARGE, ANY, PAD, NULL = range(CLASSES, CLASSES + 7)
WORDS = NULL + 1
"""The vocabulary: the digits 0 to 9, and these. Small digits are 0 to 4."""
SHARES = (0.4, 0.2, 0.2, 0.1, 0.07, 0.03)
"""How often an image's text is its digit, its parity, its size, parity and size, any digit, no text."""
NULL_TEXT = np.array([NULL, PAD], np.int32)
WORD_STD = 0.5
LORA_MATCH = r"attention/\w+/kernel$|feed_forward/\w+/kernel$|^dit/(patches|final/out)/kernel$"
"""All kernels but those of the words and of the timestep."""

Combine = Callable[[Array, Array, Array, Array, Array], Array]
"""``(q [batch, tokens, heads, size], k_pos [batch, words, heads, size], v_pos, k_neg, v_neg) -> like q``."""


def text_of(key: PRNGKeyArray, digit: Int[Array, " batch"]) -> Int[Array, "batch 2"]:
    """Texts that are true of digits, drawn as `SHARES` says.

    Args:
        key: random key.
        digit: what the images show.

    Returns:
        Two words for each.
    """
    kind = jax.random.categorical(key, jnp.log(jnp.array(SHARES)), shape=digit.shape)
    parity, size = jnp.where(digit % 2 == 0, EVEN, ODD), jnp.where(digit < 5, SMALL, LARGE)
    rest = (jnp.full_like(digit, word) for word in (ANY, NULL))
    first = jnp.stack([digit, parity, size, parity, *rest])[kind, jnp.arange(len(digit))]
    return jnp.stack([first, jnp.where(kind == 3, size, PAD)], axis=1)


def text_dit(width: int) -> Network:
    """The DiT as a network to distil.

    Args:
        width: of the tokens and of the words' embeddings, a multiple of 4.

    Returns:
        The network; a condition is a text ``[batch, 2]``.
    """
    init, _ = dit(_config(width))

    def init_both(key: PRNGKeyArray) -> Params:
        of_words, of_dit = jax.random.split(key)
        return {"words": WORD_STD * jax.random.normal(of_words, (WORDS, width)), "dit": init(of_dit)}

    def examples(key: PRNGKeyArray, batch: int) -> tuple[Array, Array]:
        of_rows, of_text = jax.random.split(key)
        x, digit = drawn(of_rows, batch)
        return x.reshape(batch, SIDE, SIDE, 1), text_of(of_text, digit)

    def apply(
        params: Params,
        x: Array,
        t: Array,
        text: Array,
        neg_cond: Array | None = None,
        alpha: float | Array = 0.0,
    ) -> Array:
        if neg_cond is None:
            return told(params, x, t, params["words"][text])
        return steered(params, x, t, text, neg_cond, nasa(alpha))

    return Network(
        name="dit",
        shape=(SIDE, SIDE, 1),
        init=init_both,
        apply=apply,
        examples=examples,
        prompts=lambda key, batch: examples(key, batch)[1],
        digits=lambda digit: jnp.stack([digit, jnp.full_like(digit, PAD)], axis=1),
        null=NULL_TEXT,
        lora_match=LORA_MATCH,
    )


def told(
    params: Params,
    x: Float[Array, "batch 8 8 1"],
    t: Int[Array, " batch"],
    embeddings: Float[Array, "batch words width"],
    **options: Any,
) -> Float[Array, "batch 8 8 1"]:
    """The noise, as the network sees it that is told these embeddings.

    Args:
        params: of `text_dit`.
        x: noisy images.
        t: timesteps.
        embeddings: of the words.
        **options: of the DiT's ``apply``.

    Returns:
        The noise.
    """
    apply = dit(_config(params["words"].shape[1])).apply
    return apply(params["dit"], x, t, None, embeddings, **options)


def steered(
    params: Params,
    x: Float[Array, "batch 8 8 1"],
    t: Int[Array, " batch"],
    text: Int[Array, "batch words"],
    negative: Int[Array, "batch others"],
    combine: Combine,
) -> Float[Array, "batch 8 8 1"]:
    """The noise, with a negative text in every cross-attention.

    The layers see both texts as one and split their keys and values, which the same projection made.

    Args:
        params: of `text_dit`.
        x: noisy images.
        t: timesteps.
        text: the positive texts.
        negative: the negative texts, of any length.
        combine: what a layer makes of queries, keys and values; `nasa` or `nag`.

    Returns:
        The noise.
    """
    both = params["words"][jnp.concatenate([text, negative], axis=1)]
    words = text.shape[1]

    def cross_attention(q: Array, k: Array, v: Array, _: None) -> Array:
        return combine(q, k[:, :words], v[:, :words], k[:, words:], v[:, words:])

    return told(params, x, t, both, cross_attention=cross_attention)


def nasa(alpha: float | Array) -> Combine:
    """NASA of a strength.

    Args:
        alpha: how much of the negative attention is subtracted.

    Returns:
        For `steered`.
    """

    def combine(q: Array, k_pos: Array, v_pos: Array, k_neg: Array, v_neg: Array) -> Array:
        return nasa_cross_attention(q, k_pos, v_pos, k_neg, v_neg, alpha)

    return combine


def nag(scale: float, tau: float, alpha: float) -> Combine:
    """NAG, whose norms are over all heads of a token.

    Args:
        scale: of the extrapolation.
        tau: how much longer a token may become.
        alpha: share of the extrapolation.

    Returns:
        For `steered`.
    """

    def combine(q: Array, k_pos: Array, v_pos: Array, k_neg: Array, v_neg: Array) -> Array:
        found = paired_attention(q, k_pos, v_pos, k_neg, v_neg)
        z_pos, z_neg = (z.reshape(*z.shape[:2], -1) for z in found)
        return nag_combine(z_pos, z_neg, scale, tau, alpha).reshape(q.shape)

    return combine


def _config(width: int) -> DiTConfig:
    return DiTConfig(size=SIDE, channels=1, patch=2, width=width, layers=2, heads=4, mlp_ratio=3, text=width)
