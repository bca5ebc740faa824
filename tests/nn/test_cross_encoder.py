"""The cross-encoder beside transformers' BERT, its dropout, and both mesh modes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneg.nn import CrossEncoderConfig, cross_encoder, cross_encoder_from_torch
from jaxneg.train import make_mesh

SMALL = CrossEncoderConfig(vocab=13, width=8, layers=2, heads=2, hidden=12, max_length=9)
MODEL = cross_encoder(SMALL)


def rows(count=8, tokens=7):
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, tokens + 1, count)
    mask = np.arange(tokens) < lengths[:, None]
    found = {
        "tokens": np.where(mask, rng.integers(0, SMALL.vocab, (count, tokens)), 0),
        "segments": (np.arange(tokens) > 2) & mask,
        "mask": mask,
    }
    return {name: jnp.asarray(array, jnp.int32) for name, array in found.items()}


@pytest.fixture(scope="module")
def params():
    return MODEL.init(jax.random.key(0))


def torch_model(labels=1):
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=13,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=9,
        initializer_range=0.5,
        num_labels=labels,
    )
    return torch, transformers.BertForSequenceClassification(config).eval()


def test_scores_equal_transformers():
    torch, theirs = torch_model()
    state = {name: array.numpy() for name, array in theirs.state_dict().items()}
    params = cross_encoder_from_torch(SMALL, state, jax.random.key(0))
    x = rows()
    with torch.no_grad():
        expected = theirs(
            input_ids=torch.tensor(np.array(x["tokens"])).long(),
            token_type_ids=torch.tensor(np.array(x["segments"])).long(),
            attention_mask=torch.tensor(np.array(x["mask"])),
        ).logits[:, 0]
    np.testing.assert_allclose(jax.jit(MODEL.apply)(params, x), expected.numpy(), atol=2e-5)


def test_checkpoints_that_do_not_fit():
    _, theirs = torch_model(labels=2)
    state = {name: array.numpy() for name, array in theirs.state_dict().items()}
    heads = [
        cross_encoder_from_torch(SMALL, state, jax.random.key(seed))["head"]["kernel"] for seed in range(2)
    ]
    assert np.any(np.asarray(heads[0]) != np.asarray(heads[1]))  # two labels are no ranker's head
    with pytest.raises(
        ValueError, match=r"'encoder.layer.0.output.dense.weight' should have shape \(8, 16\), got \(8, 12\)"
    ):
        cross_encoder_from_torch(dataclasses.replace(SMALL, hidden=16), state, jax.random.key(0))
    del state["bert.pooler.dense.bias"]
    with pytest.raises(ValueError, match=r"state: 'pooler.dense.bias' is missing"):
        cross_encoder_from_torch(SMALL, state, jax.random.key(0))


def test_dropout_padding_and_precision(params):
    x = rows()
    scores = jax.jit(MODEL.apply)(params, x)
    assert scores.dtype == jnp.float32
    dropped = jax.jit(MODEL.apply)
    first, second = (dropped(params, x, jax.random.key(seed)) for seed in range(2))
    assert np.all(np.asarray(first) != np.asarray(second))
    np.testing.assert_array_equal(first, dropped(params, x, jax.random.key(0)))
    other = x | {"tokens": jnp.where(x["mask"] > 0, x["tokens"], 5)}
    np.testing.assert_allclose(jax.jit(MODEL.apply)(params, other), scores, atol=1e-6)
    low = cross_encoder(dataclasses.replace(SMALL, dtype=jnp.bfloat16, remat=True))
    np.testing.assert_allclose(jax.jit(low.apply)(params, x), scores, atol=0.02)
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(low.apply(p, x, jax.random.key(0)) ** 2)))(params)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("explicit", [False, True])
def test_sharded_equals_unsharded(params, explicit):
    x = rows()
    mesh = make_mesh({"data": 8}, explicit=explicit)
    with jax.set_mesh(mesh):
        place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
        found = jax.jit(MODEL.apply)(params, jax.device_put(x, place))
    np.testing.assert_allclose(found, jax.jit(MODEL.apply)(params, x), atol=1e-5)


def test_bad_input(params):
    x = rows()
    with pytest.raises(ValueError, match=r"mask: expected the shape of tokens, \(8, 7\), got \(8, 3\)"):
        MODEL.apply(params, x | {"mask": x["mask"][:, :3]})
    long = jax.tree.map(lambda a: jnp.pad(a, ((0, 0), (0, 3))), x)
    with pytest.raises(ValueError, match="tokens: 10 are more than max_length = 9"):
        MODEL.apply(params, long)
    for change, message in (
        ({"heads": 3}, "heads: expected a divisor of width = 8, got 3"),
        ({"layers": 0}, "layers: expected at least 1, got 0"),
        ({"dropout": 1.0}, r"dropout: expected a number in \[0, 1\), got 1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(SMALL, **change)
