"""The negative attention score: vectors, brute force, gradients, blocks, padding, shared keys, bad input."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxneg.language import (
    ScorePairs,
    attention_score_pairs,
    nas_alignment_loss,
    negative_attention_score,
    rank_heads,
)
from jaxneg.train import make_mesh

T_YES, T_NO, LO, HI = 2, 4, 6, 11


def queries_and_keys(seed=0, layers=2, heads=4, kv_heads=2, tokens=12, size=8):
    rng = np.random.default_rng(seed)
    shapes = (layers, heads, tokens, size), (layers, kv_heads, tokens, size)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def attention(query, key, mask=None):
    """The whole map in float64, head by head."""
    layers, heads, tokens, size = query.shape
    found = np.zeros((layers, heads, tokens, tokens))
    for layer in range(layers):
        for head in range(heads):
            k = key[layer, head // (heads // key.shape[1])].astype(np.float64)
            scores = query[layer, head].astype(np.float64) @ k.T / np.sqrt(size)
            seen = np.tri(tokens, dtype=bool) if mask is None else np.tri(tokens, dtype=bool) & mask
            scores[~seen] = -np.inf
            weights = np.exp(scores - scores.max(1, keepdims=True, where=seen, initial=-1e9))
            found[layer, head] = weights / np.maximum(weights.sum(1, keepdims=True), 1e-300)
    return found


def brute_force(weights, lo=LO, hi=HI):
    rows = [
        (weights[..., i, T_YES] + weights[..., i, T_NO])
        * np.log(weights[..., i, T_NO] / weights[..., i, T_YES])
        for i in range(lo, hi)
    ]
    return np.sum(rows, axis=0)


@jax.jit
def one_score(query, key):
    return negative_attention_score(attention_score_pairs(query, key, T_YES, T_NO), T_YES, T_NO, LO, HI)


def positions(golden):
    return [int(golden[name]) for name in ("t_yes", "t_no", "row_lo", "row_hi")]


@pytest.mark.golden("neg_bias", "neg_bias*.npz")
def test_vectors_of_the_score(golden, x64):
    t_yes, t_no, lo, hi = positions(golden)
    weights = golden["attn"].astype(np.float64)
    score = jax.jit(partial(negative_attention_score, t_yes=t_yes, t_no=t_no, lo=lo, hi=hi))
    found = score(weights)
    np.testing.assert_allclose(found, golden["nas"], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.mean(0), golden["nas_mean"], rtol=1e-12, atol=1e-12)
    narrow = score(golden["attn"])
    assert narrow.dtype == np.float32
    np.testing.assert_allclose(narrow, golden["nas"], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(narrow.mean(0), golden["nas_mean"], rtol=1e-6, atol=1e-6)


@pytest.mark.golden("neg_bias", "neg_bias*.npz")
def test_vectors_of_the_ranking(golden):
    heads = golden["attn"].shape[2]
    for nas in (golden["nas"], golden["nas_mean"]):
        flat = [layer * heads + head for layer, head in rank_heads(nas)]
        assert flat[: len(golden["top_heads"])] == golden["top_heads"].tolist()
        assert sorted(flat) == list(range(golden["nas_mean"].size))


@pytest.mark.golden("neg_bias", "neg_bias*.npz")
def test_vectors_of_the_gradient(golden, x64):
    t_yes, t_no, lo, hi = positions(golden)
    for dtype, tolerance in ((np.float64, 1e-12), (np.float32, 1e-6)):

        def score(weights):
            return negative_attention_score(weights, t_yes, t_no, lo, hi).sum()

        found = np.array(jax.jit(jax.grad(score))(golden["attn"][0].astype(dtype)))
        for name, column in (("dnas_dyes", t_yes), ("dnas_dno", t_no)):
            np.testing.assert_allclose(
                found[..., lo:hi, column], golden[name], rtol=tolerance, atol=tolerance, err_msg=name
            )
            found[..., lo:hi, column] = 0
        assert not found.any()  # nothing else counts


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("block", "heads_at_once"), [(128, None), (5, 1), (1, 100)])
def test_blocks_are_the_whole_map(block, heads_at_once, masked):
    query, key = queries_and_keys()
    mask = np.arange(12) > 1 if masked else None
    weights = attention(query, key, mask)
    pairs = jax.jit(
        partial(attention_score_pairs, t_yes=T_YES, t_no=T_NO, block=block, heads_at_once=heads_at_once)
    )(query, key, mask=mask)
    for column, scores in ((T_YES, pairs.yes), (T_NO, pairs.no)):
        np.testing.assert_allclose(
            np.exp(scores - pairs.normaliser)[..., LO:], weights[..., LO:, column], rtol=2e-5
        )
    if masked:
        assert np.isneginf(pairs.normaliser[..., :2]).all()
    score = partial(negative_attention_score, t_yes=T_YES, t_no=T_NO, lo=LO, hi=HI)
    np.testing.assert_allclose(score(pairs), brute_force(weights), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(score(weights), brute_force(weights), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        score(pairs, rows="last"), brute_force(weights, HI - 1, HI), rtol=1e-4, atol=1e-5
    )


@jax.jit
def batch_scores(query, key, t_yes, t_no, lo, hi):
    """Scores of several prompts, each with spans of its own."""

    def of_prompt(query, key, *spans):
        return negative_attention_score(attention_score_pairs(query, key, *spans[:2], block=5), *spans)

    return jax.vmap(of_prompt)(query, key, t_yes, t_no, lo, hi)


def batch(prompts=4):
    arrays = [
        np.stack(each) for each in zip(*(queries_and_keys(seed) for seed in range(prompts)), strict=True)
    ]
    spans = np.array([[1, 2, 3, 9], [2, 1, 4, 12], [0, 5, 6, 7], [3, 0, 9, 11]][:prompts])
    return *arrays, *spans.T


def test_prompts_of_a_batch_keep_their_spans():
    query, key, *spans = batch()
    found = batch_scores(query, key, *spans)
    for prompt, each in enumerate(zip(*spans, strict=True)):
        alone = negative_attention_score(attention(query[prompt], key[prompt]), *map(int, each))
        np.testing.assert_allclose(found[prompt], alone, rtol=1e-4, atol=1e-5)


def test_half_precision_is_summed_in_float32():
    query, key = (jnp.asarray(x, jnp.bfloat16) for x in queries_and_keys())
    found = one_score(query, key)
    assert found.dtype == jnp.float32
    exact = attention(np.asarray(query, np.float32), np.asarray(key, np.float32))
    np.testing.assert_allclose(found, brute_force(exact), rtol=1e-4, atol=1e-5)


def test_attention_that_underflows_keeps_its_ratio():
    query, key = queries_and_keys()
    query[..., :2] = [60, 0]
    key[..., :2] = 0
    key[..., T_YES, 0], key[..., T_NO, 0] = -60, -59.9
    found = one_score(query, key)
    assert np.isfinite(found).all()


def test_the_gradient_of_the_blocks():
    """Through blocks that are computed twice, and exactly 0 beyond the prompt's end."""
    query, key = queries_and_keys(heads=2, kv_heads=1, layers=1)

    def ours(query, key, block):
        pairs = attention_score_pairs(query, key, T_YES, T_NO, block=block)
        return negative_attention_score(pairs, T_YES, T_NO, LO, HI).sum()

    def whole(query, key):
        scores = jnp.einsum("lhtd,lgsd->lhts", query, key) * query.shape[-1] ** -0.5
        weights = jax.nn.softmax(jnp.where(np.tri(12, dtype=bool), scores, -jnp.inf))
        return negative_attention_score(weights, T_YES, T_NO, LO, HI).sum()

    found = jax.jit(jax.grad(partial(ours, block=5), (0, 1)))(query, key)
    expected = jax.jit(jax.grad(whole, (0, 1)))(query, key)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)
    assert not np.asarray(found[0])[..., HI:, :].any()


