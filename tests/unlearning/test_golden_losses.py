"""Every loss and gradient of the first set against the official code, in float64 and in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneg.unlearning import (
    UnlearnConfig,
    answer_lengths,
    ce_loss,
    dpo_loss,
    ga_loss,
    idk_loss,
    kl_retain_loss,
    kto_baseline,
    kto_loss,
    npo_loss,
    sequence_nll,
    simnpo_loss,
    token_mean_ce,
    unlearning_loss,
)

SETS = ("forget", "retain", "idk")

# What only the README says: the coefficients of the totals.
SIMNPO_RT = {"gamma": 0.125, "alpha": 1.0}

# Golden loss: method, and the fields of its config; beta is read from the file.
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
}

# They belong to the losses of a later set.
LATER = ("wga", "satimp", "ceu", "pdu", "rmu_forget", "rmu_retain", "undial_masked")


def _batch(golden):
    return {part: {"labels": jnp.asarray(golden[f"labels_{part}"])} for part in SETS}


def _logits(golden, which, dtype):
    return {part: jnp.asarray(golden[f"logits_{which}_{part}"], dtype) for part in SETS}


def _loss(golden, method, fields, logits, reference):
    """The golden's loss as a function of the policy's logits, and the sum of its terms' absolute values."""
    batch = _batch(golden)
    beta = golden["beta_sim"] if method.startswith("simnpo") else golden["beta"]
    cfg = UnlearnConfig(beta=float(beta), delta=float(golden["delta"]), **fields)
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
    loss, aux = unlearning_loss(method, batch, logits, reference, cfg)
    terms = cfg.gamma * abs(aux["forget_loss"]) + cfg.alpha * aux.get("retain_loss", 0)
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
    of_later = {f"grad_{name}_{part}" for name in LATER for part in SETS}
    assert checked == {name for name in golden if name.startswith("grad_")} - of_later


@pytest.mark.golden("npo", "losses_*.npz")
@pytest.mark.parametrize("wide", [True, False])
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


@pytest.mark.golden("npo", "losses_*.npz")
def test_every_array_has_a_test(golden):
    losses = {name.removeprefix("loss_") for name in golden if name.startswith("loss_")}
    assert losses == set(LOSSES) | set(LATER)
