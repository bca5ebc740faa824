"""SNOOPI in MaxDiffusion: NASA inside its Stable Diffusion, and its U-Net as the networks of PG-SB.

Written against github.com/AI-Hypercomputer/maxdiffusion at commit 7cfb880 of August 2026. What
`nasa_interceptor` makes goes where ``generate_sdxl.py`` enters those of its LoRAs,
``flax.linen.intercept_methods``; the prompts' embeddings then hold the negative prompt's tokens behind those
of the positive one, and guidance is off. SDXL's pooled embeddings are those of the positive prompt. The loops
stay as they are.

Flux is left out: it mixes texts and image in joint attention, for which the paper gives no rule.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as linen
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxneg.diffusion import nasa_cross_attention

CROSS_ATTENTION = "attn2"
"""What MaxDiffusion calls the cross-attention of a block; ``attn1`` is its self-attention."""

Interceptor = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any], Any], Any]


def with_negative(
    prompt_embeds: Float[Array, "batch tokens width"], negative_embeds: Float[Array, "batch others width"]
) -> Float[Array, "batch all width"]:
    """Both prompts as one, for a U-Net under `nasa_interceptor`.

    Args:
        prompt_embeds: embeddings of the positive prompts.
        negative_embeds: of the negative ones, which may have another number of tokens.

    Returns:
        The embeddings, one behind the other.
    """
    return jnp.concatenate([prompt_embeds, negative_embeds], axis=1)


def nasa_interceptor(alpha: float | Array, tokens: int) -> Interceptor:
    """What turns MaxDiffusion's cross-attention into NASA.

    Args:
        alpha: strength.
        tokens: of the positive prompts; those behind them are of the negative ones.

    Returns:
        For ``flax.linen.intercept_methods``. It replaces ``AttentionOp.apply_attention(query, key, value)``,
        ``[batch, tokens, heads * size]`` each, in modules named ``attn2``.
    """

    def interceptor(next_fun: Callable[..., Any], args: Any, kwargs: dict[str, Any], context: Any) -> Any:
        path = context.module.path
        if context.method_name != "apply_attention" or CROSS_ATTENTION not in path:
            return next_fun(*args, **kwargs)
        query, key, value = args[:3]
        if key.shape[1] <= tokens:
            raise ValueError(
                f"tokens: expected fewer than the {key.shape[1]} of prompt_embeds, which must hold the"
                f" negative prompts behind the positive ones (with_negative), got {tokens}"
            )
        heads = context.module.heads
        q, k, v = (x.reshape(*x.shape[:2], heads, -1) for x in (query, key, value))
        sides = (k[:, :tokens], v[:, :tokens], k[:, tokens:], v[:, tokens:])
        return nasa_cross_attention(q, *sides, alpha).reshape(query.shape)

    return interceptor


def unet_apply(model: Any) -> Callable[..., Array]:
    """MaxDiffusion's U-Net as the networks of `jaxneg.diffusion.make_pgsb_step`.

    Its attention's kernels are named ``to_q`` and ``to_v``, as `jaxneg.diffusion.PGSBConfig` expects.

    Args:
        model: ``FlaxUNet2DConditionModel``.

    Returns:
        ``(params, x [batch, 4, height, width], t, cond) -> noise``. A condition is a dictionary of
        ``prompt_embeds [batch, tokens, width]`` and, for SDXL, ``text_embeds`` and ``time_ids``; with
        ``neg_cond=`` and ``alpha=`` (NASA-T) its prompts' tokens are subtracted.
    """

    def apply(
        params: Any,
        x: Array,
        t: Array,
        cond: dict[str, Array],
        neg_cond: dict[str, Array] | None = None,
        alpha: float | Array = 0.0,
    ) -> Array:
        embeds = cond["prompt_embeds"]
        added = {name: value for name, value in cond.items() if name != "prompt_embeds"} or None
        if neg_cond is None:
            return model.apply(
                {"params": params}, x, t, encoder_hidden_states=embeds, added_cond_kwargs=added
            ).sample
        with linen.intercept_methods(nasa_interceptor(alpha, embeds.shape[1])):
            both = with_negative(embeds, neg_cond["prompt_embeds"])
            return model.apply(
                {"params": params}, x, t, encoder_hidden_states=both, added_cond_kwargs=added
            ).sample

    return apply
