"""A step of Self-NPO's truncated fine-tuning beside the official loop in PyTorch, and beside full simulation.

The peer is the loop of the official ``Self-NPO/train.py`` (arXiv:2505.11777), written again for a network of
ours: the teacher's two branches as two calls, the level of each example drawn by itself, AdamW, clipping, the
moving average parameter by parameter; only its prints are left out. A second peer draws all levels in one
call, which shows how much of the difference is that. Both sides start from the same weights, and before
anything is timed both take the step with the same random numbers: losses and directions (Adam's first moment)
must agree.

Full simulation is what the truncation saves: all S jumps from noise to data, and the student's error at a
uniform level of fresh noise, by the same network, optimiser and average.
"""

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.bench import machine_peaks, paired_ratio, roofline_seconds
from experiments.isolated import available_cores, in_a_process
from experiments.peers import require_same_step, torch_for
from jaxneg.diffusion import (
    SelfNPOState,
    add_noise,
    ddim_grid,
    ddim_sample,
    guide,
    init_self_npo,
    predict_x0,
    pseudo_huber,
    scaled_linear_schedule,
    self_npo_step,
)
from jaxneg.nn import denoising_mlp

JUMPS, GRID_STEPS, HUBER, EMA = 5, 25, 1e-3, 0.999
LEARNING_RATE, MAX_NORM = 1e-4, 1.0
GUIDANCE = {"SD1.5 (w = -1)": -1.0, "SDXL (w = -5)": -5.0}
"""The guidance of the two official scripts. With -1 our teacher needs one of its two branches."""

ABAR = scaled_linear_schedule(1000).alphas_cumprod
TX = optax.chain(optax.clip_by_global_norm(MAX_NORM), optax.adamw(LEARNING_RATE, weight_decay=0.0))


class Setting(NamedTuple):
    """Sizes of the network and of the batch."""

    features: int = 64
    hidden: int = 256
    blocks: int = 2
    classes: int = 10
    batch: int = 256


class Draws(NamedTuple):
    """The random numbers of one step."""

    index: np.ndarray
    noise: np.ndarray
    s: np.ndarray
    again: np.ndarray


def run(repeats: int = 21) -> dict[str, Any]:
    """Times the step.

    Args:
        repeats: pairs of samples for each comparison.

    Returns:
        ``settings``; ``one_core`` and ``all_cores`` by guidance, each with ``official_loop``,
        ``levels_drawn_at_once`` and ``full_simulation``. ``ratio_median`` is the other's time over ours;
        ``step_over_simulation`` our step's time over that of full simulation, beside
        ``evaluations_over_simulation``, the same of counted forward passes (a backward pass counts as two).
        ``losses_apart`` and ``direction_apart`` are relative distances in the step that was compared.
        ``roofline_seconds`` is what the products of the network need at least at the measured peak.

    Raises:
        ImportError: torch is not installed.
        RuntimeError: the two sides do not compute the same.
    """
    torch = torch_for("self_npo")
    setting, cores = Setting(), available_cores()
    return {
        "settings": {
            "torch": torch.__version__,
            "network": f"MLP, {setting.hidden} wide, {setting.blocks} blocks, d = {setting.features}",
            "batch": setting.batch,
            "jumps": JUMPS,
            "grid": GRID_STEPS,
            "loss": f"pseudo-Huber, c = {HUBER}",
            "optimiser": f"AdamW, {LEARNING_RATE}, clipped at {MAX_NORM}",
            "dtype": "float32",
            "cores": f"1, and {len(cores)} for all_cores",
            "torch threads": "one for each core",
            "pairs of samples": repeats,
        },
        "one_core": in_a_process(cores[:1], _times, setting, repeats),
        "all_cores": in_a_process(cores, _times, setting, repeats) if len(cores) > 1 else {},
    }


def batch_of(setting: Setting) -> dict[str, np.ndarray]:
    """Data and labels.

    Example:
        >>> batch_of(Setting(batch=4))["x"].shape
        (4, 64)
    """
    rng = np.random.default_rng(0)
    return {
        "x": rng.standard_normal((setting.batch, setting.features), dtype=np.float32),
        "cond": rng.integers(0, setting.classes, setting.batch).astype(np.int32),
    }


