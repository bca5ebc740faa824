"""Task weights and whole aggregations beside torchjd's, on the same CPU and the same numbers.

Three questions: how long weights take from a given Gram matrix (or, for the methods of the losses, from the
losses), how long the aggregation of a stacked Jacobian takes, and how good both answers are. Both run on one
core, in a process of their own; the aggregation once more on all cores, with as many torch threads. Each
program goes round the same few inputs, so that no solver is warmed by the answer of the call before. torchjd
has no methods of the losses: LibMTL's arithmetic is written out for these.
"""

import importlib
import itertools
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import median_seconds, paired_ratio
from jaxneg.mtl import (
    aligned_mtl,
    cagrad,
    combine,
    dualproj,
    dwa_weights,
    equal_weights,
    fairgrad,
    famo_init,
    famo_loss,
    famo_update,
    gram,
    imtl_g,
    mgda,
    nash,
    pcgrad,
    rlw_weights,
    upgrad,
    uw,
)

TASKS = (3, 9, 40)
JACOBIANS = ((3, 1_000_000), (40, 100_000))
INPUTS = 8
CAGRAD_C, FAIRGRAD_ALPHA, DWA_TAU, FAMO_RATE, FAMO_DECAY = 0.5, 2.0, 2.0, 0.025, 1e-3

GRAM_METHODS: dict[str, Callable[..., Any]] = {
    "mgda": mgda,
    "pcgrad": pcgrad,
    "cagrad": partial(cagrad, c=CAGRAD_C, rescale=0),
    "imtl_g": imtl_g,
    "nash": nash,
    "fairgrad": partial(fairgrad, alpha=FAIRGRAD_ALPHA),
    "aligned_mtl": aligned_mtl,
    "upgrad": upgrad,
    "dualproj": dualproj,
}


def run(repeats: int = 21) -> dict[str, Any]:
    """Times every method of the first set beside its peer.

    Args:
        repeats: pairs of samples for each comparison.

    Returns:
        ``settings``; ``weights`` and ``losses`` by "T=<tasks>" and method; ``aggregation`` and
        ``aggregation_on_all_cores`` by "T=<tasks> P=<parameters>" and method. ``ratio_median`` is the peer's
        time over ours. ``residual`` and ``peer_residual`` say how far from the method's own condition the
        worst answer is (see `residuals`), ``apart`` how far the two combined gradients are from each other,
        relatively. ``read_twice_seconds`` is the time of two sums over the Jacobian, the least an aggregation
        can take.

    Raises:
        ImportError: torch or torchjd is not installed.
    """
    torch, _ = _peers()
    cores = _cores()
    everything = _in_a_process(cores[:1], _measure, repeats)
    if len(cores) > 1:
        everything["aggregation_on_all_cores"] = _in_a_process(cores, _aggregations, repeats)
    settings = {
        "torch": torch.__version__,
        "cores": f"1, and {len(cores)} for aggregation_on_all_cores",
        "torch threads": "one for each core",
        "JAX_CPU_ENABLE_ASYNC_DISPATCH": "false",
        "dtype": "float32",
        "inputs in turn": INPUTS,
    }
    return {"settings": settings, **everything}


def _cores() -> list[int]:
    """The cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]


def _in_a_process(cores: list[int], measure: Callable[[int], dict[str, Any]], repeats: int) -> dict[str, Any]:
    """Measures on these cores only: the thread pools of jax and torch are as large as what they find."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, initializer=_settle, initargs=(cores,)) as pool:
        return pool.submit(measure, repeats).result()


def _settle(cores: list[int]) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    # A call that hands a small program to another thread measures the handing over.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    _peers()[0].set_num_threads(len(cores))


def _measure(repeats: int) -> dict[str, Any]:
    torch, peers = _peers()
    return {
        "weights": {f"T={tasks}": _weights(torch, peers, tasks, repeats) for tasks in TASKS},
        "losses": {f"T={tasks}": _losses(torch, tasks, repeats) for tasks in TASKS},
        "aggregation": _aggregations(repeats),
    }


def _aggregations(repeats: int) -> dict[str, Any]:
    torch, peers = _peers()
    return {
        f"T={tasks} P={parameters}": _aggregation(torch, peers, tasks, parameters, repeats)
        for tasks, parameters in JACOBIANS
    }


