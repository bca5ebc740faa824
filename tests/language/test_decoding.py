"""Decoding: distributions against numpy, and generation against a loop in Python, padded, cached, sharded."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxneg.language import generate, left_padded, next_token_distribution, sample_token
from jaxneg.nn import EncoderDecoderConfig, TransformerConfig, encoder_decoder, init_cache, transformer
from jaxneg.train import make_mesh

CONFIG = TransformerConfig(vocab=16, width=16, layers=2, heads=4, kv_heads=2, hidden=24)
PROMPTS = [[3, 1, 4, 1], [5], [9, 2, 6], [5, 3, 5, 8]]
EOS, PAD, NEW = 12, 0, 6


@functools.cache
def built():
    """A model whose next tokens are varied, and that says the end token now and then."""
    model = transformer(CONFIG)
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return model, jax.tree.map(lambda x: rng.normal(0, 0.5, x.shape).astype(np.float32), shapes)


def step_of(model, params):
    def step(tokens, positions, mask, cache):
        out = model.apply(params, tokens, positions=positions, mask=mask, cache=cache)
        return (out, None) if cache is None else out

    return step


@functools.partial(jax.jit, static_argnames=("cached", "options"))
def generated(key, params, prompt, mask, cached=True, options=()):
    cache = init_cache(CONFIG, len(prompt), prompt.shape[1] + NEW - 1) if cached else None
    step = step_of(built()[0], params)
    return generate(key, step, prompt, mask, cache, max_new_tokens=NEW, eos=EOS, pad=PAD, **dict(options))


def brute_force(logits, temperature, top_k, top_p):
    """The distribution of one row, token by token, without equal logits."""
    z = np.asarray(logits, np.float64) / temperature
    p = np.exp(z - z.max())
    order = list(np.argsort(-p))[: top_k or len(p)]
    kept = np.zeros_like(p)
    kept[order] = p[order] / p[order].sum()
    chosen, total = [], 0.0
    for token in order:
        if top_p is not None and total >= top_p:
            break
        chosen.append(token)
        total += kept[token]
    final = np.zeros_like(p)
    final[chosen] = kept[chosen] / kept[chosen].sum()
    return final


KEPT = ((None, None), (1, None), (3, None), (50, None), (None, 0.05), (None, 0.6), (4, 0.6), (2, 0.95))
OPTIONS = [(temperature, *kept) for temperature in (0.3, 2.5) for kept in KEPT]


@jax.jit
def all_distributions(logits):
    return [next_token_distribution(logits, *options) for options in OPTIONS]


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000))
def test_the_distribution_is_that_of_brute_force(seed):
    logits = np.random.default_rng(seed).normal(size=(2, 9)).astype(np.float32) * 2
    for options, p in zip(OPTIONS, all_distributions(logits), strict=True):
        expected = [brute_force(row, *options) for row in logits]
        np.testing.assert_allclose(p, expected, rtol=1e-4, atol=1e-6, err_msg=str(options))


@pytest.mark.golden("qcrd", "qcrd*.npz")
def test_temperatures_of_the_golden_vectors(golden):
    names = [name for name in golden if re.fullmatch(r"temp_probs_[\d.]+", name)]
    assert names
    for name in names:
        p = next_token_distribution(golden["temp_logits"].astype(np.float32), float(name.split("_")[-1]))
        np.testing.assert_allclose(p, golden[name], rtol=1e-5, atol=1e-6)


def test_a_distribution_keeps_ties_and_exact_zeros():
    p = jax.jit(lambda logits: next_token_distribution(logits, top_k=1))(jnp.array([1.0, 2.0, 2.0, 0.0]))
    np.testing.assert_allclose(p, [0, 0.5, 0.5, 0], rtol=1e-6)
    assert p[0] == p[3] == 0
    np.testing.assert_array_equal(next_token_distribution(jnp.array([1.0, 2.0, 2.0]), 0.0), [0, 1, 0])
    nearly_greedy = next_token_distribution(jnp.array([1e4, 2e4, -jnp.inf]), 1e-30)
    np.testing.assert_array_equal(nearly_greedy, [0, 1, 0])


@jax.jit
def filtered(logits):
    return next_token_distribution(logits, 0.7, 5, 0.8)


def test_half_precision_is_widened():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(3, 9)), jnp.bfloat16)
    p = filtered(logits)
    assert p.dtype == jnp.float32
    np.testing.assert_allclose(p, filtered(logits.astype(jnp.float32)), rtol=1e-6)
    assert next_token_distribution(logits, 0.0).dtype == jnp.float32


def test_wide_numbers_stay_wide(x64):
    logits = np.random.default_rng(0).normal(size=9)
    p = filtered(jnp.asarray(logits))
    assert p.dtype == jnp.float64
    np.testing.assert_allclose(p, brute_force(logits, 0.7, 5, 0.8), rtol=1e-12)


def test_tokens_have_the_frequencies_of_the_distribution():
    logits = jnp.array([0.0, 1.0, 2.0, 1.5, -1.0])
    options = {"temperature": 0.8, "top_k": 4, "top_p": 0.9}
    rows = jnp.broadcast_to(logits, (20_000, 5))
    tokens = jax.jit(lambda key: sample_token(key, rows, **options))(jax.random.key(1))
    p = brute_force(logits, **options)
    assert tokens.dtype == jnp.int32
    frequencies = np.bincount(tokens, minlength=5) / len(tokens)
    np.testing.assert_allclose(frequencies, p, atol=4 * np.sqrt(0.25 / len(tokens)))
    assert (frequencies[p == 0] == 0).all()


def greedy(prompt):
    """One prompt without padding, token by token, over all tokens each time."""
    model, params = built()
    apply, tokens = jax.jit(model.apply), list(prompt)
    room = np.zeros((1, 12), np.int32)
    new = []
    while len(new) < NEW and new[-1:] != [EOS]:
        room[0, : len(tokens)] = tokens
        new.append(int(jnp.argmax(apply(params, room)[0, len(tokens) - 1])))
        tokens.append(new[-1])
    return new


@pytest.mark.parametrize("cached", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_greedy_decoding_is_that_of_each_prompt_alone(cached):
    prompt, mask = left_padded(PROMPTS, PAD)
    tokens, lengths = generated(jax.random.key(0), built()[1], prompt, mask, cached=cached)
    ended = 0
    for row, length, alone in zip(tokens, lengths, map(greedy, PROMPTS), strict=True):
        assert row.tolist() == alone + [PAD] * (NEW - len(alone))
        assert length == len(alone) - (alone[-1] == EOS)
        ended += alone[-1] == EOS
    assert 0 < ended < len(PROMPTS)  # both kinds occur


@pytest.mark.slow
def test_samples_do_not_depend_on_the_cache():
    prompt, mask = left_padded(PROMPTS, PAD)
    options = (("temperature", 1.5), ("top_k", 12), ("top_p", 0.9))
    cached, plain, other = (
        generated(jax.random.key(seed), built()[1], prompt, mask, cached, options).tokens
        for seed, cached in ((1, True), (1, False), (2, True))
    )
    np.testing.assert_array_equal(cached, plain)
    assert (cached != other).any()


def count_up(calls=None):
    """A model without parameters: the next token is the one after this one."""

    def step(tokens, positions, mask, cache):
        if calls is not None:
            jax.debug.callback(lambda: calls.append(tokens.shape[1]))
        return jax.nn.one_hot(tokens + 1, 16), cache

    return step


def test_the_loop_stops_when_all_have_ended():
    calls = []
    prompt = jnp.array([[5], [4]])
    tokens, lengths = generate(
        jax.random.key(0), count_up(calls), prompt, cache=(), max_new_tokens=10, eos=(7, 12), pad=PAD
    )
    jax.effects_barrier()
    assert tokens.tolist() == [[6, 7] + [0] * 8, [5, 6, 7] + [0] * 7]
    assert lengths.tolist() == [1, 2]
    assert calls == [1, 1, 1]


@pytest.mark.slow
def test_texts_that_do_not_end():
    prompt = jnp.array([[5], [4]])
    endless = generate(jax.random.key(0), count_up(), prompt, max_new_tokens=4, eos=None, pad=PAD)
    assert endless.tokens.tolist() == [[6, 7, 8, 9], [5, 6, 7, 8]]
    assert endless.lengths.tolist() == [4, 4]
    last = generate(jax.random.key(0), count_up(), prompt, max_new_tokens=2, eos=7, pad=PAD)
    assert last.lengths.tolist() == [1, 2]  # ended at the last token, and cut


@pytest.mark.slow
def test_what_the_model_is_given():
    prompt, mask = left_padded([[1, 2, 3], [4]], PAD)

    def echo(tokens, positions, mask, cache):  # predicts its own position
        return jax.nn.one_hot(jnp.where(mask, positions, 15), 16), cache

    tokens, _ = generate(jax.random.key(0), echo, prompt, mask, (), max_new_tokens=4, eos=None, pad=PAD)
    assert tokens.tolist() == [[2, 3, 4, 5], [0, 1, 2, 3]]
    tokens, _ = generate(jax.random.key(0), echo, prompt, mask, max_new_tokens=4, eos=None, pad=PAD)
    assert tokens.tolist() == [[2, 3, 4, 5], [0, 1, 2, 3]]


@pytest.mark.slow
def test_keys_map():
    prompt, mask = left_padded(PROMPTS, PAD)
    keys, options = jax.random.split(jax.random.key(3), 3), (("temperature", 2.0),)
    mapped = jax.vmap(lambda key: generated(key, built()[1], prompt, mask, True, options))(keys)
    for i, key in enumerate(keys):
        alone = generated(key, built()[1], prompt, mask, True, options)
        np.testing.assert_array_equal(mapped.tokens[i], alone.tokens)
        np.testing.assert_array_equal(mapped.lengths[i], alone.lengths)


@pytest.mark.slow
@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize("cached", [False, True])
def test_sharded_is_unsharded(explicit, cached):
    mesh = make_mesh({"data": 4, "model": 2}, explicit=explicit)
    options = (("temperature", 1.5), ("top_k", 12), ("top_p", 0.9))
    prompt, mask = left_padded(PROMPTS, PAD)
    expected = generated(jax.random.key(1), built()[1], prompt, mask, cached, options)
    with jax.set_mesh(mesh):
        place = functools.partial(jax.device_put, device=NamedSharding(mesh, P("data")))
        tokens, lengths = generated(
            jax.random.key(1), built()[1], place(prompt), place(mask), cached, options
        )
    np.testing.assert_array_equal(tokens, expected.tokens)
    np.testing.assert_array_equal(lengths, expected.lengths)
    assert tokens.addressable_shards[0].data.shape == (1, NEW)


@pytest.mark.slow
def test_an_encoder_decoder_generates():
    config = EncoderDecoderConfig(vocab=16, width=16, heads=4, hidden=24)
    model = encoder_decoder(config)
    rng, shapes = np.random.default_rng(1), jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda x: rng.normal(0, 0.5, x.shape).astype(np.float32), shapes)
    source = np.random.default_rng(0).integers(1, 16, (3, 5))
    mask, start = np.arange(5) < np.array([[5], [2], [4]]), jnp.zeros((3, 1), int)

    @functools.partial(jax.jit, static_argnames="cached")
    def run(cached):
        states = model.encode(params, source, mask)

        def step(tokens, positions, of_tokens, cache):
            out = model.decode(params, states, mask, tokens, cache)
            return (out, None) if cache is None else out

        cache = model.init_cache(params, states, NEW) if cached else None
        return generate(jax.random.key(0), step, start, cache=cache, max_new_tokens=NEW, eos=EOS, pad=PAD)

    cached, plain = run(True), run(False)
    np.testing.assert_array_equal(cached.tokens, plain.tokens)

    @jax.jit
    def best_after(read):
        return jnp.argmax(model.decode(params, model.encode(params, source, mask), mask, read), axis=-1)

    best = best_after(np.concatenate([start, cached.tokens[:, :-1]], axis=1))
    for row, length, expected in zip(cached.tokens, cached.lengths, best, strict=True):
        np.testing.assert_array_equal(row[: length + 1], expected[: length + 1])
    assert len(np.unique(cached.tokens)) > 3


def test_prompts_are_padded_on_the_left():
    tokens, mask = left_padded(PROMPTS, 15, 5)
    assert tokens.tolist() == [[15, 3, 1, 4, 1], [15] * 4 + [5], [15, 15, 9, 2, 6], [15, 5, 3, 5, 8]]
    np.testing.assert_array_equal(mask.sum(1), [4, 1, 3, 4])
    assert mask[:, -1].all()
    with pytest.raises(ValueError, match=r"rows\[3\]: expected at most 4 tokens, got 5; shorten the prompt"):
        left_padded([*PROMPTS[:3], [1] * 5], PAD, 4)
    with pytest.raises(ValueError, match=r"rows\[1\]: expected at least one token, got an empty prompt"):
        left_padded([[1], []], PAD)
    with pytest.raises(ValueError, match="rows: expected at least one prompt, got none"):
        left_padded([], PAD)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"temperature": -1.0}, ValueError, "temperature: expected a finite number of at least 0, got -1.0"),
        ({"temperature": float("nan")}, ValueError, "temperature: expected a finite number"),
        ({"top_k": 0}, ValueError, "top_k: expected at least 1, or None, got 0"),
        ({"top_p": 0.0}, ValueError, r"top_p: expected a number in \(0, 1\], or None, got 0.0"),
        ({"temperature": 0.0, "top_p": 1.1}, ValueError, r"top_p: expected a number in \(0, 1\]"),
        ({"logits": jnp.arange(3)}, TypeError, "logits: expected a floating type, got int32"),
    ],
)
def test_options_that_do_not_exist(options, error, message):
    options = {"logits": jnp.zeros(3), **options}
    with pytest.raises(error, match=message):
        next_token_distribution(**options)
    with pytest.raises(error, match=message):
        sample_token(jax.random.key(0), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"prompt": jnp.ones(3, int)},
            r"prompt: expected \[batch, tokens\] with at least one token, got \(3,\)",
        ),
        ({"prompt": jnp.ones((3, 0), int)}, r"prompt: expected .* got \(3, 0\)"),
        ({"mask": jnp.ones((2, 3), bool)}, r"mask: expected the shape of the prompt, \(2, 4\), got \(2, 3\)"),
        ({"mask": np.arange(4) < [[4], [3]]}, "mask: row 1 ends with padding; pad on the left"),
        ({"max_new_tokens": 0}, "max_new_tokens: expected at least 1, got 0"),
        (
            {"cache": init_cache(CONFIG, 2, 8)},
            r"cache: expected room for 9 tokens \(4 of the prompt .* got 8 slots",
        ),
    ],
)
def test_generation_that_does_not_fit(options, message):
    options = {"prompt": jnp.ones((2, 4), int), "max_new_tokens": 6, "eos": EOS, "pad": PAD, **options}
    with pytest.raises(ValueError, match=message):
        generate(jax.random.key(0), count_up(), **options)
