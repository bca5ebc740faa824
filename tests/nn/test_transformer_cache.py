"""The decoder's options: padding, the cache, the probe, hidden states and the hook on attention weights."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneg.nn import Probe, TransformerConfig, init_cache, transformer

LLAMA = TransformerConfig(vocab=16, width=16, layers=2, heads=4, kv_heads=2, hidden=24)
GPT = dataclasses.replace(
    LLAMA, kv_heads=None, activation="gelu", norm="layer", positions="learned", max_length=8, tied=False
)
CONFIGS = {"llama": LLAMA, "gpt": GPT, "scanned": dataclasses.replace(LLAMA, scan=True)}
TOKENS = np.random.default_rng(0).integers(0, 16, (3, 7))
LEFT = np.arange(7) >= np.array([[3], [0], [5]])  # 4, 7 and 2 tokens
ROWS = [tokens[mask] for tokens, mask in zip(TOKENS, LEFT, strict=True)]


@functools.cache
def built(name):
    """Parameters without an initialisation's zeros, ones and small numbers, and ``apply``, jitted."""
    model = transformer(CONFIGS[name])
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda x: rng.normal(0.1, 0.4, x.shape).astype(np.float32), shapes)
    return params, jax.jit(model.apply, static_argnames=("probe", "hidden", "weights_hook"))


def unrolled(params):
    """The parameters of a stacked model for one that is not."""
    layers = [jax.tree.map(lambda x, i=i: x[i], params["blocks"]) for i in range(LLAMA.layers)]
    return {**params, "blocks": {str(i): layer for i, layer in enumerate(layers)}}


def each_row_alone(name):
    params, apply = built(name)
    whole = np.asarray(
        apply(params, np.stack([np.resize(row, 7) for row in ROWS]))
    )  # causal: a prefix is alone
    return [logits[: len(row)] for logits, row in zip(whole, ROWS, strict=True)]


@pytest.mark.parametrize("name", ["llama", pytest.param("gpt", marks=pytest.mark.slow)])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(name, side):
    params, apply = built(name)
    mask = LEFT if side == "left" else LEFT[:, ::-1]
    tokens = np.random.default_rng(2).integers(0, 16, TOKENS.shape)
    tokens[mask] = np.concatenate(ROWS)
    logits = np.asarray(apply(params, tokens, mask=mask))
    for row, each, alone in zip(logits, mask, each_row_alone(name), strict=True):
        np.testing.assert_allclose(row[each], alone, rtol=1e-4, atol=1e-5)
    assert np.isfinite(logits).all()


@pytest.mark.parametrize(
    "name", ["llama", *(pytest.param(n, marks=pytest.mark.slow) for n in ("gpt", "scanned"))]
)
def test_a_cache_changes_nothing(name):
    params, apply = built(name)
    cache = init_cache(CONFIGS[name], 3, 7)
    logits, cache = apply(params, TOKENS[:, :5], mask=LEFT[:, :5], cache=cache)
    pieces = [logits]
    for t in (5, 6):
        logits, cache = apply(params, TOKENS[:, t : t + 1], mask=LEFT[:, t : t + 1], cache=cache)
        pieces.append(logits)
    assert int(cache.length) == 7
    assert cache.slots == 7
    np.testing.assert_array_equal(cache.mask, LEFT)
    logits = np.concatenate(pieces, axis=1)
    for row, each, alone in zip(logits, LEFT, each_row_alone(name), strict=True):
        np.testing.assert_allclose(row[each], alone, rtol=1e-4, atol=1e-5)
    overfull, _ = apply(params, TOKENS[:, :1], mask=LEFT[:, 6:], cache=cache)
    assert np.isnan(overfull).all()