def our_step(setting: Setting, guidance: float) -> tuple[Callable[..., Any], SelfNPOState]:
    """Our step, and its first state.

    Args:
        setting: the sizes.
        guidance: w of the teacher.

    Returns:
        ``step(state, batch) -> (state, metrics)``, to be jitted, and the state before it.
    """
    model = _model(setting)
    step = self_npo_step(
        TX,
        model.apply,
        ABAR,
        ema=EMA,
        null_cond=setting.classes,
        guidance=guidance,
        steps=JUMPS,
        grid_steps=GRID_STEPS,
        huber=HUBER,
    )
    return step, init_self_npo(model.init(jax.random.key(0)), TX, jax.random.key(1))


def simulation_step(setting: Setting, guidance: float) -> Callable[..., Any]:
    """The same step with full simulation in place of the truncated one.

    Args:
        setting: the sizes.
        guidance: w of the teacher.

    Returns:
        ``step(state, batch) -> (state, metrics)``, to be jitted, for the state of `our_step`.
    """
    model, grid = _model(setting), ddim_grid(ABAR, GRID_STEPS)
    null, timesteps = setting.classes, grid.timesteps[::-1]
    alpha, sigma = (jnp.asarray(table, jnp.float32) for table in (ABAR**0.5, (1 - ABAR) ** 0.5))

    def step(state: SelfNPOState, batch: Mapping[str, jax.Array]) -> tuple[SelfNPOState, dict[str, Any]]:
        start_key, time_key, noise_key = jax.random.split(jax.random.fold_in(state.key, state.step), 3)
        x, cond = batch["x"], batch["cond"]

        def teacher(x: jax.Array, t: jax.Array, cond: jax.Array) -> jax.Array:
            return model.apply(state.teacher, x, t, cond)

        # One branch where the other has no weight, as our truncated step does.
        seen = jnp.full_like(cond, null) if guidance == -1 else cond
        sampled = teacher if guidance == -1 else guide(teacher, scale=guidance + 1, null_cond=null)
        noise = jax.random.normal(start_key, x.shape)
        clean = ddim_sample(sampled, noise, timesteps, ABAR, cond=seen)
        s = jax.random.randint(time_key, cond.shape, 0, len(ABAR))
        x_s = add_noise(clean, jax.random.normal(noise_key, x.shape), alpha[s], sigma[s])

        def loss(params: Any) -> jax.Array:
            estimate = predict_x0(model.apply(params, x_s, s, cond), x_s, alpha[s], sigma[s])
            return jnp.mean(pseudo_huber(estimate, clean, HUBER))

        value, grads = jax.value_and_grad(loss)(state.params)
        updates, opt_state = TX.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        average = optax.incremental_update(params, state.teacher, 1 - EMA)
        return SelfNPOState(state.step + 1, params, average, opt_state, state.key), {"loss": value}

    return step


