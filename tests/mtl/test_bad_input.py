"""Every static mistake, and the message that tells it."""

import re

import jax
import jax.numpy as jnp
import pytest

from jaxneg.mtl import (
    aligned_mtl,
    cagrad,
    combine,
    config,
    delta_m,
    delta_p_task,
    dualproj,
    dwa_weights,
    equal_weights,
    fairgrad,
    famo_init,
    famo_loss,
    famo_observe,
    famo_update,
    gls,
    gradnorm_loss,
    gradvac,
    gram,
    imtl_g,
    imtl_l,
    mean_rank,
    mgda,
    multitask,
    nash,
    nash_mtl,
    pcd,
    pcgrad,
    rlw_weights,
    si,
    stch,
    stch_log,
    task_grads,
    upgrad,
    uw,
)

G = jnp.eye(3)
ONES = jnp.ones(3)
KEY = jax.random.key(0)
JAC = {"w": jnp.ones((3, 2))}
METHODS = [
    mgda,
    cagrad,
    imtl_g,
    nash,
    fairgrad,
    aligned_mtl,
    upgrad,
    dualproj,
    config,
    lambda G: pcgrad(G, key=KEY),
    lambda G: gradvac(G, G, key=KEY),
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (jnp.zeros((0, 0)), ValueError, "G: expected at least one task, got shape (0, 0)"),
        (jnp.zeros((2, 3)), ValueError, "G: expected a square matrix [T, T], got shape (2, 3)"),
        (jnp.zeros((4, 3, 3)), ValueError, "got shape (4, 3, 3); vmap over batches"),
        (jnp.eye(3, dtype=jnp.int32), TypeError, "G: expected floating point, got int32"),
    ],
)
def test_gram_matrix(method, bad, error, message):
    with pytest.raises(error, match=re.escape(message)):
        method(bad)
    with pytest.raises(error, match=re.escape(message)):
        jax.eval_shape(method, bad)