def residuals(method: str, G: np.ndarray, weights: np.ndarray) -> float:
    """How far weights are from their method's own condition, in float64; NaN where it has none to check.

    MGDA and CAGrad: how far the objective can still fall towards a vertex, in units of the mean squared norm.
    Nash-MTL and FairGrad: ``max |w_i^a (G w)_i - 1|``. IMTL-G: the spread of the projections on the unit
    gradients, over their mean. UPGrad and DualProj: by how much a task would be hurt,
    ``max(0, -min (M w)_i)`` with their own matrix M = G / tr G + 1e-4 I.

    Args:
        method: a name of `GRAM_METHODS`.
        G: ``[T, T]``.
        weights: ``[T]``.

    Returns:
        The residual.

    Example:
        >>> residuals("nash", np.eye(2), np.ones(2))
        0.0
    """
    G, weights = G.astype(np.float64), weights.astype(np.float64)
    tasks = len(G)
    slope, mean_square = G @ weights, np.trace(G) / tasks
    if method == "mgda":
        return float((weights @ slope - slope.min()) / mean_square)
    if method == "cagrad":
        share = (weights - 1 / tasks) / np.sum(weights - 1 / tasks)
        radius = CAGRAD_C * np.sqrt(G.mean())
        gradient = G.mean(1) + radius * G @ share / np.sqrt(share @ G @ share)
        return float((share @ gradient - gradient.min()) / mean_square)
    if method in ("nash", "fairgrad"):
        power = 1 if method == "nash" else 1 / FAIRGRAD_ALPHA
        return float(np.max(np.abs(weights**power * slope - 1)))
    if method in ("upgrad", "dualproj"):
        return float(max(0, -np.min(slope / np.trace(G) + 1e-4 * weights)))
    if method == "imtl_g":
        projections = slope / np.sqrt(np.diag(G))
        return float(np.max(np.abs(projections / projections.mean() - 1)))
    return float("nan")


def _peers() -> tuple[ModuleType, ModuleType]:
    """Torch and torchjd's aggregators; imported here, because only this benchmark needs them."""
    try:
        return importlib.import_module("torch"), importlib.import_module("torchjd.aggregation")
    except ImportError as error:
        raise ImportError(
            f"the benchmark 'aggregators' measures against torchjd ({error}); pip install 'jaxneg[bench]'"
        ) from error


def _weightings(peers: ModuleType, tasks: int) -> dict[str, Callable[[Any], Any]]:
    """Torchjd's weights from a Gram matrix; Nash-MTL's take a matrix that has it."""
    return {
        "mgda": peers.MGDAWeighting(),
        "pcgrad": peers.PCGradWeighting(),
        "cagrad": peers.CAGradWeighting(c=CAGRAD_C),
        "imtl_g": peers.IMTLGWeighting(),
        "nash": peers.NashMTL(n_tasks=tasks, max_norm=0.0).weighting,
        "fairgrad": peers.FairGradWeighting(alpha=FAIRGRAD_ALPHA),
        "aligned_mtl": peers.AlignedMTLWeighting(),
        "upgrad": peers.UPGradWeighting(),
        "dualproj": peers.DualProjWeighting(),
    }


def _aggregators(peers: ModuleType, tasks: int) -> dict[str, Callable[[Any], Any]]:
    return {
        "equal": peers.Sum(),
        "rlw": peers.Random(),
        "mgda": peers.MGDA(),
        "pcgrad": peers.PCGrad(),
        "cagrad": peers.CAGrad(c=CAGRAD_C),
        "imtl_g": peers.IMTLG(),
        "nash": peers.NashMTL(n_tasks=tasks, max_norm=0.0),
        "fairgrad": peers.FairGrad(alpha=FAIRGRAD_ALPHA),
        "aligned_mtl": peers.AlignedMTL(),
        "upgrad": peers.UPGrad(),
        "dualproj": peers.DualProj(),
    }


def _in_turn(program: Callable[..., Any], inputs: list[Any]) -> Callable[[], Any]:
    """The program on one input after the other."""
    endless = itertools.cycle(inputs)
    return lambda: program(*next(endless))


def _weights(torch: ModuleType, peers: ModuleType, tasks: int, repeats: int) -> dict[str, dict[str, float]]:
    rng = np.random.default_rng(tasks)
    jacobians = [rng.standard_normal((tasks, 5 * tasks)) for _ in range(INPUTS)]
    grams = [(J @ J.T).astype(np.float32) for J in jacobians]
    factors = [torch.from_numpy(np.linalg.cholesky(G)) for G in grams]
    keys = list(jax.random.split(jax.random.key(0), INPUTS))
    measured = {}
    for name, weighting in _weightings(peers, tasks).items():
        ours = jax.jit(lambda G, key, name=name: _ask(name, G, key))
        ours_inputs = [(jnp.asarray(G), key) for G, key in zip(grams, keys, strict=True)]
        peer_inputs = (
            [(factor,) for factor in factors] if name == "nash" else [(torch.from_numpy(G),) for G in grams]
        )
        answers = [np.asarray(ours(*given)) for given in ours_inputs]
        peer_answers = [weighting(*given).numpy() for given in peer_inputs]
        row = {
            **paired_ratio(_in_turn(ours, ours_inputs), _in_turn(weighting, peer_inputs), repeats),
            "residual": max(residuals(name, G, w) for G, w in zip(grams, answers, strict=True)),
            "peer_residual": max(residuals(name, G, w) for G, w in zip(grams, peer_answers, strict=True)),
            # PCGrad draws other orders.
            "apart": float("nan")
            if name == "pcgrad"
            else max(_apart(G, w, v) for G, w, v in zip(grams, answers, peer_answers, strict=True)),
        }
        measured[name] = _known(row)
    return measured


