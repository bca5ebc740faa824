"""The benchmark of federated learning: what it refuses, and one round beside the official arithmetic."""

import sys

import numpy as np
import pytest

from experiments.benchmarks import federated

POINTS = federated.Points(6, 5)
ROUND = federated.Round(
    clients=2, examples=20, inputs=12, width=8, hidden=6, steps=4, batch=8, accum=2, vote_steps=3
)
PEAKS = {"matmul_flops_per_second": 1e11, "copy_bytes_per_second": 1e10}


def test_absent_peers_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
        ImportError, match=r"'federated' measures against PyTorch .* pip install 'jaxneg\[bench\]'"
    ):
        federated.run()


def test_mk_mmd_beside_the_official_arithmetic():
    pytest.importorskip("torch")
    row = federated._mmd_compared(POINTS, 3, PEAKS)
    assert row["losses_apart"] < 1e-5
    assert row["direction_apart"] < 1e-4
    assert row["ratio_low"] <= row["ratio_median"] <= row["ratio_high"]


@pytest.mark.slow
def test_a_round_beside_the_official_loop():
    pytest.importorskip("torch")
    row = federated._round_compared(ROUND, 3, PEAKS)
    assert row["losses_apart"] < 1e-5
    assert row["direction_apart"] < 1e-3
    assert row["ratio_low"] <= row["ratio_median"] <= row["ratio_high"]
    assert row["roofline_seconds"] > 0


@pytest.mark.slow
def test_another_round_is_refused(monkeypatch):
    """Half the strength of reversal and matching is another round."""
    pytest.importorskip("torch")
    schedule = federated.PeerRound.strengths
    monkeypatch.setattr(
        federated.PeerRound, "strengths", lambda self, steps: (0.5 * np.array(schedule(self, steps))).tolist()
    )
    with pytest.raises(RuntimeError, match="2 clients: the two sides' losses are"):
        federated.require_same_round(ROUND)