PREF = "pref: expected shape (3,), one for each task, got (2,)"
METHOD_OPTIONS = {
    "mgda solver": (
        lambda: mgda(G, solver="qp"),
        "solver: expected one of ('exact', 'frank_wolfe', 'pgd'), got 'qp'",
    ),
    "mgda normalizer": (
        lambda: mgda(G, normalizer="l1"),
        "normalizer: expected one of ('none', 'l2', 'loss', 'loss+'), got 'l1'",
    ),
    "mgda no losses": (
        lambda: mgda(G, normalizer="loss"),
        "losses: normalizer 'loss' needs shape (3,), got none",
    ),
    "mgda losses": (
        lambda: mgda(G, normalizer="loss+", losses=jnp.ones(2)),
        "losses: normalizer 'loss+' needs shape (3,), got shape (2,)",
    ),
    "cagrad c": (lambda: cagrad(G, c=-0.1), "c: expected a radius of at least 0, got -0.1"),
    "cagrad rescale": (lambda: cagrad(G, rescale=3), "rescale: expected 0, 1 or 2, got 3"),
    "cagrad solver": (
        lambda: cagrad(G, solver="slow"),
        "solver: expected one of ('exact', 'fast'), got 'slow'",
    ),
    "imtl_g form": (lambda: imtl_g(G, form="D"), "form: expected 'C' or 'G', got 'D'"),
    "nash max_norm": (
        lambda: nash(G, max_norm=0),
        "max_norm: expected a positive norm, or None not to clip, got 0",
    ),
    "fairgrad alpha": (lambda: fairgrad(G, alpha=-1), "alpha: expected a fairness of at least 0, got -1"),
    "aligned pref": (lambda: aligned_mtl(G, jnp.ones(2)), PREF),
    "aligned mode": (
        lambda: aligned_mtl(G, scale_mode="max"),
        "scale_mode: expected one of ('min', 'median', 'rmse'), got 'max'",
    ),
    "upgrad pref": (lambda: upgrad(G, jnp.ones(2)), PREF),
    "upgrad norm_eps": (lambda: upgrad(G, norm_eps=-1.0), "norm_eps: expected at least 0, got -1.0"),
    "upgrad reg_eps": (lambda: upgrad(G, reg_eps=0.0), "reg_eps: expected a positive number, got 0.0"),
    "dualproj pref": (lambda: dualproj(G, jnp.ones(2)), PREF),
    "dualproj norm_eps": (lambda: dualproj(G, norm_eps=-1.0), "norm_eps: expected at least 0, got -1.0"),
    "dualproj reg_eps": (lambda: dualproj(G, reg_eps=-1.0), "reg_eps: expected a positive number, got -1.0"),
    "pcgrad neither": (lambda: pcgrad(G), "orders, key: expected one of them, got neither"),
    "pcgrad both": (
        lambda: pcgrad(G, jnp.zeros((3, 3), int), KEY),
        "orders, key: expected one of them, got both",
    ),
    "pcgrad shape": (lambda: pcgrad(G, jnp.zeros((3, 2), int)), "orders: expected shape (3, 3), got (3, 2)"),
    "pcgrad eps": (lambda: pcgrad(G, key=KEY, eps=-1.0), "eps: expected at least 0, got -1.0"),
    "gradvac rho": (
        lambda: gradvac(G, jnp.zeros(3), key=KEY),
        "rho: expected shape (3, 3), one for each pair of tasks, got (3,)",
    ),
    "gradvac neither": (lambda: gradvac(G, G), "orders, key: expected one of them, got neither"),
    "gradvac shape": (
        lambda: gradvac(G, G, jnp.zeros((3, 4), int)),
        "orders: expected shape (3, 3) or (3, 2), got (3, 4)",
    ),
    "gradvac beta": (lambda: gradvac(G, G, key=KEY, beta=1.5), "beta: expected from 0 to 1, got 1.5"),
    "gram empty": (
        lambda: gram({}),
        "stacked_grads: expected at least one array with a leading task axis, got an empty pytree",
    ),
    "gram no task": (lambda: gram({"w": jnp.ones((0, 2))}), "stacked_grads: expected at least one task"),
    "gram scalar": (
        lambda: gram({"w": jnp.ones(())}),
        "stacked_grads['w']: expected a leading task axis, got a scalar",
    ),
    "gram disagreement": (
        lambda: gram({"a": jnp.ones((3, 2)), "b": jnp.ones((2, 2))}),
        "stacked_grads['b']: expected 3 tasks on the leading axis, got shape (2, 2)",
    ),
    "combine": (
        lambda: combine(jnp.ones(2), JAC),
        "w: expected shape (3,), one for each task of stacked_grads, got (2,)",
    ),
}


@pytest.mark.parametrize("mistake", METHOD_OPTIONS)
def test_option_of_a_method(mistake):
    call, message = METHOD_OPTIONS[mistake]
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def test_types():
    with pytest.raises(TypeError, match=re.escape("orders: expected integers, got float32")):
        pcgrad(G, jnp.zeros((3, 3)))
    with pytest.raises(TypeError, match=re.escape("stacked_grads['w']: expected floating point, got int32")):
        gram({"w": jnp.ones((3, 2), jnp.int32)})


