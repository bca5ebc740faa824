"""Gromov-Wasserstein, feasibility and graphon estimation beside POT and the published code's arithmetic.

Gromov-Wasserstein: our solver and POT's ``gromov_wasserstein``, both exact conditional gradients from the
product coupling with the same limit of iterations, on random symmetric matrices (many iterations, costs
without structure) and on graphons (few, costs that are nearly sorted). Values must agree in float64; what
is timed is our default, float32, beside POT's float64, the only type that its transport solver takes.
Feasibility: all pairs of a selection of two and a downstream graphon in one call, beside a loop over pairs
that calls POT and steps by the same Adam. Graphons: each estimator beside the same arithmetic in numpy,
graph by graph, as published.
"""

import importlib
import itertools
import math
import time
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import paired_ratio
from experiments.isolated import available_cores, in_a_process
from jaxneg.graphs import (
    align_graphs,
    estimate_graphon,
    feasibility_grid,
    graphon_at,
    gw_distance,
    synthesize_graphon,
)

PAIR_SECONDS = 90.0
SAME_GW = 1e-5
"""How far two values of GW^2 in float64 may be from each other, relative to the product coupling's."""
SAME_ZETA = 5e-3
SAME_GRAPHON = 1e-3
ESTIMATORS = ("sas", "lg", "usvt", "mc", "sba", "sgwb")


class Matching(NamedTuple):
    """Sizes of the Gromov-Wasserstein problems."""

    nodes: tuple[int, ...] = (16, 32, 64, 100, 300, 1000)
    iters: int = 40
    large_nodes: int = 1000
    large_iters: int = 10


class Grid(NamedTuple):
    """Sizes of the feasibility problem: pairs of pre-training graphons, each with each target."""

    sources: tuple[int, ...] = (0, 1, 5, 9, 10, 11)
    targets: tuple[int, ...] = (3, 12, 2, 8)
    resolution: int = 32
    steps: int = 100


class Collection(NamedTuple):
    """Sizes of the collection of graphs; ``kind`` is the graphon that they are drawn from."""

    graphs: int = 50
    nodes: int = 100
    kind: int = 3


def run(repeats: int = 11) -> dict[str, Any]:
    """Times every comparison on one core and on all.

    Args:
        repeats: pairs of samples for each; fewer where a pair takes long.

    Returns:
        ``settings``; ``one_core`` and ``all_cores`` with a row for each comparison: ``ratio_median`` is the
        peer's time over ours, ``apart`` how far the results are from each other.

    Raises:
        ImportError: POT is not installed.
        RuntimeError: the two sides' results differ.
    """
    pot()
    cores = available_cores()
    sizes = Matching(), Grid(), Collection()
    return {
        "settings": {type(size).__name__.lower(): size._asdict() for size in sizes},
        "one_core": in_a_process(cores[:1], times, *sizes, repeats),
        "all_cores": in_a_process(cores, times, *sizes, repeats) if len(cores) > 1 else {},
    }


def pot() -> ModuleType:
    """POT, which only this benchmark needs.

    Raises:
        ImportError: it is not installed.
    """
    try:
        return importlib.import_module("ot")
    except ImportError as error:
        raise ImportError(
            f"the benchmark 'graphs' measures against POT ({error}); pip install 'jaxneg[bench]'"
        ) from error


def times(matching: Matching, grid: Grid, collection: Collection, repeats: int) -> dict[str, dict[str, Any]]:
    """Times both sides of every comparison on the cores of this process.

    Args:
        matching: the sizes of Gromov-Wasserstein.
        grid: of feasibility.
        collection: of graphon estimation.
        repeats: pairs of samples.

    Returns:
        A row for each comparison.
    """
    rows = {}
    for nodes, kind in itertools.product(matching.nodes, ("random", "graphon")):
        iters = matching.large_iters if nodes >= matching.large_nodes else matching.iters
        rows[f"gw, {kind}, {nodes} nodes, {iters} iterations"] = gw_compared(kind, nodes, iters, repeats)
    rows["feasibility grid"] = grid_compared(grid, repeats)
    for method in ESTIMATORS:
        rows[f"graphon, {method}"] = estimator_compared(method, collection, repeats)
    return rows


