"""The encoder-decoder: against plain numpy and Hugging Face's T5, its cache, several targets, and sharded."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxneg.nn import (
    ENCODER_DECODER_RULES,
    T5_BASE,
    T5_SMALL,
    T5_V1_1_BASE,
    T5_V1_1_SMALL,
    EncoderDecoderConfig,
    encoder_decoder,
    encoder_decoder_from_torch,
)
from jaxneg.nn.encoder_decoder import distance_buckets
from jaxneg.train import init_state, make_mesh, make_step, partition_specs, shard_step

NEWER = EncoderDecoderConfig(
    vocab=16, width=16, encoder_layers=2, decoder_layers=2, heads=4, head_width=6, hidden=24, buckets=8,
    max_distance=16, tied=False,
)  # fmt: skip
CONFIGS = {
    "t5 1.1": NEWER,
    "t5": dataclasses.replace(NEWER, activation="relu", tied=True),
    "learned": dataclasses.replace(NEWER, activation="gelu", positions="learned", max_length=12, tied=True),
    "scanned": dataclasses.replace(NEWER, scan=True, remat=True),
}
RNG = np.random.default_rng(0)
SOURCE, TARGETS = RNG.integers(0, 16, (2, 12)), RNG.integers(0, 16, (2, 3, 7))
STATES = np.zeros((2, 12, 16), np.float32)
MASK = np.arange(12) < np.array([[9], [12]])


@functools.cache
def built(name):
    """A model, and parameters whose norms and biases matter."""
    model = encoder_decoder(CONFIGS[name])
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return model, jax.tree.map(lambda x: rng.normal(0.05, 0.3, x.shape).astype(np.float32), shapes)


@functools.cache
def forward(name):
    model, _ = built(name)

    @jax.jit
    def apply(params, source, mask, targets):
        states = model.encode(params, source, mask)
        return states, model.decode(params, states, mask, targets)

    return apply


def bucket(distance, config, both_ways):
    count, first, back = config.buckets, 0, -distance
    if both_ways:
        count //= 2
        first, back = (count, distance) if distance > 0 else (0, -distance)
    exact = count // 2
    if back < exact:
        return first + max(back, 0)
    return first + min(
        exact + int(math.log(back / exact) / math.log(config.max_distance / exact) * (count - exact)),
        count - 1,
    )


def reference(config, params, source, targets):
    """The same model in numpy for one source without padding and one target."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def norm(x, p):
        return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-6) * p["scale"]

    def attention(p, x, others, stack, kind):
        total = 0
        for head in range(config.heads):
            part = slice(head * config.head_size, (head + 1) * config.head_size)
            scores = x @ p["query"]["kernel"][:, part] @ (others @ p["key"]["kernel"][:, part]).T
            for i, j in np.ndindex(*scores.shape):
                if kind != "states" and config.positions == "relative":
                    place = bucket(j - i, config, kind == "encoder")
                    scores[i, j] += stack["distances"]["embedding"][place, head]
                if kind == "decoder" and j > i:
                    scores[i, j] = -np.inf
            weights = np.exp(scores - scores.max(1, keepdims=True))
            weights /= weights.sum(1, keepdims=True)
            total = total + weights @ (others @ p["value"]["kernel"][:, part]) @ p["out"]["kernel"][part]
        return total

    def gelu(x):
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    def feed_forward(p, x):
        up = x @ p["up"]["kernel"]
        if config.activation == "gated_gelu":
            up = gelu(x @ p["gate"]["kernel"]) * up
        else:
            up = gelu(up) if config.activation == "gelu" else np.maximum(up, 0)
        return up @ p["down"]["kernel"]

    def run(kind, tokens, states=None):
        stack, x = p[kind], p["embed"]["embedding"][tokens]
        if config.positions == "learned":
            x = x + stack["positions"][: len(tokens)]
        for layer in range(2):
            block = stack["blocks"][str(layer)]
            h = norm(x, block["attention_norm"])
            x = x + attention(block["attention"], h, h, stack, kind)
            if states is not None:
                h = norm(x, block["states_attention_norm"])
                x = x + attention(block["states_attention"], h, states, stack, "states")
            x = x + feed_forward(block["feed_forward"], norm(x, block["feed_forward_norm"]))
        return norm(x, stack["norm"])

    x = run("decoder", targets, run("encoder", source))
    if config.tied:
        return x / np.sqrt(config.width) @ p["embed"]["embedding"].T
    return x @ p["unembed"]["kernel"]


