"""What README says is so: its snippets run, its table is the code's, its commands name what exists."""

import re
import tomllib
from pathlib import Path

import numpy as np

from experiments.systems import SYSTEMS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_snippets_run_one_after_the_other():
    snippets = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(snippets) == 2
    names: dict = {}
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), names)
    assert int(names["result"].state.step) == 20
    assert np.isfinite(names["result"].history[-1]["losses"]).all()


def test_the_table_of_the_systems_is_the_codes():
    rows = re.findall(
        r"^\| ([^|]+) \| (arXiv:\S+) \| ([^|]+) \| `([^`]+)` \| ([^|]+) \| (\w+) \|$", README, re.MULTILINE
    )
    assert len(rows) == len(SYSTEMS) == 18
    for (name, paper, field, module, experiments, status), system in zip(rows, SYSTEMS, strict=True):
        assert (name, paper, field, module, status) == (
            system.name,
            system.paper,
            system.field,
            system.module,
            system.status,
        )
        assert tuple(re.findall(r"`(\w+)`", experiments)) == system.experiments


def test_each_setup_command_is_one_line_that_makes_its_own_environment():
    commands = re.findall(r"<!-- (\w+) command -->\n```sh\n(.*?)\n```", README, re.DOTALL)
    assert [name for name, _ in commands] == ["run", "test"]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for _, command in commands:
        assert "\n" not in command
        assert command.startswith("python3 -m venv --without-pip .venv && ")
        assert set(re.findall(r"'\.\[(\w+)\]'", command)) <= set(extras)


def test_the_files_that_readme_names_exist():
    named = re.findall(r"`((?:jaxneg|experiments|tests)/[\w/.]*)`", README)
    assert named
    for name in named:
        assert (ROOT / name).exists(), name
