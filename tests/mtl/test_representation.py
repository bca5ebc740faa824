"""Gradients in representation space, one pullback of weighted losses, leaves that the Gram matrix reads."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxneg.mtl import (
    METHODS_OF_LOSSES,
    aligned_mtl,
    combine,
    graddrop_draws,
    graddrop_representation,
    gradnorm_loss,
    gram,
    imtl_g,
    mgda,
    multitask,
    nash,
    task_grads,
    task_grads_rep,
)

TASKS, EXAMPLES, FEATURES, WIDTH = 3, 7, 5, 6
RNG = np.random.default_rng(0)
PARAMS = {
    "encoder": {"first": jnp.asarray(RNG.normal(size=(FEATURES, WIDTH)), jnp.float32)},
    "heads": jnp.asarray(RNG.normal(size=(TASKS, WIDTH)), jnp.float32),
}
X = jnp.asarray(RNG.normal(size=(EXAMPLES, FEATURES)), jnp.float32)
OWN_X = jnp.asarray(RNG.normal(size=(TASKS, EXAMPLES, FEATURES)), jnp.float32)
SCALES = 3.0 ** jnp.arange(TASKS)


def encode(encoder, x):
    return jnp.tanh(x @ encoder["first"])


def head_losses(heads, Z, x):
    """Of one batch for all tasks, or of one for each."""
    del x
    Z = jnp.broadcast_to(Z, (TASKS, *Z.shape[-2:]))
    return SCALES * jnp.mean((jnp.einsum("tbw,tw->tb", Z, heads) - 1) ** 2, axis=1)


def loss_fn(params, x):
    return head_losses(params["heads"], encode(params["encoder"], x), x)


def close(found, expected, rtol=1e-4):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-5), found, expected)


def in_representation(method, x=X, own_inputs=False, key=None, **options):
    losses, jac, rep = task_grads_rep(encode, head_losses, PARAMS, x, own_inputs=own_inputs)
    link = multitask(method, **options)
    return link.update(jac, link.init(PARAMS), PARAMS, losses=losses, key=key, representation=rep)


@pytest.mark.parametrize("own_inputs", [False, True])
def test_gradients(own_inputs):
    x = OWN_X if own_inputs else X

    @jax.jit
    def compute(params):
        losses, jac, rep = task_grads_rep(encode, head_losses, params, x, own_inputs=own_inputs)
        return losses, jac, rep.grads, rep.pullback(rep.grads if own_inputs else rep.grads.sum(0))

    losses, jac, grads, of_the_sum = compute(PARAMS)
    Z = encode(PARAMS["encoder"], x)
    expected = jax.jacrev(lambda Z: head_losses(PARAMS["heads"], Z, x))(Z)
    if own_inputs:
        expected = expected[jnp.arange(TASKS), jnp.arange(TASKS)]
    whole = task_grads(loss_fn, PARAMS, x)
    close(losses, whole[0])
    close(grads, expected)
    close(jac["heads"], whole[1]["heads"])
    # The encoder's gradient is linear in that of the representation.
    close(of_the_sum, combine(jnp.ones(TASKS), whole[1]["encoder"]))


@pytest.mark.parametrize("own_inputs", [False, True])
def test_equal_weights_give_the_gradient_of_the_sum(own_inputs):
    x = OWN_X if own_inputs else X
    direction, _ = in_representation("equal", x, own_inputs)
    close(direction, jax.grad(lambda params: loss_fn(params, x).sum())(PARAMS))


@pytest.mark.parametrize("own_inputs", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("method", "function"),
    [
        ("mgda", mgda),
        ("imtl_g", imtl_g),
        ("aligned_mtl", aligned_mtl),
        ("nash", partial(nash, max_norm=None)),
    ],
)
def test_weights_are_those_of_the_representation(method, function, own_inputs):
    options = {"max_norm": None} if method == "nash" else {}
    x = OWN_X if own_inputs else X
    direction, _ = in_representation(method, x, own_inputs, **options)
    _, _, rep = task_grads_rep(encode, head_losses, PARAMS, x, own_inputs=own_inputs)
    rows = np.asarray(rep.grads).reshape(TASKS, -1)
    weights = function(jnp.asarray(rows @ rows.T))
    _, jac = task_grads(loss_fn, PARAMS, x)
    close(direction["encoder"], combine(weights, jac["encoder"]))
    close(direction["heads"], combine(jnp.ones(TASKS), jac["heads"]))


def test_nash_clips_in_representation_space():
    direction, _ = in_representation("nash", max_norm=0.5)
    free, _ = in_representation("nash", max_norm=None)
    # At the solution the combined gradient of three tasks has norm sqrt(3).
    close(direction["encoder"], jax.tree.map(lambda g: g * 0.5 / np.sqrt(TASKS), free["encoder"]), 1e-3)


@pytest.mark.parametrize("own_inputs", [False, True])
@pytest.mark.parametrize("leak", [0.0, 0.25])
def test_graddrop_by_hand(own_inputs, leak):
    """LibMTL's loop over features and tasks, in NumPy."""
    x, key = (OWN_X if own_inputs else X), jax.random.key(3)
    _, _, rep = task_grads_rep(encode, head_losses, PARAMS, x, own_inputs=own_inputs)
    grads, Z = np.asarray(rep.grads, np.float64), np.asarray(rep.values, np.float64)
    U = np.asarray(graddrop_draws(key, [rep.grads[:, 0]])[0])
    kept = np.zeros_like(grads)
    for feature in range(WIDTH):
        signed = [
            np.sum(grads[t, :, feature] * np.sign((Z[t] if own_inputs else Z)[:, feature]))
            for t in range(TASKS)
        ]
        purity = 0.5 * (1 + np.sum(signed) / np.sum(np.abs(signed)))
        for t in range(TASKS):
            passes = signed[t] > 0 if purity > U[feature] else signed[t] < 0
            kept[t, :, feature] = (1.0 if passes else leak) * grads[t, :, feature]
    close(graddrop_representation(rep.values, rep.grads, jnp.asarray(U), leak), kept)
    direction, _ = in_representation("graddrop", x, own_inputs, key=key, leak=leak)
    close(direction["encoder"], rep.pullback(jnp.asarray(kept if own_inputs else kept.sum(0), jnp.float32)))


