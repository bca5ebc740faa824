"""What the training loop costs: `jaxneg.train.fit` beside a bare for loop over the same jitted step.

Both draw the same batches from the same pipeline. The bare loop fetches nothing; ``fit`` fetches, checks and
logs the metrics of every step, with a run folder and a progress bar. The clock runs from the draw of the
first batch to the end of the last step: compilation, opening the folder and the last checkpoint are left out.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.claims import median_interval
from jaxneg.train import TrainState, fit, init_state, make_step, pipeline

WIDTH, BATCH = 256, 64


class TimedBatches:
    """Batches of a data set, and the time since the first draw."""

    def __init__(self, data: grain.MapDataset) -> None:
        self._batches = iter(data.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))
        self.get_state, self.set_state = self._batches.get_state, self._batches.set_state
        self._began: tuple[float, float] | None = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        self._began = self._began or (time.perf_counter(), time.thread_time())
        return next(self._batches)

    def seconds(self) -> tuple[float, float]:
        """On the clock, and of this thread's work."""
        assert self._began is not None
        return time.perf_counter() - self._began[0], time.thread_time() - self._began[1]


def workload(layers: int) -> tuple[Callable, Callable[[], TrainState]]:
    """A jitted step of a network of ``layers`` square layers, and what makes its first state."""

    def loss_fn(params: Any, batch: Any, key: jax.Array) -> tuple[jax.Array, dict]:  # noqa: ARG001
        hidden, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), batch["x"], params)
        return jnp.mean((hidden - batch["y"]) ** 2), {}

    tx = optax.sgd(1e-3)

    def first_state() -> TrainState:
        weights = jax.random.normal(jax.random.key(0), (layers, WIDTH, WIDTH)) / WIDTH**0.5
        return init_state(weights, tx, jax.random.key(1))

    return jax.jit(make_step(loss_fn, tx), donate_argnums=0), first_state


def calibrated_layers(milliseconds: float, batch: Any) -> int:
    """How many layers make a step of about so many milliseconds on this machine."""
    layers = 8
    for _ in range(3):
        step, first_state = workload(layers)
        state = first_state()
        times = []
        for _ in range(20):
            began = time.perf_counter()
            state, metrics = step(state, batch)
            jax.block_until_ready(metrics)
            times.append(time.perf_counter() - began)
        layers = max(1, round(layers * milliseconds * 1e-3 / min(times)))
    return layers


def run(repeats: int = 15, *, milliseconds: float = 5.0, steps: int = 200) -> dict[str, Any]:
    """Times both loops alternately.

    Args:
      repeats: Pairs of runs.
      milliseconds: About how long a step takes.
      steps: Steps of a run.

    Returns:
      For a step: medians of the seconds of both loops and of the work of their Python threads, and the median
      of the pairs' ratios ``fit / bare`` with its interval.
    """
    draws = np.random.default_rng(0).normal(size=(2, 1024, WIDTH)).astype(np.float32)
    arrays = {"x": draws[0], "y": draws[1]}
    layers = calibrated_layers(milliseconds, {name: array[:BATCH] for name, array in arrays.items()})
    step, first_state = workload(layers)

    def bare() -> tuple[float, float]:
        data, state = TimedBatches(pipeline(arrays, BATCH)), jax.block_until_ready(first_state())
        for _ in range(steps):
            state, _ = step(state, next(data))
        jax.block_until_ready(state)
        return data.seconds()

    def ours() -> tuple[float, float]:
        data, state = TimedBatches(pipeline(arrays, BATCH)), jax.block_until_ready(first_state())
        taken: list[tuple[float, float]] = []

        def evaluate(state: TrainState) -> dict[str, float]:  # called once, after the last step
            jax.block_until_ready(state)
            taken.append(data.seconds())
            return {}

        with tempfile.TemporaryDirectory() as folder:
            fit(step, state, data, steps=steps, run_dir=Path(folder) / "run", evaluate=evaluate)
        return taken[0]

    bare()
    ours()
    pairs = [(bare(), ours()) if pair % 2 else (ours(), bare())[::-1] for pair in range(repeats)]
    seconds, work = np.moveaxis(np.array(pairs) / steps, -1, 0)
    median, low, high, _ = median_interval(seconds[:, 1] / seconds[:, 0])
    return {
        "layers": layers,
        "bare_seconds": float(np.median(seconds[:, 0])),
        "fit_seconds": float(np.median(seconds[:, 1])),
        "ratio_median": median,
        "ratio_low": low,
        "ratio_high": high,
        "bare_host_seconds": float(np.median(work[:, 0])),
        "fit_host_seconds": float(np.median(work[:, 1])),
    }