@pytest.mark.parametrize(
    "name", ["t5 1.1", *(pytest.param(name, marks=pytest.mark.slow) for name in ("t5", "learned"))]
)
def test_it_is_the_reference(name):
    _, params = built(name)
    source = np.where(MASK, SOURCE, 3)  # what padding holds does not matter
    _, logits = forward(name)(params, source, MASK, TARGETS)
    assert logits.shape == (2, 3, 7, 16)
    for row, each in np.ndindex(2, 3):
        expected = reference(CONFIGS[name], params, SOURCE[row][MASK[row]], TARGETS[row, each])
        np.testing.assert_allclose(logits[row, each], expected, rtol=1e-3, atol=1e-3)


def test_buckets_are_those_of_the_formula():
    distances = np.arange(-300, 301)
    for both_ways in (False, True):
        expected = [bucket(d, T5_SMALL, both_ways) for d in distances]
        given = jax.jit(lambda d, both_ways=both_ways: distance_buckets(d, 32, 128, both_ways=both_ways))(
            distances
        )
        # A distance that is a power of the ratio may round to either side.
        assert np.mean(np.asarray(given) != expected) < 0.01


def test_padding_is_read_by_nobody():
    _, params = built("t5 1.1")
    apply = forward("t5 1.1")
    states, logits = apply(params, SOURCE, MASK, TARGETS)
    other_states, other = apply(params, np.where(MASK, SOURCE, 5), MASK, TARGETS)
    np.testing.assert_allclose(other, logits, atol=1e-5)
    np.testing.assert_allclose(other_states[MASK], states[MASK], atol=1e-5)
    _, unmasked = apply(params, SOURCE, np.ones_like(MASK), TARGETS)
    assert np.abs(unmasked - logits)[0].max() > 1e-3
    _, nothing = apply(params, SOURCE, np.zeros_like(MASK), TARGETS)
    assert np.isfinite(nothing).all()


@pytest.mark.parametrize(
    "name", ["t5 1.1", *(pytest.param(name, marks=pytest.mark.slow) for name in ("learned", "scanned"))]
)
def test_a_cache_changes_nothing(name):
    model, params = built(name)
    states, logits = forward(name)(params, SOURCE, MASK, TARGETS)
    decode = jax.jit(model.decode)
    cache = jax.jit(model.init_cache, static_argnums=(2, 3))(params, states, 7)
    pieces = []
    for first, last in ((0, 4), (4, 5), (5, 6), (6, 7)):
        piece, cache = decode(params, jnp.zeros_like(states), MASK, TARGETS[:, 1, first:last], cache)
        pieces.append(piece)
    assert (int(cache.length), cache.slots) == (7, 7)
    np.testing.assert_allclose(np.concatenate(pieces, 1), logits[:, 1], rtol=1e-4, atol=1e-4)
    overfull, _ = decode(params, states, MASK, TARGETS[:, 1, :1], cache)
    assert np.isnan(overfull).all()


