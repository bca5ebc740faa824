"""Contrastive losses, a SimCLR step and augmentations beside lightly and others in PyTorch.

The losses are timed forward and backward from two batches of projections: NT-Xent beside lightly's and
pytorch-metric-learning's, Barlow Twins and VICReg beside lightly's, and AMCL on SimCLR beside the official
code's arithmetic, written again from its description: the temperature network on every pair of vectors. The
same arithmetic with the network on single vectors is the second peer: the difference is the order alone.

The step is SimCLR's on a small ResNet: two views through the encoder and the projector, lightly's loss,
backward, SGD with momentum. The views of both sides are made beforehand. The peer is the same network in
PyTorch, with our weights.

Augmentation is the recipe "acde" on images of 32 x 32: ours on a whole batch, torchvision's transforms (those
behind lightly's ``SimCLRTransform``) image by image, as its loaders call them.

Before anything is timed both sides compute the same numbers, but for augmentations, which are random.
"""

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.bench import machine_peaks, paired_ratio, roofline_seconds
from experiments.isolated import available_cores, in_a_process
from experiments.peers import require_same_step, torch_for
from jaxneg import contrastive
from jaxneg.contrastive.augment import MEAN, STD
from jaxneg.nn import multi_head_projector, resnet_cifar

PAIR_SECONDS = 20.0
"""How long the pairs of one comparison may take in all, at three pairs at least."""
TEMPERATURE, BETA, TAU_MIN, TAU_MAX, TOPK = 0.5, 1e-4, 1e-5, 2.0, 100
LEARNING_RATE, MOMENTUM = 0.06, 0.9
PACKAGES = {
    "lightly": "lightly",
    "pytorch_metric_learning": "pytorch-metric-learning",
    "torchvision": "torchvision",
}


class Sizes(NamedTuple):
    """Of the losses, the step and the augmentation."""

    batch: int = 256
    dim: int = 128
    wide: int = 1024
    """Features of Barlow Twins and VICReg."""
    amcl_batch: int = 128
    heads: int = 3
    step_batch: int = 128
    step_size: int = 16
    step_width: int = 16
    images: int = 512
    image_size: int = 32


def run(repeats: int = 21) -> dict[str, Any]:
    """Times losses, step and augmentation on one core and on all.

    Args:
        repeats: pairs of samples for each comparison, fewer where a call takes long.

    Returns:
        ``settings``; ``one_core`` and ``all_cores`` with a row for each comparison: ``ratio_median`` is the
        peer's time over ours, ``losses_apart`` and ``direction_apart`` are relative distances of losses and
        gradients (or first moments), ``roofline_seconds`` the least time at the measured peaks.

    Raises:
        ImportError: a peer is not installed.
        RuntimeError: two sides compute different numbers.
    """
    torch = torch_for("contrastive")
    versions = {name: peer(name).__version__ for name in PACKAGES}
    cores, sizes = available_cores(), Sizes()
    return {
        "settings": {
            "torch": torch.__version__,
            **versions,
            "sizes": ", ".join(f"{name} {value}" for name, value in sizes._asdict().items()),
            "dtype": "float32",
            "cores": f"1, and {len(cores)} for all_cores",
            "pairs of samples": f"{repeats}, as many as {PAIR_SECONDS:g} s hold, at least 3",
        },
        "one_core": in_a_process(cores[:1], times, sizes, repeats),
        "all_cores": in_a_process(cores, times, sizes, repeats) if len(cores) > 1 else {},
    }


def peer(name: str) -> ModuleType:
    """A package that is measured against.

    Args:
        name: of `PACKAGES`.

    Returns:
        The module.

    Raises:
        ImportError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"the benchmark 'contrastive' measures against {PACKAGES[name]} ({error}); pip install"
            " 'jaxneg[bench]'"
        ) from error


def times(sizes: Sizes, repeats: int) -> dict[str, dict[str, float]]:
    """All comparisons on the cores of this process."""
    torch, peaks = torch_for("contrastive"), machine_peaks()
    measured = {}
    for name, (ours, theirs, flops) in losses(torch, sizes).items():
        (value, gradients), (peer_value, peer_gradients) = ours(), theirs()
        apart = require_same_step(
            name, (value, peer_value.numpy()), (list(gradients), [g.numpy() for g in peer_gradients]), 1e-3
        )
        roofline = roofline_seconds(flops, 0, peaks)
        measured[name] = {
            **paired_ratio(ours, theirs, repeats, budget_seconds=PAIR_SECONDS),
            **apart,
            "roofline_seconds": roofline,
        }
    measured["simclr_step"] = step_times(torch, sizes, repeats)
    ours, theirs = augmentations(torch, sizes)
    measured["augmentation_acde"] = paired_ratio(ours, theirs, repeats, budget_seconds=PAIR_SECONDS)
    return measured


def projections(*shape: int) -> list[np.ndarray]:
    """Both views' projections: the second is the first, disturbed."""
    rng = np.random.default_rng(0)
    first = rng.standard_normal(shape, dtype=np.float32)
    return [first, first + rng.standard_normal(shape, dtype=np.float32)]


