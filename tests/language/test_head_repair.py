"""Adapters of single heads and the ablation of heads: which numbers change, and that no others do."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxneg.language import (
    HeadKernel,
    ablate_heads,
    apply_head_lora,
    attention_score_pairs,
    head_mask_lora,
    nas_alignment_loss,
    negative_attention_score,
    transformer_kernels,
)
from jaxneg.nn import TransformerConfig, transformer
from jaxneg.train import make_mesh

CONFIG = TransformerConfig(vocab=12, width=8, layers=2, heads=4, hidden=8)
KEY = jax.random.key(0)


def trained(adapters, seed=1):
    """Adapters that change something."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: x + rng.normal(size=x.shape).astype(np.float32), adapters)


def changed_heads(before, after, heads):
    """Which heads' slices of a kernel ``[inputs, *outputs]`` differ."""
    difference = np.asarray(after - before).reshape(before.shape[0], heads, -1)
    return np.abs(difference).max((0, 2)) > 0


def kernel_of(tree, layer, name, stacked):
    blocks = tree["blocks"] if stacked else tree["blocks"][str(layer)]
    kernel = blocks["attention"][name]["kernel"]
    return kernel[layer] if stacked else kernel


@pytest.mark.parametrize("stacked", [False, True])
def test_only_the_slices_of_the_heads_change(stacked):
    rng = np.random.default_rng(0)

    def kernel(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    layers = [
        {"attention": {"query": {"kernel": kernel(8, 4, 2)}, "key": {"kernel": kernel(8, 4, 2)}}}
        for _ in "ab"
    ]
    blocks = (
        jax.tree.map(lambda *x: jnp.stack(x), *layers) if stacked else dict(zip("01", layers, strict=True))
    )
    params = {"blocks": blocks, "embed": kernel(12, 8)}
    heads = [(0, 3), (1, 1), (1, 2)]
    adapters = head_mask_lora(KEY, params, heads, transformer_kernels(4, stacked=stacked), rank=3)
    assert sum(len(of) for of in adapters.values()) == 6
    same = apply_head_lora(params, adapters)
    jax.tree.map(np.testing.assert_array_equal, same, params)
    adapters = trained(adapters)
    found = apply_head_lora(params, adapters, gamma=2.0)
    np.testing.assert_array_equal(found["embed"], params["embed"])
    for layer, expected in enumerate(([False, False, False, True], [False, True, True, False])):
        for name in ("query", "key"):
            before, after = (kernel_of(tree, layer, name, stacked) for tree in (params, found))
            assert changed_heads(before, after, 4).tolist() == expected
            for head in np.flatnonzero(expected):
                path = (
                    f"blocks/attention/{name}/kernel"
                    if stacked
                    else f"blocks/{layer}/attention/{name}/kernel"
                )
                factors = adapters[path][f"{layer}/{head}" if stacked else str(head)]
                product = np.asarray(factors["a"]) @ np.asarray(factors["b"]) * 2 / 3
                np.testing.assert_allclose(after[:, head] - before[:, head], product, rtol=1e-4, atol=1e-5)


def test_shared_keys_are_left_alone():
    """A key head of grouped queries serves several heads; the query kernel holds their queries in order."""
    assert [kernel.path for kernel in transformer_kernels(4, 2)] == ["blocks/{layer}/attention/query/kernel"]
    model = transformer(TransformerConfig(vocab=12, width=8, layers=2, heads=4, kv_heads=2, hidden=8))
    params = model.init(KEY)
    adapters = trained(head_mask_lora(KEY, params, [(1, 2)], transformer_kernels(4, 2), rank=2))
    found = apply_head_lora(params, adapters)
    tokens = np.arange(10).reshape(2, 5)
    probed = jax.jit(lambda params: model.apply(params, tokens, probe=[0, 1])[1])
    before, after = probed(params), probed(found)
    differs = np.abs(np.asarray(before.query - after.query)).max((1, 3, 4)) > 1e-6
    assert differs.tolist() == [[False] * 4, [False, False, True, False]]
    np.testing.assert_array_equal(before.key, after.key)


@pytest.mark.slow
def test_the_loss_brings_the_score_down():
    """Adam on the adapters of one head: its score goes, and the frozen model is untouched."""
    model = transformer(CONFIG)
    params = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(KEY, x.shape), model.init(KEY))
    tokens = jax.random.randint(KEY, (8, 10), 0, 12)

    def scores(params):
        _, probe = model.apply(params, tokens, probe=[0, 1])

        def of_prompt(q, k):
            return negative_attention_score(attention_score_pairs(q, k, 1, 2), 1, 2, 3, 10)

        return jax.vmap(of_prompt, in_axes=1)(probe.query, probe.key)

    layer, head = divmod(int(jnp.argmax(scores(params).mean(0))), 4)
    adapters = head_mask_lora(KEY, params, [(layer, head)], transformer_kernels(4), rank=4)
    tx = optax.adam(1e-2)

    @jax.jit
    def train(adapters):
        def loss(adapters):
            return nas_alignment_loss(
                scores(apply_head_lora(params, adapters)), [(layer, head)], 3, 10
            ).mean()

        def one(carry, _):
            adapters, state = carry
            value, gradient = jax.value_and_grad(loss)(adapters)
            updates, state = tx.update(gradient, state)
            return (optax.apply_updates(adapters, updates), state), value

        return jax.lax.scan(one, (adapters, tx.init(adapters)), length=200)

    (_, _), losses = train(adapters)
    assert losses[-1] < 0.1 * losses[0]