def test_positions_are_those_given():
    params, apply = built("llama")
    shifted = apply(params, TOKENS, positions=np.arange(7) + np.full((3, 1), 5))
    np.testing.assert_allclose(shifted, apply(params, TOKENS), rtol=1e-3, atol=1e-4)  # distances count
    stretched = apply(params, TOKENS, positions=2 * np.arange(7) + np.zeros((3, 1), int))
    assert np.abs(stretched - shifted)[:, 1:].max() > 0.1


@pytest.mark.slow
def test_learned_positions_are_those_given():
    params, apply = built("gpt")
    positions = np.array([[3, 1, 4, 1, 5, 2, 6]] * 3)
    moved = {**params, "positions": params["positions"][np.append(positions[0], 7)]}
    np.testing.assert_allclose(
        apply(params, TOKENS, positions=positions), apply(moved, TOKENS), rtol=1e-4, atol=1e-5
    )
    beyond = apply(params, TOKENS, positions=positions + np.array([[0], [2], [1]]))  # 8 in the second row
    assert np.isnan(beyond[1]).all()
    assert np.isfinite(beyond[::2]).all()


@pytest.mark.slow
def test_padding_gets_no_gradient():
    params, _ = built("llama")
    apply = transformer(LLAMA).apply

    @jax.jit
    @jax.grad
    def gradient(params, tokens):
        logits = apply(params, tokens, mask=LEFT)
        return jnp.sum(jnp.where(LEFT[..., None], jnp.tanh(logits), 0))

    ones, other = (gradient(params, np.where(LEFT, 1, padding)) for padding in (1, 2))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(ones))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), other, ones)


@pytest.mark.parametrize("name", ["llama", pytest.param("scanned", marks=pytest.mark.slow)])
def test_the_probe_gives_the_attention_weights(name):
    params, apply = built(name)
    seen = {}

    def keep(weights, layer):
        jax.debug.callback(
            lambda weights, layer: seen.update({int(layer): np.asarray(weights)}), weights, layer
        )
        return weights

    logits, probe = apply(params, TOKENS, mask=LEFT, probe=(1, 0), weights_hook=keep)
    jax.block_until_ready(logits)
    jax.effects_barrier()
    assert isinstance(probe, Probe)
    assert probe.query.shape == (2, 3, 4, 7, 4)
    assert probe.key.shape == (2, 3, 2, 7, 4)
    key = np.repeat(probe.key, 2, axis=2)
    scores = np.einsum("lbhtd,lbhsd->lbhts", probe.query, key) / 2
    visible = np.tri(7, dtype=bool) & LEFT[:, None, None, :]
    weights = np.where(visible, np.exp(scores), 0)
    weights /= np.maximum(weights.sum(-1, keepdims=True), 1e-30)
    for place, layer in enumerate((1, 0)):
        for row in range(3):
            np.testing.assert_allclose(
                seen[layer][row][:, LEFT[row]], weights[place, row][:, LEFT[row]], rtol=1e-4, atol=1e-6
            )


def test_hidden_states_lead_to_the_logits():
    params, apply = built("llama")
    logits, last = apply(params, TOKENS, hidden=1)
    root = np.sqrt(np.mean(np.square(last), -1, keepdims=True) + 1e-5)
    expected = last / root * params["norm"]["scale"] @ params["embed"]["embedding"].T
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4)
    _, first = apply(params, TOKENS, hidden=0)
    deeper = {**params, "blocks": {"0": params["blocks"]["1"], "1": params["blocks"]["1"]}}
    assert np.abs(apply(deeper, TOKENS, hidden=0)[1] - first).max() > 0.1
    deeper = {**params, "blocks": {"0": params["blocks"]["0"], "1": params["blocks"]["0"]}}
    np.testing.assert_array_equal(apply(deeper, TOKENS, hidden=0)[1], first)  # the second comes after it


