"""The notebooks: executed in place (`make notebooks`), and as Markdown for the site.

    python docs/site/notebooks.py            # all of notebooks/
    python docs/site/notebooks.py FILE…

A notebook is executed in a fresh kernel and a folder of its own that is deleted afterwards, on one CPU thread. It is
written back only where no cell has raised, without times of cells and versions of this machine.
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
NOTEBOOKS = REPOSITORY / "notebooks"


def execute(path: Path) -> Any:
    """The notebook with the outputs of this execution.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell has raised; the message shows which and what.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    # The modules of this checkout, wherever the kernel starts.
    modules = os.pathsep.join(filter(None, [str(REPOSITORY / "src"), os.environ.get("PYTHONPATH")]))
    alone = {"PYTHONPATH": modules, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory(prefix="hart-notebook-") as folder:
        client = NotebookClient(
            notebook,
            timeout=900,
            startup_timeout=180,
            kernel_name="python3",
            coalesce_streams=True,
            record_timing=False,
            resources={"metadata": {"path": folder}},
        )
        client.execute(env=os.environ | alone | {"HART_CACHE": str(Path(folder) / "cache")})
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def to_markdown(path: Path) -> str:
    """A page: texts as they are, code in fences, what it printed below, pictures within the page."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif source.strip():
            parts.append(f"```python\n{source}\n```")
            parts += [shown for output in cell["outputs"] if (shown := _output(output))]
    return "\n\n".join(parts) + "\n"


def _output(output: dict[str, Any]) -> str:
    if output["output_type"] == "stream":
        return f"```text\n{''.join(output['text']).rstrip()}\n```"
    data = output.get("data", {})
    if "image/png" in data:
        packed = "".join(data["image/png"]).replace("\n", "")
        return f"![what the cell above drew](data:image/png;base64,{packed})"
    return f"```text\n{''.join(data['text/plain']).rstrip()}\n```" if "text/plain" in data else ""


def main(paths: list[str]) -> None:
    import nbformat

    for path in [Path(each) for each in paths] or sorted(NOTEBOOKS.glob("*.ipynb")):
        executed = execute(path)
        nbformat.write(executed, path)
        print(f"{path.name}: {path.stat().st_size // 1024} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
