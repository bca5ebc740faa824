"""The decoder: against plain numpy, causality, its options, and sharded."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxneg.nn import LLAMA_3_2_1B, TRANSFORMER_RULES, TransformerConfig, transformer
from jaxneg.nn.transformer import rotate
from jaxneg.train import init_state, make_mesh, make_step, partition_specs, shard_step

SMALL = TransformerConfig(vocab=16, width=16, layers=2, heads=4, kv_heads=2, hidden=24)
CONFIGS = {
    "llama": SMALL,
    "gpt": dataclasses.replace(
        SMALL, kv_heads=None, activation="gelu", norm="layer", positions="learned", max_length=8, tied=False
    ),
}
TOKENS = np.random.default_rng(0).integers(0, 16, (4, 7))


def reference(config, params, tokens):
    """The same model in numpy, one sequence and one head at a time."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def norm(x, p):
        if config.norm == "rms":
            return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-5) * p["scale"]
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]

    def turn(x):
        if config.positions != "rotary":
            return x
        size = x.shape[1]
        out = np.empty_like(x)
        for m in range(x.shape[0]):
            for i in range(size // 2):
                z = (x[m, i] + 1j * x[m, i + size // 2]) * np.exp(
                    1j * m * config.rotary_base ** (-2 * i / size)
                )
                out[m, i], out[m, i + size // 2] = z.real, z.imag
        return out

    def gelu(x):
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    outputs = []
    for sequence in tokens:
        x = p["embed"]["embedding"][sequence]
        if config.positions == "learned":
            x = x + p["positions"][: len(sequence)]
        for layer in range(config.layers):
            block = p["blocks"][str(layer)]
            h, attention = norm(x, block["attention_norm"]), block["attention"]
            size = config.head_size
            groups = config.kv_heads or config.heads
            total = 0
            for head in range(config.heads):
                group, place = divmod(head, config.heads // groups)
                part = slice(place * size, (place + 1) * size)
                query = turn(h @ attention["query"]["kernel"][:, group, part])
                key = turn(h @ attention["key"]["kernel"][:, group])
                scores = query @ key.T / np.sqrt(size)
                scores[np.triu_indices(len(sequence), 1)] = -np.inf
                weights = np.exp(scores - scores.max(1, keepdims=True))
                weights /= weights.sum(1, keepdims=True)
                mixed = weights @ (h @ attention["value"]["kernel"][:, group])
                total = total + mixed @ attention["out"]["kernel"][group, part]
            x = x + total
            h, f = norm(x, block["feed_forward_norm"]), block["feed_forward"]
            up = h @ f["up"]["kernel"]
            if config.activation == "swiglu":
                gate = h @ f["gate"]["kernel"]
                x = x + (gate / (1 + np.exp(-gate)) * up) @ f["down"]["kernel"]
            else:
                x = x + gelu(up) @ f["down"]["kernel"]
        h = norm(x, p["norm"])
        outputs.append(h @ (p["embed"]["embedding"].T if config.tied else p["unembed"]["kernel"]))
    return np.stack(outputs)


def noisy(params, seed=1):
    """Parameters without the zeros, ones and small numbers of an initialisation, which hide mistakes."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: x + 0.3 * rng.normal(size=x.shape).astype(np.float32), params)


@pytest.mark.parametrize("name", CONFIGS)
def test_it_is_the_reference(name):
    model = transformer(CONFIGS[name])
    params = noisy(model.init(jax.random.key(0)))
    logits = jax.jit(model.apply)(params, TOKENS)
    np.testing.assert_allclose(logits, reference(CONFIGS[name], params, TOKENS), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_past_does_not_depend_on_the_future(name):
    model = transformer(CONFIGS[name])
    params = model.init(jax.random.key(0))
    changed = TOKENS.copy()
    changed[:, 4] = (changed[:, 4] + 1) % 16
    before, after = model.apply(params, TOKENS), model.apply(params, changed)
    np.testing.assert_allclose(after[:, :4], before[:, :4], atol=1e-6)
    assert (jnp.abs(after[:, 4:] - before[:, 4:]).max((0, 2)) > 1e-4).all()


def test_rotary_scores_depend_on_the_distance_only():
    rng = np.random.default_rng(0)
    q, k = (np.broadcast_to(rng.normal(size=8).astype(np.float32), (1, 9, 8)) for _ in range(2))
    scores = np.asarray(rotate(q, 100.0)[0] @ rotate(k, 100.0)[0].T)
    for distance in range(-8, 9):
        diagonal = np.diagonal(scores, distance)
        np.testing.assert_allclose(diagonal, diagonal[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        np.linalg.norm(rotate(q, 100.0), axis=-1), np.linalg.norm(q, axis=-1), rtol=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize("remat", [False, True])
def test_a_loop_over_the_layers_is_the_layers(remat):
    unrolled = transformer(SMALL)
    scanned = transformer(dataclasses.replace(SMALL, scan=True, remat=remat))
    params = noisy(unrolled.init(jax.random.key(0)))
    blocks = [params["blocks"][str(i)] for i in range(SMALL.layers)]
    stacked = {**params, "blocks": jax.tree.map(lambda *x: jnp.stack(x), *blocks)}
    assert jax.tree.map(jnp.shape, scanned.init(jax.random.key(0))) == jax.tree.map(jnp.shape, stacked)

    def loss(apply, params):
        return jnp.square(apply(params, TOKENS)).mean()

    value, grads = jax.jit(jax.value_and_grad(lambda p: loss(unrolled.apply, p)))(params)
    other, others = jax.jit(jax.value_and_grad(lambda p: loss(scanned.apply, p)))(stacked)
    np.testing.assert_allclose(other, value, rtol=1e-5)
    for i in range(SMALL.layers):
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-3, atol=1e-4),
            others["blocks"],
            grads["blocks"][str(i)],
        )


def test_the_layers_of_a_loop_start_different():
    params = transformer(dataclasses.replace(SMALL, scan=True)).init(jax.random.key(0))
    first, second = params["blocks"]["attention"]["query"]["kernel"]
    assert float(jnp.abs(first - second).max()) > 0.01


def test_bfloat16_is_close():
    model = transformer(SMALL)
    half = transformer(dataclasses.replace(SMALL, dtype=jnp.bfloat16))
    params = model.init(jax.random.key(0))
    logits = half.apply(params, TOKENS)
    assert logits.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(logits, np.float32), model.apply(params, TOKENS), atol=0.02)


def test_llama_has_its_number_of_parameters():
    params = jax.eval_shape(transformer(LLAMA_3_2_1B).init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 1_235_814_400


def next_token_loss(model):
    def loss_fn(params, tokens, key):
        del key
        logits = model.apply(params, tokens[:, :-1]).astype(jnp.float32)
        onehot = jax.nn.one_hot(tokens[:, 1:], logits.shape[-1])
        return -(jax.nn.log_softmax(logits) * onehot).sum(-1).mean(), {}

    return loss_fn


@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize(
    "name", ["llama", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gpt", "scanned"))]
)
def test_sharded_is_unsharded(name, explicit):
    config = CONFIGS.get(name, dataclasses.replace(SMALL, scan=True, remat=True))
    mesh = make_mesh({"data": 4, "model": 2}, explicit=explicit)
    model, tx = transformer(config), optax.sgd(0.1)
    state = init_state(model.init(jax.random.key(0)), tx, jax.random.key(1))
    step = make_step(next_token_loss(model), tx)
    sharded = shard_step(step, mesh, state, TOKENS, rules=TRANSFORMER_RULES)
    placed, plain = sharded.place_state(state), jax.jit(step)
    for _ in range(3):
        state, metrics = plain(state, TOKENS)
        placed, placed_metrics = sharded(placed, TOKENS)
    np.testing.assert_allclose(placed_metrics["loss"], metrics["loss"], rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), placed.params, state.params
    )
    table = placed.params["embed"]["embedding"]
    assert table.addressable_shards[0].data.shape == (8, 4)


def test_rules_reach_every_matrix():
    mesh = make_mesh({"data": 4, "model": 2})
    for config in (SMALL, dataclasses.replace(SMALL, scan=True), CONFIGS["gpt"]):
        params = jax.eval_shape(transformer(config).init, jax.random.key(0))
        specs = partition_specs(params, mesh, TRANSFORMER_RULES)
        for path, _ in jax.tree_util.tree_leaves_with_path(params):
            spec = specs
            for part in path:
                spec = spec[part.key]
            name = jax.tree_util.keystr(path)
            assert ("data" in spec) == ("norm" not in name), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kv_heads": 3}, "kv_heads: expected a divisor of heads = 4, got 3"),
        ({"heads": 3, "kv_heads": None}, "heads: expected a divisor of width = 16, got 3"),
        ({"head_width": 3}, "head_width: expected an even number for rotary positions, got 3"),
        ({"activation": "relu"}, r"activation: expected one of \('swiglu', 'gelu'\), got 'relu'"),
        ({"norm": "batch"}, "norm: expected one of"),
        ({"positions": "alibi"}, "positions: expected one of"),
        ({"vocab": 0}, "vocab: expected at least 1, got 0"),
    ],
)
def test_config_that_does_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **options)


def test_more_tokens_than_learned_positions():
    model = transformer(CONFIGS["gpt"])
    with pytest.raises(ValueError, match="tokens: 9 are more than max_length = 8"):
        model.apply(model.init(jax.random.key(0)), jnp.zeros((1, 9), int))
