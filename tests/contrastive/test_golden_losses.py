"""Every golden vector of AMCL: losses, temperatures, baselines, queue, classifier, separation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneg import contrastive

VALUES = {"rtol": 1e-5}
GRADIENTS = {"rtol": 1e-4, "atol": 1e-5}
BASELINE_GRADIENTS = {"rtol": 1e-4, "atol": 1e-6}
# Settings that only the folder's README states.
QUEUE_TEMPERATURE, MOCO_V3_TEMPERATURE = 1, 0  # which of `temperatures`
# How the file's loss names are called here.
FORMS = {"loss": "topk", "loss_max": "max", "loss_lse": "lse", "loss_infonce": "infonce"}


def f32(x):
    return jnp.asarray(x, jnp.float32)


def phi_of(golden):
    return {name: f32(golden[f"phi_{name}"]) for name in ("w1", "b1", "w2", "b2")}


def settings(golden, *names):
    given = {name: float(golden[name]) for name in ("beta", "tau_min", "tau_max", "lambd") if name in golden}
    return given | {name: int(golden[name]) for name in names}


def check_gradients(golden, names, gradients):
    for name, gradient in zip(names, gradients[:-1], strict=True):
        np.testing.assert_allclose(gradient, golden[f"g_{name}"], **GRADIENTS, err_msg=name)
    for name, gradient in gradients[-1].items():
        np.testing.assert_allclose(gradient, golden[f"g_phi_{name}"], **GRADIENTS, err_msg=name)


@pytest.mark.golden("amcl", "omega.npz")
def test_omega(golden):
    tau = f32(golden["tau"])
    for row, dim in enumerate(golden["dims"]):
        own = lambda t, d=int(dim): contrastive.omega(t, d)  # noqa: E731
        np.testing.assert_allclose(own(tau), golden["omega"][row], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(
            jax.jit(jax.vmap(jax.grad(own)))(tau), golden["grad"][row], rtol=1e-5, atol=1e-5
        )
        # The minimiser; the temperature net's own range has it inside.
        np.testing.assert_allclose(golden["tau_star"][row], 2 / dim, rtol=1e-12)
        np.testing.assert_allclose(jax.grad(own)(f32(golden["tau_star"][row])), 0, atol=1e-5 * dim**2)


@pytest.mark.golden("amcl", "temperature_*.npz")
def test_temperature(golden):
    bounds = settings(golden)

    def temperatures(z1, z2, phi):
        score = contrastive.temperature_scores(phi, z1, z2, matrix=False)
        return contrastive.score_to_temperature(score, **bounds), score

    arguments = f32(golden["z1"]), f32(golden["z2"]), phi_of(golden)
    tau, score = jax.jit(temperatures)(*arguments)
    np.testing.assert_allclose(score, golden["score"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(tau, golden["tau"], rtol=1e-5, atol=1e-7)
    gradients = jax.jit(jax.grad(lambda *a: temperatures(*a)[0].sum(), (0, 1, 2)))(*arguments)
    check_gradients(golden, ("z1", "z2"), gradients)
    extreme = contrastive.score_to_temperature(f32(golden["extreme_score"]), **bounds)
    np.testing.assert_allclose(extreme, golden["extreme_tau"], rtol=1e-5, atol=1e-7)
    assert (extreme >= np.float32(bounds["tau_min"])).all()
    assert (extreme <= np.float32(bounds["tau_max"])).all()


@pytest.mark.golden("amcl", "amcl_ntxent_*.npz")
def test_amcl_nt_xent(golden):
    given = settings(golden, "topk")
    arguments = f32(golden["z1"]), f32(golden["z2"]), phi_of(golden)
    given_form = partial(contrastive.amcl_nt_xent_loss, **given)
    found = jax.jit(lambda *a: {name: given_form(*a, negatives=form) for name, form in FORMS.items()})(
        *arguments
    )
    for name, (loss, aux) in found.items():
        np.testing.assert_allclose(loss.mean(), golden[name], **VALUES, err_msg=name)
        np.testing.assert_allclose(aux["head_losses"].sum(), golden[name], rtol=1e-4, err_msg=name)
    topk = jax.grad(lambda *a: contrastive.amcl_nt_xent_loss(*a, **given)[0].mean(), (0, 1, 2))
    gradients = jax.jit(topk)(*arguments)
    check_gradients(golden, ("z1", "z2"), gradients)


@pytest.mark.golden("amcl", "amcl_moco.npz")
def test_amcl_moco(golden):
    given = settings(golden, "topk")
    q, k, queue = (f32(golden[name]) for name in ("q", "k", "queue"))

    def loss(q, k, queue, phi):
        return contrastive.amcl_moco_loss(q, k, queue, phi, **given)[0].mean()

    phi = phi_of(golden)
    np.testing.assert_allclose(jax.jit(loss)(q, k, queue, phi), golden["loss"], **VALUES)
    of_q, of_k, of_queue, of_phi = jax.jit(jax.grad(loss, (0, 1, 2, 3)))(q, k, queue, phi)
    check_gradients(golden, ("q",), (of_q, of_phi))
    assert not of_k.any()
    assert not of_queue.any()


@pytest.mark.golden("amcl", "amcl_simsiam.npz")
def test_amcl_simsiam(golden):
    given, names = settings(golden), ("p1", "z2", "p2", "z1")
    arguments = (*(f32(golden[name]) for name in names), phi_of(golden))

    def loss(*arguments):
        return contrastive.amcl_simsiam_loss(*arguments, **given)[0].mean()

    np.testing.assert_allclose(jax.jit(loss)(*arguments), golden["loss"], **VALUES)
    p1, z2, p2, z1, phi = jax.jit(jax.grad(loss, tuple(range(5))))(*arguments)
    check_gradients(golden, ("p1", "p2"), (p1, p2, phi))
    assert not z1.any()
    assert not z2.any()


@pytest.mark.golden("amcl", "amcl_barlow.npz")
def test_amcl_barlow_twins(golden):
    given = settings(golden)
    arguments = f32(golden["z1"]), f32(golden["z2"]), phi_of(golden)

    def loss(*arguments):
        return contrastive.amcl_barlow_twins_loss(*arguments, **given)[0]

    np.testing.assert_allclose(jax.jit(loss)(*arguments), golden["loss"], rtol=1e-4)
    check_gradients(golden, ("z1", "z2"), jax.jit(jax.grad(loss, (0, 1, 2)))(*arguments))


def baseline(name, golden):
    """The loss behind a name of the baselines' file, as a function of both views."""
    temperatures, queue = golden["temperatures"], f32(golden["queue"])
    if name.startswith("ntxent_t"):
        return lambda a, b: contrastive.nt_xent_loss(a, b, float(name.removeprefix("ntxent_t"))).mean()
    return {
        "ntxent_solo": lambda a, b: contrastive.nt_xent_loss(a, b, float(temperatures[0])).mean(),
        "infonce_queue": lambda a, b: contrastive.info_nce_queue_loss(
            a, b, queue, float(temperatures[QUEUE_TEMPERATURE])
        ).mean(),
        "mocov3": lambda a, b: contrastive.moco_v3_loss(
            a, b, float(temperatures[MOCO_V3_TEMPERATURE])
        ).mean(),
        "simsiam_oneway": lambda a, b: contrastive.simsiam_loss(a, b).mean(),
        "byol_oneway": lambda a, b: contrastive.byol_loss(a, b).mean(),
        "barlow_official": lambda a, b: contrastive.barlow_twins_loss(a, b, norm="unbiased"),
        "barlow_batchnorm": lambda a, b: contrastive.barlow_twins_loss(a, b, norm="batchnorm"),
        "vicreg_sum_std": lambda a, b: contrastive.vicreg_loss(a, b, std_reduce="sum"),
        "vicreg_half_std": lambda a, b: contrastive.vicreg_loss(a, b, std_reduce="mean"),
    }[name]


