"""Task weights, whole aggregations and their memory beside torchjd's, on the same CPU and the same numbers.

Four questions: how long weights take from a given Gram matrix (or, for the methods of the losses, from the
losses), how long the aggregation of a stacked Jacobian takes, how good both answers are, and how much memory
an aggregation needs beside the Jacobian. Both run on one core, in a process of their own; the aggregation of
up to a million parameters once more on all cores, with as many torch threads. Each program that weighs goes
round the same few inputs, so that no solver is warmed by the answer of the call before. torchjd is the peer;
for random and dynamic weights, uncertainty weighting and FAMO, LibMTL's arithmetic is written out, which is
shorter than torchjd's.

Memory: for each side and number of tasks a process makes the Jacobian of the largest size; then, method by
method, the peak of the resident set over one aggregation, less the resident set before it
(`experiments.isolated.peak_growth`). Ours is compiled by then; torchjd's has aggregated a small Jacobian.
"""

import importlib
import itertools
import math
import time
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import median_seconds, paired_ratio
from experiments.isolated import available_cores, in_a_process, peak_growth
from jaxneg.mtl import (
    aligned_mtl,
    cagrad,
    combine,
    config,
    dualproj,
    dwa_weights,
    equal_weights,
    fairgrad,
    famo_init,
    famo_loss,
    famo_update,
    gls,
    gradvac,
    gram,
    imtl_g,
    imtl_l,
    mgda,
    modo,
    multitask,
    nash,
    pcd,
    pcgrad,
    rlw_weights,
    sdmgrad,
    stch,
    upgrad,
    uw,
)

TASKS = (2, 3, 9, 40)
SIZES = tuple(itertools.product((2, 9, 40), (100_000, 1_000_000, 10_000_000)))
SHARED_SIZE = 1_000_000
"""Up to so many parameters aggregations are measured on all cores too."""

PAIR_SECONDS, SLOW_SECONDS = 3.0, 2.0
"""How long the pairs of one method may take in all, at three pairs at least; from where one pair must do."""

INPUTS = 8
CAGRAD_C, FAIRGRAD_ALPHA, DWA_TAU, FAMO_RATE, FAMO_DECAY = 0.5, 2.0, 2.0, 0.025, 1e-3
SDMGRAD_RATE, MODO_RATE = 5.0, 0.1

GRAM_METHODS: dict[str, Callable[..., Any]] = {
    "mgda": mgda,
    "pcgrad": pcgrad,
    "gradvac": gradvac,
    "cagrad": partial(cagrad, c=CAGRAD_C, rescale=0),
    "imtl_g": imtl_g,
    "nash": nash,
    "fairgrad": partial(fairgrad, alpha=FAIRGRAD_ALPHA),
    "aligned_mtl": aligned_mtl,
    "upgrad": upgrad,
    "dualproj": dualproj,
    "config": config,
    "pcd": pcd,
}
RANDOM = ("rlw", "pcgrad", "gradvac", "graddrop")


def run(repeats: int = 21) -> dict[str, Any]:
    """Times every method that torchjd has too.

    Args:
        repeats: pairs of samples for each comparison, fewer where a call takes long.

    Returns:
        ``settings``; ``weights`` and ``losses`` by "T=<tasks>" and method; ``aggregation``,
        ``aggregation_on_all_cores`` and ``memory`` by "T=<tasks> P=<parameters>" and method. ``ratio_median``
        is the peer's time over ours; ``pairs`` of samples were taken, and where there is one it has no
        interval. ``residual`` and ``peer_residual`` say how far from the method's own condition the
        worst answer is (see `residuals`), ``apart`` how far the two combined gradients are from each other,
        relatively. ``read_twice_seconds`` is the time of two sums over the Jacobian, the least an aggregation
        can take. ``ours_bytes`` and ``peer_bytes`` come on top of the Jacobian.

    Raises:
        ImportError: torch or torchjd is not installed.
    """
    torch, _ = _peers()
    cores = available_cores()
    everything = in_a_process(cores[:1], _measure, SIZES, repeats)
    if len(cores) > 1:
        shared = tuple(size for size in SIZES if size[1] <= SHARED_SIZE)
        everything["aggregation_on_all_cores"] = in_a_process(cores, _aggregations, shared, repeats)
    largest = max(parameters for _, parameters in SIZES)
    everything["memory"] = {
        f"T={tasks} P={parameters}": _memory(cores, tasks, parameters)
        for tasks, parameters in SIZES
        if parameters == largest
    }
    settings = {
        "torch": torch.__version__,
        "cores": f"1, and {len(cores)} for aggregation_on_all_cores",
        "torch threads": "one for each core",
        "JAX_CPU_ENABLE_ASYNC_DISPATCH": "false",
        "dtype": "float32",
        "inputs in turn": INPUTS,
        "pairs of samples": f"{repeats}; for aggregations as many as {PAIR_SECONDS:g} s hold, at least 3; 1"
        f" where a call takes {SLOW_SECONDS:g} s",
        "on all cores": f"up to P={SHARED_SIZE}",
        "memory": f"of P={largest} alone: smaller ones are lost among the allocators' reserves",
    }
    return {"settings": settings, **everything}


