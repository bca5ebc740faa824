"""The train step: scalar and task losses, its options, its errors, and the same step on a mesh."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from jaxneg.train import Precision, init_state, make_mesh, make_step, shard_step

KEY = jax.random.key(0)
RULES = [("first", P(None, "model")), ("second", P("model", None))]


def mean_over_tasks():
    """The plainest aggregator: the mean of the tasks' gradients."""

    def update(jacobian, state, params=None, *, losses, key, **extra):
        del params, extra, key
        assert losses.ndim == 1
        return jax.tree.map(lambda j: j.mean(0), jacobian), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def network(seed=0, width=16):
    rng = np.random.default_rng(seed)
    return {
        "first": jnp.asarray(rng.normal(size=(6, width)), jnp.float32) / 3,
        "second": jnp.asarray(rng.normal(size=(width, 3)), jnp.float32) / 4,
        "bias": jnp.zeros(3),
    }


def examples(n=16, seed=1):
    rng = np.random.default_rng(seed)
    return {
        "x": rng.normal(size=(n, 6)).astype(np.float32),
        "y": rng.normal(size=(n, 3)).astype(np.float32),
        "mask": np.arange(n) % 5 != 0,
    }


def residuals(params, batch):
    hidden = jnp.tanh(batch["x"] @ params["first"])
    # Under explicit axes a contraction over a sharded axis has to say where its result goes.
    explicit = jax.sharding.AxisType.Explicit in jax.typeof(batch["x"]).sharding.mesh.axis_types
    out = P("data", None) if explicit else None
    return jnp.dot(hidden, params["second"], out_sharding=out) + params["bias"] - batch["y"]


def scalar_loss(params, batch, key):
    del key
    squares = jnp.square(residuals(params, batch))
    return squares.mean(), {"largest": squares.max()}


def task_losses(params, batch, key):
    del key
    squares = jnp.square(residuals(params, batch))
    return squares.mean(0), {"mean": squares.mean()}


def masked_loss(params, batch, key):
    del key
    count = batch["mask"].sum()
    total = jnp.where(batch["mask"][:, None], jnp.square(residuals(params, batch)), 0).sum()
    return total / count, {"weight": count}


def optimizer(loss_fn):
    adam = optax.adam(1e-2)
    return optax.chain(mean_over_tasks(), adam) if loss_fn is task_losses else adam


def run(loss_fn, steps=3, batch=None, seed=0, **options):
    tx = optimizer(loss_fn)
    step = jax.jit(make_step(loss_fn, tx, **options))
    state = init_state(network(seed), tx, KEY, precision=options.get("precision"))
    for _ in range(steps):
        state, metrics = step(state, examples() if batch is None else batch)
    return state, metrics


def assert_close(a, b, rtol=1e-5, atol=1e-7):
    chex.assert_trees_all_close(a, b, rtol=rtol, atol=atol)


# What a step computes


def test_scalar_step_is_optax_by_hand():
    tx, params, batch = optimizer(scalar_loss), network(), examples()
    (loss, aux), grads = jax.value_and_grad(scalar_loss, has_aux=True)(params, batch, KEY)
    updates, _ = tx.update(grads, tx.init(params), params)
    state, metrics = run(scalar_loss, steps=1)
    assert_close(state.params, optax.apply_updates(params, updates))
    expected = {
        "loss": loss,
        "grad_norm": optax.tree.norm(grads),
        "update_norm": optax.tree.norm(updates),
        **aux,
    }
    assert_close(metrics, expected)
    assert int(state.step) == 1


