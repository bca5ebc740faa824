"""Double precision on the host, whatever the default device is: accelerators have it slow or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax


@contextmanager
def float64_on_cpu() -> Iterator[None]:
    """Within it, jax computes in float64 on the CPU.

    Example:
        >>> import jax.numpy as jnp
        >>> with float64_on_cpu():
        ...     print(jnp.ones(1).dtype)
        float64
    """
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        yield
