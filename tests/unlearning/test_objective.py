"""Totals by name, the loss function of a step, the cached reference, pieces of a batch, meshes, mistakes."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxneg.diffusion import lora_apply, lora_init
from jaxneg.nn import TransformerConfig, transformer
from jaxneg.train import init_state, make_step
from jaxneg.train.compile import _topology_devices, _uncached
from jaxneg.unlearning import (
    IGNORE,
    METHODS,
    UnlearnConfig,
    check_labels,
    make_unlearn_loss,
    make_unlearn_losses,
    npo_weights,
    precompute_reference,
    rmu_control_vector,
    sequence_nll,
    unlearning_loss,
    with_token_means,
)

VOCAB = 12
PARTS = ("forget", "retain", "idk")
CONTROL = rmu_control_vector(jax.random.key(0), VOCAB)


def _apply(params, tokens):
    """A bigram model."""
    return jax.nn.one_hot(tokens, VOCAB, dtype=params.dtype) @ params


def _hidden(params, tokens):
    """The states of a layer before the logits."""
    return jnp.tanh(_apply(params, tokens))


def _loss_of(cfg, make=make_unlearn_loss, **options):
    rmu = {"hidden": _hidden, "control": CONTROL} if cfg.method.startswith("rmu") else {}
    return make(_apply, cfg, **rmu, **options)


def _batch(seed=0, rows=8, tokens=6):
    random = np.random.default_rng(seed)
    batch = {}
    for part in PARTS:
        ids = random.integers(0, VOCAB, (rows, tokens)).astype(np.int32)
        labels = np.where(np.arange(tokens) < random.integers(1, tokens, (rows, 1)), IGNORE, ids)
        batch[part] = {"tokens": jnp.asarray(ids), "labels": jnp.asarray(labels.astype(np.int32))}
    return batch


def _params(seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((VOCAB, VOCAB)).astype(np.float32))


def _outputs(params, batch, method="ga"):
    model = dict.fromkeys(batch, _apply)
    if method.startswith("rmu"):
        model["forget"] = _hidden
        model["retain"] = _hidden if method.endswith("ed") else _apply
    return {part: model[part](params, content["tokens"]) for part, content in batch.items()}


QUICK = ("npo+rt", "undial", "rmu+ed")


@pytest.mark.parametrize(
    "method", [m if m in QUICK else pytest.param(m, marks=pytest.mark.slow) for m in METHODS]
)
def test_the_step_function_is_the_loss_by_name(method):
    """With the cached reference, and the same with the reference's logits in the step."""
    batch, params, ref_params = _batch(), _params(0), _params(1)
    cfg = UnlearnConfig(method, beta=0.5, gamma=0.7, alpha=1.3)
    reference = _outputs(ref_params, batch, method)
    if method.startswith("rmu"):
        reference["forget"] = CONTROL
    expected, aux = unlearning_loss(method, batch, _outputs(params, batch, method), reference, cfg)
    cached = precompute_reference(_hidden if method == "rmu+ed" else _apply, ref_params, batch, cfg)
    assert method.startswith("undial") or all("ref_logits" not in cached[part] for part in ("forget", "idk"))
    loss_fn = _loss_of(cfg)
    (loss, found_aux), gradient = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(params, cached, None)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert found_aux.keys() == aux.keys()
    assert bool(jnp.isfinite(gradient).all())
    assert gradient.any()
    forget, _, retain = method.partition("+")
    assert ("retain_loss" in aux) == bool(retain)
    total = 0.7 * aux["forget_loss"] + (1.3 * aux["retain_loss"] if retain else 0)
    np.testing.assert_allclose(loss, total, rtol=1e-5)
    assert ("npo_weight" in aux) == (forget == "npo")


def test_the_weight_in_aux():
    batch, params, ref_params = _batch(), _params(0), _params(1)
    _, aux = unlearning_loss(
        "npo", batch, _outputs(params, batch), _outputs(ref_params, batch), UnlearnConfig()
    )
    nll, ref = (sequence_nll(_apply(p, batch["forget"]["tokens"]), batch["forget"]["labels"])[0]
                for p in (params, ref_params))  # fmt: skip
    np.testing.assert_allclose(aux["npo_weight"], npo_weights(nll, ref).mean(), rtol=1e-6)


