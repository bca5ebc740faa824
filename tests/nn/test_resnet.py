"""Residual networks: against convolutions in numpy, torchvision's names, and sharded."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxneg.nn import bridge_normalised, resnet, resnet_from_torch
from jaxneg.nn.resnet import BLOCKS, Block
from jaxneg.train import init_state, make_mesh, make_step, shard_step

# Compilation makes these the dearest tests: they are left to the slow suite.
pytestmark = pytest.mark.slow

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(4, 32, 32, 3)).astype(np.float32)


def convolution(x, kernel, stride=1, dilation=1):
    """Zero padding by half of a kernel, as torch's ``padding``; one position of the kernel at a time."""
    size = kernel.shape[0]
    pad = dilation * (size // 2)
    rows, columns = ((n + 2 * pad - dilation * (size - 1) - 1) // stride + 1 for n in x.shape[1:3])
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    y = 0
    for i in range(size):
        for j in range(size):
            top, left = i * dilation, j * dilation
            part = x[:, top : top + (rows - 1) * stride + 1 : stride]
            y = y + part[:, :, left : left + (columns - 1) * stride + 1 : stride] @ kernel[i, j]
    return y


def pooling(x):
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    rows, columns = (x.shape[1] - 1) // 2, (x.shape[2] - 1) // 2
    parts = [x[:, i : i + 2 * rows - 1 : 2, j : j + 2 * columns - 1 : 2] for i in range(3) for j in range(3)]
    return np.max(parts, 0)


class Reference:
    """The network in numpy, with each block's strides and dilations written out; keeps its statistics."""

    def __init__(self, params, stats=None):
        self.params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
        self.given, self.stats = stats, {}

    def at(self, tree, path):
        for key in path.split("/"):
            tree = tree[key]
        return tree

    def norm(self, x, path):
        rows = x.reshape(-1, x.shape[-1])
        self.stats[path] = {"mean": rows.mean(0), "variance": rows.var(0)}
        stats = self.at(self.given, path) if self.given else self.stats[path]
        mean, variance = (np.asarray(stats[name], np.float64) for name in ("mean", "variance"))
        p = self.at(self.params, path)
        return (x - mean) / np.sqrt(variance + 1e-5) * p["scale"] + p["bias"]

    def conv(self, x, path, **options):
        return convolution(x, self.at(self.params, path)["kernel"], **options)

    def block(self, x, path, stride, first, second):
        bottleneck = "conv3" in self.at(self.params, path)
        strides = (1, stride, 1) if bottleneck else (stride, 1)
        dilations = (1, first, 1) if bottleneck else (first, second)
        y = x
        for i, (s, d) in enumerate(zip(strides, dilations, strict=True), start=1):
            y = y if i == 1 else np.maximum(y, 0)
            y = self.norm(self.conv(y, f"{path}/conv{i}", stride=s, dilation=d), f"{path}/bn{i}")
        if "downsample" in self.at(self.params, path):
            x = self.norm(self.conv(x, f"{path}/downsample/0", stride=stride), f"{path}/downsample/1")
        return np.maximum(x + y, 0)

    def __call__(self, x, depth, output_stride=32, small_images=False):
        x = np.maximum(self.norm(self.conv(x, "conv1", stride=1 if small_images else 2), "bn1"), 0)
        x = x if small_images else pooling(x)
        # stride and dilations of a stage's first block, dilation of the others
        stages = {
            32: [(1, 1, 1), (2, 1, 1), (2, 1, 1), (2, 1, 1)],
            16: [(1, 1, 1), (2, 1, 1), (2, 1, 1), (1, 1, 2)],
            8: [(1, 1, 1), (2, 1, 1), (1, 1, 2), (1, 2, 4)],
        }[output_stride]
        for stage, (blocks, (stride, first, rest)) in enumerate(zip(BLOCKS[depth], stages, strict=True), 1):
            x = self.block(x, f"layer{stage}/0", stride, first, rest)
            for block in range(1, blocks):
                x = self.block(x, f"layer{stage}/{block}", 1, rest, rest)
        return x


def random_params(model, seed=1):
    """Parameters without the zeros and ones of an initialisation, which hide mistakes."""
    rng = np.random.default_rng(seed)

    def draw(leaf):
        x = rng.normal(size=leaf.shape)
        x = x * np.sqrt(2 / np.prod(leaf.shape[:3])) if leaf.ndim == 4 else 1 + 0.2 * x
        return x.astype(np.float32)

    return jax.tree.map(draw, jax.eval_shape(model.init, jax.random.key(0)))


def close(actual, expected, tolerance):
    """Up to a part of the largest value: normalisation amplifies rounding through many layers."""
    expected = np.asarray(expected, np.float64)
    np.testing.assert_allclose(
        np.asarray(actual, np.float64), expected, atol=tolerance * np.abs(expected).max()
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("depth", "options"),
    [
        (18, {}),
        (18, {"output_stride": 8}),
        (18, {"small_images": True}),
        (34, {"output_stride": 16}),
        (50, {}),
        (50, {"output_stride": 8}),
    ],
)
def test_it_is_the_reference(depth, options):
    model = resnet(depth, width=4, **options)
    params = random_params(model)
    training = Reference(params)
    expected = training(IMAGES, depth, **options)
    features, stats = jax.jit(lambda p, x: (model.apply(p, x), model.statistics(p, x)))(params, IMAGES)
    close(features, expected, 1e-3)
    for path, moments in training.stats.items():
        for name, value in moments.items():
            close(training.at(stats, path)[name], value, 1e-3)
    assert len(jax.tree.leaves(stats)) == 2 * len(training.stats)

    given = jax.tree.map(lambda x: 1.5 * x + 0.1, stats)
    evaluated = jax.jit(model.evaluate)(params, given, IMAGES[:2])
    close(evaluated, Reference(params, given)(IMAGES[:2], depth, **options), 1e-4)


# A bottleneck with all that a block can have, which compiles faster than a network.
BLOCK = bridge_normalised(lambda rngs: Block(3, 4, 16, 2, (2, 2), False, None, rngs))
PARAMS = random_params(BLOCK)


def block_loss(params, images):
    y = BLOCK.apply(params, images)
    return jnp.square(y).mean(), y


@pytest.fixture(scope="module")
def trained():
    """Output, gradients and statistics of a batch."""

    def run(params, images):
        grads, y = jax.grad(block_loss, has_aux=True)(params, images)
        return y, grads, BLOCK.statistics(params, images)

    return jax.jit(run)(PARAMS, IMAGES)


def test_a_block_is_the_reference(trained):
    y, _, stats = trained
    reference = Reference({"block": PARAMS})
    close(y, reference.block(IMAGES, "block", 2, 2, 2), 1e-5)
    close(stats["bn2"]["variance"], reference.stats["block/bn2"]["variance"], 1e-5)
    close(stats["downsample"]["1"]["mean"], reference.stats["block/downsample/1"]["mean"], 1e-5)


def test_evaluation_with_the_batch_s_own_statistics_is_training(trained):
    y, _, stats = trained
    close(jax.jit(BLOCK.evaluate)(PARAMS, stats, IMAGES), y, 1e-5)


def test_gradient_at_one_parameter(trained):
    def reference_loss(change):
        params = jax.tree.map(lambda x: x.astype(np.float64), PARAMS)
        params["conv2"]["kernel"][0, 2, 1, 3] += change
        return np.square(Reference({"block": params}).block(IMAGES, "block", 2, 2, 2)).mean()

    difference = (reference_loss(1e-5) - reference_loss(-1e-5)) / 2e-5
    assert abs(difference) > 1e-4
    np.testing.assert_allclose(trained[1]["conv2"]["kernel"][0, 2, 1, 3], difference, rtol=1e-3)


def test_seeds_side_by_side(trained):
    params = jax.tree.map(lambda x: np.stack([x, x + np.float32(0.1)]), PARAMS)
    together = jax.jit(jax.vmap(BLOCK.apply, (0, None)))(params, IMAGES)
    close(together[0], trained[0], 1e-5)
    assert np.abs(together[1] - together[0]).max() > 0.1


def block_losses(params, images, key):
    del key
    y = BLOCK.apply(params, images)
    return jnp.stack([jnp.square(y).mean(), jnp.abs(y[..., :5]).mean()]), {}


def mean_of_tasks():
    """The least aggregator: the mean of the Jacobian's rows."""
    return optax.stateless(lambda updates, params: jax.tree.map(lambda g: g.mean(0), updates))


@pytest.mark.parametrize("explicit", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_sharded_block_is_unsharded(explicit):
    tx = optax.chain(mean_of_tasks(), optax.sgd(0.1))
    images = np.concatenate([IMAGES, IMAGES[::-1] * 2])
    state = init_state(PARAMS, tx, jax.random.key(1))
    step = make_step(block_losses, tx)
    expected, metrics = jax.jit(step)(state, images)
    mesh = make_mesh({"data": 4, "model": 2}, explicit=explicit)
    sharded = shard_step(step, mesh, state, images, min_size=1)
    placed, placed_metrics = sharded(sharded.place_state(state), images)
    np.testing.assert_allclose(placed_metrics["losses"], metrics["losses"], rtol=1e-5)
    np.testing.assert_allclose(placed_metrics["grad_norm"], metrics["grad_norm"], rtol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), placed.params, expected.params
    )
    kernel = placed.params["conv3"]["kernel"]  # [1, 1, 4, 16]
    assert kernel.addressable_shards[0].data.shape == (1, 1, 4, 4)


@pytest.mark.slow
@pytest.mark.parametrize("explicit", [False, True])
def test_a_sharded_network_is_unsharded(explicit):
    model, tx = resnet(18, width=8, output_stride=8), optax.sgd(0.1)

    def loss_fn(params, images, key):
        del key
        return jnp.square(model.apply(params, images)).mean(), {}

    state = init_state(random_params(model), tx, jax.random.key(1))
    step = make_step(loss_fn, tx)
    expected, metrics = jax.jit(step)(state, IMAGES)
    sharded = shard_step(step, make_mesh({"data": 4, "model": 2}, explicit=explicit), state, IMAGES)
    placed, placed_metrics = sharded(sharded.place_state(state), IMAGES)
    np.testing.assert_allclose(placed_metrics["loss"], metrics["loss"], rtol=1e-4)
    np.testing.assert_allclose(placed_metrics["grad_norm"], metrics["grad_norm"], rtol=1e-3)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), placed.params, expected.params
    )


