"""Face losses beside pytorch-metric-learning, UNPG beside its official form, a share of classes beside all.

The losses, forward and backward, are those of pytorch-metric-learning 2.8: CosFace and ArcFace with class
centres, and the contrastive and the triplet loss of a batch, each reduced as that library reduces it.

UNPG's peer is written again from the authors' ``recognition/models``, operation for operation: the pairs of
the strict upper triangle, sorted and filtered, are stacked once for each example and put beside the logits,
``[batch, classes + pairs]``, for a cross-entropy.

The sampled head is ours beside ours: all classes of four devices against a tenth of them. What sampling
costs, drawing and gathering, is in its time; the work of the logits alone is given in floating-point
operations.

Before anything is timed both sides compute the same numbers, or the benchmark stops. Memory is the peak of
the resident set over one call, less the resident set before it, each in a process of its own.
"""

import importlib
import math
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.bench import machine_peaks, paired_ratio, roofline_seconds
from experiments.isolated import available_cores, in_a_process, peak_growth
from experiments.peers import require_same_step, torch_for
from jaxneg.face import (
    contrastive_pair_loss,
    nonzero_mean,
    sharded_margin_softmax,
    triplet_margin_mean,
    unpg_loss,
)
from jaxneg.train.compile import matmul_flops

SCALE, COSFACE, ARCFACE, WHISKERS = 64.0, 0.35, 0.5, 1.5
DEVICES, RATE = 4, 0.1
PAIR_SECONDS = 40.0
"""How long the pairs of one comparison may take in all, at three pairs at least."""

LOSSES = ("cosface", "arcface", "contrastive", "triplet")


class Size(NamedTuple):
    """Examples, length of a feature, classes."""

    batch: int
    dim: int
    classes: int


HEADS, PAIRS, UNPG, SHARDED = (
    Size(512, 128, 20_000),
    Size(128, 128, 32),
    Size(256, 128, 1000),
    Size(128, 64, 200_000),
)


def run(repeats: int = 21) -> dict[str, Any]:
    """Times the losses and UNPG on one core, and the sharded head on four virtual devices.

    Args:
        repeats: pairs of samples for each comparison, fewer where a call takes long.

    Returns:
        ``settings``; ``losses`` and ``unpg``: ``ratio_median`` is the peer's time over ours, ``losses_apart``
        and ``direction_apart`` are relative distances of losses and gradients, ``roofline_seconds`` the least
        time at the measured peaks; ``unpg_memory_given_back``: likewise, in a process that does not keep
        what it frees, as processes are by default; ``unpg_memory``: ``ours_bytes``, ``peer_bytes`` and
        ``peer_over_ours``; ``sampling``: ``ratio_median`` is the time with all classes over that with a
        tenth, ``matmul_flops_ratio`` the same of the products, drawing and gathering left out.

    Raises:
        ImportError: torch or pytorch-metric-learning is not installed.
        RuntimeError: two sides compute different numbers.
    """
    torch, metric_learning = torch_for("face"), metric_learning_for()
    cores = available_cores()
    return {
        "settings": {
            "torch": torch.__version__,
            "pytorch-metric-learning": metric_learning.__version__,
            "heads": f"batch {HEADS.batch}, {HEADS.dim} features, {HEADS.classes} classes",
            "pair losses": f"batch {PAIRS.batch}, {PAIRS.dim} features, {PAIRS.classes} classes",
            "unpg": f"batch {UNPG.batch}, {UNPG.dim} features, {UNPG.classes} classes, whiskers {WHISKERS:g}",
            "sampling": f"{DEVICES} virtual devices, batch {SHARDED.batch}, {SHARDED.dim} features,"
            f" {SHARDED.classes} classes, a share of {RATE:g}",
            "dtype": "float32",
            "cores": f"1; {len(cores)} for sampling",
            "pairs of samples": f"{repeats}, as many as {PAIR_SECONDS:g} s hold, at least 3",
        },
        "losses": in_a_process(cores[:1], losses_compared, HEADS, PAIRS, repeats),
        "unpg": in_a_process(cores[:1], unpg_compared, UNPG, repeats),
        "unpg_memory_given_back": in_a_process(cores[:1], unpg_compared, UNPG, repeats, keep_memory=False),
        "unpg_memory": unpg_memory(cores[:1], UNPG),
        "sampling": in_a_process(cores, sampling_compared, SHARDED, repeats),
    }


