"""One process of a training run on a mesh of eight devices.

Arguments: the index and number of processes, the coordinator's port, the run's folder, the number of steps,
and seconds that each step takes longer.
"""

import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P

from jaxneg.train import fit, init_state, make_mesh, make_step, pipeline, shard_step

TX = optax.adamw(1e-2)
RULES = [("hidden", P("data", "model"))]


def first_state():
    keys = jax.random.split(jax.random.key(0))
    params = {"hidden": jax.random.normal(keys[0], (16, 32)) / 4, "out": jax.random.normal(keys[1], (32,))}
    return init_state(params, TX, jax.random.key(1))


def train(folder: Path, steps: int, pause: float = 0.0, **options):
    """The same run, on however many processes."""

    def loss_fn(params, batch, key):
        noise = 0.1 * jax.random.normal(key, batch["y"].shape)
        error = jnp.tanh(batch["x"] @ params["hidden"]) @ params["out"] - batch["y"] + noise
        return jnp.mean(error**2), {}

    x = np.random.default_rng(0).normal(size=(50, 16)).astype(np.float32)
    data = pipeline({"x": x, "y": x[:, 0]}, 24, seed=5)
    mesh = make_mesh({"data": 4, "model": 2})
    batch = {"x": jax.ShapeDtypeStruct((24, 16), jnp.float32), "y": jax.ShapeDtypeStruct((24,), jnp.float32)}
    step = shard_step(make_step(loss_fn, TX), mesh, first_state(), batch, rules=RULES)

    def slowly(batch):
        time.sleep(pause)
        return batch

    return fit(
        step,
        step.place_state(first_state()),
        data.map(slowly),
        steps=steps,
        run_dir=folder,
        log_every=1,
        checkpoint_every=4,
        progress=False,
        **options,
    )


if __name__ == "__main__":
    index, count, port, folder, steps, pause = sys.argv[1:]
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", int(count), int(index))
    assert jax.device_count() == 8
    train(Path(folder), int(steps), float(pause), resume=True, evaluate=lambda state: {"step": state.step})