def losses(torch: ModuleType, sizes: Sizes) -> dict[str, tuple[Callable[[], Any], Callable[[], Any], float]]:
    """Ours, the peer's, and the floating-point operations of each comparison of losses.

    Args:
        torch: the module.
        sizes: of the losses.

    Returns:
        Programs that give the loss and the gradients of both views.
    """
    lightly_loss = importlib.import_module("lightly.loss")
    peer("pytorch_metric_learning")
    metric = importlib.import_module("pytorch_metric_learning.losses")
    narrow = projections(sizes.batch, sizes.dim)
    wide = projections(sizes.batch, sizes.wide)
    many = projections(sizes.amcl_batch, sizes.heads, sizes.dim)
    phi = contrastive.init_temperature_net(jax.random.key(0), sizes.dim)
    rule = {"beta": BETA, "tau_min": TAU_MIN, "tau_max": TAU_MAX, "topk": TOPK}

    def nt_xent(a: Any, b: Any) -> Any:
        return contrastive.nt_xent_loss(a, b, TEMPERATURE).mean()

    def amcl(a: Any, b: Any) -> Any:
        return contrastive.amcl_nt_xent_loss(a, b, phi, **rule)[0].mean()

    of_nt_xent = 6.0 * (2 * sizes.batch) ** 2 * sizes.dim
    # Squares of products of features go through products of images, where these are fewer.
    of_barlow = 6.0 * sizes.batch * sizes.wide * min(sizes.wide, 2 * sizes.batch)
    of_vicreg = 2 * 6.0 * sizes.batch * sizes.wide * min(sizes.wide, sizes.batch)
    of_amcl = 2 * 6.0 * sizes.heads * (2 * sizes.amcl_batch) ** 2 * sizes.dim
    return {
        "nt_xent_lightly": (
            _ours(nt_xent, narrow),
            _theirs(torch, lightly_loss.NTXentLoss(TEMPERATURE), narrow),
            of_nt_xent,
        ),
        "nt_xent_metric_learning": (
            _ours(nt_xent, narrow),
            _theirs(torch, metric.SelfSupervisedLoss(metric.NTXentLoss(TEMPERATURE)), narrow),
            of_nt_xent,
        ),
        "barlow_twins_lightly": (
            _ours(lambda a, b: contrastive.barlow_twins_loss(a, b, norm="batchnorm"), wide),
            _theirs(torch, lightly_loss.BarlowTwinsLoss(5e-3), wide),
            of_barlow,
        ),
        "vicreg_lightly": (
            _ours(contrastive.vicreg_loss, wide),
            _theirs(torch, lightly_loss.VICRegLoss(), wide),
            of_vicreg,
        ),
        "amcl_official": (_ours(amcl, many), _theirs(torch, peer_amcl(torch, phi, True), many), of_amcl),
        "amcl_reordered": (_ours(amcl, many), _theirs(torch, peer_amcl(torch, phi, False), many), of_amcl),
    }


