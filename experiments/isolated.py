"""Measurements in a process of their own: on given cores, and how much memory a program needs."""

import ctypes
import gc
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


def in_a_process(
    cores: list[int], measure: Callable[..., Any], *arguments: Any, keep_memory: bool = True
) -> Any:
    """Calls a function in a fresh process that has these cores only.

    The thread pools of jax and torch are as large as what they find there. jax runs its programs in the
    calling thread: handing a small one to another thread takes longer than running it.

    Args:
        cores: the cores, by number.
        measure: a function of a module; it and what it returns are pickled.
        *arguments: passed on.
        keep_memory: whether what is freed stays the process's (`keep_freed_memory`), jax's and torch's alike.

    Returns:
        What ``measure`` returned.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, initializer=_settle, initargs=(cores, keep_memory)) as pool:
        return pool.submit(measure, *arguments).result()


def peak_growth(program: Callable[[], Any]) -> int | None:
    """By how many bytes the resident memory of this process grows at most while a program runs.

    What was freed before is given back to the system first, arrays in cycles of references too, and the
    kernel forgets the peak until then, so that the growth is all the program's own. What it keeps counts;
    threads' stacks and caches do too. Not for a process that keeps what it frees.

    Args:
        program: called without arguments, once; it should be compiled and warm, and wait for its results.

    Returns:
        Bytes, or None where the system keeps no such account (it is Linux's).

    Example:
        >>> grown = peak_growth(lambda: bytearray(50_000_000))
        >>> grown is None or grown > 40_000_000
        True
    """
    gc.collect()  # what a collection in the middle of the program freed would hide what the program takes
    try:
        ctypes.CDLL(None).malloc_trim(0)
        (_OWN / "clear_refs").write_text("5")
        before = _resident("VmRSS")
    except (AttributeError, OSError, TypeError):
        return None
    program()
    return max(0, _resident("VmHWM") - before)


def keep_freed_memory() -> bool:
    """Lets the calling thread of this process keep the memory that it frees.

    XLA allocates a program's intermediate arrays in one piece at each call, and frees it at its end. glibc
    takes pieces of more than 32 MiB from the system and gives them back at once, and the system zeroes and
    maps all their pages again at the next call: with the 140 MB of a small DiT's train step that is a quarter
    of the step's time. Smaller pieces, as torch's one for each tensor, glibc keeps by itself. A process whose
    programs run in other threads, as jax's do by default, needs this in its environment instead:
    ``MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=2147483647 MALLOC_ARENA_MAX=1``.

    Returns:
        Whether that could be set: glibc is the allocator.
    """
    m_trim_threshold, m_mmap_max = -1, -4  # their numbers in malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return all(mallopt(*setting) for setting in ((m_mmap_max, 0), (m_trim_threshold, 2**31 - 1)))


def _settle(cores: list[int], keep_memory: bool) -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    if keep_memory:
        keep_freed_memory()
    import jax

    jax.config.update("jax_cpu_enable_async_dispatch", False)


def _resident(which: str) -> int:
    for line in (_OWN / "status").read_text().splitlines():
        if line.startswith(which):
            return 1024 * int(line.split()[1])
    raise OSError(f"no {which} in {_OWN / 'status'} on {sys.platform}")