@pytest.mark.parametrize("jacobian", ["stacked", "sequential"])
@pytest.mark.parametrize("tasks", [1, 3])
def test_task_step_hands_the_jacobian_to_the_aggregator(jacobian, tasks):
    def losses(params, batch, key):
        return task_losses(params, batch, key)[0][:tasks], {}

    seen = {}

    def update(jac, state, params=None, *, losses, key, **extra):
        seen.update(jac=jac, losses=losses)
        return jax.tree.map(lambda j: j.mean(0), jac), state

    tx = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    params, batch = network(), examples()
    step = make_step(losses, tx, jacobian=jacobian)
    state, metrics = step(init_state(params, tx, KEY), batch)
    jac = jax.jacrev(lambda p: losses(p, batch, KEY)[0])(params)
    assert_close(seen["jac"], jac)
    assert_close(seen["losses"], losses(params, batch, KEY)[0])
    norms = jnp.sqrt(sum(jnp.square(j).reshape(tasks, -1).sum(1) for j in jax.tree.leaves(jac)))
    assert_close(metrics["grad_norm"], norms)
    assert_close(metrics["losses"], seen["losses"])
    assert_close(state.params, jax.tree.map(lambda p, j: p + j.mean(0), params, jac))


def test_value_and_key_reach_the_optimizer():
    def update(grads, state, params=None, *, value, key, **extra):
        return jax.tree.map(lambda g: value * g + 0 * jax.random.normal(key), grads), state

    tx = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    _, metrics = make_step(scalar_loss, tx)(init_state(network(), tx, KEY), examples())
    assert_close(metrics["update_norm"], metrics["loss"] * metrics["grad_norm"])


def test_each_step_has_its_own_key_and_repeats_it():
    def loss_fn(params, batch, key):
        noise = jax.random.normal(key)
        return params["w"].sum() * noise, {"noise": noise}

    tx = optax.sgd(0.0)
    step = jax.jit(make_step(loss_fn, tx))
    state = init_state({"w": jnp.ones(2)}, tx, KEY)
    batch, noise = jnp.ones(1), []
    for _ in range(3):
        state, metrics = step(state, batch)
        noise.append(float(metrics["noise"]))
    assert len(set(noise)) == 3
    resumed = init_state({"w": jnp.ones(2)}, tx, KEY)._replace(step=jnp.int32(2))
    assert float(step(resumed, batch)[1]["noise"]) == noise[2]


@pytest.mark.parametrize("accumulate", [1, 4])
def test_after_update_sees_the_losses_at_the_new_parameters(accumulate):
    tx = optax.chain(mean_over_tasks(), optax.adam(1e-2), optax.stateless(lambda u, p: u))
    step = make_step(task_losses, tx, accumulate=accumulate, after_update=lambda s, losses: (*s[:-1], losses))
    state, _ = step(init_state(network(), tx, KEY), examples())
    assert_close(state.opt_state[-1], task_losses(state.params, examples(), KEY)[0])


# Options


@pytest.mark.parametrize("loss_fn", [scalar_loss, task_losses, masked_loss])
def test_accumulation_is_the_whole_batch(loss_fn):
    whole, whole_metrics = run(loss_fn)
    parts, parts_metrics = run(loss_fn, accumulate=4)
    assert_close(parts.params, whole.params, rtol=1e-4, atol=1e-6)
    for metrics in (whole_metrics, parts_metrics):
        metrics.pop("largest", None)  # a maximum, of which the mean over microbatches is taken
    assert_close(parts_metrics, whole_metrics, rtol=1e-4)


def test_a_weight_for_each_task():
    def loss_fn(params, batch, key):
        squares, mask = jnp.square(residuals(params, batch)), batch["known"]
        return (squares * mask).sum(0) / mask.sum(0), {"weight": mask.sum(0)}

    tx = optax.chain(mean_over_tasks(), optax.sgd(0.1))
    batch = examples()
    batch["known"] = np.random.default_rng(2).random((16, 3)) < 0.5
    batch["known"][1::4, 2] = False  # the second of four microbatches lacks the third task: 0 / 0
    state = init_state(network(), tx, KEY)
    whole, whole_metrics = make_step(loss_fn, tx)(state, batch)
    parts, parts_metrics = make_step(loss_fn, tx, accumulate=4)(state, batch)
    assert_close(parts.params, whole.params, rtol=1e-4, atol=1e-6)
    assert_close(parts_metrics, whole_metrics, rtol=1e-4)


