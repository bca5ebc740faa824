"""A diffusion transformer beside the same one in PyTorch: train steps and DDIM samples, on the same CPU.

The peer is the DiT of arXiv:2212.09748 in plain PyTorch: one product for query, key and value,
`scaled_dot_product_attention`, AdamW in its fused form; as it stands, and through `torch.compile`. Both sides
start from the same weights, and nothing is timed before the network's output, the loss, the direction of the
step (AdamW's first moment) and the samples agree.

Our train step is gradient, update and new parameters in one program, as the peer's. That of
`jaxneg.train.make_step`, which also measures the norms of gradient and update, is timed beside them. Our
samples are `jaxneg.diffusion.ddim_sample`, all steps in one program; the peer's sampler is a loop of the same
formula.
"""

import gc
import math
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.bench import machine_peaks, median_seconds, paired_ratio
from experiments.isolated import available_cores, in_a_process, peak_growth
from experiments.peers import distance, require_same_step, torch_for
from jaxneg.diffusion import ddim_sample, denoising_loss, linear_schedule, sampling_timesteps
from jaxneg.nn import DiTConfig, dit
from jaxneg.nn.dit import plane_positions
from jaxneg.train import init_state, make_step

CLASSES, CHANNELS, PATCH, RATIO = 10, 4, 2, 4
LEARNING_RATE = 1e-4
STEPS = 50
ABAR = linear_schedule(1000).alphas_cumprod
PEERS = ("eager", "compiled")
TX = optax.adamw(LEARNING_RATE, weight_decay=0.0)


class Setting(NamedTuple):
    """Side of the latents, sizes of the network, and latents in a batch."""

    size: int
    width: int
    layers: int
    heads: int
    batch: int

    def __str__(self) -> str:
        return f"{self.size}x{self.size} width={self.width} layers={self.layers} batch={self.batch}"

    @property
    def config(self) -> DiTConfig:
        """Our configuration."""
        return DiTConfig(
            size=self.size,
            channels=CHANNELS,
            patch=PATCH,
            width=self.width,
            layers=self.layers,
            heads=self.heads,
            classes=CLASSES,
            mlp_ratio=RATIO,
        )


FEW, MANY, WIDE = Setting(16, 192, 6, 3, 2), Setting(16, 192, 6, 3, 16), Setting(32, 384, 4, 6, 2)


def run(repeats: int = 7) -> dict[str, Any]:
    """Times train steps and samples, and measures the memory of train steps.

    Args:
        repeats: pairs of samples for each comparison.

    Returns:
        ``settings``; ``one_core`` and ``all_cores`` by setting, and in it ``train`` and ``sample`` by peer,
        and ``make_step_seconds``, the time of a step of the training engine.
        ``ratio_median`` is the peer's time over ours, and ``images_per_second`` counts latents that are
        trained on or drawn. ``ours_over_roofline`` is how far we are from what the machine needs for our
        program at least, by XLA's count of operations. ``train_memory_given_back`` are train steps in a
        process as any other is, where XLA's intermediate arrays go back to the system after each step and are
        mapped again in the next; in all other timings they stay (`experiments.isolated`). ``memory`` is by
        how much the resident set grows at most over a new state and two train steps, each side in a process
        of its own.

    Raises:
        ImportError: torch is not installed.
        RuntimeError: the two sides do not compute the same.
    """
    torch, cores = torch_for("diffusion"), available_cores()
    return {
        "settings": {
            "torch": torch.__version__,
            "network": f"DiT, patches of {PATCH}, {CHANNELS} channels, {CLASSES} classes",
            "optimiser": f"AdamW, {LEARNING_RATE}",
            "sampler": f"DDIM, {STEPS} steps",
            "dtype": "float32",
            "cores": f"1, and {len(cores)} for all_cores",
            "torch threads": "one for each core",
            "pairs of samples": repeats,
        },
        "one_core": {str(s): in_a_process(cores[:1], _times, s, repeats) for s in (FEW, MANY, WIDE)},
        "all_cores": {str(s): in_a_process(cores, _times, s, repeats) for s in (FEW, MANY) if len(cores) > 1},
        "train_memory_given_back": {
            str(MANY): in_a_process(cores[:1], _train_times, MANY, repeats, keep_memory=False)
        },
        "memory": {
            str(s): {
                "ours_bytes": in_a_process(cores[:1], _our_memory, s, keep_memory=False),
                **{
                    f"{peer}_bytes": in_a_process(cores[:1], _peer_memory, s, peer, keep_memory=False)
                    for peer in PEERS
                },
            }
            for s in (MANY, WIDE)
        },
    }


