"""The decoder: against plain numpy, causality, its options, and sharded."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxneg.nn import (
    LLAMA_3_2_1B,
    TRANSFORMER_RULES,
    RotaryScaling,
    TransformerConfig,
    transformer,
    transformer_from_torch,
)
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
    apply = jax.jit(model.apply)
    before, after = apply(params, TOKENS), apply(params, changed)
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
    params = jax.jit(transformer(dataclasses.replace(SMALL, scan=True)).init)(jax.random.key(0))
    first, second = params["blocks"]["attention"]["query"]["kernel"]
    assert float(jnp.abs(first - second).max()) > 0.01


def test_bfloat16_is_close():
    model = transformer(SMALL)
    half = transformer(dataclasses.replace(SMALL, dtype=jnp.bfloat16))
    params = jax.jit(model.init)(jax.random.key(0))
    logits = jax.jit(half.apply)(params, TOKENS)
    assert logits.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        np.asarray(logits, np.float32), jax.jit(model.apply)(params, TOKENS), atol=0.02
    )


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


@pytest.mark.parametrize("explicit", [pytest.param(False, marks=pytest.mark.slow), True])
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


def test_slow_frequencies_are_stretched():
    x = np.random.default_rng(0).normal(size=(1, 3, 8)).astype(np.float32)
    scaling = RotaryScaling(factor=4.0, low=1.0, high=4.0, length=64)
    frequencies = 100.0 ** (-np.arange(0, 8, 2) / 8)
    turns = 64 * frequencies / (2 * np.pi)
    assert (turns > 4).any()
    assert ((turns > 1) & (turns < 4)).any()
    assert scaling.length * 1000.0 ** (-6 / 8) / (2 * np.pi) < 1  # a wavelength beyond the length
    for base in (100.0, 1000.0):
        stretched = []
        for frequency in base ** (-np.arange(0, 8, 2) / 8):
            turns = 64 * frequency / (2 * np.pi)
            part = (turns - 1) / 3
            between = part * frequency + (1 - part) * frequency / 4
            stretched.append(frequency if turns > 4 else frequency / 4 if turns < 1 else between)
        z = (x[0, :, :4] + 1j * x[0, :, 4:]) * np.exp(1j * np.outer(np.arange(3), stretched))
        expected = np.concatenate([z.real, z.imag], axis=-1)
        np.testing.assert_allclose(rotate(x, base, scaling=scaling)[0], expected, rtol=1e-5, atol=1e-6)


def torch_names(params):
    """The parameters of a model that is not stacked under Hugging Face's names for Llama."""
    state = {
        "model.embed_tokens.weight": params["embed"]["embedding"],
        "model.norm.weight": params["norm"]["scale"],
    }
    for i, block in params["blocks"].items():
        layer, attention, feed_forward = f"model.layers.{i}", block["attention"], block["feed_forward"]
        state[f"{layer}.input_layernorm.weight"] = block["attention_norm"]["scale"]
        state[f"{layer}.post_attention_layernorm.weight"] = block["feed_forward_norm"]["scale"]
        for name in ("query", "key", "value"):
            kernel = attention[name]["kernel"]
            state[f"{layer}.self_attn.{name[0]}_proj.weight"] = kernel.reshape(kernel.shape[0], -1).T
        out = attention["out"]["kernel"]
        state[f"{layer}.self_attn.o_proj.weight"] = out.reshape(-1, out.shape[-1]).T
        for name in ("gate", "up", "down"):
            state[f"{layer}.mlp.{name}_proj.weight"] = feed_forward[name]["kernel"].T
    return {name: np.asarray(array) for name, array in state.items()}


def test_a_checkpoint_is_read():
    shapes = jax.eval_shape(transformer(SMALL).init, jax.random.key(0))
    params = jax.tree.map(lambda x: np.random.default_rng(x.size).normal(size=x.shape), shapes)
    params = jax.tree.map(lambda x: x.astype(np.float32), params)
    state = torch_names(params)
    jax.tree.map(np.testing.assert_array_equal, transformer_from_torch(state, SMALL), params)
    stacked = transformer_from_torch(state, dataclasses.replace(SMALL, scan=True))
    key = params["blocks"]["1"]["attention"]["key"]["kernel"]
    np.testing.assert_array_equal(stacked["blocks"]["attention"]["key"]["kernel"][1], key)


def test_a_checkpoint_that_does_not_fit():
    shapes = jax.eval_shape(transformer(SMALL).init, jax.random.key(0))
    state = torch_names(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes))
    name = "model.layers.1.self_attn.k_proj.weight"
    with pytest.raises(ValueError, match=f"state: '{name}' is missing"):
        transformer_from_torch({k: v for k, v in state.items() if k != name}, SMALL)
    with pytest.raises(ValueError, match=rf"state: '{name}' should have shape \(8, 16\), got \(16, 8\)"):
        transformer_from_torch({**state, name: state[name].T}, SMALL)
    with pytest.raises(ValueError, match=r"state: 'lm_head\.weight' is missing"):
        transformer_from_torch(state, dataclasses.replace(SMALL, tied=False))
    with pytest.raises(ValueError, match=r"state: 'model\.bias' is too much"):
        transformer_from_torch({**state, "model.bias": np.ones(2)}, SMALL)
    with pytest.raises(ValueError, match="config: expected Llama's choices, swiglu, rms and rotary"):
        transformer_from_torch(state, CONFIGS["gpt"])


@pytest.mark.slow
def test_it_is_hugging_face_s_llama():
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    scaling = RotaryScaling(factor=4.0, low=1.0, high=4.0, length=16)
    config = dataclasses.replace(SMALL, rotary_base=100.0, rotary_scaling=scaling)
    peer = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=16, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, rms_norm_eps=1e-5, tie_word_embeddings=True,
            rope_parameters={
                "rope_type": "llama3", "rope_theta": 100.0, "factor": 4.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
            },
        )
    ).eval()  # fmt: skip
    params = jax.tree.map(np.asarray, noisy(transformer(config).init(jax.random.key(0))))
    state = {name: torch.from_numpy(array.copy()) for name, array in torch_names(params).items()}
    peer.load_state_dict(state, strict=False)
    weights = {name: tensor.detach().numpy() for name, tensor in peer.state_dict().items()}
    with torch.no_grad():
        expected = peer(input_ids=torch.from_numpy(TOKENS)).logits.numpy()
    logits = transformer(config).apply(transformer_from_torch(weights, config), TOKENS)
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3)