def our_draws(state: SelfNPOState, setting: Setting) -> Draws:
    """The random numbers that our step draws, in its order.

    Args:
        state: the state before the step.
        setting: the sizes.

    Returns:
        The index on the grid, the noise of the start, the level s, and the noise up to it.
    """
    shape = (setting.batch, setting.features)
    keys = jax.random.split(jax.random.fold_in(state.key, state.step), 5)
    index = jax.random.randint(keys[0], shape[:1], 0, GRID_STEPS)
    t = jnp.maximum((index + 1 - JUMPS) * (len(ABAR) // GRID_STEPS) - 1, 0)
    s = jax.random.randint(keys[2], shape[:1], t + 1, len(ABAR))
    noise, again = (jax.random.normal(keys[i], shape) for i in (1, 3))
    return Draws(*(np.array(each) for each in (index, noise, s, again)))


def _model(setting: Setting) -> Any:
    return denoising_mlp(
        setting.features, hidden=setting.hidden, blocks=setting.blocks, classes=setting.classes
    )


class PeerStep:
    """The official loop on a torch network of the same shape.

    Args:
        setting: the sizes.
        guidance: w of the teacher.
        params: our parameters, to start from.
        at_once: whether all levels s are drawn in one call.
    """

    def __init__(self, setting: Setting, guidance: float, params: Any, *, at_once: bool = False) -> None:
        self.torch = torch = torch_for("self_npo")
        torch.set_num_threads(len(available_cores()))
        torch.manual_seed(0)
        self.setting, self.guidance, self.at_once = setting, guidance, at_once
        self.student, self.teacher = (loaded(peer_network(torch, setting), params) for _ in range(2))
        self.teacher.requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.student.parameters(), LEARNING_RATE, weight_decay=0.0)
        batch = batch_of(setting)
        self.x, self.label = torch.from_numpy(batch["x"]), torch.from_numpy(batch["cond"]).long()
        self.null = torch.full_like(self.label, setting.classes)
        self.alpha, self.sigma = (torch.from_numpy(table).float() for table in (ABAR**0.5, (1 - ABAR) ** 0.5))
        grid = ddim_grid(ABAR, GRID_STEPS)
        self.timesteps = torch.from_numpy(grid.timesteps)
        self.abar_prev = torch.from_numpy(np.asarray(grid.alphas_cumprod_prev)).float()

    def __call__(self, draws: Draws | None = None) -> Any:
        """One step; the loss before it. With ``draws``, these are its random numbers."""
        torch = self.torch
        given = None if draws is None else [torch.from_numpy(each) for each in draws]
        x, label = self.x, self.label
        noise = torch.randn_like(x) if given is None else given[1]
        index = torch.randint(0, GRID_STEPS, label.shape) if given is None else given[0].long()
        t = self.timesteps[index]
        x_t = self.alpha[t, None] * x + self.sigma[t, None] * noise
        with torch.no_grad():
            moves = torch.ones_like(t).float()
            for jump in range(JUMPS + 1):
                alpha, sigma = self.alpha[t, None], self.sigma[t, None]
                eps_c, eps_u = self.teacher(x_t, t, label), self.teacher(x_t, t, self.null)
                x0_c, x0_u = (x_t - sigma * eps_c) / alpha, (x_t - sigma * eps_u) / alpha
                target = x0_c + self.guidance * (x0_c - x0_u)
                if jump == JUMPS:
                    break
                eps = eps_c + self.guidance * (eps_c - eps_u)
                abar = self.abar_prev[index, None]
                ahead = abar.sqrt() * target + (1 - abar).sqrt() * eps
                x_t = ahead * moves[:, None] + x_t * (1 - moves[:, None])
                index = index - 1
                moves = torch.where(index < 0, 0.0, moves)
                index = torch.where(index < 0, torch.zeros_like(index), index)
                t = t - len(ABAR) // GRID_STEPS
                t = torch.where(t < 0, torch.zeros_like(t), t)
            s = self._levels(t) if given is None else given[2].long()
            again = torch.randn_like(x) if given is None else given[3]
            alpha, alpha_s = self.alpha[t, None], self.alpha[s, None]
            nsr, nsr_s = self.sigma[t, None] / alpha, self.sigma[s, None] / alpha_s
            x_s = (x_t / alpha + (nsr_s**2 - nsr**2).sqrt() * again) * alpha_s
        estimate = (x_s - self.sigma[s, None] * self.student(x_s, s, label)) / alpha_s
        loss = torch.mean(torch.sqrt((estimate - target) ** 2 + HUBER**2) - HUBER)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), MAX_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        for average, new in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            average.detach().mul_(EMA).add_(new.detach(), alpha=1 - EMA)
        return loss.detach()

    def _levels(self, t: Any) -> Any:
        torch = self.torch
        if self.at_once:
            last = len(ABAR) - 1
            return t + 1 + (torch.rand(t.shape) * (last - t)).long()
        s = torch.empty(len(t), dtype=torch.long)
        for i in range(len(t)):
            s[i] = t[i] + torch.randint(1, (len(ABAR) - 1 - t[i] + 1).item(), (1,), dtype=torch.long)
        return s

    def direction(self) -> list[np.ndarray]:
        """Adam's first moments, of the student's parameters by their names."""
        moments = {name: self.optimizer.state[p]["exp_avg"] for name, p in self.student.named_parameters()}
        return [moments[name].numpy() for name in sorted(moments)]


