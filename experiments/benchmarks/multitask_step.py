"""A whole multi-task train step beside LibMTL's: the same ResNet-18, heads, batch and Adam, on the same CPU.

Both sides start from the same weights. Before a method is timed, both take a step, and the losses and the
direction (Adam's first moment, of every parameter) must agree: otherwise nothing is timed. The peer's step is
the inner loop of LibMTL's trainer without its metrics, with LibMTL's own classes for the shared trunk and the
weighting. Their package as a whole imports a module that torchvision has removed, so that only these two
parts of it are loaded, and a PyTorch of today forgets gradients where they expect zeros, which is undone.
pip would replace torch to install LibMTL, so that it is not in the extra ``bench``:
``pip install --no-deps LibMTL==1.1.5``.

Methods of the losses take one backward pass on both sides, those of the gradients one for each task. GradDrop
works on the gradients of the representation, the only form that LibMTL has. The four methods that draw
random numbers are compared by their losses alone.
"""

import gc
import importlib
import importlib.util
import math
import random
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.bench import machine_peaks, paired_ratio, roofline_seconds
from experiments.isolated import available_cores, in_a_process, peak_growth
from experiments.peers import require_same_step
from jaxneg.mtl import multitask
from jaxneg.nn import resnet, resnet_from_torch
from jaxneg.train import SplitLoss, TrainState, init_state, make_step

DEPTH, SIDE, CLASSES = 18, 32, 10
LEARNING_RATE = 1e-4
EPOCH = 1000
"""Steps that make an epoch for the methods that remember epochs: both sides stand in their third."""

JACOBIAN = "sequential"
"""How the task gradients are taken: what is fastest on a CPU."""

REMEMBERED = ("equal", "mgda", "graddrop")
"""The methods whose memory is measured: one backward pass, one for each task, and the representation's."""


class Setting(NamedTuple):
    """How many tasks, features in the first stage, and images in a batch."""

    tasks: int
    width: int
    batch: int

    def __str__(self) -> str:
        return f"T={self.tasks} width={self.width} batch={self.batch}"


SMALL, MIDDLE, MORE_TASKS = Setting(3, 8, 16), Setting(3, 16, 32), Setting(9, 16, 32)


class Compared(NamedTuple):
    """A method on both sides.

    peer: LibMTL's class.
    peer_options: what its ``backward`` takes.
    options: those of `jaxneg.mtl.multitask`.
    jacobian: how `jaxneg.train.make_step` differentiates.
    tolerance: how far the directions may be from each other, relatively; None where they are random.
    tasks: the number of tasks that the peer can take, if not any.
    """

    peer: str
    peer_options: Mapping[str, Any] = {}
    options: Mapping[str, Any] = {}
    jacobian: str = JACOBIAN
    tolerance: float | None = 1e-4
    tasks: int | None = None


def _adam() -> optax.GradientTransformation:
    return optax.adam(LEARNING_RATE)


METHODS: dict[str, Compared] = {
    "equal": Compared("EW", jacobian="weighted"),
    "rlw": Compared("RLW", {"dist": "Normal"}, jacobian="weighted", tolerance=None),
    "dwa": Compared("DWA", {"T": 2.0}, {"steps_per_epoch": EPOCH}, jacobian="weighted"),
    "gls": Compared("GLS", jacobian="weighted"),
    "uw": Compared("UW", {}, {"init": -0.5, "optimizer": _adam()}, jacobian="weighted"),
    "gradnorm": Compared(
        "GradNorm",
        {"alpha": 1.5},
        {"steps_per_epoch": EPOCH, "optimizer": _adam(), "head_weighting": "unit"},
    ),
    "mgda": Compared("MGDA", {"mgda_gn": "none"}),
    "pcgrad": Compared("PCGrad", tolerance=None),
    "gradvac": Compared("GradVac", {"beta": 0.5}, tolerance=None),
    # LibMTL 1.1.5 writes the number of tasks, 3, into CAGrad.
    "cagrad": Compared("CAGrad", {"calpha": 0.5, "rescale": 1}, tasks=3),
    "imtl": Compared("IMTL", {}, {"optimizer": _adam()}),
    "graddrop": Compared("GradDrop", {"leak": 0.0}, jacobian="representation", tolerance=None),
}


