"""Batches over eight devices: values and gradients are those of one, and no device holds all pairs."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxneg import contrastive as c

N, B, C, D, Q = 8, 16, 2, 6, 24
OVER = {"axis_name": "data"}


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


Z1, Z2, Z3, Z4 = (draw(B, C, D, seed=s) for s in range(4))
PHI = {"w1": draw(D, 5) / 2, "b1": draw(5), "w2": draw(5, D) / 2, "b2": draw(D)}
PHI_BATCH = {"w1": draw(B, 5) / 4, "b1": draw(5), "w2": draw(5, B) / 4, "b2": draw(B)}
QUEUE = c.init_queue(jax.random.key(0), Q, D, C, shards=N).queue
BOUNDS = {"tau_min": 0.1, "tau_max": 1.5, "beta": 0.01}


BY_VIEW, BY_IMAGE, WHOLE = P(None, "data"), P("data"), P()


def flat(loss, **options):
    """A loss of one head, on the first."""
    return lambda a, b, **on: (loss(a[:, 0], b[:, 0], **options, **on), {})


def amcl(loss, **options):
    """A loss of both views and the temperature network."""
    return lambda a, b, phi, **on: loss(a, b, phi, **BOUNDS, **options, **on)


def amcl_moco(a, b, phi, queue, **on):
    return c.amcl_moco_loss(a, b, queue, phi, topk=5, **BOUNDS, **on)


def amcl_simsiam(a, b, phi, **on):
    return c.amcl_simsiam_loss(a, b, b, a, phi, **BOUNDS, **on)


def info_nce(a, b, queue, **on):
    return c.info_nce_queue_loss(a[:, 0], b[:, 0], queue, **on), {}


# Loss, its arrays beside the views and how these lie, how the losses lie.
CASES = {
    "nt_xent": (flat(c.nt_xent_loss), (), (), BY_VIEW),
    "nt_xent_decoupled": (flat(c.nt_xent_loss, decoupled=True), (), (), BY_VIEW),
    "macl": (flat(c.macl_loss), (), (), BY_VIEW),
    "moco_v3": (flat(c.moco_v3_loss), (), (), BY_IMAGE),
    "barlow_twins": (flat(c.barlow_twins_loss), (), (), WHOLE),
    "barlow_batchnorm": (flat(c.barlow_twins_loss, norm="batchnorm"), (), (), WHOLE),
    "vicreg": (flat(c.vicreg_loss), (), (), WHOLE),
    "amcl_topk": (amcl(c.amcl_nt_xent_loss, topk=5), (PHI,), (P(),), BY_VIEW),
    "amcl_lse": (amcl(c.amcl_nt_xent_loss, negatives="lse"), (PHI,), (P(),), BY_VIEW),
    "amcl_barlow": (amcl(c.amcl_barlow_twins_loss), (PHI_BATCH,), (P(),), WHOLE),
    "amcl_moco": (amcl_moco, (PHI, QUEUE), (P(), P(None, None, "data")), BY_IMAGE),
    "amcl_simsiam": (amcl_simsiam, (PHI,), (P(),), BY_IMAGE),
    "info_nce_queue": (info_nce, (QUEUE[0],), (P(None, "data"),), BY_IMAGE),
}


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((N,), ("data",), axis_types=(AxisType.Auto,))


def value_and_gradient(loss, *arguments):
    def mean(*arguments):
        losses, aux = loss(*arguments)
        return losses.mean(), (losses, aux)

    return jax.jit(jax.value_and_grad(mean, (0, 1), has_aux=True))(*arguments)


# Variants of what another case shows are left to the full suite.
VARIANTS = {"nt_xent_decoupled", "barlow_batchnorm", "amcl_topk", "macl", "amcl_simsiam"}


def cases(names, slow):
    return [pytest.param(name, marks=pytest.mark.slow if name in slow else ()) for name in names]


@pytest.mark.parametrize("name", cases(CASES, VARIANTS))
def test_devices_change_nothing(name, mesh):
    loss, rest, specs, of_losses = CASES[name]
    on_devices = jax.shard_map(
        lambda *a: loss(*a, **OVER),
        mesh=mesh,
        in_specs=(P("data"), P("data"), *specs),
        out_specs=(of_losses, P()),
    )
    whole, sharded = (value_and_gradient(each, Z1, Z2, *rest) for each in (loss, on_devices))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=2e-4, atol=2e-5), whole, sharded)


@pytest.mark.parametrize(
    "name",
    cases(
        ["nt_xent", "macl", "moco_v3", "barlow_twins", "vicreg", "amcl_lse", "amcl_barlow", "amcl_moco"],
        {"macl", "moco_v3", "barlow_twins", "amcl_barlow"},
    ),
)
def test_explicit_axes_need_no_shard_map(name):
    loss, rest, _, _ = CASES[name]
    mesh = jax.make_mesh((N,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        views = (jax.device_put(z, NamedSharding(mesh, P("data"))) for z in (Z1, Z2))
        found, _ = jax.jit(lambda *a: loss(*a))(*views, *rest)
    np.testing.assert_allclose(found, loss(Z1, Z2, *rest)[0], rtol=2e-4, atol=2e-5)


def test_queue_over_devices(mesh):
    enqueue = jax.shard_map(
        lambda q, p, k: c.queue_enqueue(q, p, k, **OVER),
        mesh=mesh,
        in_specs=(P(None, None, "data"), P(), P("data")),
        out_specs=c.KeyQueue(P(None, None, "data"), P()),
    )
    state = whole = c.KeyQueue(QUEUE, jnp.asarray(20, jnp.int32))
    for keys in (Z1, Z2):
        state, whole = jax.jit(enqueue)(*state, keys), c.queue_enqueue(*whole, keys)
    np.testing.assert_allclose(state.queue, whole.queue, rtol=1e-6)
    assert int(state.ptr) == int(whole.ptr) == (20 + 2 * B) % Q


@pytest.mark.parametrize("kind", ["nt_xent", "amcl"])
def test_no_device_holds_all_pairs(kind, mesh):
    """From the compiled program: its temporaries, and every shape in it, forward and backward."""
    batch, dim, block = 512, 8, 4
    shapes = jax.ShapeDtypeStruct((batch, dim), jnp.float32)
    pairs = (2 * batch) ** 2

    def loss(z1, z2, block_size):
        if kind == "nt_xent":
            return c.nt_xent_loss(z1, z2, block_size=block_size, **OVER)
        phi = {
            name: jnp.ones(shape)
            for name, shape in {"w1": (dim, 4), "b1": (4,), "w2": (4, dim), "b2": (dim,)}.items()
        }
        given = {"tau_min": 0.1, "negatives": "lse", "block_size": block_size}
        return c.amcl_nt_xent_loss(z1[:, None], z2[:, None], phi, **given, **OVER)[0]

    def compiled(block_size):
        mapped = jax.shard_map(
            lambda a, b: loss(a, b, block_size), mesh=mesh, in_specs=P("data"), out_specs=P(None, "data")
        )
        gradient = jax.grad(lambda a, b: mapped(a, b).mean(), (0, 1))
        placed = jax.ShapeDtypeStruct(shapes.shape, shapes.dtype, sharding=NamedSharding(mesh, P("data")))
        return jax.jit(gradient).lower(placed, placed).compile()

    found = {block_size: compiled(block_size) for block_size in (None, block)}
    temporary = {size: each.memory_analysis().temp_size_in_bytes for size, each in found.items()}
    assert temporary[block] < temporary[None]
    assert temporary[block] < 4 * pairs / N  # less than one float32 for each of this device's pairs
    for size, each in found.items():
        rows = 2 * batch // N if size is None else size
        sizes = [
            np.prod([int(n) for n in shape.split(",")])
            for shape in re.findall(r"f32\[([\d,]+)\]", each.as_text())
        ]
        assert max(sizes) <= max(rows * 2 * batch, 2 * 2 * batch * dim)
