"""Training of small diffusion models on digits with every method that ANT is compared with.

The losses are those of `jaxneg.diffusion`, the aggregators those of `jaxneg.mtl`, and the step is
`jaxneg.train.make_step`. Steps run in a scan, and all seeds of a method are one program. Every method gets
the same first parameters and the same images in the same order.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from experiments.parallel import over_seeds
from jaxneg.diffusion import (
    NoiseSchedule,
    cosine_schedule,
    ema_params,
    make_ant_loss,
    min_snr_weight,
    p2_weight,
    timestep_intervals,
    track_ema,
)
from jaxneg.mtl import multitask, nash_mtl
from jaxneg.nn import denoising_mlp
from jaxneg.train import TrainState, init_state, make_step

Params = Any
Method = Literal["vanilla", "linear", "uw", "pcgrad", "nash"]
Clustering = Literal["timestep", "SNR", "gradient"]
Denoise = Callable[[Params, Array, Array, Any], Array]

TIMESTEPS = 1000
SCHEDULE: NoiseSchedule = cosine_schedule(TIMESTEPS)
LEARNING_RATE, LOG_SCALE_RATE, EMA_DECAY = 1e-3, 0.025, 0.999
NASH_EVERY = 25
"""Steps that use the same weights of Nash-MTL."""


class Program(NamedTuple):
    """What a training is compiled for."""

    method: Method
    clusters: int
    batch: int
    hidden: int
    features: int


@dataclass(frozen=True)
class Arm:
    """What is compared: how timesteps are drawn, and how their losses are put together."""

    method: Method
    """Vanilla draws timesteps uniformly; all others draw as many from each cluster, "linear" to add up their
    mean losses and nothing else."""
    clustering: Clustering = "timestep"
    """Whose clusters; vanilla has none."""
    weight: Literal["", "min-snr", "p2"] = ""
    """Weight of an example's loss."""

    @property
    def name(self) -> str:
        """The name in tables and figures."""
        names = {
            "vanilla": "vanilla", "linear": "stratified", "uw": "UW", "pcgrad": "PCGrad", "nash": "Nash"
        }  # fmt: skip
        weights = {"": "", "min-snr": "Min-SNR", "p2": "P2"}
        if self.method == "vanilla":
            return weights[self.weight] or "vanilla"
        parts = [names[self.method], weights[self.weight]]
        clustering = f", {self.clustering}" if self.clustering != "timestep" else ""
        return " + ".join(part for part in parts if part) + clustering

    @property
    def stage(self) -> str:
        """The name as a file may have it."""
        return re.sub(r"[^A-Za-z0-9]+", "-", self.name).lower()


VANILLA, STRATIFIED = Arm("vanilla"), Arm("linear")
PCGRAD, NASH, UW = Arm("pcgrad"), Arm("nash"), Arm("uw")
MIN_SNR, P2 = Arm("vanilla", weight="min-snr"), Arm("vanilla", weight="p2")


class Sizes(NamedTuple):
    """How much is trained."""

    hidden: int
    """Width of the network."""
    steps: int
    every: int
    """Steps between the checkpoints that are kept, a divisor of steps."""
    batch: int


class Trained(NamedTuple):
    """Parameters over the training, flattened by `flat`."""

    params: Float[Array, "seeds checkpoints size"]
    ema: Float[Array, "seeds checkpoints size"]
    """Their exponential moving average, with which samples are drawn."""


def first_params(key: jax.Array, features: int, hidden: int) -> Params:
    """The network before training.

    Args:
        key: random key.
        features: numbers in an example.
        hidden: width.

    Returns:
        Parameters.
    """
    return denoising_mlp(features, hidden=hidden).init(key)


def denoiser(features: int, hidden: int) -> Denoise:
    """The network as ``(params, x, t, cond) -> noise``; ``cond`` is not looked at.

    Args:
        features: numbers in an example.
        hidden: width.

    Returns:
        The function.
    """
    model = denoising_mlp(features, hidden=hidden)
    return lambda params, x, t, cond: model.apply(params, x, t)  # noqa: ARG005


def flat(params: Params) -> Float[Array, " size"]:
    """The parameters as one vector."""
    return ravel_pytree(params)[0]


def unflat(vector: Array, features: int, hidden: int) -> Params:
    """The parameters that `flat` made a vector of.

    Args:
        vector: the vector.
        features: numbers in an example.
        hidden: width.

    Returns:
        Parameters.
    """
    shapes = jax.eval_shape(lambda key: first_params(key, features, hidden), jax.random.key(0))
    return ravel_pytree(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes))[1](vector)


