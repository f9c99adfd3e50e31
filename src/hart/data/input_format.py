"""How tasks and queries become tokens: what a trained model expects, kept in its folder."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, Self

from hart.data.config import DataConfig
from hart.data.prompts import Cuts, Lengths, PromptFormat
from hart.data.tasks import Task


@dataclass(frozen=True)
class InputFormat:
    """How a task and a query are turned into tokens; a trained model expects the format of its training."""

    num_demonstrations: int = 2
    explanations: bool = False
    max_demonstrations_length: int = 1024
    max_query_length: int = 384
    max_target_length: int = 128
    demonstrations_to: Literal["hypernetwork", "main", "nowhere"] = "hypernetwork"
    prompt_format: PromptFormat = "instructions"
    input_eos: bool = True

    @property
    def in_context(self) -> dict[str, Any] | None:
        """How the main model reads demonstrations before each query (`Adaptation.in_context`), if it does."""
        if self.demonstrations_to != "main":
            return None
        return {**self.shown, "max_length": self.max_demonstrations_length, "input_eos": self.input_eos}

    @property
    def shown(self) -> dict[str, Any]:
        """What is shown of a task, and how: keyword arguments of `encode_task`."""
        return {
            "num_demonstrations": self.num_demonstrations,
            "explanations": self.explanations,
            "prompt_format": self.prompt_format,
        }

    @property
    def lengths(self) -> Lengths:
        return Lengths(self.max_demonstrations_length, self.max_query_length, self.max_target_length)

    def note_unread(self, task: Task, cuts: Cuts) -> None:
        """Note what of a task a model of this format leaves unread, whatever its length."""
        where, count = f"task {task.label}", len(task.demonstrations)
        if self.demonstrations_to == "nowhere":
            cuts.note("is not read: this model answers queries without a definition or demonstrations", where)
            return
        if count > self.num_demonstrations:
            shown = f"reads {self.num_demonstrations} of {count} demonstrations"
            cuts.note(f"reads {self.num_demonstrations} demonstrations", where, shown)
        if self.prompt_format == "prompts" and task.definition.strip():
            cuts.note("its definition is not read: this model reads demonstrations alone", where)

    @classmethod
    def from_config(cls, data: DataConfig) -> Self:
        values = {f.name: getattr(data, f.name) for f in dataclasses.fields(cls)}
        if values["input_eos"] is None:
            values["input_eos"] = data.collection != "p3"
        return cls(**values)
