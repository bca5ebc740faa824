"""Self-NPO at the papers' scale: a DiT on ImageNet's latents, on one chip or on a pod.

The settings are those that the authors released for SD1.5: w = -1, five jumps on a grid of 25 levels, AdamW
at 1e-6 with decay 1e-3, the gradient clipped at 1, a teacher that follows at 0.999, 1000 steps, 20 examples
on each device. The schedule is that of DiT (Peebles and Xie, arXiv:2212.09748): linear.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from experiments.imagenet_dit import FOLDER, MODEL_AXIS, MODELS, Size
from experiments.images import LatentArrays
from experiments.run_dir import RunDir
from experiments.vision.batches import read_ahead, training_batches
from jaxneg.diffusion import (
    SelfNPOState,
    ddim_sample,
    guide,
    init_self_npo,
    linear_schedule,
    sampling_timesteps,
    self_npo_step,
)
from jaxneg.nn.dit import DIT_RULES, DiTConfig, dit
from jaxneg.train import Target, fit, make_mesh, process_shard, shard_step

GUIDANCE, LEARNING_RATE, WEIGHT_DECAY, CLIP = -1.0, 1e-6, 1e-3, 1.0
ALPHAS_CUMPROD = linear_schedule(1000).alphas_cumprod
WEIGHTS = "dit.safetensors"
"""What is looked for in the folder of the data beside the latents."""
SAMPLED_GUIDANCE, SAMPLING_STEPS = 0.5, 25
CHECKPOINT_EVERY, THREADS = 250, 8


def pod_target(size: Size | DiTConfig, batch: int, model_axis: int | None = None) -> Target:
    """The step of a DiT, with student, teacher and optimiser state split over all chips.

    Args:
        size: of the DiT, with patches of 2; or its sizes.
        batch: latents of a global batch.
        model_axis: chips over which a layer is split, by default as `MODEL_AXIS` has it.

    Returns:
        What `jaxneg.train.compile_for` compiles.
    """
    config = MODELS[size] if isinstance(size, str) else size
    if model_axis is None:
        model_axis = MODEL_AXIS[size] if isinstance(size, str) else 1
    init, _ = dit(config)
    begin = partial(init_self_npo, tx=_optimizer(), key=jax.random.key(0))
    state: Any = jax.eval_shape(lambda key: begin(init(key)), jax.random.key(0))
    return Target(
        step=_step(config),
        state=state,
        batch=_shapes(config, batch),
        mesh={"data": -1, "model": model_axis},
        rules=DIT_RULES,
    )


def missing(data_dir: Path) -> list[Path]:
    """What `fine_tune_latents` needs and does not find.

    Args:
        data_dir: the folder of the data.

    Returns:
        Paths.
    """
    return [path for path in (data_dir / FOLDER, data_dir / WEIGHTS) if not path.exists()]


def fine_tune_latents(
    data_dir: Path, size: Size | DiTConfig, batch: int, steps: int, samples: int, run_dir: RunDir
) -> dict[str, np.ndarray]:
    """Fine-tunes a DiT on all devices there are, and samples with and without it. A run that died goes on.

    Args:
        data_dir: holds ``imagenet_latents``, as `experiments.images.LatentArrays` reads it, and
            ``dit.safetensors``, the parameters of the DiT with names as ``blocks/modulation/kernel``.
        size: of the DiT, or its sizes.
        batch: latents of a global batch.
        steps: of AdamW.
        samples: how many to draw with the base network and with the new one as the negative, saved to the
            run folder's ``latents`` for an evaluator. ``negative.safetensors`` and ``teacher.safetensors``
            beside them are the student and its average.
        run_dir: keeps the checkpoints.

    Returns:
        "loss", of each tenth step.
    """

    def compute() -> dict[str, np.ndarray]:
        from safetensors.numpy import save_file

        config = MODELS[size] if isinstance(size, str) else size
        source = LatentArrays(data_dir / FOLDER, _shape(config), config.classes or 1)
        base = _load(data_dir / WEIGHTS, config)
        folder = run_dir.path / "latents"
        folder.mkdir(exist_ok=True)
        mesh = make_mesh({"data": -1, "model": 1})
        state: Any = init_self_npo(base, _optimizer(), jax.random.key(0))
        sharded = shard_step(_step(config), mesh, state, _shapes(config, batch), rules=DIT_RULES)
        shard = process_shard(NamedSharding(mesh, P("data")))
        result = fit(
            sharded,
            sharded.place_state(state),
            read_ahead(training_batches(source, batch, 0, shard), THREADS),
            steps=steps,
            run_dir=folder / "fine_tuning",
            config={"batch": batch, "steps": steps},
            resume=True,
            log_every=10,
            checkpoint_every=CHECKPOINT_EVERY,
        )
        ended: Any = result.state
        for name, params in (("negative", ended.params), ("teacher", ended.teacher)):
            arrays = {path: np.asarray(leaf) for path, leaf in flatten_dict(params, sep="/").items()}
            save_file(arrays, folder / f"{name}.safetensors")
        for name, negative in (("cfg", base), ("self_npo", ended.params)):
            latents, labels = _drawn(config, mesh, base, negative, samples, batch)
            np.savez(folder / f"{name}.npz", latents=latents, labels=labels)
        return {"loss": np.array([line["loss"] for line in result.history if "loss" in line])}

    return run_dir.stage("latents", compute)


def _optimizer() -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(CLIP), optax.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY))


def _step(config: DiTConfig) -> Callable[[Any, Any], Any]:
    """In bfloat16, with the parameters in float32; the student's blocks are recomputed."""
    apply = dit(replace(config, dtype=jnp.bfloat16, remat=True)).apply
    step = self_npo_step(
        _optimizer(),
        apply,
        ALPHAS_CUMPROD,
        null_cond=config.classes,
        guidance=GUIDANCE,
    )

    def on_latents(state: SelfNPOState, batch: Mapping[str, Array]) -> tuple[SelfNPOState, dict[str, Array]]:
        return step(state, {"x": batch["x0"], "cond": batch["cond"]})

    return on_latents