def gw_compared(kind: str, nodes: int, iters: int, repeats: int) -> dict[str, float]:
    """One Gromov-Wasserstein problem from the product coupling.

    Args:
        kind: "random" or "graphon".
        nodes: of both matrices.
        iters: most iterations, on both sides.
        repeats: pairs of samples.

    Returns:
        The timing; ``two_starts_seconds``: ours from both of its default starts; ``apart``: of the values in
        float64, ``apart_float32`` of what is timed, both relative to the product coupling's value.
    """
    ot, pair = pot(), gw_matrices(kind, nodes)
    c1, c2 = (jnp.asarray(c, jnp.float32) for c in pair)

    def peer() -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the limit of iterations was reached
            _, log = ot.gromov.gromov_wasserstein(*pair, loss_fun="square_loss", max_iter=iters, log=True)
        return float(log["gw_dist"])

    def ours(c1: jax.Array, c2: jax.Array, starts: int = 1) -> jax.Array:
        return gw_distance(c1, c2, starts=starts, iters=iters).value

    theirs = peer()
    scale = float(np.mean(pair[0] ** 2) + np.mean(pair[1] ** 2) - 2 * np.mean(pair[0]) * np.mean(pair[1]))
    with jax.enable_x64(True):
        high1, high2 = (jnp.asarray(c, jnp.float64) for c in pair)
        apart = abs(float(ours(high1, high2)) - theirs) / scale
    if not apart <= SAME_GW:
        raise RuntimeError(f"gw, {kind}, {nodes} nodes: the two sides' values are {apart:.1e} apart")
    timing = paired_ratio(lambda: ours(c1, c2), peer, repeats, budget_seconds=PAIR_SECONDS)
    jax.block_until_ready(ours(c1, c2, 2))
    began = time.perf_counter()
    jax.block_until_ready(ours(c1, c2, 2))
    return {
        **timing,
        "two_starts_seconds": time.perf_counter() - began,
        "apart": apart,
        "apart_float32": abs(float(ours(c1, c2)) - theirs) / scale,
    }