@pytest.mark.slow
def test_a_loop_over_the_layers_is_the_layers():
    _, params = built("t5 1.1")
    stacked = dict(params)
    for part in ("encoder", "decoder"):
        blocks = [params[part]["blocks"][str(i)] for i in range(2)]
        stacked[part] = {**params[part], "blocks": jax.tree.map(lambda *x: jnp.stack(x), *blocks)}
    model, _ = built("scanned")
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(jnp.shape, shapes)

    def gradient(name, params):
        apply = forward(name)
        return jax.grad(lambda p: jnp.square(apply(p, SOURCE, MASK, TARGETS)[1]).mean())(params)

    grads, others = gradient("t5 1.1", params), gradient("scanned", stacked)
    for part in ("encoder", "decoder"):
        for i in range(2):
            jax.tree.map(
                lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-3, atol=1e-4),
                others[part]["blocks"],
                grads[part]["blocks"][str(i)],
            )


@pytest.mark.slow
def test_models_mapped_over_seeds():
    model, _ = built("t5")
    params = jax.vmap(model.init)(jax.random.split(jax.random.key(0), 2))
    _, both = jax.vmap(forward("t5"), (0, None, None, None))(params, SOURCE, MASK, TARGETS)
    for i in range(2):
        _, alone = forward("t5")(jax.tree.map(lambda x, i=i: x[i], params), SOURCE, MASK, TARGETS)
        np.testing.assert_allclose(both[i], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_bfloat16_is_close():
    model, params = built("t5 1.1")
    half = encoder_decoder(dataclasses.replace(NEWER, dtype=jnp.bfloat16))

    @jax.jit
    def run(params):
        states = half.encode(params, SOURCE, MASK)
        return states, half.decode(params, states, MASK, TARGETS), half.init_cache(params, states, 3)

    states, logits, cache = run(params)
    assert states.dtype == logits.dtype == cache.key.dtype == jnp.bfloat16
    narrow = jax.eval_shape(lambda: model.init_cache(params, STATES, 3, jnp.bfloat16))
    assert narrow.states_key.dtype == jnp.bfloat16
    _, expected = forward("t5 1.1")(params, SOURCE, MASK, TARGETS)
    np.testing.assert_allclose(np.asarray(logits, np.float32), expected, atol=0.05 * np.abs(expected).max())


@pytest.mark.slow
def test_a_start_is_neither_flat_nor_steep():
    for name in ("t5 1.1", "t5", "learned"):
        config = dataclasses.replace(CONFIGS[name], width=64, head_width=16, hidden=256, vocab=100)
        model = encoder_decoder(config)
        logits = forward_of(model)(model.init(jax.random.key(0)))
        assert 0.3 < float(jnp.std(logits)) < 3


def forward_of(model):
    def apply(params):
        return model.decode(params, model.encode(params, SOURCE, MASK), MASK, TARGETS)

    return jax.jit(apply)


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (T5_SMALL, 60_506_624),
        (T5_BASE, 222_903_552),
        (T5_V1_1_SMALL, 76_961_152),
        (T5_V1_1_BASE, 247_577_856),
    ],
)
def test_presets_have_their_numbers_of_parameters(config, parameters):
    params = jax.eval_shape(encoder_decoder(config).init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == parameters


def cross_entropy(model):
    def loss_fn(params, batch, key):
        del key
        states = model.encode(params, batch["source"], batch["mask"])
        logits = model.decode(params, states, batch["mask"], batch["targets"]).astype(jnp.float32)
        labels = jax.nn.one_hot(batch["targets"][..., 1:], logits.shape[-1])
        return -(jax.nn.log_softmax(logits[..., :-1, :]) * labels).sum(-1).mean(), {}

    return loss_fn


@pytest.mark.slow
@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize("name", ["t5 1.1", "learned", "scanned"])
def test_sharded_is_unsharded(name, explicit):
    config = dataclasses.replace(CONFIGS[name], head_width=4)
    mesh = make_mesh({"data": 4, "model": 2}, explicit=explicit)
    model, tx = encoder_decoder(config), optax.sgd(0.1)
    batch = {
        "source": np.resize(SOURCE, (4, 12)),
        "mask": np.resize(MASK, (4, 12)),
        "targets": np.resize(TARGETS[::-1], (4, 3, 7)),
    }
    state = init_state(model.init(jax.random.key(0)), tx, jax.random.key(1))
    step = make_step(cross_entropy(model), tx)
    sharded = shard_step(step, mesh, state, batch, rules=ENCODER_DECODER_RULES)
    placed, plain = sharded.place_state(state), jax.jit(step)
    for _ in range(2):
        state, metrics = plain(state, batch)
        placed, placed_metrics = sharded(placed, batch)
    np.testing.assert_allclose(placed_metrics["loss"], metrics["loss"], rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), placed.params, state.params
    )
    assert placed.params["embed"]["embedding"].addressable_shards[0].data.shape == (8, 4)


