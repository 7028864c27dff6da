"""`docs/quickstart.ipynb` runs from its first cell to its last."""

import pytest
from entry import ROOT, environment

NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    for package in ("nbclient", "ipykernel"):
        pytest.importorskip(package, reason=f"{package} is not installed: pip install nbclient ipykernel")
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    before = [shown(cell) for cell in code]
    place = {"metadata": {"path": str(tmp_path)}}
    client = NotebookClient(notebook, timeout=1800, kernel_name="python3", resources=place)
    client.execute(env=environment(PYTHONPATH=str(ROOT)))  # an error in a cell is an error here
    assert [shown(cell) for cell in code] == before
    assert sum("image/png" in kinds for kinds in before) == 3


def shown(cell):
    """The kinds of results that stand under a cell."""
    kinds = {kind for output in cell.outputs for kind in output.get("data", {})}
    return kinds - {"image/jpeg"}


def test_the_committed_notebook_is_small_and_names_no_folder_of_its_machine():
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text.encode()) < 300_000
    assert str(ROOT) not in text
    assert "/home/" not in text