@settings(max_examples=6, deadline=None)
@given(accumulate=st.sampled_from([2, 3, 6]), seed=st.integers(0, 99))
def test_accumulation_for_any_split(accumulate, seed):
    batch, params, tx = examples(12, seed), network(seed), optax.sgd(0.1)
    state = init_state(params, tx, KEY)
    whole, _ = make_step(masked_loss, tx)(state, batch)
    parts, _ = make_step(masked_loss, tx, accumulate=accumulate)(state, batch)
    assert_close(parts.params, whole.params, rtol=1e-4, atol=1e-6)


def test_microbatches_of_bfloat16_gradients_add_up_in_float32():
    def loss_fn(params, batch, key):
        return (params["w"] * batch).mean(), {}

    seen = []
    tx = optax.stateless(lambda g, p: (seen.append(g["w"]), g)[1])
    params = {"w": jnp.ones((), jnp.bfloat16)}
    batch = jnp.asarray([256.0] + [1.0] * 255, jnp.bfloat16)
    make_step(loss_fn, tx, accumulate=256)(init_state(params, tx, KEY), batch)
    assert seen[0].dtype == jnp.bfloat16
    assert float(seen[0]) == float(jnp.bfloat16(511 / 256))


@pytest.mark.parametrize("remat", [True, "dots_saveable"])
@pytest.mark.parametrize("loss_fn", [scalar_loss, task_losses])
def test_remat_changes_nothing(loss_fn, remat):
    state, metrics = run(loss_fn, remat=remat)
    expected, expected_metrics = run(loss_fn)
    assert_close(state.params, expected.params)
    assert_close(metrics, expected_metrics)


def test_remat_recomputes():
    def count(remat):
        tx = optimizer(scalar_loss)
        step = make_step(scalar_loss, tx, remat=remat)
        return str(jax.make_jaxpr(step)(init_state(network(), tx, KEY), examples())).count("tanh")

    assert count(True) > count(False)


def test_mixed_precision():
    seen = {}

    def loss_fn(params, batch, key):
        seen.update(params=params["first"].dtype, x=batch["x"].dtype, mask=batch["mask"].dtype)
        loss, aux = scalar_loss(params, batch, key)
        return loss, aux | {"count": batch["mask"].sum()}

    full, full_metrics = run(scalar_loss)
    state, metrics = run(loss_fn, precision=Precision())
    assert seen == {"params": jnp.bfloat16, "x": jnp.bfloat16, "mask": jnp.bool_}
    assert metrics["loss"].dtype == metrics["largest"].dtype == jnp.float32
    assert metrics["count"].dtype == jnp.int32
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    assert_close(metrics["loss"], full_metrics["loss"], rtol=3e-2)
    assert_close(state.params, full.params, rtol=3e-2, atol=3e-2)


def test_precision_keeps_the_arrays_that_it_is_told_to():
    def loss_fn(params, batch, key):
        return jnp.mean(params * batch["x"]), {
            "narrow": jnp.float32(batch["x"].dtype == jnp.bfloat16),
            "kept": jnp.float32(batch["forget"]["ref_seq_nll"].dtype == jnp.float32),
        }

    tx = optax.sgd(0.1)
    step = make_step(loss_fn, tx, precision=Precision(keep="ref_seq_nll$"))
    batch = {"x": jnp.ones(4), "forget": {"ref_seq_nll": jnp.ones(4)}}
    _, metrics = step(init_state(jnp.ones(4), tx, KEY), batch)
    assert (metrics["narrow"], metrics["kept"]) == (1, 1)


def test_precision_casts_the_initial_parameters():
    tx = optax.sgd(0.1)
    state = init_state(network(), tx, KEY, precision=Precision(params=jnp.bfloat16))
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("bfloat16")}


def test_float64_stays_float64(x64):
    tx = optax.adam(1e-2)
    params = jax.tree.map(lambda p: np.asarray(p, np.float64), network())
    batch = {name: x.astype(np.float64) if name != "mask" else x for name, x in examples().items()}
    state, metrics = make_step(masked_loss, tx, accumulate=2)(init_state(params, tx, KEY), batch)
    whole, _ = make_step(masked_loss, tx)(init_state(params, tx, KEY), batch)
    assert metrics["loss"].dtype == metrics["grad_norm"].dtype == jnp.float64
    assert_close(state.params, whole.params, rtol=1e-12, atol=1e-12)


