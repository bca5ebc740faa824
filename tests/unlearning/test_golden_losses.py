"""Every loss and gradient against the official code, in float64 and in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneg.unlearning import (
    UnlearnConfig,
    answer_lengths,
    ce_loss,
    ceu_loss,
    dpo_loss,
    dual_ascent_retain,
    ga_loss,
    idk_loss,
    kl_retain_loss,
    kto_baseline,
    kto_loss,
    npo_loss,
    pdu_forget_loss,
    rmu_loss,
    satimp_loss,
    sequence_nll,
    simnpo_loss,
    token_mean_ce,
    undial_loss,
    unlearning_loss,
    wga_loss,
)

SETS = ("forget", "retain", "idk")

# What only the README says: the coefficients of the totals.
SIMNPO_RT = {"gamma": 0.125, "alpha": 1.0}

# Golden loss: method, and the fields of its config; the betas and PDU's settings are read from the file.
LOSSES = {
    "nll_retain": ("rt", {}),
    "kl_retain": ("kl", {}),
    "ga": ("ga", {}),
    "gradiff_NLL": ("ga+rt", {}),
    "gradiff_KL": ("ga+kl", {}),
    "npo": ("npo", {}),
    "npo_NLL": ("npo+rt", {}),
    "npo_KL": ("npo+kl", {}),
    "dpo": ("dpo", {}),
    "dpo_NLL": ("dpo+rt", {}),
    "dpo_KL": ("dpo+kl", {}),
    "simnpo": ("simnpo", {}),
    "simnpo_rt": ("simnpo+rt", SIMNPO_RT),
    "orig_grad_ascent": ("ga", {}),
    "orig_grad_diff": ("ga+rt", {}),
    "orig_KL": ("ga+kl", {}),
    "orig_npo": ("npo", {}),
    "orig_npo_grad_diff": ("npo+rt", {}),
    "orig_npo_KL": ("npo+kl", {}),
    "orig_dpo": ("dpo", {}),
    "orig_dpo_grad_diff": ("dpo+rt", {}),
    "orig_dpo_KL": ("dpo+kl", {}),
    "orig_kto_sigmoid": ("kto", {"kto_kind": "sigmoid"}),
    "orig_kto_logsigmoid": ("kto", {}),
    "orig_kto_logsigmoid_grad_diff": ("kto+rt", {}),
    "orig_idk_concat": ("idk+rt", {}),
    "orig_grad_ascent_forgetKL": ("ga, forget KL", {}),
    "wga": ("wga", {}),
    "satimp": ("satimp", {}),
    "undial_masked": ("undial", {}),
    "ceu": ("ceu", {}),
    "pdu": ("pdu+rt", {}),
    "rmu_forget": ("rmu", {"rmu_own_length": False}),
    "rmu_retain": ("rmu, retain", {"rmu_own_length": False}),
}
BETAS = {"simnpo": "beta_sim", "wga": "beta1", "undial": "undial_beta"}
SETTINGS = (
    "beta",
    "beta_sim",
    "delta",
    "beta1",
    "beta2",
    "undial_beta",
    "pdu_eps",
    "pdu_dual_step",
    "pdu_pref",
)


def _batch(golden):
    return {part: {"labels": jnp.asarray(golden[f"labels_{part}"])} for part in SETS}


def _logits(golden, which, dtype):
    return {part: jnp.asarray(golden[f"logits_{which}_{part}"], dtype) for part in SETS}


def _loss(golden, method, fields, logits, reference):
    """The golden's loss as a function of the policy's logits, and the sum of its terms' absolute values."""
    batch = _batch(golden)
    forget = method.partition("+")[0]
    if forget == "pdu":
        gamma, alpha = map(float, golden["pdu_pref"])
        fields = {"gamma": gamma, "alpha": alpha, "retain_eps": float(golden["pdu_eps"])}
    given = {name: float(golden[name]) for name in ("delta", "beta1", "beta2")}
    cfg = UnlearnConfig(beta=float(golden[BETAS.get(forget, "beta")]), **given, **fields)
    if method == "rt":
        loss = token_mean_ce(logits["retain"], batch["retain"]["labels"])
        return loss, loss
    if method == "kl":
        loss = kl_retain_loss(logits["retain"], reference["retain"]).mean()
        return loss, loss
    if method == "ga, forget KL":
        ascent, _ = unlearning_loss("ga", batch, logits, reference, cfg)
        divergence = kl_retain_loss(logits["forget"], reference["forget"]).mean()
        return ascent + divergence, abs(ascent) + divergence
    if forget.startswith("rmu"):
        control = jnp.asarray(golden["rmu_control_vec"])
        width = control.shape[-1]
        hidden = {part: logits[part][..., :width] for part in ("forget", "retain")}
        targets = {"forget": control, "retain": reference["retain"][..., :width]}
        _, aux = unlearning_loss("rmu+ed", batch, hidden, targets, cfg)
        loss = aux["retain_loss" if method == "rmu, retain" else "forget_loss"]
        return loss, loss
    loss, aux = unlearning_loss(method, batch, logits, reference, cfg)
    terms = cfg.gamma * abs(aux["forget_loss"]) + cfg.alpha * (aux.get("retain_loss", 0) + cfg.retain_eps)
    return loss, terms


