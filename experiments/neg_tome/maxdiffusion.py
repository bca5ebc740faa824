"""Negative token merging in MaxDiffusion: hooks in its Flux and its SDXL, and the bodies of their loops.

Written against github.com/AI-Hypercomputer/maxdiffusion at commit 7cfb880 of August 2026. A user puts one of
the two loop bodies in the place of ``loop_body`` in ``maxdiffusion/generate_flux.py`` or
``maxdiffusion/generate_sdxl.py``; the arguments are theirs, with ``negtome`` and ``group_size`` added. The
networks stay as they are: `flax.linen.intercept_methods` reaches into their attention modules, whose paths
are the names that ``negtome.blocks`` is searched in.

Flux runs its blocks in two loops, so that a choice among them is one between "scanned_double_blocks" (joint)
and "scanned_single_blocks", not by number.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import flax.linen as linen
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxneg.diffusion import NegToMeConfig, guided_noise, negtome_hook

Hook = Callable[[Array, str], Array]


def flux_attention(hook: Hook) -> AbstractContextManager[None]:
    """Changes what the attention of MaxDiffusion's Flux has mixed, before its out-projection.

    Args:
        hook: ``(h [batch, text + image tokens, width], path) -> h``, as `negtome_hook` makes it.

    Returns:
        A context in which ``FluxTransformer2DModel`` is to be called: ``AttentionOp.apply_attention`` of its
        joint and its single blocks is followed by the hook.
    """

    def is_attention(context: Any) -> bool:
        return context.method_name == "apply_attention" and context.module.name == "attention_op"

    return _after(is_attention, hook)


def sdxl_attention(hook: Hook) -> AbstractContextManager[None]:
    """Changes the final output of the attention modules of MaxDiffusion's SDXL, without the residual.

    Args:
        hook: ``(h [batch, tokens, width], path) -> h``, as `negtome_hook` makes it.

    Returns:
        A context in which ``FlaxUNet2DConditionModel`` is to be called: ``FlaxAttention`` of self-attention
        (``attn1``) and of cross-attention (``attn2``) is followed by the hook.
    """

    def is_attention(context: Any) -> bool:
        return context.method_name == "__call__" and context.module.name in ("attn1", "attn2")

    return _after(is_attention, hook)


def flux_loop_body(
    step: Any,
    args: tuple[Array, Any, Array, Array],
    transformer: Any,
    latent_image_ids: Float[Array, "batch patches 3"],
    prompt_embeds: Float[Array, "batch tokens width"],
    txt_ids: Float[Array, "tokens 3"],
    vec: Float[Array, "batch width"],
    guidance_vec: Float[Array, " batch"],
    *,
    negtome: NegToMeConfig,
    group_size: int | None = None,
) -> tuple[Array, Any, Array, Array]:
    """One step of Flux with NegToMe, for ``jax.lax.fori_loop`` in ``generate_flux.run_inference``.

    Args:
        step: number of the step.
        args: packed latents, state with the model's ``params``, times of the steps and those after them.
        transformer: ``FluxTransformer2DModel``.
        latent_image_ids: places of the patches.
        prompt_embeds: T5 embeddings; there are as many text tokens in each block.
        txt_ids: places of the tokens.
        vec: pooled CLIP embeddings.
        guidance_vec: the distilled guidance.
        negtome: strength and time; ``NegToMeConfig.flux()`` is the paper's.
        group_size: images of a prompt, next to each other; None: the whole batch.

    Returns:
        ``args`` after the step.
    """
    latents, state, c_ts, p_ts = args
    now, following = c_ts[step], p_ts[step]
    hook = negtome_hook(negtome, 1000 * now, num_text_tokens=prompt_embeds.shape[1], group_size=group_size)
    with flux_attention(hook):
        velocity = transformer.apply(
            {"params": state.params},
            hidden_states=latents,
            img_ids=latent_image_ids,
            encoder_hidden_states=prompt_embeds,
            txt_ids=txt_ids,
            timestep=jnp.full(latents.shape[:1], now, latents.dtype),
            guidance=guidance_vec,
            pooled_projections=vec,
        ).sample
    return (latents + (following - now) * velocity).astype(latents.dtype), state, c_ts, p_ts


def sdxl_loop_body(
    step: Any,
    args: tuple[Array, Any, Any],
    model: Any,
    pipeline: Any,
    added_cond_kwargs: dict[str, Array],
    prompt_embeds: Float[Array, "batch tokens width"],
    guidance_scale: Float[Array, "1"],
    guidance_rescale: Float[Array, "1"],
    config: Any,
    *,
    negtome: NegToMeConfig,
    group_size: int | None = None,
) -> tuple[Array, Any, Any]:
    """One step of SDXL with NegToMe, for ``jax.lax.fori_loop`` in ``generate_sdxl.run_inference``.

    Args:
        step: number of the step.
        args: latents, state of the scheduler, state with the model's ``params``.
        model: ``FlaxUNet2DConditionModel``.
        pipeline: what holds the ``scheduler``.
        added_cond_kwargs: ``text_embeds`` and ``time_ids``, of both halves where there is guidance.
        prompt_embeds: embeddings, likewise.
        guidance_scale: one number.
        guidance_rescale: one number.
        config: theirs; ``do_classifier_free_guidance`` says whether the batch has two halves.
        negtome: strength, place and time; ``NegToMeConfig.sdxl()`` is the paper's.
        group_size: images of a prompt, next to each other; None: the whole batch.

    Returns:
        ``args`` after the step.
    """
    latents, scheduler_state, state = args
    guided = bool(config.do_classifier_free_guidance)
    t = jnp.array(scheduler_state.timesteps, dtype=jnp.int32)[step]
    x = pipeline.scheduler.scale_model_input(
        scheduler_state, jnp.concatenate([latents] * 2) if guided else latents, t
    )
    with sdxl_attention(negtome_hook(negtome, t, guided=guided, group_size=group_size)):
        noise = model.apply(
            {"params": state.params},
            x,
            jnp.broadcast_to(t, x.shape[:1]),
            encoder_hidden_states=prompt_embeds,
            added_cond_kwargs=added_cond_kwargs,
        ).sample
    if guided:
        without, told = jnp.split(noise, 2)
        noise = guided_noise(told, without, guidance_scale[0], guidance_rescale[0])
    latents, scheduler_state = pipeline.scheduler.step(scheduler_state, noise, t, latents).to_tuple()
    return latents, scheduler_state, state


def _after(chosen: Callable[[Any], bool], hook: Hook) -> AbstractContextManager[None]:
    def interceptor(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        result = call(*args, **kwargs)
        if not chosen(context):
            return result
        return hook(result, "/".join(context.module.path))

    return linen.intercept_methods(interceptor)
