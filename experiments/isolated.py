"""Measurements in a process of their own: on given cores, and how much memory a program needs."""

import ctypes
import multiprocessing
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

_OWN = Path("/proc/self")


def available_cores() -> list[int]:
    """The cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]


def in_a_process(cores: list[int], measure: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function in a fresh process that has these cores only.

    The thread pools of jax and torch are as large as what they find there. jax runs its programs in the
    calling thread: handing a small one to another thread takes longer than running it.

    Args:
        cores: the cores, by number.
        measure: a function of a module; it and what it returns are pickled.
        *arguments: passed on.

    Returns:
        What ``measure`` returned.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, initializer=_settle, initargs=(cores,)) as pool:
        return pool.submit(measure, *arguments).result()


def peak_growth(program: Callable[[], Any]) -> int | None:
    """By how many bytes the resident memory of this process grows at most while a program runs.

    What was freed before is given back to the system first, and the kernel forgets the peak until then, so
    that the growth is all the program's own. What it keeps counts; threads' stacks and caches do too.

    Args:
        program: called without arguments, once; it should be compiled and warm, and wait for its results.

    Returns:
        Bytes, or None where the system keeps no such account (it is Linux's).

    Example:
        >>> grown = peak_growth(lambda: bytearray(50_000_000))
        >>> grown is None or grown > 40_000_000
        True
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
        (_OWN / "clear_refs").write_text("5")
        before = _resident("VmRSS")
    except (AttributeError, OSError, TypeError):
        return None
    program()
    return max(0, _resident("VmHWM") - before)


def _settle(cores: list[int]) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    import jax

    jax.config.update("jax_cpu_enable_async_dispatch", False)


def _resident(which: str) -> int:
    for line in (_OWN / "status").read_text().splitlines():
        if line.startswith(which):
            return 1024 * int(line.split()[1])
    raise OSError(f"no {which} in {_OWN / 'status'} on {sys.platform}")