def test_auxiliary_output_and_more_arguments():
    def with_aux(heads, Z, x, scale):
        return scale * head_losses(heads, Z, x), {"width": Z.shape[-1]}

    (losses, aux), _, _ = task_grads_rep(
        lambda e, x, scale: encode(e, x), with_aux, PARAMS, X, 2.0, has_aux=True
    )
    close(losses, 2 * loss_fn(PARAMS, X))
    assert aux == {"width": WIDTH}


# --- one pullback of weighted losses -----------------------------------------------------------------------

LOSS_METHODS = {
    "equal": {},
    "rlw": {},
    "si": {},
    "gls": {},
    "stch": {},
    "dwa": {"window": 1},
    "uw": {},
    "imtl_l": {},
    "famo": {},
}


def test_no_method_of_the_losses_is_left_out():
    assert set(LOSS_METHODS) == set(METHODS_OF_LOSSES)


@pytest.mark.parametrize("scale", ["native", pytest.param("mean", marks=pytest.mark.slow)])
@pytest.mark.parametrize("method", LOSS_METHODS)
def test_one_pullback_is_the_weighted_jacobian(method, scale):
    link = multitask(method, n_tasks=TASKS, scale=scale, **LOSS_METHODS[method])
    losses, pullback = jax.vjp(lambda params: loss_fn(params, X), PARAMS)
    _, jac = task_grads(loss_fn, PARAMS, X)
    ours = theirs = link.init(PARAMS)
    for number in range(3):
        key = jax.random.key(number)
        expected, theirs = link.update(jac, theirs, PARAMS, losses=losses, key=key)
        found, ours = link.update({}, ours, PARAMS, losses=losses, key=key, pullback=lambda w: pullback(w)[0])
        close(found, expected)
        close(ours, theirs)
        losses = losses * (1.0 + 0.1 * jnp.arange(TASKS))


@pytest.mark.parametrize(
    ("method", "options"),
    [("nash", {}), pytest.param("pcgrad", {"scale": "mean"}, marks=pytest.mark.slow)],
)
def test_reused_weights_take_one_pullback(method, options):
    """The same directions as from the Jacobian, which only the calls that solve form: the conditional's other
    branch pulls nothing back."""
    link = multitask(method, n_tasks=TASKS, update_every=2, **options)
    losses, pullback = jax.vjp(lambda params: loss_fn(params, X), PARAMS)
    _, jac = task_grads(loss_fn, PARAMS, X)

    def weighed(state, key):
        return link.update({}, state, PARAMS, losses=losses, key=key, pullback=lambda w: pullback(w)[0])

    ours = theirs = link.init(PARAMS)
    for number in range(3):
        key = jax.random.key(number)
        expected, theirs = link.update(jac, theirs, PARAMS, losses=losses, key=key)
        found, ours = weighed(ours, key)
        close(found, expected)
        close(ours, theirs)
    conditional = next(
        equation
        for equation in jax.make_jaxpr(weighed)(ours, jax.random.key(0)).eqns
        if equation.primitive.name == "cond"
    )
    products = [
        sum(equation.primitive.name == "dot_general" for equation in branch.eqns)
        for branch in conditional.params["branches"]
    ]
    assert min(products) == 0
    assert max(products) > 0


# --- what the Gram matrix is taken of ----------------------------------------------------------------------

