"""The other side of a benchmark: torch on our cores, and the refusal to time what computes something else."""

import importlib
from types import ModuleType
from typing import Any

import jax
import numpy as np

from experiments.isolated import available_cores


def torch_for(benchmark: str) -> ModuleType:
    """Torch on the cores of this process; benchmarks alone need it.

    Args:
        benchmark: its name, for the message.

    Returns:
        The module.

    Raises:
        ImportError: it is not installed.
    """
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        raise ImportError(
            f"the benchmark {benchmark!r} measures against PyTorch ({error}); pip install 'jaxneg[bench]'"
        ) from error
    torch.set_num_threads(len(available_cores()))
    return torch


def distance(ours: Any, theirs: Any) -> float:
    """How far two trees of arrays are from each other, relative to the second's length.

    Example:
        >>> import numpy as np
        >>> distance({"a": np.array([3.0, 4.5])}, {"a": np.array([3.0, 4.0])})
        0.1
    """
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    squares = [
        (np.sum((np.asarray(a, np.float64) - np.asarray(b, np.float64)) ** 2), np.sum(np.square(b)))
        for a, b in pairs
    ]
    apart, length = np.sum(np.asarray(squares, np.float64), axis=0)
    return float(np.sqrt(apart / length))


def require_same(name: str, ours: np.ndarray, peer: np.ndarray) -> float:
    """Refuses to go on where two results differ.

    Args:
        name: for the message.
        ours: our result.
        peer: the peer's.

    Returns:
        The largest difference over the largest number.

    Raises:
        RuntimeError: it is above 1e-4, or not finite.

    Example:
        >>> require_same("sum", np.ones(3), np.ones(3))
        0.0
    """
    apart = float(np.max(np.abs(ours - peer)) / np.max(np.abs(peer)))
    if not apart <= 1e-4:
        raise RuntimeError(
            f"{name}: the two sides are {apart:.1e} apart: they are not the same, and not timed"
        )
    return apart


def require_same_step(
    name: str, losses: tuple[Any, Any], directions: tuple[Any, Any], tolerance: float | None
) -> dict[str, float]:
    """Refuses to go on where two steps are not the same.

    Args:
        name: for the message.
        losses: ours and the peer's.
        directions: likewise, trees of arrays.
        tolerance: how far the directions may be from each other; None where they are random.

    Returns:
        ``losses_apart``, and ``direction_apart`` unless the directions are random.

    Raises:
        RuntimeError: they are too far from each other, or not finite.

    Example:
        >>> require_same_step("equal", (1.0, 1.0), (2.0, 2.0), 1e-3)
        {'losses_apart': 0.0, 'direction_apart': 0.0}
    """
    apart = {"losses_apart": distance(*losses)}
    if not apart["losses_apart"] <= 1e-4:
        raise RuntimeError(f"{name}: the two sides' losses are {apart['losses_apart']:.1e} apart")
    if tolerance is not None:
        apart["direction_apart"] = distance(*directions)
        if not apart["direction_apart"] <= tolerance:
            raise RuntimeError(
                f"{name}: the two sides' directions are {apart['direction_apart']:.1e} apart, more than"
                f" {tolerance:.0e}: they are different steps, and not timed"
            )
    return apart
