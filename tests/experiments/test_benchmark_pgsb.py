"""The benchmark of PG-SB: its peer takes the same steps, and what it refuses."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import pgsb
from experiments.benchmarks.self_npo import Setting
from experiments.peers import distance

TINY = Setting(features=6, hidden=16, blocks=1, classes=3, batch=8)


def test_an_absent_peer_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
        ImportError, match=r"'pgsb' measures against PyTorch .* pip install 'jaxneg\[bench\]'"
    ):
        pgsb.run()


@pytest.mark.slow
def test_the_peer_takes_the_same_steps(monkeypatch):
    """Two steps, with the same random numbers: losses and directions; then one that is timed."""
    pytest.importorskip("torch")
    step, state = pgsb.our_step(TINY)
    step, peer = jax.jit(step), pgsb.PeerStep(TINY, state)
    before = jax.tree.map(jnp.copy, state.params["teacher"])
    for _ in range(2):
        draws = pgsb.our_draws(state, TINY)
        state, metrics = step(state, {"cond": pgsb.labels(TINY)})
        theirs = np.array(peer(draws))
        np.testing.assert_allclose([metrics["vsd_loss"], metrics["lora_loss"]], theirs, rtol=1e-4)
        assert distance(pgsb.our_directions(state), peer.directions()) < 1e-3
    jax.tree.map(np.testing.assert_array_equal, state.params["teacher"], before)
    peaks = {"matmul_flops_per_second": 1e11, "copy_bytes_per_second": 1e10}
    monkeypatch.setattr(pgsb, "machine_peaks", lambda: peaks)
    row = pgsb.times(TINY, 2)
    assert row["ratio_low"] <= row["ratio_median"] <= row["ratio_high"]
    assert row["steps_per_second"] == pytest.approx(1 / row["ours_seconds"])