def _measure(sizes: tuple[tuple[int, int], ...], repeats: int) -> dict[str, Any]:
    torch, peers = _peers()
    return {
        "weights": {f"T={tasks}": _weights(torch, peers, tasks, repeats) for tasks in TASKS},
        "losses": {f"T={tasks}": _losses(torch, tasks, repeats) for tasks in TASKS},
        "aggregation": _aggregations(sizes, repeats),
    }


def _aggregations(sizes: tuple[tuple[int, int], ...], repeats: int) -> dict[str, Any]:
    torch, peers = _peers()
    return {
        f"T={tasks} P={parameters}": _aggregation(torch, peers, tasks, parameters, repeats)
        for tasks, parameters in sizes
    }


def _memory(cores: list[int], tasks: int, parameters: int) -> dict[str, dict[str, int | None]]:
    ours = in_a_process(cores[:1], _our_memory, tasks, parameters, keep_memory=False)
    peers = in_a_process(cores[:1], _peer_memory, tasks, parameters, keep_memory=False)
    return {name: {"ours_bytes": ours[name], "peer_bytes": peers[name]} for name in ours}


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
    """Torch on the cores of this process, and torchjd's aggregators; only this benchmark needs them."""
    try:
        torch = importlib.import_module("torch")
        peers = importlib.import_module("torchjd.aggregation")
    except ImportError as error:
        raise ImportError(
            f"the benchmark 'aggregators' measures against torchjd ({error}); pip install 'jaxneg[bench]'"
        ) from error
    torch.set_num_threads(len(available_cores()))
    return torch, peers


def _weightings(peers: ModuleType, tasks: int) -> dict[str, Callable[[], Callable[[Any], Any]]]:
    """What makes torchjd's weightings of a Gram matrix; Nash-MTL and ConFIG take a matrix that has it."""
    return {
        "mgda": peers.MGDAWeighting,
        "pcgrad": peers.PCGradWeighting,
        "gradvac": peers.GradVacWeighting,
        "cagrad": partial(peers.CAGradWeighting, c=CAGRAD_C),
        "imtl_g": peers.IMTLGWeighting,
        "nash": lambda: peers.NashMTL(n_tasks=tasks, max_norm=0.0).weighting,
        "fairgrad": partial(peers.FairGradWeighting, alpha=FAIRGRAD_ALPHA),
        "aligned_mtl": peers.AlignedMTLWeighting,
        "upgrad": peers.UPGradWeighting,
        "dualproj": peers.DualProjWeighting,
        "config": peers.ConFIG,
        "pcd": peers.PCDWeighting,
        "sdmgrad": partial(peers.SDMGradWeighting, lr=SDMGRAD_RATE),
        "modo": partial(peers.MoDoWeighting, gamma=MODO_RATE),
    }


def _aggregators(peers: ModuleType, tasks: int) -> dict[str, Callable[[], Callable[[Any], Any]]]:
    """What makes torchjd's aggregators."""
    return {
        "equal": peers.Sum,
        "rlw": peers.Random,
        "mgda": peers.MGDA,
        "pcgrad": peers.PCGrad,
        "gradvac": peers.GradVac,
        "cagrad": partial(peers.CAGrad, c=CAGRAD_C),
        "imtl_g": peers.IMTLG,
        "nash": partial(peers.NashMTL, n_tasks=tasks, max_norm=0.0),
        "fairgrad": partial(peers.FairGrad, alpha=FAIRGRAD_ALPHA),
        "aligned_mtl": peers.AlignedMTL,
        "upgrad": peers.UPGrad,
        "dualproj": peers.DualProj,
        "config": peers.ConFIG,
        "pcd": peers.PCD,
        "graddrop": peers.GradDrop,
        "excess_mtl": peers.ExcessMTL,
    }


