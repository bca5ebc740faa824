"""Totals by name, the loss function of a step, the cached reference, pieces of a batch, meshes, mistakes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxneg.train import init_state, make_step
from jaxneg.unlearning import (
    IGNORE,
    METHODS,
    UnlearnConfig,
    check_labels,
    make_unlearn_loss,
    npo_weights,
    precompute_reference,
    sequence_nll,
    unlearning_loss,
    with_token_means,
)

VOCAB = 12
PARTS = ("forget", "retain", "idk")


def _apply(params, tokens):
    """A bigram model."""
    return jax.nn.one_hot(tokens, VOCAB, dtype=params.dtype) @ params


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


def _outputs(params, batch):
    return {part: _apply(params, content["tokens"]) for part, content in batch.items()}


@pytest.mark.parametrize("method", METHODS)
def test_the_step_function_is_the_loss_by_name(method):
    """With the cached reference, and the same with the reference's logits in the step."""
    batch, params, ref_params = _batch(), _params(0), _params(1)
    cfg = UnlearnConfig(method, beta=0.5, gamma=0.7, alpha=1.3)
    expected, aux = unlearning_loss(method, batch, _outputs(params, batch), _outputs(ref_params, batch), cfg)
    cached = precompute_reference(_apply, ref_params, batch, cfg)
    assert all("ref_logits" not in cached[part] for part in ("forget", "idk"))
    loss_fn = make_unlearn_loss(_apply, cfg)
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


@pytest.mark.parametrize("method", ["ga+rt", "npo+rt", "idk+rt", "simnpo+rt"])
def test_pieces_of_a_batch_have_its_gradient(method):
    """Gradient accumulation with the whole batch's token counts is exact; without them it is not."""
    batch, params = _batch(), _params()
    cfg = UnlearnConfig(method, beta=0.5)
    batch = precompute_reference(_apply, _params(1), batch, cfg)
    loss_fn = make_unlearn_loss(_apply, cfg)

    def update(accumulate, batch):
        tx = optax.sgd(1.0)
        state, metrics = jax.jit(make_step(loss_fn, tx, accumulate=accumulate))(
            init_state(params, tx, jax.random.key(0)), batch
        )
        return state.params, metrics["loss"]

    whole, loss = update(1, batch)
    pieces, pieces_loss = update(4, with_token_means(batch))
    np.testing.assert_allclose(pieces, whole, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(pieces_loss, loss, rtol=1e-5)
    np.testing.assert_allclose(update(1, with_token_means(batch))[0], whole, rtol=1e-5, atol=1e-6)
    assert not np.allclose(update(4, batch)[0], whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize(
    "method", ["npo+rt", *(pytest.param(m, marks=pytest.mark.slow) for m in ("kto+kl", "dpo+rt", "idk+rt"))]
)
def test_sharded_equals_unsharded(kind, method):
    cfg = UnlearnConfig(method)
    batch, params = precompute_reference(_apply, _params(1), _batch(), cfg), _params()
    loss_fn = jax.value_and_grad(make_unlearn_loss(_apply, cfg), has_aux=True)
    expected = loss_fn(params, batch, None)
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


def test_a_config_is_a_static_argument():
    assert hash(UnlearnConfig()) == hash(UnlearnConfig())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "nop"}, r"method: expected one of ga, ga\+rt, .*simnpo\+kl, got 'nop'"),
        ({"method": "npo+tr"}, r"method: expected one of .* got 'npo\+tr'"),
        ({"beta": 0.0}, "beta: expected a positive finite number, got 0.0"),
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

    with pytest.raises(ValueError, match=r"method: expected one of .*, got 'wga'"):
        loss("wga")
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
