"""Reading and checking safetensors files and folders of models, with errors of one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from hart.errors import HartError, first_line
from hart.runtime.files import read_json, refuse_lfs_pointer

_FLOATS = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})
_OTHERS_JSON = frozenset({"tokenizer.json", "vocab.json"})
"""Large JSON files that tokenizer libraries read and check themselves."""


def read_tensors(path: Path, *, again: str = "download it again") -> dict[str, Tensor]:
    """The tensors of a safetensors file by name, on the CPU.

    Args:
        again: advice for an incomplete file, for messages.

    Raises:
        HartError: the file is missing, a Git LFS pointer, truncated, or not a safetensors file.
    """
    with _opened(path, again) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def tensor_names(path: Path) -> set[str]:
    """The names of the tensors in a safetensors file.

    Raises:
        HartError: as in `read_tensors`.
    """
    with _opened(path, "download it again") as file:
        return set(file.keys())


def check_floats(path: Path) -> None:
    """Raise `HartError` unless a safetensors file is complete and all its tensors are floating-point."""
    with _opened(path, "download it again") as file:
        for name in file.keys():  # noqa: SIM118
            kind = file.get_slice(name).get_dtype()
            if kind not in _FLOATS:
                raise HartError(f"{path}: {name} has {kind} instead of floating-point numbers; give a file of weights")


def check_model_files(folder: Path) -> None:
    """Check the files of a model's folder by sizes, headers and JSON, without reading the weights.

    Raises:
        HartError: a file is a Git LFS pointer, truncated, or malformed.
    """
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        refuse_lfs_pointer(path)
        if path.suffix == ".safetensors":
            with _opened(path, "download it again"):
                pass
        elif path.suffix == ".json" and path.name not in _OTHERS_JSON:
            read_json(path, "a file of a model")


@contextmanager
def _opened(path: Path, again: str) -> Iterator[safe_open]:
    refuse_lfs_pointer(path)
    try:
        with safe_open(path, "pt") as file:
            yield file
    except FileNotFoundError as error:
        raise HartError(f"{path}: no such file; {again}") from error
    except (SafetensorError, OSError) as error:
        raise HartError(f"{path}: truncated or not a safetensors file ({first_line(error)}); {again}") from error