def test_kl_flags():
    batch, params, ref_params = _batch(), _params(0), _params(1)
    outputs, reference = _outputs(params, batch), _outputs(ref_params, batch)
    losses = {
        flags: float(
            unlearning_loss(
                "ga+kl", batch, outputs, reference, UnlearnConfig(kl_mask=flags[0], kl_direction=flags[1])
            )[1]["retain_loss"]
        )
        for flags in [(False, "forward"), (True, "forward"), (False, "reverse")]
    }
    assert len({round(value, 5) for value in losses.values()}) == 3
    mask = np.asarray(batch["retain"]["labels"])[:, 1:] != IGNORE
    log_q, log_p = (np.asarray(jax.nn.log_softmax(x["retain"]))[:, :-1] for x in (outputs, reference))
    expected = (np.exp(log_p) * (log_p - log_q)).sum(-1)[mask].mean()
    np.testing.assert_allclose(losses[True, "forward"], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("npo+rt", {}),
        *(
            pytest.param(method, fields, marks=pytest.mark.slow)
            for method, fields in (
                ("ga+rt", {}),
                ("idk+rt", {}),
                ("simnpo+rt", {}),
                ("wga", {}),
                ("satimp+rt", {}),
                ("undial+rt", {}),
                ("ceu", {}),
                ("rmu+ed", {"rmu_own_length": False}),
                ("pdu+rt", {}),
                ("npo+kl", {"kl_mask": True}),
                ("rmu+rt", {}),
            )
        ),
    ],
)
def test_pieces_of_a_batch_have_its_gradient(method, fields):
    """Gradient accumulation with the whole batch's token counts is exact; without them it is not."""
    batch, params = _batch(), _params()
    batch["forget"]["labels"] = batch["forget"]["labels"].at[:3, 0].set(1)  # a label that is not predicted
    cfg = UnlearnConfig(method, beta=0.5, **fields)
    batch = precompute_reference(_hidden if method == "rmu+ed" else _apply, _params(1), batch, cfg)
    loss_fn = _loss_of(cfg)

    def update(accumulate, batch):
        tx = optax.sgd(1.0)
        state, metrics = jax.jit(make_step(loss_fn, tx, accumulate=accumulate))(
            init_state(params, tx, jax.random.key(0)), batch
        )
        return state.params, metrics["loss"]

    whole, loss = update(1, batch)
    normalised = with_token_means(batch, cfg)
    pieces, pieces_loss = update(4, normalised)
    np.testing.assert_allclose(pieces, whole, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(pieces_loss, loss, rtol=1e-5)
    np.testing.assert_allclose(update(1, normalised)[0], whole, rtol=1e-5, atol=1e-6)
    assert not np.allclose(update(4, batch)[0], whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [AxisType.Auto, pytest.param(AxisType.Explicit, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "method",
    [
        "npo+rt",
        *(
            pytest.param(m, marks=pytest.mark.slow)
            for m in ("kto+kl", "dpo+rt", "idk+rt", "undial+rt", "ceu", "pdu+rt", "satimp+kl", "rmu+rt")
        ),
    ],
)
def test_sharded_equals_unsharded(kind, method):
    cfg = UnlearnConfig(method)
    batch, params = precompute_reference(_apply, _params(1), _batch(), cfg), _params()
    loss_fn = jax.value_and_grad(_loss_of(cfg), has_aux=True)
    expected = jax.jit(loss_fn)(params, batch, None)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        placed = jax.device_put(batch, NamedSharding(mesh, P("data")))
        found = jax.jit(loss_fn)(jax.device_put(params, NamedSharding(mesh, P())), placed, None)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)


def test_npo_forgets_and_keeps():
    """NPO+RT on a model that knows both parts: the forget answers go, the retain answers stay."""
    batch = {part: _batch()[part] for part in ("forget", "retain")}
    cfg = UnlearnConfig("npo+rt", beta=0.5)
    params = jnp.zeros((VOCAB, VOCAB))
    fit = jax.jit(jax.grad(lambda p: sum(
        sequence_nll(_apply(p, part["tokens"]), part["labels"])[0].mean() for part in batch.values()
    )))  # fmt: skip
    for _ in range(200):
        params = params - 0.3 * fit(params)
    batch = precompute_reference(_apply, params, batch, cfg)
    tx = optax.adam(0.05)
    step = jax.jit(make_step(make_unlearn_loss(_apply, cfg), tx))
    state, first = step(init_state(params, tx, jax.random.key(0)), batch)
    for _ in range(100):
        state, last = step(state, batch)
    np.testing.assert_allclose(first["npo_weight"], 1, rtol=1e-5)
    assert last["npo_weight"] < 0.3
    assert last["forget_ce"] > 2 * first["forget_ce"]
    assert last["retain_ce"] < 1.05 * first["retain_ce"]


@pytest.mark.slow
def test_rmu_moves_a_transformers_states():
    """Towards the direction on the forget rows; on the retain rows they stay where the reference's are."""
    model = transformer(TransformerConfig(VOCAB, width=8, layers=2, heads=2))
    batch, params = {part: _batch()[part] for part in ("forget", "retain")}, model.init(jax.random.key(1))

    def hidden(params, tokens):
        return model.apply(params, tokens, hidden=0)[1]

    cfg = UnlearnConfig("rmu+ed", alpha=10.0)
    batch = precompute_reference(hidden, params, batch, cfg)
    control = rmu_control_vector(jax.random.key(0), 8)
    loss_fn = make_unlearn_loss(model.apply, cfg, hidden=hidden, control=control)
    tx = optax.adam(0.02)
    step = jax.jit(make_step(loss_fn, tx))
    state, first = step(init_state(params, tx, jax.random.key(0)), batch)
    for _ in range(150):
        state, last = step(state, batch)
    assert first["retain_loss"] < 1e-10
    assert last["forget_loss"] < 0.7 * first["forget_loss"]
    assert last["retain_loss"] < 0.3 * last["forget_loss"]


def test_a_config_is_a_static_argument():
    assert hash(UnlearnConfig()) == hash(UnlearnConfig())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "nop"}, r"method: expected one of ga, ga\+rt, .*rmu\+ed, got 'nop'"),
        ({"method": "npo+tr"}, r"method: expected one of .* got 'npo\+tr'"),
        ({"beta": 0.0}, "beta: expected a positive finite number, got 0.0"),
        ({"beta2": 0.0}, "beta2: expected a positive finite number, got 0.0"),
        ({"ignore_first_n": -1}, "ignore_first_n: expected a finite number of at least 0, got -1"),
        ({"factor": -1.0}, "factor: expected a positive finite number, got -1.0"),
        ({"gamma": -1.0}, "gamma: expected a finite number of at least 0, got -1.0"),
        ({"alpha": float("nan")}, "alpha: expected a finite number of at least 0, got nan"),
        ({"kto_kind": "linear"}, "kto_kind: expected one of logsigmoid, sigmoid, got 'linear'"),
        ({"kl_direction": "both"}, "kl_direction: expected one of forward, reverse, got 'both'"),
    ],
)
def test_a_wrong_config(fields, message):
    with pytest.raises(ValueError, match=message):
        UnlearnConfig(**fields)