def test_ablation_by_hand():
    rng = np.random.default_rng(0)
    weights = np.tril(rng.uniform(0.1, 1, (2, 3, 6, 6)).astype(np.float32))
    weights /= weights.sum(-1, keepdims=True)
    t_yes, t_no, chosen = np.array([1, 3]), np.array([2, 0]), np.array([True, False, True])
    found = jax.jit(ablate_heads)(weights, chosen, t_yes, t_no)
    expected = weights.copy()
    for prompt, (yes, no) in enumerate(zip(t_yes, t_no, strict=True)):
        for head in (0, 2):
            for row in range(max(yes, no), 6):
                expected[prompt, head, row, [yes, no]] = weights[prompt, head, row, [yes, no]].mean()
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)
    alone = jax.vmap(ablate_heads, in_axes=(0, None, 0, 0))(weights, chosen, t_yes, t_no)
    np.testing.assert_array_equal(alone, found)
    half = ablate_heads(jnp.asarray(weights, jnp.bfloat16), chosen, t_yes, t_no)
    assert half.dtype == jnp.bfloat16


@pytest.mark.slow
def test_an_ablated_head_of_a_model():
    """As a hook of the attention weights: equal heads change nothing, and only what follows them changes."""
    model = transformer(CONFIG)
    params = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(KEY, x.shape), model.init(KEY))
    tokens = jax.random.randint(KEY, (2, 6), 0, 12)

    @jax.jit
    def logits(mask):
        def hook(weights, layer):
            return ablate_heads(weights, mask[layer], 1, 2)

        return model.apply(params, tokens, weights_hook=hook)

    none = np.zeros((2, 4), bool)
    some = none.copy()
    some[1, 2] = True
    plain = jax.jit(model.apply)(params, tokens)
    np.testing.assert_allclose(logits(none), plain, rtol=1e-5, atol=1e-5)
    difference = np.abs(logits(some) - plain).max((0, 2))
    assert (difference[:2] < 1e-5).all()
    assert (difference[2:] > 1e-4).all()


@pytest.mark.parametrize("explicit", [False, True])
def test_sharded_kernels(explicit):
    params = {"q": jax.random.normal(KEY, (8, 4, 2)), "k": jax.random.normal(KEY, (8, 4, 2))}
    kernels = [HeadKernel("q", 4), HeadKernel("k", 4)]
    params = {name: x[None] for name, x in params.items()}  # one stacked layer
    adapters = trained(head_mask_lora(KEY, params, [(0, 1)], kernels, rank=2))
    mesh = make_mesh({"data": 2, "model": 4}, explicit=explicit)
    sharding = NamedSharding(mesh, P(None, "data", "model"))
    with jax.set_mesh(mesh):
        found = jax.jit(apply_head_lora)(jax.device_put(params, sharding), adapters)
    assert found["q"].sharding.is_equivalent_to(sharding, 4)
    expected = apply_head_lora(params, adapters)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), found, expected)


def test_bad_input():
    params = {"q": jnp.ones((2, 8, 4, 2)), "n": jnp.ones((2, 8, 8), int), "flat": jnp.ones((2, 8))}

    def lora(heads, kernel, **options):
        return head_mask_lora(KEY, params, heads, [kernel], **options)

    with pytest.raises(ValueError, match=r"rank: expected at least 1, got 0"):
        lora([(0, 0)], HeadKernel("q", 4), rank=0)
    with pytest.raises(ValueError, match=r"kernels: expected at least one, got none"):
        head_mask_lora(KEY, params, [(0, 0)], [])
    with pytest.raises(ValueError, match=r"heads: expected at least one \(layer, head\), got none"):
        lora([], HeadKernel("q", 4))
    with pytest.raises(ValueError, match=r"heads: expected \(layer, head\) of 4 heads a layer, got \(0, 4\)"):
        lora([(0, 4)], HeadKernel("q", 4))
    with pytest.raises(ValueError, match=r"heads: q holds 2 layers, got layer 2"):
        lora([(2, 0)], HeadKernel("q", 4))
    with pytest.raises(ValueError, match=r"kernels: 'q/0' is the path of no parameter; there is 'flat'"):
        lora([(0, 0)], HeadKernel("q/{layer}", 4))
    with pytest.raises(ValueError, match=r"q: shape \(2, 8, 4, 2\) does not divide into 3 heads"):
        lora([(0, 0)], HeadKernel("q", 3))
    with pytest.raises(ValueError, match=r"flat: shape \(2, 8\) does not divide into 4 heads"):
        lora([(0, 0)], HeadKernel("flat", 4))
    with pytest.raises(TypeError, match=r"n: expected a floating dtype, got int32"):
        lora([(0, 0)], HeadKernel("n", 4))
    with pytest.raises(ValueError, match=r"adapters: 'x' is the path of no parameter"):
        apply_head_lora(params, {"x": {}})
    with pytest.raises(ValueError, match=r"chosen: .* attention \(2, 3, 6, 6\), got \(2,\)"):
        ablate_heads(jnp.ones((2, 3, 6, 6)), jnp.ones(2, bool), 1, 2)
