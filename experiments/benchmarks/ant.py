"""ANT: interval clustering beside the official arithmetic, and its train step beside the vanilla one.

Clustering is timed from log signal-to-noise ratios (or affinities) on the host to boundaries on the host,
cost matrix included. Two peers: the arithmetic of the authors' ``interval_clustering.py``, which sums each
interval anew for every number of intervals, written plainly here with the indices put right, and the same
problem in numpy with prefix sums and one minimum over an array for each interval. All three must give the
same intervals, or nothing is timed.

A step is timed beside the vanilla step (uniform timesteps) of the same network, batch and optimiser,
alternately; Nash-MTL by rounds of as many steps as use the same weights, one of which solves for them. The
task gradients of ANT's losses cost one backward pass together; "on the whole batch" pulls each loss back
through the whole batch, as an aggregator does that does not know them. Both ways must give the same
direction. The paper's own figures, of a latent diffusion U-Net on a GPU, are beside ours.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.bench import machine_peaks, median_seconds, paired_ratio, roofline_seconds
from experiments.claims import median_interval
from experiments.isolated import available_cores, in_a_process
from experiments.peers import distance
from jaxneg.diffusion import (
    cosine_schedule,
    interval_clustering,
    interval_cost,
    make_ant_loss,
    timestep_intervals,
)
from jaxneg.mtl import multitask
from jaxneg.nn.denoising_mlp import denoising_mlp
from jaxneg.nn.dit import DiTConfig, dit
from jaxneg.train import TrainState, init_state, make_step

TIMESTEPS, CLUSTERS, NASH_EVERY = 1000, 5, 25
INTERVALS = (5, 6, 7, 8)
LEARNING_RATE, LOG_SCALE_RATE = 1e-4, 0.025
DIRECTION_APART = 1e-3
"""How far, relatively, the directions of two ways to take the same gradients may be from each other."""

PAPER = {"uw": 2.108 / 2.103, "pcgrad": 2.108 / 1.523, "nash": 2.108 / 2.011}
"""The time of the paper's steps over its vanilla step: LDM on FFHQ, from its iterations a second."""


class Setting(NamedTuple):
    """A network and a batch: an MLP on vectors, or a DiT on latents of ``side`` x ``side`` x 4."""

    network: str
    width: int
    blocks: int
    batch: int
    side: int = 0

    def __str__(self) -> str:
        latents = f" {self.side}x{self.side}x4" if self.side else ""
        return f"{self.network}{latents} width={self.width} blocks={self.blocks} batch={self.batch}"


SETTINGS = (Setting("mlp", 64, 2, 125), Setting("dit", 128, 2, 40, 8))
FEATURES = 16


class Way(NamedTuple):
    """A step: the loss's method, how it takes gradients, how the engine does, the chain's aggregator."""

    method: str
    pullback: str = "stacked"
    jacobian: str = "stacked"
    aggregator: str | None = None
    steps: int = 1


WAYS = {
    "stratified": Way("linear"),
    "uw": Way("uw"),
    "pcgrad": Way("tasks", aggregator="pcgrad"),
    "pcgrad on the whole batch": Way("tasks", "whole", aggregator="pcgrad"),
    "nash": Way("tasks", jacobian="weighted", aggregator="nash", steps=NASH_EVERY),
    "nash on the whole batch": Way("tasks", "whole", "weighted", "nash", NASH_EVERY),
}