LAYERS = {
    "first": jnp.asarray(RNG.normal(size=(TASKS, 4, 3)), jnp.float32),
    "last": jnp.asarray(RNG.normal(size=(TASKS, 3)), jnp.float32),
    "head": jnp.asarray(RNG.normal(size=(TASKS, 2)), jnp.float32),
}
LAYER_PARAMS = jax.tree.map(lambda J: jnp.zeros(J.shape[1:]), LAYERS)


def test_the_last_shared_layer_alone():
    link = multitask("mgda", shared=lambda path: path != "head", param_filter=lambda path: path == "last")
    direction, _ = link.update(LAYERS, link.init(LAYER_PARAMS), LAYER_PARAMS)
    weights = mgda(gram(LAYERS["last"]))
    for name in ("first", "last"):
        close(direction[name], combine(weights, LAYERS[name]))
    close(direction["head"], combine(jnp.ones(TASKS), LAYERS["head"]))


def test_gradnorm_measures_the_last_shared_layer():
    flags = {"first": False, "last": True, "head": True}
    link = multitask(
        "gradnorm",
        n_tasks=TASKS,
        shared=lambda path: path != "head",
        param_filter=flags,
        optimizer=optax.sgd(0.1),
    )
    state, losses = link.init(LAYER_PARAMS), jnp.array([1.0, 2.0, 3.0])
    for _ in range(2):
        _, state = link.update(LAYERS, state, LAYER_PARAMS, losses=losses)
        losses = losses * jnp.array([0.9, 0.5, 0.7])
    norms = jnp.linalg.norm(LAYERS["last"], axis=1)
    L0 = jnp.array([1.0, 2.0, 3.0])
    s = jnp.ones(TASKS)
    gradient = jax.grad(gradnorm_loss)(s, norms, L0 * jnp.array([0.9, 0.5, 0.7]), L0, 1.5)
    close(state.method.learned.s, s - 0.1 * gradient)


@pytest.mark.parametrize("method", ["mgda", "gradvac"])
def test_a_gram_matrix_for_each_layer(method):
    """By optax's own means: every group its own link and state."""

    def link():
        return multitask(method, n_tasks=TASKS)

    groups = {"first": "body", "last": "end", "head": "end"}
    grouped = optax.transforms.partition({"body": link(), "end": link()}, groups)
    state, alone = grouped.init(LAYER_PARAMS), {"body": link().init(0), "end": link().init(0)}
    for number in range(2):
        key = jax.random.key(number)
        found, state = grouped.update(LAYERS, state, LAYER_PARAMS, key=key)
        body, alone["body"] = link().update([LAYERS["first"]], alone["body"], key=key)
        end, alone["end"] = link().update([LAYERS["head"], LAYERS["last"]], alone["end"], key=key)
        close(found, {"first": body[0], "head": end[0], "last": end[1]})


# --- mistakes ----------------------------------------------------------------------------------------------


def test_mistakes():
    losses, jac, rep = task_grads_rep(encode, head_losses, PARAMS, X)
    with pytest.raises(
        ValueError, match=r"params: expected \{'encoder': \.\.\., 'heads': \.\.\.\}, got list"
    ):
        task_grads_rep(encode, head_losses, [1.0], X)
    with pytest.raises(ValueError, match="Z: expected a batch for each of 3 tasks, got shape"):
        task_grads_rep(encode, head_losses, PARAMS, X, own_inputs=True)
    with pytest.raises(ValueError, match="representation: method 'moco' needs the gradients of the param"):
        in_representation("moco", n_tasks=TASKS)
    link = multitask("mgda")
    with pytest.raises(ValueError, match=r"representation: expected gradients \(3, \*\(7, 6\)\)"):
        link.update(jac, link.init(PARAMS), PARAMS, representation=rep._replace(grads=rep.grads[:, :2]))
    parted = multitask("mgda", shared=lambda path: path.startswith("encoder"))
    with pytest.raises(ValueError, match="pullback: weighs every leaf; expected head_weighting='task'"):
        parted.update({}, parted.init(PARAMS), PARAMS, losses=losses, pullback=lambda w: w)
    copying = multitask("moco", n_tasks=TASKS)
    with pytest.raises(ValueError, match="pullback: expected a method of the losses or the Gram matrix"):
        copying.update({}, copying.init(PARAMS), PARAMS, losses=losses, pullback=lambda w: w)
    with pytest.raises(ValueError, match="losses: expected those that pullback weighs"):
        link.update({}, link.init(PARAMS), PARAMS, pullback=lambda w: w)
    nothing = multitask("mgda", param_filter=lambda path: False)
    with pytest.raises(ValueError, match="param_filter: expected at least one shared leaf, got none"):
        nothing.update(LAYERS, nothing.init(LAYER_PARAMS), LAYER_PARAMS)
    wrong = multitask("mgda", param_filter=[True])
    with pytest.raises(ValueError, match="param_filter: expected booleans in the shape of the parameters"):
        wrong.update(LAYERS, wrong.init(LAYER_PARAMS), LAYER_PARAMS)
