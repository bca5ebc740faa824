"""The benchmark of unlearning: what it refuses, and one round beside the peers."""

import sys

import numpy as np
import pytest

from experiments.benchmarks import unlearning

LOGITS = unlearning.Logits(batch=3, tokens=8, vocab=20)
STEP = unlearning.Step(vocab=30, width=8, layers=2, heads=2, batch=3, tokens=8)
PEAKS = {"matmul_flops_per_second": 1e11, "copy_bytes_per_second": 1e10}


def test_absent_peers_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
        ImportError, match=r"'unlearning' measures against PyTorch .* pip install 'jaxneg\[bench\]'"
    ):
        unlearning.run()


def test_inputs():
    """Prompts of different length are masked, and the tokens read the answers."""
    arrays = unlearning.loss_inputs(LOGITS)
    assert arrays["forget"].shape == LOGITS
    assert not np.array_equal(arrays["forget_labels"], arrays["retain_labels"])
    for content in unlearning.step_batch(STEP).values():
        answered = content["labels"] >= 0
        np.testing.assert_array_equal(content["tokens"][answered], content["labels"][answered])
        assert 0 < answered.mean() < 1


@pytest.mark.slow
def test_our_loss_with_either_reference():
    arrays = unlearning.loss_inputs(LOGITS)
    (loss, gradients), (again, _) = (unlearning.our_loss(arrays, each)() for each in (False, True))
    np.testing.assert_allclose(loss, again, rtol=1e-5)
    assert gradients["forget"].any()
    assert gradients["retain"].any()


@pytest.mark.slow
def test_one_round_beside_the_peers():
    pytest.importorskip("torch")
    measured = unlearning._losses_compared(LOGITS, 3, PEAKS) | unlearning._steps_compared(STEP, 3, PEAKS)
    assert set(measured) == {
        "reference_likelihoods",
        "reference_logits",
        "reference_in_the_step",
        "reference_in_a_table",
    }
    for row in measured.values():
        assert row["losses_apart"] < 1e-5
        assert row["direction_apart"] < 1e-3
        assert row["ratio_low"] <= row["ratio_median"] <= row["ratio_high"]


@pytest.mark.slow
def test_another_loss_is_refused(monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(unlearning, "peer_cross_entropy", lambda torch, logits, labels: logits.mean())
    with pytest.raises(RuntimeError, match="reference_likelihoods: the two sides' losses are"):
        unlearning._losses_compared(LOGITS, 3, PEAKS)
