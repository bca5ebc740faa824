"""A step of PG-SB beside SwiftBrush's loop in PyTorch: the student's update, then that of the adapters.

The peer is the loop of SwiftBrush (arXiv:2312.05239) with the random guidance scale of PG-SB
(arXiv:2412.02687), written for a network of ours: four calls without gradient, a backward pass of the
student, one of the adapters, which are branches of their own beside frozen layers as peft has them, Adam and
clipping for both. Both sides start from the same weights, and before anything is timed both take the step
with the same random numbers: losses and directions (Adam's first moments) must agree.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import machine_peaks, paired_ratio, roofline_seconds
from experiments.benchmarks.self_npo import Setting, forward_flops, loaded, named, peer_network
from experiments.isolated import available_cores, in_a_process
from experiments.peers import require_same_step, torch_for
from jaxneg.diffusion import PGSBConfig, PGSBState, init_pgsb, make_pgsb_step, scaled_linear_schedule
from jaxneg.nn import denoising_mlp

SETTING = Setting(features=64, hidden=192, blocks=3, classes=10, batch=128)
ABAR = scaled_linear_schedule(1000).alphas_cumprod
ABAR_T = 0.0047
"""Alpha-bar at which the student starts."""
LOW, HIGH = 20, 981
"""Timesteps of the distillation, the last one excluded."""
FORWARD_PASSES = 1 + 4 + 1 + 2 * (1 + 1)
"""Of a step: the student, four scores, the adapters; a backward pass counts as two, of each of both."""


class Draws(NamedTuple):
    """The random numbers of one step."""

    z: np.ndarray
    t: np.ndarray
    noise: np.ndarray
    kappa: np.ndarray
    lora_t: np.ndarray
    lora_noise: np.ndarray


def run(repeats: int = 21) -> dict[str, Any]:
    """Times the step.

    Args:
        repeats: pairs of samples.

    Returns:
        ``settings``; ``one_core`` and ``all_cores``: ``ratio_median`` is the peer's time over ours,
        ``steps_per_second`` ours, ``losses_apart`` and ``direction_apart`` relative distances in the step
        that was compared, ``roofline_seconds`` what the products of the networks need at least at the
        measured peak.

    Raises:
        ImportError: torch is not installed.
        RuntimeError: the two sides do not compute the same.
    """
    torch = torch_for("pgsb")
    cores, cfg = available_cores(), configuration(SETTING)
    return {
        "settings": {
            "torch": torch.__version__,
            "network": f"MLP, {SETTING.hidden} wide, {SETTING.blocks} blocks, d = {SETTING.features}",
            "batch": SETTING.batch,
            "adapters": f"rank {cfg.lora_rank}, of every layer",
            "guidance scale": f"U({cfg.kappa_min}, {cfg.kappa_max}), one for each sample",
            "dtype": "float32",
            "cores": f"1, and {len(cores)} for all_cores",
            "torch threads": "one for each core",
            "pairs of samples": repeats,
        },
        "one_core": in_a_process(cores[:1], times, SETTING, repeats),
        "all_cores": in_a_process(cores, times, SETTING, repeats) if len(cores) > 1 else {},
    }


def configuration(setting: Setting) -> PGSBConfig:
    """The choices of both sides; every step of the adapters sees its prompts."""
    return PGSBConfig(
        shape=(setting.features,),
        abar_T=ABAR_T,
        lora_match=r"kernel$",
        lora_rank=32,
        lora_gamma=64.0,
        student_lr=3e-5,
        lora_lr=2e-3,
        drop=0.0,
    )


def our_step(setting: Setting) -> tuple[Callable[..., Any], PGSBState]:
    """Our step, and a state whose adapters do something already.

    Args:
        setting: the sizes.

    Returns:
        ``step(state, batch) -> (state, metrics)``, to be jitted, and the state before it.
    """
    init, apply = denoising_mlp(
        setting.features, hidden=setting.hidden, blocks=setting.blocks, classes=setting.classes
    )
    cfg = configuration(setting)
    step = make_pgsb_step(apply, apply, cfg, null_cond=setting.classes)
    state = init_pgsb(jax.random.key(1), init(jax.random.key(0)), cfg)
    for number, factors in enumerate(state.params["lora"].values()):
        factors["b"] = 0.02 * jax.random.normal(jax.random.key(number), factors["b"].shape)
    return step, state


def labels(setting: Setting) -> np.ndarray:
    """The prompts of every step.

    Example:
        >>> labels(Setting(classes=3, batch=5)).tolist()
        [0, 1, 2, 0, 1]
    """
    return np.arange(setting.batch, dtype=np.int32) % setting.classes


def our_draws(state: PGSBState, setting: Setting) -> Draws:
    """The random numbers that our step draws, in its order.

    Args:
        state: the state before the step.
        setting: the sizes.

    Returns:
        Noise of the student, timestep and noise of the score, guidance scales, timestep and noise of the
        adapters.
    """
    cfg, shape = configuration(setting), (setting.batch, setting.features)
    keys = jax.random.split(jax.random.fold_in(state.key, state.step), 5)
    z = jax.random.normal(keys[0], shape)
    lora_key, _ = jax.random.split(jax.random.split(keys[2], cfg.ttur)[0])
    drawn: list[jax.Array] = []
    for key, low, high in ((keys[3], LOW, HIGH), (lora_key, 0, len(ABAR))):
        of_time, of_noise = jax.random.split(key)
        drawn += [
            jax.random.randint(of_time, shape[:1], low, high),
            jax.random.normal(of_noise, shape),
        ]
    kappa = jax.random.uniform(keys[4], shape[:1], minval=cfg.kappa_min, maxval=cfg.kappa_max)
    t, noise, lora_t, lora_noise = drawn
    return Draws(*(np.array(each) for each in (z, t, noise, kappa, lora_t, lora_noise)))


class PeerStep:
    """SwiftBrush's loop on torch networks of the same shape.

    Args:
        setting: the sizes.
        state: our state, to start from.
    """

    def __init__(self, setting: Setting, state: PGSBState) -> None:
        self.torch = torch = torch_for("pgsb")
        torch.manual_seed(0)
        self.setting, self.cfg = setting, configuration(setting)
        self.student, self.teacher, self.adapted = (
            loaded(peer_network(torch, setting), state.params["teacher"]) for _ in range(3)
        )
        self.teacher.requires_grad_(False)
        self.factors = _with_adapters(torch, self.adapted, state.params["lora"], self.cfg)
        adam = torch.optim.Adam
        self.student_optimizer = adam(self.student.parameters(), self.cfg.student_lr)
        self.lora_optimizer = adam(self.factors.values(), self.cfg.lora_lr)
        self.label = torch.from_numpy(labels(setting)).long()
        self.null = torch.full_like(self.label, setting.classes)
        self.last = torch.full_like(self.label, len(ABAR) - 1)
        self.alpha, self.sigma = (torch.from_numpy(root).float() for root in (ABAR**0.5, (1 - ABAR) ** 0.5))

    def __call__(self, draws: Draws | None = None) -> tuple[Any, Any]:
        """One step; both losses before it. With ``draws``, these are its random numbers."""
        torch = self.torch
        z, t, noise, kappa, lora_t, lora_noise = (
            self._drawn() if draws is None else [torch.from_numpy(each) for each in draws]
        )
        eps = self.student(z, self.last, self.label)
        x = (z - (1 - ABAR_T) ** 0.5 * eps) / ABAR_T**0.5
        with torch.no_grad():
            x_t = self.alpha[t, None] * x + self.sigma[t, None] * noise
            guided = []
            for network in (self.teacher, self.adapted):
                told, untold = network(x_t, t, self.label), network(x_t, t, self.null)
                guided.append(untold + kappa[:, None] * (told - untold))
            gradient = torch.nan_to_num(self.sigma[t, None] ** 2 * (guided[0] - guided[1]))
            target = x - gradient
        loss = 0.5 * torch.nn.functional.mse_loss(x, target)
        self._update(self.student_optimizer, self.student.parameters(), loss)
        x = x.detach()
        alpha = self.alpha[lora_t, None]
        pred = self.adapted(alpha * x + self.sigma[lora_t, None] * lora_noise, lora_t, self.label)
        lora_loss = torch.nn.functional.mse_loss(alpha * pred, alpha * lora_noise)
        self._update(self.lora_optimizer, list(self.factors.values()), lora_loss)
        return loss.detach(), lora_loss.detach()

    def directions(self) -> list[np.ndarray]:
        """Adam's first moments: of the student by its names, then of the adapters by theirs."""
        student = {name: self.student_optimizer.state[p] for name, p in self.student.named_parameters()}
        lora = {name: self.lora_optimizer.state[p] for name, p in self.factors.items()}
        return [each[name]["exp_avg"].numpy() for each in (student, lora) for name in sorted(each)]

    def _drawn(self) -> list[Any]:
        torch, batch = self.torch, self.setting.batch
        noises = torch.randn(3, batch, self.setting.features)
        kappa = torch.empty(batch).uniform_(self.cfg.kappa_min, self.cfg.kappa_max)
        t, lora_t = torch.randint(LOW, HIGH, (batch,)), torch.randint(0, len(ABAR), (batch,))
        return [noises[0], t, noises[1], kappa, lora_t, noises[2]]

    def _update(self, optimizer: Any, parameters: Any, loss: Any) -> None:
        loss.backward()
        self.torch.nn.utils.clip_grad_norm_(parameters, self.cfg.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def our_directions(state: PGSBState) -> list[np.ndarray]:
    """Adam's first moments in the order of `PeerStep.directions`.

    Args:
        state: after the step.

    Returns:
        Arrays.
    """
    student, lora = (state.opt_state[name][1][0].mu[name] for name in ("student", "lora"))
    of_lora = {f"{path}/{name}": lora[path][name] for path in lora for name in lora[path]}
    return [*named(student).values(), *(np.asarray(of_lora[name]) for name in sorted(of_lora))]


def times(setting: Setting, repeats: int) -> dict[str, float]:
    """Times both sides on the cores of this process.

    Args:
        setting: the sizes.
        repeats: pairs of samples.

    Returns:
        What `run` says.
    """
    step, first = our_step(setting)
    peer, draws = PeerStep(setting, first), our_draws(first, setting)
    roofline = roofline_seconds(
        FORWARD_PASSES * forward_flops(setting),
        2 * sum(leaf.nbytes for leaf in jax.tree.leaves(first.params)),
        machine_peaks(),
    )
    batch = {"cond": jnp.asarray(labels(setting))}
    compiled = jax.jit(step, donate_argnums=0)
    kept, metrics = compiled(first, batch)
    ours = np.array([metrics["vsd_loss"], metrics["lora_loss"]])
    theirs = np.array([each.numpy() for each in peer(draws)])
    directions = our_directions(kept), peer.directions()
    apart = require_same_step("pgsb", (ours, theirs), directions, 1e-3)
    current = [kept]

    def once() -> Any:
        current[0], metrics = compiled(current[0], batch)
        return current[0], metrics

    timing = paired_ratio(once, peer, repeats)
    return {
        **timing,
        **apart,
        "steps_per_second": 1 / timing["ours_seconds"],
        "roofline_seconds": roofline,
        "ours_over_roofline": timing["ours_seconds"] / roofline,
    }


def _with_adapters(torch: ModuleType, network: Any, lora: Any, cfg: PGSBConfig) -> dict[str, Any]:
    """Puts adapters beside the layers of a network, which is frozen; their factors by name."""
    network.requires_grad_(False)
    scale, factors = cfg.lora_gamma / cfg.lora_rank, {}

    class Adapted(torch.nn.Module):
        def __init__(self, base: Any, a: Any, b: Any) -> None:
            super().__init__()
            self.base, self.a, self.b = base, a, b

        def forward(self, x: Any) -> Any:
            return self.base(x) + scale * ((x @ self.a) @ self.b)

    for path, pair in lora.items():
        a, b = (torch.nn.Parameter(torch.from_numpy(np.array(pair[name]))) for name in ("a", "b"))
        name = path.removeprefix("conditioning/").removesuffix("/kernel").replace("/", ".")
        parent, _, child = name.rpartition(".")
        setattr(network.get_submodule(parent), child, Adapted(network.get_submodule(name), a, b))
        factors |= {f"{path}/a": a, f"{path}/b": b}
    return factors
