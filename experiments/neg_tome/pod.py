"""A sampling step with negative token merging on 256 chips: a DiT that is told texts, on SDXL's latents.

Sampling is that of Flux: flow matching, Euler's steps, no second call for guidance. The images of a prompt
lie on the chips of one row of the mesh, and while tokens are matched on one chip, where a row has as many
prompts as chips: split over the width as the attention leaves them, all cosines would be summed across chips.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxneg.diffusion import NegToMeConfig, negtome_hook
from jaxneg.nn.dit import DIT_RULES, DiTConfig, dit
from jaxneg.train import Target

MESH = {"data": 64, "model": 4}
MODEL = DiTConfig(size=128, width=1152, layers=28, heads=16, text=4096, scan=True, dtype=jnp.bfloat16)
"""DiT-XL/2 with cross-attention to T5-XXL's embeddings, on latents of 128 x 128 x 4: 4096 tokens."""
STEPS, TEXT_TOKENS, GROUP = 25, 128, 4
NEGTOME = NegToMeConfig.flux()


class SamplingState(NamedTuple):
    """What a sampling step passes on."""

    step: Int[Array, ""]
    params: Any
    latents: Float[Array, "batch height width channels"]
    key: PRNGKeyArray


def sampling_target(
    batch: int,
    model: DiTConfig = MODEL,
    *,
    mesh: dict[str, int] = MESH,
    text_tokens: int = TEXT_TOKENS,
    steps: int = STEPS,
    negtome: NegToMeConfig = NEGTOME,
) -> Target:
    """A step of Euler's method in which the images of a prompt are pushed away from the first of them.

    Args:
        batch: images, four next to each other for each prompt.
        model: shapes of the network.
        mesh: axes of the mesh.
        text_tokens: of a prompt.
        steps: of sampling.
        negtome: strength and time.

    Returns:
        What `jaxneg.train.compile_for` compiles.
    """
    init, apply = dit(model)

    def step(state: SamplingState, batch: dict[str, Array]) -> tuple[SamplingState, dict[str, Array]]:
        t = 1 - state.step / steps
        hook = _prompts_apart(negtome_hook(negtome, 1000 * t, group_size=GROUP), mesh)
        velocity = apply(
            state.params,
            state.latents,
            jnp.full(state.latents.shape[:1], 1000 * t),
            None,
            batch["text"],
            text_mask=batch["text_mask"],
            attention_hook=hook,
        )
        latents = state.latents - velocity.astype(state.latents.dtype) / steps
        size = jnp.sqrt(jnp.mean(jnp.square(latents)))
        return state._replace(step=state.step + 1, latents=latents), {"root_mean_square": size}

    def start(key: PRNGKeyArray) -> SamplingState:
        latents = jax.random.normal(key, (batch, model.size, model.size, model.channels))
        return SamplingState(jnp.zeros((), jnp.int32), init(key), latents, key)

    text = (batch, text_tokens, model.text or 0)
    return Target(
        step=step,
        state=jax.eval_shape(start, jax.random.key(0)),  # pyright: ignore[reportArgumentType]
        batch={
            "text": jax.ShapeDtypeStruct(text, jnp.float32),
            "text_mask": jax.ShapeDtypeStruct(text[:2], jnp.bool_),
        },
        mesh=mesh,
        rules=((r"^latents$", P("data")), *DIT_RULES),
    )


def _prompts_apart(hook: Callable[[Array], Array], mesh: dict[str, int]) -> Callable[[Array], Array]:
    """The hook on whole tokens, each prompt's on one chip, if there are enough prompts for all chips."""
    chips = mesh["data"] * mesh["model"]

    def apart(h: Array) -> Array:
        if h.shape[0] % (chips * GROUP):
            return hook(h)
        pushed = hook(jax.lax.with_sharding_constraint(h, P(("data", "model"))))
        return jax.lax.with_sharding_constraint(pushed, P("data", None, "model"))

    return apart
