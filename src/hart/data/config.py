"""The `data` section of a configuration: the tasks, and how they become inputs of both networks."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from hart.data.base import Collection
from hart.data.collections import COLLECTIONS, CollectionName
from hart.data.prompts import PromptFormat
from hart.runtime.sections import LIMIT, Fraction, NaturalInt, PositiveInt, Section

Length = Annotated[int, Field(ge=2, lt=LIMIT)]


class DataConfig(Section):
    """The tasks, and how they are turned into the inputs of both networks."""

    section: ClassVar[str] = "data"

    collection: CollectionName = "sni"
    """Super-NaturalInstructions (§4.1), the Public Pool of Prompts (§4.2), the bundled procedural collection,
    texts of facts to be asked for (needle), or text to pre-train on, cut into four segments (HyperTuning-PT) or three
    (HINT)."""
    dir: str | None = None
    """Folder in the layout of the official repository, of P3's subsets, or of C4's files for segments; null loads
    `hub_name`."""
    hub_name: str | None = None
    """Hub data set that stands in for a folder; null: the collection's own (for segments allenai/c4)."""
    train_subsets: list[str] | None = None
    """P3 subsets to train on, names or patterns; null: T0's training mixture of 38 data sets (App. 8.1.3)."""
    test_subsets: list[str] | None = None
    """P3 subsets to test on; null: the eight held-out tasks, in all templates that state the original task and have
    answer choices (§4.2; for COPA all 12 of them, T0's own code has 8)."""
    max_average_length: PositiveInt = 320
    """Average tokens above which a P3 subset is not trained on (App. 8.1.3); here of input and target together,
    measured on 1000 rows of each subset."""
    max_document_tokens: Annotated[int, Field(ge=16, lt=LIMIT)] = 512
    """Tokens of a document that segments are cut from (HINT: 512)."""
    demonstrations_to: Literal["hypernetwork", "main", "nowhere"] = "hypernetwork"
    """Who reads definition and demonstrations: the hypernetwork, the main model before its query (FT-Few-Shot,
    Tk-Instruct, Prefix-Tuning, LoRA), or nobody (FT-Zero-Shot)."""
    max_train_instances: PositiveInt | None = 100
    """Instances kept per training task, after a shuffle (Tk-Instruct; open in the paper)."""
    max_test_instances: PositiveInt | None = 100
    """First instances kept per test task (the S-NI benchmark); commands have --max-instances."""
    training_tasks: PositiveInt | None = None
    """Number of tasks to train on (ours), drawn by `seed` so that smaller draws are subsets of larger ones; null: all.
    Counts whole data sets of P3, and combinations of the procedural collection in all their wordings. Shows how scores
    grow with the number of tasks."""
    validation_tasks: NaturalInt = 0
    """Training tasks set aside to choose hyper-parameters on (open); of P3 whole data sets, in all their templates."""
    num_demonstrations: NaturalInt = 2
    """Demonstrations behind the definition: "two fixed positive demonstrations" (§4.1); P3: 16 (§4.2)."""
    demonstration_groups: PositiveInt = 1
    """The most groups of `num_demonstrations` that the hypernetwork reads, each behind the definition and with its own
    `max_demonstrations_length`. They are encoded one by one and attended to together (ours, after
    fusion-in-decoder), so that the cost is proportional to the number of demonstrations."""
    omit_definition: Fraction = 0.0
    """Share of training tasks shown without their definition (ours), so that demonstrations alone must suffice."""
    omit_demonstrations: Fraction = 0.0
    """Share of training tasks shown without demonstrations (ours), so that the definition alone must suffice."""
    definition_first: Fraction = 0.0
    """Share of the training's steps, from the first on, that show definitions alone (ours); the rest shows whole tasks.
    Such steps are shorter and learned faster (docs/results.md)."""
    fewest_demonstrations: PositiveInt | None = None
    """Least number of demonstrations per task: each step draws a number between this and all that the task would show
    (ours), so that few demonstrations work as well as many; null: always all of them."""
    distractors: str | None = None
    """File of queries unrelated to any task (ours), one per line (.txt) or JSON lines with `input` (.jsonl). A tenth
    of them is never trained on and is kept for the robustness evaluation."""
    distractor_share: Fraction = 0.0
    """Share of training queries replaced by a distractor, with the un-adapted base's answer as its target (ours), so
    that an adaptation leaves unrelated queries alone."""
    explanations: bool = False
    """Follow each demonstration by its explanation, as Tk-Instruct does (§4.1)."""
    demonstrations: Literal["fixed", "sampled"] = "fixed"
    """The first ones of the task (§4.1), or "randomly sample K shot demonstration examples" (App. 8.1.3)."""
    input_eos: bool | None = None
    """Whether the main model's input ends with the end-of-sequence token; null: it does, but for P3 (T0's inputs have
    none, its targets do). It tells a decoder-only model where its answer begins."""
    chat_template: bool = False
    """Wrap the main model's input in the chat template of its tokenizer, as instruct models read it; only for
    decoder-only models, and instead of `input_eos`."""
    task_sampling: Literal["proportional", "uniform"] = "proportional"
    """How a training task is drawn: by (capped) size (§2.1), or all with equal chances (App. 8.1.3)."""
    max_demonstrations_length: Length = 1024
    """Tokens of the hypernetwork's input: "maximum input sequence length ... as 1024" (App. 8.1.3)."""
    max_query_length: Length = 384
    """Tokens of the main model's input: "maximum input ... as 384" (App. 8.1.3)."""
    max_target_length: Length = 128
    """Tokens of a target: "... and target sequence length as ... 128" (App. 8.1.3)."""
    seed: NaturalInt = 0
    """Seed that decides which S-NI instances are kept, which tasks are set aside and which `training_tasks` are drawn;
    training.seed draws the examples."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for field, problem in self.source.problems(self):
            self._refuse(field, problem)
        if self.omit_definition + self.omit_demonstrations >= 1:
            self._refuse(
                "omit_definition", "and omit_demonstrations must add up to less than 1, so that some tasks stay whole"
            )
        for name in ("omit_definition", "omit_demonstrations", "definition_first"):
            if not getattr(self, name):
                continue
            if self.segments or self.prompt_format == "prompts":
                self._refuse(name, f"must be 0 with {self.collection}, whose tasks lack definition or demonstrations")
            if self.demonstrations_to == "nowhere" or not self.num_demonstrations:
                self._refuse(name, "must be 0 unless both definition and demonstrations are read")
        if self.distractors is not None and not self.distractors.strip():
            self._refuse("distractors", "is empty; give the path of a file, or null")
        if self.distractor_share:
            if self.distractors is None:
                self._refuse("distractor_share", "must be 0 without a file of data.distractors")
            if self.segments or self.demonstrations_to != "hypernetwork":
                self._refuse("distractor_share", "must be 0 where no hypernetwork reads tasks")
        if self.fewest_demonstrations is not None:
            most = self.num_demonstrations * self.demonstration_groups
            if self.segments or self.demonstrations_to == "nowhere":
                self._refuse("fewest_demonstrations", "must be null where no demonstrations of a task are read")
            if self.fewest_demonstrations > most:
                self._refuse("fewest_demonstrations", f"must be at most {most}, the demonstrations that a task shows")
        return self

    @property
    def source(self) -> Collection:
        """The collection that is named."""
        return COLLECTIONS[self.collection]

    @property
    def prompt_format(self) -> PromptFormat:
        """How a task is written."""
        return self.source.prompt_format

    @property
    def segments(self) -> bool:
        """Whether this is text to pre-train on instead of tasks."""
        return self.source.is_text
