"""The models that come with the package: bundled bases, and the hypernetworks trained for them."""

from importlib.resources import as_file, files
from pathlib import Path

from hart.errors import HartError

BASES = ("mini-base", "mini-causal-base")
MODELS = ("mini", "mini-causal")


def resolve_base(name: str) -> str:
    """The folder of a bundled base: `mini-base` (a T5) or `mini-causal-base` (a Llama); other names are unchanged.

    Raises `HartError` if this installation lacks the bundled files.
    """
    return _bundled(name) if name in BASES else name


def resolve_model(name: str) -> str:
    """The folder of a bundled model (`mini`, `mini-causal`); other names are unchanged.

    Raises `HartError` if this installation lacks the bundled files.
    """
    return _bundled(name) if name in MODELS else name


def _bundled(name: str) -> str:
    # The package is installed as plain files, as transformers needs a folder, so the path outlives
    # the context.
    with as_file(files("hart.model.bundled") / name) as folder:
        path = Path(folder)
    if not (path / "config.json").is_file():
        raise HartError(f"{name}: the bundled files are missing from this installation; reinstall hart")
    return str(path)