@pytest.mark.parametrize("explicit", [False, True])
def test_sharded_prompts(explicit):
    arrays = batch()
    mesh = make_mesh({"data": 4}, devices=jax.devices()[:4], explicit=explicit)
    with jax.set_mesh(mesh):
        placed = [jax.device_put(x, NamedSharding(mesh, P("data"))) for x in arrays]
        found = batch_scores(*placed)
    assert found.sharding.spec[0] == "data"
    np.testing.assert_allclose(found, batch_scores(*arrays), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_the_memory_grows_with_the_tokens_and_not_their_square():
    def peak(tokens):
        shape = jax.ShapeDtypeStruct((4, 2, tokens, 8), jnp.float32)
        program = jax.jit(lambda q, k: attention_score_pairs(q, k, 1, 2, block=16)).lower(shape, shape)
        return program.compile().memory_analysis().temp_size_in_bytes

    assert peak(2048) < 2048**2  # a quarter of one head's map
    assert peak(2048) < 2.5 * peak(1024)


def test_heads_that_stand_out():
    nas = np.zeros((3, 2, 4), np.float32)
    nas[:, 1, 2], nas[:, 0, 3] = 5.0, 4.0
    assert rank_heads(nas)[:3] == [(1, 2), (0, 3), (0, 0)]
    assert rank_heads(nas, deviations=1.0) == [(1, 2), (0, 3)]
    assert rank_heads(nas, deviations=9.0) == []


def test_alignment_by_hand():
    nas = np.array([[[2.0, -3.0], [1.0, 4.0]], [[0.5, 9.0], [0.0, 0.0]]], np.float32)
    heads = [(0, 0), (0, 1), (1, 1)]
    lo, hi = np.array([3, 4]), np.array([5, 5])
    expected = [(2**2 + 4**2) / 4, 0.5**2 + 9**2]
    found = jax.jit(partial(nas_alignment_loss, heads=heads))(nas, lo=lo, hi=hi)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    mask = np.array([[True, True], [False, True]])
    np.testing.assert_allclose(jax.jit(nas_alignment_loss)(nas, mask, lo, hi), expected, rtol=1e-6)
    slope = jax.jit(jax.grad(lambda nas: nas_alignment_loss(nas, heads, lo, hi).sum()))(nas)
    np.testing.assert_allclose(slope, [[[1, 0], [0, 2]], [[1, 18], [0, 0]]], rtol=1e-6)
    np.testing.assert_allclose(nas_alignment_loss(nas[0], heads, 3, 5), expected[0])
    assert (
        jax.eval_shape(
            lambda nas: nas_alignment_loss(nas, heads, lo, hi), jnp.asarray(nas, jnp.bfloat16)
        ).dtype
        == jnp.float32
    )


def test_bad_input():
    query, key = queries_and_keys()
    weights = np.full((2, 12, 12), 0.1, np.float32)
    with pytest.raises(ValueError, match=r"key: expected .* kv_heads a divisor of its heads, got"):
        attention_score_pairs(query, np.concatenate([key, key[:, :1]], 1), 1, 2)
    with pytest.raises(ValueError, match=r"key: expected .* got \(2, 2, 11, 8\)"):
        attention_score_pairs(query, key[..., :11, :], 1, 2)
    with pytest.raises(TypeError, match=r"query: expected a floating dtype, got int32"):
        attention_score_pairs(query.astype(np.int32), key, 1, 2)
    with pytest.raises(ValueError, match=r"block: expected at least 1, got 0"):
        attention_score_pairs(query, key, 1, 2, block=0)
    with pytest.raises(ValueError, match=r"heads_at_once: expected at least 1, got 0"):
        attention_score_pairs(query, key, 1, 2, heads_at_once=0)
    with pytest.raises(ValueError, match=r"mask: expected .* shape \(12,\), got \(2, 12\)"):
        attention_score_pairs(query, key, 1, 2, mask=np.ones((2, 12), bool))
    with pytest.raises(
        ValueError, match=r"attention: expected \[..., tokens, tokens\], got shape \(2, 12, 11\)"
    ):
        negative_attention_score(weights[..., :11], 1, 2, 3, 9)
    with pytest.raises(ValueError, match=r"lo: .* the instruction comes first.* t_no = 3, lo = 3"):
        negative_attention_score(weights, 1, 3, 3, 9)
    with pytest.raises(ValueError, match=r"lo < hi <= 12.* hi = 13"):
        negative_attention_score(weights, 1, 2, 3, 13)
    with pytest.raises(ValueError, match=r"rows: expected one of all, last, got 'first'"):
        negative_attention_score(weights, 1, 2, 3, 9, rows="first")
    with pytest.raises(TypeError, match=r"attention: expected a floating dtype"):
        negative_attention_score(ScorePairs(*np.ones((3, 2, 12), int)), 1, 2, 3, 9)
    with pytest.raises(
        ValueError, match=r"nas: expected scores \[..., layers, heads\], got shape \(0, 2, 4\)"
    ):
        rank_heads(np.zeros((0, 2, 4)))
    with pytest.raises(ValueError, match=r"nas: expected finite scores, got 1 that are not"):
        rank_heads(np.array([[1.0, np.nan]]))
    with pytest.raises(ValueError, match=r"heads: expected at least one"):
        nas_alignment_loss(np.ones((2, 3, 4)), [], 1, 2)
    with pytest.raises(
        ValueError, match=r"heads: expected \(layer, head\) of 3 layers of 4 heads, got \(3, 0\)"
    ):
        nas_alignment_loss(np.ones((2, 3, 4)), [(3, 0)], 1, 2)
    with pytest.raises(ValueError, match=r"heads: expected booleans of shape \(3, 4\), got int32 \(3, 4\)"):
        nas_alignment_loss(np.ones((2, 3, 4)), np.ones((3, 4), np.int32), 1, 2)
    with pytest.raises(ValueError, match=r"nas: expected scores .* got shape \(4,\)"):
        nas_alignment_loss(np.ones(4), [(0, 0)], 1, 2)
