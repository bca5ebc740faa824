"""The diffusion transformer: against plain numpy, its paper's sizes, its start, its options, and sharded."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxneg.diffusion import NegToMeConfig, nasa_cross_attention, negtome_batch, negtome_hook
from jaxneg.nn import DIT_B_2, DIT_L_2, DIT_RULES, DIT_S_2, DIT_XL_2, DiTConfig, dit
from jaxneg.nn.dit import plane_positions
from jaxneg.train import init_state, make_mesh, make_step, partition_specs, shard_step

SMALL = DiTConfig(size=6, channels=2, patch=2, width=16, layers=2, heads=2, classes=3, mlp_ratio=2)
MODEL = dit(SMALL)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 6, 6, 2)).astype(np.float32)
T, LABEL = np.array([0, 7, 500, 999]), np.array([0, 1, 2, 3])
TOLD = dataclasses.replace(SMALL, text=5)
TOLD_MODEL = dit(TOLD)
TEXT = RNG.normal(size=(4, 6, 5)).astype(np.float32)
TEXT_MASK = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [0, 1, 0, 1, 0, 1], [0, 0, 0, 0, 0, 0]], bool)
ALPHA = 0.5


def drawn(model):
    """Parameters without the zeros of an initialisation, which hide mistakes."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree.map(lambda x: rng.normal(scale=0.3, size=x.shape).astype(np.float32), shapes)


def stacked(params):
    """The parameters of a network that runs its blocks in a loop."""
    blocks = [params["blocks"][str(i)] for i in range(SMALL.layers)]
    return {**params, "blocks": jax.tree.map(lambda *x: jnp.stack(x), *blocks)}


def nasa(q, k, v, mask):
    """Cross-attention to the first three tokens less half of that to the others."""
    masks = {"mask_pos": mask[:, :3], "mask_neg": mask[:, 3:]}
    return nasa_cross_attention(q, k[:, :3], v[:, :3], k[:, 3:], v[:, 3:], ALPHA, **masks)


def halved(h, block):
    """Half of what the second block has mixed."""
    return h / 2 if block == "blocks.1" else h


@pytest.fixture(scope="module")
def params():
    return drawn(MODEL)


@pytest.fixture(scope="module")
def told_params():
    return drawn(TOLD_MODEL)


@pytest.fixture(scope="module")
def predicted(params):
    return jax.jit(MODEL.apply)(params, X, T, LABEL)


def silu(x):
    return x / (1 + np.exp(-x))


def attended(query, key, value, mask):
    """Of one head; nothing where there is nothing."""
    if not mask.any():
        return np.zeros_like(query)
    scores = query @ key[mask].T / np.sqrt(query.shape[1])
    weights = np.exp(scores - scores.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True) @ value[mask]


def attended_as_nasa(query, key, value, mask):
    return attended(query, key[:3], value[:3], mask[:3]) - ALPHA * attended(
        query, key[3:], value[3:], mask[3:]
    )