@pytest.mark.golden("amcl", "baselines.npz")
def test_baselines(golden):
    inputs = {"z1", "z2", "queue", "temperatures"}
    names = [n for n in golden if n not in inputs and not n.endswith(("_g1", "_g2"))]
    assert names
    z1, z2 = f32(golden["z1"]), f32(golden["z2"])
    for name in names:
        loss, gradients = jax.jit(jax.value_and_grad(baseline(name, golden), (0, 1)))(z1, z2)
        np.testing.assert_allclose(loss, golden[name], **VALUES, err_msg=name)
        for number, gradient in enumerate(gradients, 1):
            expected = golden[f"{name}_g{number}"]
            # float32 gradients of terms weighted by 25 are as exact as their largest entries allow
            tolerance = {**BASELINE_GRADIENTS, "atol": max(1e-6, 1e-6 * np.abs(expected).max())}
            np.testing.assert_allclose(gradient, expected, **tolerance, err_msg=name)


@pytest.mark.golden("amcl", "knn.npz")
def test_knn(golden):
    found = contrastive.knn_classify(
        f32(golden["features"]),
        f32(golden["bank"]),
        jnp.asarray(golden["bank_labels"]),
        int(golden["k"]),
        float(golden["temperature"]),
        int(golden["classes"]),
    )
    np.testing.assert_allclose(found.scores, golden["scores"], **VALUES)
    np.testing.assert_array_equal(found.predictions, golden["pred"])


@pytest.mark.golden("amcl", "moco_state.npz")
def test_moco_state(golden):
    queue, ptr = contrastive.queue_enqueue(f32(golden["queue"]), int(golden["ptr"]), f32(golden["keys"]))
    np.testing.assert_allclose(queue, golden["new_queue"], atol=1e-6)
    assert int(ptr) == int(golden["new_ptr"])
    theta = contrastive.ema_update(f32(golden["theta_k"]), f32(golden["theta_q"]), float(golden["momentum"]))
    np.testing.assert_allclose(theta, golden["new_theta_k"], atol=1e-6)


@pytest.mark.golden("amcl", "mle_closed_form.npz")
def test_maximum_likelihood(golden):
    sim, dim = f32(golden["sim"]), int(golden["dim"])
    tau = contrastive.best_temperature(sim, dim)
    np.testing.assert_allclose(tau, golden["tau_star"], rtol=1e-5)
    np.testing.assert_allclose(-sim / tau + contrastive.omega(tau, dim), golden["value_at_star"], rtol=1e-5)


@pytest.mark.golden("amcl", "separation.npz")
def test_separation(golden):
    found = contrastive.separation_metrics(f32(golden["pos"]), f32(golden["neg"]))
    np.testing.assert_allclose(found.auc, golden["auc"], atol=1e-6)
    np.testing.assert_allclose(found.overlap, golden["overlap_40bins"], atol=1e-6)
    np.testing.assert_allclose(found.below_half, golden["frac_pos_below_half"], atol=1e-6)