# Bad input


def first_step(loss_fn, params=None, batch=None, tx=None, **options):
    tx = tx or optax.sgd(0.1)
    params = network() if params is None else params
    return make_step(loss_fn, tx, **options)(
        init_state(params, tx, KEY), examples() if batch is None else batch
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate": 0}, "accumulate: expected at least 1, got 0"),
        (
            {"jacobian": "both"},
            "jacobian: expected 'stacked', 'sequential', 'representation' or 'weighted', got 'both'",
        ),
        ({"remat": "dots"}, "remat: expected a bool or one of .*'dots_saveable'.*got 'dots'"),
        ({"remat": "save_only_these_names"}, "remat: expected a bool or one of"),
    ],
)
def test_option_that_does_not_exist(options, message):
    with pytest.raises(ValueError, match=message):
        make_step(scalar_loss, optax.sgd(0.1), **options)


@pytest.mark.parametrize(
    ("result", "error", "message"),
    [
        ((jnp.zeros(0), {}), ValueError, r"at least one task, got losses of shape \(0,\)"),
        ((jnp.zeros((2, 2)), {}), ValueError, r"a scalar loss or one for each task, got shape \(2, 2\)"),
        ((jnp.int32(1), {}), TypeError, "a floating-point loss, got int32"),
        ((jnp.ones(()), 3.0), TypeError, "expected aux to be a mapping, got float"),
        (jnp.ones(()), TypeError, r"expected \(loss, aux\), got"),
        ((jnp.ones(()), {"grad_norm": 1.0}), ValueError, r"\['grad_norm'\] would hide"),
    ],
)
def test_bad_loss(result, error, message):
    with pytest.raises(error, match=message):
        first_step(lambda params, batch, key: result)


def test_integer_parameters():
    with pytest.raises(TypeError, match="'embed/table' has dtype int32; parameters must be floating-point"):
        init_state({"embed": {"table": jnp.arange(3)}}, optax.sgd(0.1), KEY)
    state = init_state(network(), optax.sgd(0.1), KEY)._replace(params={"steps": jnp.arange(3)})
    with pytest.raises(TypeError, match="'steps' has dtype int32"):
        make_step(scalar_loss, optax.sgd(0.1))(state, examples())


def test_parameters_of_another_precision():
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), network())
    with pytest.raises(TypeError, match=r"'bias' has dtype bfloat16; precision.params is float32"):
        first_step(scalar_loss, params=params, precision=Precision())


def test_empty_batch():
    with pytest.raises(ValueError, match=r"batch: 'mask' is empty, of shape \(0,\)"):
        first_step(scalar_loss, batch=examples(0))


def test_batch_that_does_not_split():
    with pytest.raises(ValueError, match=r"batch: 'mask' of shape \(16,\) does not split into accumulate=3"):
        first_step(scalar_loss, accumulate=3)


def test_weight_of_a_wrong_shape():
    def loss_fn(params, batch, key):
        return scalar_loss(params, batch, key)[0], {"weight": jnp.ones(2)}

    with pytest.raises(ValueError, match=r"aux\['weight'\]: expected shape \(\) or \(\), got \(2,\)"):
        first_step(loss_fn, accumulate=2)


def test_task_losses_without_an_aggregator():
    with pytest.raises(ValueError, match="task losses need an aggregator as the first link"):
        first_step(task_losses)


# The same step on a mesh

MESHES = {
    "auto": ({"data": 2, "model": 4}, False, RULES, None),
    "explicit": ({"data": 2, "model": 4}, True, RULES, None),
    "auto-fsdp": ({"data": 8}, False, (), "data"),
    "explicit-fsdp": ({"data": 8}, True, (), "data"),
}


