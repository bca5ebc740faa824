"""Training on an image benchmark by the papers' recipe: networks, data, steps, evaluation and result.

The recipe is LibMTL's (examples/nyu, cityscapes and office), which DB-MTL, arXiv:2308.12029, and Rep-MTL,
arXiv:2507.21049, take over: Adam at 1e-4 with an L2 penalty of 1e-5 in its gradients. Dense predictions: 200
epochs, the rate halved after 100; the result is the mean over the last ten epochs. Office: 100 epochs; the
result is the test accuracy after the epoch with the best mean validation accuracy.

One thing differs: batch normalisation has no running averages. Before each evaluation its statistics are
taken from training batches (Y. Wu & J. Johnson, arXiv:2105.07576, Section 3).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.vision import dense
from experiments.vision.batches import (
    Example,
    Source,
    evaluation_batches,
    read_ahead,
    side_by_side,
    training_batches,
)
from experiments.vision.cityscapes import cityscapes
from experiments.vision.networks import Network, dense_network, office_network, with_imagenet
from experiments.vision.nyuv2 import augment, nyuv2
from experiments.vision.office import DOMAINS, SPLITS, OfficeImages, split_entries
from experiments.vision.results import SINGLE_TASK
from jaxneg.mtl import METHODS_OF_LOSSES, famo_observe, make_rep_mtl_loss, multitask
from jaxneg.nn import mean_statistics
from jaxneg.train import (
    Precision,
    Target,
    TrainState,
    fit,
    global_batch,
    init_state,
    make_mesh,
    make_step,
    process_shard,
    shard_step,
)

REP_MTL = "rep-mtl"
BY_EPOCH = ("dwa", "stch", "gradnorm")
"""Methods that want to know how many steps an epoch has."""
LAST_EPOCHS = 10


@dataclass(frozen=True)
class Recipe:
    """How a benchmark is trained."""

    data: str = ""
    """The benchmark's folder: of train/ and val/, or of the domains' folders."""
    lists: str = str(SPLITS)
    """Office: LibMTL's folder data_txt, or the table of its split lists."""
    weights: str = ""
    """A safetensors file of torchvision's ImageNet weights, which the papers begin with; empty: at random."""
    shape: tuple[int, int] = (288, 384)
    """Height and width of the images; Office's are squares of the first."""
    classes: int = 13
    """Classes of each segmentation or classification task."""
    depth: int = 50
    """Of the ResNet."""
    width: int = 64
    """Features of the ResNet's first stage."""
    epochs: int = 200
    """Each as many steps as whole batches fit into the data set, or for Office into the largest domain."""
    batch_size: int = 8
    """Images of a batch, for each task if these have images of their own."""
    learning_rate: float = 1e-4
    """Of Adam."""
    halve_every: int = 100
    """Epochs between two halvings of the learning rate; 0 never halves it."""
    weight_decay: float = 1e-5
    """L2 penalty, added to the gradient that Adam sees."""
    augment: bool = False
    """NYUv2: whether to zoom and mirror at random. LibMTL's command for DeepLab does not."""
    statistics_batches: int = 100
    """Training batches that give the statistics of batch normalisation before an evaluation."""
    evaluate_every: int = 1
    """Epochs between two evaluations."""
    checkpoint_every: int = 10
    """Epochs between two checkpoints."""
    seed: int = 0
    """Of parameters, order of the images, augmentation, dropout and the method's draws."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """In which the networks compute; parameters, losses and evaluation are in float32."""
    jacobian: Literal["stacked", "sequential", "representation"] = "sequential"
    """How task gradients are found, see `jaxneg.train.make_step`: "stacked" would gather the activations of a
    sharded batch."""
    remat: bool = False
    """Whether to recompute activations in the backward pass."""
    lam_tsr: float = 0.9
    """Rep-MTL's weight of the entropy."""
    lam_csa: float = 0.9
    """Rep-MTL's weight of the alignment."""
    reg_grad_to: Literal["encoder", "all"] = "encoder"
    """Which parameters Rep-MTL's regularisers move."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further options of the method, see `jaxneg.mtl.multitask`."""
    threads: int = 8
    """That read ahead, each a batch."""


