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
from typing import Any, ClassVar, Literal, get_type_hints

import yaml

from hart import strict
from hart.files import write_text


def _number(default: Any, *, least: float | None = None, above: float | None = None, below: float = 1e18) -> Any:
    """A numeric field and its range: least <= value or above < value, and value < below."""
    return field(default=default, metadata={"least": least, "above": above, "below": below})


class _Section:
    """Checks types and ranges when an instance is made.

    Raises:
        hart.strict.FieldError: a `HartError` that names ``section.field``.
    """

    section: ClassVar[str]

    def __post_init__(self) -> None:
        hints = _hints(type(self))
        for each in dataclasses.fields(self):  # type: ignore[arg-type]
            where = f"{self.section}.{each.name}"
            value = strict.typed(getattr(self, each.name), hints[each.name], where)
            if value is not None and each.metadata:
                strict.in_range(value, where, **each.metadata)
            # An int given for a float is stored as a float.
            object.__setattr__(self, each.name, value)
        self._check()

    def _check(self) -> None:
        """Rules that one field's type and range cannot say."""

    def _refuse(self, field_name: str, problem: str) -> None:
        raise strict.FieldError(f"{self.section}.{field_name}", problem)


def _hints(section: type[_Section]) -> dict[str, Any]:
    """Field name -> type."""
    hints = get_type_hints(section)
    return {each.name: hints[each.name] for each in dataclasses.fields(section)}  # type: ignore[arg-type]


@dataclass(frozen=True)
class ModelConfig(_Section):
    """The main model and what adapts it: every system of the paper is a choice of these fields."""

    section: ClassVar[str] = "model"

    #: Main model, a hub name or folder: "the LM-adapted T5 models (version 1.1)" (§4.1).
    base: str = "google/t5-large-lm-adapt"
    #: Revision of the main model on the hub; None is its newest.
    base_revision: str | None = None
    #: Where the PEFT parameters come from: a hypernetwork, one learned set for all tasks (the Prefix-Tuning and
    #: LoRA baselines), or nowhere (full fine-tuning).
    weights: Literal["generated", "learned", "none"] = "generated"
    #: Train the main model too: full fine-tuning, and HINT, whose networks "are jointly fine-tuned" (§4.1).
    train_main: bool = False
    #: The hypernetwork's encoder is the main model's own, one module (HINT: "share weights").
    tied_encoder: bool = False
    #: Folder of a trained model whose trained weights this run starts from (pre-training, then fine-tuning).
    init_from: str | None = None
    #: Checkpoint of the hypernetwork; None: the base ("initialize both ... with", §4.1).
    hypernetwork_init: str | None = None
    #: "We only keep the first 8 decoder layers (out of 24) in the hypernetwork" (§4.1).
    decoder_layers: int = _number(8, least=1)
    #: How layer states are generated, by name, with the scheme's own fields (§3.1).
    scheme: dict[str, Any] = field(default_factory=lambda: {"name": "autoregressive"})
    #: What is generated; "the length of the prefix ... p, which is set to be 32" (§8.1.2).
    #: An empty list leaves fusion alone (ablation).
    peft: list[dict[str, Any]] = field(default_factory=lambda: [{"kind": "prefix", "length": 32}])
    #: Fusion-in-decoder: "prepend the hypernetwork's encoder output to the main model's" (§8.1.3).
    fusion: bool = True
    #: Dropout of the hypernetwork (open); None keeps its checkpoint's. A frozen main model has none.
    dropout: float | None = _number(None, least=0, below=1)
    #: Attention kernel of the main model; both give the same numbers.
    attention: Literal["sdpa", "eager"] = "sdpa"
    #: Type in which a frozen main model is stored; T5 overflows in float16.
    dtype: Literal["float32", "bfloat16"] = "float32"
    #: Recompute activations in the backward pass: less memory, more time, the same gradients.
    gradient_checkpointing: bool = False

    def _check(self) -> None:
        if not self.base.strip():
            self._refuse("base", "is empty; give a hub name, a folder or mini-base")
        if not isinstance(self.scheme.get("name"), str):
            self._refuse("scheme", "needs a name, e.g. {name: autoregressive}")
        for index, kind in enumerate(self.peft):
            if not isinstance(kind.get("kind"), str):
                self._refuse(f"peft.{index}", "needs a kind, e.g. {kind: prefix, length: 32}")
        if self.weights == "generated":
            self._check_generated()
        else:
            self._check_without_hypernetwork()
        if self.train_main and self.dtype != "float32":
            self._refuse(
                "dtype", "must be float32 where the main model is trained (training.bf16 computes in bfloat16)"
            )

    def _check_generated(self) -> None:
        if not self.peft and not self.fusion:
            self._refuse("peft", "is empty while fusion is off: demonstrations would have no effect")
        if self.tied_encoder and not self.train_main:
            self._refuse("tied_encoder", "needs model.train_main: a frozen encoder cannot learn to read tasks")
        if self.tied_encoder and self.hypernetwork_init is not None:
            self._refuse("hypernetwork_init", "must be null where model.tied_encoder shares the main model's encoder")

    def _check_without_hypernetwork(self) -> None:
        if self.fusion:
            self._refuse("fusion", f"needs a hypernetwork, and model.weights is {self.weights}; set it to false")
        for name in ("tied_encoder", "hypernetwork_init"):
            if getattr(self, name):
                self._refuse(name, f"belongs to a hypernetwork, and model.weights is {self.weights}; remove it")
        if self.weights == "learned" and not self.peft:
            self._refuse("peft", "is empty, and model.weights is learned: there is nothing to learn; name a kind")
        if self.weights == "none" and self.peft:
            self._refuse("peft", "must be [] where model.weights is none")
        if self.weights == "none" and not self.train_main:
            self._refuse("weights", "is none and the main model is frozen: nothing would be trained")


