"""The benchmark of the Coulomb field theories: what it refuses, and one small round."""

import sys

import jax
import numpy as np
import pytest

from experiments.benchmarks import coulomb as benchmark
from jaxneg import coulomb

PEAKS = {"matmul_flops_per_second": 1e11, "copy_bytes_per_second": 1e10}


def test_absent_peers_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "exponax", None)
    with pytest.raises(ImportError, match=r"measures against exponax and py-pde .* environment of their own"):
        benchmark.run()


@pytest.mark.slow
def test_force_is_scipys():
    row = benchmark.forces_compared(5, 1)
    assert row["apart"] < 1e-6
    assert np.isfinite(row["ratio_median"])


@pytest.mark.slow
def test_another_force_is_refused(monkeypatch):
    force = coulomb.casimir_force
    monkeypatch.setattr(coulomb, "casimir_force", lambda *args: 1.01 * force(*args))
    with pytest.raises(RuntimeError, match=r"force: the two sides are .* apart"):
        benchmark.forces_compared(2, 1)


def test_the_full_theory_alone():
    row = benchmark.full_theory_alone(8, 1, 1, PEAKS)
    assert row["ours_seconds"] > 0
    assert 0 < row["roofline_share"] < 10


@pytest.mark.slow
@pytest.mark.parametrize("noisy", [False, True])
def test_steps_beside_exponax(noisy):
    pytest.importorskip("exponax")
    row = benchmark.chemotaxis_compared(32, noisy, 2, 3, PEAKS)
    assert noisy or row["apart"] < 1e-4
    assert row["ratio_low"] <= row["ratio_median"] <= row["ratio_high"]


@pytest.mark.slow
def test_steps_beside_py_pde():
    pytest.importorskip("pde")
    row = benchmark.electrolyte_compared(32, 2, 3, PEAKS)
    assert row["ratio_for_a_debye_time"] > row["ratio_median"]


def test_another_drift_is_refused():
    wave = np.cos(2 * np.pi * np.arange(64) / 64)[:, None] * np.ones(64)
    with pytest.raises(RuntimeError, match=r"py-pde: the two sides' drifts are .* apart, and not timed"):
        benchmark._same_drift(np.stack([wave, wave]), wave, 64)
    assert jax.config.jax_enable_x64 is False
