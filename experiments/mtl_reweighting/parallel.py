"""Several trainings at once, a thread for each core: one alone leaves the others idle while it compiles."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from experiments.run_dir import RunDir

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_parallel(
    function: Callable[[Item], Result], items: Sequence[Item], run_dir: RunDir, description: str
) -> list[Result]:
    """Calls a function on every item, as many at once as there are cores.

    Args:
        function: what to call; an error in it is raised here.
        items: its arguments.
        run_dir: shows the progress.
        description: what is being done.

    Returns:
        The results in the order of the items.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(function, items)
        return [result for _, result in zip(run_dir.progress(items, description), results, strict=True)]
