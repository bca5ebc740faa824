"""NegToMe and the diversity metrics: goldens, brute force, groups, masks, the window, meshes, errors."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxneg.diffusion import neg_tome
from jaxneg.diffusion.diversity import class_entropy, inception_score, mean_pairwise_cosine, vendi_score
from jaxneg.diffusion.metrics import frechet_distance
from jaxneg.diffusion.neg_tome import (
    NegToMeConfig,
    in_window,
    match_tokens,
    negative_token_merge,
    negtome_batch,
    negtome_cfg,
    negtome_hook,
    negtome_joint,
)

merge = jax.jit(negative_token_merge, static_argnames="match")
merge_batch = jax.jit(negtome_batch, static_argnames=("group_size", "reference", "match"))
merge_cfg = jax.jit(negtome_cfg, static_argnames=("group_size", "reference", "match"))
match = jax.jit(match_tokens, static_argnames="match")


def cosines(a, b):
    """In float64, ``[len(a), len(b)]``."""
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    a, b = (x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12) for x in (a, b))
    return a @ b.T


def brute_force(h, refs, alpha, threshold, keeps=None):
    """Image after image against its own reference, None for an image that stays."""
    out = np.array(h, np.float64)
    for b, ref in enumerate(refs):
        if ref is None:
            continue
        S = cosines(h[b], ref)
        if keeps is not None:
            S[:, ~np.asarray(keeps[b])] = -np.inf
        j, s = S.argmax(1), S.max(1)
        pushed = (1 + alpha) * out[b] - alpha * np.asarray(ref, np.float64)[j]
        out[b] = np.where((s > threshold)[:, None], pushed, out[b])
    return out


def similar_images(seed, batch, tokens, width, dtype=np.float64):
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(1, tokens, width))
    return (shared + 0.8 * rng.normal(size=(batch, tokens, width))).astype(dtype)


@jax.jit
def all_of_merge(h, keep, external, alpha, threshold):
    """What a golden file of merges holds, by name."""
    options = {"alpha": alpha, "threshold": threshold}
    images = h.shape[0]
    others = jnp.stack([jnp.concatenate([h[c] for c in range(images) if c != b]) for b in range(images)])
    index, similarity = match_tokens(h, h[:1])
    return {
        "official_out": negtome_batch(h, match="official", **options),
        "official_out_masked": negative_token_merge(h, h[:1], ref_mask=keep, match="official", **options),
        "official_out_single_frame": negative_token_merge(h[:1], h[:1], match="official", **options),
        "paper_out": negtome_batch(h, **options),
        "paper_argmax": index,
        "paper_maxsim": similarity,
        "paper_out_masked": negative_token_merge(h, h[:1], ref_mask=keep, **options),
        "paper_argmax_masked": match_tokens(h, h[:1], ref_mask=keep)[0],
        "paper_out_ext_ref": negative_token_merge(h, external, **options),
        "paper_argmax_ext_ref": match_tokens(h, external)[0],
        "paper_out_leave_one_out": negtome_batch(h, reference="leave_one_out", **options),
        "paper_argmax_leave_one_out": match_tokens(h, others)[0],
    }


def check_merge(golden, dtype, rtol, atol):
    given = {name: golden[name] for name in ("alpha", "threshold")}
    h, external = (jnp.asarray(golden[name], dtype) for name in ("hidden", "ext_ref"))
    ours = all_of_merge(h, golden["ref_keep_mask"].astype(bool), external, **given)
    assert {*ours, "hidden", "alpha", "threshold", "ref_keep_mask", "ext_ref"} == set(golden)
    for name, value in ours.items():
        np.testing.assert_allclose(value, golden[name], rtol=rtol, atol=atol, err_msg=name)


@pytest.mark.golden("neg_tome", "merge_*.npz")
def test_golden_merge(golden, x64):
    check_merge(golden, jnp.float64, 1e-10, 1e-13)


@pytest.mark.slow
@pytest.mark.golden("neg_tome", "merge_*.npz")
def test_golden_merge_float32(golden):
    check_merge(golden, jnp.float32, 1e-5, 1e-5)


@pytest.mark.golden("neg_tome", "joint_attention.npz")
def test_golden_joint_attention(golden, x64):
    q, k, v, text = (golden[name] for name in ("q", "k", "v", "num_text_tokens"))
    weights = jax.nn.softmax(np.einsum("bhnd,bhmd->bhnm", q, k) / q.shape[-1] ** 0.5)
    attended = jnp.einsum("bhnm,bhmd->bnhd", weights, v).reshape(golden["attn_out"].shape)
    np.testing.assert_allclose(attended, golden["attn_out"], rtol=1e-10, atol=1e-12)
    options = {"alpha": golden["alpha"], "threshold": golden["threshold"]}
    merge_joint = jax.jit(negtome_joint, static_argnums=1, static_argnames="match")
    for kind in ("official", "paper"):
        ours = merge_joint(attended, int(text), match=kind, **options)
        np.testing.assert_allclose(ours, golden[f"{kind}_out"], rtol=1e-10, atol=1e-12)


@pytest.mark.golden("neg_tome", "cfg_halves.npz")
def test_golden_cfg_halves(golden, x64):
    options = {"alpha": golden["alpha"], "threshold": golden["threshold"]}
    for kind in ("official", "paper"):
        ours = merge_cfg(golden["hidden"], match=kind, **options)
        np.testing.assert_allclose(ours, golden[f"{kind}_out"], rtol=1e-10, atol=1e-12)


@pytest.mark.golden("neg_tome", "metrics.npz")
def test_golden_metrics(golden, x64):

    @jax.jit
    def all_of_metrics(features, probs):
        return {
            "vendi": vendi_score(features),
            "mean_pairwise_cosine": mean_pairwise_cosine(features),
            "marginal_entropy_nats": class_entropy(probs),
            "inception_score": inception_score(probs),
        }

    for name, value in all_of_metrics(golden["features"], golden["probs"]).items():
        np.testing.assert_allclose(value, golden[name], rtol=1e-10, err_msg=name)
    distance = frechet_distance(golden["fid_a"], golden["fid_b"])
    np.testing.assert_allclose(distance, golden["frechet_distance"], rtol=1e-6)


def test_first_in_groups():
    h, options = similar_images(0, 6, 9, 5), {"alpha": 0.7, "threshold": 0.5}
    h32 = jnp.asarray(h, jnp.float32)
    refs = [None if b % 3 == 0 else h[b - b % 3] for b in range(6)]
    expected = brute_force(h, refs, **options)
    assert 0.2 < np.mean(expected != h) < 0.65
    ours = merge_batch(h32, group_size=3, **options)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(ours[::3], h32[::3])
    np.testing.assert_allclose(negtome_batch(h32, group_size=3, **options), ours, rtol=1e-6, atol=1e-6)
    # The same groups by name, in another order.
    order = np.array([4, 0, 5, 1, 3, 2])
    first_of = {g: next(b for b in order if b // 3 == g) for g in (0, 1)}
    refs = [None if b == first_of[b // 3] else h[first_of[b // 3]] for b in order]
    by_name = merge_batch(h32[order], group_ids=order // 3, **options)
    np.testing.assert_allclose(by_name, brute_force(h[order], refs, **options), rtol=1e-5, atol=1e-5)
    # "external" is the first image of the batch for all.
    one = merge_batch(h32, reference="external", **options)
    np.testing.assert_allclose(one, merge_batch(h32, **options), rtol=1e-5, atol=1e-5)
    assert negtome_batch(h32, group_size=1, **options) is h32


def test_leave_one_out_in_groups(monkeypatch):
    # Tiles of four tokens: images of nine are cut, and padded.
    monkeypatch.setattr(neg_tome, "_TILE", 4)
    h, options = similar_images(1, 6, 9, 5), {"alpha": 0.7, "threshold": 0.5}
    h32 = jnp.asarray(h, jnp.float32)
    refs = [np.concatenate([h[c] for c in range(6) if c // 3 == b // 3 and c != b]) for b in range(6)]
    expected = brute_force(h, refs, **options)
    merge_others = jax.jit(partial(negtome_batch, reference="leave_one_out"), static_argnames="group_size")
    np.testing.assert_allclose(merge_others(h32, group_size=3, **options), expected, rtol=1e-5, atol=1e-5)
    order = np.array([4, 0, 5, 1, 3, 2])
    by_name = merge_others(h32[order], group_ids=order // 3, **options)
    np.testing.assert_allclose(by_name, expected[order], rtol=1e-5, atol=1e-5)
    # Tokens that may not serve as reference, of each image by itself.
    mask = np.random.default_rng(0).random((6, 9)) < 0.4
    keeps = [np.concatenate([mask[c] for c in range(6) if c // 3 == b // 3 and c != b]) for b in range(6)]
    masked = merge_others(h32, group_size=3, ref_mask=mask, **options)
    np.testing.assert_allclose(masked, brute_force(h, refs, keeps=keeps, **options), rtol=1e-5, atol=1e-5)
    alone = merge_others(h32[:3], group_ids=np.array([0, 1, 1]), **options)
    np.testing.assert_array_equal(alone[0], h32[0])


def test_blocks_do_not_change_the_result(monkeypatch):
    h, ref = (jnp.asarray(similar_images(s, 3, n, 6), jnp.float32) for s, n in ((2, 23), (3, 17)))
    whole = match_tokens(h, ref)
    monkeypatch.setattr(neg_tome, "_ROWS", 5)
    in_blocks = match_tokens(h, ref)
    np.testing.assert_array_equal(in_blocks[0], whole[0])
    np.testing.assert_allclose(in_blocks[1], whole[1], rtol=1e-6)
    expected = np.stack([cosines(*pair).argmax(1) for pair in zip(h, ref, strict=True)])
    np.testing.assert_array_equal(whole[0], expected)


@pytest.mark.slow
def test_memory_is_linear_in_the_reference():
    def temporary(others):
        shapes = [jax.ShapeDtypeStruct((1, n, 16), jnp.float32) for n in (4096, others)]
        return match.lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    rows = 4 * neg_tome._ROWS
    assert temporary(4096) < 4 * rows * 4096 + 2**20 < 4 * 4096 * 4096
    assert temporary(8192) < 2.2 * temporary(4096) + 2**20

    # Among the images of a group: the other images are the reference, tile after tile.
    def of_others(tokens):
        shape = jax.ShapeDtypeStruct((3, tokens, 16), jnp.float32)
        others = jax.jit(partial(negtome_batch, reference="leave_one_out", alpha=0.9, threshold=0.5))
        return others.lower(shape).compile().memory_analysis().temp_size_in_bytes

    assert of_others(8192) < 2.2 * of_others(4096) < 8192 * 8192


@pytest.mark.slow
def test_ties_take_the_lowest_index():
    h = jnp.ones((3, 4, 2))
    index, similarity = match_tokens(h, h[:1])
    assert not index.any()
    np.testing.assert_allclose(similarity, 1, rtol=1e-6)
    # Among all others too: image 0 meets image 1 first, the others image 0.
    twice = jnp.concatenate([h, 2 * h], axis=-1) * jnp.arange(1, 4)[:, None, None]
    pushed = negtome_batch(twice, reference="leave_one_out", alpha=1.0, threshold=0.5)
    expected = [2 * 1 - 2, 2 * 2 - 1, 2 * 3 - 1]
    np.testing.assert_allclose(pushed[:, 0, 0], expected)


@pytest.mark.slow
def test_masks_and_gates():
    h = jnp.asarray(similar_images(4, 4, 8, 6), jnp.float32)
    options = {"alpha": 0.9, "threshold": -2.0}
    for kind in ("paper", "official"):
        none = merge(h, h[:1], ref_mask=jnp.zeros(8, bool), match=kind, **options)
        np.testing.assert_array_equal(none, h)
    index, similarity = match_tokens(h, h[:1], ref_mask=jnp.zeros((4, 8), bool))
    assert not index.any()
    assert np.all(similarity == -1e30)
    everything = merge(h, h[1:2], **options)
    assert np.all(np.any(everything != h, axis=-1)[0])
    chosen = merge(h, h[1:2], active=jnp.array([True, False, True, False]), **options)
    np.testing.assert_array_equal(chosen[1::2], h[1::2])
    np.testing.assert_array_equal(chosen[::2], everything[::2])
    # A threshold is not reached by what equals it.
    unit = jnp.eye(4)[None]
    np.testing.assert_array_equal(merge(unit, unit, alpha=1.0, threshold=1.0), unit)
    each = merge(h, h[1:2], alpha=jnp.array([0.9, 0.0, 0.9, 0.9]), threshold=jnp.array([-2.0, -2, -2, 1]))
    np.testing.assert_array_equal(each[1::2], h[1::2])
    np.testing.assert_array_equal(each[::2], everything[::2])


@pytest.mark.slow
def test_dropout_leaves_its_share():
    h = jnp.asarray(similar_images(5, 4, 64, 6), jnp.float32)
    options = {"alpha": 0.9, "threshold": -2.0, "key": jax.random.key(0)}
    changed = np.any(merge(h, h[:1] + 1, dropout=0.3, **options) != h, axis=-1)
    assert abs(changed.mean() - 0.7) < 0.1
    np.testing.assert_array_equal(merge(h, h[:1] + 1, dropout=1.0, **options), h)


@pytest.mark.slow
def test_halves_of_guidance():
    h = jnp.asarray(similar_images(6, 8, 9, 6), jnp.float32)
    options = {"alpha": 0.9, "threshold": 0.4}
    by_half = jnp.concatenate([merge_batch(half, group_size=2, **options) for half in (h[:4], h[4:])])
    np.testing.assert_allclose(merge_cfg(h, group_size=2, **options), by_half, rtol=1e-6, atol=1e-6)
    named = negtome_cfg(h, group_ids=jnp.array([7, 7, 9, 9]), **options)
    np.testing.assert_allclose(named, by_half, rtol=1e-6, atol=1e-6)
    external = negtome_cfg(h, reference="external", **options)
    np.testing.assert_allclose(external, merge_cfg(h, **options), rtol=1e-5, atol=1e-5)
    active = jnp.array([True, False, True, True])
    np.testing.assert_array_equal(negtome_cfg(h, active=active, **options)[1::4], h[1::4])


@pytest.mark.slow
def test_a_hook_in_its_window():
    h = jnp.asarray(similar_images(7, 4, 12, 6), jnp.float32)
    config = NegToMeConfig(blocks="single", min_tokens=9, threshold=0.4)

    @jax.jit
    def hooked(h, t):
        return negtome_hook(config, t, num_text_tokens=3, group_size=2)(h, "single_blocks.0")

    inside = negtome_joint(h, 3, group_size=2, alpha=0.9, threshold=0.4)
    assert np.any(inside != h)
    np.testing.assert_allclose(hooked(h, 900.0), inside, rtol=1e-6, atol=1e-6)
    for t in (1000.5, 899.0):
        np.testing.assert_array_equal(hooked(h, t), h)
    hook = negtome_hook(config, 950.0)
    assert hook(h, "joint_blocks.0") is h
    assert hook(h[:, :8], "single_blocks.0").shape == (4, 8, 6)
    guided = negtome_hook(NegToMeConfig.sdxl(), 800.0, guided=True, num_text_tokens=0)
    assert guided(h, "up_blocks.0") is h  # fewer than 32 x 32 tokens
    np.testing.assert_array_equal(in_window(np.array([1001, 1000, 800, 799]), 1000, 800), [0, 1, 1, 0])


@pytest.mark.slow
def test_traced_strengths_and_gradients():
    h = jnp.asarray(similar_images(8, 3, 9, 5), jnp.float32)
    alphas = jnp.array([-0.5, 0.0, 1.5])
    swept = jax.vmap(lambda a: negtome_batch(h, alpha=a, threshold=0.5))(alphas)
    for alpha, ours in zip(alphas, swept, strict=True):
        np.testing.assert_allclose(ours, negtome_batch(h, alpha=alpha, threshold=0.5), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(swept[1], h)

    # The matches are given: the result is linear in the tokens, and so is alpha's effect.
    def total(h, alpha):
        return jnp.sum(jnp.square(negtome_batch(h, alpha=alpha, threshold=0.5)))

    slope, by_alpha = jax.jit(jax.grad(total, argnums=(0, 1)))(h, 0.9)
    pushed = negtome_batch(h, alpha=0.9, threshold=0.5)
    index, similarity = match_tokens(h, h[:1])
    gate = (similarity > 0.5).at[0].set(False)[..., None]
    expected = 2 * pushed * (1 + 0.9 * gate)
    back = jnp.zeros_like(h[0]).at[index].add(jnp.where(gate, -0.9 * 2 * pushed, 0))
    np.testing.assert_allclose(slope, expected.at[0].add(back), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        by_alpha, jnp.sum(jnp.where(gate, 2 * pushed * (h - h[0][index]), 0)), rtol=1e-4
    )


@pytest.mark.slow
def test_bfloat16_is_matched_in_float32():
    h = jnp.asarray(similar_images(9, 3, 32, 64), jnp.bfloat16)
    for reference in ("first", "leave_one_out"):
        options = {"reference": reference, "alpha": 0.9, "threshold": 0.5}
        narrow, wide = merge_batch(h, **options), merge_batch(h.astype(jnp.float32), **options)
        assert narrow.dtype == jnp.bfloat16
        np.testing.assert_allclose(narrow.astype(jnp.float32), wide, rtol=1e-2, atol=1e-2)
    index, similarity = match_tokens(h, h[:1])
    assert similarity.dtype == jnp.float32
    np.testing.assert_array_equal(index, match_tokens(h.astype(jnp.float32), h[:1].astype(jnp.float32))[0])


@pytest.mark.parametrize("explicit", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("reference", ["first", pytest.param("leave_one_out", marks=pytest.mark.slow)])
def test_sharded_is_unsharded(reference, explicit):
    kind = AxisType.Explicit if explicit else AxisType.Auto
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "model"), axis_types=(kind,) * 2)
    h = jnp.asarray(similar_images(10, 8, 9, 6), jnp.float32)
    options = {"reference": reference, "alpha": 0.9, "threshold": 0.5, "group_size": 2}
    with jax.set_mesh(mesh):
        placed = jax.device_put(h, NamedSharding(mesh, P("data", None, "model")))
        ours = merge_batch(placed, **options)
    np.testing.assert_allclose(ours, merge_batch(h, **options), rtol=1e-5, atol=1e-5)
    if explicit:
        assert ours.sharding.spec[0] == "data"
        with jax.set_mesh(mesh):
            index, _ = match(placed, placed)
        np.testing.assert_array_equal(index, match(h, h)[0])


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.floats(0.01, 100))
def test_matches_know_no_scale_and_no_order(seed, scale):
    rng = np.random.default_rng(seed)
    h, ref = (rng.normal(size=shape).astype(np.float32) for shape in ((2, 7, 4), (1, 6, 4)))
    index, similarity = match(h, ref)
    order = rng.permutation(6)
    other, same = match(scale * h, ref[:, order] * scale)
    np.testing.assert_array_equal(order[other], index)
    np.testing.assert_allclose(same, similarity, rtol=1e-5, atol=1e-5)
    assert np.all(np.abs(similarity) <= 1 + 1e-5)


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000))
def test_diversity_of_random_features(seed):
    n = 5
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, 4))
    S = cosines(features, features)
    np.testing.assert_allclose(mean_pairwise_cosine(features), (S.sum() - n) / (n * (n - 1)), atol=1e-5)
    score = vendi_score(features)
    assert 1 - 1e-5 <= score <= min(n, 4) + 1e-4
    np.testing.assert_allclose(vendi_score(3 * features[::-1]), score, rtol=1e-4)
    probs = rng.dirichlet(np.ones(3), n)
    assert 1 - 1e-5 <= inception_score(probs) <= np.exp(class_entropy(probs)) + 1e-5


@pytest.mark.slow
def test_extremes_of_diversity():
    same = jnp.ones((5, 3))
    np.testing.assert_allclose([vendi_score(same), mean_pairwise_cosine(same)], 1, rtol=1e-5)
    np.testing.assert_allclose(vendi_score(jnp.eye(5)), 5, rtol=1e-5)
    certain = jnp.eye(4)[jnp.array([0, 1, 1, 3])]
    np.testing.assert_allclose(inception_score(certain), np.exp(1.5 * np.log(2)), rtol=1e-5)
    np.testing.assert_allclose(class_entropy(certain), 1.5 * np.log(2), rtol=1e-5)
    assert vendi_score(same.astype(jnp.bfloat16)).dtype == jnp.float32
    with pytest.raises(
        ValueError, match=r"features: expected at least 2 rows, \[images, ...\], got shape \(1,"
    ):
        mean_pairwise_cosine(same[:1])
    with pytest.raises(ValueError, match=r"probs: expected at least 1 rows, .* got shape \(3,\)"):
        class_entropy(same[0])
    with pytest.raises(TypeError, match=r"features: expected a floating dtype, got int32"):
        vendi_score(same.astype(int))


H = jnp.ones((4, 6, 3))


@pytest.mark.parametrize(("call", "message"), [
    (lambda: match_tokens(H, H[:2]), r"ref: expected one reference or 4, of width 3, got shape \(2, 6, 3\)"),
    (lambda: match_tokens(H, H[..., :2]), r"ref: expected one reference or 4, of width 3"),
    (lambda: match_tokens(H[0], H), r"h: expected tokens \[batch, tokens, width\], got shape \(6, 3\)"),
    (lambda: match_tokens(H, H, match="both"), r"match: expected one of paper, official, got 'both'"),
    (lambda: match_tokens(H, H[:, :5], match="official"), r"ref: match='official' needs .* 6, got 5"),
    (lambda: match_tokens(H, H, ref_mask=jnp.ones(5, bool)), r"ref_mask: expected shape \(6,\) or \(4, 6\)"),
    (lambda: negtome_batch(H, alpha=1, threshold=0, group_size=3), r"group_size: expected a divisor of"),
    (lambda: negtome_batch(H, alpha=1, threshold=0, reference="last"), r"reference: expected one of first"),
    (lambda: negtome_batch(H, alpha=1, threshold=0, group_size=2, group_ids=jnp.zeros(4, int)),
     r"group_ids: expected either group_size or group_ids, got both"),
    (lambda: negtome_batch(H, alpha=1, threshold=0, group_ids=jnp.zeros(3, int)), r"group_ids: expected one"),
    (lambda: negtome_batch(H, alpha=1, threshold=0, reference="external", group_size=2), r"'external' takes"),
    (lambda: negtome_batch(H, alpha=1, threshold=0, reference="leave_one_out", match="official"),
     r"match: expected 'paper' with reference='leave_one_out', got 'official'"),
    (lambda: negtome_batch(H, alpha=jnp.ones(3), threshold=0), r"alpha: expected a number, or one for each"),
    (lambda: negtome_batch(H, alpha=1, threshold=0, dropout=0.5), r"key: expected a random key for dropout"),
    (lambda: negtome_batch(H, alpha=1, threshold=0, dropout=1.5), r"dropout: expected a number between 0"),
    (lambda: negtome_batch(H, alpha=1, threshold=0, active=jnp.ones(3, bool)), r"active: expected one bool"),
    (lambda: negtome_joint(H, 6, alpha=1, threshold=0), r"num_text_tokens: expected fewer than the tokens"),
    (lambda: negtome_cfg(H[:3], alpha=1, threshold=0), r"h: expected both halves of a batch, \[2 B, N, D\]"),
    (lambda: negtome_cfg(H, alpha=1, threshold=0, group_size=3), r"a divisor of the batch of 2 images"),
    (lambda: negtome_cfg(H, alpha=1, threshold=0, reference="external", group_size=2), r"'external' takes"),
    (lambda: negtome_hook(NegToMeConfig(), jnp.ones(4)), r"t: expected one timestep for the whole batch"),
    (
        lambda: negtome_hook(NegToMeConfig.sdxl(), 950.0)(jnp.ones((2, 9, 8))),
        r"block: expected the block's name, since config.blocks = 'up_blocks' chooses among them, got None",
    ),
    (lambda: NegToMeConfig(t_end=1001.0), r"t_end: expected at most t_start = 1000.0, got 1001.0"),
    (lambda: NegToMeConfig(reference="last"), r"reference: expected one of first, leave_one_out, external"),
])  # fmt: skip
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(("call", "message"), [
    (lambda: match_tokens(H.astype(int), H), r"h: expected a floating dtype, got int32"),
    (lambda: match_tokens(H, H, ref_mask=jnp.ones(6)), r"ref_mask: expected booleans, got dtype float32"),
    (lambda: negtome_batch(H, alpha=1, threshold=0, active=jnp.ones(4)), r"active: expected booleans"),
    (lambda: negtome_batch(H, alpha=1, threshold=0, group_ids=jnp.ones(4)), r"group_ids: expected integers"),
])  # fmt: skip
def test_types_are_checked(call, message):
    with pytest.raises(TypeError, match=message):
        call()
