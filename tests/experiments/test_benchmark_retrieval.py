"""The benchmark of retrieval: what it refuses, and one round beside the peers."""

import sys

import numpy as np
import pytest

from experiments.benchmarks import retrieval

MINING = retrieval.Mining(queries=40, documents=600, dim=16, topics=12)
PEAKS = {"matmul_flops_per_second": 1e11, "copy_bytes_per_second": 1e10}


def check(measured, names):
    assert set(measured) == names
    for row in measured.values():
        assert row["ratio_low"] <= row["ratio_median"] <= row["ratio_high"]


@pytest.mark.parametrize("name", ["torch", "sentence_transformers"])
def test_absent_peers_are_named(monkeypatch, name):
    for module in ("rank_bm25", "rax", "datasets"):
        monkeypatch.setitem(sys.modules, module, sys)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"'retrieval' measures against .* pip install 'jaxneg\[bench\]'"):
        retrieval.run()


def test_inputs_have_negatives_on_both_sides_of_the_margin():
    q, d, positive = retrieval.mining_inputs(MINING)
    similarity = q @ d.T
    own = similarity[np.arange(len(q)), positive]
    near = (similarity > 0.95 * own[:, None]).sum(axis=1)
    assert 0 < np.mean(near > 1) < 1


@pytest.mark.slow
def test_mining_beside_sentence_transformers():
    pytest.importorskip("sentence_transformers")
    pytest.importorskip("datasets")
    measured = retrieval.mining_compared(MINING, 3, PEAKS)
    check(measured, {"mining", "product and top-k"})
    assert measured["mining"]["same_share"] > 0.99


def test_other_negatives_are_refused():
    q, d, positive = retrieval.mining_inputs(MINING)
    right = np.stack([np.arange(40), positive, (positive + 1) % 600], axis=1)
    wrong = right.copy()
    wrong[3, 2] = (wrong[3, 2] + 1) % 600
    assert retrieval._require_same_negatives(q, d, right, right) == 1
    with pytest.raises(RuntimeError, match=r"mining: the two sides' negatives differ by .* in score"):
        retrieval._require_same_negatives(q, d, right, wrong)
    with pytest.raises(RuntimeError, match="mining: the two sides give 40 and 39 triplets"):
        retrieval._require_same_negatives(q, d, right, right[:39])


@pytest.mark.slow
def test_bm25_and_eci_beside_their_peers(monkeypatch, tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("rank_bm25")
    monkeypatch.setattr(retrieval, "data_folder", lambda: tmp_path)
    check(retrieval.bm25_compared(3), {"bm25_tiny_beside_bm25s", "bm25_tiny_beside_rank_bm25"})
    measured = retrieval.eci_compared(retrieval.Score(rows=500, negatives=4), 3, PEAKS)
    check(measured, {"eci_beside_torch"})
    assert measured["eci_beside_torch"]["apart"] < 1e-5


@pytest.mark.slow
def test_ndcg_beside_rax():
    pytest.importorskip("rax")
    measured = retrieval.ndcg_compared(retrieval.Metric(queries=20, documents=50), 3)
    check(measured, {"ndcg_beside_rax", "ndcg_beside_scikit_learn"})