def metric_learning_for() -> ModuleType:
    """pytorch-metric-learning; this benchmark alone needs it.

    Raises:
        ImportError: it is not installed.
    """
    try:
        return importlib.import_module("pytorch_metric_learning")
    except ImportError as error:
        raise ImportError(
            f"the benchmark 'face' measures against pytorch-metric-learning ({error});"
            " pip install 'jaxneg[bench]'"
        ) from error


def example(size: Size, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, class centres and labels.

    Example:
        >>> [array.shape for array in example(Size(4, 3, 2))]
        [(4, 3), (2, 3), (4,)]
    """
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, size.classes, size.batch)
    centres = rng.standard_normal((size.classes, size.dim), dtype=np.float32)
    # Features somewhat near their centres: what a head sees once it has learned something.
    features = centres[labels] + 1.5 * rng.standard_normal((size.batch, size.dim), dtype=np.float32)
    return features, centres, labels.astype(np.int32)


def our_loss(name: str, size: Size) -> Callable[[], Any]:
    """Our loss and its gradients, compiled.

    Args:
        name: of `LOSSES`, or "unpg".
        size: of the problem.

    Returns:
        A program that gives the loss, and the gradients of features and centres.
    """
    x, w, y = (jnp.asarray(array) for array in example(size))
    heads = {
        "cosface": {"head": "cosface", "m": COSFACE, "r": None},
        "arcface": {"head": "arcface", "m": ARCFACE, "r": None, "monotone": True},
        "unpg": {"head": "cosface", "m": COSFACE, "r": WHISKERS},
    }

    def of_head(x: jax.Array, w: jax.Array, y: jax.Array) -> jax.Array:
        return unpg_loss(x, w, y, s=SCALE, **heads[name])[0].mean()

    def of_pairs(x: jax.Array, w: jax.Array, y: jax.Array) -> jax.Array:
        del w
        if name == "triplet":
            return triplet_margin_mean(x, y)
        losses, pairs = contrastive_pair_loss(x, y)
        return nonzero_mean(losses, pairs["positive"]) + nonzero_mean(losses, pairs["negative"])

    loss = of_head if name in heads else of_pairs
    argnums = (0, 1) if name in heads else (0,)
    compiled = jax.jit(jax.value_and_grad(loss, argnums)).lower(x, w, y).compile()
    return lambda: compiled(x, w, y)


def peer_loss(name: str, size: Size) -> Callable[[], Any]:
    """The peer's loss and autograd's backward pass.

    Args:
        name: of `LOSSES`, or "unpg".
        size: of the problem.

    Returns:
        A program that gives the loss, and the gradients of features and centres.
    """
    torch = torch_for("face")
    x, w, y = example(size)
    features, labels = torch.from_numpy(x).requires_grad_(), torch.from_numpy(y).long()
    transposed = name in ("cosface", "arcface")
    if name == "unpg":
        centres = torch.from_numpy(w).requires_grad_()
        loss_function = lambda x, y: peer_unpg(torch, x, centres, y)  # noqa: E731
        leaves = [features, centres]
    else:
        losses: Any = importlib.import_module("pytorch_metric_learning.losses")
        if transposed:
            kind, margin = (
                (losses.CosFaceLoss, COSFACE)
                if name == "cosface"
                else (losses.ArcFaceLoss, math.degrees(ARCFACE))
            )
            loss_function = kind(size.classes, size.dim, margin=margin, scale=SCALE)
            loss_function.W.data = torch.from_numpy(np.ascontiguousarray(w.T))
            leaves = [features, loss_function.W]
        else:
            loss_function = (
                losses.TripletMarginLoss(margin=0.5)
                if name == "triplet"
                else losses.ContrastiveLoss(pos_margin=0, neg_margin=1)
            )
            leaves = [features]

    def program() -> Any:
        loss = loss_function(features, labels)
        loss.backward()
        gradients = [leaf.grad for leaf in leaves]
        for leaf in leaves:
            leaf.grad = None  # they are the caller's alone, as ours are
        if transposed:
            gradients[1] = gradients[1].T
        return loss.detach(), tuple(gradients)

    return program


def peer_unpg(torch: ModuleType, x: Any, w: Any, y: Any) -> Any:
    """The authors' arithmetic: CosFace logits, filtered pairs, pairs beside every row, cross-entropy."""
    functional = torch.nn.functional
    normed = functional.normalize(x)
    cosine = normed @ functional.normalize(w).T
    margin = torch.zeros_like(cosine)
    margin.scatter_(1, y[:, None], COSFACE)
    similarity = normed @ normed.T
    other = (y[:, None] != y[None]).triu(1)
    pairs = similarity[other]
    ordered, _ = torch.sort(pairs)
    q1, q3 = ordered[int(0.25 * len(pairs))], ordered[int(0.75 * len(pairs))]
    box = q3 - q1
    lower, upper = q1 - WHISKERS * box, q3 + WHISKERS * box
    kept = pairs[(lower <= pairs) & (pairs <= upper)]
    tiled = torch.stack([kept for _ in range(len(x))], dim=0)
    logits = SCALE * torch.cat([cosine - margin, tiled], dim=1)
    return functional.cross_entropy(logits, y)


def losses_compared(heads: Size, pairs: Size, repeats: int) -> dict[str, dict[str, float]]:
    """Every loss beside pytorch-metric-learning."""
    peaks = machine_peaks()
    return {
        name: _compared(name, heads if name in ("cosface", "arcface") else pairs, repeats, peaks)
        for name in LOSSES
    }


def unpg_compared(size: Size, repeats: int) -> dict[str, float]:
    """UNPG with the scalar beside UNPG with all pairs in every row."""
    return _compared("unpg", size, repeats, machine_peaks())


def unpg_memory(cores: list[int], size: Size) -> dict[str, float | None]:
    """By how much the resident set grows in one call, ours and the peer's."""
    ours, peer = (
        in_a_process(cores, _growth, program, size, keep_memory=False) for program in (our_loss, peer_loss)
    )
    ratio = None if ours is None or peer is None else peer / max(ours, 1)
    return {"ours_bytes": ours, "peer_bytes": peer, "peer_over_ours": ratio}


def sampling_compared(size: Size, repeats: int) -> dict[str, float]:
    """All classes on four devices beside a tenth of them, in a process with such devices."""
    jax.config.update("jax_platforms", "cpu")  # virtual devices are the CPU's
    jax.config.update("jax_num_cpu_devices", DEVICES)
    mesh = Mesh(np.array(jax.devices("cpu")), ("classes",), axis_types=(AxisType.Auto,))
    x, w, y = (jnp.asarray(array) for array in example(size))
    reference = jax.jit(jax.value_and_grad(lambda x: unpg_loss(x, w, y, m=COSFACE, r=None)[0].mean()))(x)
    placed = jax.device_put(w, NamedSharding(mesh, P("classes")))
    programs, flops = [], []
    for rate in (1.0, RATE):

        def loss(x: jax.Array, w: jax.Array, y: jax.Array, key: jax.Array, rate: float = rate) -> jax.Array:
            losses = sharded_margin_softmax(
                x, w, y, mesh=mesh, sample_rate=rate, key=key if rate < 1 else None, m=COSFACE
            )
            return losses.mean()

        arguments = x, placed, y, jax.random.key(0)
        step = jax.value_and_grad(loss, (0, 1))
        flops.append(matmul_flops(jax.make_jaxpr(step)(*arguments)))
        compiled = jax.jit(step).lower(*arguments).compile()
        programs.append(lambda compiled=compiled, arguments=arguments: compiled(*arguments))
    full, sampled = programs
    loss, gradients = full()
    apart = require_same_step(
        "sampling", (np.asarray(loss), np.asarray(reference[0])), (gradients[:1], [reference[1]]), 1e-4
    )
    # The peer of `paired_ratio` is the head with all classes.
    return {
        **paired_ratio(sampled, full, repeats, budget_seconds=PAIR_SECONDS),
        **apart,
        "matmul_flops_ratio": flops[0] / flops[1],
    }


def _compared(name: str, size: Size, repeats: int, peaks: dict[str, float]) -> dict[str, float]:
    ours, peer = our_loss(name, size), peer_loss(name, size)
    (loss, gradients), (peer_value, peer_gradients) = ours(), peer()
    apart = require_same_step(
        name,
        (np.asarray(loss), peer_value.numpy()),
        ([np.asarray(g) for g in gradients], [g.numpy() for g in peer_gradients]),
        1e-3,
    )
    with_classes = name in ("cosface", "arcface", "unpg")
    products = size.batch * size.dim * (size.classes if with_classes else size.batch)
    return {
        **paired_ratio(ours, peer, repeats, budget_seconds=PAIR_SECONDS),
        **apart,
        "roofline_seconds": roofline_seconds(3 * 2 * products, 0, peaks),
    }


def _growth(make: Callable[..., Callable[[], Any]], size: Size) -> int | None:
    """Of a program that has run before, so that what is made once is there; its results count."""
    program = make("unpg", size)
    jax.block_until_ready(program())
    return peak_growth(lambda: jax.block_until_ready(program()))