def run(repeats: int = 11) -> dict[str, Any]:
    """Times the train step of every method that LibMTL's release has.

    Args:
        repeats: pairs of samples for each method; a third of them where there are more tasks.

    Returns:
        ``settings``; ``one_core``, ``all_cores`` and ``memory`` by setting and method. ``ratio_median`` is
        LibMTL's time over ours. ``losses_apart`` and ``direction_apart`` are relative distances in the step
        that was compared. ``roofline_seconds`` is what the machine needs for our step at least, by XLA's
        count of operations and of bytes, and ``ours_over_roofline`` how far we are from it. Memory is by how
        much the resident set grows at most over a new state and two steps, each side in a process of its own.

    Raises:
        ImportError: torch or LibMTL is not installed.
        RuntimeError: the two sides do not compute the same.
    """
    torch, _ = _peers()
    cores = available_cores()
    fewer = math.ceil(repeats / 3)
    all_cores = {str(MIDDLE): in_a_process(cores, _times, MIDDLE, repeats)} if len(cores) > 1 else {}
    return {
        "settings": {
            "torch": torch.__version__,
            "LibMTL": "1.1.5",
            "network": f"ResNet-{DEPTH} for small images, a linear head for each task",
            "images": f"{SIDE} x {SIDE}, {CLASSES} classes a task",
            "dtype": "float32",
            "optimiser": f"Adam, {LEARNING_RATE}",
            "jacobian": JACOBIAN,
            "cores": f"1, and {len(cores)} for all_cores",
            "pairs of samples": f"{repeats}; {fewer} with T={MORE_TASKS.tasks}",
            "not timed": f"cagrad with T={MORE_TASKS.tasks}: LibMTL 1.1.5 takes three tasks",
        },
        "one_core": {
            str(SMALL): in_a_process(cores[:1], _times, SMALL, repeats),
            str(MIDDLE): in_a_process(cores[:1], _times, MIDDLE, repeats),
            str(MORE_TASKS): in_a_process(cores[:1], _times, MORE_TASKS, fewer),
        },
        "all_cores": all_cores,
        "memory": {
            str(setting): {
                method: {
                    "ours_bytes": in_a_process(cores[:1], _our_memory, method, setting, keep_memory=False),
                    "peer_bytes": in_a_process(cores[:1], _peer_memory, method, setting, keep_memory=False),
                }
                for method in REMEMBERED
            }
            for setting in (MIDDLE, MORE_TASKS)
        },
    }


def batch_of(setting: Setting) -> dict[str, np.ndarray]:
    """Images and a label for each task.

    Args:
        setting: T tasks and B images.

    Returns:
        ``images [B, SIDE, SIDE, 3]`` and ``labels [T, B]``.

    Example:
        >>> batch_of(Setting(2, 8, 16))["labels"].shape
        (2, 16)
    """
    rng = np.random.default_rng(setting.tasks)
    return {
        "images": rng.standard_normal((setting.batch, SIDE, SIDE, 3), dtype=np.float32),
        "labels": rng.integers(0, CLASSES, (setting.tasks, setting.batch)).astype(np.int32),
    }


def remembered_losses(tasks: int) -> np.ndarray:
    """What both sides remember of the two epochs before: ``[T, 2]``, the older one first."""
    return np.random.default_rng(tasks).uniform(1, 3, (tasks, 2)).astype(np.float32)


def our_loss(width: int) -> SplitLoss:
    """The losses of all tasks: cross-entropies of linear heads on the trunk's pooled features."""
    trunk = resnet(DEPTH, width=width, small_images=True)

    def encode(encoder: Any, batch: Any, key: jax.Array) -> jax.Array:  # noqa: ARG001
        return trunk.apply(encoder, batch["images"]).mean((1, 2))

    def head_losses(heads: Any, Z: jax.Array, batch: Any, key: jax.Array) -> tuple[jax.Array, dict]:  # noqa: ARG001
        logits = [Z @ head["kernel"] + head["bias"] for _, head in sorted(heads.items())]
        losses = optax.softmax_cross_entropy_with_integer_labels(jnp.stack(logits), batch["labels"])
        return losses.mean(1), {}

    return SplitLoss(encode, head_losses)


def our_step(method: str, setting: Setting) -> tuple[Callable[..., Any], Callable[[Any], TrainState]]:
    """Our step, and what makes its first state from parameters.

    Args:
        method: a name of `METHODS`.
        setting: the number of tasks and the network's width.

    Returns:
        ``step(state, batch) -> (state, metrics)``, to be jitted, and ``first_state(params) -> state``, in the
        epoch after those of `remembered_losses`.
    """
    compared, tasks = METHODS[method], setting.tasks
    link = multitask(
        method, n_tasks=tasks, shared=lambda path: path.startswith("encoder"), **compared.options
    )
    tx = optax.chain(link, _adam())

    def first_state(params: Any) -> TrainState:
        state = init_state(params, tx, jax.random.key(0))
        first, *others = state.opt_state
        before = jnp.asarray(remembered_losses(tasks))
        if method == "dwa":
            kept = first.method._replace(epochs=before, seen=jnp.full_like(first.method.seen, 2 * EPOCH))
        elif method == "gradnorm":
            kept = first.method._replace(
                total=EPOCH * before[:, 0], seen=jnp.full_like(first.method.seen, EPOCH)
            )
        else:
            kept = first.method
        return state._replace(opt_state=(first._replace(method=kept), *others))

    return make_step(our_loss(setting.width), tx, jacobian=compared.jacobian), first_state  # pyright: ignore[reportArgumentType]