def test_bfloat16_is_close(trained):
    half = bridge_normalised(lambda rngs: Block(3, 4, 16, 2, (2, 2), False, jnp.bfloat16, rngs))
    y, stats = jax.jit(lambda p, x: (half.apply(p, x), half.statistics(p, x)))(PARAMS, IMAGES)
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(stats)} == {jnp.dtype(jnp.float32)}
    exact = np.asarray(trained[0])
    assert np.linalg.norm(np.asarray(y, np.float32) - exact) < 0.02 * np.linalg.norm(exact)


@pytest.mark.parametrize(("depth", "parameters"), [(18, 11_176_512), (50, 23_508_032)])
def test_number_of_parameters(depth, parameters):
    params = jax.eval_shape(resnet(depth).init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == parameters


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (2, 3, 4, 64)),
        ({"output_stride": 16}, (2, 5, 7, 64)),
        ({"output_stride": 8}, (2, 9, 14, 64)),
        ({"small_images": True}, (2, 9, 14, 64)),
    ],
)
def test_size_of_the_features(options, expected):
    model = resnet(18, width=8, dtype=jnp.bfloat16, **options)
    params = jax.eval_shape(model.init, jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    images = jax.ShapeDtypeStruct((2, 72, 105, 3), jnp.float32)
    features = jax.eval_shape(model.apply, params, images)
    assert (features.shape, features.dtype) == (expected, jnp.bfloat16)


def test_initialisation():
    def block(**options):
        model = bridge_normalised(
            lambda rngs: Block(8, 64, stride=1, dilations=(1, 1), dtype=None, rngs=rngs, **options)
        )
        return jax.jit(model.init)(jax.random.key(0))

    bottleneck, basic = block(outputs=256, zero_init=True), block(outputs=64, zero_init=False)
    kernel = bottleneck["conv2"]["kernel"]
    assert kernel.shape == (3, 3, 64, 64)
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (9 * 64)), rtol=0.05)
    np.testing.assert_allclose(basic["conv1"]["kernel"].std(), np.sqrt(2 / (9 * 64)), rtol=0.05)  # fan_out
    assert [float(bottleneck[name]["scale"][0]) for name in ("bn1", "bn2", "bn3")] == [1, 1, 0]
    assert [float(basic[name]["scale"][0]) for name in ("bn1", "bn2")] == [1, 1]