def peer_amcl(
    torch: ModuleType, phi: contrastive.TemperatureNet, every_pair: bool
) -> Callable[[Any, Any], Any]:
    """AMCL's loss with the 100 nearest negatives in PyTorch.

    Args:
        torch: the module.
        phi: weights of the temperature network.
        every_pair: whether the network sees both vectors of every pair, as in the official code, or each
            vector once.

    Returns:
        The loss of two batches of projections.
    """
    functional = torch.nn.functional
    w1, b1, w2, b2 = (torch.from_numpy(np.array(phi[name])) for name in ("w1", "b1", "w2", "b2"))

    def network(z: Any) -> Any:
        return functional.relu(z @ w1 + b1) @ w2 + b2

    def temperature(score: Any) -> Any:
        return TAU_MIN + (TAU_MAX - TAU_MIN) * torch.sigmoid(-score)

    def loss(z1: Any, z2: Any) -> Any:
        batch, heads, dim = z1.shape
        total = z1.new_zeros(())
        anchors = torch.arange(2 * batch)
        positive = (anchors + batch) % (2 * batch)
        others = ~(torch.eye(2 * batch, dtype=torch.bool) | (anchors[None] == positive[:, None]))
        for head in range(heads):
            z = functional.normalize(torch.cat([z1[:, head], z2[:, head]]), dim=1)
            similarity = z @ z.T
            negatives = similarity[others].view(2 * batch, -1)
            if every_pair:
                columns = z.expand(2 * batch, -1, -1)[others].view(2 * batch, -1, dim)
                rows = z[:, None].expand_as(columns)
                score = (network(rows) * network(columns)).sum(-1)
                positive_score = (network(z) * network(z[positive])).sum(-1)
            else:
                features = network(z)
                scores = features @ features.T
                score, positive_score = scores[others].view(2 * batch, -1), scores[anchors, positive]
            tau, tau_positive = temperature(score), temperature(positive_score)
            nearest = negatives.topk(min(TOPK, negatives.shape[1]), dim=1).indices
            chosen, tau = negatives.gather(1, nearest), tau.gather(1, nearest)
            pull = -similarity[anchors, positive] / tau_positive + (chosen / tau).mean(1)
            omega = dim / 2 * tau_positive.log() + 1 / tau_positive
            total = total + (pull + BETA * (omega - tau.log().sum(1) - (1 / tau).sum(1))).mean()
        return total

    return loss


def _ours(loss: Callable[..., Any], arrays: list[np.ndarray]) -> Callable[[], Any]:
    views = [jnp.asarray(array) for array in arrays]
    compiled = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*views).compile()
    return lambda: compiled(*views)


def _theirs(torch: ModuleType, loss: Callable[..., Any], arrays: list[np.ndarray]) -> Callable[[], Any]:
    views = [torch.from_numpy(array.copy()).requires_grad_() for array in arrays]

    def program() -> Any:
        value = loss(*views)
        value.backward()
        gradients = [view.grad for view in views]
        for view in views:
            view.grad = None  # they are the caller's alone, as ours are
        return value.detach(), gradients

    return program


def step_times(torch: ModuleType, sizes: Sizes, repeats: int) -> dict[str, float]:
    """A whole SimCLR step beside the same in PyTorch with lightly's loss.

    Args:
        torch: the module.
        sizes: of the step.
        repeats: pairs of samples.

    Returns:
        A row of the results.
    """
    encoder = resnet_cifar(18, width=sizes.step_width)
    features = 8 * sizes.step_width
    projector = multi_head_projector(features, heads=1, hidden=512, outputs=sizes.dim)
    tx = optax.sgd(LEARNING_RATE, MOMENTUM)
    rng = np.random.default_rng(1)
    shape = (sizes.step_batch, sizes.step_size, sizes.step_size, 3)
    views = [rng.standard_normal(shape, dtype=np.float32) for _ in range(2)]
    of_encoder, of_heads = jax.random.split(jax.random.key(0))
    params = {"encoder": jax.jit(encoder.init)(of_encoder), "heads": jax.jit(projector.init)(of_heads)}

    def loss(params: Any, views: Any) -> Any:
        z1, z2 = (
            projector.apply(params["heads"], encoder.apply(params["encoder"], view))[:, 0] for view in views
        )
        return contrastive.nt_xent_loss(z1, z2, TEMPERATURE).mean()

    def step(state: Any, views: Any) -> Any:
        params, opt_state = state
        value, gradient = jax.value_and_grad(loss)(params, views)
        updates, opt_state = tx.update(gradient, opt_state)
        return (optax.apply_updates(params, updates), opt_state), value

    theirs = PeerStep(torch, sizes, jax.tree.map(np.asarray, params), views)
    kept = [(params, tx.init(params))]
    compiled = jax.jit(step, donate_argnums=0)
    device_views = [jnp.asarray(view) for view in views]

    def ours() -> Any:
        kept[0], value = compiled(kept[0], device_views)
        return value, kept[0]

    value, peer_value = np.asarray(ours()[0]), theirs().numpy()
    momenta: Any = kept[0][1]
    trace = momenta[0].trace["encoder"]
    moments = {"conv1": np.asarray(trace["conv1"]["kernel"]), "bn1": np.asarray(trace["bn1"]["scale"])}
    apart = require_same_step("simclr_step", (value, peer_value), (moments, theirs.direction()), 1e-2)
    return {**paired_ratio(ours, theirs, repeats, budget_seconds=PAIR_SECONDS), **apart}