def gw_matrices(kind: str, nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Two matrices: random symmetric ones, or two graphons at random places.

    Args:
        kind: "random" or "graphon".
        nodes: their size.

    Returns:
        Matrices in float64.
    """
    rng = np.random.default_rng(nodes)
    if kind == "random":
        c1, c2 = rng.uniform(size=(2, nodes, nodes))
        return (c1 + c1.T) / 2, (c2 + c2.T) / 2
    places = rng.uniform(size=(2, nodes))
    values = [np.asarray(graphon_at(t, u[:, None], u)) for t, u in zip((1, 5), places, strict=True)]
    return values[0].astype(np.float64), values[1].astype(np.float64)


def grid_compared(size: Grid, repeats: int) -> dict[str, float]:
    """All feasibilities in one call beside a loop with POT.

    Args:
        size: of the problem.
        repeats: pairs of samples.

    Returns:
        The timing; ``feasibilities``; ``apart``: the largest difference of two feasibilities.
    """
    graphons = {t: np.asarray(synthesize_graphon(t, size.resolution)) for t in (*size.sources, *size.targets)}
    pairs = [
        (np.stack([graphons[a], graphons[b]]), graphons[t])
        for a, b in itertools.combinations(size.sources, 2)
        for t in size.targets
    ]
    bases, targets = (jnp.asarray(np.stack(parts)) for parts in zip(*pairs, strict=True))

    def peer() -> np.ndarray:
        return np.array([pot_feasibility(*pair, size.steps) for pair in pairs])

    def ours() -> jax.Array:
        return feasibility_grid(bases, targets, steps=size.steps).zeta

    apart = float(np.max(np.abs(np.asarray(ours()) - peer())))
    if not apart <= SAME_ZETA:
        raise RuntimeError(f"feasibility grid: the two sides' values are {apart:.1e} apart")
    return {
        **paired_ratio(ours, peer, repeats, budget_seconds=PAIR_SECONDS),
        "feasibilities": len(pairs),
        "apart": apart,
    }


def pot_feasibility(bases: np.ndarray, target: np.ndarray, steps: int) -> float:
    """The feasibility of one basis, with POT's exact plans and the same Adam.

    Args:
        bases: graphons.
        target: downstream graphon.
        steps: of Adam.

    Returns:
        Minus the least GW of the iterates.
    """
    ot, n = pot(), len(target)
    bases, target = bases.astype(np.float64), target.astype(np.float64)
    a, mean, square, best = np.ones(len(bases)), 0.0, 0.0, math.inf
    for step in range(1, steps + 1):
        alpha = np.exp(a - a.max()) / np.exp(a - a.max()).sum()
        mixed = np.tensordot(alpha, bases, 1)
        sorted_plan = np.zeros((n, n))
        rows, columns = (np.argsort(-c.sum(1), kind="stable") for c in (mixed, target))
        sorted_plan[rows, columns] = 1 / n
        found = []
        for start in (None, sorted_plan):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                plan, log = ot.gromov.gromov_wasserstein(
                    mixed, target, loss_fun="square_loss", G0=start, max_iter=40, log=True
                )
            found.append((float(log["gw_dist"]), plan))
        value, plan = min(found, key=lambda pair: pair[0])
        best = min(best, value)
        of_alpha = np.tensordot(bases, 2 * (mixed / n**2 - plan @ target @ plan.T), 2)
        gradient = alpha * (of_alpha - alpha @ of_alpha) + 1e-5 * a
        mean, square = 0.9 * mean + 0.1 * gradient, 0.99 * square + 0.01 * gradient**2
        a = a - 0.05 * (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.99**step)) + 1e-8)
    return -math.sqrt(max(best, 0))


def estimator_compared(method: str, size: Collection, repeats: int) -> dict[str, float]:
    """Alignment and one estimator on a collection, beside the published arithmetic.

    Args:
        method: one of `ESTIMATORS`.
        size: of the collection.
        repeats: pairs of samples.

    Returns:
        The timing; ``apart``: the largest difference of two probabilities.
    """
    rng = np.random.default_rng(0)
    u = rng.uniform(size=(size.graphs, size.nodes))
    p = np.asarray(graphon_at(size.kind, u[:, :, None], u[:, None]))
    upper = np.triu(rng.uniform(size=p.shape) < p, 1).astype(np.float32)
    graphs = upper + upper.transpose(0, 2, 1)
    # Ties of degrees are broken by no one: different weights leave none.
    graphs *= 1 + 0.01 * rng.permuted(np.linspace(0, 1, size.nodes, dtype=np.float32))[None, :, None]
    graphs = (graphs + graphs.transpose(0, 2, 1)) / 2
    on_device = jnp.asarray(graphs)
    settings: dict[str, Any] = {"sas": {"tv_weight": "h"}, "sgwb": {"outer": 5}}.get(method, {})

    @jax.jit
    def ours() -> jax.Array:
        return estimate_graphon(align_graphs(on_device)[0], None, method, **settings)

    def peer() -> np.ndarray:
        return PUBLISHED[method](*published_alignment(graphs))

    apart = float(np.max(np.abs(np.asarray(ours()) - peer())))
    if not apart <= SAME_GRAPHON:
        raise RuntimeError(f"graphon, {method}: the two sides' probabilities are {apart:.1e} apart")
    return {**paired_ratio(ours, peer, repeats, budget_seconds=PAIR_SECONDS), "apart": apart}


def published_alignment(graphs: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Graphs sorted by degree one by one, and their degree distributions."""
    aligned, degrees = [], []
    for graph in graphs:
        degree = (graph.sum(0) + graph.sum(1)) / 2
        order = np.argsort(-degree, kind="stable")
        aligned.append(graph[order][:, order])
        degrees.append(degree[order] / degree.sum())
    return aligned, degrees


def published_sas(aligned: list[np.ndarray], _: list[np.ndarray]) -> np.ndarray:
    """Block means, then scikit-image's total-variation denoising."""
    mean = np.mean(aligned, axis=0)
    h = int(math.log2(len(mean)) + 1)
    k = len(mean) // h
    image = mean[: k * h, : k * h].reshape(k, h, k, h).mean((1, 3))
    dual, shift, out, first, before = np.zeros((2, k, k)), np.zeros((k, k)), image, 0.0, 0.0
    for number in range(200):
        if number:
            shift = -dual.sum(0)
            shift[1:] += dual[0, :-1]
            shift[:, 1:] += dual[1, :, :-1]
            out = image + shift
        rise = np.zeros_like(dual)
        rise[0, :-1], rise[1, :, :-1] = np.diff(out, axis=0), np.diff(out, axis=1)
        norm = np.sqrt((rise**2).sum(0))
        energy = ((shift**2).sum() + h * norm.sum()) / image.size
        dual = (dual - rise / 4) / (1 + norm / (4 * h))
        if number == 0:
            first = energy
        elif abs(before - energy) < 2e-4 * first:
            break
        before = energy
    return out


def published_lg(aligned: list[np.ndarray], _: list[np.ndarray]) -> np.ndarray:
    """Means of blocks between the largest drops of the degrees, filled in block by block."""
    mean = np.mean(aligned, axis=0)
    nodes = len(mean)
    k = nodes // int(math.log2(nodes) + 1)
    cuts = np.sort(np.argsort(np.diff(mean.sum(1)), kind="stable")[: k - 1] + 1)
    return _filled(mean, np.split(np.arange(nodes), cuts))


def published_usvt(aligned: list[np.ndarray], _: list[np.ndarray]) -> np.ndarray:
    """Large singular values."""
    mean = np.mean(aligned, axis=0)
    u, s, v = np.linalg.svd(mean)
    s[s < 2.02 * len(mean) ** 0.5] = 0
    return np.clip(u @ np.diag(s) @ v, 0, 1)


def published_mc(aligned: list[np.ndarray], _: list[np.ndarray]) -> np.ndarray:
    """Truncated singular values."""
    mean = np.mean(aligned, axis=0)
    rank = int(len(mean) / int(np.log(len(mean))))
    u, s, v = np.linalg.svd(2 * mean - 1)
    return np.clip((u[:, :rank] @ np.diag(s[:rank]) @ v[:rank] + 1) / 2, 0, 1)


def published_sba(aligned: list[np.ndarray], _: list[np.ndarray]) -> np.ndarray:
    """Greedy blocks, a distance at a time; nodes by index."""
    stack = np.asarray(aligned, np.float64)
    count, nodes = len(stack), stack.shape[1]
    half = count // 2
    s1, s2 = stack[:half].sum(0), stack[half:].sum(0)
    weight = 1 / ((half + 1) * (nodes - half))
    blocks = [[0]]
    for i in range(1, nodes):
        distances = []
        for block in blocks:
            b = block[0]
            rest = np.delete(np.arange(nodes), sorted({i, b}))
            total = 0.0
            for x, y in ((s1, s2), (s1.T, s2.T)):
                total += abs(weight * np.sum((x[i, rest] - x[b, rest]) * (y[i, rest] - y[b, rest])))
            distances.append(math.sqrt(0.5 * total / len(rest)))
        nearest = int(np.argmin(distances))
        if distances[nearest] < 0.1:
            blocks[nearest].append(i)
        else:
            blocks.append([i])
    return _filled(stack.mean(0), [np.array(block) for block in blocks])


def published_sgwb(aligned: list[np.ndarray], degrees: list[np.ndarray]) -> np.ndarray:
    """The smoothed Gromov-Wasserstein barycentre after five updates, graph by graph in float64."""
    graphs = [graph.astype(np.float64) for graph in aligned]
    nodes = len(graphs[0])
    k = nodes // int(math.log2(nodes) + 1)
    x = np.linspace(0, 1, k)
    target = np.sum([np.interp(x, np.linspace(0, 1, len(p)), p) + 1e-3 for p in degrees], axis=0)
    target = target / target.sum()
    d = 2 * np.eye(k)[1:-1] - np.eye(k)[2:] - np.eye(k)[:-2]
    vectors, values, _ = np.linalg.svd(3e-4 * d.T @ d)
    quotient = values**2 + target**2
    smooth, scale = vectors @ np.diag(values / quotient) @ vectors.T, np.diag(target / quotient)

    def transport(cost: np.ndarray, p: np.ndarray, prior: np.ndarray | float) -> np.ndarray:
        kernel = np.exp(-cost / cost.max() / 5e-3) * prior
        a = np.ones(k) / k
        for _ in range(50):
            b = p / (kernel.T @ a)
            new = target / (kernel @ b)
            change, a = np.abs(new - a).sum() / np.abs(a).sum(), new
            if change <= 1e-10:
                break
        return a[:, None] * kernel * b

    plans = [transport((target[:, None] - p) ** 2, p, 1.0) for p in degrees]
    priors = [plan + 1e-16 for plan in plans]
    barycenter = np.zeros((k, k))
    for _ in range(5):
        mean = np.mean([plan @ graph @ plan.T for plan, graph in zip(plans, graphs, strict=True)], axis=0)
        barycenter = smooth @ mean @ smooth.T + scale @ mean @ scale.T
        for g, (graph, p) in enumerate(zip(graphs, degrees, strict=True)):
            cost = ((barycenter**2) @ target)[:, None] + (graph**2) @ p - 2 * barycenter @ plans[g] @ graph.T
            plans[g] = transport(cost, p, priors[g])
    return np.clip(barycenter, 0, 1)


PUBLISHED: dict[str, Callable[[list[np.ndarray], list[np.ndarray]], np.ndarray]] = {
    "sas": published_sas,
    "lg": published_lg,
    "usvt": published_usvt,
    "mc": published_mc,
    "sba": published_sba,
    "sgwb": published_sgwb,
}


def _filled(mean: np.ndarray, blocks: list[np.ndarray]) -> np.ndarray:
    graphon = np.zeros(mean.shape)
    for rows, columns in itertools.product(blocks, repeat=2):
        graphon[np.ix_(rows, columns)] = mean[np.ix_(rows, columns)].mean()
    return graphon
