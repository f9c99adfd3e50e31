"""The configuration of a run: three sections, read strictly from YAML and the command line.

A system of the paper's tables is one such file. Defaults are the paper's T5-Large setting on
Super-NaturalInstructions; each field says where its value comes from ("§" is the paper's section,
"open" a choice that the paper leaves open). Values are checked whenever a section is built, so a
configuration made in Python is held to the same rules as a file.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml

from hart.data.config import DataConfig
from hart.model.config import ModelConfig
from hart.runtime import strict
from hart.runtime.files import write_text
from hart.runtime.section import Section, hints_of, number


@dataclass(frozen=True)
class TrainingConfig(Section):
    """The optimisation of the hypernetwork, and what a run writes."""

    section: ClassVar[str] = "training"

    #: Folder of the run: config.yaml, metrics.jsonl, checkpoints and final/.
    output_dir: str = "runs/hart"
    #: "10k steps in T5-Large experiments and 20k steps in T5-XL experiments" (§4.1).
    max_steps: int = number(10_000, least=1)
    #: Queries per optimizer step, over all processes: "a batch size of 256" (§4.1).
    batch_size: int = number(256, least=1)
    #: Queries per process and pass, the rest is accumulated; None: all at once. The result is the same
    #: up to rounding and the random draws of dropout.
    micro_batch_size: int | None = number(None, least=1)
    #: Queries that share one hypernetwork pass, of one task with the same demonstrations (open; 1 is
    #: MetaICL's sampling). More make a step cheaper and its tasks fewer.
    queries_per_task: int = number(1, least=1)
    #: "a learning rate of 5 x 10^-5" (§4.1).
    learning_rate: float = number(5e-5, above=0)
    #: "a linear decay learning rate schedule" (§8.1.3).
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    #: Steps over which the rate first grows from 0 (open).
    warmup_steps: int = number(0, least=0)
    #: Decoupled weight decay (open).
    weight_decay: float = number(0.0, least=0)
    #: Norm to which gradients are clipped (open); None: never.
    max_grad_norm: float | None = number(1.0, above=0)
    #: "the Adam-8bit optimizer" (§4.1); plain AdamW where bitsandbytes is missing.
    optimizer: Literal["adamw_8bit", "adamw"] = "adamw_8bit"
    #: Decay of Adam's mean of gradients and of their squares, and what is added to the root of the latter (open; those
    #: of Adam's paper, which torch, bitsandbytes and DeepSpeed have too).
    adam_beta1: float = number(0.9, least=0, below=1)
    adam_beta2: float = number(0.999, least=0, below=1)
    adam_epsilon: float = number(1e-8, above=0)
    #: Weight of the local consistency loss; "We select alpha in {1, 10, 20}" (§4.1). 0: without.
    alpha: float = number(1.0, least=0)
    #: Initial values of new weights, dropout and the order of the data.
    seed: int = number(0, least=0)
    #: Compute in bfloat16 (autocast); the hypernetwork's weights stay in float32.
    bf16: bool = False
    #: DeepSpeed's configuration, a JSON file: optimizer states, gradients and weights are divided among the processes.
    deepspeed: str | None = None
    #: Divide weights, gradients and optimizer states among the processes with PyTorch's FSDP.
    fsdp: bool = False
    #: Steps between two lines of metrics.jsonl.
    log_every: int = number(10, least=1)
    #: Steps between two evaluations on the validation tasks; 0, or no such tasks: none.
    eval_every: int = number(0, least=0)
    #: Instances per validation task in these evaluations.
    eval_instances: int = number(20, least=1)
    #: Steps between two checkpoints.
    save_every: int = number(500, least=1)
    #: Checkpoints kept, besides the best one; older ones are deleted.
    keep_checkpoints: int = number(2, least=1)
    #: Processes that prepare batches; the batches do not depend on it.
    num_workers: int = number(0, least=0)
    #: Write TensorBoard files beside metrics.jsonl.
    tensorboard: bool = True
    #: Go on from the newest checkpoint in `output_dir`.
    resume: bool = True
    #: CPU threads; None: as many as torch takes by itself.
    num_threads: int | None = number(None, least=1)

    def _check(self) -> None:
        if not self.output_dir.strip():
            self._refuse("output_dir", "is empty; give a folder")
        micro = self.micro_batch_size
        if micro is not None and self.batch_size % micro:
            self._refuse("micro_batch_size", f"{micro} does not divide batch_size {self.batch_size}")
        if self.deepspeed is not None and self.fsdp:
            self._refuse("fsdp", "and training.deepspeed both divide the weights; choose one")


@dataclass(frozen=True)
class RunConfig:
    """All of a run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        """Rules across sections: the parts must make one system.

        Raises:
            hart.runtime.strict.FieldError: they contradict each other.
        """
        generated, reader = self.model.weights == "generated", self.data.demonstrations_to
        if generated != (reader == "hypernetwork"):
            right = "hypernetwork" if generated else "main or nowhere"
            raise strict.FieldError(
                "data.demonstrations_to", f"must be {right} where model.weights is {self.model.weights}, not {reader}"
            )
        if not generated and self.training.alpha:
            raise strict.FieldError(
                "training.alpha", f"must be 0 where model.weights is {self.model.weights}: no states to keep consistent"
            )
        if not generated and self.training.queries_per_task > 1:
            raise strict.FieldError(
                "training.queries_per_task", f"must be 1 where model.weights is {self.model.weights}: no pass to share"
            )
        if self.data.segments and self.training.queries_per_task > 1:
            raise strict.FieldError("training.queries_per_task", f"must be 1 with {self.data.collection}")
        if self.data.segments and self.training.eval_every:
            raise strict.FieldError("training.eval_every", f"must be 0 with {self.data.collection}, which has no tasks")

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dicts; a deep copy."""
        return dataclasses.asdict(self)

    def save(self, path: str | Path) -> None:
        """Write every field, also those at their defaults, so that `load` gives this back.

        Raises:
            HartError: the file cannot be written.
        """
        text = yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)
        write_text(path, text)


SECTIONS: tuple[type[Section], ...] = (ModelConfig, DataConfig, TrainingConfig)


def load(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file, then apply command-line words to it.

    Args:
        path: the file; sections and fields that it leaves out keep their defaults.
        overrides: ``["--section.field", "value", "--section.field=value", ...]``. A further dot
            goes into a mapping or, by number, a list: ``--model.peft.0.length 8``. Values of text
            fields are taken as they stand (``null`` clears an optional one), all others are YAML.

    Raises:
        HartError: the file cannot be read or is not YAML, or a section or field is unknown,
            mistyped or out of range. The message names the file (or the option) and the field.
    """
    fields = {section.section: hints_of(section) for section in SECTIONS}
    defaults = RunConfig().to_dict()
    raw = strict.read_sections(Path(path), fields)
    overridden = strict.apply_overrides(raw, overrides, fields, defaults)
    try:
        return RunConfig(
            model=ModelConfig(**raw["model"]),
            data=DataConfig(**raw["data"]),
            training=TrainingConfig(**raw["training"]),
        )
    except strict.FieldError as error:
        if ".".join(error.field.split(".")[:2]) in overridden:
            raise error.within("--") from None
        raise error.within(f"{path}: ") from None
