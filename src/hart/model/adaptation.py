"""The result of a hypernetwork's forward pass over a task, and its file format.

An `Adaptation` holds the generated row blocks (§3.1), the memory that the main model also attends to if there is one
(fusion-in-decoder, §4.1, or in front of a decoder-only model's tokens), and their provenance. It has one entry per
task, so adaptations stack into batches that mix tasks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Float, Shaped
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from hart.data.input_format import InputFormat
from hart.data.tasks import Task
from hart.errors import HartError
from hart.model.bundled import MODELS
from hart.model.weights import read_tensors
from hart.peft.base import Blocks, PeftKind, build_kinds
from hart.runtime.files import content_of, new_directory, read_json, sha256, write_json

FIELDS_FILE = "adaptation.json"
TENSORS_FILE = "adaptation.safetensors"
FORMAT = 1
_CHECKSUM = "tensors_sha256"
"""Field of `FIELDS_FILE` with the SHA-256 of `TENSORS_FILE`."""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(eq=False, repr=False)
class Adaptation:
    """The adaptation of a main model to n tasks: generated or learned PEFT parameters, and a memory.

    Two adaptations are equal if their base, PEFT kinds, model, tasks and tensors are equal and the main model reads the
    same input (`in_context`, `input_eos`, `chat_template`). The limits of queries and answers, the device and the time
    of generation are ignored. An adaptation is mutable, so it has no hash.

    Attributes:
        blocks: block name → `[n, L, p, width]`; empty without PEFT parameters.
        memory: `[n, s, d]` in the main model's width, or None. The decoder of an encoder-decoder attends to it before
            the query's encoding; a decoder-only model attends to it in front of the query's tokens.
        memory_mask: 1 for tokens and 0 for padding on the right; None without memory.
        peft: configuration of each PEFT kind, as `PeftKind.to_config` returns it.
        base: name of the main model, as given to `MainModel.from_pretrained`.
        base_revision: revision of the main model on the hub, if it has one.
        base_fingerprint: `MainModel.fingerprint`; a main model with other weights or another tokenizer refuses the
            adaptation.
        tasks: the task from which each entry was generated, JSON-ready.
        input_format: how `MainModel.answers` turns queries into tokens. Only the part that queries need is saved, not
            how the hypernetwork reads tasks.
        model: name of the `HartModel` that made it.
        created: time of generation, ISO 8601.
        kept: keys and values of the memory in every layer of the main model's decoder, if `MainModel.keep_memory`
            computed them; never saved.

    Raises:
        HartError: `tasks` is empty, only one of `memory` and `memory_mask` is given, a tensor is for another number of
            tasks, or `peft` names an unknown kind.
    """

    blocks: Blocks
    memory: Float[Tensor, "n s d"] | None
    memory_mask: Shaped[Tensor, "n s"] | None
    peft: list[dict[str, Any]]
    base: str
    base_revision: str | None
    base_fingerprint: str
    tasks: list[dict[str, Any]]
    input_format: InputFormat = InputFormat()
    model: str = ""
    created: str = field(default_factory=_now)
    kept: tuple[Float[Tensor, "L n heads s d_kv"], Float[Tensor, "L n heads s d_kv"]] | None = field(
        default=None, repr=False
    )

    def __post_init__(self) -> None:
        self.kinds: tuple[PeftKind, ...] = build_kinds(self.peft)
        if not self.tasks:
            raise HartError("adaptation: tasks is empty; an adaptation belongs to at least one task")
        if (self.memory is None) != (self.memory_mask is None):
            raise HartError("adaptation: memory and memory_mask must be given together")
        for name, tensor in self._tensors().items():
            if tensor.shape[:1] != (len(self.tasks),):
                raise HartError(f"adaptation: {name} has shape {list(tensor.shape)} for {len(self.tasks)} tasks")

    def __len__(self) -> int:
        return len(self.tasks)

    def __repr__(self) -> str:
        """Base, model, number of tasks, PEFT kinds and length of the memory in one line."""
        kinds = "+".join(kind.name for kind in self.kinds) or "none"
        parts = [f"base={self.base!r}", f"model={self.model!r}", f"tasks={len(self)}", f"peft={kinds}"]
        parts += [f"memory={self.memory.shape[1]} tokens"] if self.memory is not None else []
        return f"Adaptation({', '.join(parts)})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Adaptation):
            return NotImplemented
        alike = ("base_fingerprint", "kinds", "model", "tasks")
        if any(getattr(self, name) != getattr(other, name) for name in alike) or self._reads() != other._reads():
            return False
        mine, theirs = self._tensors(), other._tensors()
        return mine.keys() == theirs.keys() and all(_equal(values, theirs[name]) for name, values in mine.items())

    __hash__ = None  # type: ignore[assignment]

    def read_tasks(self) -> list[Task]:
        """The tasks from which the adaptation was generated, without instances.

        Raises:
            HartError: the task of an entry is malformed.
        """
        return [Task.from_dict(task, source="adaptation", name=str(task.get("name", ""))) for task in self.tasks]

    def __getitem__(self, entry: int | slice) -> Self:
        """The adaptation to one task (by index; negative ones count from the end) or to several (by slice).

        Raises:
            IndexError: there is no such task.
        """
        try:
            chosen = range(len(self))[entry]
        except IndexError:
            raise IndexError(f"adaptation {entry} of {len(self)}") from None
        return self.select([chosen] if isinstance(chosen, int) else list(chosen))

    def select(self, entries: Sequence[int]) -> Self:
        """The entries with these indices, in this order; an index may be repeated.

        Memory columns that are padding in every selected entry are dropped, so that `stack` followed by `select`
        returns an entry equal to the original.
        """
        memory, mask, kept = self.memory, self.memory_mask, self.kept
        if memory is not None and mask is not None:
            mask = mask[list(entries)]
            used = mask.bool().any(dim=0).nonzero()
            length = int(used.max()) + 1 if len(used) else 0
            memory, mask = memory[list(entries), :length], mask[:, :length]
            kept = kept and _of_both(kept, lambda part: part[:, list(entries), :, :length])
        return replace(
            self,
            blocks={name: values[list(entries)] for name, values in self.blocks.items()},
            memory=memory,
            memory_mask=mask,
            kept=kept,
            tasks=[self.tasks[entry] for entry in entries],
        )

    @classmethod
    def stack(cls, adaptations: Sequence[Self]) -> Self:
        """One adaptation with all entries in order, on the first one's device; memories are padded on the right.

        Raises:
            HartError: the list is empty, or the adaptations differ in base, PEFT kinds, presence of a memory, length
                limits, or the parts of a task that the main model reads.
        """
        if not adaptations:
            raise HartError("adaptation: the list to stack is empty; give at least one adaptation")
        first = adaptations[0]
        place = next(iter(first._tensors().values()), None)
        if place is not None:
            adaptations = [each.to(place.device) for each in adaptations]
        for other in adaptations[1:]:
            if other.base_fingerprint != first.base_fingerprint:
                raise HartError(
                    f"adaptation: cannot stack adaptations of different bases, {first.base} and {other.base}"
                )
            if other.kinds != first.kinds or (other.memory is None) != (first.memory is None):
                raise HartError(
                    "adaptation: cannot stack adaptations of different PEFT kinds, or with memory and without"
                )
            if other._limits() != first._limits():
                raise HartError(
                    "adaptation: cannot stack adaptations with different limits of queries and answers, "
                    f"{first._limits()} and {other._limits()} tokens"
                )
            if other._reads() != first._reads():
                raise HartError("adaptation: cannot stack adaptations whose main models read different inputs")
        memories = [a.memory for a in adaptations if a.memory is not None]
        masks = [a.memory_mask for a in adaptations if a.memory_mask is not None]
        length = max((memory.shape[1] for memory in memories), default=0)
        return replace(
            first,
            blocks={name: torch.cat([a.blocks[name] for a in adaptations]) for name in first.blocks},
            memory=torch.cat([F.pad(m, (0, 0, 0, length - m.shape[1])) for m in memories]) if memories else None,
            memory_mask=torch.cat([F.pad(m, (0, length - m.shape[1])) for m in masks]) if masks else None,
            tasks=[task for a in adaptations for task in a.tasks],
            model=first.model if len({a.model for a in adaptations}) == 1 else "",
            created=max(a.created for a in adaptations),
            kept=_stacked([a.kept for a in adaptations], length),
        )

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """A copy on `device` with blocks and memory in `dtype`; None keeps the current one."""
        return replace(
            self,
            blocks={name: values.to(device, dtype) for name, values in self.blocks.items()},
            memory=None if self.memory is None else self.memory.to(device, dtype),
            memory_mask=None if self.memory_mask is None else self.memory_mask.to(device),
            kept=self.kept and _of_both(self.kept, lambda part: part.to(device, dtype)),
        )

    def save_pretrained(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Write `adaptation.safetensors` and `adaptation.json` into `folder`, all or nothing.

        An empty folder, or one with an earlier adaptation to the same tasks by the same model, is replaced.

        Args:
            overwrite: replace any other adaptation, too. A folder with other content is never replaced.

        Raises:
            HartError: `folder` exists with other content, or cannot be written.
        """
        folder = Path(folder)
        fields = self._fields()
        _refuse_other(folder, fields, overwrite)
        with new_directory(folder, replaces=FIELDS_FILE) as partial:
            tensors = {k: v.detach().cpu().contiguous() for k, v in self._tensors().items()}
            save_file(tensors, partial / TENSORS_FILE)
            write_json(partial / FIELDS_FILE, {**fields, _CHECKSUM: sha256(partial / TENSORS_FILE)}, indent=1)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Load an adaptation that `save_pretrained` wrote; its tensors are on the CPU.

        Raises:
            HartError: a file is missing, truncated, damaged or foreign, a field is missing, or a PEFT kind is unknown.
        """
        folder = Path(folder)
        fields = _read_fields(folder)
        path = folder / TENSORS_FILE
        tensors = read_tensors(path, again="save the adaptation again")
        if sha256(path) != fields.pop(_CHECKSUM):
            raise HartError(
                f"{path}: damaged, its checksum differs from that in {FIELDS_FILE}; save the adaptation again"
            )
        for name, tensor in tensors.items():
            if tensor.is_floating_point() == (name == "memory_mask"):
                raise HartError(f"{path}: {name} has dtype {tensor.dtype}; save the adaptation again")
        memory, memory_mask = tensors.pop("memory", None), tensors.pop("memory_mask", None)
        try:
            own = {name: value for name, value in fields.items() if name not in _FORMAT_FIELDS}
            return cls(
                blocks={name.removeprefix("blocks."): tensor for name, tensor in tensors.items()},
                memory=memory,
                memory_mask=memory_mask,
                input_format=_input_format(fields),
                **own,
            )
        except HartError as error:
            raise HartError(f"{folder}: {error}") from error

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"blocks.{name}": values for name, values in self.blocks.items()}
        if self.memory is not None and self.memory_mask is not None:
            tensors |= {"memory": self.memory, "memory_mask": self.memory_mask}
        return tensors

    def _fields(self) -> dict[str, Any]:
        values = {**vars(self), **vars(self.input_format), **self._reads()}
        return {"format": FORMAT, **{name: values[name] for name in _FIELD_TYPES if name != _CHECKSUM}}

    def _limits(self) -> tuple[int, int]:
        """The length limits of queries and answers, in tokens."""
        return self.input_format.max_query_length, self.input_format.max_target_length

    def _reads(self) -> dict[str, Any]:
        """The saved fields of the main model's input; `in_context` is None if the main model reads only the query."""
        form = self.input_format
        demonstrations = {name: getattr(form, field) for name, field in _IN_CONTEXT.items()}
        return {
            "in_context": demonstrations if form.in_context else None,
            "input_eos": form.input_eos,
            "chat_template": form.chat_template,
        }


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one.detach().cpu(), other.detach().cpu())


