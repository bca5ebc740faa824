"""What a step of each method costs beside vanilla's."""

import time
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from experiments.ant.training import NASH_EVERY, Method, denoiser, first_params, train_step
from experiments.digits import digit_latents
from jaxneg.train import TrainState, init_state

METHODS: dict[str, Method] = {
    "vanilla": "vanilla", "stratified": "linear", "UW": "uw", "Nash": "nash", "PCGrad": "pcgrad"
}  # fmt: skip
ROUNDS = 5
"""Measurements of a method that a median is taken of."""


def step_times(
    hidden: int, clusters: int, batch: int, repeats: int, methods: Sequence[str] = tuple(METHODS)
) -> dict[str, np.ndarray]:
    """The time of a step of each method, all of them measured in turn.

    Args:
        hidden: width of the network.
        clusters: of timesteps.
        batch: examples in a batch.
        repeats: how many medians to take.
        methods: names in `METHODS`, vanilla's among them.

    Returns:
        Seconds ``[repeats, 5]`` by the method's name; Nash-MTL's solves are shared out over its steps.
    """
    x0 = jnp.asarray(digit_latents().x[:batch])
    runs = {name: _run(METHODS[name], hidden, clusters, x0) for name in methods}
    found = {name: np.empty((repeats, ROUNDS)) for name in runs}
    for repeat in range(repeats):
        for turn in range(ROUNDS):
            for name, run in runs.items():
                began = time.perf_counter()
                run()
                found[name][repeat, turn] = (time.perf_counter() - began) / NASH_EVERY
    return found


def over_vanilla(times: Mapping[str, np.ndarray], name: str) -> Float[np.ndarray, " repeats"]:
    """The time of a step over that of vanilla's just before it, medians: a busy machine hardly moves them.

    Args:
        times: from `step_times`.
        name: of the method.

    Returns:
        A median for each repeat.
    """
    return np.median(times[name] / times["vanilla"], axis=1)


def _run(method: Method, hidden: int, clusters: int, x0: jax.Array) -> Callable[[], None]:
    """As many steps as share Nash-MTL's weights, compiled and warm."""
    step, tx = train_step(method, denoiser(x0.shape[1], hidden), clusters)
    params = first_params(jax.random.key(0), x0.shape[1], hidden)
    if method == "uw":
        params = {"network": params, "log_scale": jnp.zeros(clusters)}

    @jax.jit
    def steps(state: TrainState) -> TrainState:
        return jax.lax.scan(lambda state, _: (step(state, {"x0": x0})[0], None), state, length=NASH_EVERY)[0]

    state = init_state(params, tx, jax.random.key(1))
    jax.block_until_ready(steps(state))
    return lambda: jax.block_until_ready(steps(state))
