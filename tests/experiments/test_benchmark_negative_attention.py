"""The benchmark of the attention score: both sides compute the same, what it refuses, one round."""

import sys

import numpy as np
import pytest

from experiments.benchmarks import negative_attention as bench
from jaxneg.language import negative_attention_score

TINY = bench.Size(3, 16, 2, 2, 4)


def test_our_side_is_the_score_of_the_whole_map():
    query, key, places = bench.inputs(TINY)
    found = np.asarray(bench.our_scores(query, key, places))
    assert found.shape == (TINY.prompts, TINY.layers, TINY.heads)
    scores = np.einsum("lbhtd,lbhsd->blhts", query, key) / 2
    weights = np.exp(scores) * np.tri(TINY.tokens)
    weights = (weights / weights.sum(-1, keepdims=True)).astype(np.float32)
    for prompt, spans in enumerate(places):
        alone = negative_attention_score(weights[prompt], *map(int, spans))
        np.testing.assert_allclose(found[prompt], alone, rtol=1e-4, atol=1e-5)


def test_what_is_counted():
    assert bench.Size(2, 3, 5, 7, 11).flops == 2 * 6 * 11 * 2 * 5 * 7
    assert bench.Size(8, 512, 12, 12, 64) in bench.SIZES.values()


def test_absent_peers_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"measures against PyTorch .* pip install 'jaxneg\[bench\]'"):
        bench.run()


@pytest.mark.slow
def test_one_round_beside_the_peer(monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(bench, "SIZES", {"tiny": TINY})
    monkeypatch.setattr(bench, "machine_peaks", lambda: {
        "matmul_flops_per_second": 1e11, "copy_bytes_per_second": 1e10
    })  # fmt: skip
    row = bench._times(("tiny",), 3)["tiny"]
    assert row["apart"] < 1e-4
    assert row["ratio_low"] <= row["ratio_median"] <= row["ratio_high"]
    for grown in (bench._our_memory("tiny"), bench._peer_memory("tiny")):
        if grown is None:
            pytest.skip("this system keeps no account of the peak")
        assert 0 <= grown < 50e6