@dataclass(frozen=True)
class DataConfig(_Section):
    """The tasks, and how they are turned into the inputs of both networks."""

    section: ClassVar[str] = "data"

    #: Super-NaturalInstructions (§4.1), the Public Pool of Prompts (§4.2), the bundled procedural collection, or text
    #: to pre-train on, cut into four segments (HyperTuning-PT) or three (HINT).
    collection: Literal["sni", "p3", "procedural", "four_segments", "three_segments"] = "sni"
    #: Folder in the layout of the official repository, of P3's subsets, or of C4's files for segments; None loads
    #: `hub_name`.
    dir: str | None = None
    #: Hub data set that stands in for a folder; None: the collection's own (for segments allenai/c4).
    hub_name: str | None = None
    #: P3 subsets to train on, names or patterns; None: T0's training mixture of 38 data sets (§8.1.3).
    train_subsets: list[str] | None = None
    #: P3 subsets to test on; None: the eight held-out tasks, in all templates that state the original task and have
    #: answer choices (§4.2; for COPA all 12 of them, T0's own code has 8).
    test_subsets: list[str] | None = None
    #: "We exclude tasks with average sequence lengths longer than 320 tokens" (P3, §8.1.3); here input and target
    #: together, measured on 1000 rows of each subset.
    max_average_length: int = _number(320, least=1)
    #: Tokens of a document that segments are cut from (HINT: 512).
    max_document_tokens: int = _number(512, least=16)
    #: Who reads definition and demonstrations: the hypernetwork, the main model before its query (FT-Few-Shot,
    #: Tk-Instruct, Prefix-Tuning, LoRA), or nobody (FT-Zero-Shot).
    demonstrations_to: Literal["hypernetwork", "main", "nowhere"] = "hypernetwork"
    #: Instances kept per training task, after a shuffle (Tk-Instruct; open in the paper).
    max_train_instances: int | None = _number(100, least=1)
    #: First instances kept per test task (the S-NI benchmark); commands have --max-instances.
    max_test_instances: int | None = _number(100, least=1)
    #: Training tasks set aside to choose hyper-parameters on (open); of P3 whole data sets, with all their templates.
    validation_tasks: int = _number(0, least=0)
    #: "the concatenation of the task definition and two fixed positive demonstrations" (§4.1); P3: 16 (§4.2).
    num_demonstrations: int = _number(2, least=0)
    #: Follow each demonstration by its explanation, as Tk-Instruct does (§4.1).
    explanations: bool = False
    #: Two fixed ones (§4.1), or "randomly sample K shot demonstration examples" (§8.1.3).
    demonstrations: Literal["fixed", "sampled"] = "fixed"
    #: Whether the main model's input ends with the end-of-sequence token; None: it does, but for P3 (T0's inputs have
    #: none, its targets do).
    input_eos: bool | None = None
    #: By (capped) size (§2.1), or "first randomly sample a task" with equal chances (§8.1.3).
    task_sampling: Literal["proportional", "uniform"] = "proportional"
    #: Tokens; "maximum input sequence length for the hypernetwork as 1024" (§8.1.3).
    max_demonstrations_length: int = _number(1024, least=2)
    #: Tokens; "for the main model, ... maximum input ... as 384" (§8.1.3).
    max_query_length: int = _number(384, least=2)
    #: Tokens; "... and target sequence length as ... 128" (§8.1.3).
    max_target_length: int = _number(128, least=2)
    #: Which S-NI instances are kept and which tasks are set aside; training.seed draws the examples.
    seed: int = _number(0, least=0)

    def _check(self) -> None:
        if self.collection == "p3":
            self._check_p3()
        else:
            for name in ("train_subsets", "test_subsets"):
                if getattr(self, name) is not None:
                    self._refuse(name, f"is for p3, and data.collection is {self.collection}; remove it")
        if self.collection == "procedural" and self.dir is not None:
            self._refuse("dir", "is for sni, p3 and segments; remove it, or set data.collection to one of them")
        if self.segments and self.demonstrations_to != "hypernetwork":
            self._refuse(
                "demonstrations_to", f"must be hypernetwork with {self.collection}: one segment is what it reads"
            )
        if self.segments and self.validation_tasks:
            self._refuse("validation_tasks", f"must be 0 with {self.collection}, which has no tasks")

    def _check_p3(self) -> None:
        if self.demonstrations_to != "nowhere" and self.demonstrations != "sampled":
            self._refuse("demonstrations", "must be sampled with p3, whose tasks have no fixed ones")
        if self.demonstrations_to != "nowhere" and not self.num_demonstrations:
            self._refuse("num_demonstrations", "is 0, and p3 has no definitions: nothing would tell the task")
        if self.explanations:
            self._refuse("explanations", "must be false with p3, which has none")

    @property
    def prompt_format(self) -> Literal["instructions", "prompts"]:
        """How a task is written: P3's rows are whole prompts already, other tasks have a definition."""
        return "prompts" if self.collection == "p3" else "instructions"

    @property
    def segments(self) -> bool:
        """Whether this is text to pre-train on instead of tasks."""
        return self.collection.endswith("_segments")


