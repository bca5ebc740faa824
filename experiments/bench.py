"""Benchmarks: us beside the peer that a user would pick instead, and beside the machine's limits.

A benchmark is a module of `experiments.benchmarks` with ``run(repeats=...) -> dict``, a nested dictionary
of numbers and strings. Two programs are compared by `paired_ratio`: they run alternately, so that whatever
else the machine does falls on both, and the ratio is taken within each pair. `machine_peaks` and
`roofline_seconds` say how far a jitted function is from what the machine can do at all.
"""

import importlib
import inspect
import json
import math
import pkgutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import experiments.benchmarks
from experiments.claims import median_interval
from experiments.machine import machine_description, package_versions
from experiments.run_dir import Table, write_json

RESULTS = Path(__file__).parent / "benchmarks" / "results"


def paired_ratio(
    ours: Callable[[], Any],
    peer: Callable[[], Any],
    repeats: int = 21,
    *,
    sample_seconds: float = 0.01,
    budget_seconds: float = math.inf,
) -> dict[str, float]:
    """Times two programs alternately; the ratio is the peer's time over ours, so above 1 we are faster.

    Each is called until it is warm, and then so many times in a sample that a sample lasts
    ``sample_seconds``. Which one goes first changes from pair to pair.

    Args:
        ours: called without arguments; what it returns is waited for (jax arrays in any pytree).
        peer: likewise.
        repeats: pairs of samples at most.
        sample_seconds: how long a sample should last at least, in seconds.
        budget_seconds: fewer pairs are taken where so many seconds do not hold them, but 3 always.

    Returns:
        ``ours_seconds`` and ``peer_seconds`` (medians, for one call), ``ratio_median``,
        ``ratio_low`` and ``ratio_high``, the order-statistic interval of the median ratio, and ``pairs``, how
        many samples were taken.

    Raises:
        ValueError: repeats below 1.

    Example:
        >>> timing = paired_ratio(lambda: sum(range(10)), lambda: sum(range(10)), 3, sample_seconds=1e-4)
        >>> sorted(timing)
        ['ours_seconds', 'pairs', 'peer_seconds', 'ratio_high', 'ratio_low', 'ratio_median']
    """
    if repeats < 1:
        raise ValueError(f"repeats: expected at least 1, got {repeats}")
    (ours_calls, of_ours), (peer_calls, of_peer) = (_calls(each, sample_seconds) for each in (ours, peer))
    pairs = int(min(repeats, max(3, budget_seconds / max(of_ours + of_peer, 1e-9))))
    ours_times, peer_times = np.empty(pairs), np.empty(pairs)
    for pair in range(pairs):
        if pair % 2 == 0:
            ours_times[pair] = _sample(ours, ours_calls)
            peer_times[pair] = _sample(peer, peer_calls)
        else:
            peer_times[pair] = _sample(peer, peer_calls)
            ours_times[pair] = _sample(ours, ours_calls)
    median, low, high, _ = median_interval(peer_times / ours_times)
    return {
        "ours_seconds": float(np.median(ours_times)),
        "peer_seconds": float(np.median(peer_times)),
        "ratio_median": median,
        "ratio_low": low,
        "ratio_high": high,
        "pairs": pairs,
    }


def median_seconds(program: Callable[[], Any], repeats: int = 21, *, sample_seconds: float = 0.01) -> float:
    """The median time of one call, in seconds.

    Args:
        program: called without arguments; what it returns is waited for.
        repeats: samples.
        sample_seconds: how long a sample should last at least, in seconds.

    Example:
        >>> median_seconds(lambda: sum(range(10)), 3, sample_seconds=1e-4) < 1
        True
    """
    calls, _ = _calls(program, sample_seconds)
    return float(np.median([_sample(program, calls) for _ in range(repeats)]))


def machine_peaks(*, size: int = 1536, megabytes: int = 256, repeats: int = 7) -> dict[str, float]:
    """What the default device does at best, measured: float32 products and copies.

    Args:
        size: side of the square matrices that are multiplied.
        megabytes: size of the array that is copied; must exceed the caches.
        repeats: samples; the fastest counts.

    Returns:
        ``matmul_flops_per_second`` and ``copy_bytes_per_second`` (bytes read plus bytes written).
    """
    import jax
    import jax.numpy as jnp

    matrix = jnp.ones((size, size), jnp.float32)
    array = jnp.ones((megabytes * 2**18,), jnp.float32)
    product = jax.jit(lambda a: a @ a)
    copy = jax.jit(lambda a: a + 1)
    product_seconds = _fastest(lambda: product(matrix), repeats)
    copy_seconds = _fastest(lambda: copy(array), repeats)
    return {
        "matmul_flops_per_second": 2 * size**3 / product_seconds,
        "copy_bytes_per_second": 2 * array.nbytes / copy_seconds,
    }


