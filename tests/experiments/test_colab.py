"""The notebooks: valid, stored without outputs, and run from top to bottom but for the install cell."""

import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from experiments import systems

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "experiments" / "colab").glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def test_each_field_with_an_experiment_has_a_notebook():
    rooms = {system.module.removeprefix("jaxneg.") for system in systems.SYSTEMS if system.available}
    assert rooms <= {path.stem for path in NOTEBOOKS}


def test_the_notebook_is_stored_clean(notebook):
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    assert code[0].metadata["tags"] == ["install"]
    assert re.search(r'^%pip install --quiet "\.\[experiments\]"$', code[0].source, re.MULTILINE)
    assert not any("%pip" in cell.source for cell in code[1:])


@pytest.mark.slow
def test_the_notebook_runs(notebook, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    notebook.cells = [cell for cell in notebook.cells if "install" not in cell.metadata.get("tags", [])]
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    printed = " ".join(output["text"] for output in outputs if output.output_type == "stream")
    data = [output["data"] for output in outputs if output.output_type == "display_data"]
    shown = printed + " ".join(part.get("text/plain", "") for part in data)
    assert "verdict" in shown
    assert "run folder  runs/" in shown
    assert any("image/png" in part for part in data)
    assert not any(output.output_type == "error" for output in outputs)
