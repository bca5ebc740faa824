"""The ways in which the step pulls task losses back: one argument, the same update, on a mesh too."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxneg.mtl import multitask, task_grads_rep
from jaxneg.train import Precision, SplitLoss, init_state, make_mesh, make_step, shard_step

# Compilation makes these the dearest tests: they are left to the slow suite.
pytestmark = pytest.mark.slow

TASKS, FEATURES, WIDTH, EXAMPLES = 3, 6, 16, 16
KEY = jax.random.key(0)


def encode(encoder, batch, key):
    del key
    return jnp.tanh(jnp.einsum("...bf,fw->...bw", batch["x"], encoder["kernel"]))


def head_losses(heads, Z, batch, key):
    del key
    own = Z.ndim == 3
    outputs = jnp.einsum("tbw,wt->bt" if own else "bw,wt->bt", Z, heads["kernel"])
    return jnp.mean((outputs - batch["y"]) ** 2, axis=0), {"size": jnp.mean(Z**2)}


SPLIT = SplitLoss(encode, head_losses)
OWN = SplitLoss(encode, head_losses, own_inputs=True)


def parameters():
    rng = np.random.default_rng(0)
    return {
        "encoder": {"kernel": jnp.asarray(rng.normal(size=(FEATURES, WIDTH)), jnp.float32) / 3},
        "heads": {"kernel": jnp.asarray(rng.normal(size=(WIDTH, TASKS)), jnp.float32) / 4},
    }


def examples(seed=1, own=False):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(TASKS, EXAMPLES, FEATURES) if own else (EXAMPLES, FEATURES))
    y = rng.normal(size=(EXAMPLES, TASKS)) * 3.0 ** np.arange(TASKS)
    return {"x": x.astype(np.float32), "y": y.astype(np.float32)}


def in_encoder(path):
    return path.startswith("encoder/")


def transform(method, **options):
    return optax.chain(
        multitask(method, n_tasks=TASKS, shared=in_encoder, head_weighting="task", **options),
        optax.adam(1e-2),
    )


def trained(split, tx, jacobian, own=False, steps=3, **options):
    step = jax.jit(make_step(split, tx, jacobian=jacobian, **options))
    state = init_state(parameters(), tx, KEY)
    for number in range(steps):
        state, metrics = step(state, examples(number, own))
    return state, metrics


def close(found, expected, rtol=1e-4):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-5), found, expected)


@pytest.mark.parametrize("own", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("jacobian", ["sequential", "representation", "weighted"])
def test_all_ways_are_one_where_the_weights_do_not_depend_on_gradients(jacobian, own):
    split = OWN if own else SPLIT
    expected, expected_metrics = trained(split, transform("uw"), "stacked", own)
    state, metrics = trained(split, transform("uw"), jacobian, own)
    close(state.params, expected.params)
    close(state.opt_state, expected.opt_state)
    for name in ("losses", "update_norm", "size"):
        close(metrics[name], expected_metrics[name])
    if jacobian == "sequential":
        close(metrics["grad_norm"], expected_metrics["grad_norm"])
    elif jacobian == "representation":
        assert metrics["grad_norm"].shape == (TASKS,)
    else:
        assert "grad_norm" not in metrics


def test_sequential_is_stacked_with_a_solver():
    expected, _ = trained(SPLIT, transform("nash"), "stacked")
    state, _ = trained(SPLIT, transform("nash"), "sequential")
    close(state.params, expected.params)


@pytest.mark.parametrize("own", [False, True])
def test_representation_is_what_the_functions_give(own):
    split, batch, params = (OWN if own else SPLIT), examples(0, own), parameters()
    tx = transform("mgda")
    (losses, _), jac, representation = task_grads_rep(
        encode, head_losses, params, batch, KEY, has_aux=True, own_inputs=own
    )
    updates, _ = tx.update(jac, tx.init(params), params, losses=losses, representation=representation)
    state, metrics = trained(split, tx, "representation", own, steps=1)
    close(state.params, optax.apply_updates(params, updates))
    close(metrics["losses"], losses)


@pytest.mark.slow
@pytest.mark.parametrize("explicit", [False, True], ids=["auto", "explicit"])
@pytest.mark.parametrize("jacobian", ["sequential", "representation", "weighted"])
def test_sharded_is_unsharded(jacobian, explicit):
    tx = transform("uw" if jacobian == "weighted" else "mgda")
    step = make_step(SPLIT, tx, jacobian=jacobian)
    state = init_state(parameters(), tx, KEY)
    mesh = make_mesh({"data": 8}, explicit=explicit)
    sharded = shard_step(step, mesh, state, examples(), min_size=1)
    placed, plain = sharded.place_state(state), jax.jit(step)
    for number in range(10):
        state, metrics = plain(state, examples(number))
        placed, placed_metrics = sharded(placed, examples(number))
        np.testing.assert_allclose(placed_metrics["losses"], metrics["losses"], rtol=1e-5)
    close(jax.device_get(placed.params), state.params)


@pytest.mark.slow
def test_mixed_precision_and_recomputation():
    expected, _ = trained(SPLIT, transform("mgda"), "representation")
    again, _ = trained(SPLIT, transform("mgda"), "representation", remat=True)
    close(again.params, expected.params)
    mixed, metrics = trained(SPLIT, transform("mgda"), "representation", precision=Precision(keep="y"))
    assert metrics["losses"].dtype == jnp.float32
    close(mixed.params, expected.params, rtol=0.1)


def test_mistakes():
    with pytest.raises(TypeError, match="loss_fn: jacobian='representation' needs a SplitLoss, got function"):
        make_step(lambda p, b, k: (p, {}), transform("mgda"), jacobian="representation")
    for jacobian in ("representation", "weighted"):
        with pytest.raises(ValueError, match=f"accumulate: expected 1 with jacobian='{jacobian}', got 2"):
            make_step(SPLIT, transform("mgda"), jacobian=jacobian, accumulate=2)
    one = SplitLoss(encode, lambda *given: (head_losses(*given)[0].sum(), {}))
    with pytest.raises(ValueError, match="loss_fn: expected one loss for each task with jacobian='repre"):
        trained(one, transform("mgda"), "representation")