def _in_turn(program: Callable[..., Any], inputs: list[Any]) -> Callable[[], Any]:
    """The program on one input after the other."""
    endless = itertools.cycle(inputs)
    return lambda: program(*next(endless))


def _weights(torch: ModuleType, peers: ModuleType, tasks: int, repeats: int) -> dict[str, dict[str, float]]:
    rng = np.random.default_rng(tasks)
    jacobians = [rng.standard_normal((tasks, 5 * tasks)) for _ in range(INPUTS)]
    grams = [(J @ J.T).astype(np.float32) for J in jacobians]
    factors = [np.linalg.cholesky(G) for G in grams]
    keys = list(jax.random.split(jax.random.key(0), INPUTS))
    measured = {}
    for name, make in _weightings(peers, tasks).items():
        ours = jax.jit(lambda G, key, name=name: _ask(name, G, key))
        ours_inputs = [(jnp.asarray(G), key) for G, key in zip(grams, keys, strict=True)]
        given = factors if name in ("nash", "config") else grams
        peer_inputs = [(torch.from_numpy(matrix),) for matrix in given]
        answers = [np.asarray(ours(*given)) for given in ours_inputs]
        weighting = make()
        # Those that remember answers start anew for each; Nash-MTL's memory only helps its solver.
        peer_answers = [(weighting if name == "nash" else make())(*given).numpy() for given in peer_inputs]
        if name == "config":  # torchjd's gives the direction
            peer_answers = [np.linalg.solve(L.T, v) for L, v in zip(factors, peer_answers, strict=True)]
        row = {
            **paired_ratio(_in_turn(ours, ours_inputs), _in_turn(weighting, peer_inputs), repeats),
            "residual": max(residuals(name, G, w) for G, w in zip(grams, answers, strict=True)),
            "peer_residual": max(residuals(name, G, w) for G, w in zip(grams, peer_answers, strict=True)),
            "apart": float("nan")
            if name in RANDOM
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
    start = jnp.full(G.shape[0], 1 / G.shape[0])
    if name == "pcgrad":
        return pcgrad(G, key=key)
    if name == "gradvac":
        return gradvac(G, jnp.zeros_like(G), key=key)[0]
    if name == "sdmgrad":
        return sdmgrad(G, start, learning_rate=SDMGRAD_RATE)[0]
    if name == "modo":
        return modo(G, start, gamma=MODO_RATE)
    return GRAM_METHODS[name](G)


class _Ours:
    """Our aggregation of Jacobians of one shape, compiled; called with one, it remembers its state."""

    def __init__(self, name: str, tasks: int, parameters: int) -> None:
        options = {"variant": "torchjd", "step_size": 1.0} if name == "excess_mtl" else {}
        link = multitask(name, n_tasks=tasks, **options) if name in ("graddrop", "excess_mtl") else None

        def direction(J: jax.Array, key: jax.Array, state: Any) -> tuple[jax.Array, Any]:
            if link is not None:
                return link.update(J, state, key=key)  # pyright: ignore[reportReturnType]
            if name == "equal":
                return combine(equal_weights(tasks), J), state
            if name == "rlw":
                return combine(rlw_weights(key, tasks), J), state
            return combine(_ask(name, gram(J), key), J), state

        def first_state() -> Any:
            return () if link is None else link.init(jnp.zeros(parameters))

        J = jax.ShapeDtypeStruct((tasks, parameters), jnp.float32)
        self._first_state, self._state, self._key = first_state, None, jax.random.key(0)
        lowered = jax.jit(direction, donate_argnums=2).lower(J, self._key, jax.eval_shape(first_state))
        self._compiled = lowered.compile()

    def __call__(self, J: jax.Array) -> jax.Array:
        state = self._first_state() if self._state is None else self._state
        direction, self._state = self._compiled(J, self._key, state)
        return jax.block_until_ready(direction)


def _aggregation(
    torch: ModuleType, peers: ModuleType, tasks: int, parameters: int, repeats: int
) -> dict[str, dict[str, float]]:
    ours_J = _jacobian(tasks, parameters)
    peer_J, total = torch.from_dlpack(ours_J), jax.jit(jnp.sum)
    read_twice = 2 * median_seconds(lambda: total(ours_J), 5)
    measured = {}
    for name, make in _aggregators(peers, tasks).items():
        ours, aggregator = _Ours(name, tasks, parameters), make()
        answer, seconds = _timed(lambda ours=ours: ours(ours_J))
        peer_answer, peer_seconds = _timed(lambda peer=aggregator: peer(peer_J))
        if max(seconds, peer_seconds) > SLOW_SECONDS:
            timing = {
                "ours_seconds": seconds,
                "peer_seconds": peer_seconds,
                "ratio_median": peer_seconds / seconds,
                "pairs": 1,
            }
        else:
            timing = paired_ratio(
                lambda ours=ours: ours(ours_J),
                lambda peer=aggregator: peer(peer_J),
                repeats,
                budget_seconds=PAIR_SECONDS,
            )
        row = {
            **timing,
            "read_twice_seconds": read_twice,
            "ours_over_read_twice": timing["ours_seconds"] / read_twice,
            "peer_over_read_twice": timing["peer_seconds"] / read_twice,
            "apart": float("nan") if name in RANDOM else _relative(answer, peer_answer.numpy()),
        }
        measured[name] = _known(row)
    return measured


def _jacobian(tasks: int, parameters: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(tasks).standard_normal((tasks, parameters), dtype=np.float32))


def _timed(program: Callable[[], Any]) -> tuple[Any, float]:
    began = time.perf_counter()
    answer = program()
    return answer, time.perf_counter() - began


def _relative(answer: Any, peer_answer: Any) -> float:
    """NaN where the peer answers 0, as its ConFIG does to many parameters in float32."""
    answer, peer_answer = np.asarray(answer, np.float64), np.asarray(peer_answer, np.float64)
    size = np.linalg.norm(peer_answer)
    return float(np.linalg.norm(answer - peer_answer) / size) if size else math.nan


def _our_memory(tasks: int, parameters: int) -> dict[str, int | None]:
    J = _jacobian(tasks, parameters)
    compiled = {name: _Ours(name, tasks, parameters) for name in _aggregators(_peers()[1], tasks)}
    return {name: peak_growth(partial(compiled.pop(name), J)) for name in list(compiled)}


def _peer_memory(tasks: int, parameters: int) -> dict[str, int | None]:
    torch, peers = _peers()
    J = torch.from_numpy(np.array(_jacobian(tasks, parameters)))
    measured = {}
    for name, make in _aggregators(peers, tasks).items():
        make()(J[:, :1000].clone())
        measured[name] = peak_growth(partial(make(), J))
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

    scalarizers = importlib.import_module("torchjd.scalarization")

    def peer_scalarised(scalariser: Any) -> Callable[..., Any]:
        learned = list(scalariser.parameters())

        def derivatives(before: Any, _: Any) -> Any:
            before = before.detach().requires_grad_()
            return torch.autograd.grad(scalariser(before), [before, *learned])

        return derivatives

    programs = {
        "gls": (lambda before, _: jax.grad(gls)(before), peer_scalarised(scalarizers.GeometricMean())),
        "imtl_l": (
            lambda before, _: jax.grad(imtl_l, argnums=(0, 1))(before, s),
            peer_scalarised(scalarizers.IMTLL(tasks)),
        ),
        "stch": (lambda before, _: jax.grad(stch)(before, 1.0), peer_scalarised(scalarizers.STCH(1.0))),
        "rlw": (ours_rlw, peer_rlw),
        "dwa": (ours_dwa, peer_dwa),
        "uw": (ours_uw, peer_uw),
        "famo": (ours_famo, peer_famo),
    }
    return {
        name: paired_ratio(_in_turn(jax.jit(ours), pairs), _in_turn(peer, peer_pairs), repeats)
        for name, (ours, peer) in programs.items()
    }
