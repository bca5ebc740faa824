"""The paper's own benchmarks at the published code's settings: Digit-Five, and the reviews as published.

Every training keeps checkpoints of its round and goes on bit for bit where it was stopped. Clients are spread
over as many devices as divide them.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.fedka.digit_five import load_digit_five
from experiments.fedka.network import convolutional, perceptron
from experiments.fedka.pod import EVALUATED, RULES, published
from experiments.fedka.results import Part, part_of
from experiments.fedka.reviews import load_processed_acl
from experiments.fedka.sources import Domains
from experiments.fedka.training import Method, federated_domains, kept
from experiments.run_dir import RunDir
from jaxneg.federated import FedKAConfig, FedKANetwork, init_fedka, make_fedka_step
from jaxneg.train import fit, make_mesh, shardings

BENCHMARKS = ("digit-five", "amazon")
FOLDERS = {"digit-five": "Digit-Five", "amazon": "processed_acl"}
"""Where each lies in the folder of the data."""
LOADERS: dict[str, Callable[[Path], Domains]] = {"digit-five": load_digit_five, "amazon": load_processed_acl}
CHECKPOINT_EVERY = 20


def run_benchmarks(
    names: Sequence[str], methods: Sequence[Method], data_dir: Path, rounds: int, seeds: int, run_dir: RunDir
) -> tuple[list[Part], list[str]]:
    """Trains every method on the benchmarks whose data are there.

    Args:
        names: of `BENCHMARKS`.
        methods: the methods.
        data_dir: with the folders ``Digit-Five`` and ``processed_acl``.
        rounds: the published code has 200.
        seeds: runs of each method.
        run_dir: keeps what is done.

    Returns:
        The results of each, and notes on what is missing.
    """
    parts, notes = [], []
    for name in names:
        folder = data_dir / FOLDERS[name]
        if not folder.is_dir():
            notes.append(f"There is no folder {folder}: {name} was left out (--data-dir says where to look).")
            continue
        domains = LOADERS[name](folder)
        found = _trained(name, domains, methods, published(rounds), seeds, run_dir)
        parts.append(part_of(domains, methods, found))
    return parts, notes


def _trained(
    name: str,
    domains: Domains,
    methods: Sequence[Method],
    sizes: FedKAConfig,
    seeds: int,
    run_dir: RunDir,
) -> dict[tuple[Method, int], dict[str, np.ndarray]]:
    """Each training is a stage of the run; one that was stopped goes on from its checkpoint."""
    network = convolutional(28) if name == "digit-five" else perceptron(domains.parts[0].x.shape[1], 2)
    cases = [(method, place) for place in range(len(domains.parts)) for method in methods]

    def train(method: Method, place: int, seed: int) -> dict[str, np.ndarray]:
        stage = f"{name}-{method.stage}-{domains.parts[place].name}-{seed}"
        folder = run_dir.path / "benchmarks" / stage
        return run_dir.stage(
            stage, lambda: train_benchmark(domains, place, method, sizes, network, seed, folder)
        )

    found = {}
    for method, place in run_dir.progress(cases, domains.title):
        runs = [train(method, place, seed) for seed in range(seeds)]
        found[method, place] = {key: np.stack([run[key] for run in runs]) for key in runs[0]}
    return found


def train_benchmark(
    domains: Domains,
    target: int,
    method: Method,
    sizes: FedKAConfig,
    network: FedKANetwork,
    seed: int,
    folder: Path,
    devices: Sequence[Any] | None = None,
) -> dict[str, np.ndarray]:
    """Trains once with one domain as the target, or goes on with a training that was stopped.

    Args:
        domains: all of them.
        target: the place of the target.
        method: the method.
        sizes: of rounds and batches.
        network: the network.
        seed: of parameters, batches and dropout.
        folder: of the run.
        devices: all by default; as many are used as divide the clients.

    Returns:
        As `experiments.fedka.training.train`, without the axis of the seeds and without test examples.
    """
    cfg, data = method.config(sizes), federated_domains(domains, target)
    if data.eval_x is not None and data.eval_y is not None and len(data.eval_x) > EVALUATED:
        rows = np.random.default_rng(0).permutation(len(data.eval_x))[:EVALUATED]
        data = data._replace(eval_x=data.eval_x[rows], eval_y=data.eval_y[rows])
    clients = data.source_x.shape[0]
    devices = jax.devices() if devices is None else devices
    used = math.gcd(clients, len(devices))
    mesh = make_mesh({"client": used}, devices=devices[:used])
    placed = jax.device_put(data, shardings(data, mesh, RULES))
    state = init_fedka(network, clients, cfg, jax.random.key(seed))
    state = jax.device_put(state, shardings(state, mesh, RULES))
    program = _program(cfg, network, mesh, clients)
    everybody = grain.MapDataset.source([{"participating": np.ones(clients, bool)}]).repeat()
    result = fit(
        lambda state, batch: program(state, placed._replace(participating=batch["participating"])),
        state,  # pyright: ignore[reportArgumentType]
        everybody,
        steps=cfg.rounds,
        run_dir=folder,
        config={
            "method": method.name,
            "target": domains.parts[target].name,
            "seed": seed,
            "rounds": cfg.rounds,
        },
        resume=True,
        batch_sharding={"participating": NamedSharding(mesh, P("client"))},
        log_every=1,
        checkpoint_every=CHECKPOINT_EVERY,
    )
    names = (name for name in result.history[0] if name != "step")
    history = {name: np.array([record[name] for record in result.history]) for name in names}
    return kept(history, f"{method.name} on {domains.parts[target].name}")


@lru_cache
def _program(cfg: FedKAConfig, network: FedKANetwork, mesh: Mesh, clients: int) -> Callable[..., Any]:
    """A round, compiled once for all seeds and targets of the same shapes.

    A state that came back elsewhere than it went in would compile the next round anew.
    """
    state = jax.eval_shape(lambda key: init_fedka(network, clients, cfg, key), jax.random.key(0))
    return jax.jit(
        make_fedka_step(cfg, network=network, mesh=mesh),
        out_shardings=(shardings(state, mesh, RULES), None),
        donate_argnums=0,
    )