def test_static_mistakes():
    batch, params = _batch(), _params()
    outputs = _outputs(params, batch)
    cfg = UnlearnConfig()

    def loss(name, batch=batch, outputs=outputs, reference=outputs):
        return unlearning_loss(name, batch, outputs, reference, cfg)

    with pytest.raises(ValueError, match=r"method: expected one of .*, got 'npo.ed'"):
        loss("npo+ed")
    with pytest.raises(ValueError, match=r"batch: expected the part 'idk' for 'dpo', got \['forget'\]"):
        loss("dpo", batch={"forget": batch["forget"]})
    with pytest.raises(
        ValueError, match=r"outputs: expected the part 'retain' for 'ga.rt', got \['forget'\]"
    ):
        loss("ga+rt", outputs={"forget": outputs["forget"]})
    with pytest.raises(ValueError, match=r"ref_outputs: expected the part 'forget' for 'npo', got \[\]"):
        loss("npo", reference={})
    with pytest.raises(ValueError, match=r"ref_outputs: expected the part 'retain' for 'ga.kl', got \[\]"):
        loss("ga+kl", reference={})
    with pytest.raises(ValueError, match="ref_logits: expected the policy's vocabulary of 12, got 11"):
        loss("npo", reference={"forget": outputs["forget"][..., :11]})
    with pytest.raises(ValueError, match=r"ref_outputs\['forget'\]: expected logits .* got shape \(7,\)"):
        loss("npo", reference={"forget": jnp.zeros(7)})
    with pytest.raises(
        TypeError, match=r"ref_outputs\['forget'\]: expected float32 or float64, got bfloat16"
    ):
        loss("npo", reference={"forget": jnp.zeros(8, jnp.bfloat16)})
    with pytest.raises(ValueError, match=r"ref_outputs\['retain'\]: KL needs logits .*, got shape \(8,\)"):
        loss("ga+kl", reference={"retain": jnp.zeros(8)})
    fewer = batch | {"idk": {"labels": batch["idk"]["labels"][:5]}}
    few = outputs | {"idk": outputs["idk"][:5]}
    with pytest.raises(
        ValueError, match=r"batch\['idk'\]: expected a row for each of the 8 forget rows, got 5"
    ):
        loss("dpo", batch=fewer, outputs=few, reference=few)