def batch_of(setting: Setting) -> dict[str, np.ndarray]:
    """Latents, noise, timesteps and labels.

    Example:
        >>> batch_of(Setting(16, 192, 6, 3, 2))["x0"].shape
        (2, 16, 16, 4)
    """
    rng = np.random.default_rng(0)
    shape = (setting.batch, setting.size, setting.size, CHANNELS)
    return {
        "x0": rng.standard_normal(shape, dtype=np.float32),
        "noise": rng.standard_normal(shape, dtype=np.float32),
        "t": rng.integers(0, len(ABAR), setting.batch).astype(np.int32),
        "label": rng.integers(0, CLASSES, setting.batch).astype(np.int32),
    }


def our_loss(setting: Setting) -> Callable[..., tuple[jax.Array, dict[str, Any]]]:
    """Our loss, as `jaxneg.train.make_step` takes it: ``(params, batch, key) -> (loss, {})``."""
    model = dit(setting.config)

    def loss_fn(params: Any, batch: Any, key: jax.Array | None = None) -> tuple[jax.Array, dict[str, Any]]:  # noqa: ARG001
        def denoise(x: jax.Array, t: jax.Array, label: jax.Array) -> jax.Array:
            return model.apply(params, x, t, label)

        losses = denoising_loss(denoise, batch["x0"], batch["t"], batch["noise"], ABAR, cond=batch["label"])
        return losses.mean(), {}

    return loss_fn


def our_step(setting: Setting) -> Callable[..., tuple[Any, Any, jax.Array]]:
    """Our train step, to be jitted: ``(params, opt_state, batch) -> (params, opt_state, loss)``."""
    loss_fn = our_loss(setting)

    def step(params: Any, opt_state: Any, batch: Any) -> tuple[Any, Any, jax.Array]:
        (loss, _), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, batch)
        updates, opt_state = TX.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    return step


def our_samples(setting: Setting) -> Callable[..., jax.Array]:
    """Our sampler, to be jitted: ``(params, x_T, label) -> x_0``."""
    model, timesteps = dit(setting.config), sampling_timesteps(len(ABAR), STEPS)

    def sample(params: Any, x_T: jax.Array, label: jax.Array) -> jax.Array:
        def denoise(x: jax.Array, t: jax.Array, cond: jax.Array) -> jax.Array:
            return model.apply(params, x, t, cond)

        return ddim_sample(denoise, x_T, timesteps, ABAR, cond=label)

    return sample


