"""The benchmark of face losses: what it refuses, and one round beside the peers."""

import sys

import pytest

from experiments.benchmarks import face
from experiments.isolated import available_cores, in_a_process

SMALL, PEAKS = face.Size(12, 6, 5), {"matmul_flops_per_second": 1e11, "copy_bytes_per_second": 1e10}


def test_absent_peers_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning", None)
    with pytest.raises(
        ImportError, match=r"'face' measures against pytorch-metric-learning .*jaxneg\[bench\]"
    ):
        face.metric_learning_for()


@pytest.mark.slow
def test_unpg_beside_the_official_arithmetic():
    pytest.importorskip("torch")
    row = face._compared("unpg", SMALL, 3, PEAKS)
    assert row["losses_apart"] < 1e-5
    assert row["direction_apart"] < 1e-3
    assert row["ratio_low"] <= row["ratio_median"] <= row["ratio_high"]


@pytest.mark.slow
@pytest.mark.parametrize("name", face.LOSSES)
def test_losses_beside_metric_learning(name):
    pytest.importorskip("pytorch_metric_learning")
    row = face._compared(name, SMALL, 3, PEAKS)
    assert row["losses_apart"] < 1e-5
    assert row["direction_apart"] < 1e-3


@pytest.mark.slow
def test_another_loss_is_refused(monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(face, "COSFACE", 0.3)
    ours = face.our_loss("unpg", SMALL)
    monkeypatch.setattr(face, "our_loss", lambda name, size: ours)
    monkeypatch.setattr(face, "COSFACE", 0.2)
    with pytest.raises(RuntimeError, match="unpg: the two sides' losses are"):
        face._compared("unpg", SMALL, 3, PEAKS)


@pytest.mark.slow
def test_a_tenth_of_the_classes_is_a_tenth_of_the_products(monkeypatch):
    # The process that measures starts its own devices.
    monkeypatch.setenv("XLA_FLAGS", "")
    row = in_a_process(available_cores(), face.sampling_compared, face.Size(8, 6, 400), 3)
    # Forward and both gradients of the logits; 10 of 100 classes a device.
    assert row["matmul_flops_ratio"] == pytest.approx(10)
    assert row["losses_apart"] < 1e-5