_OFFICE = Recipe(shape=(224, 224), classes=31, depth=18, epochs=100, batch_size=64, halve_every=0)
RECIPES: dict[str, Recipe] = {
    "nyuv2": Recipe(),
    "cityscapes": Recipe(shape=(128, 256), classes=7, batch_size=64),
    "office-31": _OFFICE,
    "office-home": replace(_OFFICE, classes=65),
}
"""The papers' recipes, but for the folders."""


def benchmark_tasks(name: str, recipe: Recipe) -> tuple[dense.Task, ...]:
    """The tasks of a benchmark.

    Args:
        name: of the benchmark.
        recipe: for the number of classes.

    Returns:
        The tasks in the papers' order.

    Raises:
        ValueError: an unknown benchmark.
    """
    if name not in RECIPES:
        raise ValueError(f"name: expected one of {', '.join(RECIPES)}, got {name!r}")
    if name in DOMAINS:
        return tuple(dense.classification(domain, recipe.classes) for domain in DOMAINS[name])
    tasks = (dense.segmentation(recipe.classes), dense.DEPTH, dense.NORMAL)
    return tasks if name == "nyuv2" else tasks[:2]


def higher_is_better(name: str) -> dict[str, bool]:
    """The metrics of a benchmark in the papers' order, and in which direction they are better.

    Args:
        name: of the benchmark.

    Returns:
        "task/metric" to whether higher is better.
    """
    return {
        f"{task.name}/{metric}": better
        for task in benchmark_tasks(name, RECIPES[name])
        for metric, better in zip(task.metrics, task.higher_is_better, strict=True)
    }


def train_benchmark(
    name: str,
    method: str,
    recipe: Recipe,
    run_dir: Path,
    *,
    mesh: Mesh | None = None,
    resume: bool = False,
    progress: bool = True,
) -> dict[str, float]:
    """Trains a network on a benchmark, or one for each task, and measures it.

    Args:
        name: of the benchmark.
        method: "single-task" (a network for each task), "rep-mtl", or a method of `jaxneg.mtl.multitask`.
        recipe: how; ``RECIPES[name]`` with the folders of the data.
        run_dir: the folder of the run: missing, or with ``resume`` that of this run. See `jaxneg.train.fit`.
        mesh: of the devices, with an axis ``data`` that divides the batch; all devices on it where None.
        resume: whether to continue the run in ``run_dir``.
        progress: whether to show a progress bar.

    Returns:
        "task/metric" to its value, percent but for depth's errors and the angles.

    Raises:
        ValueError: an unknown benchmark or method, or an option that does not fit.
        FileNotFoundError: data that are not there.
    """
    mesh = make_mesh({"data": -1}) if mesh is None else mesh
    tasks = benchmark_tasks(name, recipe)
    options = {"mesh": mesh, "resume": resume, "progress": progress}
    if method != SINGLE_TASK:
        return _train(name, method, recipe, tasks, Path(run_dir), **options)
    result: dict[str, float] = {}
    for task in tasks:
        result |= _train(name, "equal", recipe, (task,), Path(run_dir) / task.name, **options)
    return result


def benchmark_target(
    name: str, method: str, recipe: Recipe, mesh: Mapping[str, int], *, tasks: Sequence[str] = ()
) -> Target:
    """The step of `train_benchmark` with the shapes to compile it for; nothing is allocated or read.

    Args:
        name: of the benchmark.
        method: "rep-mtl" or a method of `jaxneg.mtl.multitask`.
        recipe: how.
        mesh: axes by name, with ``data``.
        tasks: names of the only tasks; all where empty. One task is the step of "single-task" networks.

    Returns:
        The step, its state, its batch and how they lie on the mesh.
    """
    chosen = tuple(task for task in benchmark_tasks(name, recipe) if not tasks or task.name in tasks)
    network = _network(name, recipe, chosen)
    step, transform = _step(network, method, recipe, steps_per_epoch=100)

    def begin(key: jax.Array) -> TrainState:
        return init_state(network.init(key), transform, key)

    state = jax.eval_shape(begin, jax.random.key(0))
    shapes = _batch_shapes(name, recipe, chosen)
    return Target(step, state, shapes, mesh, fsdp=None, batch_spec=_batch_spec(name))