def reference(config, params, x, t, label, text=None, cross=attended, hook=lambda h, block: h):
    """The same model in numpy, one latent, one patch and one head at a time.

    ``text`` holds the embeddings of each text's tokens, and which of them there are.
    """
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    side, patch, width = config.size // config.patch, config.patch, config.width

    def dense(x, layer):
        return x @ layer["kernel"] + layer["bias"]

    def norm(x, shift, scale):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * (1 + scale) + shift

    def gelu(x):
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    outputs = []
    for row_of_batch, (latent, step, name) in enumerate(zip(x, t, label, strict=True)):
        angles = step * np.exp(-np.log(1e4) * np.arange(128) / 128)
        told = p["conditioning"]
        c = dense(np.concatenate([np.cos(angles), np.sin(angles)]), told["time"]["0"])
        c = silu(dense(silu(c), told["time"]["1"]) + told["label"]["embedding"][name])
        h = np.empty((side * side, width))
        for row in range(side):
            for column in range(side):
                square = latent[row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
                h[row * side + column] = dense(square.ravel(), p["patches"])
                for i in range(width // 4):
                    w = 10_000 ** (-i / (width // 4))
                    places = [f(v * w) for v in (column, row) for f in (np.sin, np.cos)]
                    h[row * side + column, i :: width // 4] += places
        for layer in range(config.layers):
            block = p["blocks"][str(layer)]
            b, s, g, b2, s2, g2 = np.split(dense(c, block["modulation"]), 6)
            qkv = dense(norm(h, b, s), block["attention"]["qkv"])
            mixed = []
            for head in np.split(qkv, config.heads, axis=1):
                query, key, value = np.split(head, 3, axis=1)
                mixed.append(attended(query, key, value, np.ones(len(h), bool)))
            mixed = hook(np.concatenate(mixed, 1), f"blocks.{layer}")
            h = h + g * dense(mixed, block["attention"]["out"])
            if text is not None:
                tokens, mask = (array[row_of_batch] for array in text)
                query = dense(h, block["text_attention"]["query"])
                pairs = dense(tokens, block["text_attention"]["key_value"])
                heads = zip(np.split(query, config.heads, 1), np.split(pairs, config.heads, 1), strict=True)
                said = [cross(q, *np.split(pair, 2, 1), mask) for q, pair in heads]
                h = h + dense(np.concatenate(said, 1), block["text_attention"]["out"])
            up = dense(norm(h, b2, s2), block["feed_forward"]["up"])
            h = h + g2 * dense(gelu(up), block["feed_forward"]["down"])
        shift, scale = np.split(dense(c, p["final"]["modulation"]), 2)
        pixels = dense(norm(h, shift, scale), p["final"]["out"])
        output = np.empty_like(latent)
        for row in range(side):
            for column in range(side):
                square = pixels[row * side + column].reshape(patch, patch, -1)
                output[row * patch : (row + 1) * patch, column * patch : (column + 1) * patch] = square
        outputs.append(output)
    return np.stack(outputs)


def test_it_is_the_reference(params, predicted):
    np.testing.assert_allclose(predicted, reference(SMALL, params, X, T, LABEL), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cross", [None, nasa])
def test_a_text_and_a_hook_are_the_reference(told_params, cross):
    """Cross-attention with padding, a text of padding alone, NASA in its place; a hook in one block."""

    @jax.jit
    def apply(params):
        options = {"text_mask": TEXT_MASK, "attention_hook": halved, "cross_attention": cross}
        return TOLD_MODEL.apply(params, X, T, LABEL, TEXT, **options)

    in_numpy = attended if cross is None else attended_as_nasa
    expected = reference(TOLD, told_params, X, T, LABEL, (TEXT, TEXT_MASK), in_numpy, halved)
    np.testing.assert_allclose(apply(told_params), expected, rtol=1e-4, atol=1e-4)


def test_a_text_says_nothing_at_first_and_changes_no_other_parameter():
    params = jax.jit(TOLD_MODEL.init)(jax.random.key(0))
    assert not jax.jit(TOLD_MODEL.apply)(params, X, T, LABEL, TEXT).any()
    plain = jax.eval_shape(MODEL.init, jax.random.key(0))
    for i in range(SMALL.layers):
        block = dict(params["blocks"][str(i)])
        layer = block.pop("text_attention")
        assert not layer["out"]["kernel"].any()
        assert jax.tree.map(jnp.shape, block) == jax.tree.map(jnp.shape, plain["blocks"][str(i)])


@pytest.mark.parametrize("remat", [False, True])
def test_a_hook_hears_the_blocks_name(params, remat):
    heard = []

    def hook(h, block):
        heard.append((block, h.shape))
        return h

    model = dit(dataclasses.replace(SMALL, remat=remat))
    jax.eval_shape(lambda p: model.apply(p, X, T, LABEL, attention_hook=hook), params)
    assert heard == [("blocks.0", (4, 9, 16)), ("blocks.1", (4, 9, 16))]


def test_negative_token_merging_is_a_hook(params):
    """In the blocks of its config, and nowhere outside of its window."""
    config = NegToMeConfig(threshold=0.0, blocks=r"blocks\.1")

    @jax.jit
    def pushed(t):
        return MODEL.apply(params, X, T, LABEL, attention_hook=negtome_hook(config, t))

    def by_hand(h, block):
        return negtome_batch(h, alpha=0.9, threshold=0.0) if block == "blocks.1" else h

    inside = jax.jit(lambda: MODEL.apply(params, X, T, LABEL, attention_hook=by_hand))()
    outside = jax.jit(MODEL.apply)(params, X, T, LABEL)
    np.testing.assert_allclose(pushed(900.0), inside, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(pushed(899.0), outside, rtol=1e-5, atol=1e-5)
    assert float(jnp.abs(inside - outside)[1:].max()) > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("remat", [False, True])
def test_a_loop_knows_texts_and_hooks(told_params, remat):
    """The value and its gradient, in the loop and without it."""
    scanned = dit(dataclasses.replace(TOLD, scan=True, remat=remat))

    def loss(model, params, text):
        hook = negtome_hook(NegToMeConfig(threshold=0.0), 950.0)
        options = {"text_mask": TEXT_MASK, "attention_hook": hook, "cross_attention": nasa}
        return jnp.square(model.apply(params, X, T, LABEL, text, **options)).mean()

    both = jax.jit(jax.value_and_grad(lambda p, text: loss(TOLD_MODEL, p, text), argnums=(0, 1)))
    value, (grads, of_text) = both(told_params, TEXT)
    in_loop = jax.jit(jax.value_and_grad(lambda p, text: loss(scanned, p, text), argnums=(0, 1)))
    other, (others, text_too) = in_loop(stacked(told_params), TEXT)
    np.testing.assert_allclose(other, value, rtol=1e-5)
    np.testing.assert_allclose(text_too, of_text, rtol=1e-3, atol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        others["blocks"],
        stacked(grads)["blocks"],
    )
    assert not of_text[3].any()  # all of it is padding
    assert of_text[0].any()


def test_the_last_class_is_no_class(params, predicted):
    none = MODEL.apply(params, X, T)
    np.testing.assert_allclose(none[3], predicted[3], rtol=1e-4, atol=1e-5)
    assert float(jnp.abs(none - predicted).max((1, 2, 3))[:3].min()) > 1e-2


@pytest.mark.parametrize(
    ("config", "millions"), [(DIT_S_2, 33), (DIT_B_2, 130), (DIT_L_2, 458), (DIT_XL_2, 675)]
)
def test_the_paper_counts_as_many_parameters(config, millions):
    """Table 1 of the paper, in whole millions; it counts fixed positions, and outputs for the variance."""
    params = jax.eval_shape(dit(config).init, jax.random.key(0))
    ours = sum(leaf.size for leaf in jax.tree.leaves(params))
    positions = (config.size // config.patch) ** 2 * config.width
    variance = config.patch**2 * config.channels * (config.width + 1)
    assert millions <= round((ours + positions + variance) / 1e6, 1) < millions + 1


def test_it_starts_at_zero_with_open_residuals():
    params = MODEL.init(jax.random.key(0))
    assert not MODEL.apply(params, X, T, LABEL).any()
    for block in params["blocks"].values():
        assert not block["modulation"]["kernel"].any()
        bound = np.sqrt(6 / (16 + 48))  # Glorot and Bengio 2010, Eq. 16, for query, key and value as one
        kernel = np.abs(block["attention"]["qkv"]["kernel"])
        assert 0.9 * bound < kernel.max() <= bound


def test_positions_differ_and_do_not_depend_on_what_comes_after_the_row():
    small, large = plane_positions(3, 8), plane_positions(5, 8)
    assert len(np.unique(small.round(6), axis=0)) == 9
    np.testing.assert_allclose(small.reshape(3, 3, 8), large.reshape(5, 5, 8)[:3, :3])
    np.testing.assert_allclose(large.reshape(5, 5, 8)[2, :, 4:], np.tile(large[10, 4:], (5, 1)))  # one row


@pytest.mark.slow
@pytest.mark.parametrize("remat", [False, True])
def test_a_loop_over_the_blocks_is_the_blocks(params, remat):
    scanned, in_loop = dit(dataclasses.replace(SMALL, scan=True, remat=remat)), stacked(params)
    assert jax.tree.map(jnp.shape, scanned.init(jax.random.key(0))) == jax.tree.map(jnp.shape, in_loop)

    def loss(apply, params):
        return jnp.square(apply(params, X, T, LABEL)).mean()

    value, grads = jax.jit(jax.value_and_grad(lambda p: loss(MODEL.apply, p)))(params)
    other, others = jax.jit(jax.value_and_grad(lambda p: loss(scanned.apply, p)))(in_loop)
    np.testing.assert_allclose(other, value, rtol=1e-5)
    for i in range(SMALL.layers):
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-3, atol=1e-4),
            others["blocks"],
            grads["blocks"][str(i)],
        )


def test_the_blocks_of_a_loop_start_different():
    params = dit(dataclasses.replace(SMALL, scan=True)).init(jax.random.key(0))
    first, second = params["blocks"]["attention"]["qkv"]["kernel"]
    assert float(jnp.abs(first - second).max()) > 0.01


@pytest.mark.slow
def test_its_gradient_is_the_slope(params):
    """Against central differences, along one direction: what is recomputed backwards must be the same."""
    rng = np.random.default_rng(2)
    direction = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), params)

    @jax.jit
    def loss(epsilon):
        moved = jax.tree.map(lambda x, d: x + epsilon * d, params, direction)
        return jnp.square(MODEL.apply(moved, X, T, LABEL)).mean()

    with jax.enable_x64(True):
        # Attention's scores are in float32 even so: a smaller step would divide their rounding by less.
        slope = (loss(jnp.float64(1e-4)) - loss(jnp.float64(-1e-4))) / 2e-4
        np.testing.assert_allclose(jax.grad(loss)(jnp.float64(0)), slope, rtol=1e-3)


def test_bfloat16_is_close(params, predicted):
    half = dit(dataclasses.replace(SMALL, dtype=jnp.bfloat16))
    eps = half.apply(params, X, T, LABEL)
    assert eps.dtype == jnp.bfloat16
    scale = float(jnp.abs(predicted).max())
    np.testing.assert_allclose(np.asarray(eps, np.float32), predicted, atol=0.03 * scale)


def test_bfloat16_of_a_text_without_a_mask(told_params):
    half = dit(dataclasses.replace(TOLD, dtype=jnp.bfloat16))
    eps = jax.jit(half.apply)(told_params, X, T, LABEL, TEXT)
    assert eps.dtype == jnp.bfloat16
    expected = reference(TOLD, told_params, X, T, LABEL, (TEXT, np.ones_like(TEXT_MASK)))
    np.testing.assert_allclose(np.asarray(eps, np.float32), expected, atol=0.03 * np.abs(expected).max())


def noise_loss(model):
    def loss_fn(params, batch, key):
        del key
        told = (batch["text"],) if "text" in batch else ()
        mask = batch.get("text_mask")
        eps = model.apply(params, batch["x"], batch["t"], batch["label"], *told, text_mask=mask)
        return jnp.square(eps - batch["x"]).mean((1, 2, 3)).mean(), {}

    return loss_fn


@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize(
    ("text", "scan"),
    [
        (None, False),
        pytest.param(None, True, marks=pytest.mark.slow),
        pytest.param(8, True, marks=pytest.mark.slow),
    ],
)
def test_sharded_is_unsharded(text, scan, explicit):
    config = dataclasses.replace(SMALL, text=text)
    params = drawn(dit(config))
    params = stacked(params) if scan else params
    mesh = make_mesh({"data": 4, "model": 2}, explicit=explicit)
    model, tx = dit(dataclasses.replace(config, scan=scan, remat=scan)), optax.sgd(0.1)
    batch = {"x": X, "t": T, "label": LABEL}
    if text:
        batch |= {"text": RNG.normal(size=(4, 6, text)).astype(np.float32), "text_mask": TEXT_MASK}
    state = init_state(params, tx, jax.random.key(1))
    step = make_step(noise_loss(model), tx)
    sharded = shard_step(step, mesh, state, batch, rules=DIT_RULES)
    placed, metrics = sharded(sharded.place_state(state), batch)
    state, expected = jax.jit(step)(state, batch)
    np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), placed.params, state.params
    )
    blocks = placed.params["blocks"]
    kernel = (blocks if scan else blocks["0"])["attention"]["qkv"]["kernel"]
    assert kernel.addressable_shards[0].data.shape[-2:] == (4, 24)


def test_rules_reach_every_matrix():
    mesh = make_mesh({"data": 4, "model": 2})
    told = dataclasses.replace(SMALL, text=8)
    for config in (SMALL, dataclasses.replace(SMALL, scan=True), told, dataclasses.replace(told, scan=True)):
        params = jax.eval_shape(dit(config).init, jax.random.key(0))
        specs = partition_specs(params, mesh, DIT_RULES)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            spec = specs
            for part in path:
                spec = spec[part.key]
            name = jax.tree_util.keystr(path)
            assert ("data" in spec) == ("bias" not in name), name
            if "blocks" in name and "kernel" in name:
                assert "model" in spec, name
            assert len(spec) <= leaf.ndim


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch": 4}, "patch: expected a divisor of size = 6, got 4"),
        ({"heads": 3}, "heads: expected a divisor of width = 16, got 3"),
        ({"width": 18}, "width: expected a multiple of 4 for positions in a plane, got 18"),
        ({"layers": 0}, "layers: expected at least 1, got 0"),
        ({"classes": 0}, "classes: expected at least 1, or None, got 0"),
        ({"text": 0}, "text: expected at least 1, or None, got 0"),
    ],
)
def test_config_that_does_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **options)