class PeerStep:
    """The same step in PyTorch.

    Args:
        torch: the module.
        sizes: of the step.
        params: our parameters, to start from.
        views: of the batch.
    """

    def __init__(self, torch: ModuleType, sizes: Sizes, params: Any, views: list[np.ndarray]) -> None:
        self.torch = torch
        self.loss = importlib.import_module("lightly.loss").NTXentLoss(TEMPERATURE)
        self.model = peer_network(torch, sizes, params)
        self.views = [torch.from_numpy(view.transpose(0, 3, 1, 2).copy()) for view in views]
        self.optimizer = torch.optim.SGD(self.model.parameters(), LEARNING_RATE, MOMENTUM)

    def __call__(self) -> Any:
        """One step; the loss before it."""
        loss = self.loss(*(self.model(view) for view in self.views))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def direction(self) -> dict[str, np.ndarray]:
        """Momenta of the first convolution and of its normalisation, in our layout."""
        state = self.optimizer.state
        conv, norm = (
            state[p]["momentum_buffer"].numpy() for p in (self.model.conv1.weight, self.model.bn1.weight)
        )
        return {"conv1": conv.transpose(2, 3, 1, 0), "bn1": norm}


def peer_network(torch: ModuleType, sizes: Sizes, params: Any) -> Any:
    """A torch module like our ResNet and projector, with their weights.

    Args:
        torch: the module.
        sizes: of the step.
        params: ``encoder`` and ``heads``.

    Returns:
        A module from images to projections.
    """
    nn, functional = torch.nn, torch.nn.functional

    def convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> Any:
        return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)

    class Block(nn.Module):
        def __init__(self, inputs: int, outputs: int, stride: int) -> None:
            super().__init__()
            self.conv1, self.bn1 = convolution(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs)
            self.conv2, self.bn2 = convolution(outputs, outputs, 3), nn.BatchNorm2d(outputs)
            self.downsample = nn.Sequential()
            if stride != 1 or inputs != outputs:
                self.downsample = nn.Sequential(
                    convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)
                )

        def forward(self, x: Any) -> Any:
            y = functional.relu(self.bn1(self.conv1(x)))
            return functional.relu(self.downsample(x) + self.bn2(self.conv2(y)))

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            width = sizes.step_width
            self.conv1, self.bn1 = convolution(3, width, 3), nn.BatchNorm2d(width)
            inputs = width
            for stage in range(4):
                outputs, stride = width * 2**stage, 1 if stage == 0 else 2
                blocks = [Block(inputs, outputs, stride), Block(outputs, outputs, 1)]
                setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
                inputs = outputs
            self.projector = nn.Sequential(nn.Linear(inputs, 512), nn.ReLU(), nn.Linear(512, sizes.dim))

        def forward(self, x: Any) -> Any:
            x = functional.relu(self.bn1(self.conv1(x)))
            for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
                x = stage(x)
            return self.projector(x.mean((2, 3)))

    network = Network()
    state = network.state_dict()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params["encoder"]):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        kernel, name = name.endswith("kernel"), name.replace("kernel", "weight").replace("scale", "weight")
        state[name] = torch.from_numpy(np.array(leaf.transpose(3, 2, 0, 1) if kernel else leaf))
    for place, layer in (("0", "0"), ("2", "1")):
        of = params["heads"]["layers"][layer]
        state[f"projector.{place}.weight"] = torch.from_numpy(np.array(of["kernel"][0].T))
        state[f"projector.{place}.bias"] = torch.from_numpy(np.array(of["bias"][0]))
    network.load_state_dict(state)
    return network


def augmentations(torch: ModuleType, sizes: Sizes) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Ours on a batch, and torchvision's transforms on each image.

    Args:
        torch: the module.
        sizes: of the images.

    Returns:
        Programs that give the normalised views of all images.
    """
    peer("torchvision")
    transforms = importlib.import_module("torchvision.transforms")
    image_module = importlib.import_module("PIL.Image")
    rng = np.random.default_rng(2)
    images = rng.integers(0, 256, (sizes.images, sizes.image_size, sizes.image_size, 3)).astype(np.uint8)
    compiled = jax.jit(contrastive.augment_batch, static_argnames="letters")
    key, ours_images = jax.random.key(0), jnp.asarray(images)
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(sizes.image_size, (0.08, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8),
            transforms.RandomGrayscale(0.2),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    pictures = [image_module.fromarray(image) for image in images]
    return (
        lambda: compiled(key, ours_images, letters="acde"),
        lambda: torch.stack([transform(picture) for picture in pictures]),
    )