def _network(name: str, recipe: Recipe, tasks: tuple[dense.Task, ...]) -> Network:
    if name in DOMAINS:
        return office_network(tasks, recipe.depth, recipe.width)
    return dense_network(tasks, recipe.shape, recipe.depth, recipe.width)


def _batch_spec(name: str) -> P:
    return P(None, "data") if name in DOMAINS else P("data")


def _batch_shapes(name: str, recipe: Recipe, tasks: tuple[dense.Task, ...]) -> dict[str, Any]:
    height, width = recipe.shape
    if name in DOMAINS:
        batch = (len(tasks), recipe.batch_size)
        return {
            "image": jax.ShapeDtypeStruct((*batch, height, height, 3), jnp.float32),
            "label": jax.ShapeDtypeStruct(batch, jnp.int32),
        }
    pixels = (recipe.batch_size, height, width)
    shapes = {
        "image": jax.ShapeDtypeStruct((*pixels, 3), jnp.float32),
        "segmentation": jax.ShapeDtypeStruct(pixels, jnp.int32),
        "depth": jax.ShapeDtypeStruct(pixels, jnp.float32),
    }
    if name == "nyuv2":
        shapes["normal"] = jax.ShapeDtypeStruct((*pixels, 3), jnp.float32)
    return shapes


def _step(
    network: Network, method: str, recipe: Recipe, steps_per_epoch: int
) -> tuple[Callable, optax.GradientTransformation]:
    """The train step of a method, and the transformation that makes its state."""
    # The targets of depth and normals are not rounded.
    precision = Precision(keep="depth|normal") if recipe.precision == "bfloat16" else None
    make = partial(make_step, precision=precision, remat=recipe.remat)
    adam = torch_adam(recipe, steps_per_epoch)
    if method == REP_MTL:
        return make(_rep_mtl_loss(network, recipe), adam), adam
    options = dict(recipe.options)
    if method in BY_EPOCH:
        options.setdefault("steps_per_epoch", steps_per_epoch)
    if method == "famo":
        options.setdefault("after", "same")
    link = multitask(
        method, n_tasks=len(network.tasks), shared=lambda path: path.startswith("encoder"), **options
    )
    transform = optax.chain(link, adam)
    step = make(
        network.loss,
        transform,
        jacobian="weighted" if method in METHODS_OF_LOSSES else recipe.jacobian,
        after_update=famo_observe if options.get("after") == "same" else None,
    )
    return step, transform


def torch_adam(recipe: Recipe, steps_per_epoch: int) -> optax.GradientTransformation:
    """Adam as torch has it: the L2 penalty is added to the gradient, before the moments are taken.

    Args:
        recipe: for the rates.
        steps_per_epoch: after which the learning rate counts an epoch.

    Returns:
        The transformation.
    """
    rate: Any = recipe.learning_rate
    if recipe.halve_every:
        rate = optax.exponential_decay(rate, recipe.halve_every * steps_per_epoch, 0.5, staircase=True)
    return optax.chain(optax.add_decayed_weights(recipe.weight_decay), optax.adam(rate))


def _rep_mtl_loss(network: Network, recipe: Recipe) -> Callable:
    """Rep-MTL on the logarithms of the losses. The key travels with the batch: dropout needs it."""
    loss = make_rep_mtl_loss(
        lambda encoder, given: network.loss.encode(encoder, *given),
        lambda heads, Z, given: network.loss.head_losses(heads, Z, *given)[0],
        reg_grad_to=recipe.reg_grad_to,
        log_transform=True,
        own_inputs=network.loss.own_inputs,
        lam_tsr=recipe.lam_tsr,
        lam_csa=recipe.lam_csa,
        **recipe.options,
    )
    return lambda params, batch, key: loss(params, (batch, key), None)


def _sources(name: str, recipe: Recipe, tasks: tuple[dense.Task, ...], split: Any) -> Sequence[Source]:
    """One source for all tasks, or one for each."""
    root = Path(recipe.data)
    if name == "nyuv2":
        return [nyuv2(root, split, recipe.shape)]
    if name == "cityscapes":
        return [cityscapes(root, split, recipe.classes, recipe.shape)]  # pyright: ignore[reportArgumentType]
    lists = Path(recipe.lists)
    return [
        OfficeImages(root, split_entries(name, task.name, split, lists), recipe.shape[0]) for task in tasks
    ]


