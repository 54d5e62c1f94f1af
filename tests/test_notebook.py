"""The notebook: stored without outputs, valid, and it runs from top to bottom."""

import os
import sys
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")

FILE = Path(__file__).parents[1] / "recipes" / "notebooks" / "p2pzoo.ipynb"


@pytest.fixture
def notebook():
    return nbformat.read(FILE, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_it_is_stored_without_outputs(notebook):
    nbformat.validate(notebook)
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code_cells(notebook))
    assert all(cell.metadata == {} for cell in notebook.cells)
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)


def test_it_goes_from_the_installation_to_the_export_and_names_no_hub(notebook):
    text = "\n".join(cell.source for cell in notebook.cells)
    steps = ("## Install", "## The first run", "## Pairs of your own", "## Translate", "## Compare", "## Export")
    positions = [text.index(step) for step in steps]
    assert positions == sorted(positions)
    assert "huggingface" not in text.lower()


@pytest.mark.slow
def test_it_runs(notebook, tmp_path, monkeypatch):
    """In the smallest profile, on the CPU. A command of the shell that fails would not end a notebook: here it does."""
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    for cell in code_cells(notebook):
        lines = cell.source.split("\n")
        cell.source = "\n".join(
            f'{line}\nassert _exit_code == 0, "{line[1:11]}"' if line.startswith("!") else line for line in lines
        )
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    assert (tmp_path / "mine.pt2").stat().st_size > 0