def _all_losses(golden, dtype):
    @jax.jit
    def compute(logits, reference):
        return {name: _loss(golden, *how, logits, reference) for name, how in LOSSES.items()}

    return compute(_logits(golden, "pol", dtype), _logits(golden, "ref", dtype))


@pytest.mark.golden("npo", "losses_*.npz")
def test_losses_in_float64(golden, x64):
    """1e-10, as for float64."""
    for name, (value, _) in _all_losses(golden, jnp.float64).items():
        np.testing.assert_allclose(value, golden[f"loss_{name}"], rtol=1e-10, err_msg=name)


@pytest.mark.slow
@pytest.mark.golden("npo", "losses_*.npz")
def test_losses_in_float32(golden):
    """1e-6, as for float32; of the terms, where a total is the small difference of two of them."""
    for name, (value, terms) in _all_losses(golden, jnp.float32).items():
        assert value.dtype == jnp.float32
        assert abs(value - golden[f"loss_{name}"]) <= 1e-6 * terms, name


@pytest.mark.golden("npo", "losses_*.npz")
def test_gradients(golden, x64):
    """At every position, so that the shift is tested; the references are rounded to float32."""
    how = {
        name: each for name, each in LOSSES.items() if any(f"grad_{name}_{part}" in golden for part in SETS)
    }

    @jax.jit
    def gradients(logits, reference):
        return {
            name: jax.grad(lambda x, each=each: _loss(golden, *each, x, reference)[0])(logits)
            for name, each in how.items()
        }

    found = gradients(_logits(golden, "pol", jnp.float64), _logits(golden, "ref", jnp.float64))
    checked = set()
    for name, by_part in found.items():
        for part, gradient in by_part.items():
            array = f"grad_{name}_{part}"
            if array in golden:
                np.testing.assert_allclose(
                    gradient.astype(np.float32), golden[array], rtol=1e-6, atol=1e-30, err_msg=array
                )
                checked.add(array)
    assert checked == {name for name in golden if name.startswith("grad_")}