def _known(row: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in row.items() if not np.isnan(value)}


def _apart(G: np.ndarray, weights: np.ndarray, peer_weights: np.ndarray) -> float:
    """The distance of two combined gradients in units of the second's length."""
    G, difference = G.astype(np.float64), weights.astype(np.float64) - peer_weights
    return float(np.sqrt(difference @ G @ difference / (peer_weights @ G @ peer_weights)))


def _ask(name: str, G: jax.Array, key: jax.Array) -> jax.Array:
    return GRAM_METHODS[name](G, key=key) if name == "pcgrad" else GRAM_METHODS[name](G)


def _aggregation(
    torch: ModuleType, peers: ModuleType, tasks: int, parameters: int, repeats: int
) -> dict[str, dict[str, float]]:
    J = np.random.default_rng(tasks).standard_normal((tasks, parameters), dtype=np.float32)
    ours_J, peer_J, key = jnp.asarray(J), torch.from_numpy(J), jax.random.key(0)
    total = jax.jit(jnp.sum)
    read_twice = 2 * median_seconds(lambda: total(ours_J), repeats)

    def direction(name: str, J: jax.Array, key: jax.Array) -> jax.Array:
        if name == "equal":
            return combine(equal_weights(tasks), J)
        if name == "rlw":
            return combine(rlw_weights(key, tasks), J)
        return combine(_ask(name, gram(J), key), J)

    measured = {}
    for name, aggregator in _aggregators(peers, tasks).items():
        ours = jax.jit(partial(direction, name))
        answer, peer_answer = np.asarray(ours(ours_J, key), np.float64), aggregator(peer_J).double().numpy()
        timing = paired_ratio(
            lambda ours=ours: ours(ours_J, key), lambda peer=aggregator: peer(peer_J), repeats
        )
        row = {
            **timing,
            "read_twice_seconds": read_twice,
            "ours_over_read_twice": timing["ours_seconds"] / read_twice,
            "peer_over_read_twice": timing["peer_seconds"] / read_twice,
            # Random methods draw other numbers.
            "apart": float("nan")
            if name in ("rlw", "pcgrad")
            else float(np.linalg.norm(answer - peer_answer) / np.linalg.norm(peer_answer)),
        }
        measured[name] = _known(row)
    return measured


def _losses(torch: ModuleType, tasks: int, repeats: int) -> dict[str, dict[str, float]]:
    rng = np.random.default_rng(tasks)
    losses = rng.uniform(0.5, 2, (INPUTS, 2, tasks)).astype(np.float32)
    pairs = [(jnp.asarray(before), jnp.asarray(after)) for before, after in losses]
    peer_pairs = [(torch.from_numpy(before), torch.from_numpy(after)) for before, after in losses]
    key, s, peer_s = jax.random.key(0), jnp.zeros(tasks), torch.zeros(tasks)
    xi, moments = famo_init(tasks)
    peer_xi = torch.zeros(tasks, requires_grad=True)
    peer_adam = torch.optim.Adam([peer_xi], lr=FAMO_RATE, weight_decay=FAMO_DECAY)

    def ours_famo(before: jax.Array, after: jax.Array) -> Any:
        weights = jax.grad(famo_loss)(before, xi)
        return weights, famo_update(xi, moments, before, after, learning_rate=FAMO_RATE, gamma=FAMO_DECAY)

    def peer_famo(before: Any, after: Any) -> Any:
        z = torch.softmax(peer_xi, -1)
        above = before + 1e-8
        weights = (z / above / (z / above).sum()).detach()
        delta = (above.log() - (after + 1e-8).log()).detach()
        peer_adam.zero_grad()
        peer_xi.grad = torch.autograd.grad(z, peer_xi, delta)[0]
        peer_adam.step()
        return weights

    def peer_dwa(before: Any, after: Any) -> Any:
        return tasks * torch.softmax(after / before / DWA_TAU, -1)

    def peer_uw(before: Any, _: Any) -> Any:
        return 0.5 * torch.exp(-peer_s), 0.5 * (1 - torch.exp(-peer_s) * before)

    def ours_rlw(*_: jax.Array) -> Any:
        return rlw_weights(key, tasks)

    def peer_rlw(*_: Any) -> Any:
        return torch.softmax(torch.randn(tasks), -1)

    def ours_dwa(before: jax.Array, after: jax.Array) -> Any:
        return dwa_weights(jnp.stack([before, after], axis=1), DWA_TAU)

    def ours_uw(before: jax.Array, _: jax.Array) -> Any:
        return jax.grad(uw, argnums=(0, 1))(before, s)

    programs = {
        "rlw": (ours_rlw, peer_rlw),
        "dwa": (ours_dwa, peer_dwa),
        "uw": (ours_uw, peer_uw),
        "famo": (ours_famo, peer_famo),
    }
    return {
        name: paired_ratio(_in_turn(jax.jit(ours), pairs), _in_turn(peer, peer_pairs), repeats)
        for name, (ours, peer) in programs.items()
    }