@dataclass(frozen=True)
class TrainingConfig(_Section):
    """The optimisation of the hypernetwork, and what a run writes."""

    section: ClassVar[str] = "training"

    #: Folder of the run: config.yaml, metrics.jsonl, checkpoints and final/.
    output_dir: str = "runs/hart"
    #: "10k steps in T5-Large experiments and 20k steps in T5-XL experiments" (§4.1).
    max_steps: int = _number(10_000, least=1)
    #: Queries per optimizer step, over all processes: "a batch size of 256" (§4.1).
    batch_size: int = _number(256, least=1)
    #: Queries per process and pass, the rest is accumulated; None: all at once. The result is the same
    #: up to rounding and the random draws of dropout.
    micro_batch_size: int | None = _number(None, least=1)
    #: Queries that share one hypernetwork pass, of one task with the same demonstrations (open; 1 is
    #: MetaICL's sampling). More make a step cheaper and its tasks fewer.
    queries_per_task: int = _number(1, least=1)
    #: "a learning rate of 5 x 10^-5" (§4.1).
    learning_rate: float = _number(5e-5, above=0)
    #: "a linear decay learning rate schedule" (§8.1.3).
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    #: Steps over which the rate first grows from 0 (open).
    warmup_steps: int = _number(0, least=0)
    #: Decoupled weight decay (open).
    weight_decay: float = _number(0.0, least=0)
    #: Norm to which gradients are clipped (open); None: never.
    max_grad_norm: float | None = _number(1.0, above=0)
    #: "the Adam-8bit optimizer" (§4.1); plain AdamW where bitsandbytes is missing.
    optimizer: Literal["adamw_8bit", "adamw"] = "adamw_8bit"
    #: Decay of Adam's mean of gradients and of their squares, and what is added to the root of the latter (open; those
    #: of Adam's paper, which torch, bitsandbytes and DeepSpeed have too).
    adam_beta1: float = _number(0.9, least=0, below=1)
    adam_beta2: float = _number(0.999, least=0, below=1)
    adam_epsilon: float = _number(1e-8, above=0)
    #: Weight of the local consistency loss; "We select alpha in {1, 10, 20}" (§4.1). 0: without.
    alpha: float = _number(1.0, least=0)
    #: Initial values of new weights, dropout and the order of the data.
    seed: int = _number(0, least=0)
    #: Compute in bfloat16 (autocast); the hypernetwork's weights stay in float32.
    bf16: bool = False
    #: DeepSpeed's configuration, a JSON file: optimizer states, gradients and weights are divided among the processes.
    deepspeed: str | None = None
    #: Divide weights, gradients and optimizer states among the processes with PyTorch's FSDP.
    fsdp: bool = False
    #: Steps between two lines of metrics.jsonl.
    log_every: int = _number(10, least=1)
    #: Steps between two evaluations on the validation tasks; 0, or no such tasks: none.
    eval_every: int = _number(0, least=0)
    #: Instances per validation task in these evaluations.
    eval_instances: int = _number(20, least=1)
    #: Steps between two checkpoints.
    save_every: int = _number(500, least=1)
    #: Checkpoints kept, besides the best one; older ones are deleted.
    keep_checkpoints: int = _number(2, least=1)
    #: Processes that prepare batches; the batches do not depend on it.
    num_workers: int = _number(0, least=0)
    #: Write TensorBoard files beside metrics.jsonl.
    tensorboard: bool = True
    #: Go on from the newest checkpoint in `output_dir`.
    resume: bool = True
    #: CPU threads; None: as many as torch takes by itself.
    num_threads: int | None = _number(None, least=1)

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
            hart.strict.FieldError: they contradict each other.
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


SECTIONS: tuple[type[_Section], ...] = (ModelConfig, DataConfig, TrainingConfig)


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
    fields = {section.section: _hints(section) for section in SECTIONS}
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
