"""PG-SB: goldens of its losses, and its step on a tiny model."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxneg.diffusion.ema import ema_params, track_ema
from jaxneg.diffusion.lora import lora_apply, lora_init, lora_linear
from jaxneg.diffusion.predictions import add_noise
from jaxneg.diffusion.snoopi import (
    PGSBConfig,
    cfg_combine,
    clamped_clip_loss,
    clip_weight,
    init_pgsb,
    lora_teacher_loss,
    make_pgsb_step,
    one_step_predict,
    pgsb_optimizers,
    sample_kappa,
    vsd_loss,
    vsd_score_grad,
)
from jaxneg.train import fit, make_mesh, shard_step


def close(ours, golden, name, rtol=1e-10, atol=1e-12):
    np.testing.assert_allclose(ours, golden[name], rtol=rtol, atol=atol, err_msg=name)


@pytest.mark.golden("snoopi", "vsd_loss.npz")
def test_golden_vsd_loss(golden, x64):
    fixed, kappa, abar = golden["kappa_fixed"], golden["kappa"], golden["alphas_cumprod_at_t"]
    teacher = golden["teacher_cond"], golden["teacher_uncond"]
    fake = golden["lora_cond"], golden["lora_uncond"]
    given = {
        "fixed": (*teacher, *fake, fixed, fixed),
        "random_both": (*teacher, *fake, kappa, kappa),
        "random_teacher_lora_cond_only": (*teacher, *fake, kappa, 1.0),
        "random_lora_fixed_teacher": (*teacher, *fake, fixed, kappa),
        "negative_teacher": (teacher[0], golden["teacher_neg"], *fake, kappa, kappa),
    }
    assert {name.removeprefix("loss_") for name in golden if name.startswith("loss_")} == set(given)
    x0 = jnp.asarray(golden["x0"])
    for mode, arguments in given.items():
        g = vsd_score_grad(*arguments, abar)
        close(g, golden, f"score_grad_{mode}")
        loss, slope = jax.value_and_grad(lambda x, g=g: vsd_loss(x, g).mean())(x0)
        close(loss, golden, f"loss_{mode}")
        close(slope, golden, f"dloss_dx0_{mode}")
        assert vsd_loss(x0, g).shape == x0.shape[:1]


@pytest.mark.golden("snoopi", "lora_and_onestep.npz")
def test_golden_lora_and_one_step(golden, x64):
    abar, noise = golden["alphas_cumprod_at_t"], golden["noise"]

    def loss(pred):
        return lora_teacher_loss(pred, noise, abar).mean()

    value, slope = jax.value_and_grad(loss)(jnp.asarray(golden["lora_pred"]))
    close(value, golden, "lora_loss")
    close(slope, golden, "dloss_dpred")
    close(one_step_predict(golden["model_out"], golden["z"], golden["alphas_cumprod_T"]), golden, "x0")
    close(add_noise(golden["z"], noise, abar**0.5, (1 - abar) ** 0.5), golden, "x_t")


@pytest.mark.golden("snoopi", "lora_linear.npz")
def test_golden_lora_linear(golden, x64):
    W, b, A, B = (golden[name] for name in ("W", "b", "A", "B"))
    assert A.shape[1] == golden["rank"]
    close(lora_linear(golden["x"], W, b, A, B, gamma=golden["gamma"]), golden, "y")
    adapted = lora_apply({"w": jnp.asarray(W)}, {"w": {"a": A, "b": B}}, gamma=golden["gamma"])["w"]
    close(golden["x"] @ adapted + b, golden, "y")


@pytest.mark.golden("snoopi", "clamped_clip.npz")
def test_golden_clamped_clip(golden, x64):
    img, txt, tau = jnp.asarray(golden["img"]), golden["txt"], golden["tau"]
    close(2 - clamped_clip_loss(img, txt, 2.0), golden, "cosine")
    value, slope = jax.value_and_grad(lambda img: clamped_clip_loss(img, txt, tau).mean())(img)
    close(value, golden, "loss")
    close(slope, golden, "dloss_dimg")
    close(clip_weight(golden["steps"], int(golden["total_steps"])), golden, "weight_linear_decay")


WIDTH, BATCH, NULL = 4, 8, 5
ALPHA_BAR = np.linspace(0.99, 0.01, 20)
CONFIG = PGSBConfig(shape=(WIDTH,), lora_match="w", lora_rank=2, lora_gamma=3.0, abar_T=None, drop=0.0)


def apply(params, x, t, cond, neg_cond=None, alpha=0.0):
    """A tiny network that looks at everything it is given."""
    prompts = jax.nn.one_hot(cond, NULL + 1)
    if neg_cond is not None:
        prompts = prompts - alpha * jax.nn.one_hot(neg_cond, NULL + 1)
    hidden = x @ params["w"] + prompts @ params["prompts"] + 0.1 * t[:, None]
    return jnp.tanh(hidden)


def teacher_params(seed=0):
    w, prompts = (jax.random.normal(key, (n, WIDTH)) for key, n in zip(
        jax.random.split(jax.random.key(seed)), (WIDTH, NULL + 1), strict=True))  # fmt: skip
    return {"w": w, "prompts": prompts}


def made(cfg=CONFIG, *, student_apply=apply, teacher_apply=apply, adapted=True, key=7, **options):
    """A step with plain gradient descent, and a state whose adapters do something already."""
    tx = {"student_tx": optax.sgd(0.5), "lora_tx": optax.sgd(0.25)}
    step = make_pgsb_step(
        student_apply, teacher_apply, cfg, null_cond=NULL, alphas_cumprod=ALPHA_BAR, **tx, **options
    )
    state = init_pgsb(jax.random.key(key), teacher_params(), cfg, **tx)
    if adapted:
        state.params["lora"]["w"]["b"] += 0.1
    return step, state


PROMPTS = {"cond": jnp.arange(BATCH) % NULL, "neg_cond": (jnp.arange(BATCH) + 1) % NULL}


def by_hand(cfg, state, batch):
    """A step written out, with the same random numbers: student, adapters, kappa."""
    keys = jax.random.split(jax.random.fold_in(state.key, state.step), 5)
    z = jax.random.normal(keys[0], (BATCH, WIDTH))
    p, cond, null = state.params, batch["cond"], jnp.full(BATCH, NULL)
    adapt = lambda lora: {**p["teacher"], "w": p["teacher"]["w"] + 1.5 * lora["w"]["a"] @ lora["w"]["b"]}  # noqa: E731

    def sample(student):
        eps = apply(student, z, jnp.full(BATCH, len(ALPHA_BAR) - 1), cond)
        return (z - (1 - ALPHA_BAR[-1]) ** 0.5 * eps) / ALPHA_BAR[-1] ** 0.5

    def noised(x, key, low, high):
        t_key, noise_key = jax.random.split(key)
        t, noise = jax.random.randint(t_key, (BATCH,), low, high), jax.random.normal(noise_key, x.shape)
        abar = jnp.asarray(ALPHA_BAR, jnp.float32)[t][:, None]
        return abar**0.5 * x + (1 - abar) ** 0.5 * noise, t, noise, abar

    x = sample(p["student"])
    x_t, t, _, abar = noised(x, keys[3], 0, 20)
    kappa = jax.random.uniform(keys[4], (BATCH, 1), minval=cfg.kappa_min, maxval=cfg.kappa_max)
    of = lambda params, c: apply(params, x_t, t, c)  # noqa: E731
    guided = lambda params: (1 - kappa) * of(params, null) + kappa * of(params, cond)  # noqa: E731
    g = (1 - abar) * (guided(p["teacher"]) - guided(adapt(p["lora"])))
    _, pull = jax.vjp(sample, p["student"])
    grads = pull(g / g.size)[0]
    student = jax.tree.map(lambda w, d: w - 0.5 * d, p["student"], grads)

    lora = p["lora"]
    for key in jax.random.split(keys[2], cfg.ttur):
        x_t, t, noise, abar = noised(x, jax.random.split(key)[0], 0, 20)
        seen = null if cfg.drop else cond

        def loss(lora, x_t=x_t, t=t, noise=noise, abar=abar, seen=seen):
            return jnp.mean(abar * (apply(adapt(lora), x_t, t, seen) - noise) ** 2)

        lora = jax.tree.map(lambda w, d: w - 0.25 * d, lora, jax.grad(loss)(lora))
    return student, lora, kappa


@pytest.mark.parametrize("changes", [{}, pytest.param({"ttur": 3, "drop": 1.0}, marks=pytest.mark.slow)])
def test_step_by_hand(changes):
    cfg = dataclasses.replace(CONFIG, t_min=0.0, t_max=1.0, **changes)
    step, state = made(cfg)
    student, lora, kappa = jax.jit(partial(by_hand, cfg))(state, PROMPTS)
    new, metrics = jax.jit(step)(state, PROMPTS)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-6), new.params["student"], student)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-6), new.params["lora"], lora)
    jax.tree.map(np.testing.assert_array_equal, new.params["teacher"], state.params["teacher"])
    np.testing.assert_allclose(metrics["kappa"], kappa.mean(), rtol=1e-6)
    assert int(new.step) == 1
    # The samples of the new student would have given other adapters.
    moved = state._replace(params={**state.params, "student": student})
    other = jax.jit(partial(by_hand, cfg))(moved, PROMPTS)[1]
    assert not np.allclose(other["w"]["b"], lora["w"]["b"], rtol=1e-4)


def test_new_adapters_are_the_frozen_teacher():
    step, state = made(adapted=False)
    adapted = lora_apply(state.params["teacher"], state.params["lora"], gamma=3.0)
    jax.tree.map(np.testing.assert_array_equal, adapted, state.params["teacher"])
    new, metrics = jax.jit(step)(state, PROMPTS)
    # Two teachers that agree have nothing to say to the student, whatever kappa is.
    assert metrics["vsd_loss"] == metrics["grad_norm"] == 0
    jax.tree.map(np.testing.assert_array_equal, new.params["student"], state.params["student"])
    assert metrics["lora_grad_norm"] > 0


@pytest.mark.slow
def test_an_exact_teacher_with_another_network_for_the_adapters():
    """The frozen teacher is called as it is; adapted predictions come from the other network alone."""

    def exact(params, x, t, cond):
        return 0.5 * x

    def adapted(params, x, t, cond):
        return x @ params["w"]

    cfg = dataclasses.replace(CONFIG, kappa_mode="fixed", kappa=2.0, t_min=0.5, t_max=0.55)
    step, state = made(cfg, teacher_apply=exact, adapted_apply=adapted, adapted=False)
    state.params["teacher"]["w"] = 0.5 * jnp.eye(WIDTH)
    new, metrics = jax.jit(step)(state, PROMPTS)
    # The network is exact too: nothing is left of the difference, and the adapters still have to learn.
    assert metrics["vsd_loss"] < 1e-10
    assert metrics["lora_grad_norm"] > 0
    jax.tree.map(np.testing.assert_array_equal, new.params["teacher"], state.params["teacher"])
    state.params["teacher"]["w"] = 1.5 * jnp.eye(WIDTH)
    assert jax.jit(step)(state, PROMPTS)[1]["vsd_loss"] > 1e-3


def kappas(**changes):
    """A step's guidance scales, read off its gradient: a parameter for each row, one t, e_c - e_u = 1."""
    cfg = dataclasses.replace(CONFIG, kappa_mode="random_teacher", t_min=0.5, t_max=0.55, **changes)

    def student_apply(params, z, t, cond):
        return jnp.broadcast_to(params["prompts"][cond, :1], z.shape)

    def teacher_apply(params, x, t, cond):
        return jnp.broadcast_to((cond < NULL).astype(x.dtype)[:, None], x.shape) + 0 * params["w"][0]

    step, state = made(cfg, student_apply=student_apply, teacher_apply=teacher_apply, adapted=False)
    batch = {"cond": jnp.arange(NULL)}
    new, metrics = jax.jit(step)(state, batch)
    change = (new.params["student"]["prompts"] - state.params["student"]["prompts"])[:NULL, 0]
    slope = -((1 - ALPHA_BAR[-1]) ** 0.5) / ALPHA_BAR[-1] ** 0.5
    read = 1 + np.asarray(change) / (-0.5 * slope * (1 - ALPHA_BAR[10]) / NULL)
    np.testing.assert_allclose(metrics["kappa"], read.mean(), rtol=1e-4)
    return read