def test_latents_of_another_size(params):
    with pytest.raises(ValueError, match=r"x: expected latents \[batch, 6, 6, 2\], got shape \(4, 6, 6, 1\)"):
        MODEL.apply(params, X[..., :1], T, LABEL)


@pytest.mark.parametrize(
    ("config", "inputs", "options", "message"),
    [
        (SMALL, (TEXT,), {}, "text: expected None, since the network was made without texts"),
        (SMALL, (), {"text_mask": TEXT_MASK}, "text_mask: expected None, since"),
        (SMALL, (), {"cross_attention": nasa}, "cross_attention: expected None, since"),
        (TOLD, (), {}, r"text: expected embeddings \[4, tokens, 5\], got None"),
        (TOLD, (TEXT[:3],), {}, r"text: expected embeddings \[4, tokens, 5\], got shape \(3, 6, 5\)"),
        (
            TOLD,
            (TEXT,),
            {"text_mask": TEXT_MASK[:, :5]},
            r"text_mask: expected booleans of shape \(4, 6\), got bool \(4, 5\)",
        ),
        (TOLD, (TEXT,), {"text_mask": TEXT[..., 0]}, "text_mask: expected booleans .*, got float32"),
        (
            TOLD,
            (TEXT,),
            {"cross_attention": lambda q, k, v, mask: k},
            r"cross_attention: expected a result of shape \(4, 9, 2, 8\), got \(4, 6, 2, 8\)",
        ),
        (
            SMALL,
            (),
            {"attention_hook": lambda h, block: h[:, :4]},
            r"attention_hook: expected a result of shape \(4, 9, 16\), got \(4, 4, 16\)",
        ),
        (
            dataclasses.replace(SMALL, scan=True),
            (),
            {"attention_hook": halved},
            "attention_hook: expected a function of the tokens alone, since with scan=True .*'block'",
        ),
        (
            dataclasses.replace(SMALL, scan=True),
            (),
            {"attention_hook": negtome_hook(NegToMeConfig(blocks="blocks.1"), 950.0)},
            r"block: expected the block's name, since config.blocks = 'blocks.1' chooses among them",
        ),
    ],
)
def test_texts_and_hooks_that_do_not_fit(config, inputs, options, message):
    model = dit(config)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(
            lambda key: model.apply(model.init(key), X, T, LABEL, *inputs, **options), jax.random.key(0)
        )