def train(
    arm: Arm,
    x: Float[np.ndarray, "examples features"],
    boundaries: Sequence[int],
    sizes: Sizes,
    seeds: int,
) -> Trained:
    """Trains with a method, once for each seed.

    Args:
        arm: the method.
        x: the examples.
        boundaries: of the clusters of timesteps. Vanilla draws from the first to the last, which makes a
            specialist of an interval.
        sizes: how much.
        seeds: how many.

    Returns:
        The parameters every so many steps.
    """
    bounds = jnp.asarray(boundaries)
    clusters = 1 if arm.method == "vanilla" else len(bounds) - 1
    program = Program(arm.method, clusters, sizes.batch, sizes.hidden, x.shape[1])
    bounds = bounds[:: len(bounds) - 1] if clusters == 1 else bounds
    weight, known = example_weight(arm.weight), jnp.asarray(x)
    states = begin(program, jnp.arange(seeds))
    found = []
    for _ in range(sizes.steps // sizes.every):
        states = advance(program, sizes.every, states, known, bounds, weight)
        both = (states.params, ema_params(states.opt_state))
        found.append([jax.vmap(flat)(params["network"] if arm.method == "uw" else params) for params in both])
    return Trained(*(jnp.stack(vectors, axis=1) for vectors in zip(*found, strict=True)))


def begin(program: Program, seeds: Int[Array, " seeds"]) -> TrainState:
    """The states before training.

    Args:
        program: what is trained.
        seeds: a number for each.

    Returns:
        A state with a leading axis of the seeds.
    """
    params, keys = _first(program.features, program.hidden, seeds)
    if program.method == "uw":
        params = {"network": params, "log_scale": jnp.zeros((len(seeds), program.clusters))}
    tx = optimizer(program.method, program.clusters, LEARNING_RATE, EMA_DECAY)
    return jax.vmap(lambda params, key: init_state(params, tx, key))(params, keys)


@partial(jax.jit, static_argnums=(0, 1))
def _first(features: int, hidden: int, seeds: Int[Array, " seeds"]) -> tuple[Params, Array]:
    """First parameters and the key of the steps for each seed: the same program for all methods."""

    def of_seed(seed: Array) -> tuple[Params, Array]:
        of_params, of_steps = jax.random.split(jax.random.key(seed))
        return first_params(of_params, features, hidden), of_steps

    return jax.vmap(of_seed)(seeds)


@partial(jax.jit, static_argnums=(0, 1))
def advance(
    program: Program,
    steps: int,
    states: TrainState,
    x: Array,
    boundaries: Int[Array, " bounds"],
    weight: Array,
) -> TrainState:
    """A number of steps for each seed. Boundaries and weights are arguments: all clusterings are one program.

    Args:
        program: what is trained.
        steps: how many.
        states: with a leading axis of the seeds.
        x: the examples.
        boundaries: of the clusters.
        weight: of the loss at each timestep.

    Returns:
        The states after the steps.
    """
    clusters = program.clusters
    step = train_step(program.method, denoiser(program.features, program.hidden), clusters, weight)[0]
    cluster = np.arange(program.batch) % clusters  # where `make_ant_loss` expects it

    def of_seed(state: TrainState) -> TrainState:
        def one(state: TrainState, _: None) -> tuple[TrainState, None]:
            # Apart from what the step itself draws from the state's key.
            of_rows, of_t = jax.random.split(jax.random.fold_in(jax.random.fold_in(state.key, 1), state.step))
            rows = jax.random.randint(of_rows, (program.batch,), 0, len(x))
            t = jax.random.randint(of_t, (program.batch,), boundaries[cluster], boundaries[cluster + 1])
            return step(state, {"x0": x[rows], "t": t})[0], None

        return jax.lax.scan(one, state, length=steps)[0]

    return over_seeds(of_seed)(states)


def train_step(
    method: Method,
    denoise: Denoise,
    clusters: int,
    weight: Array | None = None,
    *,
    learning_rate: float = LEARNING_RATE,
    ema_decay: float = EMA_DECAY,
    **conditions: Any,
) -> tuple[Callable, optax.GradientTransformation]:
    """The step of a method.

    Args:
        method: how the losses of the clusters are put together.
        denoise: the network.
        clusters: how many, of equal length where the batch brings no timesteps of its own.
        weight: of the loss at each timestep; None is 1.
        learning_rate: of Adam.
        ema_decay: of the average of the parameters.
        **conditions: the null condition and its rate, as `jaxneg.diffusion.make_ant_loss` takes them.

    Returns:
        What `jaxneg.train.make_step` makes, for batches ``{"x0": [batch, ...]}``, and its optimizer.
    """
    kinds: dict[str, Any] = {"vanilla": "linear", "linear": "linear", "uw": "uw"}
    loss_fn = make_ant_loss(
        denoise,
        timestep_intervals(TIMESTEPS, 1 if method == "vanilla" else clusters),
        SCHEDULE.alphas_cumprod,
        method=kinds.get(method, "tasks"),
        weight=weight,
        pullback="whole" if method == "nash" else "stacked",
        **conditions,
    )
    tx = optimizer(method, clusters, learning_rate, ema_decay)
    return make_step(loss_fn, tx, jacobian="weighted" if method == "nash" else "stacked"), tx


def example_weight(kind: str) -> Float[Array, " timesteps"]:
    """The weight of the loss at each timestep.

    Args:
        kind: "min-snr" (gamma 5), "p2" (gamma 1, k 1), or "" for none.

    Returns:
        ``[timesteps]``.
    """
    weights = {"": np.ones(TIMESTEPS), "min-snr": min_snr_weight(SCHEDULE.snr), "p2": p2_weight(SCHEDULE.snr)}
    return jnp.asarray(weights[kind], jnp.float32)


def optimizer(
    method: Method, clusters: int, learning_rate: float, ema_decay: float
) -> optax.GradientTransformationExtraArgs:
    """Adam as each method has it, and the moving average of the parameters.

    Args:
        method: how the losses of the clusters are put together.
        clusters: how many.
        learning_rate: of the network.
        ema_decay: of the moving average.

    Returns:
        The transformation. Parameters of "uw" are ``{"network", "log_scale"}``.
    """
    adam = optax.adam(learning_rate)
    links = {
        "vanilla": (adam,),
        "linear": (adam,),
        "uw": (
            optax.partition(
                {"network": adam, "log_scale": optax.adam(LOG_SCALE_RATE)},
                {"network": "network", "log_scale": "log_scale"},
            ),
        ),
        "pcgrad": (multitask("pcgrad"), optax.scale(1 / clusters), adam),
        "nash": (nash_mtl(NASH_EVERY, n_tasks=clusters), adam),
    }
    return optax.chain(*links[method], track_ema(ema_decay))
