"""Bad input to the losses: each mistake is named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneg import contrastive as c
from jaxneg.contrastive.shards import over_blocks

Z = jnp.ones((4, 3))
H = jnp.ones((4, 2, 3))
PHI = c.init_temperature_net(jax.random.key(0), 3, 2)
QUEUE = jnp.ones((3, 5))
HEAD_QUEUE = jnp.ones((2, 3, 5))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: c.nt_xent_loss(Z[:1], Z[:1]), "z1: expected at least 2 examples, .* negatives, got 1"),
        (lambda: c.moco_v3_loss(Z[:1], Z[:1]), "q: expected at least 2 examples"),
        (lambda: c.macl_loss(Z[:1], Z[:1]), "z1: expected at least 2 examples"),
        (lambda: c.amcl_nt_xent_loss(H[:1], H[:1], PHI), "z1: expected at least 2 examples"),
        (lambda: c.barlow_twins_loss(Z[:1], Z[:1]), "z1: expected at least 2 examples"),
        (lambda: c.vicreg_loss(Z[:1], Z[:1]), "z1: expected at least 2 examples"),
        (lambda: c.nt_xent_loss(Z[:0], Z[:0]), r"z1: expected \[batch, dim\], got shape \(0, 3\)"),
        (lambda: c.nt_xent_loss(Z, Z[:3]), r"z2: expected the shape of z1, \(4, 3\), got \(3, 3\)"),
        (lambda: c.nt_xent_loss(H, H), r"z1: expected \[batch, dim\], got shape \(4, 2, 3\)"),
        (lambda: c.amcl_nt_xent_loss(Z, Z, PHI), r"z1: expected \[batch, heads, dim\], got shape"),
        (lambda: c.nt_xent_loss(Z, Z, 0.0), "temperature: expected a positive finite number, got 0.0"),
        (
            lambda: c.nt_xent_loss(Z, Z, block_size=3),
            "block_size: expected a divisor of the 8 anchors, got 3",
        ),
        (
            lambda: c.amcl_nt_xent_loss(H, H, PHI, tau_min=2.0, tau_max=0.1),
            "tau_min: expected less than tau_max = 0.1, got 2",
        ),
        (lambda: c.score_to_temperature(Z, 0.0, 1.0), "tau_min: expected a positive finite number"),
        (
            lambda: c.amcl_moco_loss(H, H, HEAD_QUEUE, PHI, tau_min=1.0, tau_max=1.0),
            "tau_min: expected less than tau_max = 1, got 1",
        ),
        (lambda: c.amcl_simsiam_loss(H, H, H, H, PHI, tau_min=3.0), "tau_min: expected less than tau_max"),
        (lambda: c.amcl_barlow_twins_loss(H, H, PHI, tau_min=3.0), "tau_min: expected less than tau_max"),
        (
            lambda: c.amcl_barlow_twins_loss(H, H, PHI),
            "phi: expected parameters for vectors of length 4, got 3",
        ),
        (lambda: c.amcl_nt_xent_loss(H, H, {"w1": Z}), "phi: parameter 'b1' is missing"),
        (lambda: c.amcl_nt_xent_loss(H, H, PHI, negatives="hard"), "negatives: expected one of topk, max"),
        (lambda: c.amcl_nt_xent_loss(H, H, PHI, topk=0), "topk: expected at least 1, got 0"),
        (lambda: c.amcl_nt_xent_loss(H, H, PHI, beta=-1.0), "beta: expected a finite number of at least 0"),
        (
            lambda: c.info_nce_queue_loss(Z, Z, QUEUE[:2]),
            r"queue: expected \[3, size\] with at least one key",
        ),
        (lambda: c.info_nce_queue_loss(Z, Z, QUEUE[:, :0]), r"queue: .* at least one key, got \(3, 0\)"),
        (lambda: c.amcl_moco_loss(H, H, HEAD_QUEUE[..., :0], PHI), r"queue: expected \[2, 3, size\]"),
        (
            lambda: c.init_queue(jax.random.key(0), 10, 3, shards=4),
            "size: expected a multiple of the 4 shards",
        ),
        (lambda: c.queue_enqueue(QUEUE, 0, jnp.ones((2, 4))), r"keys: expected \[batch, 3\] for a queue"),
        (lambda: c.ema_update(Z, Z, 1.5), "momentum: expected 0 to 1, got 1.5"),
        (lambda: c.simsiam_loss(Z, Z, p2=Z), "z1: expected an array, since p2 is given, got None"),
        (lambda: c.byol_loss(Z, Z, z1=Z), "p2: expected an array, since z1 is given, got None"),
        (lambda: c.barlow_twins_loss(Z, Z, norm="layer"), "norm: expected one of unbiased, batchnorm"),
        (lambda: c.vicreg_loss(Z, Z, std_reduce="max"), "std_reduce: expected one of mean, sum, got 'max'"),
        (lambda: c.macl_loss(Z, Z, alpha=2.0), "alpha: expected 0 to 1, got 2.0"),
        (lambda: c.knn_classify(Z, Z[:0], jnp.arange(0)), "bank: expected"),
        (lambda: c.knn_classify(Z, Z, jnp.arange(3)), "labels: expected one for each of the 4 rows"),
        (
            lambda: c.linear_probe(jax.random.key(0), Z, jnp.arange(3), classes=3),
            "labels: expected one for each",
        ),
        (lambda: c.separation_metrics(Z, Z), "pos: expected a vector of similarities"),
        (lambda: c.temperature_scores(PHI, Z, Z[:2], matrix=False), "zb: expected vectors of the same shape"),
        (lambda: c.omega(1.0, 0), "dim: expected at least 1, got 0"),
        (lambda: c.init_temperature_net(jax.random.key(0), 0), "in_dim, hidden: expected at least 1"),
        (lambda: c.augment_batch(jax.random.key(0), Z), r"images: expected \[batch, height, width, 3\]"),
        (lambda: over_blocks(lambda x: x, Z, 0), "block_size: expected a divisor"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda: c.nt_xent_loss(jnp.ones((2, 2), int), jnp.ones((2, 2), int)),
        lambda: c.knn_classify(jnp.ones((2, 2), int), Z, jnp.arange(4)),
        lambda: c.augment_batch(jax.random.key(0), jnp.ones((1, 4, 4, 3), jnp.int32)),
    ],
)
def test_integers_are_refused(call):
    with pytest.raises(TypeError, match=r"expected .*floating dtype, got int32"):
        call()


def test_one_head_is_allowed():
    loss, aux = c.amcl_nt_xent_loss(H[:, :1], H[:, :1], PHI)
    assert loss.shape == (2, 4)
    assert aux["head_losses"].shape == (1,)


def test_nan_does_not_pass_silently():
    """A NaN in one vector is in the losses, not masked away."""
    z = Z.at[1, 1].set(jnp.nan)
    h = H.at[1, 0, 1].set(jnp.nan)
    assert np.isnan(c.nt_xent_loss(z, Z)).any()
    assert np.isnan(c.info_nce_queue_loss(z, Z, QUEUE)[1])
    assert np.isnan(c.vicreg_loss(z, Z))
    for negatives in ("topk", "max", "lse", "infonce", "infonce_max"):
        assert np.isnan(c.amcl_nt_xent_loss(h, H, PHI, negatives=negatives)[0][0, 1]), negatives