def to_torch(params, stats):
    """torchvision's names and layouts."""
    names = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "variance": "running_var"}
    state = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path((params, stats)):
        *parents, last = [key.key for key in path[1:]]
        leaf = np.asarray(leaf)
        state[".".join([*parents, names.get(last, last)])] = (
            leaf.transpose(3, 2, 0, 1) if leaf.ndim == 4 else leaf
        )
    return state


@pytest.fixture(scope="module")
def torch_state():
    model = resnet(18, width=2)
    params = jax.eval_shape(model.init, jax.random.key(0))
    stats = jax.eval_shape(model.statistics, params, IMAGES)
    rng = np.random.default_rng(0)
    params, stats = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), (params, stats))
    return params, stats, to_torch(params, stats)


def test_from_torch(torch_state):
    params, stats, state = torch_state
    assert {"conv1.weight", "bn1.running_var", "layer2.0.downsample.1.bias"} < state.keys()
    assert state["layer2.0.conv1.weight"].shape == (4, 2, 3, 3)
    ignored = {"fc.weight": np.zeros((10, 16)), "bn1.num_batches_tracked": np.array(3)}
    for given in (state, state | ignored):
        taken = resnet_from_torch(given, 18, width=2)
        jax.tree.map(np.testing.assert_array_equal, taken, (params, stats))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer1.0.conv2.weight": None}, "state: 'layer1.0.conv2.weight' is missing for a ResNet-18"),
        ({"bn1.running_mean": None}, "state: 'bn1.running_mean' is missing for a ResNet-18"),
        (
            {"layer2.0.conv1.weight": np.zeros((4, 2, 1, 1))},
            r"'layer2.0.conv1.weight' should have shape \(4, 2, 3, 3\) in a ResNet-18, got \(4, 2, 1, 1\)",
        ),
        ({"bn1.bias": np.zeros(3)}, r"'bn1.bias' should have shape \(2,\) in a ResNet-18, got \(3,\)"),
        ({"layer1.2.bn1.weight": np.zeros(2)}, "state: 'layer1.2.bn1.weight' is too much for a ResNet-18"),
    ],
)
def test_state_that_does_not_fit(torch_state, change, message):
    state = {name: x for name, x in (torch_state[2] | change).items() if x is not None}
    with pytest.raises(ValueError, match=message):
        resnet_from_torch(state, 18, width=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 101}, r"depth: expected one of \(18, 34, 50\), got 101"),
        ({"output_stride": 4}, r"output_stride: expected one of \(8, 16, 32\), got 4"),
        ({"width": 0}, "width: expected at least 1, got 0"),
    ],
)
def test_arguments_that_do_not_exist(arguments, message):
    with pytest.raises(ValueError, match=message):
        resnet(**{"depth": 18, **arguments})


def test_no_images():
    model = resnet(18, width=1)
    params = jax.eval_shape(model.init, jax.random.key(0))
    for shape in ((2, 32, 32, 4), (32, 32, 3)):
        with pytest.raises(ValueError, match=r"x: expected images \[batch, height, width, 3\], got shape"):
            jax.eval_shape(model.apply, params, jnp.zeros(shape))
