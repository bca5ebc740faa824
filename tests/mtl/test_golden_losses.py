"""Scalarisers, dynamic weight averaging and metrics against official code and published tables."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxneg.mtl import (
    combine,
    delta_m,
    delta_p_metric,
    delta_p_task,
    dwa_weights,
    famo_init,
    famo_loss,
    famo_observe,
    famo_update,
    gls,
    graddrop_masked,
    gradnorm_loss,
    gradnorm_weights,
    gradvac,
    gram,
    imtl_g,
    imtl_l,
    mean_rank,
    moco_tracker,
    moco_weights,
    multitask,
    rlw_weights,
    sdmgrad,
    si,
    stch,
    stch_log,
    uw,
)

# Arrays that the links in test_multitask.py are compared with.
ELSEWHERE = re.compile(r"hp_(db|moco|excess|modo)|(dbmtl|modo)_|moco_dir|excess_|sdm_libmtl_dir")


class Checked:
    """The arrays of a file by case, and which of them a test has looked at."""

    def __init__(self, arrays):
        self.arrays, self.seen = arrays, set()

    def get(self, name):
        if name not in self.arrays:
            return None
        self.seen.add(name)
        return self.arrays[name]

    def assert_all_seen(self):
        left = [name for name in self.arrays if name not in self.seen and not ELSEWHERE.search(name)]
        assert not left, f"arrays without a test: {left}"


@pytest.mark.golden("mtl_reweighting", "scalarisers.npz")
def test_scalarisers(golden, x64, monkeypatch):
    checked = Checked(golden)
    for group in sorted({name.split("__")[0] for name in golden if "__" in name}):
        losses, s = (jnp.asarray(checked.get(f"{group}__{name}")) for name in ("losses", "s"))
        value, (by_losses, by_s) = jax.value_and_grad(uw, argnums=(0, 1))(losses, s)
        np.testing.assert_allclose(value, checked.get(f"{group}__uw_val"), rtol=1e-9)
        np.testing.assert_allclose(by_losses, checked.get(f"{group}__uw_dl"), rtol=1e-9)
        np.testing.assert_allclose(by_s, checked.get(f"{group}__uw_ds"), rtol=1e-9, atol=1e-9)
        for name, scalariser in {"gls": gls, "si": si}.items():
            value, by_losses = jax.value_and_grad(scalariser)(losses)
            np.testing.assert_allclose(value, checked.get(f"{group}__{name}_val"), rtol=1e-9, atol=1e-9)
            np.testing.assert_allclose(by_losses, checked.get(f"{group}__{name}_dl"), rtol=1e-9)
        value, (by_losses, by_s) = jax.value_and_grad(imtl_l, argnums=(0, 1))(losses, s)
        np.testing.assert_allclose(value, checked.get(f"{group}__imtll_val"), rtol=1e-9)
        np.testing.assert_allclose(by_losses, checked.get(f"{group}__imtll_dl"), rtol=1e-9)
        np.testing.assert_allclose(by_s, checked.get(f"{group}__imtll_ds"), rtol=1e-9, atol=1e-9)
        pref, ref = (jnp.asarray(checked.get(f"{group}__{name}")) for name in ("pref", "ref"))
        smoothings = re.findall(rf"{group}__stch_mu([\d.]+)_val", " ".join(golden))
        assert smoothings
        for mu in smoothings:
            for name, given in {f"stch_mu{mu}": (), f"stch_mu{mu}_pref": (pref, ref)}.items():
                value, by_losses = jax.value_and_grad(stch)(losses, float(mu), *given)
                np.testing.assert_allclose(value, checked.get(f"{group}__{name}_val"), rtol=1e-9)
                expected = checked.get(f"{group}__{name}_dl")
                np.testing.assert_allclose(by_losses, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())
            nadir = jnp.asarray(checked.get(f"{group}__stch_libmtl_mu{mu}_nadir"))
            expected = checked.get(f"{group}__stch_libmtl_mu{mu}_dl")
            by_losses = jax.grad(stch_log)(losses, nadir, float(mu))
            np.testing.assert_allclose(by_losses, expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())
        normals = jnp.asarray(checked.get(f"{group}__rlw_z"))
        with monkeypatch.context() as patch:
            patch.setattr(jax.random, "normal", lambda key, shape, normals=normals: normals.reshape(shape))
            weights = rlw_weights(jax.random.key(0), len(losses))
        np.testing.assert_allclose(weights, checked.get(f"{group}__rlw_w"), rtol=1e-9)

    rate, decay, bound = (float(checked.get(f"famo_{name}")) for name in ("lr", "wd", "min"))
    xi, opt_state = famo_init(len(golden["famo_before_0"]), jnp.float64)
    for t in range(sum(name.startswith("famo_val_") for name in golden)):
        before, after = (jnp.asarray(checked.get(f"famo_{name}_{t}")) for name in ("before", "after"))
        value, by_losses = jax.value_and_grad(famo_loss)(before, xi, bound)
        np.testing.assert_allclose(value, checked.get(f"famo_val_{t}"), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(by_losses, checked.get(f"famo_dl_{t}"), rtol=1e-9)
        xi, opt_state = famo_update(
            xi, opt_state, before, after, learning_rate=rate, gamma=decay, min_losses=bound
        )
        np.testing.assert_allclose(xi, checked.get(f"famo_logits_{t}"), rtol=1e-9, atol=1e-12)
    checked.assert_all_seen()


@pytest.mark.golden("mtl_reweighting", "stateful.npz")
def test_methods_with_a_memory(golden, x64):
    checked = Checked(golden)
    history, tau = jnp.asarray(checked.get("dwa_buffer")), float(checked.get("hp_dwa_T"))
    for name in [name for name in golden if name.startswith("dwa_weights_epoch")]:
        epoch = int(name.removeprefix("dwa_weights_epoch"))
        np.testing.assert_allclose(dwa_weights(history[:, :epoch], tau), checked.get(name), rtol=1e-9)

    J, L = jnp.asarray(checked.get("J")[0, 0]), jnp.asarray(checked.get("losses")[0])
    G = gram(J)

    s, L0 = (jnp.asarray(checked.get(f"gradnorm_{name}")) for name in ("s", "L0"))
    weights, alpha = gradnorm_weights(s), float(checked.get("hp_gn_alpha"))
    np.testing.assert_allclose(weights, checked.get("gradnorm_weights"), rtol=1e-9)
    np.testing.assert_allclose(combine(weights, J), checked.get("gradnorm_dir"), rtol=1e-9)
    gradient = jax.grad(gradnorm_loss)(s, jnp.linalg.norm(J, axis=1), L, L0, alpha)
    np.testing.assert_allclose(gradient, checked.get("gradnorm_ds"), rtol=1e-9)

    w = official = lam = jnp.full(len(s), 1 / len(s))
    tracked, share = jnp.zeros_like(J), float(checked.get("hp_sdm_lam"))
    rate = float(checked.get("hp_sdm_lr"))
    for t, (batches, losses) in enumerate(zip(golden["J"], golden["losses"], strict=True)):
        A = jnp.asarray(batches[1] @ batches[2].T)
        _, w = sdmgrad(A, w, lam=share)
        np.testing.assert_allclose(w, checked.get(f"sdm_libmtl_w_{t}"), rtol=1e-9, atol=1e-12)
        weights, official = sdmgrad(A, official, lam=share, learning_rate=rate)
        np.testing.assert_allclose(weights, checked.get(f"sdm_torchjd_weights_{t}"), rtol=1e-9)
        first = jnp.asarray(batches[0])
        tracked = moco_tracker(tracked, first, gram(first), jnp.asarray(losses), t + 1)
        lam = moco_weights(lam, gram(tracked), t + 1)
        np.testing.assert_allclose(lam, checked.get(f"moco_lambda_{t}"), rtol=1e-9)

    s = jnp.asarray(checked.get("imtl_s"))
    scales = jnp.exp(s)
    np.testing.assert_allclose(imtl_g(G * scales[:, None] * scales), checked.get("imtl_weights"), rtol=1e-9)
    # The link scales the gradients itself, and its optimiser sees the derivative of IMTL-L.
    link = multitask("imtl", n_tasks=len(s), optimizer=optax.sgd(1.0))
    state = link.init(jnp.zeros(J.shape[1]))
    state = state._replace(method=state.method._replace(s=s))
    direction, state = link.update(J, state, losses=L)
    np.testing.assert_allclose(direction, checked.get("imtl_dir"), rtol=1e-9)
    np.testing.assert_allclose(s - state.method.s, checked.get("imtl_ds"), rtol=1e-9)
    checked.assert_all_seen()


@pytest.mark.golden("mtl_reweighting", "graddrop.npz")
def test_graddrop(golden, x64):
    for case in {name.split("__")[0] for name in golden}:
        J, U, leak = (jnp.asarray(golden[f"{case}__{name}"]) for name in ("J", "U", "leak"))
        np.testing.assert_array_equal(graddrop_masked(J, U).sum(0), golden[f"{case}__dir"])
        np.testing.assert_allclose(
            graddrop_masked(J, U, leak).sum(0), golden[f"{case}__dir_leak"], rtol=1e-12, atol=1e-15
        )


@pytest.mark.golden("mtl_reweighting", "gradvac.npz")
@pytest.mark.parametrize("name", ["torchjd", "libmtl"])
def test_gradvac(golden, x64, name):
    steps = [key.removesuffix("__J") for key in golden if key.endswith("__J")]
    rho = jnp.zeros((len(golden["step0__J"]),) * 2)
    for step in steps:
        J, perm = jnp.asarray(golden[f"{step}__J"]), jnp.asarray(golden[f"{step}__perm"])
        w, rho = gradvac(gram(J), rho, perm, beta=float(golden["beta"]))
        np.testing.assert_allclose(rho, golden[f"{step}__{name}_rho"], rtol=1e-10, atol=1e-12)
        if name == "torchjd":
            np.testing.assert_allclose(w, golden[f"{step}__torchjd_weights"], rtol=1e-10)
        else:
            np.testing.assert_allclose(combine(w, J), golden[f"{step}__libmtl_dir"], rtol=1e-10, atol=1e-10)


@pytest.mark.golden("mtl_reweighting", "delta_m.npz")
def test_metrics(golden, x64):
    checked = Checked(golden)
    for base_name in [name for name in golden if name.endswith("_base")]:
        prefix = base_name.removesuffix("_base")
        base = jnp.asarray(checked.get(base_name))
        # NYUv2's metrics are the same in both tables; QM9's are all errors.
        signs = golden.get(f"{prefix}_higher_better")
        if signs is None:
            shared = [
                golden[name] for name in golden if name.endswith("_higher_better") and name[:3] == prefix[:3]
            ]
            signs = shared[0] if shared else np.zeros(base.shape)
        checked.get(f"{prefix}_higher_better")
        better, group = jnp.asarray(signs, bool), checked.get(f"{prefix}_group")
        rows = [n for n in golden if n.startswith(f"{prefix}_") and golden[n].shape == base.shape]
        for name in rows:
            row = jnp.asarray(checked.get(name))
            if f"{name}_exact" in golden:
                exact, published = checked.get(f"{name}_exact"), checked.get(f"{name}_published")
                ours = [
                    delta_p_task(row, base, better, jnp.asarray(group)),
                    delta_p_metric(row, base, better),
                ]
                np.testing.assert_allclose(ours, exact, rtol=1e-9)
                np.testing.assert_allclose(ours, published, atol=0.02)
            elif f"{name}_exact_dm" in golden:
                exact, published = checked.get(f"{name}_exact_dm"), checked.get(f"{name}_published_dm")
                np.testing.assert_allclose(delta_m(row, base, better), exact, rtol=1e-9)
                np.testing.assert_allclose(delta_m(row, base, better), published, rtol=0.01, atol=0.02)
    metrics, better = (
        jnp.asarray(checked.get("mr_metrics")),
        np.asarray(checked.get("mr_higher_better"), bool),
    )
    costs = np.where(better, -np.asarray(metrics), np.asarray(metrics))
    ranks = 1 + (costs[None] < costs[:, None]).sum(1) + ((costs[None] == costs[:, None]).sum(1) - 1) / 2
    np.testing.assert_allclose(mean_rank(metrics, jnp.asarray(better)), ranks.mean(1))
    checked.assert_all_seen()


@pytest.mark.golden("mtl_reweighting", "scalarisers.npz")
@pytest.mark.parametrize("after", ["same", "next"])
def test_famo_as_a_link(golden, x64, after):
    rate, decay, bound = (float(golden[f"famo_{name}"]) for name in ("lr", "wd", "min"))
    tasks = len(golden["famo_before_0"])
    link = multitask("famo", n_tasks=tasks, after=after, learning_rate=rate, gamma=decay, min_losses=bound)
    jac, state = jnp.eye(tasks), link.init(jnp.zeros(tasks))
    steps = sum(name.startswith("famo_val_") for name in golden)
    for t in range(steps):
        # The identity as a Jacobian: what comes out are the weights.
        weights, state = link.update(jac, state, losses=jnp.asarray(golden[f"famo_before_{t}"]))
        np.testing.assert_allclose(weights, golden[f"famo_dl_{t}"], rtol=1e-9)
        losses_after = jnp.asarray(golden[f"famo_after_{t}"])
        if after == "same":
            state = famo_observe(state, losses_after)
            np.testing.assert_allclose(state.method.xi, golden[f"famo_logits_{t}"], rtol=1e-9, atol=1e-12)
        else:
            _, following = link.update(jac, state, losses=losses_after)
            np.testing.assert_allclose(following.method.xi, golden[f"famo_logits_{t}"], rtol=1e-9, atol=1e-12)
            # The vectors begin each step with another batch; here the link has been told this one already.
            state = famo_observe(state, losses_after)
