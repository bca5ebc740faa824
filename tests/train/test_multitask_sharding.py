"""Multi-task steps on a mesh: the same as on one device, and only T x T numbers cross for the Gram matrix."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxneg.mtl import combine, gram, multitask, nash, upgrad
from jaxneg.nn import MLP_RULES, mlp
from jaxneg.train import init_state, make_mesh, make_step, shard_step, shardings
from jaxneg.train.compile import _collectives

TASKS = 3
MODEL = mlp(8, (32, 32), (2,) * TASKS, activation=jnp.tanh)
AXES = {"data": 2, "model": 4}
METHODS = {
    "cagrad": {},
    "config": {},
    "dbmtl": {"n_tasks": TASKS},
    "excess_mtl": {"n_tasks": TASKS},
    "graddrop": {},
    "moco": {"n_tasks": TASKS},
    "pcd": {"n_tasks": TASKS},
    "gradnorm": {"n_tasks": TASKS},
    "gradvac": {"n_tasks": TASKS},
    "imtl": {"n_tasks": TASKS},
    "imtl_l": {"n_tasks": TASKS},
    "stch": {},
    "nash": {},
    "upgrad": {},
    "aligned_mtl": {},
    "dualproj": {},
    "dwa": {"n_tasks": TASKS, "window": 2},
    "equal": {},
    "fairgrad": {},
    "famo": {"n_tasks": TASKS},
    "gls": {},
    "imtl_g": {},
    "mgda": {},
    "pcgrad": {},
    "rlw": {},
    "si": {},
    "uw": {"n_tasks": TASKS},
}
QUICK = ("nash",)


def examples(seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(16, 8)).astype(np.float32)
    weights = np.random.default_rng(0).normal(size=(TASKS, 8, 2)).astype(np.float32)
    return {"x": x, "y": np.tanh(np.einsum("bf,tfo->tbo", x, weights)).transpose(1, 0, 2)}


def task_losses(params, batch, key):
    del key
    outputs = jnp.stack(MODEL.apply(params, batch["x"]), axis=1)
    # Scales that differ, so that the methods have something to balance.
    scales = 4.0 ** jnp.arange(TASKS)
    return scales * jnp.square(outputs - batch["y"]).mean((0, 2)), {}


@pytest.mark.parametrize("explicit", [False, True], ids=["auto", "explicit"])
@pytest.mark.parametrize(
    "method", [m if m in QUICK else pytest.param(m, marks=pytest.mark.slow) for m in METHODS]
)
def test_sharded_is_unsharded(method, explicit):
    tx = optax.chain(multitask(method, **METHODS[method]), optax.adam(1e-3))
    state = init_state(MODEL.init(jax.random.key(0)), tx, jax.random.key(1))
    step = make_step(task_losses, tx)
    sharded = shard_step(step, make_mesh(AXES, explicit=explicit), state, examples(0), rules=MLP_RULES)
    placed, plain = sharded.place_state(state), jax.jit(step)
    for n in range(20):
        state, metrics = plain(state, examples(n))
        placed, placed_metrics = sharded(placed, examples(n))
        np.testing.assert_allclose(placed_metrics["losses"], metrics["losses"], rtol=1e-5)
    kernel = placed.params["trunk"]["1"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (8, 32)
    for ours, theirs in zip(jax.tree.leaves(placed.params), jax.tree.leaves(state.params), strict=True):
        # Relative to the array's size: a single entry may pass through zero.
        assert np.linalg.norm(ours - theirs) <= 1e-5 * np.linalg.norm(theirs)


def sharded_jacobian(explicit):
    """A Jacobian as a model-sharded MLP of 64 x 128 hidden units has it, on the mesh."""
    mesh = make_mesh(AXES, explicit=explicit)
    params = mlp(8, (64, 128), (2,) * TASKS).init(jax.random.key(0))
    rng = np.random.default_rng(0)
    jac = jax.tree.map(lambda p: rng.normal(size=(TASKS, *p.shape)).astype(np.float32), params)
    placed = jax.tree.map(
        lambda leaf, s: jax.device_put(leaf, NamedSharding(mesh, P(None, *s.spec))),
        jac,
        shardings(params, mesh, MLP_RULES),
    )
    return mesh, jac, placed


@pytest.mark.parametrize("explicit", [False, True], ids=["auto", "explicit"])
@pytest.mark.parametrize("weigh", [nash, upgrad])
def test_aggregation_alone_sends_a_gram_matrix(weigh, explicit):
    mesh, jac, placed = sharded_jacobian(explicit)

    def aggregate(jac):
        return combine(weigh(gram(jac)), jac)

    with jax.set_mesh(mesh):
        compiled = jax.jit(aggregate).lower(placed).compile()
        result = compiled(placed)
    found, _ = _collectives(compiled.as_text())
    assert found, "nothing crosses the mesh: the Jacobian is not sharded"
    leaves = len(jax.tree.leaves(jac))
    # One T x T matrix in float32 for each leaf at the most, where the Jacobian has T P numbers.
    assert sum(c.size * c.times for c in found) <= leaves * TASKS**2 * 4
    assert {c.kind for c in found} == {"all-reduce"}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5), result, aggregate(jac))


@pytest.mark.parametrize("explicit", [False, True], ids=["auto", "explicit"])
def test_the_whole_step_sends_a_gram_matrix_more_than_a_mean_of_the_gradients(explicit):
    model = mlp(8, (256, 256), (2,) * TASKS, activation=jnp.tanh)
    mesh, batch = make_mesh(AXES, explicit=explicit), examples(0)

    def losses(params, batch, key):
        outputs = jnp.stack(model.apply(params, batch["x"]), axis=1)
        return jnp.square(outputs - batch["y"]).mean((0, 2)), {}

    def collectives(link):
        tx = optax.chain(link, optax.adam(1e-3))
        state = jax.eval_shape(lambda key: init_state(model.init(key), tx, key), jax.random.key(0))
        sharded = shard_step(make_step(losses, tx), mesh, state, batch, rules=MLP_RULES, fsdp=None)
        with jax.set_mesh(mesh):
            return Counter(_collectives(sharded.trace(state, batch).lower().compile().as_text())[0])

    mean = optax.stateless(lambda jacobian, _: jax.tree.map(lambda leaf: leaf.mean(0), jacobian))
    shapes = jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0)))
    needed, found = collectives(mean), collectives(multitask("nash"))
    # Data parallelism sums each device's shard of the Jacobian, and nothing as large as all of it.
    assert max(c.size for c in needed) > 4 * TASKS * 256 * 256 / AXES["model"]
    assert max(c.size for c in found) < 4 * TASKS * sum(leaf.size for leaf in shapes)
    more = sum(c.size * c.times for c in (found - needed).elements())
    assert 4 * TASKS**2 <= more <= 4 * TASKS**2 * (len(shapes) + 1)
