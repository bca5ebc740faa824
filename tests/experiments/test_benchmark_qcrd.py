"""The benchmark of QCRD's step: what it names, and one round beside the peer."""

import sys

import numpy as np
import pytest

from experiments.benchmarks import qcrd

TINY = qcrd.Setting(2, 5, 3, 4, 2, 1, 11, 8, 1, 2, 8)


def test_an_absent_peer_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
        ImportError, match=r"measures against PyTorch .*torch.*; pip install 'jaxneg\[bench\]'"
    ):
        qcrd.run()


@pytest.mark.slow
def test_one_round_beside_the_peer(monkeypatch):
    pytest.importorskip("torch")
    peaks = {"matmul_flops_per_second": 1e11, "copy_bytes_per_second": 1e10}
    monkeypatch.setattr(qcrd, "machine_peaks", lambda: peaks)
    measured = qcrd._times(TINY, 1)
    assert set(measured) == {"once_for_each_rationale", "encoded_once"}
    for found in measured.values():
        assert found["losses_apart"] < 1e-5
        assert found["direction_apart"] < 1e-3
        assert found["ratio_median"] > 0
    peer = qcrd.PeerStep.__call__
    monkeypatch.setattr(qcrd.PeerStep, "__call__", lambda self: peer(self) + 1)
    with pytest.raises(RuntimeError, match="once_for_each_rationale: the two sides' losses are"):
        qcrd._times(TINY, 1)


def test_names_are_paths():
    assert list(qcrd.named({"b": {"c": np.ones(1)}, "a": np.ones(2)})) == ["a", "b/c"]