def test_methods_that_count_other_tokens_need_their_means():
    """`with_token_means` without the method does not know what CE-U, PDU and RMU divide by."""
    batch, params = with_token_means(_batch()), _params()
    for cfg in (UnlearnConfig("ceu"), UnlearnConfig("pdu"), UnlearnConfig("rmu", rmu_own_length=False)):
        with pytest.raises(ValueError, match=r"expected 'mean_counted' .* with_token_means\(batch, cfg\)"):
            _loss_of(cfg)(params, batch, None)


@pytest.mark.slow
def test_the_reference_may_run_in_the_step():
    """Two sets of parameters in one tree: the same loss as with the cached reference, and no gradient."""
    batch, both = _batch(), {"policy": _params(0), "frozen": _params(1)}
    for method in ("npo+kl", "undial"):
        cfg = UnlearnConfig(method, beta=0.5)
        loss_fn = make_unlearn_loss(
            lambda p, tokens: _apply(p["policy"], tokens),
            cfg,
            reference=lambda p, tokens: _apply(p["frozen"], tokens),
        )
        loss, gradient = jax.jit(jax.value_and_grad(lambda p, f=loss_fn: f(p, batch, None)[0]))(both)
        cached = precompute_reference(_apply, both["frozen"], batch, cfg)
        np.testing.assert_allclose(
            loss, make_unlearn_loss(_apply, cfg)(both["policy"], cached, None)[0], rtol=1e-6
        )
        assert gradient["policy"].any()
        assert not gradient["frozen"].any()


@pytest.mark.slow
def test_a_step_of_adapters():
    """LoRA in one train step: adapters move and the frozen model stays, the reference has them off."""
    params, batch = {"kernel": _params()}, {part: _batch()[part] for part in ("forget", "retain")}
    trained = {"frozen": params, "adapters": lora_init(jax.random.key(1), params, rank=2, match="kernel")}

    def apply(p, tokens):
        frozen = jax.lax.stop_gradient(p["frozen"])
        return _apply(lora_apply(frozen, p["adapters"], gamma=2.0)["kernel"], tokens)

    loss_fn = make_unlearn_loss(
        apply, UnlearnConfig("npo+rt"), reference=lambda p, tokens: _apply(p["frozen"]["kernel"], tokens)
    )
    tx = optax.transforms.partition(
        {"adapters": optax.adamw(0.1), "frozen": optax.set_to_zero()},
        {"adapters": "adapters", "frozen": "frozen"},
    )
    step = jax.jit(make_step(loss_fn, tx))
    state, first = step(init_state(trained, tx, jax.random.key(0)), batch)
    assert state.params["adapters"]["kernel"]["a"].shape == (VOCAB, 2)
    for _ in range(15):
        state, last = step(state, batch)
    np.testing.assert_allclose(first["npo_weight"], 1, rtol=1e-5)
    assert last["npo_weight"] < 0.9
    np.testing.assert_array_equal(state.params["frozen"]["kernel"], params["kernel"])
    assert state.params["adapters"]["kernel"]["b"].any()
    gradient = jax.grad(lambda p: loss_fn(p, batch, None)[0])(state.params)
    assert gradient["adapters"]["kernel"]["a"].any()
    assert not gradient["frozen"]["kernel"].any()
    moments = [leaf.shape for leaf in jax.tree.leaves(state.opt_state)]
    assert params["kernel"].shape not in moments


@pytest.mark.parametrize(
    "method", ["npo+rt", *(pytest.param(m, marks=pytest.mark.slow) for m in ("idk+rt", "rmu+ed"))]
)
def test_two_tasks_add_up_to_the_loss(method):
    batch, params = _batch(), _params()
    cfg = UnlearnConfig(method, gamma=0.7, alpha=1.3, retain_eps=0.4)
    batch = precompute_reference(_hidden if method == "rmu+ed" else _apply, _params(1), batch, cfg)
    losses, aux = _loss_of(cfg, make_unlearn_losses)(params, batch, None)
    loss, _ = _loss_of(cfg)(params, batch, None)
    np.testing.assert_allclose(loss, 0.7 * losses[0] + 1.3 * (losses[1] - 0.4), rtol=1e-6)
    assert (float(aux["forget_loss"]), float(aux["retain_loss"])) == tuple(losses.tolist())