def _of_both(kept: tuple[Tensor, Tensor], change: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    keys, values = kept
    return change(keys), change(values)


def _stacked(every: Sequence[tuple[Tensor, Tensor] | None], length: int) -> tuple[Tensor, Tensor] | None:
    """Kept keys and values of all adaptations, padded to `length`; None if an adaptation has none."""
    present = [kept for kept in every if kept is not None]
    if len(present) < len(every):
        return None
    padded = [_of_both(kept, lambda part: F.pad(part, (0, 0, 0, length - part.shape[3]))) for kept in present]
    keys, values = zip(*padded, strict=True)
    return torch.cat(keys, dim=1), torch.cat(values, dim=1)


_FIELD_TYPES: dict[str, type | tuple[type, ...]] = {
    "model": str,
    "base": str,
    "base_revision": (str, type(None)),
    "base_fingerprint": str,
    "peft": list,
    "tasks": list,
    "in_context": (dict, type(None)),
    "input_eos": bool,
    "max_query_length": int,
    "max_target_length": int,
    "chat_template": bool,
    "demonstration_groups": int,
    "created": str,
    _CHECKSUM: str,
}
_FORMAT_FIELDS = (
    "in_context", "input_eos", "max_query_length", "max_target_length", "chat_template", "demonstration_groups"
)  # fmt: skip
_IN_CONTEXT = {
    "num_demonstrations": "num_demonstrations",
    "explanations": "explanations",
    "prompt_format": "prompt_format",
    "max_length": "max_demonstrations_length",
    "input_eos": "input_eos",
}
"""Name in `in_context` → field of `InputFormat`."""


def _read_fields(folder: Path) -> dict[str, Any]:
    """The checked content of `adaptation.json`, without its format."""
    path = folder / FIELDS_FILE
    missing = f"{folder}: has no adaptation ({FIELDS_FILE} is missing); give a folder that hart adapt wrote"
    if str(folder) in MODELS or (folder / "config.json").is_file():
        missing = f"{folder}: is a model, not an adaptation; make one with hart adapt {folder} --output-dir A"
    content = read_json(path, "the file of an adaptation", missing=missing)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise HartError(f"{path}: format is not {FORMAT} but of another version of hart; adapt again")
    fields = {}
    for name, types in _FIELD_TYPES.items():
        if name not in content:
            raise HartError(f"{path}: field {name} is missing; save the adaptation again")
        if not isinstance(content[name], types):
            raise HartError(f"{path}: field {name} has the wrong type; save the adaptation again")
        fields[name] = content[name]
    for name in ("peft", "tasks"):
        if not all(isinstance(item, dict) for item in fields[name]):
            raise HartError(f"{path}: field {name} must be a list of objects")
    return fields


def _input_format(fields: dict[str, Any]) -> InputFormat:
    """The input format in the saved fields."""
    shown = fields["in_context"]
    values = {name: fields[name] for name in _FORMAT_FIELDS if name != "in_context"}
    if shown is not None:
        read = {field: shown[name] for name, field in _IN_CONTEXT.items() if name in shown}
        values |= {**read, "demonstrations_to": "main"}
    try:
        return InputFormat(**values)
    except TypeError as error:
        raise HartError(f"adaptation: in_context has a value of the wrong type ({error})") from None


def _refuse_other(folder: Path, fields: dict[str, Any], overwrite: bool) -> None:
    """Raise `HartError` if `folder` has content other than an adaptation, or, without `overwrite`, one that differs."""
    if not folder.is_dir() or not content_of(folder):
        return
    if content_of(folder) != {FIELDS_FILE, TENSORS_FILE}:
        raise HartError(f"{folder}: exists with other content; give a new folder")
    if overwrite:
        return
    refusal = HartError(f"{folder}: holds another adaptation; give a new folder, or --overwrite (overwrite=True)")
    try:
        found = _read_fields(folder)
    except HartError:
        raise refusal from None
    if any(found[name] != fields[name] for name in fields.keys() - {"format", "created"}):
        raise refusal