def _shape(config: DiTConfig) -> tuple[int, int, int]:
    return config.size, config.size, config.channels


def _shapes(config: DiTConfig, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
    return {
        "x0": jax.ShapeDtypeStruct((batch, *_shape(config)), jnp.float32),
        "cond": jax.ShapeDtypeStruct((batch,), jnp.int32),
    }


def _load(path: Path, config: DiTConfig) -> Any:
    """The parameters in a file, in float32."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        arrays = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file ({error}): save it again") from error
    expected: dict[str, Any] = flatten_dict(jax.eval_shape(dit(config).init, jax.random.key(0)), sep="/")
    for name, leaf in expected.items():
        if name not in arrays or arrays[name].shape != leaf.shape:
            found = f"shape {list(arrays[name].shape)}" if name in arrays else "nothing"
            raise ValueError(
                f"{path}: {name}: expected shape {list(leaf.shape)}, got {found}: save the parameters of a"
                " DiT of this size"
            )
    return unflatten_dict({name: jnp.asarray(arrays[name], jnp.float32) for name in expected}, sep="/")


def _drawn(
    config: DiTConfig, mesh: Mesh, positive: Any, negative: Any, samples: int, batch: int
) -> tuple[np.ndarray, np.ndarray]:
    """Samples by DDIM, the classes in turn, the same noise for every negative."""
    classes, apply = config.classes or 1, dit(replace(config, dtype=jnp.bfloat16)).apply
    times = sampling_timesteps(len(ALPHAS_CUMPROD), SAMPLING_STEPS)
    spread, everywhere = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())

    @partial(jax.jit, out_shardings=everywhere)
    def draw(positive: Any, negative: Any, noise: Array, labels: Array) -> Array:
        denoise = guide(
            partial(apply, positive),
            scale=SAMPLED_GUIDANCE + 1,
            null_cond=classes,
            negative=partial(apply, negative),
        )
        return ddim_sample(denoise, noise, times, ALPHAS_CUMPROD, cond=labels)

    found = []
    labels = (np.arange(-(-samples // batch) * batch) % classes).astype(np.int32)
    for number, of_batch in enumerate(labels.reshape(-1, batch)):
        noise = jax.random.normal(jax.random.fold_in(jax.random.key(1), number), (batch, *_shape(config)))
        found.append(np.asarray(draw(positive, negative, *jax.device_put((noise, of_batch), spread))))
    return np.concatenate(found)[:samples], labels[:samples]
