"""Runs the notebooks and stores them with their outputs: `python notebooks/store.py [NAME ...]`, all by default.

What says when, where or by which Python a notebook was run is left out.
"""

import hashlib
import json
import pathlib
import re
import sys
from typing import Any

NOTEBOOKS = pathlib.Path(__file__).parent
# Of the whole notebook, where the outputs are stored: the code that made them.
KEY = "outputs_of"
COLOUR = re.compile(r"\x1b\[[\d;]*m")


def code_of(notebook: dict[str, Any]) -> str:
    """A digest of the code of all cells; outputs are stale where it is not the stored one."""
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return hashlib.sha256("\0".join(cells).encode()).hexdigest()[:16]


def joined(outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Outputs without warnings and colours; what is printed in several pieces is one."""
    kept: list[dict[str, Any]] = []
    for each in outputs:
        if each.get("name") == "stderr":
            continue
        if each["output_type"] == "stream":
            each["text"] = [COLOUR.sub("", line) for line in each["text"]]
        if each["output_type"] == "stream" and kept and kept[-1]["output_type"] == "stream":
            text = "".join([*kept[-1]["text"], *each["text"]])
            kept[-1]["text"] = text.splitlines(keepends=True)
        else:
            kept.append(each)
    return kept


def cleaned(notebook: dict[str, Any]) -> dict[str, Any]:
    """The notebook as it is stored, without a trace of the machine."""
    for cell in notebook["cells"]:
        cell["metadata"] = {}
        if cell["cell_type"] == "code":
            cell["outputs"] = joined(cell["outputs"])
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook["metadata"] = {"kernelspec": kernel, "language_info": {"name": "python"}, KEY: code_of(notebook)}
    return notebook


def text_of(notebook: dict[str, Any]) -> str:
    """What the file of a notebook holds."""
    return json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def store(path: pathlib.Path) -> None:
    """Runs a notebook from top to bottom and replaces it by the result."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=900, record_timing=False, resources=where).execute()
    path.write_text(text_of(cleaned(json.loads(nbformat.writes(notebook)))))


if __name__ == "__main__":
    for name in sys.argv[1:] or sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb")):
        store(NOTEBOOKS / f"{name}.ipynb")
        print(name)