def run(repeats: int = 11) -> dict[str, Any]:
    """Times both parts, on one core.

    Args:
        repeats: pairs of samples for a step; of the official arithmetic, which takes seconds, a quarter.

    Returns:
        ``settings``; ``clustering`` by cost and number of intervals: ``ratio_median`` is the time of the
        official arithmetic over ours, ``numpy_ratio_median`` that of numpy; ``step`` by network and method:
        ``over_vanilla`` is a step's time over the vanilla step's, ``flops_over_vanilla`` and
        ``memory_over_vanilla`` the same of XLA's count of operations and of its temporary buffers,
        ``ours_over_roofline`` how far the step is from what the machine needs for it at least. Nash-MTL's
        operations are a mean: ``flops_of_a_solve`` in one step, ``flops_between`` in the others.

    Raises:
        RuntimeError: the two sides' intervals, or the directions of two ways, differ.
    """
    cores = available_cores()[:1]
    return {
        "settings": {
            "timesteps": TIMESTEPS,
            "schedule": "cosine",
            "clusters of a step": CLUSTERS,
            "Nash-MTL solves every": f"{NASH_EVERY} steps",
            "optimiser": f"AdamW, {LEARNING_RATE}",
            "dtype": "float32; float64 for the peers of clustering",
            "cores": 1,
            "pairs of samples": f"{repeats}; {-(-repeats // 4)} of the official arithmetic",
            "paper": "arXiv:2306.00354, LDM on FFHQ: iterations a second",
        },
        "clustering": in_a_process(cores, _clustering, TIMESTEPS, INTERVALS, repeats),
        "step": {str(setting): in_a_process(cores, _steps, setting, repeats) for setting in SETTINGS},
    }


def official_clustering(kind: str, values: np.ndarray, k: int) -> list[int]:
    """The boundaries, by the arithmetic of the authors' code: every interval is summed when it is asked for.

    Args:
        kind: "snr" (values ``[n]``) or "gradient" (values ``[n, n]``).
        values: as `jaxneg.diffusion.interval_cost` takes them.
        k: number of intervals.

    Returns:
        k + 1 boundaries.

    Example:
        >>> official_clustering("snr", np.array([9.0, 8.0, 1.0, 0.0]), 2)
        [0, 2, 4]
    """
    n = len(values)

    def cost(left: int, right: int) -> float:
        middle = (left + right + 1) // 2
        if kind == "gradient":
            return -values[middle, left : right + 1].sum()
        return np.abs(values[left : right + 1] - values[middle]).sum()

    best, first = np.full((k, n), np.inf), np.zeros((k, n), int)
    for right in range(n):
        best[0, right] = cost(0, right)
    for interval in range(1, k):
        for right in range(interval, n):
            items = np.full(right + 1, np.inf)
            for left in range(interval, right + 1):
                items[left] = best[interval - 1, left - 1] + cost(left, right)
            first[interval, right] = items.argmin()
            best[interval, right] = items.min()
    boundaries = [n]
    for interval in range(k - 1, -1, -1):
        boundaries.append(int(first[interval, boundaries[-1] - 1]))
    return boundaries[::-1]


