"""The benchmark of CET's step: what it names, and one round beside the peers."""

import sys

import pytest

from experiments.benchmarks import cet

TINY = cet.Setting(4, 3, 8, 2, 5, 12, 3, 20, 30)


def test_an_absent_peer_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
        ImportError, match=r"measures against PyTorch .*torch.*; pip install 'jaxneg\[bench\]'"
    ):
        cet.run()


@pytest.mark.slow
def test_one_round_beside_the_peers(monkeypatch):
    for peer in ("torch", "rank_bm25"):
        pytest.importorskip(peer)
    peaks = {"matmul_flops_per_second": 1e11, "copy_bytes_per_second": 1e10}
    monkeypatch.setattr(cet, "machine_peaks", lambda: peaks)
    measured = cet._times(TINY, 1)
    steps = {"official_step", "reused_forward_step"}
    assert set(measured) >= steps | {"ndcg_sklearn", "bm25_bm25s", "bm25_rank_bm25"}
    for name, found in measured.items():
        assert found["ratio_median"] > 0
        if name in steps:
            assert found["losses_apart"] < 1e-5
            assert found["direction_apart"] < 1e-3
        else:
            assert found["values_apart"] < 1e-4
    peer = cet.PeerStep.__call__
    monkeypatch.setattr(cet.PeerStep, "__call__", lambda self: peer(self) + 1)
    with pytest.raises(RuntimeError, match="official_step: the two sides' losses are"):
        cet._step_times(TINY, 1, peaks)
