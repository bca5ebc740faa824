"""Perp-Neg in MaxDiffusion: its SDXL and its Flux as denoisers, and the bodies of their sampling loops.

Written against github.com/AI-Hypercomputer/maxdiffusion at commit 7cfb880 of August 2026. A user puts one of
the two loop bodies in the place of ``loop_body`` in ``maxdiffusion/generate_sdxl.py`` or
``maxdiffusion/generate_flux.py``. The arguments are theirs, with ``weights`` added; the prompts' arrays, of
two prompts or one there, hold ``2 + K``, prompt after prompt: the empty one, the main one, K further ones.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxneg.diffusion import guide_perp_neg
from jaxneg.diffusion.arguments import Denoise
from jaxneg.diffusion.perp_neg import Weights


def sdxl_denoiser(model: Any, params: Any) -> Denoise:
    """MaxDiffusion's SDXL UNet as ``denoise(x, t, cond)``.

    Args:
        model: ``FlaxUNet2DConditionModel``.
        params: its parameters.

    Returns:
        A denoiser of latents ``[batch, 4, height, width]``; a condition is a dictionary of ``prompt_embeds
        [batch, tokens, 2048]``, ``text_embeds [batch, 1280]`` and ``time_ids [batch, 6]``.
    """

    def denoise(x: Array, t: Array, cond: dict[str, Array]) -> Array:
        added = {name: cond[name] for name in ("text_embeds", "time_ids")}
        return model.apply(
            {"params": params}, x, t, encoder_hidden_states=cond["prompt_embeds"], added_cond_kwargs=added
        ).sample

    return denoise


def sdxl_loop_body(
    step: Any,
    args: tuple[Array, Any, Any],
    model: Any,
    pipeline: Any,
    added_cond_kwargs: dict[str, Array],
    prompt_embeds: Float[Array, "prompts_batch tokens width"],
    guidance_scale: Float[Array, "1"],
    guidance_rescale: Float[Array, "1"],
    config: Any,
    *,
    weights: Weights,
) -> tuple[Array, Any, Any]:
    """One step of SDXL with Perp-Neg, for ``jax.lax.fori_loop`` in ``generate_sdxl.run_inference``.

    Args:
        step: number of the step.
        args: latents, state of the scheduler, state with the model's ``params``.
        model: ``FlaxUNet2DConditionModel``.
        pipeline: what holds the ``scheduler``.
        added_cond_kwargs: ``text_embeds`` and ``time_ids`` of all prompts.
        prompt_embeds: embeddings of all prompts.
        guidance_scale: one number.
        guidance_rescale: one number.
        config: theirs; guidance is on, whatever it says.
        weights: of the further prompts, ``[K]`` or ``[K, batch]``, negative for what is unwanted.

    Returns:
        ``args`` after the step.
    """
    del config
    latents, scheduler_state, state = args
    prompts = _by_prompt({"prompt_embeds": prompt_embeds, **added_cond_kwargs}, len(latents))
    t = jnp.array(scheduler_state.timesteps, dtype=jnp.int32)[step]
    x = pipeline.scheduler.scale_model_input(scheduler_state, latents, t)
    guided = _guided(
        sdxl_denoiser(model, state.params), prompts, weights, guidance_scale[0], guidance_rescale[0]
    )
    noise = guided(x, jnp.broadcast_to(t, x.shape[:1]), _row(prompts, 1))
    latents, scheduler_state = pipeline.scheduler.step(scheduler_state, noise, t, latents).to_tuple()
    return latents, scheduler_state, state


def flux_denoiser(
    transformer: Any,
    params: Any,
    *,
    img_ids: Float[Array, "*batch patches 3"],
    txt_ids: Float[Array, "tokens 3"],
    guidance_vec: Float[Array, " batch"],
) -> Denoise:
    """MaxDiffusion's Flux as ``denoise(x, t, cond)``; what it predicts is a velocity.

    Args:
        transformer: ``FluxTransformer2DModel``.
        params: its parameters.
        img_ids: places of the patches, the same for all images.
        txt_ids: places of the tokens.
        guidance_vec: the distilled guidance that the network is told, the same for all images; Flux-dev was
            distilled to 3.5 and wants 1 where the guidance is real.

    Returns:
        A denoiser of packed latents ``[batch, patches, 64]``; a condition is a dictionary of ``prompt_embeds
        [batch, tokens, 4096]`` and ``pooled [batch, 768]``.
    """

    def denoise(x: Array, t: Array, cond: dict[str, Array]) -> Array:
        return transformer.apply(
            {"params": params},
            hidden_states=x,
            img_ids=img_ids,
            encoder_hidden_states=cond["prompt_embeds"],
            txt_ids=txt_ids,
            timestep=t,
            guidance=jnp.broadcast_to(guidance_vec[0], t.shape),
            pooled_projections=cond["pooled"],
        ).sample

    return denoise


def flux_loop_body(
    step: Any,
    args: tuple[Array, Any, Array, Array],
    transformer: Any,
    latent_image_ids: Float[Array, "batch patches 3"],
    prompt_embeds: Float[Array, "prompts_batch tokens width"],
    txt_ids: Float[Array, "tokens 3"],
    vec: Float[Array, "prompts_batch width"],
    guidance_vec: Float[Array, " batch"],
    *,
    weights: Weights,
    scale: float,
) -> tuple[Array, Any, Array, Array]:
    """One step of Flux with Perp-Neg, for ``jax.lax.fori_loop`` in ``generate_flux.run_inference``.

    Args:
        step: number of the step.
        args: packed latents, state with the model's ``params``, times of the steps and those after them.
        transformer: ``FluxTransformer2DModel``.
        latent_image_ids: places of the patches.
        prompt_embeds: T5 embeddings of all prompts.
        txt_ids: places of the tokens.
        vec: pooled CLIP embeddings of all prompts.
        guidance_vec: the distilled guidance.
        weights: of the further prompts, ``[K]`` or ``[K, batch]``, negative for what is unwanted.
        scale: guidance scale; their loop has none, as Flux-dev's is distilled into the network.

    Returns:
        ``args`` after the step.
    """
    latents, state, c_ts, p_ts = args
    prompts = _by_prompt({"prompt_embeds": prompt_embeds, "pooled": vec}, len(latents))
    denoise = flux_denoiser(
        transformer, state.params, img_ids=latent_image_ids, txt_ids=txt_ids, guidance_vec=guidance_vec
    )
    t = jnp.full(latents.shape[:1], c_ts[step], latents.dtype)
    velocity = _guided(denoise, prompts, weights, scale, 0.0)(latents, t, _row(prompts, 1))
    return (latents + (p_ts[step] - c_ts[step]) * velocity).astype(latents.dtype), state, c_ts, p_ts


def _guided(
    denoise: Denoise, prompts: Any, weights: Weights, scale: float | Array, rescale: float | Array
) -> Denoise:
    further = jax.tree.map(lambda leaf: leaf[2:], prompts)
    return guide_perp_neg(
        denoise,
        scale=scale,
        rescale=rescale,
        null_cond=_row(prompts, 0),
        neg_cond=further,
        weights=weights,
    )


def _by_prompt(arrays: dict[str, Array], batch: int) -> dict[str, Array]:
    """``[prompts * batch, ...]``, prompt after prompt, as ``[prompts, batch, ...]``."""
    return {name: array.reshape(-1, batch, *array.shape[1:]) for name, array in arrays.items()}


def _row(prompts: Any, index: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], prompts)