def numpy_clustering(kind: str, values: np.ndarray, k: int) -> list[int]:
    """The boundaries with numpy: prefix sums about each middle, then a minimum over ``[n, n]`` an interval.

    Args:
        kind: "snr" or "gradient".
        values: as `official_clustering` takes them.
        k: number of intervals.

    Returns:
        k + 1 boundaries.

    Example:
        >>> numpy_clustering("snr", np.array([9.0, 8.0, 1.0, 0.0]), 2)
        [0, 2, 4]
    """
    n = len(values)
    distances = -values if kind == "gradient" else np.abs(values - values[:, None])
    sums = np.concatenate([np.zeros((n, 1)), distances.cumsum(1)], 1)
    left, right = np.ogrid[:n, :n]
    middle = np.minimum((left + right + 1) // 2, n - 1)
    cost = np.where(left <= right, sums[middle, right + 1] - sums[middle, left], np.inf)
    best, begins = cost[0], []
    for _ in range(k - 1):
        begins.append(np.concatenate([[np.inf], best[:-1]]))
        best = (begins[-1][:, None] + cost).min(0)
    boundaries = [n]
    for before in reversed(begins):
        boundaries.append(int((before + cost[:, boundaries[-1] - 1]).argmin()))
    return [0, *boundaries[::-1]]


def our_clustering(kind: Any, values: np.ndarray, k: int) -> list[int]:
    """The boundaries, ours."""
    return interval_clustering(interval_cost(kind, values), k)[0].tolist()


def _clustering(timesteps: int, intervals: tuple[int, ...], repeats: int) -> dict[str, dict[str, float]]:
    log_snr = cosine_schedule(timesteps).log_snr
    # Affinities that fall with the distance, as the paper's do, with a little noise.
    t = np.arange(timesteps)
    noise = np.random.default_rng(0).normal(size=(timesteps, timesteps))
    affinity = np.exp(-np.abs(t - t[:, None]) / timesteps) * (1 + 0.01 * (noise + noise.T))
    measured = {}
    cases = [("snr", log_snr, k) for k in intervals] + [("gradient", affinity, intervals[0])]
    for kind, values, k in cases:
        programs = (our_clustering, official_clustering, numpy_clustering)
        ours, official, vectorised = (lambda f=f, kind=kind, v=values, k=k: f(kind, v, k) for f in programs)
        answers = [ours(), official(), vectorised()]
        if not answers[0] == answers[1] == answers[2]:
            raise RuntimeError(f"{kind}, k={k}: the intervals differ: {answers}; they are not timed")
        few = _few_pairs(ours, official, -(-repeats // 4))
        fast = paired_ratio(ours, vectorised, repeats)
        measured[f"{kind} k={k}"] = {
            **few,
            "numpy_seconds": fast["peer_seconds"],
            **{f"numpy_{name}": fast[name] for name in ("ratio_median", "ratio_low", "ratio_high")},
        }
    return measured


def _few_pairs(ours: Callable[[], Any], peer: Callable[[], Any], pairs: int) -> dict[str, float]:
    """As `paired_ratio`, for a peer that needs no warming and of which one call is a sample."""
    ours_times, peer_times = np.empty(pairs), np.empty(pairs)
    for pair in range(pairs):
        ours_times[pair] = median_seconds(ours, 3)
        began = time.perf_counter()
        peer()
        peer_times[pair] = time.perf_counter() - began
    median, low, high, _ = median_interval(peer_times / ours_times)
    return {
        "ours_seconds": float(np.median(ours_times)),
        "peer_seconds": float(np.median(peer_times)),
        "ratio_median": median,
        "ratio_low": low,
        "ratio_high": high,
    }


def step_of(
    way: Way, setting: Setting, clusters: int = CLUSTERS
) -> tuple[Callable[..., Any], TrainState, dict[str, jax.Array]]:
    """A step, its first state, and a batch.

    Args:
        way: how the step is made.
        setting: the network and the batch.
        clusters: how many intervals; 1 is vanilla training.

    Returns:
        ``step(state, batch) -> (state, metrics)``, to be jitted, the state and the batch.
    """
    if setting.network == "mlp":
        model = denoising_mlp(FEATURES, hidden=setting.width, blocks=setting.blocks)
        shape = (FEATURES,)
    else:
        shape = (setting.side, setting.side, 4)
        heads = setting.width // 32
        config = DiTConfig(
            setting.side, channels=4, patch=2, width=setting.width, layers=setting.blocks, heads=heads
        )
        model = dit(config)
    loss_fn = make_ant_loss(
        lambda params, x, t, cond: model.apply(params, x, t),  # noqa: ARG005
        timestep_intervals(TIMESTEPS, clusters),
        cosine_schedule(TIMESTEPS).alphas_cumprod,
        method=way.method,  # pyright: ignore[reportArgumentType]
        pullback=way.pullback,  # pyright: ignore[reportArgumentType]
    )
    network = optax.adamw(LEARNING_RATE, weight_decay=0.0)
    params = model.init(jax.random.key(0))
    # A DiT begins with layers of zeros, behind which no gradient is seen.
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [leaf + 0.02 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    params = jax.tree.unflatten(tree, noisy)
    if way.method == "uw":
        groups: Any = {"network": network, "log_scale": optax.adam(LOG_SCALE_RATE)}
        tx = optax.partition(groups, {"network": "network", "log_scale": "log_scale"})
        params = {"network": params, "log_scale": jnp.zeros(clusters)}
    elif way.aggregator == "nash":
        link = multitask("nash", n_tasks=clusters, update_every=way.steps, max_norm=None)
        tx = optax.chain(link, optax.scale(1 / clusters), optax.clip_by_global_norm(1.0), network)
    elif way.aggregator:
        tx = optax.chain(multitask(way.aggregator), optax.scale(1 / clusters), network)
    else:
        tx = network
    step = make_step(loss_fn, tx, jacobian=way.jacobian)  # pyright: ignore[reportArgumentType]
    batch = {"x0": jax.random.normal(jax.random.key(2), (setting.batch, *shape))}
    return step, init_state(params, tx, jax.random.key(3)), batch


class Rounds:
    """A compiled step; called, it makes a number of them.

    Args:
        way: how the step is made.
        setting: the network and the batch.
        clusters: how many intervals.
    """

    def __init__(self, way: Way, setting: Setting, clusters: int = CLUSTERS) -> None:
        step, self.state, self.batch = step_of(way, setting, clusters)
        self.compiled = jax.jit(step, donate_argnums=0).lower(self.state, self.batch).compile()
        cost: Any = self.compiled.cost_analysis()
        self.flops, self.bytes = cost["flops"], cost["bytes accessed"]
        sizes: Any = self.compiled.memory_analysis()
        self.memory = sizes.temp_size_in_bytes

    def __call__(self, steps: int = 1) -> Any:
        """The state after so many steps."""
        for _ in range(steps):
            self.state, _ = self.compiled(self.state, self.batch)
        return self.state

    def direction(self) -> Any:
        """Adam's first moment, after one step a multiple of the direction that it was given."""
        ((_, found),) = optax.tree_utils.tree_get_all_with_path(self.state.opt_state, "mu")
        return jax.tree.map(np.asarray, found)


def _steps(setting: Setting, repeats: int) -> dict[str, dict[str, float]]:
    peaks = machine_peaks()
    vanilla = Rounds(Way("linear"), setting, clusters=1)
    measured: dict[str, dict[str, float]] = {}
    directions: dict[str, Any] = {}
    for name, way in WAYS.items():
        rounds = Rounds(way, setting)
        if way.aggregator:
            rounds()
            direction = rounds.direction()
            apart = distance(direction, directions.setdefault(way.aggregator, direction))
            if not apart <= DIRECTION_APART:
                raise RuntimeError(f"{name}: another direction, {apart:.1e} apart: it is not timed")
            rounds(way.steps - 1)
        timing = paired_ratio(lambda r=rounds, n=way.steps: r(n), lambda n=way.steps: vanilla(n), repeats)
        seconds, flops, moved, parts = timing["ours_seconds"] / way.steps, rounds.flops, rounds.bytes, {}
        if way.steps > 1:  # XLA counts the branch that solves
            between = Rounds(way._replace(aggregator="equal"), setting)
            parts = {
                "flops_of_a_solve": flops / vanilla.flops,
                "flops_between": between.flops / vanilla.flops,
            }
            flops += (between.flops - flops) * (1 - 1 / way.steps)
            moved += (between.bytes - moved) * (1 - 1 / way.steps)
        roofline = roofline_seconds(flops, moved, peaks)
        measured[name] = {
            "seconds": seconds,
            "vanilla_seconds": timing["peer_seconds"] / way.steps,
            "over_vanilla": 1 / timing["ratio_median"],
            "over_vanilla_low": 1 / timing["ratio_high"],
            "over_vanilla_high": 1 / timing["ratio_low"],
            **({"paper_over_vanilla": PAPER[name]} if name in PAPER else {}),
            "flops_over_vanilla": flops / vanilla.flops,
            **parts,
            "memory_over_vanilla": rounds.memory / vanilla.memory,
            "roofline_seconds": roofline,
            "ours_over_roofline": seconds / roofline,
        }
    return measured