def roofline_seconds(flops: float, bytes_moved: float, peaks: dict[str, float]) -> float:
    """The least time that the machine needs: ``max(flops / peak, bytes / bandwidth)``.

    Args:
        flops: floating-point operations.
        bytes_moved: bytes read plus bytes written.
        peaks: what `machine_peaks` returned.

    Returns:
        Seconds.

    Example:
        >>> roofline_seconds(10, 100, {"matmul_flops_per_second": 10, "copy_bytes_per_second": 50})
        2.0
    """
    return max(flops / peaks["matmul_flops_per_second"], bytes_moved / peaks["copy_bytes_per_second"])


def benchmark_names() -> list[str]:
    """The modules of `experiments.benchmarks`."""
    return sorted(module.name for module in pkgutil.iter_modules(experiments.benchmarks.__path__))


def run_benchmark(name: str, *, repeats: int | None = None, results: Path = RESULTS) -> dict[str, Any]:
    """Runs a benchmark and writes ``<results>/<name>.json`` with the machine's description.

    Args:
        name: a module of `experiments.benchmarks`.
        repeats: pairs of samples; the benchmark's own default where None.
        results: the folder of the result files.

    Returns:
        What the benchmark measured.
    """
    module = importlib.import_module(f"experiments.benchmarks.{name}")
    if "repeats" not in inspect.signature(module.run).parameters:
        raise TypeError(
            f"benchmark {name!r}: expected run(repeats=...), got run{inspect.signature(module.run)}"
        )
    measured = module.run() if repeats is None else module.run(repeats=repeats)
    measured = json.loads(json.dumps(measured, default=_plain_number))
    results.mkdir(parents=True, exist_ok=True)
    write_json(
        results / f"{name}.json",
        {
            "benchmark": name,
            "machine": machine_description(),
            "versions": package_versions(),
            "results": measured,
        },
    )
    return measured


def result_tables(title: str, measured: dict[str, Any]) -> list[Table]:
    """A nested dictionary of numbers and strings as tables.

    Flat dictionaries side by side become the rows of one table; loose values a table of their own.

    Args:
        title: what the dictionary is.
        measured: numbers and strings in nested dictionaries and lists.

    Returns:
        At least one table for a dictionary that is not empty.

    Example:
        >>> result_tables("speed", {"mgda": {"ratio": 5.0}, "nash": {"ratio": 20.0}})[0].rows
        [['mgda', 5.0], ['nash', 20.0]]
    """
    loose: dict[str, str | float | int] = {}
    flat: dict[str, dict[str, str | float | int]] = {}
    deep: dict[str, dict[str, Any]] = {}
    for key, value in measured.items():
        if isinstance(value, list) and any(isinstance(item, dict) for item in value):
            value = {str(index): item for index, item in enumerate(value)}
        if not isinstance(value, dict):
            loose[key] = _cell(value)
        elif any(isinstance(item, dict | list) for item in value.values()):
            deep[key] = value
        else:
            flat[key] = {name: _cell(item) for name, item in value.items()}
    tables = []
    if loose:
        tables.append(Table(title, ["", "value"], [[key, value] for key, value in loose.items()]))
    if flat:
        columns = list(dict.fromkeys(column for row in flat.values() for column in row))
        rows = [[key, *(row.get(column, "") for column in columns)] for key, row in flat.items()]
        tables.append(Table(title, ["", *columns], rows))
    for key, value in deep.items():
        tables += result_tables(f"{title}: {key}", value)
    return tables


def _calls(program: Callable[[], Any], sample_seconds: float) -> tuple[int, float]:
    """Warms up; then how many calls fill a sample, and the seconds that it lasts."""
    _sample(program, 1)
    fastest = _sample(program, 1)
    if fastest < sample_seconds:
        fastest = min(fastest, *(_sample(program, 1) for _ in range(2)))
    calls = max(1, math.ceil(sample_seconds / max(fastest, 1e-9)))
    return calls, calls * fastest


def _sample(program: Callable[[], Any], calls: int) -> float:
    """Seconds for one call, over ``calls`` calls of which each is waited for."""
    import jax

    began = time.perf_counter()
    for _ in range(calls):
        jax.block_until_ready(program())
    return (time.perf_counter() - began) / calls


def _fastest(program: Callable[[], Any], repeats: int) -> float:
    _sample(program, 1)
    return min(_sample(program, 1) for _ in range(repeats))


def _cell(value: Any) -> str | float | int:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value) if isinstance(value, bool | None) else value


def _plain_number(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(
        f"a benchmark returns numbers and strings in dictionaries and lists, got {type(value).__name__}"
    )
