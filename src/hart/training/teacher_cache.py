"""A cache of a teacher's outputs: a folder of safetensors files, indexed by the content of examples.

The key of an example is a digest of the teacher's input and the target tokens. The next epoch, another seed or another
student then gets the same numbers without a pass of the teacher. Each combination of teacher, temperature, top_k and
precision has its own subfolder. Files are added and never changed, so several runs and processes may share a cache.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from hart.errors import HartError, first_line
from hart.runtime.files import write_bytes

logger = logging.getLogger(__name__)

_FIELD = "distillation.cache"

MOST_BYTES = 2**28
"""Bytes collected in memory before they are written to a new file."""


@dataclass(frozen=True)
class Said:
    """The teacher's distributions at n target tokens.

    Attributes:
        log_p: log-probabilities of c classes at the temperature of the distillation, float32.
        chosen: the tokens of the first k classes, likeliest first; the last class is all others. None: every token is a
            class.
    """

    log_p: Float[Tensor, "n c"]
    chosen: Int[Tensor, "n k"] | None

    def parts(self, counts: Sequence[int]) -> list["Said"]:
        """Split into consecutive parts with the given numbers of tokens."""
        chosen = [None] * len(counts) if self.chosen is None else self.chosen.split(list(counts))
        return [Said(log_p, tokens) for log_p, tokens in zip(self.log_p.split(list(counts)), chosen, strict=True)]

    @staticmethod
    def joined(parts: Sequence["Said"], device: torch.device) -> "Said":
        """Concatenate parts: the inverse of `parts`."""
        log_p = torch.cat([part.log_p.to(device) for part in parts])
        chosen = [part.chosen.to(device) for part in parts if part.chosen is not None]
        return Said(log_p, torch.cat(chosen) if chosen else None)


def key_of(read: Sequence[int], targets: Sequence[int]) -> bytes:
    """Key of an example: a digest of the tokens that the teacher reads and of the target tokens."""
    text = " ".join(map(str, read)) + " / " + " ".join(map(str, targets))
    return hashlib.sha256(text.encode()).digest()[:16]


class TeacherCache:
    """The teacher's outputs for examples, in a folder.

    Args:
        folder: folder of the cache, with a subfolder per `about`, made when its first file is written.
        about: everything besides the example that determines the numbers: the teacher's fingerprint, temperature,
            top_k, precision.

    Raises:
        HartError: a file is damaged, or the folder is a file.
    """

    def __init__(self, folder: Path, about: dict[str, str]) -> None:
        told = " ".join(f"{name}={value}" for name, value in about.items())
        self.folder, self._about = folder / hashlib.sha256(told.encode()).hexdigest()[:16], about
        self._new: dict[bytes, Said] = {}
        self._new_bytes = 0
        self._places: dict[bytes, tuple[Path, int, int]] = {}
        self._open: dict[Path, dict[str, Tensor]] = {}
        if folder.exists() and not folder.is_dir():
            raise HartError(f"{_FIELD}: {folder} is a file; name a folder")
        for path in sorted(self.folder.glob("*.safetensors")) if self.folder.is_dir() else ():
            self._index(path)

    def __contains__(self, key: bytes) -> bool:
        return key in self._new or key in self._places

    def __len__(self) -> int:
        return len(self._new.keys() | self._places.keys())

    def get(self, key: bytes) -> Said:
        """The teacher's distributions for an example in the cache, on the CPU."""
        if key in self._new:
            return self._new[key]
        path, start, count = self._places[key]
        tensors = self._open[path]
        chosen = tensors["chosen"][start : start + count].long() if "chosen" in tensors else None
        return Said(tensors["log_p"][start : start + count], chosen)

    def add(self, key: bytes, said: Said) -> None:
        """Add an example, which stays in memory until `flush`."""
        kept = Said(said.log_p.cpu(), None if said.chosen is None else said.chosen.cpu())
        self._new[key] = kept
        self._new_bytes += kept.log_p.nbytes + (0 if kept.chosen is None else kept.chosen.nbytes)

    @property
    def is_full(self) -> bool:
        """Whether new entries have reached `MOST_BYTES` and should be written."""
        return self._new_bytes >= MOST_BYTES

    def flush(self) -> None:
        """Write new entries to a file of their own.

        Raises:
            HartError: the disk is full, or the folder cannot be written.
        """
        if not self._new:
            return
        keys = list(self._new)
        joined = Said.joined(list(self._new.values()), torch.device("cpu"))
        tensors = {
            "keys": torch.tensor([list(key) for key in keys], dtype=torch.uint8),
            "counts": torch.tensor([len(self._new[key].log_p) for key in keys], dtype=torch.int32),
            "log_p": joined.log_p.contiguous(),
        }
        if joined.chosen is not None:
            tensors["chosen"] = joined.chosen.int().contiguous()
        path = self.folder / f"{hashlib.sha256(b''.join(keys)).hexdigest()[:16]}.safetensors"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise HartError(
                f"{_FIELD}: {self.folder} cannot be created ({error.strerror}); choose another folder"
            ) from None
        write_bytes(path, save(tensors, metadata=self._about))
        self._index(path)
        self._new.clear()
        self._new_bytes = 0

    def _index(self, path: Path) -> None:
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # mapped, not read
            keys, counts = tensors["keys"].tolist(), tensors["counts"].tolist()
        except (SafetensorError, KeyError, OSError) as error:
            raise HartError(f"{_FIELD}: {path} is damaged ({first_line(error)}); remove it") from None
        self._open[path], start = tensors, 0
        for key, count in zip(keys, counts, strict=True):
            self._places[bytes(key)] = path, start, count
            start += count
