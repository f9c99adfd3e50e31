"""Safetensors files and the folders of models that hold them, checked so that what is wrong is one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from hart.errors import HartError, first_line
from hart.runtime.files import read_json, refuse_lfs_pointer

_FLOATS = frozenset({"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"})
_OTHERS_JSON = frozenset({"tokenizer.json", "vocab.json"})
"""JSON of many megabytes, whose reader is not Python and has messages of its own."""


def read_tensors(path: Path, *, again: str = "download it again") -> dict[str, Tensor]:
    """The tensors of a safetensors file by name, on the CPU.

    Args:
        again: what to do about a file that is not whole, for messages.

    Raises:
        HartError: the file is missing, a Git LFS pointer, truncated, or no safetensors file.
    """
    with _opened(path, again) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def tensor_names(path: Path) -> set[str]:
    """What a safetensors file holds, by name.

    Raises:
        HartError: as `read_tensors`.
    """
    with _opened(path, "download it again") as file:
        return set(file.keys())


def check_floats(path: Path) -> None:
    """Raise `HartError` unless a safetensors file is whole and holds floating-point numbers only, as weights are."""
    with _opened(path, "download it again") as file:
        for name in file.keys():  # noqa: SIM118
            kind = file.get_slice(name).get_dtype()
            if kind not in _FLOATS:
                raise HartError(f"{path}: {name} holds {kind}, not floating-point numbers; it is no file of weights")


def check_model_files(folder: Path) -> None:
    """Read what can be read quickly of the files of a model: sizes, headers and JSON.

    Raises:
        HartError: one is a Git LFS pointer, truncated, or not of its format.
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