@pytest.mark.slow
def test_kappa_of_samples_and_of_steps():
    each = kappas()
    assert len(np.unique(each.round(3))) == NULL
    assert np.all((each > 0.5) & (each < 4.0))
    one = kappas(kappa_per="step")
    np.testing.assert_allclose(one, one[0], rtol=1e-4)


def spied(cfg, **options):
    """The conditions that each network was called with outside of the loop of the adapters."""
    calls = []

    def student_apply(params, z, t, cond, **nasa):
        calls.append(("student", cond, nasa))
        return apply(params, z, t, cond, **nasa)

    def teacher_apply(params, x, t, cond):
        if not isinstance(cond, jax.core.Tracer):
            adapted = not np.array_equal(params["w"], teacher_params()["w"])
            calls.append(("lora" if adapted else "teacher", cond, {}))
        return apply(params, x, t, cond)

    step, state = made(cfg, student_apply=student_apply, teacher_apply=teacher_apply, **options)
    _, metrics = step(state, PROMPTS)
    return calls, metrics


@pytest.mark.slow
def test_nasa_t_has_the_negative_prompt_in_the_teacher_and_not_in_the_adapters():
    calls, _ = spied(dataclasses.replace(CONFIG, nasa_t=True))
    (_, _, nasa), *_ = [call for call in calls if call[0] == "student"]
    np.testing.assert_array_equal(nasa["neg_cond"], PROMPTS["neg_cond"])
    assert 0 < nasa["alpha"] < 1
    seen = {name: [np.asarray(c) for n, c, _ in calls if n == name] for name in ("teacher", "lora")}
    assert {c[0].item() for c in seen["teacher"]} == {0, 1}
    assert {c[0].item() for c in seen["lora"]} == {0, NULL}
    plain, _ = spied(CONFIG)
    assert {c[0].item() for n, c, _ in plain if n == "teacher"} == {0, NULL}
    assert all(not nasa for *_, nasa in plain)