def test_rules_reach_every_matrix():
    mesh = make_mesh({"data": 4, "model": 2})
    for config in map(CONFIGS.get, ("t5 1.1", "learned", "scanned")):
        params = jax.eval_shape(encoder_decoder(config).init, jax.random.key(0))
        specs = partition_specs(params, mesh, ENCODER_DECODER_RULES)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            spec = specs
            for part in path:
                spec = spec[part.key]
            name = jax.tree_util.keystr(path)
            assert any(spec) == ("norm" not in name), name
            assert len(spec) <= leaf.ndim


def torch_names(params, config):
    """The parameters of a model that is not stacked under Hugging Face's names, written out one by one."""
    state = {"shared.weight": params["embed"]["embedding"]}
    state["encoder.embed_tokens.weight"] = state["decoder.embed_tokens.weight"] = state["shared.weight"]
    state["lm_head.weight"] = state["shared.weight"] if config.tied else params["unembed"]["kernel"].T
    parts = {
        "encoder": {"attention": "0.SelfAttention", "feed_forward": "1.DenseReluDense"},
        "decoder": {
            "attention": "0.SelfAttention",
            "states_attention": "1.EncDecAttention",
            "feed_forward": "2.DenseReluDense",
        },
    }
    inner = {"query": "q", "key": "k", "value": "v", "out": "o", "gate": "wi_0", "up": "wi_1", "down": "wo"}
    if config.activation == "relu":
        inner["up"] = "wi"
    for part, pieces in parts.items():
        state[f"{part}.final_layer_norm.weight"] = params[part]["norm"]["scale"]
        bias = f"{part}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        state[bias] = params[part]["distances"]["embedding"]
        for i, block in params[part]["blocks"].items():
            for ours, theirs in pieces.items():
                layer = f"{part}.block.{i}.layer.{theirs}"
                for matrix, array in block[ours].items():
                    state[f"{layer}.{inner[matrix]}.weight"] = array["kernel"].T
                state[f"{layer[: layer.rindex('.')]}.layer_norm.weight"] = block[f"{ours}_norm"]["scale"]
    return {name: np.asarray(array) for name, array in state.items()}


@pytest.mark.parametrize("name", ["t5 1.1", pytest.param("t5", marks=pytest.mark.slow)])
def test_a_checkpoint_is_read(name):
    _, params = built(name)
    read = encoder_decoder_from_torch(torch_names(params, CONFIGS[name]), CONFIGS[name])
    jax.tree.map(np.testing.assert_array_equal, read, params)


def test_a_checkpoint_is_read_into_a_loop():
    _, params = built("t5 1.1")
    read = encoder_decoder_from_torch(torch_names(params, NEWER), dataclasses.replace(NEWER, scan=True))
    expected = params["decoder"]["blocks"]["1"]["states_attention"]["key"]["kernel"]
    np.testing.assert_array_equal(read["decoder"]["blocks"]["states_attention"]["key"]["kernel"][1], expected)