HISTORY = "history: expected shape [T, epochs] with T >= 1, got"
LOSS_MISTAKES = {
    "equal": (lambda: equal_weights(0), "T: expected at least one task, got 0"),
    "rlw": (lambda: rlw_weights(KEY, 0), "T: expected at least one task, got 0"),
    "famo_init": (lambda: famo_init(0), "T: expected at least one task, got 0"),
    "si scalar": (lambda: si(jnp.ones(())), "L: expected shape [T] with T >= 1, got ()"),
    "gls none": (lambda: gls(jnp.ones(0)), "L: expected shape [T] with T >= 1, got (0,)"),
    "imtl_l": (lambda: imtl_l(ONES, jnp.ones(2)), "s: expected shape (3,), one for each task, got (2,)"),
    "stch mu": (lambda: stch(ONES, mu=-1.0), "mu: expected a positive number, got -1.0"),
    "stch pref": (
        lambda: stch(ONES, pref=jnp.ones(2)),
        "pref: expected shape (3,), one for each task, got (2,)",
    ),
    "stch_log": (
        lambda: stch_log(ONES, jnp.ones(2)),
        "nadir: expected shape (3,), one for each task, got (2,)",
    ),
    "gradnorm": (
        lambda: gradnorm_loss(ONES, ONES, ONES, jnp.ones(2)),
        "L0: expected shape (3,), as s has it, got (2,)",
    ),
    "uw batch": (lambda: uw(jnp.ones((2, 3)), ONES), "L: expected shape [T] with T >= 1, got (2, 3)"),
    "uw s": (lambda: uw(ONES, jnp.ones(2)), "s: expected shape (3,), one for each task, got (2,)"),
    "famo xi": (lambda: famo_loss(ONES, jnp.ones(2)), "xi: expected shape (3,), one for each task, got (2,)"),
    "famo after": (
        lambda: famo_update(*famo_init(3), ONES, jnp.ones(2)),
        "L_after: expected shape (3,), one for each task, got (2,)",
    ),
    "famo update": (
        lambda: famo_update(*famo_init(2), ONES, ONES),
        "xi: expected shape (3,), one for each task",
    ),
    "dwa vector": (lambda: dwa_weights(ONES), f"{HISTORY} (3,)"),
    "dwa none": (lambda: dwa_weights(jnp.ones((0, 2))), f"{HISTORY} (0, 2)"),
    "dwa tau": (lambda: dwa_weights(jnp.ones((3, 2)), 0.0), "tau: expected a positive temperature, got 0.0"),
}


@pytest.mark.parametrize("mistake", LOSS_MISTAKES)
def test_losses(mistake):
    call, message = LOSS_MISTAKES[mistake]
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def test_metrics():
    better = jnp.array([True, False])
    with pytest.raises(
        ValueError, match=re.escape("expected shape (2,), one for each metric, got (3,) and (2,)")
    ):
        delta_m(jnp.ones((4, 2)), ONES, better)
    with pytest.raises(
        ValueError, match=re.escape("group: expected shape (2,), one for each metric, got (3,)")
    ):
        delta_p_task(jnp.ones(2), jnp.ones(2), better, jnp.zeros(3, int))
    with pytest.raises(
        ValueError, match=re.escape("expected shapes [methods, K] and [K], got (2,) and (2,)")
    ):
        mean_rank(jnp.ones(2), better)


def losses_of(params, batch):
    return params["w"] * batch.sum()


TASK_GRADS = {
    "chunk": (
        lambda: task_grads(losses_of, {"w": ONES}, ONES, chunk_size=0),
        ValueError,
        "chunk_size: expected at least 1 task, or None for all at once, got 0",
    ),
    "scalar": (
        lambda: task_grads(lambda p, b: p["w"].sum(), {"w": ONES}, ONES),
        ValueError,
        "loss_fn: expected losses of shape [T] with T >= 1, got shape ()",
    ),
    "no losses": (
        lambda: task_grads(lambda p, b: p["w"][:0], {"w": ONES}, ONES),
        ValueError,
        "loss_fn: expected losses of shape [T] with T >= 1, got shape (0,)",
    ),
    "empty batch": (
        lambda: task_grads(losses_of, {"w": ONES}, {"x": jnp.ones((0, 2))}),
        ValueError,
        "batch['x']: expected at least one example, got shape (0, 2)",
    ),
    "integer parameters": (
        lambda: task_grads(losses_of, {"w": jnp.ones(3, jnp.int32)}, ONES),
        TypeError,
        "params['w']: expected floating point to take gradients, got int32",
    ),
    "integer losses": (
        lambda: task_grads(lambda p, b: jnp.ones(3, jnp.int32), {"w": ONES}, ONES),
        TypeError,
        "loss_fn: expected floating-point losses, got int32",
    ),
}


