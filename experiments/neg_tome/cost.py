"""Part C: what negative token merging adds to sampling, counted in the multiplications of the program.

The blocks are those of this library's DiT, in Flux's and SDXL's width and number of image tokens, without
their text tokens, convolutions and embeddings. How long steps take is measured by ``bench guidance``.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.neg_tome.network import PATCH, SIZE
from experiments.run_dir import Table
from jaxneg.diffusion import negtome_batch
from jaxneg.nn.dit import DiTConfig, dit
from jaxneg.train.compile import matmul_flops


class Cost(NamedTuple):
    """Of one model."""

    model: str
    first: float
    """Multiplications of a step in the window over those without, minus 1, away from the first image."""
    others: float
    """The same away from all other images."""
    window: float
    """Share of the sampling steps that lie in the window."""

    @property
    def share(self) -> float:
        """By how much the multiplications of all steps grow, away from the first image."""
        return self.first * self.window


def flux_window(steps: int = 25, tokens: int = 2304, t_end: float = 0.9) -> float:
    """The share of Flux's sampling steps at t of at least 0.9.

    ``t = e^mu / (e^mu + 1 / s - 1)`` for s evenly spaced from 1, with mu linear in the number of image
    tokens from 0.5 at 256 to 1.15 at 4096.

    Args:
        steps: of sampling.
        tokens: of the image.
        t_end: the last time of the window.

    Returns:
        From 0 to 1.

    Source:
        arXiv:2403.03206, Section 5.3.2, with the numbers of the released sampler of Flux.

    Example:
        >>> flux_window()
        0.24
    """
    mu = 0.5 + 0.65 * (tokens - 256) / (4096 - 256)
    spaced = (1 - i / steps for i in range(steps))
    times = [math.exp(mu) / (math.exp(mu) + 1 / s - 1) for s in spaced]
    return sum(t >= t_end for t in times) / steps


def count(width: int, layers: int, heads: int, group: int) -> list[Cost]:
    """Counts a step of Flux's and SDXL's width and tokens, and of the tiny model.

    Args:
        width: of the tiny model.
        layers: likewise.
        heads: likewise.
        group: images of a prompt.

    Returns:
        The costs, Flux first.
    """
    tiny = DiTConfig(SIZE, 1, PATCH, width, layers, heads)
    flux, sdxl = DiTConfig(48, 64, 1, 3072, 1, 24), DiTConfig(32, 4, 1, 1280, 1, 20)
    return [
        Cost("Flux: 3072 wide, 2304 tokens, 25 steps", *_of_step(flux, group), flux_window()),
        # 50 timesteps, 981 to 1, and the up-blocks' layers of 1024 tokens alone.
        Cost("SDXL's layers of 1024 tokens: 1280 wide, 50 steps", *_of_step(sdxl, group), 10 / 50),
        Cost(f"digits: {width} wide, 16 tokens, 25 steps", *_of_step(tiny, group), 11 / 25),
    ]


def cost_table(costs: list[Cost]) -> Table:
    """The costs beside the paper's.

    Args:
        costs: of `count`.

    Returns:
        The table.
    """
    rows: list[list[str | float | int]] = [
        [c.model, *(f"{100 * x:.2f} %" for x in (c.first, c.others, c.window, c.share))] for c in costs
    ]
    rows.append(["the paper's seconds: 13.2 to 13.7", "", "", "", f"{100 * 0.5 / 13.2:.2f} %"])
    columns = [
        "model",
        "step in the window, first image",
        "step in the window, other images",
        "steps in the window",
        "all steps, first image",
    ]
    return Table("C. Multiplications that negative token merging adds, 4 images", columns, rows)


def _of_step(config: DiTConfig, group: int) -> tuple[float, float]:
    init, apply = dit(config)
    params = jax.eval_shape(init, jax.random.key(0))
    x = jax.ShapeDtypeStruct((group, config.size, config.size, config.channels), jnp.float32)
    t = jax.ShapeDtypeStruct((group,), jnp.float32)

    def multiplications(**options: Any) -> int:
        return matmul_flops(jax.make_jaxpr(lambda *given: apply(*given, **options))(params, x, t))

    def pushed(reference: Any) -> int:
        return multiplications(
            attention_hook=lambda h, _: negtome_batch(h, reference=reference, alpha=0.9, threshold=0.65)
        )

    without = multiplications()
    return pushed("first") / without - 1, pushed("leave_one_out") / without - 1
