"""A guided sampling step at the size of SDXL's latents on 256 chips: Perp-Neg around a DiT."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxneg.diffusion import ddim_sample, guide_perp_neg, sampling_timesteps, scaled_linear_schedule
from jaxneg.nn.dit import DIT_RULES, DiTConfig, dit
from jaxneg.train import Target

MESH = {"data": 64, "model": 4}
MODEL = DiTConfig(
    size=128, channels=4, width=1152, layers=28, heads=16, classes=1000, scan=True, dtype=jnp.bfloat16
)
"""DiT-XL/2 on latents of 128 x 128 x 4, those of an image of 1024 x 1024 in SDXL: 4096 tokens."""
STEPS, SCALE = 50, 7.5
WEIGHTS = (-1.5, -1.5)


class SamplingState(NamedTuple):
    """What a sampling step passes on."""

    step: Int[Array, ""]
    params: Any
    latents: Float[Array, "batch height width channels"]
    key: PRNGKeyArray


def sampling_target(batch: int, model: DiTConfig = MODEL, steps: int = STEPS) -> Target:
    """A step of DDIM with a main prompt and two negative ones, and its abstract arguments.

    A prompt is a class, since the network is told classes and not texts; each image has its own. The batch
    holds ``prompt [batch]`` and ``negatives [batch, 2]``.

    Args:
        batch: images.
        model: shapes of the network.
        steps: of DDIM.

    Returns:
        What `jaxneg.train.compile_for` compiles.
    """
    init, apply = dit(model)
    abar = scaled_linear_schedule(1000).alphas_cumprod
    grid = sampling_timesteps(len(abar), steps)
    following = np.append(abar[grid[1:]], 1.0)

    def step(state: SamplingState, batch: dict[str, Array]) -> tuple[SamplingState, dict[str, Array]]:
        guided = guide_perp_neg(
            lambda x, t, label: apply(state.params, x, t, label),
            scale=SCALE,
            null_cond=model.classes,
            neg_cond=jnp.moveaxis(batch["negatives"], 1, 0),
            weights=WEIGHTS,
        )
        latents = ddim_sample(
            guided,
            state.latents,
            jnp.asarray(grid)[state.step][None],
            abar,
            cond=batch["prompt"],
            final_alpha_cumprod=jnp.asarray(following, jnp.float32)[state.step],  # pyright: ignore[reportArgumentType]
        )
        size = jnp.sqrt(jnp.mean(jnp.square(latents)))
        return state._replace(step=state.step + 1, latents=latents), {"root_mean_square": size}

    def start(key: PRNGKeyArray) -> SamplingState:
        latents = jax.random.normal(key, (batch, model.size, model.size, model.channels))
        return SamplingState(jnp.zeros((), jnp.int32), init(key), latents, key)

    labels = jax.ShapeDtypeStruct((batch,), jnp.int32)
    return Target(
        step=step,
        state=jax.eval_shape(start, jax.random.key(0)),  # pyright: ignore[reportArgumentType]
        batch={"prompt": labels, "negatives": jax.ShapeDtypeStruct((batch, len(WEIGHTS)), jnp.int32)},
        mesh=MESH,
        rules=((r"^latents$", P("data")), *DIT_RULES),
    )
