"""ANT at the paper's scale: a DiT on the latents of ImageNet, on one chip or on a pod.

Go et al., arXiv:2306.00354, train DiT-S/2 and DiT-L/2 on latents 32 x 32 x 4 with 1000 classes: AdamW at 1e-4
without decay, EMA 0.9999, five clusters, batches of 240, 400,000 steps and more.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from experiments.ant.training import SCHEDULE, TIMESTEPS, Method, train_step
from experiments.imagenet_dit import MODEL_AXIS, MODELS, Size
from experiments.images import Example, LatentArrays
from experiments.run_dir import RunDir, Table
from experiments.vision.batches import read_ahead, training_batches
from jaxneg.diffusion import (
    ddim_sample,
    denoising_loss,
    ema_params,
    guide,
    sampling_timesteps,
    timestep_intervals,
)
from jaxneg.nn import Model
from jaxneg.nn.dit import DIT_RULES, DiTConfig, dit
from jaxneg.train import Target, TrainState, fit, init_state, make_mesh, process_shard, shard_step

LEARNING_RATE, EMA_DECAY, LABEL_DROPOUT = 1e-4, 0.9999, 0.1
GUIDANCE, SAMPLING_STEPS = 1.5, 250
HELD_OUT = 5000
"""Latents at the end that losses are measured on, or a tenth where there are few; none is trained on."""
CHECKPOINT_EVERY, THREADS = 5000, 8


class Part(NamedTuple):
    """Some examples of a source."""

    source: LatentArrays
    numbers: range

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> Example:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.source[self.numbers[index]]


def pod_target(size: Size, method: Method, clusters: int, batch: int) -> Target:
    """The step of a DiT on ImageNet's latents, parameters and optimizer state split over all chips.

    Args:
        size: of the DiT, with patches of 2.
        method: how the losses of the clusters are put together.
        clusters: how many.
        batch: latents of a global batch.

    Returns:
        What `jaxneg.train.compile_for` compiles.
    """
    config = MODELS[size]
    model = _model(config)
    step, tx = _step(model, config, method, clusters)
    return Target(
        step=step,
        state=jax.eval_shape(partial(_begin, model, tx, method, clusters), jax.random.key(0)),
        batch=_shapes(config, batch),
        mesh={"data": -1, "model": MODEL_AXIS[size]},
        rules=DIT_RULES,
    )


def train_latents(
    folder: Path,
    size: Size | DiTConfig,
    method: Method,
    *,
    clusters: int,
    batch: int,
    steps: int,
    samples: int,
    run_dir: RunDir,
) -> dict[str, np.ndarray]:
    """Trains a DiT on all devices there are, and draws samples from it. A run that died goes on.

    Args:
        folder: of the latents, as `experiments.images.LatentArrays` reads it.
        size: of the DiT, or its sizes.
        method: how the losses of the clusters are put together.
        clusters: how many.
        batch: latents of a global batch.
        steps: of training.
        samples: how many to draw, saved to the run folder's ``latents/METHOD.npz`` as "latents" and "labels".
        run_dir: keeps the checkpoints.

    Returns:
        "losses" ``[clusters]``, of the averaged parameters on latents that were not trained on.
    """

    def compute() -> dict[str, np.ndarray]:
        config = size if isinstance(size, DiTConfig) else MODELS[size]
        shape = (config.size, config.size, config.channels)
        source = LatentArrays(folder, shape, config.classes or 1)
        known = len(source) - min(HELD_OUT, len(source) // 10)
        model = _model(config)
        mesh = make_mesh({"data": -1, "model": 1})
        step, tx = _step(model, config, method, clusters)
        state = jax.jit(partial(_begin, model, tx, method, clusters))(jax.random.key(0))
        sharded = shard_step(step, mesh, state, _shapes(config, batch), rules=DIT_RULES)
        shard = process_shard(NamedSharding(mesh, P("data")))
        (run_dir.path / "latents").mkdir(exist_ok=True)
        ended = fit(
            sharded,
            sharded.place_state(state),
            read_ahead(training_batches(Part(source, range(known)), batch, 0, shard), THREADS),
            steps=steps,
            run_dir=run_dir.path / "latents" / method,
            config={"method": method, "clusters": clusters, "batch": batch, "steps": steps},
            resume=True,
            log_every=100,
            checkpoint_every=CHECKPOINT_EVERY,
        ).state
        params = ema_params(ended.opt_state)
        params = params["network"] if method == "uw" else params
        latents, labels = _drawn(model, config, mesh, params, samples, batch)
        np.savez(run_dir.path / "latents" / f"{method}.npz", latents=latents, labels=labels)
        held_out = Part(source, range(known, len(source)))
        return {"losses": _losses(model, mesh, params, held_out, clusters, batch)}

    return run_dir.stage(f"latents-{method}", compute)


def latent_table(
    results: Mapping[str, Mapping[str, np.ndarray]], bounds: Sequence[int] | np.ndarray
) -> Table:
    """The losses of the DiTs.

    Args:
        results: of each method.
        bounds: of the intervals.

    Returns:
        The table.
    """
    names = [f"{low} to {high - 1}" for low, high in pairwise(bounds)]
    rows: list[list[str | float | int]] = [
        [method, *(f"{loss:.4f}" for loss in found["losses"])] for method, found in results.items()
    ]
    return Table(
        "ImageNet's latents: denoising loss on those not trained on, by timestep", ["method", *names], rows
    )


def _model(config: DiTConfig) -> Model:
    """In bfloat16; parameters and the scales of uncertainty weighting stay in float32."""
    return dit(replace(config, dtype=jnp.bfloat16))


def _step(model: Model, config: DiTConfig, method: Method, clusters: int) -> Any:
    labels = {"null_cond": config.classes, "cond_dropout": LABEL_DROPOUT}
    return train_step(
        method, model.apply, clusters, learning_rate=LEARNING_RATE, ema_decay=EMA_DECAY, **labels
    )


def _begin(model: Model, tx: Any, method: Method, clusters: int, key: jax.Array) -> TrainState:
    params = model.init(key)
    if method == "uw":
        params = {"network": params, "log_scale": jnp.zeros(clusters)}
    return init_state(params, tx, key)


def _shapes(config: DiTConfig, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
    shape = (batch, config.size, config.size, config.channels)
    return {
        "x0": jax.ShapeDtypeStruct(shape, jnp.float32),
        "cond": jax.ShapeDtypeStruct((batch,), jnp.int32),
    }


def _drawn(
    model: Model, config: DiTConfig, mesh: Mesh, params: Any, samples: int, batch: int
) -> tuple[np.ndarray, np.ndarray]:
    """Samples by DDIM with guidance, the classes in turn."""
    classes = config.classes or 1
    steps = sampling_timesteps(TIMESTEPS, min(SAMPLING_STEPS, TIMESTEPS))
    spread, everywhere = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())

    @partial(jax.jit, out_shardings=everywhere)
    def draw(params: Any, noise: Array, labels: Array) -> Array:
        denoise = guide(partial(model.apply, params), scale=GUIDANCE, null_cond=classes)
        return ddim_sample(denoise, noise, steps, SCHEDULE.alphas_cumprod, cond=labels)

    found = []
    labels = np.arange(-(-samples // batch) * batch) % classes
    for number, of_batch in enumerate(labels.reshape(-1, batch).astype(np.int32)):
        shape = (batch, config.size, config.size, config.channels)
        noise = jax.random.normal(jax.random.fold_in(jax.random.key(1), number), shape)
        placed = jax.device_put((noise, jnp.asarray(of_batch)), spread)
        found.append(np.asarray(draw(params, *placed)))
    return np.concatenate(found)[:samples], labels[:samples]


def _losses(
    model: Model, mesh: Mesh, params: Any, held_out: Part, clusters: int, batch: int
) -> Float[np.ndarray, " clusters"]:
    """The mean loss in each interval, at one timestep for each latent, the same for all methods."""
    bounds = timestep_intervals(TIMESTEPS, clusters)
    rng = np.random.default_rng(0)

    @partial(jax.jit, out_shardings=NamedSharding(mesh, P()))
    def losses(params: Any, x0: Array, cond: Array, t: Array, noise: Array) -> Array:
        return denoising_loss(partial(model.apply, params), x0, t, noise, SCHEDULE.alphas_cumprod, cond=cond)

    batch = min(batch, len(held_out))
    batch -= batch % mesh.shape["data"]
    if batch == 0:
        raise ValueError(f"expected {mesh.shape['data']} latents to measure losses on, got {len(held_out)}")
    sums = np.zeros((clusters, 2))
    for first in range(0, len(held_out) - batch + 1, batch):
        examples = [held_out[number] for number in range(first, first + batch)]
        x0, cond = (np.stack([example[name] for example in examples]) for name in ("x0", "cond"))
        noise = rng.standard_normal(x0.shape, np.float32)
        for interval in range(clusters):
            t = rng.integers(bounds[interval], bounds[interval + 1], batch).astype(np.int32)
            placed = jax.device_put((x0, cond, t, noise), NamedSharding(mesh, P("data")))
            sums[interval] += np.asarray(losses(params, *placed), np.float64).sum(), batch
    return sums[:, 0] / sums[:, 1]
