"""The benchmark of the diffusion transformer: what it names and refuses, and one round beside the peer."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import diffusion
from jaxneg.nn import dit

TINY = diffusion.Setting(size=4, width=8, layers=1, heads=2, batch=2)


def test_an_absent_peer_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
        ImportError, match=r"measures against PyTorch .*torch.*; pip install 'jaxneg\[bench\]'"
    ):
        diffusion.run()


@pytest.mark.slow
def test_our_step_learns_and_our_sampler_runs():
    batch = jax.tree.map(jnp.asarray, diffusion.batch_of(TINY))
    params = dit(TINY.config).init(jax.random.key(0))
    opt_state = diffusion.TX.init(params)
    step, losses = jax.jit(diffusion.our_step(TINY)), []
    for _ in range(20):
        params, opt_state, loss = step(params, opt_state, batch)
        losses.append(float(loss))
    assert losses[-1] < losses[0]
    samples = jax.jit(diffusion.our_samples(TINY))(params, batch["noise"], batch["label"])
    assert samples.shape == batch["noise"].shape
    assert np.isfinite(samples).all()


@pytest.mark.slow
def test_one_round_beside_the_peer(monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(diffusion, "PEERS", ("eager",))
    monkeypatch.setattr(
        diffusion,
        "machine_peaks",
        lambda: {"matmul_flops_per_second": 1e11, "copy_bytes_per_second": 1e10},
    )
    measured = diffusion._times(TINY, 1)
    assert measured["train"]["eager"]["direction_apart"] < 1e-4
    assert measured["sample"]["eager"]["output_apart"] < 1e-5
    assert measured["make_step_seconds"] > 0
    assert measured["sample"]["eager"]["our_images_per_second"] > 0


@pytest.mark.slow
def test_another_network_is_refused(monkeypatch):
    pytest.importorskip("torch")
    positions = diffusion.plane_positions
    monkeypatch.setattr(diffusion, "plane_positions", lambda *sizes: 1.01 * positions(*sizes))
    with pytest.raises(
        RuntimeError, match=r"eager: output_apart is .*: these are different networks, not timed"
    ):
        diffusion._times(TINY, 1)