def test_a_checkpoint_that_does_not_fit():
    _, params = built("t5 1.1")
    state = torch_names(params, NEWER)
    name = "decoder.block.1.layer.1.EncDecAttention.o.weight"
    with pytest.raises(ValueError, match=f"state: '{name}' is missing"):
        encoder_decoder_from_torch({k: v for k, v in state.items() if k != name}, NEWER)
    with pytest.raises(ValueError, match=rf"state: '{name}' should have shape \(16, 24\), got \(24, 16\)"):
        encoder_decoder_from_torch({**state, name: state[name].T}, NEWER)
    with pytest.raises(ValueError, match=r"state: 'classifier\.weight' is too much"):
        encoder_decoder_from_torch({**state, "classifier.weight": np.ones(2)}, NEWER)
    with pytest.raises(ValueError, match="config: expected relative positions, got 'learned'"):
        encoder_decoder_from_torch(state, CONFIGS["learned"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["t5 1.1", "t5"])
def test_it_is_hugging_face_s(name):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config = CONFIGS[name]
    peer = transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=16, d_model=16, d_kv=6, d_ff=24, num_layers=2, num_decoder_layers=2, num_heads=4,
            relative_attention_num_buckets=8, relative_attention_max_distance=16, dropout_rate=0.0,
            feed_forward_proj="relu" if name == "t5" else "gated-gelu", tie_word_embeddings=config.tied,
            scale_decoder_outputs=config.tied,
        )
    ).eval()  # fmt: skip
    _, params = built(name)
    state = {k: torch.from_numpy(v.copy()) for k, v in torch_names(params, config).items()}
    peer.load_state_dict(state, strict=True)
    with torch.no_grad():
        expected = peer(
            input_ids=torch.from_numpy(SOURCE),
            attention_mask=torch.from_numpy(MASK.astype(np.int64)),
            decoder_input_ids=torch.from_numpy(TARGETS[:, 0]),
        ).logits.numpy()
    weights = {k: v.detach().numpy() for k, v in peer.state_dict().items()}
    _, logits = forward(name)(encoder_decoder_from_torch(weights, config), SOURCE, MASK, TARGETS[:, 0])
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "swiglu"}, "activation: expected one of .*, got 'swiglu'"),
        ({"positions": "rotary"}, "positions: expected one of .*, got 'rotary'"),
        ({"vocab": 0}, "vocab: expected at least 1, got 0"),
        ({"head_width": None, "heads": 3}, "heads: expected a divisor of width = 16, got 3"),
        ({"buckets": 5}, "buckets: expected an even number of at least 4, got 5"),
        ({"max_distance": 4}, "max_distance: expected more than half the buckets = 4, got 4"),
    ],
)
def test_config_that_does_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(NEWER, **options)


@pytest.mark.parametrize(
    ("name", "part", "inputs", "message"),
    [
        ("t5", "encode", (SOURCE, MASK[:, :11]), r"mask: expected shape \(2, 12\), got \(2, 11\)"),
        (
            "t5",
            "decode",
            (STATES, MASK, TARGETS[0, 0]),
            r"targets_in: expected \[batch, tokens\].*shape \(7,\)",
        ),
        ("t5", "decode", (STATES, MASK, TARGETS[:1, 0]), r"each of the 2 encodings, got shape \(1, 7\)"),
        ("t5", "decode", (STATES, MASK, TARGETS[:, 0], 3), "cache: has room for 3 tokens, got 7"),
        ("t5", "decode", (STATES, MASK, TARGETS, 3), r"without a cache \[batch, sets, tokens\].*\(2, 3, 7\)"),
        ("t5", "init_cache", (STATES, 0), "length: expected at least 1, got 0"),
        ("learned", "init_cache", (STATES, 13), "length: 13 are more than max_length = 12"),
        ("learned", "encode", (np.zeros((1, 13), int),), "tokens: 13 are more than max_length = 12"),
    ],
)
def test_input_that_does_not_fit(name, part, inputs, message):
    model = encoder_decoder(CONFIGS[name])

    def call():
        params = model.init(jax.random.key(0))
        given = (*inputs[:3], model.init_cache(params, STATES, inputs[3])) if len(inputs) == 4 else inputs
        return getattr(model, part)(params, *given)

    with pytest.raises(ValueError, match=message):
        jax.eval_shape(call)