@pytest.mark.parametrize("mistake", TASK_GRADS)
def test_task_grads(mistake):
    call, error, message = TASK_GRADS[mistake]
    with pytest.raises(error, match=re.escape(message)):
        call()


NAMES = (
    "aligned_mtl, cagrad, config, dbmtl, dualproj, dwa, equal, excess_mtl, fairgrad, famo, gls, graddrop, "
    "gradnorm, gradvac, imtl, imtl_g, imtl_l, mgda, moco, modo, nash, pcd, pcgrad, rlw, sdmgrad, si, stch, "
    "upgrad, uw"
)
LINK_MISTAKES = {
    "method": (
        lambda: multitask("nsah"),
        ValueError,
        f"method: expected one of {NAMES}, or a function of G, got 'nsah'",
    ),
    "option of a Gram method": (
        lambda: multitask("cagrad", alpha=2.0),
        TypeError,
        "options: method 'cagrad' takes one of c, rescale, solver, got alpha",
    ),
    "option of a loss method": (
        lambda: multitask("dwa", n_tasks=2, temperature=1.0),
        TypeError,
        "options: method 'dwa' takes one of tau, window, steps_per_epoch, got temperature",
    ),
    "option of none": (
        lambda: multitask("equal", c=1),
        TypeError,
        "options: method 'equal' takes none, got c",
    ),
    "key is no option": (
        lambda: multitask("pcgrad", key=KEY),
        TypeError,
        "options: method 'pcgrad' takes one of",
    ),
    "option of a function": (
        lambda: multitask(nash, max_norm=1.0),
        TypeError,
        "options: a function of G takes none here, got ['max_norm']; use functools.partial",
    ),
    "bad option, when built": (
        lambda: multitask("cagrad", c=-1.0),
        ValueError,
        "c: expected a radius of at least 0, got -1.0",
    ),
    "solver": (lambda: multitask("mgda", solver="x"), ValueError, "solver: expected one of"),
    "max_norm": (lambda: multitask("nash", max_norm=-1.0), ValueError, "max_norm: expected a positive norm"),
    "nash_mtl max_norm": (lambda: nash_mtl(max_norm=0.0), ValueError, "max_norm: expected a positive norm"),
    "nash_mtl n_tasks": (lambda: nash_mtl(25), ValueError, "n_tasks: update_every > 1 keeps a state"),
    "alpha": (
        lambda: multitask("fairgrad", alpha=-1.0),
        ValueError,
        "alpha: expected a fairness of at least 0",
    ),
    "orders": (
        lambda: multitask("pcgrad", orders=jnp.zeros((3, 2), int)),
        ValueError,
        "orders: expected shape (3, 3), got (3, 2)",
    ),
    "update_every": (
        lambda: multitask("nash", n_tasks=3, update_every=0),
        ValueError,
        "update_every: expected at least 1, got 0",
    ),
    "update_every of a loss method": (
        lambda: multitask("uw", n_tasks=3, update_every=2),
        ValueError,
        "update_every: only methods of the Gram matrix without a state keep their weights, got 'uw'",
    ),
    "scale": (
        lambda: multitask("mgda", scale="max"),
        ValueError,
        "scale: expected 'native', 'sum' or 'mean', got 'max'",
    ),
    "head_weighting": (
        lambda: multitask("mgda", head_weighting="w"),
        ValueError,
        "head_weighting: expected 'unit' or 'task', got 'w'",
    ),
    "no task": (
        lambda: multitask("famo", n_tasks=0),
        ValueError,
        "n_tasks: expected at least one task, got 0",
    ),
    "n_tasks missing": (
        lambda: multitask("famo"),
        ValueError,
        "n_tasks: method 'famo' keeps a state for each task; pass n_tasks=T",
    ),
    "tau of pcd": (
        lambda: pcd(jnp.eye(3), tau=1.5),
        ValueError,
        "tau: expected from 0 to 1, got 1.5",
    ),
    "shape of pcd's tau": (
        lambda: pcd(jnp.eye(3), tau=jnp.ones(3)),
        ValueError,
        "tau: expected one number or shape (2,), got shape (3,)",
    ),
    "mean_squares of pcd": (
        lambda: pcd(jnp.eye(3), mean_squares=jnp.ones(2)),
        ValueError,
        "mean_squares: expected shape (3,), got (2,)",
    ),
    "eps of pcd": (
        lambda: pcd(jnp.eye(3), eps=-1.0),
        ValueError,
        "eps: expected at least 0, got -1.0",
    ),
    "beta of pcd": (
        lambda: multitask("pcd", n_tasks=3, beta=1.0),
        ValueError,
        "beta: expected at least 0 and below 1, got 1.0",
    ),
    "smoothing": (
        lambda: multitask("nash", n_tasks=3, smoothing=1.0),
        ValueError,
        "smoothing: expected at least 0 and below 1, got 1.0",
    ),
    "n_tasks missing for smoothing": (
        lambda: multitask("mgda", smoothing=0.5),
        ValueError,
        "n_tasks: smoothing keeps a state for each task; pass n_tasks=T",
    ),
    "n_tasks missing for update_every": (
        lambda: multitask("mgda", update_every=2),
        ValueError,
        "n_tasks: update_every > 1 keeps a state for each task; pass n_tasks=T",
    ),
    "dwa tau": (
        lambda: multitask("dwa", n_tasks=3, tau=0.0),
        ValueError,
        "tau: expected a positive temperature",
    ),
    "stch mu": (lambda: multitask("stch", mu=0.0), ValueError, "mu: expected a positive number, got 0.0"),
    "stch epoch": (
        lambda: multitask("stch", n_tasks=3, steps_per_epoch=0),
        ValueError,
        "steps_per_epoch: expected at least one step, got 0",
    ),
    "stch reference": (
        lambda: multitask("stch", n_tasks=3, steps_per_epoch=1, ref=1.0),
        ValueError,
        "pref, ref: expected neither with steps_per_epoch",
    ),
    "gradnorm epoch": (
        lambda: multitask("gradnorm", n_tasks=3, steps_per_epoch=0),
        ValueError,
        "steps_per_epoch: expected at least one step, got 0",
    ),
    "gradvac beta": (
        lambda: multitask("gradvac", n_tasks=3, beta=-0.5),
        ValueError,
        "beta: expected from 0 to 1, got -0.5",
    ),
    "moco state": (
        lambda: multitask("moco"),
        ValueError,
        "n_tasks: method 'moco' keeps a state for each task; pass n_tasks=T",
    ),
    "moco beta": (
        lambda: multitask("moco", n_tasks=3, beta=2.0),
        ValueError,
        "beta: expected from 0 to 1, got 2.0",
    ),
    "excess variant": (
        lambda: multitask("excess_mtl", n_tasks=3, variant="x"),
        ValueError,
        "variant: expected 'libmtl' or 'torchjd', got 'x'",
    ),
    "graddrop": (
        lambda: multitask("graddrop", update_every=2, n_tasks=3),
        ValueError,
        "update_every: only methods of the Gram matrix without a state keep their weights, got 'graddrop'",
    ),
    "gradvac state": (
        lambda: multitask("gradvac", n_tasks=3, update_every=2),
        ValueError,
        "update_every: only methods of the Gram matrix without a state keep their weights, got 'gradvac'",
    ),
    "dwa window": (
        lambda: multitask("dwa", n_tasks=3, window=0),
        ValueError,
        "window: expected at least one step, got 0",
    ),
    "dwa epoch": (
        lambda: multitask("dwa", n_tasks=3, steps_per_epoch=0),
        ValueError,
        "steps_per_epoch: expected at least one step, got 0",
    ),
    "famo rate": (
        lambda: multitask("famo", n_tasks=3, learning_rate=0.0),
        ValueError,
        "learning_rate: expected a positive rate, got 0.0",
    ),
    "famo gamma": (
        lambda: multitask("famo", n_tasks=3, gamma=-1.0),
        ValueError,
        "gamma: expected a decay of at least 0, got -1.0",
    ),
    "famo after": (
        lambda: multitask("famo", n_tasks=3, after="now"),
        ValueError,
        "after: expected 'next' or 'same', got 'now'",
    ),
}