@pytest.mark.slow
def test_a_loop_gives_what_the_layers_give():
    stacked, scanned = built("scanned")
    plain = functools.partial(transformer(LLAMA).apply, unrolled(stacked))
    options = {"mask": LEFT, "probe": (0, 1), "hidden": 0}
    given = scanned(stacked, TOKENS, cache=init_cache(LLAMA, 3, 9), **options)
    expected = jax.jit(lambda tokens: plain(tokens, cache=init_cache(LLAMA, 3, 9), **options))(TOKENS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), given, expected)
    remat = transformer(dataclasses.replace(LLAMA, remat=True)).apply
    again = remat(unrolled(stacked), TOKENS, cache=init_cache(LLAMA, 3, 9), **options)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), again, expected)


def test_the_hook_replaces_weights():
    params, apply = built("llama")
    off = np.zeros((2, 4), bool)
    off[1, 2] = True  # key head 1, its first query head

    def silence(weights, layer):
        return jnp.where(jnp.asarray(off)[layer][:, None, None], 0, weights)

    cut = jax.tree.map(np.copy, params)
    cut["blocks"]["1"]["attention"]["out"]["kernel"][1, :4] = 0
    silenced = apply(params, TOKENS, weights_hook=silence)
    np.testing.assert_allclose(silenced, apply(cut, TOKENS), rtol=1e-4, atol=1e-5)
    assert np.abs(silenced - apply(params, TOKENS)).max() > 0.01


@pytest.mark.slow
def test_a_cache_in_bfloat16_is_close():
    params, apply = built("llama")
    cache = init_cache(LLAMA, 3, 7, jnp.bfloat16)
    assert cache.key.dtype == jnp.bfloat16
    _, cache = apply(params, TOKENS[:, :6], cache=cache)
    logits, cache = apply(params, TOKENS[:, 6:], cache=cache)
    assert logits.dtype == jnp.float32
    whole = np.asarray(apply(params, TOKENS))[:, 6:]
    np.testing.assert_allclose(logits, whole, atol=0.03 * np.abs(whole).max())
    assert init_cache(dataclasses.replace(LLAMA, dtype=jnp.bfloat16), 1, 1).value.dtype == jnp.bfloat16


@pytest.mark.slow
def test_models_mapped_over_seeds():
    model = transformer(LLAMA)
    params = jax.vmap(model.init)(jax.random.split(jax.random.key(0), 2))

    def read(params):
        _, cache = model.apply(params, TOKENS[:, :6], mask=LEFT[:, :6], cache=init_cache(LLAMA, 3, 7))
        return model.apply(params, TOKENS[:, 6:], cache=cache)[0]

    both = jax.jit(jax.vmap(read))(params)
    for i in range(2):
        alone = model.apply(jax.tree.map(lambda x, i=i: x[i], params), TOKENS, mask=LEFT)
        np.testing.assert_allclose(both[i], alone[:, 6:], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": LEFT[:, :6]}, r"mask: expected the shape of tokens, \(3, 7\), got \(3, 6\)"),
        ({"positions": TOKENS[:2]}, r"positions: expected the shape of tokens, \(3, 7\), got \(2, 7\)"),
        ({"probe": (0, 2)}, r"probe: expected layers from 0 to 1, got \(0, 2\)"),
        ({"probe": ()}, r"probe: expected layers from 0 to 1, got \(\)"),
        ({"hidden": -1}, r"hidden: expected layers from 0 to 1, got \(-1,\)"),
        ({"cache": init_cache(LLAMA, 3, 6)}, "cache: has room for 6 tokens, got 7"),
    ],
)
def test_options_that_do_not_fit(options, message):
    params, apply = built("llama")
    with pytest.raises(ValueError, match=message):
        apply(params, TOKENS, **options)


def test_an_empty_cache_has_sizes():
    with pytest.raises(ValueError, match="batch: expected at least 1, got 0"):
        init_cache(LLAMA, 0, 5)
    with pytest.raises(ValueError, match="length: expected at least 1, got 0"):
        init_cache(LLAMA, 1, 0)
    with pytest.raises(ValueError, match="length: 9 are more than max_length = 8 learned positions"):
        init_cache(GPT, 1, 9)
