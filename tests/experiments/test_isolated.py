"""Measurements in a process of their own: the cores that it has, and the memory that a program needs."""

import gc
import os
import resource
import sys

import numpy as np
import pytest

from experiments import isolated


def test_the_peak_of_a_program_counts():
    kept = []

    def program():
        kept.append(np.ones(2_000_000))  # 16 MB stay
        np.ones(4_000_000).sum()  # 32 MB more for a while

    grown = isolated.peak_growth(program)
    if grown is None:
        pytest.skip("this system keeps no account of the peak")
    assert 47e6 < grown < 60e6
    # What came before is forgotten.
    assert isolated.peak_growth(lambda: kept.append(np.ones(100_000))) < 8e6


def test_garbage_does_not_hide_what_a_program_takes():
    """Arrays in a cycle of references are freed before, and not in the middle of, the measurement."""
    cycle = [np.ones(5_000_000)]
    cycle.append(cycle)
    del cycle

    def program():
        gc.collect()
        np.ones(5_000_000).sum()

    grown = isolated.peak_growth(program)
    assert grown is None or grown > 39e6


def test_no_account_of_memory(monkeypatch, tmp_path):
    monkeypatch.setattr(isolated, "_OWN", tmp_path / "absent")
    assert isolated.peak_growth(lambda: pytest.fail("nothing is measured: nothing needs to run")) is None


@pytest.mark.slow
def test_a_process_has_its_cores():
    cores = isolated.available_cores()
    assert isolated.in_a_process(cores[:1], isolated.available_cores) == cores[:1]
    assert isolated.available_cores() == cores
    assert isolated.in_a_process(cores, os.getpid) != os.getpid()


def _page_faults() -> int:
    """Of 128 MB that are allocated for the second time."""
    np.ones(16_000_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(16_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it is glibc that is told")
def test_a_process_keeps_its_memory():
    cores = isolated.available_cores()[:1]
    kept, usual = (isolated.in_a_process(cores, _page_faults, keep_memory=keep) for keep in (True, False))
    assert kept < 10 < usual


def test_an_allocator_that_cannot_be_told(monkeypatch):
    monkeypatch.setattr(isolated.ctypes, "CDLL", lambda name: object())
    assert isolated.keep_freed_memory() is False