def our_params(setting: Setting) -> Any:
    """Parameters of our own making, where no peer gives them."""
    trunk = resnet(DEPTH, width=setting.width, small_images=True).init(jax.random.key(0))
    head = {"kernel": jnp.zeros((8 * setting.width, CLASSES)), "bias": jnp.zeros(CLASSES)}
    heads = {f"{task:02}": jax.tree.map(jnp.copy, head) for task in range(setting.tasks)}
    return {"encoder": trunk, "heads": heads}


def _peers() -> tuple[ModuleType, ModuleType]:
    """Torch, and LibMTL's package with nothing of it run but what is asked for."""
    try:
        torch = importlib.import_module("torch")
        found = importlib.util.find_spec("LibMTL")
        if found is None:
            raise ImportError("No module named 'LibMTL'")
    except ImportError as error:
        raise ImportError(
            f"the benchmark 'multitask_step' measures against LibMTL ({error}); pip install 'jaxneg[bench]',"
            " and then pip install --no-deps LibMTL==1.1.5"
        ) from error
    return torch, sys.modules.setdefault("LibMTL", importlib.util.module_from_spec(found))


class PeerStep:
    """LibMTL's step on a torch model of the same shape.

    Args:
        method: a name of `METHODS`.
        setting: the tasks, the network and the batch.
    """

    def __init__(self, method: str, setting: Setting) -> None:
        torch, _ = _peers()
        self.width, tasks = setting.width, setting.tasks
        torch.set_num_threads(len(available_cores()))
        torch.manual_seed(tasks)
        random.seed(tasks)
        compared = METHODS[method]
        names = [f"{task:02}" for task in range(tasks)]
        weighting = getattr(importlib.import_module("LibMTL.weighting"), compared.peer)
        trunk = importlib.import_module("LibMTL.architecture").HPS

        class Model(trunk, weighting):
            """As LibMTL's trainer puts them together."""

            def zero_grad_share_params(self) -> None:
                self.encoder.zero_grad(set_to_none=False)

        heads = torch.nn.ModuleDict({name: torch.nn.Linear(8 * self.width, CLASSES) for name in names})
        self.model = Model(
            task_name=names,
            encoder_class=lambda: peer_encoder(torch, setting.width),
            decoders=heads,
            rep_grad=compared.jacobian == "representation",
            multi_input=False,
            device=torch.device("cpu"),
        )
        self.model.init_param()
        self.model.epoch, self.model.train_loss_buffer = 2, remembered_losses(tasks)
        self.optimizer = torch.optim.Adam(self.model.parameters(), LEARNING_RATE)
        self.loss = torch.nn.CrossEntropyLoss()
        self.options = dict(compared.peer_options)
        given = batch_of(setting)
        self.images = torch.from_numpy(given["images"].transpose(0, 3, 1, 2).copy())
        self.labels = {
            name: torch.from_numpy(row.astype(np.int64))
            for name, row in zip(names, given["labels"], strict=True)
        }
        self.zeros = torch.zeros

    def __call__(self) -> Any:
        """One step; the losses before it."""
        predictions = self.model(self.images)
        losses = self.zeros(len(self.labels))
        for number, (name, label) in enumerate(self.labels.items()):
            losses[number] = self.loss(predictions[name], label)
        self.optimizer.zero_grad()
        self.model.backward(losses, **self.options)
        self.optimizer.step()
        return losses.detach()

    def ours(self, values: Mapping[str, Any]) -> Any:
        """Arrays by the torch model's names as our tree of parameters."""
        arrays = {name: array.detach().numpy() for name, array in values.items()}
        buffers = {f"encoder.{name}": b.numpy() for name, b in self.model.encoder.named_buffers()}
        trunk = {
            name.removeprefix("encoder."): array
            for name, array in {**buffers, **arrays}.items()
            if name.startswith("encoder.")
        }
        encoder, _ = resnet_from_torch(trunk, DEPTH, width=self.width, small_images=True)
        heads = {
            name: {
                "kernel": jnp.array(arrays[f"decoders.{name}.weight"].T),
                "bias": jnp.array(arrays[f"decoders.{name}.bias"]),
            }
            for name in self.labels
        }
        return {"encoder": jax.tree.map(jnp.copy, encoder), "heads": heads}

    def params(self) -> Any:
        """The parameters, as ours."""
        return self.ours(dict(self.model.named_parameters()))

    def direction(self) -> Any:
        """Adam's first moments, as ours."""
        moments = {name: self.optimizer.state[p]["exp_avg"] for name, p in self._trained()}
        return self.ours(moments)

    def _trained(self) -> list[tuple[str, Any]]:
        named = self.model.named_parameters()
        return [(name, p) for name, p in named if name.startswith(("encoder.", "decoders."))]


