"""The benchmark of Self-NPO's step: what it names and refuses, and one round beside the peer."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import self_npo

TINY = self_npo.Setting(features=3, hidden=8, blocks=1, classes=2, batch=8)


def test_an_absent_peer_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
        ImportError, match=r"measures against PyTorch .*torch.*; pip install 'jaxneg\[bench\]'"
    ):
        self_npo.run()


@pytest.mark.slow
def test_our_steps_run_and_learn():
    batch = jax.tree.map(jnp.asarray, self_npo.batch_of(TINY))
    step, state = self_npo.our_step(TINY, -5.0)
    step, simulated = jax.jit(step), jax.jit(self_npo.simulation_step(TINY, -5.0))
    before = state.params
    for each in (step, simulated):
        after, metrics = each(state, batch)
        assert np.isfinite(metrics["loss"])
        assert not np.allclose(after.params["inputs"]["kernel"], before["inputs"]["kernel"], atol=1e-6)
        moved = 0.999 * before["inputs"]["bias"] + 0.001 * after.params["inputs"]["bias"]
        np.testing.assert_allclose(after.teacher["inputs"]["bias"], moved, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("guidance", [-1.0, -5.0])
def test_one_round_beside_the_peer(guidance):
    pytest.importorskip("torch")
    peaks = {"matmul_flops_per_second": 1e11, "copy_bytes_per_second": 1e10}
    measured = self_npo._compared(TINY, guidance, 1, peaks)
    assert set(measured) == {"official_loop", "levels_drawn_at_once", "full_simulation"}
    for name in ("official_loop", "levels_drawn_at_once"):
        assert measured[name]["losses_apart"] < 1e-5
        assert measured[name]["direction_apart"] < 1e-3
    expected = (9 / 28) if guidance == -1 else (15 / 53)
    assert measured["full_simulation"]["evaluations_over_simulation"] == pytest.approx(expected)


@pytest.mark.slow
def test_another_step_is_refused(monkeypatch):
    pytest.importorskip("torch")
    drawn = self_npo.our_draws
    monkeypatch.setattr(
        self_npo, "our_draws", lambda *arguments: drawn(*arguments)._replace(s=np.full(TINY.batch, 999))
    )
    with pytest.raises(RuntimeError, match="official_loop: the two sides' losses are"):
        self_npo._compared(TINY, -5.0, 1, {"matmul_flops_per_second": 1e11, "copy_bytes_per_second": 1e10})


@pytest.mark.slow
def test_levels_of_the_peer_cover_their_range():
    torch = pytest.importorskip("torch")
    params = self_npo.our_step(TINY, -1.0)[1].params
    t = torch.tensor([996] * 200)
    for at_once in (False, True):
        peer = self_npo.PeerStep(TINY, -1.0, params, at_once=at_once)
        assert set(peer._levels(t).tolist()) == {997, 998, 999}
