"""Gram matrices and combinations: against NumPy, in low precision, and sharded without gathering."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxneg.mtl import combine, gram, gram_sharded
from jaxneg.train import collective_bytes, make_mesh

TASKS = 3
SPECS = {
    "parameters": {"kernel": P(None, "data", "model"), "bias": P(None, "model"), "replicated": P()},
    "tasks": {"kernel": P(None, None, "model"), "bias": P(None, "model"), "replicated": P(None, "data")},
}


def jacobian(dtype=np.float32, tasks=TASKS, seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"kernel": (16, 32), "bias": (32,), "replicated": (8,)}
    return {name: jnp.asarray(rng.normal(size=(tasks, *shape)), dtype) for name, shape in shapes.items()}


def rows(jac):
    return np.concatenate(
        [np.asarray(leaf, np.float64).reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(jac)], axis=1
    )


@pytest.mark.parametrize("tasks", [1, 3, 9])
@pytest.mark.parametrize("jitted", [True, False])
def test_gram_and_combine_are_the_products(tasks, jitted):
    jac = jacobian(tasks=tasks)
    J = rows(jac)
    weights = jnp.linspace(-1, 2, tasks)
    G, direction = ((jax.jit(f) if jitted else f)(*a) for f, a in ((gram, (jac,)), (combine, (weights, jac))))
    np.testing.assert_allclose(G, J @ J.T, rtol=1e-5, atol=1e-4)
    assert jax.tree.map(jnp.shape, direction) == jax.tree.map(lambda leaf: leaf.shape[1:], jac)
    expected = np.asarray(weights, np.float64) @ J
    np.testing.assert_allclose(rows(jax.tree.map(lambda leaf: leaf[None], direction))[0], expected, atol=1e-5)


def test_float64_stays(x64):
    jac = jacobian(np.float64)
    J = rows(jac)
    G = gram(jac)
    assert G.dtype == jnp.float64
    np.testing.assert_allclose(G, J @ J.T, rtol=1e-13, atol=1e-12)
    direction = combine(jnp.ones(TASKS), jac)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(direction)} == {"float64"}


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_is_accumulated_in_float32(dtype):
    # 4,097 ones: bfloat16 and float16 cannot even count them.
    jac = {"w": jnp.ones((2, 4097), dtype)}
    G = gram(jac)
    assert G.dtype == jnp.float32
    np.testing.assert_array_equal(G, 4097)
    # 1,024 tasks of weight one, rounded once at the end.
    direction = combine(jnp.ones(1024), {"w": jnp.ones((1024, 2), dtype)})["w"]
    assert direction.dtype == dtype
    np.testing.assert_array_equal(direction, 1024)


def test_gradient_of_the_gram_matrix():
    jac = jacobian()
    cotangent = jnp.arange(9.0).reshape(3, 3)
    gradient = jax.grad(lambda jac: jnp.sum(cotangent * gram(jac)))(jac)
    expected = np.asarray(cotangent + cotangent.T) @ rows(jac)
    np.testing.assert_allclose(rows(gradient), expected, rtol=1e-4, atol=1e-4)


def test_a_batch_of_jacobians():
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(jacobian(seed=n) for n in range(4)))
    together = jax.jit(jax.vmap(gram))(batch)
    for n in range(4):
        np.testing.assert_allclose(together[n], gram(jacobian(seed=n)), rtol=1e-5, atol=1e-4)


def placed(jac, mesh, specs):
    return {name: jax.device_put(leaf, NamedSharding(mesh, specs[name])) for name, leaf in jac.items()}


@pytest.mark.parametrize("explicit", [False, True], ids=["auto", "explicit"])
@pytest.mark.parametrize("layout", SPECS)
def test_sharded_is_unsharded_and_sends_only_the_gram_matrix(layout, explicit):
    mesh = make_mesh({"data": 2, "model": 4}, explicit=explicit)
    jac, specs = jacobian(), SPECS[layout]
    sharded = placed(jac, mesh, specs)

    def both(weights, jac):
        return gram(jac), combine(weights, jac)

    weights = jnp.array([1.0, -2.0, 0.5])
    with jax.set_mesh(mesh):
        compiled = jax.jit(both).lower(weights, sharded).compile()
        G, direction = compiled(weights, sharded)
    expected, expected_direction = both(weights, jac)
    np.testing.assert_allclose(G, expected, rtol=1e-5, atol=1e-4)
    for name, leaf in direction.items():
        np.testing.assert_allclose(leaf, expected_direction[name], rtol=1e-5, atol=1e-5)
        # Each device has combined its own block.
        assert leaf.sharding.is_equivalent_to(NamedSharding(mesh, P(*specs[name][1:])), leaf.ndim)
    moved = sum(collective_bytes(compiled.as_text()).values())
    assert 0 < moved <= len(jac) * TASKS**2 * 4


@pytest.mark.parametrize("explicit", [False, True], ids=["auto", "explicit"])
def test_tasks_on_different_devices(explicit):
    mesh = make_mesh({"data": 2, "model": 4}, explicit=explicit)
    jac = jacobian(tasks=4)
    specs = {"kernel": P("model", "data"), "bias": P("model"), "replicated": P("data")}
    with jax.set_mesh(mesh):
        G = jax.jit(gram)(placed(jac, mesh, specs))
    np.testing.assert_allclose(G, gram(jac), rtol=1e-5, atol=1e-4)


def test_gram_inside_shard_map():
    mesh = make_mesh({"data": 2, "model": 4})
    jac = jacobian()
    specs = {
        "kernel": P(None, "data", "model"),
        "bias": P(None, ("data", "model")),
        "replicated": P(None, ("data", "model")),
    }
    inside = jax.shard_map(
        partial(gram_sharded, axis_name=("data", "model")), mesh=mesh, in_specs=(specs,), out_specs=P()
    )
    compiled = jax.jit(inside).lower(placed(jac, mesh, specs)).compile()
    np.testing.assert_allclose(compiled(placed(jac, mesh, specs)), gram(jac), rtol=1e-5, atol=1e-4)
    moved = collective_bytes(compiled.as_text())
    assert 0 < moved["all-reduce"] <= 2 * TASKS**2 * 4
    assert sum(moved.values()) == moved["all-reduce"]