@pytest.mark.golden("npo", "losses_*.npz")
@pytest.mark.parametrize("wide", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_sequence_nll(golden, wide):
    with jax.enable_x64(wide):
        dtype = jnp.float64 if wide else jnp.float32
        for which in ("pol", "ref"):
            logits = _logits(golden, which, dtype)
            for part in SETS:
                labels = jnp.asarray(golden[f"labels_{part}"])
                nll, n_tokens = sequence_nll(logits[part], labels)
                np.testing.assert_allclose(
                    nll, golden[f"seqnll_{which}_{part}"], rtol=1e-10 if wide else 1e-6
                )
                np.testing.assert_array_equal(n_tokens, (golden[f"labels_{part}"][:, 1:] != -100).sum(1))


@pytest.mark.slow
@pytest.mark.golden("npo", "losses_*.npz")
def test_losses_of_likelihoods(golden, x64):
    """The means of the functions that take likelihoods, on the official likelihoods."""
    nll = {part: jnp.asarray(golden[f"seqnll_pol_{part}"]) for part in SETS}
    ref = {part: jnp.asarray(golden[f"seqnll_ref_{part}"]) for part in SETS}
    labels = {part: jnp.asarray(golden[f"labels_{part}"]) for part in SETS}
    n_tokens = {part: (labels[part][:, 1:] != -100).sum(1) for part in SETS}
    beta = float(golden["beta"])
    z = kto_baseline(nll["idk"], ref["idk"])
    idk_rows, retain_rows = idk_loss(nll["idk"], n_tokens["idk"], nll["retain"], n_tokens["retain"])
    found = {
        "nll_retain": ce_loss(nll["retain"], n_tokens["retain"]).mean(),
        "ga": ga_loss(nll["forget"], n_tokens["forget"]).mean(),
        "npo": npo_loss(nll["forget"], ref["forget"], beta).mean(),
        "dpo": dpo_loss(nll["idk"], ref["idk"], nll["forget"], ref["forget"], beta).mean(),
        "simnpo": simnpo_loss(
            nll["forget"], answer_lengths(labels["forget"]), float(golden["beta_sim"]), float(golden["delta"])
        ).mean(),
        "orig_kto_sigmoid": kto_loss(nll["forget"], ref["forget"], z, beta, "sigmoid").mean(),
        "orig_kto_logsigmoid": kto_loss(nll["forget"], ref["forget"], z, beta, "logsigmoid").mean(),
        "orig_idk_concat": idk_rows.mean() + retain_rows.mean(),
    }
    for name, value in found.items():
        np.testing.assert_allclose(value, golden[f"loss_{name}"], rtol=1e-10, err_msg=name)


@pytest.mark.slow
@pytest.mark.golden("npo", "losses_*.npz")
def test_losses_of_logits(golden, x64):
    """The means of the functions that take logits or hidden states."""
    logits, reference = _logits(golden, "pol", jnp.float64), _logits(golden, "ref", jnp.float64)
    forget, labels = logits["forget"], {part: jnp.asarray(golden[f"labels_{part}"]) for part in SETS}
    control = jnp.asarray(golden["rmu_control_vec"])
    width = control.shape[-1]
    masks = {part: labels[part] != -100 for part in SETS}
    (gamma, alpha), eps = golden["pdu_pref"], golden["pdu_eps"]
    retain = token_mean_ce(logits["retain"], labels["retain"])
    beta1, beta2, undial_beta = (float(golden[name]) for name in ("beta1", "beta2", "undial_beta"))
    found = {
        "kl_retain": kl_retain_loss(logits["retain"], reference["retain"]).mean(),
        "wga": wga_loss(forget, labels["forget"], beta1).mean(),
        "satimp": satimp_loss(forget, labels["forget"], beta1, beta2).mean(),
        "undial_masked": undial_loss(forget, reference["forget"], labels["forget"], undial_beta).mean(),
        "ceu": ceu_loss(forget, labels["forget"]).mean(),
        "pdu": gamma * pdu_forget_loss(forget, labels["forget"]).mean() + alpha * (retain - eps),
        "rmu_forget": rmu_loss(forget[..., :width], control, masks["forget"], own_length=False).mean(),
        "rmu_retain": rmu_loss(
            logits["retain"][..., :width],
            reference["retain"][..., :width],
            masks["retain"],
            own_length=False,
        ).mean(),
    }
    for name, value in found.items():
        np.testing.assert_allclose(value, golden[f"loss_{name}"], rtol=1e-10, err_msg=name)


@pytest.mark.golden("npo", "losses_*.npz")
def test_the_multiplier_after_a_step(golden, x64):
    forget_weight, initial = map(float, golden["pdu_pref"])
    tx = dual_ascent_retain(
        float(golden["pdu_eps"]),
        float(golden["pdu_dual_step"]),
        initial=initial,
        forget_weight=forget_weight,
    )
    losses = jnp.array([0.0, golden["loss_nll_retain"]])
    _, state = tx.update(jnp.ones((2, 1)), tx.init(jnp.zeros(1)), losses=losses)
    np.testing.assert_allclose(state.retain_weight, golden["pdu_preference_after"], rtol=1e-10)


@pytest.mark.golden("npo", "undial_official.npz")
@pytest.mark.parametrize("wide", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_undial_of_the_official_code(golden, wide):
    """All positions, and index V - 100 for ignored labels; and the same over the labels alone."""
    with jax.enable_x64(wide):
        dtype, tolerance = (jnp.float64, 1e-10) if wide else (jnp.float32, 1e-6)
        logits, reference = (jnp.asarray(golden[f"logits_{which}_forget"], dtype) for which in ("pol", "ref"))
        labels, beta = jnp.asarray(golden["labels_forget"]), float(golden["beta"])

        @jax.jit
        def found(logits):
            def official(logits):
                return undial_loss(logits, reference, labels, beta, masked=False).mean()

            cfg = UnlearnConfig(beta=beta, undial_masked=False)
            batch, outputs = {"forget": {"labels": labels}}, {"forget": logits}
            by_name, _ = unlearning_loss("undial", batch, outputs, {"forget": reference}, cfg)
            masked = undial_loss(logits, reference, labels, beta).mean()
            return *jax.value_and_grad(official)(logits), by_name, masked

        loss, gradient, by_name, masked = found(logits)
        np.testing.assert_allclose(loss, golden["loss_undial_official"], rtol=tolerance)
        np.testing.assert_allclose(by_name, golden["loss_undial_official"], rtol=tolerance)
        np.testing.assert_allclose(masked, golden["loss_undial_masked"], rtol=tolerance)
        if wide:
            np.testing.assert_allclose(
                gradient.astype(np.float32), golden["grad_undial_official_forget"], rtol=1e-6, atol=1e-30
            )


@pytest.mark.golden("npo", "losses_*.npz")
def test_every_array_has_a_test(golden):
    losses = {name.removeprefix("loss_") for name in golden if name.startswith("loss_")}
    assert losses == set(LOSSES)
    inputs = {f"labels_{part}" for part in SETS}
    for which in ("pol", "ref"):
        inputs |= {f"{kind}_{which}_{part}" for kind in ("logits", "seqnll") for part in SETS}
    others = {name for name in golden if not name.startswith(("loss_", "grad_"))}
    assert others == inputs | {*SETTINGS, "rmu_control_vec", "pdu_preference_after"}
