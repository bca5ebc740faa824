"""A step of PG-SB at the size of PixArt-alpha on 256 chips: student and both teachers are DiTs with texts."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from jaxneg.diffusion import PGSBConfig, init_pgsb, make_pgsb_step
from jaxneg.nn.dit import DIT_RULES, DiTConfig, dit
from jaxneg.train import Target

MESH = {"data": 64, "model": 4}
MODEL = DiTConfig(size=64, channels=4, width=1152, layers=28, heads=16, text=1152, scan=True, remat=True)
"""PixArt-alpha's DiT-XL/2 on latents of 64 x 64 x 4, those of an image of 512 x 512. Its texts are embeddings
as PixArt's caption layers make them of T5's; its timestep comes in as in `jaxneg.nn.dit`, by a modulation of
each block's own, which makes 0.8 billion parameters of 0.6."""
TOKENS = 120
LORA_MATCH = r"blocks/(attention/qkv|text_attention/(query|key_value))/kernel$"
"""Queries and values, and with them the keys, which lie in the same kernels."""
RULES = ((r"/[ab]$", P()), *DIT_RULES)
"""Adapters are small and stay whole."""


def distillation_target(batch: int, model: DiTConfig = MODEL, tokens: int = TOKENS, rank: int = 64) -> Target:
    """A step with both optimizers, and its abstract arguments, in bfloat16 with parameters in float32.

    Args:
        batch: latents.
        model: shapes of all three networks.
        tokens: of a text.
        rank: of the adapters.

    Returns:
        What `jaxneg.train.compile_for` compiles.
    """
    init, _ = dit(model)
    apply = dit(replace(model, dtype=jnp.bfloat16)).apply
    cfg = replace(
        PGSBConfig.pixart(),
        shape=(model.size, model.size, model.channels),
        lora_match=LORA_MATCH,
        lora_rank=rank,
        lora_stacked=1,
    )

    def told(params: Any, x: Array, t: Array, cond: dict[str, Array]) -> Array:
        return apply(params, x, t, None, cond["text"], text_mask=cond["mask"])

    null = {"text": jnp.zeros((1, 1, model.text)), "mask": jnp.ones((1, 1), bool)}
    text = {
        "text": jax.ShapeDtypeStruct((batch, tokens, model.text), jnp.float32),
        "mask": jax.ShapeDtypeStruct((batch, tokens), jnp.bool_),
    }
    state: Any = jax.eval_shape(lambda key: init_pgsb(key, init(key), cfg), jax.random.key(0))
    return Target(
        step=make_pgsb_step(told, told, cfg, null_cond=null),
        state=state,
        batch={"cond": text},
        mesh=MESH,
        rules=RULES,
    )
