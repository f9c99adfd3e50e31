"""The configuration of a run: four sections, read strictly from YAML and the command line.

A system of the paper's tables is one such file. Defaults are the paper's T5-Large setting on
Super-NaturalInstructions; each field says where its value comes from ("§" is the paper's section,
"open" a choice that the paper leaves open). Values are checked whenever a section is built, so a
configuration made in Python is held to the same rules as a file.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import yaml
from pydantic import Field, TypeAdapter, model_validator

from hart.data.config import DataConfig
from hart.model.config import ModelConfig
from hart.runtime.extensions import load_extensions
from hart.runtime.files import write_text
from hart.runtime.sections import (
    FieldError,
    Fraction,
    NaturalFloat,
    NaturalInt,
    PositiveFloat,
    PositiveInt,
    Section,
    apply_overrides,
    read_sections,
)


class TrainingConfig(Section):
    """The optimisation of the hypernetwork, and what a run writes."""

    section: ClassVar[str] = "training"

    output_dir: str = "runs/hart"
    """Folder of the run: config.yaml, metrics.jsonl, checkpoints and final/."""
    max_steps: PositiveInt = 10_000
    """Optimizer steps: "10k steps in T5-Large experiments and 20k steps in T5-XL experiments" (§4.1)."""
    batch_size: PositiveInt = 256
    """Queries per optimizer step, over all processes: "a batch size of 256" (§4.1)."""
    micro_batch_size: PositiveInt | None = None
    """Queries per process and pass, the rest is accumulated; null: all at once. The result is the same
    up to rounding and the random draws of dropout."""
    queries_per_task: PositiveInt = 1
    """Queries that share one hypernetwork pass, of one task with the same demonstrations (open; 1 is
    MetaICL's sampling). More make a step cheaper and its tasks fewer."""
    learning_rate: PositiveFloat = 5e-5
    """Peak rate: "a learning rate of 5 x 10^-5" (§4.1)."""
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    """How the rate falls: "a linear decay learning rate schedule" (App. 8.1.3)."""
    warmup_steps: NaturalInt = 0
    """Steps over which the rate first grows from 0 (open)."""
    weight_decay: NaturalFloat = 0.0
    """Decoupled weight decay (open)."""
    max_grad_norm: PositiveFloat | None = 1.0
    """Norm to which gradients are clipped (open); null: never."""
    optimizer: Literal["adamw_8bit", "adamw", "muon"] = "adamw_8bit"
    """How weights are updated: "the Adam-8bit optimizer" (§4.1); plain AdamW where bitsandbytes is missing. muon
    (ours): linear maps by orthogonalised momentum, all else by AdamW (docs/results.md)."""
    muon_rate: PositiveFloat | None = None
    """Peak rate of the linear maps with muon (ours); null: `learning_rate`."""
    adam_beta1: Fraction = 0.9
    """Decay of Adam's mean of gradients (open; as the next two, that of Adam's paper and of every library)."""
    adam_beta2: Fraction = 0.999
    """Decay of Adam's mean of squared gradients."""
    adam_epsilon: PositiveFloat = 1e-8
    """What is added to the root of that mean."""
    alpha: NaturalFloat = 1.0
    """Weight of the local consistency loss; "We select alpha in {1, 10, 20}" (§4.1). 0: without. With slots even
    small values pull the states of all tasks together (docs/results.md)."""
    pairing: Literal["slots", "task"] = "slots"
    """What the consistency loss compares a row with (open): the row at the same position of the previous batch,
    whatever its task (§3.2 to the letter), or the newest states of its own task, under other demonstrations."""
    previous_dropout: bool = True
    """Whether the states that the consistency loss compares with carry the dropout of their training pass (open);
    false: they come from a further pass of the hypernetwork without dropout, where it has any."""
    seed: NaturalInt = 0
    """Initial values of new weights, dropout and the order of the data."""
    bf16: bool = False
    """Compute in bfloat16 (autocast); the hypernetwork's weights stay in float32."""
    deepspeed: str | None = None
    """DeepSpeed's configuration, a JSON file: optimizer states, gradients and weights are divided among processes."""
    fsdp: bool = False
    """Divide weights, gradients and optimizer states among the processes with PyTorch's FSDP."""
    log_every: PositiveInt = 10
    """Steps between two lines of metrics.jsonl."""
    eval_every: NaturalInt = 0
    """Steps between two evaluations on the validation tasks; 0, or no such tasks: none."""
    eval_instances: PositiveInt = 20
    """Instances per validation task in these evaluations."""
    save_every: PositiveInt = 500
    """Steps between two checkpoints."""
    keep_checkpoints: PositiveInt = 2
    """Checkpoints kept, besides the best one; older ones are deleted."""
    num_workers: NaturalInt = 0
    """Processes that prepare batches; the batches do not depend on it."""
    trackers: list[Literal["tensorboard", "wandb", "trackio", "mlflow"]] = ["tensorboard"]
    """Where the rows of metrics.jsonl go besides; TensorBoard's files are in the run's folder."""
    resume: bool = True
    """Go on from the newest checkpoint in `output_dir`."""
    num_threads: PositiveInt | None = None
    """CPU threads; null: as many as torch takes by itself."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.output_dir.strip():
            self._refuse("output_dir", "is empty; give a folder")
        micro = self.micro_batch_size
        if micro is not None and self.batch_size % micro:
            self._refuse("micro_batch_size", f"{micro} does not divide batch_size {self.batch_size}")
        if self.muon_rate is not None and self.optimizer != "muon":
            self._refuse("muon_rate", f"has no effect with training.optimizer {self.optimizer}; take muon or set null")
        if self.deepspeed is not None and self.fsdp:
            self._refuse("fsdp", "and training.deepspeed both divide the weights; choose one")
        return self


class DistillationConfig(Section):
    """A teacher from whose answers a system learns in addition to the references (ours; context distillation)."""

    section: ClassVar[str] = "distillation"

    teacher: str | None = None
    """The model that reads definition and demonstrations in its own input, before the query: base, the same frozen main
    model; or a folder or hub name of a trained system that does (FT-Few-Shot), or of a plain checkpoint; null: none."""
    weight: NaturalFloat = 1.0
    """Weight of the KL divergence from the teacher. 1: a nat of it counts as one of the cross entropy (TAGI: 5)."""
    cross_entropy: NaturalFloat = 1.0
    """Weight of L_pred beside it. 1, so that references correct a teacher that is wrong; 0: the teacher alone."""
    temperature: PositiveFloat = 1.0
    """What the logits of both are divided by; the divergence is multiplied by its square (TAGI: 3)."""
    top_k: PositiveInt | None = None
    """Compare the teacher's k likeliest tokens, and all others as one class (doc-to-lora: 16); null: all tokens."""
    hidden_weight: NaturalFloat = 0.0
    """Weight of the normalised L1 distance of the hidden states at target tokens; only with the teacher base."""
    cache: str | None = None
    """Folder that caches the teacher's outputs for later epochs and other runs; null: compute them every time."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.teacher is None:
            return self
        if not self.teacher.strip():
            self._refuse("teacher", "is empty; give base, a folder or a hub name, or null for none")
        if self.hidden_weight and self.teacher != BASE_TEACHER:
            self._refuse("hidden_weight", f"must be 0 with the teacher {self.teacher}, whose hidden states "
                         "differ in meaning from the student's; use the teacher base")  # fmt: skip
        if self.cache is not None and not self.cache.strip():
            self._refuse("cache", "is empty; give a folder, or null for none")
        if self.cache is not None and self.hidden_weight:
            self._refuse("cache", "keeps no hidden states; set hidden_weight to 0, or cache to null")
        if not (self.weight or self.cross_entropy or self.hidden_weight):
            self._refuse("weight", "must be above 0 where cross_entropy and hidden_weight are 0")
        return self


BASE_TEACHER = "base"
"""The teacher that is the frozen main model itself."""


class RunConfig(Section):
    """All of a run."""

    model: ModelConfig = Field(default_factory=ModelConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    distillation: DistillationConfig = Field(default_factory=DistillationConfig)

    @model_validator(mode="after")
    def _check(self) -> Self:
        """Rules across sections: the parts must make one system."""
        weights, reader, segments = self.model.weights, self.data.demonstrations_to, self.data.segments
        generated = weights == "generated"
        if generated != (reader == "hypernetwork"):
            right = "hypernetwork" if generated else "main or nowhere"
            self._refuse("data.demonstrations_to", f"must be {right} where model.weights is {weights}, not {reader}")
        if not generated and self.training.alpha:
            self._refuse(
                "training.alpha", f"must be 0 where model.weights is {weights}: only a hypernetwork has layer states"
            )
        if not generated and self.training.queries_per_task > 1:
            self._refuse(
                "training.queries_per_task",
                f"must be 1 where model.weights is {weights}: only a hypernetwork pass can be shared",
            )
        if self.model.memory_in_front and self.training.fsdp:
            # Keys and values of the memory are made outside of the layers, where FSDP has their weights divided.
            self._refuse("training.fsdp", "cannot divide a base with model.memory_in_front; use training.deepspeed")
        if segments and self.training.queries_per_task > 1:
            self._refuse("training.queries_per_task", f"must be 1 with {self.data.collection}")
        if segments and self.training.pairing == "task":
            self._refuse("training.pairing", f"must be slots with {self.data.collection}, which has no tasks")
        if segments and self.training.eval_every:
            self._refuse("training.eval_every", f"must be 0 with {self.data.collection}, which has no tasks")
        if self.distillation.teacher is not None:
            self._check_teacher(self.distillation.teacher)
        return self

    def _check_teacher(self, teacher: str) -> None:
        data, where = self.data, "distillation.teacher"
        if data.demonstrations_to == "main":
            self._refuse(
                where, "must be null where data.demonstrations_to is main: the student reads the demonstrations"
            )
        if data.distractor_share and teacher != BASE_TEACHER:
            self._refuse("data.distractor_share", f"must be 0 with a teacher other than {BASE_TEACHER}")
        if teacher == BASE_TEACHER and self.model.train_main:
            self._refuse(where, "base must be frozen, and model.train_main is true; name a folder, or set this to null")
        if teacher == BASE_TEACHER and self.training.fsdp:
            self._refuse(where, "base is divided by training.fsdp; use ZeRO-1 or 2, or name the base's own folder")
        if not data.segments and not data.source.has_demonstrations and data.demonstrations != "sampled":
            self._refuse("data.demonstrations", f"must be sampled with {data.collection} where a teacher reads them")

    def to_yaml(self) -> str:
        """Every field, also those at their defaults, so that `load` gives this back."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)

    def save(self, path: str | Path) -> None:
        """Write `to_yaml` to a file.

        Raises:
            HartError: the file cannot be written.
        """
        write_text(path, self.to_yaml())


def json_schema() -> str:
    """The JSON schema of every configuration, which editors read (configs/schema.json)."""
    from hart.hypernetwork.schemes.base import SCHEMES  # not above: they import torch
    from hart.peft.base import KINDS

    load_extensions()

    def entry(key: str, name: str, options: dict[str, Any]) -> dict[str, Any]:
        properties = {key: {"const": name}, **options}
        return {"type": "object", "properties": properties, "required": [key], "additionalProperties": False}

    schema = RunConfig.model_json_schema()
    model = schema["$defs"]["ModelConfig"]["properties"]
    model["scheme"]["anyOf"] = [
        entry("name", name, dict.fromkeys(scheme.options(), {})) for name, scheme in SCHEMES.items()
    ]
    model["peft"]["items"] = {
        "anyOf": [entry("kind", name, TypeAdapter(kind).json_schema()["properties"]) for name, kind in KINDS.items()]
    }
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


SECTIONS: tuple[type[Section], ...] = (ModelConfig, DataConfig, TrainingConfig, DistillationConfig)


def with_defaults(saved: Any) -> dict[str, dict[str, Any]] | None:
    """The tree of a config.yaml in which what its version of hart did not have has today's default.

    None where it is no configuration: the section `distillation` alone may be missing.
    """
    default = RunConfig().to_dict()
    earliest = default.keys() - {DistillationConfig.section}
    if not isinstance(saved, dict) or not earliest <= saved.keys() <= default.keys():
        return None
    if not all(isinstance(fields, dict) for fields in saved.values()):
        return None
    return {section: fields | saved.get(section, {}) for section, fields in default.items()}


def flattened(saved: Any) -> dict[str, Any] | None:
    """ "section.field" → value of what `with_defaults` takes, with all fields of today; None where that is None."""
    whole = with_defaults(saved)
    if whole is None:
        return None
    return {f"{section}.{name}": value for section, fields in whole.items() for name, value in fields.items()}


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
    sections = {each.section: each for each in SECTIONS}
    raw = read_sections(Path(path), sections)
    overridden = apply_overrides(raw, overrides, sections)
    try:
        return RunConfig(
            model=ModelConfig(**raw["model"]),
            data=DataConfig(**raw["data"]),
            training=TrainingConfig(**raw["training"]),
            distillation=DistillationConfig(**raw["distillation"]),
        )
    except FieldError as error:
        given = ".".join(error.field.split(".")[:2]) in overridden
        raise error.within("--" if given else f"{path}: ") from None