class Peer:
    """The same network, train step and sampler in PyTorch.

    Args:
        setting: the sizes.
        kind: one of `PEERS`.
    """

    def __init__(self, setting: Setting, kind: str) -> None:
        self.torch = torch = torch_for("diffusion")
        torch.set_num_threads(len(available_cores()))
        torch.manual_seed(0)
        self.setting, self.network = setting, peer_network(torch, setting)
        with torch.no_grad():
            for parameter in self.network.parameters():  # no gate is shut, as after some training
                parameter.normal_(std=0.05)
        self.forward = torch.compile(self.network) if kind == "compiled" else self.network
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), LEARNING_RATE, weight_decay=0.0, fused=True
        )
        batch = batch_of(setting)
        self.x0, self.noise = (self._image(batch[name]) for name in ("x0", "noise"))
        self.t, self.label = (torch.from_numpy(batch[name]).long() for name in ("t", "label"))
        self.alpha, self.sigma = (torch.from_numpy(table).float() for table in (ABAR**0.5, (1 - ABAR) ** 0.5))
        self.timesteps = [int(t) for t in sampling_timesteps(len(ABAR), STEPS)]

    def train(self) -> Any:
        """One step; the loss before it."""
        alpha, sigma = (table[self.t, None, None, None] for table in (self.alpha, self.sigma))
        x_t = alpha * self.x0 + sigma * self.noise
        loss = self.torch.nn.functional.mse_loss(self.forward(x_t, self.t, self.label), self.noise)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def predict(self) -> np.ndarray:
        """What the network says of the noise, as ours."""
        with self.torch.no_grad():
            return self.forward(self.noise, self.t, self.label).numpy().transpose(0, 2, 3, 1)

    def sample(self) -> Any:
        """Samples from the batch's noise."""
        torch = self.torch
        with torch.no_grad():
            x, following = self.noise, [*self.timesteps[1:], None]
            for t, after in zip(self.timesteps, following, strict=True):
                eps = self.forward(x, torch.full_like(self.t, t), self.label)
                x0 = (x - float(self.sigma[t]) * eps) / float(self.alpha[t])
                x = x0 if after is None else float(self.alpha[after]) * x0 + float(self.sigma[after]) * eps
        return x

    def params(self) -> Any:
        """The parameters, as ours."""
        return self.ours(dict(self.network.named_parameters()))

    def direction(self) -> Any:
        """AdamW's first moments, as ours."""
        named = self.network.named_parameters()
        return self.ours({name: self.optimizer.state[p]["exp_avg"] for name, p in named})

    def ours(self, values: Mapping[str, Any]) -> Any:
        """Arrays by the torch network's names as our tree of parameters."""
        arrays = {name: array.detach().numpy().copy() for name, array in values.items()}
        width, heads = self.setting.width, self.setting.heads

        def dense(name: str) -> dict[str, jax.Array]:
            weight, bias = arrays[f"{name}.weight"], arrays[f"{name}.bias"]
            if name.endswith("qkv"):  # theirs: all queries, all keys, all values; ours head by head
                shape = (3, heads, width // heads)
                weight = weight.reshape(*shape, width).swapaxes(0, 1).reshape(-1, width)
                bias = bias.reshape(shape).swapaxes(0, 1).ravel()
            if weight.ndim == 4:
                weight = weight.transpose(0, 2, 3, 1).reshape(width, -1)
            return {"kernel": jnp.array(weight.T), "bias": jnp.array(bias)}

        blocks = {
            str(i): {
                "modulation": dense(f"blocks.{i}.modulation.1"),
                "attention": {part: dense(f"blocks.{i}.{part}") for part in ("qkv", "out")},
                "feed_forward": {part: dense(f"blocks.{i}.{part}") for part in ("up", "down")},
            }
            for i in range(self.setting.layers)
        }
        return {
            "conditioning": {
                "time": {"0": dense("time.0"), "1": dense("time.2")},
                "label": {"embedding": jnp.array(arrays["label.weight"])},
            },
            "patches": dense("patches"),
            "blocks": blocks,
            "final": {"modulation": dense("modulation.1"), "out": dense("out")},
        }

    def _image(self, array: np.ndarray) -> Any:
        return self.torch.from_numpy(array.transpose(0, 3, 1, 2).copy())


def peer_network(torch: ModuleType, setting: Setting) -> Any:
    """The diffusion transformer in PyTorch, ``(x [B, C, H, W], t, label) -> [B, C, H, W]``."""
    nn, functional, width = torch.nn, torch.nn.functional, setting.width

    def norm() -> Any:
        return nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)

    def modulated(x: Any, shift: Any, scale: Any) -> Any:
        return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = norm(), norm()
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, RATIO * width), nn.Linear(RATIO * width, width)
            self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

        def forward(self, x: Any, c: Any) -> Any:
            b1, s1, g1, b2, s2, g2 = self.modulation(c).chunk(6, dim=1)
            batch, tokens, _ = x.shape
            qkv = self.qkv(modulated(self.norm1(x), b1, s1)).reshape(batch, tokens, 3, setting.heads, -1)
            mixed = functional.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4).unbind(0))
            x = x + g1.unsqueeze(1) * self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))
            up = self.up(modulated(self.norm2(x), b2, s2))
            return x + g2.unsqueeze(1) * self.down(functional.gelu(up, approximate="tanh"))

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            positions = plane_positions(setting.size // PATCH, width)
            self.register_buffer("positions", torch.from_numpy(positions).float())
            self.register_buffer(
                "frequencies", torch.exp(-math.log(10_000) / 128 * torch.arange(128, dtype=torch.float32))
            )
            self.patches = nn.Conv2d(CHANNELS, width, PATCH, PATCH)
            self.time = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
            self.label = nn.Embedding(CLASSES + 1, width)
            self.blocks = nn.ModuleList([Block() for _ in range(setting.layers)])
            self.norm, self.out = norm(), nn.Linear(width, PATCH**2 * CHANNELS)
            self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

        def forward(self, x: Any, t: Any, label: Any) -> Any:
            angles = t[:, None].float() * self.frequencies
            c = self.time(torch.cat([angles.cos(), angles.sin()], dim=1)) + self.label(label)
            h = self.patches(x).flatten(2).transpose(1, 2) + self.positions
            for block in self.blocks:
                h = block(h, c)
            h = self.out(modulated(self.norm(h), *self.modulation(c).chunk(2, dim=1)))
            side = setting.size // PATCH
            h = h.reshape(-1, side, side, PATCH, PATCH, CHANNELS)
            return h.permute(0, 5, 1, 3, 2, 4).reshape(x.shape)

    return Network()


def _times(setting: Setting, repeats: int) -> dict[str, Any]:
    peaks, batch = machine_peaks(), jax.tree.map(jnp.asarray, batch_of(setting))
    measured: dict[str, Any] = {"train": {}, "sample": {}}
    for kind in PEERS:
        peer = Peer(setting, kind)
        measured["sample"][kind] = _sampling(peer, kind, repeats, peaks)
        measured["train"][kind] = _training(peer, kind, repeats, peaks)
    params = jax.tree.map(jnp.asarray, dit(setting.config).init(jax.random.key(0)))
    state = init_state(params, TX, jax.random.key(0))
    engine = jax.jit(make_step(our_loss(setting), TX), donate_argnums=0)
    measured["make_step_seconds"] = median_seconds(_repeated(engine, (state,), batch), repeats)
    return measured


def _train_times(setting: Setting, repeats: int) -> dict[str, Any]:
    peaks = machine_peaks()
    return {kind: _training(Peer(setting, kind), kind, repeats, peaks) for kind in PEERS}


def _sampling(peer: Peer, kind: str, repeats: int, peaks: dict[str, float]) -> dict[str, float]:
    setting, params = peer.setting, peer.params()
    batch = jax.tree.map(jnp.asarray, batch_of(setting))
    sampler = jax.jit(our_samples(setting)).lower(params, batch["noise"], batch["label"]).compile()
    said = jax.jit(dit(setting.config).apply)(params, batch["noise"], batch["t"], batch["label"])

    def ours() -> jax.Array:
        return sampler(params, batch["noise"], batch["label"])

    apart = {
        "output_apart": distance(np.asarray(said), peer.predict()),
        "samples_apart": distance(np.asarray(ours()), peer.sample().numpy().transpose(0, 2, 3, 1)),
    }
    for name, value in apart.items():
        if not value <= 1e-5:
            raise RuntimeError(f"{kind}: {name} is {value:.1e}: these are different networks, not timed")
    timing = paired_ratio(ours, peer.sample, repeats)
    # XLA counts the body of a loop once.
    return apart | _rates(timing, setting) | _roofline(timing, sampler, peaks, STEPS)


def _training(peer: Peer, kind: str, repeats: int, peaks: dict[str, float]) -> dict[str, float]:
    setting, params = peer.setting, peer.params()
    batch = jax.tree.map(jnp.asarray, batch_of(setting))
    lowered = jax.jit(our_step(setting), donate_argnums=(0, 1)).lower(params, TX.init(params), batch)
    compiled = lowered.compile()
    first = compiled(params, TX.init(params), batch)
    losses, directions = (np.asarray(first[2]), peer.train().numpy()), first[1][0].mu
    same = require_same_step(kind, losses, (directions, peer.direction()), 1e-4)
    timing = paired_ratio(_repeated(compiled, first[:2], batch), peer.train, repeats)
    return same | _rates(timing, setting) | _roofline(timing, compiled, peaks, 1)


def _repeated(step: Callable[..., Any], state: tuple[Any, ...], batch: Any) -> Callable[[], Any]:
    """A program that goes on from the state that it left; the step's last output is not of the state."""
    kept = [state]

    def program() -> Any:
        *after, measured = step(*kept[0], batch)
        kept[0] = tuple(after)
        return kept[0], measured

    return program


def _rates(timing: dict[str, float], setting: Setting) -> dict[str, float]:
    return {
        **timing,
        "our_images_per_second": setting.batch / timing["ours_seconds"],
        "peer_images_per_second": setting.batch / timing["peer_seconds"],
    }


def _roofline(
    timing: dict[str, float], compiled: Any, peaks: dict[str, float], times: int
) -> dict[str, float]:
    """By operations alone: these arrays stay in the caches, and XLA's count of bytes is not of memory."""
    least = times * compiled.cost_analysis()["flops"] / peaks["matmul_flops_per_second"]
    return {"roofline_seconds": least, "ours_over_roofline": timing["ours_seconds"] / least}


def _our_memory(setting: Setting) -> int | None:
    batch = jax.tree.map(jnp.asarray, batch_of(setting))
    params = jax.tree.map(np.asarray, dit(setting.config).init(jax.random.key(0)))
    compiled = jax.jit(our_step(setting), donate_argnums=(0, 1))

    def program() -> None:
        state = jax.tree.map(jnp.array, params)
        step = _repeated(compiled, (state, TX.init(state)), batch)
        for _ in range(2):
            jax.block_until_ready(step())

    return _growth(program)


def _peer_memory(setting: Setting, kind: str) -> int | None:
    def program() -> None:
        peer = Peer(setting, kind)
        for _ in range(2):
            peer.train()

    return _growth(program)


def _growth(program: Callable[[], None]) -> int | None:
    """Of a program that has run before, so that what is made once is there."""
    program()
    gc.collect()
    return peak_growth(program)