def _held(method, shape, dtype, sharding=None):
    """Memory of a compiled forward and backward pass from logits, as a share of the logits of one part."""
    parts = ("forget", "retain") if "+" in method else ("forget",)
    logits = {part: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for part in parts}
    labels = jax.ShapeDtypeStruct(shape[:2], jnp.int32, sharding=sharding)

    def total(outputs, reference, labels):
        batch = {part: {"labels": labels} for part in parts}
        return unlearning_loss(method, batch, outputs, reference, UnlearnConfig(method))[0]

    compiled = jax.jit(jax.value_and_grad(total)).lower(logits, logits, labels).compile()
    return compiled.memory_analysis().temp_size_in_bytes / (np.prod(shape) * jnp.dtype(dtype).itemsize)


@pytest.mark.parametrize(
    "method",
    [
        "npo+rt",
        *(pytest.param(m, marks=pytest.mark.slow) for m in ("wga", "satimp+rt", "undial+rt", "ceu+rt")),
    ],
)
def test_no_second_array_of_logits(method):
    """With the reference's logits in the step too; a float32 log-probability copy would be 1."""
    assert _held(method, (4, 16, 4096), jnp.float32) < 0.02


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: pip install 'jaxneg[tpu]'"
)
@pytest.mark.tpu_compile
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_no_second_array_of_logits_on_a_tpu(dtype):
    """Compiled for a v5e at the size of Llama 2's vocabulary; a float32 copy would be 1, or 2 in bfloat16."""
    chips = _topology_devices("v5e:2x2")
    sharding = NamedSharding(jax.sharding.Mesh(np.array(chips[:1]), ("data",)), P())
    with _uncached():
        for method in ("npo+rt", "undial+kl", "pdu"):
            assert _held(method, (8, 64, 32_000), dtype, sharding) < 0.05, method


def test_rmu_needs_its_states_and_its_direction():
    cfg = UnlearnConfig("rmu")
    with pytest.raises(ValueError, match="hidden: expected one for 'rmu', got None"):
        make_unlearn_loss(_apply, cfg)
    with pytest.raises(ValueError, match="control: expected one for 'rmu', got None"):
        make_unlearn_loss(_apply, cfg, hidden=_hidden)
    with pytest.raises(ValueError, match=r"ref_outputs: expected the part 'forget' for 'rmu', got \[\]"):
        unlearning_loss("rmu", _batch(), _outputs(_params(), _batch(), "rmu"), {}, cfg)
    with pytest.raises(ValueError, match="method: expected one with a retain loss, got 'npo'"):
        make_unlearn_losses(_apply, UnlearnConfig("npo"))


def test_a_step_without_its_reference():
    cfg = UnlearnConfig("npo")
    loss_fn = make_unlearn_loss(_apply, cfg)
    with pytest.raises(
        ValueError, match=r"batch\['forget'\]: expected 'ref_seq_nll' .* precompute_reference adds"
    ):
        loss_fn(_params(), _batch(), None)
    with pytest.raises(ValueError, match=r"batch: expected the part 'forget' for 'npo', got \['retain'\]"):
        loss_fn(_params(), {"retain": _batch()["retain"]}, None)
    with pytest.raises(ValueError, match=r"batch: expected the part 'forget' for 'npo', got \['retain'\]"):
        precompute_reference(_apply, _params(), {"retain": _batch()["retain"]}, cfg)


def test_a_retain_batch_that_is_masked_out():
    """The loss is not a number, which stops a training loop; the pipeline's check says why."""
    batch = _batch()
    batch["retain"]["labels"] = jnp.full_like(batch["retain"]["labels"], IGNORE)
    loss, aux = unlearning_loss("ga+rt", batch, _outputs(_params(), batch), {}, UnlearnConfig())
    assert bool(jnp.isnan(loss))
    assert bool(jnp.isfinite(aux["forget_loss"]))
    with pytest.raises(ValueError, match="retain: expected at least one token to learn from"):
        check_labels({part: content["labels"] for part, content in batch.items()}, VOCAB)