def peer_encoder(torch: ModuleType, width: int) -> Any:
    """A torch module like our trunk, with torchvision's names, which pools its features."""
    nn = torch.nn

    def convolution(inputs: int, outputs: int, size: int, stride: int) -> Any:
        made = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
        nn.init.kaiming_normal_(made.weight, mode="fan_out", nonlinearity="relu")
        return made

    class Block(nn.Module):
        def __init__(self, inputs: int, outputs: int, stride: int) -> None:
            super().__init__()
            self.conv1, self.bn1 = convolution(inputs, outputs, 3, stride), nn.BatchNorm2d(outputs)
            self.conv2, self.bn2 = convolution(outputs, outputs, 3, 1), nn.BatchNorm2d(outputs)
            self.relu = nn.ReLU(inplace=True)
            self.downsample = None
            if stride != 1 or inputs != outputs:
                self.downsample = nn.Sequential(
                    convolution(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)
                )

        def forward(self, x: Any) -> Any:
            y = self.relu(self.bn1(self.conv1(x)))
            y = self.bn2(self.conv2(y))
            y += x if self.downsample is None else self.downsample(x)
            return self.relu(y)

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.bn1 = convolution(3, width, 3, 1), nn.BatchNorm2d(width)
            self.relu = nn.ReLU(inplace=True)
            inputs = width
            for stage in range(4):
                outputs = width * 2**stage
                first = Block(inputs, outputs, 1 if stage == 0 else 2)
                setattr(self, f"layer{stage + 1}", nn.Sequential(first, Block(outputs, outputs, 1)))
                inputs = outputs

        def forward(self, x: Any) -> Any:
            x = self.relu(self.bn1(self.conv1(x)))
            for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
                x = stage(x)
            return x.mean((2, 3))

    return Encoder()


def _times(setting: Setting, repeats: int) -> dict[str, dict[str, float]]:
    peaks = machine_peaks()
    batch = jax.tree.map(jnp.asarray, batch_of(setting))
    measured = {}
    for method, compared in METHODS.items():
        if compared.tasks not in (None, setting.tasks):
            continue
        peer = PeerStep(method, setting)
        step, first_state = our_step(method, setting)
        state = first_state(peer.params())
        compiled = jax.jit(step, donate_argnums=0).lower(state, batch).compile()
        state, metrics = compiled(state, batch)
        losses, peer_losses = np.asarray(metrics["losses"]), peer().numpy()
        directions = (state.opt_state[1][0].mu, peer.direction())
        apart = require_same_step(method, (losses, peer_losses), directions, compared.tolerance)
        kept = [state]

        def ours(compiled: Any = compiled, kept: list[TrainState] = kept) -> Any:
            kept[0], metrics = compiled(kept[0], batch)
            return kept[0], metrics

        timing = paired_ratio(ours, peer, repeats)
        cost: Any = compiled.cost_analysis()
        roofline = roofline_seconds(cost["flops"], cost["bytes accessed"], peaks)
        measured[method] = {
            **timing,
            **apart,
            "roofline_seconds": roofline,
            "ours_over_roofline": timing["ours_seconds"] / roofline,
        }
    return measured


def _our_memory(method: str, setting: Setting) -> int | None:
    batch = jax.tree.map(jnp.asarray, batch_of(setting))
    params = jax.tree.map(np.asarray, our_params(setting))
    step, first_state = our_step(method, setting)
    compiled = jax.jit(step, donate_argnums=0).lower(first_state(params), batch).compile()

    def program() -> None:
        state = first_state(params)
        for _ in range(2):
            state, _ = compiled(state, batch)
        jax.block_until_ready(state)

    return _growth(program)


def _peer_memory(method: str, setting: Setting) -> int | None:
    def program() -> None:
        step = PeerStep(method, setting)
        for _ in range(2):
            step()

    return _growth(program)


def _growth(program: Callable[[], None]) -> int | None:
    """Of a program that has run before, so that what is made once is there."""
    program()
    gc.collect()
    return peak_growth(program)