def peer_network(torch: ModuleType, setting: Setting) -> Any:
    """A torch module like our network, with its names."""
    nn = torch.nn

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(setting.hidden, setting.hidden)
            self.second = nn.Linear(setting.hidden, setting.hidden)

        def forward(self, h: Any, e: Any) -> Any:
            return h + self.second(nn.functional.silu(self.first(nn.functional.silu(h + e))))

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.time = nn.ModuleList(
                [nn.Linear(64, setting.hidden), nn.Linear(setting.hidden, setting.hidden)]
            )
            self.label = nn.Embedding(setting.classes + 1, setting.hidden)
            self.inputs = nn.Linear(setting.features, setting.hidden)
            self.blocks = nn.ModuleList([Block() for _ in range(setting.blocks)])
            self.outputs = nn.Linear(setting.hidden, setting.features)
            self.register_buffer("rates", torch.exp(-np.log(1e4) / 32 * torch.arange(32)))

        def forward(self, x: Any, t: Any, label: Any) -> Any:
            angles = t[:, None] * self.rates
            first, second = self.time
            e = second(nn.functional.silu(first(torch.cat([angles.cos(), angles.sin()], 1))))
            e = e + self.label(label)
            h = self.inputs(x)
            for block in self.blocks:
                h = block(h, e)
            return self.outputs(nn.functional.silu(h))

    return Network()


def named(params: Any) -> dict[str, np.ndarray]:
    """Our parameters by the torch network's names, in its layout."""
    arrays = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator=".").removeprefix("conditioning.")
        array = np.asarray(leaf)
        for ours, theirs in (("kernel", "weight"), ("embedding", "weight")):
            if name.endswith(ours):
                name, array = name.removesuffix(ours) + theirs, array.T if ours == "kernel" else array
        arrays[name] = array
    return dict(sorted(arrays.items()))


def loaded(network: Any, params: Any) -> Any:
    """A network of `peer_network` with our parameters."""
    torch = torch_for("self_npo")
    arrays = {name: torch.from_numpy(np.array(array)) for name, array in named(params).items()}
    network.load_state_dict(arrays | {"rates": network.rates})
    return network


def forward_flops(setting: Setting) -> int:
    """Of the products in one forward pass of a batch."""
    wide = setting.hidden * setting.hidden
    layers = (64 + 2 * setting.features) * setting.hidden + (1 + 2 * setting.blocks) * wide
    return 2 * setting.batch * layers


def _times(setting: Setting, repeats: int) -> dict[str, dict[str, dict[str, float]]]:
    peaks = machine_peaks()
    return {name: _compared(setting, w, repeats, peaks) for name, w in GUIDANCE.items()}


def _compared(
    setting: Setting, guidance: float, repeats: int, peaks: dict[str, float]
) -> dict[str, dict[str, float]]:
    batch = jax.tree.map(jnp.asarray, batch_of(setting))
    step, first = our_step(setting, guidance)
    branches = 1 if guidance == -1 else 2
    evaluations, simulated = branches * (JUMPS + 1) + 3, branches * GRID_STEPS + 3
    roofline = roofline_seconds(
        evaluations * forward_flops(setting), 2 * sum(leaf.nbytes for leaf in jax.tree.leaves(first)), peaks
    )

    def running(step: Callable[..., Any]) -> tuple[Callable[[], Any], Callable[[], Any]]:
        """A program that goes on from where it was, and one that begins anew."""
        compiled, kept = jax.jit(step, donate_argnums=0), [first]

        def once() -> Any:
            kept[0], metrics = compiled(kept[0], batch)
            return kept[0], metrics

        def anew() -> Any:
            kept[0] = jax.tree.map(jnp.copy, first)
            return once()

        return once, anew

    ours, begin = running(step)
    measured = {}
    for name, at_once in (("official_loop", False), ("levels_drawn_at_once", True)):
        peer = PeerStep(setting, guidance, first.params, at_once=at_once)
        state, metrics = begin()
        losses = np.asarray(metrics["loss"]), peer(our_draws(first, setting)).numpy()
        moments = list(named(state.opt_state[1][0].mu).values())
        apart = require_same_step(name, losses, (moments, peer.direction()), 1e-3)
        timing = paired_ratio(ours, peer, repeats)
        measured[name] = {
            **timing,
            **apart,
            "roofline_seconds": roofline,
            "ours_over_roofline": timing["ours_seconds"] / roofline,
        }
    simulation, begin_simulation = running(simulation_step(setting, guidance))
    begin_simulation()
    timing = paired_ratio(ours, simulation, repeats)
    measured["full_simulation"] = {
        **timing,
        "step_over_simulation": 1 / timing["ratio_median"],
        "evaluations_over_simulation": evaluations / simulated,
    }
    return measured