def _train(
    name: str,
    method: str,
    recipe: Recipe,
    tasks: tuple[dense.Task, ...],
    run_dir: Path,
    *,
    mesh: Mesh,
    resume: bool,
    progress: bool,
) -> dict[str, float]:
    own_inputs = name in DOMAINS
    shard = process_shard(NamedSharding(mesh, P("data")))
    joined = side_by_side if own_inputs else lambda datasets: datasets[0]

    sources = _sources(name, recipe, tasks, "train")
    augmented = augment if recipe.augment and name == "nyuv2" else None
    training = joined(
        [training_batches(source, recipe.batch_size, recipe.seed, shard, augmented) for source in sources]
    )
    steps_per_epoch = max(len(source) for source in sources) // recipe.batch_size

    held_out = {}
    for split in ("val", "test") if own_inputs else ("val",):
        sources = _sources(name, recipe, tasks, split)
        count = max(-(-len(source) // recipe.batch_size) for source in sources)
        held_out[split] = joined(
            [evaluation_batches(source, recipe.batch_size, shard, count) for source in sources]
        )

    network = _network(name, recipe, tasks)
    step, transform = _step(network, method, recipe, steps_per_epoch)
    key = jax.random.key(recipe.seed)
    params = jax.jit(network.init)(key)
    if recipe.weights:
        params = with_imagenet(params, recipe.depth, Path(recipe.weights))
    state = init_state(params, transform, key)
    shapes = _batch_shapes(name, recipe, tasks)
    # A few hundred megabytes of parameters and moments: each device keeps them all.
    sharded = shard_step(step, mesh, state, shapes, fsdp=None, batch_spec=_batch_spec(name))
    first = training[: min(recipe.statistics_batches, steps_per_epoch)]
    history = fit(
        sharded,
        sharded.place_state(state),
        read_ahead(training, recipe.threads),
        steps=recipe.epochs * steps_per_epoch,
        run_dir=run_dir,
        config={"benchmark": name, "method": method, "tasks": [t.name for t in tasks], **asdict(recipe)},
        resume=resume,
        evaluate=_evaluation(network, first, held_out, sharded.batch_shardings, mesh, recipe.threads),
        evaluate_every=recipe.evaluate_every * steps_per_epoch,
        checkpoint_every=recipe.checkpoint_every * steps_per_epoch,
        progress=progress,
    ).history
    return _result(tasks, [record for record in history if any(k.startswith("eval/") for k in record)])


def _evaluation(
    network: Network,
    training: grain.MapDataset[Example],
    held_out: Mapping[str, grain.MapDataset[Example]],
    shardings: Any,
    mesh: Mesh,
    threads: int,
) -> Callable[[TrainState], dict[str, float]]:
    """``(state) ->`` the metrics of each split by "split/task/metric"."""
    everywhere = NamedSharding(mesh, P())
    statistics = jax.jit(network.statistics, out_shardings=everywhere)
    tallies = jax.jit(network.tallies, out_shardings=everywhere)

    def evaluate(state: TrainState) -> dict[str, float]:
        params = state.params
        found = [statistics(params, global_batch(b, shardings)) for b in read_ahead(training, threads)]
        population = mean_statistics(found)
        result = {}
        for split, dataset in held_out.items():
            all_tallies = [
                jax.device_get(tallies(params, population, global_batch(batch, shardings)))
                for batch in read_ahead(dataset, threads)
            ]
            for task in network.tasks:
                scores = task.scores([tally[task.name] for tally in all_tallies])
                result |= {f"{split}/{task.name}/{m}": s for m, s in zip(task.metrics, scores, strict=True)}
        return result

    return evaluate


def _result(tasks: tuple[dense.Task, ...], evaluations: list[dict[str, Any]]) -> dict[str, float]:
    """Of the best epoch by the validation images where there are test images, else of the last ten."""
    names = [f"{task.name}/{metric}" for task in tasks for metric in task.metrics]
    if any(key.startswith("eval/test/") for key in evaluations[-1]):
        best = max(evaluations, key=lambda e: np.mean([e[f"eval/val/{name}"] for name in names]))
        return {name: best[f"eval/test/{name}"] for name in names}
    last = evaluations[-LAST_EPOCHS:]
    return {name: float(np.mean([e[f"eval/val/{name}"] for e in last])) for name in names}