@pytest.mark.slow
def test_modes_of_kappa():
    pinned = dataclasses.replace(CONFIG, kappa_min=3.0, kappa_max=3.0, kappa=3.0)
    results = {}
    for mode in ("random", "fixed", "random_lora", "random_teacher"):
        step, state = made(dataclasses.replace(pinned, kappa_mode=mode))
        results[mode] = jax.jit(step)(state, PROMPTS)[0].params["student"]["w"]
    np.testing.assert_allclose(results["random"], results["fixed"], rtol=1e-6)
    np.testing.assert_allclose(results["random_lora"], results["fixed"], rtol=1e-6)
    assert not np.allclose(results["random_teacher"], results["fixed"], rtol=1e-3)


@pytest.mark.slow
def test_clip_loss_fades():
    def embed(x, batch):
        return x, jnp.ones_like(x)

    cfg = dataclasses.replace(CONFIG, steps=10, clip_tau=2.0)
    step, state = made(cfg, embed=embed, adapted=False)
    step = jax.jit(step)
    for number in (0, 5, 10):
        # The adapters are new: all that the student hears is the clip loss.
        _, metrics = step(state._replace(step=jnp.array(number)), PROMPTS)
        np.testing.assert_allclose(
            metrics["loss"], (0.1 - 0.01 * number) * metrics["clip_loss"], rtol=1e-5, atol=1e-7
        )
        assert (metrics["grad_norm"] > 0) == (number < 10)


