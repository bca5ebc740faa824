"""The benchmark of contrastive losses: what it refuses, and one round beside the peers where they are."""

import sys

import numpy as np
import pytest

from experiments.benchmarks import contrastive as benchmark
from jaxneg.contrastive import amcl_nt_xent_loss

SIZES = benchmark.Sizes(
    batch=8,
    dim=6,
    wide=5,
    amcl_batch=6,
    heads=2,
    step_batch=8,
    step_size=8,
    step_width=2,
    images=4,
    image_size=8,
)


def test_absent_peers_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "lightly", None)
    with pytest.raises(
        ImportError, match=r"'contrastive' measures against lightly .* pip install 'jaxneg\[bench\]'"
    ):
        benchmark.peer("lightly")


@pytest.mark.parametrize("every_pair", [True, False])
def test_the_official_arithmetic_is_ours(every_pair):
    """Both orders of the peer against our loss, values and gradients; torch alone is needed."""
    torch = pytest.importorskip("torch")
    many = benchmark.projections(SIZES.amcl_batch, SIZES.heads, SIZES.dim)
    rng = np.random.default_rng(1)
    shapes = {"w1": (6, 4), "b1": (4,), "w2": (4, 6), "b2": (6,)}
    phi = {name: rng.standard_normal(shape).astype(np.float32) / 2 for name, shape in shapes.items()}
    rule = {"beta": benchmark.BETA, "tau_min": benchmark.TAU_MIN, "tau_max": benchmark.TAU_MAX}
    ours, gradients = benchmark._ours(lambda a, b: amcl_nt_xent_loss(a, b, phi, **rule)[0].mean(), many)()
    theirs, peer_gradients = benchmark._theirs(torch, benchmark.peer_amcl(torch, phi, every_pair), many)()
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5)
    for own, other in zip(gradients, peer_gradients, strict=True):
        np.testing.assert_allclose(own, other.numpy(), rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_one_round_beside_the_peers():
    for name in ("torch", *benchmark.PACKAGES):
        pytest.importorskip(name)
    measured = benchmark.times(SIZES, 1)
    assert {"nt_xent_lightly", "vicreg_lightly", "amcl_official", "simclr_step"} <= set(measured)
    for name, row in measured.items():
        assert row["ratio_low"] <= row["ratio_median"] <= row["ratio_high"]
        if name != "augmentation_acde":
            assert row["losses_apart"] < 1e-4, name