@pytest.mark.parametrize(
    ("loss_fn", "options"),
    [
        pytest.param(scalar_loss, {}, marks=pytest.mark.slow),
        (task_losses, {}),
        pytest.param(task_losses, {"accumulate": 2, "remat": True}, marks=pytest.mark.slow),
    ],
    ids=["scalar", "tasks", "tasks-accumulate-remat"],
)
@pytest.mark.parametrize("kind", MESHES)
def test_sharded_is_unsharded(kind, loss_fn, options):
    axes, explicit, rules, fsdp = MESHES[kind]
    tx, params = optimizer(loss_fn), network(width=32)

    def noisy(params, batch, key):
        loss, aux = loss_fn(params, batch, key)
        return loss * (1 + 0.1 * jax.random.normal(key, loss.shape)), aux

    step = make_step(noisy, tx, **options)
    plain, state = jax.jit(step), init_state(params, tx, KEY)
    mesh = make_mesh(axes, explicit=explicit)
    sharded = shard_step(step, mesh, state, examples(), rules=rules, fsdp=fsdp, min_size=1)
    placed = sharded.place_state(state)
    for n in range(20):
        batch = examples(seed=n)
        state, metrics = plain(state, batch)
        placed, placed_metrics = sharded(placed, sharded.place_batch(batch))
        assert_close(placed_metrics, metrics)
    assert_close(placed.params, state.params, atol=1e-6)
    part = 32 // mesh.size * (2 if rules else 1)
    assert placed.params["first"].addressable_shards[0].data.shape == (6, part)
    mu = placed.opt_state[1][0].mu if loss_fn is task_losses else placed.opt_state[0].mu
    assert mu["first"].sharding.is_equivalent_to(placed.params["first"].sharding, 2)


@pytest.mark.parametrize("placed", [False, True])
@pytest.mark.parametrize("explicit", [False, True])
def test_one_compilation_and_donated_state(explicit, placed):
    traces = []

    def loss_fn(params, batch, key):
        traces.append(1)
        return scalar_loss(params, batch, key)

    tx = optax.adam(1e-2)
    original, batch = init_state(network(), tx, KEY), examples()
    mesh = make_mesh({"data": 8}, explicit=explicit)
    sharded = shard_step(make_step(loss_fn, tx), mesh, original, batch)
    batch = sharded.place_batch(batch) if placed else batch
    first = sharded.place_state(original)
    second, _ = sharded(first, batch)
    third, _ = sharded(second, batch)
    assert len(traces) == 1
    for given_away in (first, second):
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves((given_away.params, given_away.opt_state)))
    again = sharded.place_state(third)
    sharded(again, batch)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((original, third)))


def test_metrics_are_on_every_device():
    sharded = shard_step(
        make_step(lambda p, b, k: (scalar_loss(p, b, k)[0], {"each": b["x"][:, 0]}), tx := optax.sgd(0.1)),
        make_mesh({"data": 8}),
        state := init_state(network(), tx, KEY),
        examples(),
    )
    _, metrics = sharded(sharded.place_state(state), examples())
    assert metrics["each"].is_fully_replicated
    np.testing.assert_array_equal(metrics["each"], examples()["x"][:, 0])


def test_batch_that_does_not_divide_the_mesh():
    tx = optax.sgd(0.1)
    state, step = init_state(network(), tx, KEY), make_step(scalar_loss, tx)
    mesh = make_mesh({"data": 8})
    with pytest.raises(
        ValueError, match=r"'mask': batch_spec .* axis 0 of its shape \(9,\) does not divide by 8"
    ):
        shard_step(step, mesh, state, examples(9))


def test_the_next_batch_may_have_another_size_that_divides():
    tx = optax.sgd(0.1)
    state, step = init_state(network(), tx, KEY), make_step(scalar_loss, tx)
    sharded = shard_step(step, make_mesh({"data": 8}), state, examples(16))
    state, _ = sharded(sharded.place_state(state), examples(8))
    with pytest.raises(ValueError, match=r"divi[ds]"):
        sharded(state, examples(9))