def test_presets():
    """Specification: ranges of kappa, steps, the two versions of SwiftBrush."""
    ranges = {"sdv15": (0.5, 4.0, 60_000), "sdv21": (0.5, 4.0, 40_000), "pixart": (0.5, 3.0, 60_000)}
    for name, expected in ranges.items():
        cfg = getattr(PGSBConfig, name)()
        assert (cfg.kappa_min, cfg.kappa_max, cfg.steps) == expected
        assert (cfg.kappa_mode, cfg.kappa_per, cfg.lora_rank, cfg.lora_gamma) == ("random", "sample", 64, 128)
        assert (cfg.clip_tau, cfg.clip_start, cfg.student_lr, cfg.lora_lr) == (0.37, 0.1, 1e-6, 1e-3)
    first, second = PGSBConfig.swiftbrush(), PGSBConfig.swiftbrush_v2()
    assert first.kappa_mode == second.kappa_mode == "fixed"
    assert first.kappa == second.kappa == 4.5
    assert (first.lora_gamma, second.lora_gamma, second.clip_tau) == (108, 128, 0.35)


@pytest.mark.slow
def test_a_student_of_adapters_alone():
    """SwiftBrush v2's: only they learn, and they learn what the whole student's kernel would."""
    frozen, gamma = teacher_params(), 2.0
    adapters = lora_init(jax.random.key(3), frozen, rank=2, match="w")

    def adapted(adapters, x, t, cond):
        return apply(lora_apply(frozen, adapters, gamma=gamma), x, t, cond)

    step, state = made(student_apply=adapted)
    whole_step, whole = made()
    tx = {"student_tx": optax.sgd(0.5), "lora_tx": optax.sgd(0.25)}
    state = init_pgsb(state.key, frozen, CONFIG, student=adapters, **tx)
    state.params["lora"]["w"]["b"] += 0.1
    new, metrics = jax.jit(step)(state, PROMPTS)
    expected, expected_metrics = jax.jit(whole_step)(whole, PROMPTS)
    np.testing.assert_allclose(metrics["vsd_loss"], expected_metrics["vsd_loss"], rtol=1e-5)
    # b was 0: its gradient is a^T that of the kernel, times gamma / rank.
    moved = expected.params["student"]["w"] - frozen["w"]
    np.testing.assert_allclose(
        new.params["student"]["w"]["b"], adapters["w"]["a"].T @ moved * gamma / 2, rtol=1e-4, atol=1e-6
    )
    jax.tree.map(np.testing.assert_array_equal, new.params["teacher"], frozen)


