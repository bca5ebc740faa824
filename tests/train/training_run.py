"""A small training run that the fault tests start, kill and resume.

Arguments: the run's folder, the number of steps, and seconds that each step takes longer.
"""

import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxneg.train import fit, init_state, make_step, pipeline

WIDTH = 512
CHECKPOINT_EVERY = 5


def setting(steps: int):
    """The compiled step, and the state before the first one."""

    def loss_fn(params, batch, key):
        x = batch["x"] * jax.random.bernoulli(key, 0.9, batch["x"].shape)
        error = jnp.tanh(x @ params["hidden"]) @ params["out"] - batch["y"]
        return jnp.mean(error**2), {"bias": jnp.mean(error)}

    params = {
        "hidden": jax.random.normal(jax.random.key(1), (WIDTH, WIDTH)) / WIDTH**0.5,
        "out": jnp.zeros(WIDTH),
    }
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.cosine_decay_schedule(1e-2, steps)))
    return jax.jit(make_step(loss_fn, tx), donate_argnums=0), init_state(params, tx, jax.random.key(0))


def main(folder: Path, steps: int, pause: float) -> None:
    draws = np.random.default_rng(0)
    x = draws.normal(size=(100, WIDTH)).astype(np.float32)
    arrays = {"x": x, "y": np.sin(x[:, 0])}

    def slowly(batch):
        time.sleep(pause)
        return batch

    print("ready", flush=True)
    step, state = setting(steps)
    fit(
        step,
        state,
        pipeline(arrays, 32, seed=3).map(slowly),
        steps=steps,
        run_dir=folder,
        config={"steps": steps},
        resume=True,
        log_every=1,
        evaluate=lambda state: {"norm": optax.global_norm(state.params)},
        evaluate_every=7,
        checkpoint_every=CHECKPOINT_EVERY,
        best=("eval/norm", "min"),
        progress=False,
    )
    print("done", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
