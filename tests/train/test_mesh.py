"""Meshes, partition rules, and optimizer state that lies where its parameters lie."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxneg.train import batch_shardings, init_state, make_mesh, partition_specs, shardings
from jaxneg.train.mesh import path_name

PARAMS = {
    "mlp": {"kernel": jnp.ones((16, 32)), "bias": jnp.ones(32)},
    "head": {"kernel": jnp.ones((32, 3))},
}
RULES = [("mlp/kernel", P("data", "model")), ("bias", P("model"))]


@pytest.fixture(scope="module")
def mesh():
    return make_mesh({"data": 2, "model": 4})


def test_mesh_has_the_described_axes_auto_by_default(mesh):
    assert dict(mesh.shape) == {"data": 2, "model": 4}
    assert set(mesh.axis_types) == {AxisType.Auto}


def test_mesh_is_explicit_on_request():
    mesh = make_mesh({"data": 8}, explicit=True)
    assert set(mesh.axis_types) == {AxisType.Explicit}


def test_one_axis_takes_the_rest():
    assert dict(make_mesh({"data": -1, "model": 2}).shape) == {"data": 4, "model": 2}


def test_mesh_over_some_devices():
    mesh = make_mesh({"data": 4}, devices=jax.devices()[:4])
    assert mesh.devices.size == 4


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"data": 3, "model": 2}, r"\(3 x 2\) does not fit 8 devices"),
        ({"data": -1, "model": 3}, r"\(-1 x 3\) does not fit 8 devices"),
        ({"data": 16, "model": -1}, r"\(16 x -1\) does not fit 8 devices"),
        ({"data": -1, "model": -1}, "at most one of them -1"),
        ({"data": 0, "model": 8}, "expected positive sizes"),
        ({}, "expected positive sizes"),
    ],
)
def test_mesh_that_does_not_fit(axes, message):
    with pytest.raises(ValueError, match=message):
        make_mesh(axes)


def test_first_rule_wins_then_fsdp_then_replicated(mesh):
    rules = [("head", P(None)), *RULES, ("kernel", P("model"))]
    specs = partition_specs(PARAMS, mesh, rules, fsdp="data", min_size=1)
    assert specs["mlp"]["kernel"] == P("data", "model")
    assert specs["mlp"]["bias"] == P("model")
    assert specs["head"]["kernel"] == P(None)
    specs = partition_specs(PARAMS, mesh, (), fsdp="data", min_size=64)
    assert specs["mlp"]["kernel"] == P(None, "data")
    assert specs["mlp"]["bias"] == P()
    assert partition_specs(PARAMS, mesh)["mlp"]["kernel"] == P()


@settings(max_examples=50, deadline=None)
@given(shape=st.lists(st.integers(1, 12), max_size=4).map(tuple))
def test_fsdp_shards_the_largest_divisible_axis(shape):
    mesh = make_mesh({"data": 4, "model": 2})
    leaf = jax.ShapeDtypeStruct(shape, jnp.float32)
    spec = partition_specs(leaf, mesh, fsdp="data", min_size=1)
    divisible = [size for size in shape if size % 4 == 0]
    if divisible:
        assert spec[-1] == "data"
        assert shape[len(spec) - 1] == max(divisible)
    else:
        assert spec == P()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (P("modle"), r"'head/kernel': rule 'head' gives .*axes \('data', 'model'\), not 'modle'"),
        (P(None, "model"), r"axis 1 of its shape \(32, 3\) does not divide by 4"),
        (P(("data", "model"), "model"), "names a mesh axis twice"),
        (P("data", None, None), r"longer than the rank of its shape \(32, 3\)"),
    ],
)
def test_rule_that_does_not_fit(mesh, spec, message):
    with pytest.raises(ValueError, match=message):
        partition_specs(PARAMS, mesh, [("head", spec)])


def test_fsdp_axis_that_is_missing(mesh):
    with pytest.raises(ValueError, match=r"fsdp: the mesh has axes \('data', 'model'\), not 'fsdp'"):
        partition_specs(PARAMS, mesh, fsdp="fsdp")


def test_batch_that_does_not_divide(mesh):
    with pytest.raises(ValueError, match=r"'x': batch_spec gives .* axis 0 of its shape \(9, 2\) .* by 2"):
        batch_shardings({"x": jnp.ones((9, 2))}, mesh, P("data"))
    assert batch_shardings({"scale": jnp.ones(())}, mesh, P("data"))["scale"].spec == P()


def _previous_jacobian(tasks):
    """An aggregator whose state holds a Jacobian."""
    return optax.GradientTransformation(
        lambda params: {
            "previous": jax.tree.map(lambda p: jnp.stack([p] * tasks), params),
            "gram": jnp.eye(tasks),
        },
        lambda updates, state, params=None: (updates, state),
    )


LABELS = {"mlp": {"kernel": "fast", "bias": "slow"}, "head": {"kernel": "slow"}}
MASK = {"mlp": {"kernel": True, "bias": False}, "head": {"kernel": True}}


@pytest.mark.parametrize(
    "tx",
    [
        optax.adamw(1e-3),
        optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(1e-3, 10))),
        optax.multi_transform({"fast": optax.adam(1e-2), "slow": optax.sgd(1e-3, momentum=0.9)}, LABELS),
        optax.masked(optax.adamw(1e-3), MASK),
        optax.MultiSteps(optax.inject_hyperparams(optax.adam)(1e-3), 2).gradient_transformation(),
        optax.chain(_previous_jacobian(5), optax.adam(1e-3)),
        optax.adafactor(1e-3, min_dim_size_to_factor=8),
    ],
    ids=["adamw", "chain", "multi_transform", "masked", "multi_steps", "aggregator", "adafactor"],
)
def test_optimizer_state_follows_its_parameters(mesh, tx):
    state = jax.eval_shape(lambda key: init_state(PARAMS, tx, key), jax.random.key(0))
    specs = partition_specs(state, mesh, RULES)
    assert specs.params["mlp"]["kernel"] == P("data", "model")
    assert specs.step == P()
    assert specs.key == P()
    leaves = jax.tree_util.tree_leaves_with_path(state.opt_state)
    followed = jax.tree.leaves(specs.opt_state, is_leaf=lambda x: isinstance(x, P))
    expected = {"kernel (16, 32)": P("data", "model"), "kernel (5, 16, 32)": P(None, "data", "model")}
    expected |= {"bias (32,)": P("model"), "bias (5, 32)": P(None, "model"), "kernel (5, 32, 3)": P(None)}
    found = set()
    for (path, leaf), spec in zip(leaves, followed, strict=True):
        kind = f"{path_name(path).split('/')[-1]} {leaf.shape}"
        assert spec == expected.get(kind, P()), path_name(path)
        found.add(kind)
    assert found & set(expected)
    placed = jax.device_put(
        jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), state._replace(key=jnp.zeros(()))),
        shardings(state, mesh, RULES),
    )
    assert placed.params["mlp"]["kernel"].addressable_shards[0].data.shape == (8, 8)


def test_the_longest_path_decides(mesh):
    params = {"w": jnp.ones((8, 8)), "inner": {"w": jnp.ones((8, 8))}}
    state = init_state(params, optax.adam(1e-3), jax.random.key(0))
    specs = partition_specs(state, mesh, [("inner/w", P("model")), ("w", P("data"))])
    mu = specs.opt_state[0].mu
    assert mu["inner"]["w"] == P("model")
    assert mu["w"] == P("data")


class AveragedState(NamedTuple):
    """A train state of another method, with a copy of the parameters."""

    step: jax.Array
    params: Any
    teacher: Any
    opt_state: Any


def test_copies_of_the_parameters_follow_them(mesh):
    state = AveragedState(jnp.zeros(()), PARAMS, PARAMS, optax.adam(1e-3).init(PARAMS))
    specs = partition_specs(state, mesh, RULES)
    assert specs.teacher == specs.params
    assert specs.teacher["mlp"]["kernel"] == P("data", "model")
    assert specs.step == P()