@pytest.mark.slow
def test_a_teacher_in_bfloat16():
    def narrow(params, x, t, cond, **nasa):
        return apply(params, x, t, cond, **nasa).astype(jnp.bfloat16)

    step, state = made(student_apply=narrow, teacher_apply=narrow)
    new, metrics = jax.jit(step)(state, PROMPTS)
    assert metrics["vsd_loss"].dtype == new.params["student"]["w"].dtype == jnp.float32
    reference = jax.jit(made()[0])(state, PROMPTS)[1]
    np.testing.assert_allclose(metrics["vsd_loss"], reference["vsd_loss"], rtol=0.1)


@pytest.mark.slow
def test_optimizers_of_the_paper_and_an_average():
    cfg = dataclasses.replace(CONFIG, student_lr=1e-2, ttur=2)
    student_tx = optax.chain(pgsb_optimizers(cfg)[0], track_ema(0.5))
    step = make_pgsb_step(apply, apply, cfg, null_cond=NULL, alphas_cumprod=ALPHA_BAR, student_tx=student_tx)
    state = init_pgsb(jax.random.key(0), teacher_params(), cfg, student_tx=student_tx)
    result = fit(jax.jit(step, donate_argnums=0), state, [PROMPTS] * 3, steps=3, progress=False)
    assert optax.tree.get(result.state.opt_state["student"], "count") == 3
    assert optax.tree.get(result.state.opt_state["lora"], "count") == 6
    average = ema_params(result.state.opt_state["student"])["student"]
    assert not np.allclose(average["w"], result.state.params["student"]["w"], rtol=1e-6)
    assert jax.tree.structure(average) == jax.tree.structure(result.state.params["student"])


