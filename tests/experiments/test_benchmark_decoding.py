"""The benchmark of decoding: what it refuses, its prompts, and one round beside the peer."""

import sys

import numpy as np
import pytest

from experiments.benchmarks import decoding
from jaxneg.nn import EncoderDecoderConfig, TransformerConfig

MODEL = TransformerConfig(vocab=30, width=16, layers=1, heads=2, kv_heads=1, hidden=24, tied=False)
STUDENT = EncoderDecoderConfig(
    vocab=30, width=16, encoder_layers=1, decoder_layers=1, heads=2, hidden=24, tied=False
)
SMALL = {
    "greedy": decoding.Setting(MODEL, 3, 8, 5),
    "sampled": decoding.Setting(MODEL, 3, 8, 5, sampled=True),
    "encoder-decoder": decoding.Setting(STUDENT, 3, 8, 5),
}


def test_absent_peers_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setitem(sys.modules, "torch", sys)
    with pytest.raises(ImportError, match=r"against transformers .* pip install 'jaxneg\[bench\]'"):
        decoding.run()


def test_different_tokens_are_refused():
    ours = np.arange(15).reshape(3, 5)
    decoding.require_same_tokens("one", SMALL["greedy"], ours, ours)
    with pytest.raises(RuntimeError, match=r"one: 6\.7% of the tokens differ: the two sides are not"):
        decoding.require_same_tokens("one", SMALL["greedy"], ours, np.where(ours == 3, 0, ours))
    decoding.require_same_tokens("one", SMALL["sampled"], ours, ours + 1)
    with pytest.raises(RuntimeError, match=r"one: expected \(3, 5\) tokens, got \(3, 5\) and \(3, 4\)"):
        decoding.require_same_tokens("one", SMALL["sampled"], ours, ours[:, :4])


def test_prompts_have_different_lengths():
    tokens, mask = decoding.prompts(decoding.SETTINGS["2 layers x 96, batch 20"])
    lengths = mask.sum(1)
    assert (lengths.min() >= 20, lengths.max()) == (True, 40)
    assert len(np.unique(lengths)) > 5
    assert tokens[mask].min() > 1
    assert (tokens[~mask] == 0).all()


@pytest.mark.slow
def test_one_round_beside_the_peer(monkeypatch):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    monkeypatch.setattr(decoding, "SETTINGS", SMALL)
    monkeypatch.setattr(decoding, "machine_peaks", lambda: {
        "matmul_flops_per_second": 1e11, "copy_bytes_per_second": 1e10
    })  # fmt: skip
    measured = decoding.times(tuple(SMALL), 3)
    assert set(measured) == set(SMALL)
    for row in measured.values():
        assert row["ratio_low"] <= row["ratio_median"] <= row["ratio_high"]
        assert row["ours_tokens_per_second"] == pytest.approx(15 / row["ours_seconds"])
    for name in ("greedy", "encoder-decoder"):
        assert len(np.unique(decoding.both_sides(SMALL[name]).ours())) > 3