@pytest.mark.parametrize("mistake", LINK_MISTAKES)
def test_building_a_link(mistake):
    call, error, message = LINK_MISTAKES[mistake]
    with pytest.raises(error, match=re.escape(message)):
        call()


def update(link, jac=JAC, **given):
    params = jax.tree.map(lambda leaf: leaf[0] if jnp.ndim(leaf) else leaf, jac)
    return jax.eval_shape(lambda jac: link.update(jac, link.init(params), params, **given), jac)


UPDATE_MISTAKES = {
    "pair": (
        lambda: update(multitask("sdmgrad", n_tasks=3)),
        ValueError,
        "pair: method 'sdmgrad' reads the Jacobians of two more batches",
    ),
    "shapes of a pair": (
        lambda: update(multitask("modo", n_tasks=3), pair=(JAC, {"w": jnp.ones((3, 4))})),
        ValueError,
        "right: expected the shapes of left, [(3, 2)], got [(3, 4)]",
    ),
    "task axis": (
        lambda: update(multitask("mgda", n_tasks=2)),
        ValueError,
        "stacked_grads: expected n_tasks=2 on the leading axis, got 3",
    ),
    "losses missing": (
        lambda: update(multitask("gls")),
        ValueError,
        "losses: method 'gls' weighs by the losses; pass update(..., losses=losses)",
    ),
    "losses missing for a normaliser": (
        lambda: update(multitask("mgda", normalizer="loss")),
        ValueError,
        "losses: method 'mgda' weighs by the losses",
    ),
    "losses": (
        lambda: update(multitask("mgda"), losses=jnp.ones(2)),
        ValueError,
        "losses: expected shape (3,), the task axis of the gradients, got (2,)",
    ),
    "key missing": (
        lambda: update(multitask("pcgrad")),
        ValueError,
        "key: method 'pcgrad' is random; pass update(..., key=key)",
    ),
    "nothing shared": (
        lambda: update(multitask("mgda", shared=lambda path: False)),
        ValueError,
        "shared: expected at least one shared leaf, got none",
    ),
    "shared of another shape": (
        lambda: update(multitask("mgda", shared={"v": True})),
        ValueError,
        "shared: expected booleans in the shape of the parameters",
    ),
    "integer jacobian": (
        lambda: update(multitask("mgda"), {"w": jnp.ones((3, 2), jnp.int32)}),
        TypeError,
        "stacked_grads['w']: expected floating point, got int32",
    ),
    "leaves that disagree": (
        lambda: update(multitask("mgda"), {"a": jnp.ones((3, 2)), "b": jnp.ones((2, 2))}),
        ValueError,
        "stacked_grads['b']: expected 3 tasks on the leading axis, got shape (2, 2)",
    ),
}


@pytest.mark.parametrize("mistake", UPDATE_MISTAKES)
def test_updating_a_link(mistake):
    call, error, message = UPDATE_MISTAKES[mistake]
    with pytest.raises(error, match=re.escape(message)):
        call()


def test_observing_without_famo():
    state = multitask("mgda").init({})
    with pytest.raises(
        ValueError, match=re.escape("opt_state: expected the state of a chain that holds multitask('famo')")
    ):
        famo_observe(state, ONES)


def test_observing_other_losses():
    link = multitask("famo", n_tasks=3, after="same")
    with pytest.raises(
        ValueError, match=re.escape("L_after: expected shape (3,), one for each task, got (2,)")
    ):
        famo_observe(link.init({}), jnp.ones(2))