def traced(batch=PROMPTS, **options):
    """The shapes of a step's results."""
    step, state = made(**options)
    return jax.eval_shape(step, state, batch)


@pytest.mark.parametrize("explicit", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_sharded_is_unsharded(explicit):
    step, state = made()
    mesh = make_mesh({"data": 8}, explicit=explicit)
    sharded = shard_step(step, mesh, state, PROMPTS, fsdp=None if explicit else "data", min_size=1)
    expected, metrics = jax.jit(step)(state, PROMPTS)
    ours, ours_metrics = sharded(sharded.place_state(state), sharded.place_batch(PROMPTS))
    close_to = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(close_to, ours.params, expected.params)
    jax.tree.map(close_to, ours_metrics, metrics)


@pytest.mark.slow
def test_kappas_are_uniform():
    drawn = sample_kappa(jax.random.key(0), (4000,), 0.5, 4.0)
    assert drawn.min() >= 0.5
    assert drawn.max() < 4.0
    np.testing.assert_allclose([drawn.mean(), drawn.std()], [2.25, 3.5 / 12**0.5], atol=0.05)


@pytest.mark.slow
def test_stacked_and_many_headed_kernels_have_adapters():
    params = {"blocks": {name: {"kernel": jnp.ones((3, 4, 2, 5))} for name in ("to_q", "to_k")}}
    adapters = lora_init(jax.random.key(0), params, rank=2, stacked=1)
    assert set(adapters) == {"blocks/to_q/kernel"}
    a = adapters["blocks/to_q/kernel"]["a"]
    assert a.shape == (3, 4, 2)
    assert np.abs(a).max() <= 0.5
    assert np.abs(a).max() > 0.3
    b = jax.random.normal(jax.random.key(1), (3, 2, 2, 5))
    adapted = lora_apply(params, {"blocks/to_q/kernel": {"a": a, "b": b}}, gamma=4.0)["blocks"]
    expected = 1 + 2 * np.einsum("lir,lrho->liho", a, b)
    np.testing.assert_allclose(adapted["to_q"]["kernel"], expected, rtol=1e-5, atol=1e-6)
    assert adapted["to_k"]["kernel"] is params["blocks"]["to_k"]["kernel"]
    # Small adapters of a bfloat16 kernel are not rounded away.
    narrow = {"w": jnp.ones((4, 4), jnp.bfloat16)}
    small = {"w": {"a": 1e-2 * jnp.ones((4, 1)), "b": 1e-2 * jnp.ones((1, 4))}}
    np.testing.assert_allclose(lora_apply(narrow, small, gamma=1.0)["w"], 1.0001, rtol=1e-6)


def test_scores_that_are_not_finite_are_replaced():
    one = jnp.ones((2, 3))
    g = vsd_score_grad(one.at[0, 0].set(jnp.nan), one, one, one, 2.0, 2.0, 0.5)
    assert np.isfinite(g).all()
    assert g[0, 0] == 0


@pytest.mark.parametrize(("call", "message"), [
    (lambda x: vsd_loss(x, x[:1]), r"grad: expected the shape of x0, \(2, 4\), got \(1, 4\)"),
    (lambda x: lora_teacher_loss(x, x[:1], 0.5), r"noise: expected the shape of pred"),
    (lambda x: cfg_combine(x, x, jnp.ones(3)), r"kappa: expected a number, or one for each example"),
    (lambda x: cfg_combine(x, x[:1], 1.0), r"cond: expected the shape of uncond"),
    (lambda x: clamped_clip_loss(x, x[:, :1]), r"txt_emb: expected the shape of img_emb"),
    (lambda x: vsd_score_grad(x, x, x[:1], x[:1], 1.0, 1.0, 0.5), r"fake_cond: expected the shape of teac"),
    (lambda x: sample_kappa(jax.random.key(0), (), 2.0, 1.0), r"kmin: expected at most kmax = 1.0, got 2.0"),
    (lambda x: clip_weight(0, 0), r"total: expected a positive finite number, got 0"),
    (lambda x: lora_init(jax.random.key(0), {"w": x}, rank=0), r"rank: expected at least 1, got 0"),
    (lambda x: lora_init(jax.random.key(0), {"w": x}, rank=1), r"match: .*, such as 'w', got '\(to_q"),
    (lambda x: lora_init(jax.random.key(0), {"w": x}, rank=1, match="w", stacked=1), r"w: expected 1 sta"),
    (lambda x: lora_apply({"w": x}, {"v": {}}, gamma=1.0), r"adapters: 'v' is the path of no parameter"),
    (lambda x: lora_apply({"w": x}, {"w": {"a": x, "b": x}}, gamma=1.0), r"adapters: 'w' has shape \(2, 4\)"),
    (lambda x: lora_apply({"w": x}, {}, gamma=0.0), r"gamma: expected a positive"),
    (lambda x: lora_linear(x, x, None, x, x, gamma=1.0), r"a: expected shape \(2, 2\), got \(2, 4\)"),
    (lambda x: PGSBConfig(kappa_mode="both"), r"kappa_mode: expected one of random, fixed"),
    (lambda x: PGSBConfig(ttur=0), r"ttur: expected at least 1, got 0"),
    (lambda x: PGSBConfig(kappa_min=5.0), r"kappa_min: expected a number between -inf and 4.0, got 5.0"),
    (lambda x: PGSBConfig(drop=1.5), r"drop: expected a number between 0 and 1, got 1.5"),
    (lambda x: made(dataclasses.replace(CONFIG, t_min=0.5, t_max=0.51)), r"t_min: expected a timestep bet"),
    (lambda x: traced({"cond": None}), r"batch: expected prompts in 'cond'"),
    (lambda x: traced({"cond": PROMPTS["cond"]}, cfg=dataclasses.replace(CONFIG, nasa_t=True)),
     r"batch: expected 'neg_cond' for nasa_t, got \['cond'\]"),
    (lambda x: traced(student_apply=lambda p, z, t, c: z[:1]),
     r"student_apply: expected an output of the shape of its input, \(8, 4\), got \(1, 4\)"),
    (lambda x: traced(teacher_apply=lambda p, z, t, c: z[:1]), r"teacher_apply: expected an output of"),
    (lambda x: traced(adapted_apply=lambda p, z, t, c: z[:1]), r"adapted_apply: expected an output of"),
])  # fmt: skip
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.ones((2, 4)))


def test_types_are_checked():
    with pytest.raises(TypeError, match=r"x0: expected a floating dtype, got int32"):
        vsd_loss(jnp.ones((2, 4), int), jnp.ones((2, 4)))
    with pytest.raises(TypeError, match=r"w: expected a floating dtype, got int32"):
        lora_init(jax.random.key(0), {"w": jnp.ones((2, 4), int)}, rank=1, match="w")
