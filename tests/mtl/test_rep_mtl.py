"""Rep-MTL against an independent float64 implementation that builds every matrix, and its mesh and limits."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from jaxneg.mtl import (
    csa_loss,
    csa_loss_sharded,
    csa_terms,
    make_rep_mtl_loss,
    rep_mtl_loss,
    saliency_distribution,
    task_saliency,
    tsr_entropy,
)

# The vectors have the channels before the positions.
CHANNELS = 2
# Programs that run once need not be optimised.
FAST = {"xla_backend_optimization_level": 0}


def saliencies(seed=0, shape=(3, 8, 4, 5)):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def everything(S, tau, eps):
    """Under the names that the vectors have."""
    pos, neg = csa_terms(S, CHANNELS, eps)
    tsr, tsr_grad = jax.value_and_grad(tsr_entropy)(S, CHANNELS, eps)
    csa, csa_grad = jax.value_and_grad(csa_loss)(S, tau, "mean", eps, CHANNELS)
    return {
        "P": saliency_distribution(S, CHANNELS, eps),
        "pos": pos,
        "neg": neg,
        "tsr": tsr,
        "tsr_grad": tsr_grad,
        "csa_mean": csa,
        "csa_grad": csa_grad,
        "csa_sum_over_tasks": csa_loss(S, tau, "sum", eps, CHANNELS),
    }


@pytest.mark.golden("rep_mtl", "saliency_losses.npz")
@pytest.mark.parametrize("precision", ["float64", pytest.param("float32", marks=pytest.mark.slow)])
def test_saliency_losses(golden, precision):
    double = precision == "float64"
    with jax.enable_x64(double):
        for case in {name.split("__")[0] for name in golden}:
            start = f"{case}__"
            arrays = {name.removeprefix(start): golden[name] for name in golden if name.startswith(start)}
            S, tau, eps = (arrays.pop(name) for name in ("S", "tau", "eps"))
            size = 1.0 if double else np.sqrt(np.mean(S**2))
            compute = jax.jit(partial(everything, tau=float(tau), eps=float(eps)), compiler_options=FAST)
            found = compute(jnp.asarray(S / size, precision))
            assert found.keys() == arrays.keys()
            for name, expected in arrays.items():
                if name.endswith("_grad"):
                    error = np.linalg.norm(np.asarray(found[name]) / size - expected)
                    relative, absolute = (1e-8, 1e-11) if double else (1e-3, 1e-4)
                    assert error <= relative * np.linalg.norm(expected) + absolute, (case, name)
                else:
                    tolerance = 1e-10 if double else 1e-4
                    np.testing.assert_allclose(
                        found[name], expected, rtol=tolerance, atol=tolerance, err_msg=case
                    )


@pytest.mark.golden("rep_mtl", "end_to_end.npz")
def test_end_to_end(golden, x64):
    """Values, and gradients through the saliencies, of two small networks."""
    for net in sorted({name.split("__")[0] for name in golden}):
        g = {name.split("__", 1)[1]: jnp.asarray(golden[name]) for name in golden if name.startswith(net)}
        params = {
            name.removeprefix("param_"): value for name, value in g.items() if name.startswith("param_")
        }
        tasks = g["S"].shape[0]
        logarithm = bool(golden[f"{net}__log_transform"])

        def total(params, net=net, g=g, tasks=tasks, logarithm=logarithm):
            Z = jnp.tanh(g["X"] @ params["W1"] + params["b1"]).reshape(g["S"].shape[1:])

            def losses(Z):
                each = []
                for t in range(tasks):
                    logits = jnp.tanh(Z.reshape(Z.shape[0], -1) @ params[f"V{t}"]) @ params[f"U{t}"]
                    labels = g["Y"][t].astype(int)
                    each.append(optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean())
                losses = jnp.stack(each)
                return jnp.log(losses + 1e-8) if logarithm else losses

            L, S = task_saliency(losses, Z)
            S = S * g["saliency_scale"]
            value, parts = rep_mtl_loss(
                L,
                S,
                float(golden[f"{net}__lambda_tsr"]),
                float(golden[f"{net}__lambda_csa"]),
                tau=float(golden[f"{net}__tau"]),
                eps=float(golden[f"{net}__eps"]),
                channel_axis=CHANNELS,
                rescale=False,
            )
            return value, (L, S, parts)

        compute = jax.jit(jax.value_and_grad(total, has_aux=True), compiler_options=FAST)
        (value, (L, S, parts)), gradient = compute(params)
        for name, found in {"total": value, "losses": L, "S": S, **parts}.items():
            np.testing.assert_allclose(found, g[name], rtol=1e-9, atol=1e-9)
        for name, found in gradient.items():
            expected = g[f"grad_{name}"]
            assert np.linalg.norm(found - expected) <= 1e-7 * np.linalg.norm(expected), (net, name)


@pytest.mark.slow
def test_a_common_factor_does_not_matter():
    S, losses = saliencies(), jnp.ones(3)
    value, gradient = jax.value_and_grad(lambda S: rep_mtl_loss(losses, S, channel_axis=CHANNELS)[0])(S)
    small, gradient_of_small = jax.value_and_grad(
        lambda S: rep_mtl_loss(losses, S, channel_axis=CHANNELS)[0]
    )(1e-6 * S)
    np.testing.assert_allclose(small, value, rtol=1e-5)
    np.testing.assert_allclose(1e-6 * gradient_of_small, gradient, rtol=1e-3, atol=1e-6)


def test_a_dead_task_gets_no_gradient():
    S = saliencies().at[1].set(0.0)
    gradient = jax.grad(lambda S: tsr_entropy(S, CHANNELS))(S)
    assert np.all(np.isfinite(gradient))
    assert np.abs(gradient[1]).max() < 1e-3


def test_one_task_and_one_example():
    S = saliencies(shape=(1, 6, 4, 5))
    value, gradient = jax.value_and_grad(tsr_entropy)(S)
    assert value == 0
    assert not np.any(gradient)
    alone = saliencies(shape=(3, 1, 4, 5))
    pos, _ = csa_terms(alone, CHANNELS)
    np.testing.assert_allclose(csa_loss(alone, 0.5, channel_axis=CHANNELS), -pos.mean() / 0.5, rtol=1e-6)


def test_channels_may_lie_anywhere():
    S = saliencies(shape=(3, 6, 2, 5, 4))
    moved = jnp.moveaxis(S, -1, CHANNELS)
    np.testing.assert_allclose(tsr_entropy(S), tsr_entropy(moved, CHANNELS), rtol=1e-6)
    np.testing.assert_allclose(csa_loss(S), csa_loss(moved, channel_axis=CHANNELS), rtol=1e-5)
    assert saliency_distribution(S).shape == (3, 6, 2, 5)


def test_no_matrix_of_channels_is_built():
    jaxpr = str(jax.make_jaxpr(jax.grad(csa_loss))(jnp.zeros((2, 3, 7, 131))))
    assert "131,131" not in jaxpr


def test_bfloat16_is_computed_in_float32():
    S = saliencies()
    low = S.astype(jnp.bfloat16)
    for loss in (tsr_entropy, csa_loss):
        assert loss(low).dtype == jnp.float32
        np.testing.assert_allclose(loss(low), loss(low.astype(jnp.float32)), rtol=1e-6)


@pytest.mark.slow
def test_sharded_equals_unsharded():
    S = saliencies(shape=(3, 16, 5, 4))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    both = jax.shard_map(
        lambda S: (csa_loss_sharded(S, "data"), jax.lax.pmean(tsr_entropy(S), "data")),
        mesh=mesh,
        in_specs=P(None, "data"),
        out_specs=P(),
    )
    value, gradient = jax.value_and_grad(lambda S: sum(both(S)))(S)
    expected, expected_gradient = jax.value_and_grad(lambda S: csa_loss(S) + tsr_entropy(S))(S)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_convolutions_on_a_sharded_batch_gather_no_activations():
    """Only the pooled saliencies ``[T, B, C]`` may cross the mesh."""
    T, B, side, C = 3, 16, 8, 6
    kernels = jnp.asarray(np.random.default_rng(0).normal(size=(T, 3, 3, C, C)), jnp.float32)

    def losses(kernels, Z):
        features = [
            jnp.tanh(
                jax.lax.conv_general_dilated(Z, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            )
            for k in kernels
        ]
        return jnp.stack([jnp.mean(f**2) for f in features])

    def objective(kernels, Z):
        L, S = task_saliency(partial(losses, kernels), Z)
        return rep_mtl_loss(L, S)[0]

    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, P("data"))
    Z = jax.ShapeDtypeStruct((B, side, side, C), jnp.float32, sharding=sharding)
    text = jax.jit(jax.grad(objective, argnums=1)).lower(kernels, Z).compile().as_text()
    shapes = re.findall(r"= \w+\[([\d,]*)\]\S* all-gather\(", text)
    assert all(np.prod([int(n) for n in shape.split(",")]) <= T * B * C for shape in shapes), shapes


# --- the loss of a train step ------------------------------------------------------------------------------


def encode(encoder, x):
    return jnp.tanh(x @ encoder)


def head_losses(heads, Z, x):
    del x
    return jnp.mean((jnp.tanh(Z @ heads) - jnp.arange(2.0)) ** 2, axis=0)


PARAMS = {"encoder": jnp.asarray(np.random.default_rng(1).normal(size=(5, 6)), jnp.float32)}
PARAMS |= {"heads": jnp.asarray(np.random.default_rng(2).normal(size=(6, 2)), jnp.float32)}
X = jnp.asarray(np.random.default_rng(3).normal(size=(7, 5)), jnp.float32)


@pytest.mark.slow
def test_regularisers_move_the_encoder_alone_unless_told():
    plain = jax.grad(lambda p: head_losses(p["heads"], encode(p["encoder"], X), X).sum())(PARAMS)

    def gradient(**options):
        return jax.grad(lambda p: make_rep_mtl_loss(encode, head_losses, **options)(p, X, None)[0])(PARAMS)

    encoder_only, everything = gradient(), gradient(reg_grad_to="all")
    np.testing.assert_allclose(encoder_only["heads"], plain["heads"], rtol=1e-5)
    assert np.abs(everything["heads"] - plain["heads"]).max() > 1e-3
    assert np.abs(encoder_only["encoder"] - plain["encoder"]).max() > 1e-3
    np.testing.assert_allclose(encoder_only["encoder"], everything["encoder"], rtol=1e-4, atol=1e-6)
    without = gradient(lam_tsr=0.0, lam_csa=0.0)
    np.testing.assert_allclose(without["encoder"], plain["encoder"], rtol=1e-5, atol=1e-7)


def test_log_transform_and_weighting():
    loss_fn = make_rep_mtl_loss(
        encode, head_losses, log_transform=True, weighting=lambda L: 1 / L, lam_tsr=0.0, lam_csa=0.0
    )
    loss, aux = loss_fn(PARAMS, X, None)
    L = jnp.log(head_losses(PARAMS["heads"], encode(PARAMS["encoder"], X), X) + 1e-8)
    np.testing.assert_allclose(aux["task_losses"], L, rtol=1e-6)
    np.testing.assert_allclose(loss, 2.0, rtol=1e-6)


def test_a_batch_for_each_task():
    Z = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 3)), jnp.float32)
    losses, S = task_saliency(lambda Z: jnp.mean(Z**2, axis=(1, 2)), Z, own_inputs=True)
    np.testing.assert_allclose(S, 2 * Z / 12, rtol=1e-6)
    assert losses.shape == (2,)


@pytest.mark.slow
def test_the_entropy_falls_under_its_regulariser():
    """Mechanism: positions come to belong to one task. The term has kinks: means over starts and steps."""

    def mean_entropy(lam_tsr, encoder):
        loss_fn = make_rep_mtl_loss(encode, head_losses, lam_tsr=lam_tsr, lam_csa=0.0)
        gradient = jax.grad(lambda e: loss_fn({**PARAMS, "encoder": e}, X, None), has_aux=True)

        def step(encoder, _):
            descent, aux = gradient(encoder)
            return encoder - 0.01 * descent, aux["tsr"]

        return jnp.mean(jax.lax.scan(step, encoder, length=200)[1][100:])

    starts = jnp.asarray(np.random.default_rng(4).normal(size=(16, *PARAMS["encoder"].shape)), jnp.float32)
    without, with_term = (jax.jit(jax.vmap(partial(mean_entropy, lam)))(starts).mean() for lam in (0.0, 1.0))
    assert with_term < 0.8 * without, (with_term, without)


MISTAKES = {
    "channels": (lambda: tsr_entropy(jnp.ones((2, 3, 4)), 1), "S: expected [T, B, ...] with the channels"),
    "rank": (lambda: csa_loss(jnp.ones((2, 3))), "S: expected [T, B, ...] with the channels"),
    "tau": (lambda: csa_loss(saliencies(), tau=0.0), "tau: expected a positive temperature, got 0.0"),
    "reduction": (lambda: csa_loss(saliencies(), task_reduction="max"), "task_reduction: expected 'mean' or"),
    "losses": (lambda: task_saliency(jnp.sum, jnp.ones(3)), "loss_vec_fn: expected losses [T]"),
    "own inputs": (
        lambda: task_saliency(lambda Z: Z.sum(0), jnp.ones((3, 2)), own_inputs=True),
        "Z: expected a batch for each of 2 tasks, got shape (3, 2)",
    ),
    "weights": (
        lambda: rep_mtl_loss(jnp.ones(3), saliencies(), weights=jnp.ones(2)),
        "weights: expected shape (3,), one for each task, got (2,)",
    ),
    "reg_grad_to": (
        lambda: make_rep_mtl_loss(encode, head_losses, reg_grad_to="heads"),
        "reg_grad_to: expected 'encoder' or 'all', got 'heads'",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake):
    call, message = MISTAKES[mistake]
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
