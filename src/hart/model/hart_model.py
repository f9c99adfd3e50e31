"""The whole system: a main model with its source of PEFT parameters (Fig. 2; the systems of Tables 2 to 7).

In HART a hypernetwork reads the task and generates PEFT parameters for a frozen main model. The baselines are the same
class with other parts: learned parameters instead of generated ones, a trained main model, demonstrations in its
input, or an encoder that both networks share. `adapt` turns a task into an `Adaptation` in one forward pass;
`generate`, `score` and `classify` use it. `forward` is the training pass. `hart.model.folder` reads and writes the
files of a saved system.
"""

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from hart.data.config import DataConfig
from hart.data.input_format import InputFormat
from hart.data.prompts import Cuts
from hart.data.tasks import Task
from hart.errors import HartError
from hart.hypernetwork.network import HyperNetwork, HyperOutput
from hart.model import adapting
from hart.model.adaptation import Adaptation
from hart.model.answering import Answer
from hart.model.base_checkpoint import load_base
from hart.model.classification import Classification
from hart.model.classifying import classify
from hart.model.config import ModelConfig
from hart.model.folder import MAIN_FOLDER, check_make, fetch, load_system, read_config, upload, write_folder
from hart.model.main_model import MainModel
from hart.model.peft_source import PeftSource, check_source, load_weights, new_peft_source
from hart.model.scoring import score_choices
from hart.peft.base import PeftKind
from hart.peft.injection import repeated
from hart.peft.learned import LearnedWeights
from hart.runtime.files import new_directory


@dataclass
class HartOutput:
    """The result of a training pass.

    Attributes:
        logits: logits of the main model under teacher forcing, one for each label.
        states: layer states of the hypernetwork; L = 0 without one.
    """

    logits: Float[Tensor, "b u vocabulary"]
    states: Float[Tensor, "n S L m d"]


class HartModel(nn.Module):
    """A main model with a hypernetwork, with learned PEFT parameters, or alone (full fine-tuning).

    `adapt`, `generate`, `answers`, `score`, `classify` and everything built on them (evaluation, export) may be called
    from several threads and asyncio tasks at the same time. Training, loading weights and moving to another device
    need a single thread.

    Args:
        main: the main model.
        peft_source: the source of the PEFT parameters: a `HyperNetwork` made for a main model of the same shape,
            `LearnedWeights`, or None (full fine-tuning).
        fusion: whether the main decoder also attends to the hypernetwork's encoding (App. 8.1.3); the main model needs
            cross-attention.
        train_main: whether the main model's weights are trained; otherwise the constructor freezes it.
        input_format: how tasks and queries are turned into tokens.
        reader: tokenizer with which the hypernetwork reads tasks; None: the main model's.
        name: name of the model in adaptations and model cards.
        origin: name, revision and fingerprint of the base from which a trained `main` started.

    Raises:
        HartError: the hypernetwork was made for another main model, or this family of main models lacks a requested
            part.
    """

    def __init__(
        self,
        main: MainModel,
        peft_source: PeftSource | None,
        *,
        fusion: bool = True,
        train_main: bool = False,
        input_format: InputFormat | None = None,
        reader: PreTrainedTokenizerBase | None = None,
        name: str = "",
        origin: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_source(peft_source, main, fusion=fusion, name=name)
        self.main = main
        self.reader = main.tokenizer if reader is None else reader
        self.hypernetwork = peft_source if isinstance(peft_source, HyperNetwork) else None
        self.learned = peft_source if isinstance(peft_source, LearnedWeights) else None
        self.fusion = fusion and self.hypernetwork is not None
        self.train_main = train_main
        self.input_format = input_format or InputFormat()
        # The bare base reads a query as the adapted one does, without demonstrations, which only an adaptation has.
        main.plain_format = replace(self.input_format, demonstrations_to="nowhere")
        self.name = name
        if self.hypernetwork is not None:
            self.hypernetwork.use_main(main.model)
        # Computed before training, which changes the weights.
        self._origin = dict(origin) if origin else main.identity
        if not train_main:
            main.freeze()

    def __repr__(self) -> str:
        """A one-line summary; `model.main.model` and `model.hypernetwork` show their modules."""
        kinds = "+".join(kind.name for kind in self.kinds) or "none"
        parts = [f"name={self.name!r}", f"base={self.main.name!r}", f"weights={self.weights}", f"peft={kinds}"]
        if self.hypernetwork is not None and self.hypernetwork.scheme is not None:
            parts.append(f"scheme={self.hypernetwork.scheme.name}")
        made = sum(each.numel() for each in self.peft_source.parameters()) if self.peft_source is not None else 0
        parts += [f"memory={self.gives_memory}", f"parameters={made / 1e6:.1f}M", f"device={str(self.device)!r}"]
        return f"HartModel({', '.join(parts)})"

    @classmethod
    def from_config(cls, model: ModelConfig, data: DataConfig, *, seed: int = 0) -> Self:
        """Build an untrained system: the unchanged base, and a hypernetwork initialised from a checkpoint (§4.1).

        `seed` determines the new weights (learnable inputs and heads, or learned parameters).

        Raises:
            HartError: the base or checkpoint does not exist, or the parts do not fit each other.
        """
        main = MainModel.from_pretrained(
            model.base, revision=model.base_revision, dtype=model.dtype, attention=model.attention
        )
        torch.manual_seed(seed)
        source, reader = new_peft_source(model, main)
        system = cls(
            main,
            source,
            fusion=model.fusion,
            train_main=model.train_main,
            input_format=InputFormat.from_config(data),
            reader=reader,
        )
        if model.init_from is not None:
            system.start_from(model.init_from)
        if model.gradient_checkpointing:
            system.enable_gradient_checkpointing()
        return system

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        revision: str | None = None,
        base: str | None = None,
        dtype: torch.dtype | str = "float32",
        attention: Literal["sdpa", "eager"] = "sdpa",
        device: str | torch.device | None = None,
    ) -> Self:
        """Load a trained system from a folder, the hub or the package (`mini`), together with its base.

        Args:
            name: folder or hub name of a saved `HartModel`, or `mini`.
            revision: revision of the saved model on the hub.
            base: location of the base, if not the one named in the model (e.g. a copy on a machine without internet).
                A trained main model is in the saved folder itself.
            dtype: type of both networks' weights: bfloat16 takes half the memory, and less time on processors with
                bfloat16 products (docs/performance.md). T5 overflows in float16.
            attention: `sdpa` or `eager`.
            device: device of all weights.

        Raises:
            HartError: nothing is found under `name`, it is not a HART model, its weights are damaged, or the base
                differs from the one it was trained with.
        """
        arguments, trained = load_system(str(name), revision=revision, base=base, dtype=dtype, attention=attention)
        # A loaded system is for use, so a trained main model is frozen, too.
        system = cls(**arguments)
        system.train_main = trained
        return system.eval().to(device) if device is not None else system.eval()

    def save_pretrained(
        self,
        directory: str | Path,
        *,
        card: str | None = None,
        about: str = "",
        weights: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Write config.json, model.safetensors (trained weights outside the main model), main/ and a model card.

        Args:
            directory: a folder that does not exist yet, is empty, or holds a saved model, which is replaced.
            card: text of README.md; None writes one from the configuration.
            about: Markdown appended to the written card, such as that of `hart.training.run_card.run_card`.
            weights: as in `write`.

        Raises:
            HartError: the folder has other content or cannot be written; nothing is left half-written.
        """
        with new_directory(directory, replaces="config.json") as partial:
            self.write(partial, card=card, about=about, weights=weights)

    def write(
        self, folder: Path, *, card: str | None = None, about: str = "", weights: Mapping[str, Tensor] | None = None
    ) -> None:
        """Write the files of `save_pretrained` into an existing folder, for callers that publish it atomically.

        Args:
            card, about: as in `save_pretrained`.
            weights: complete values of the trained parameters by name, needed if the modules hold only shards.
        """
        main = self.main if self.train_main else None
        # The tokenizer of a T5 beside a decoder-only base is saved even if it is the same as the base's.
        beside = self.hypernetwork is not None and self.hypernetwork.config.has_own_encoder
        own = self.reader is not self.main.tokenizer or (beside and not self.main.shape.has_encoder)
        reader = self.reader if own else None
        write_folder(folder, self.peft_source, main, self._info(), self.kinds, card, about, weights, reader)

    def start_from(self, name: str | Path) -> None:
        """Load the trained weights of a saved system of the same make: pre-training, then fine-tuning (§4.1).

        Raises:
            HartError: nothing is found under `name`, or its system has another make (`hart.model.folder.check_make`).
        """
        folder = fetch(str(name), None)
        own = {} if self.hypernetwork is None else self.hypernetwork.config.to_dict()
        own |= {"peft": [kind.to_config() for kind in self.kinds], **self._info()}
        check_make(str(name), read_config(folder), own)
        self.load_trained(folder)

    def load_trained(self, folder: Path) -> None:
        """Copy the trained weights of a saved system or a checkpoint of the same configuration.

        Raises:
            HartError: files are missing, damaged, or belong to a system of another make.
        """
        if self.peft_source is not None:
            load_weights(self.peft_source, folder)
        if self.train_main:
            trained = load_base(str(folder / MAIN_FOLDER), dtype=torch.float32).model
            self.main.model.load_state_dict(trained.state_dict())

    def push_to_hub(
        self, repo_id: str, *, private: bool = False, revision: str | None = None, card: str | None = None
    ) -> str:
        """Upload what `save_pretrained` writes; returns the address of the commit.

        Raises:
            HartError: the hub refuses, or cannot be reached.
        """
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            self.save_pretrained(folder, card=card)
            return upload(folder, repo_id, private=private, revision=revision)

    def _info(self) -> dict[str, Any]:
        """The fields under `system` in config.json, at least `hart.model.folder.FIELDS`."""
        return {
            **self._origin,
            "weights": self.weights,
            "fusion": self.fusion,
            "train_main": self.train_main,
            "input_format": asdict(self.input_format),
        }

    @property
    def peft_source(self) -> PeftSource | None:
        """The source of the PEFT parameters; None for full fine-tuning."""
        return self.hypernetwork or self.learned

    @property
    def gives_memory(self) -> bool:
        """Whether the main model attends to the hypernetwork's memory: fused (T5), or in front (decoder-only)."""
        return self.fusion or (self.hypernetwork is not None and self.hypernetwork.config.memory_in_front)

    @property
    def weights(self) -> Literal["generated", "learned", "none"]:
        """The origin of the PEFT parameters under its name in the configuration field `model.weights`."""
        if self.hypernetwork is not None:
            return "generated"
        return "none" if self.learned is None else "learned"

    @property
    def kinds(self) -> tuple[PeftKind, ...]:
        """The PEFT kinds that are generated or learned."""
        return () if self.peft_source is None else self.peft_source.kinds

    @property
    def device(self) -> torch.device:
        return self.main.device

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations of both networks in the backward pass (less memory, the same gradients)."""
        network = self.hypernetwork
        if network is not None and network.config.has_own_encoder:
            network.encoder.activation_checkpointing_enable({"use_reentrant": False})
        # In the hypernetwork's decoder only attention weights of long steps are recomputed (`DecoderPass`).
        if network is not None and network.decoder is not None:
            network.decoder.gradient_checkpointing = True  # its own blocks never run; the method would look for inputs
        self.main.enable_gradient_checkpointing()

    def forward(
        self,
        query_ids: Int[Tensor, "b t"],
        query_mask: Shaped[Tensor, "b t"],
        labels: Int[Tensor, "b u"],
        demo_ids: Int[Tensor, "n *g s"] | None = None,
        demo_mask: Shaped[Tensor, "n *g s"] | None = None,
    ) -> HartOutput:
        """One training pass (Eq. 5 without the loss) over queries of n tasks.

        Args:
            query_ids, query_mask: input of the main model, including demonstrations if the main model reads them.
            labels: target tokens, -100 on padding.
            demo_ids, demo_mask: definition and demonstrations, for the hypernetwork; n divides b, and task g serves
                the queries g·b/n to (g+1)·b/n − 1. None without a hypernetwork.

        Raises:
            HartError: demonstrations are missing, they are given without a hypernetwork, or n does not divide b.
        """
        reads = self.hypernetwork is not None
        if (demo_ids is not None) != reads or (demo_mask is not None) != reads:
            advice = "give both" if reads else "this system has none; leave them out"
            raise HartError(f"demo_ids and demo_mask are for a hypernetwork: {advice}")
        if self.hypernetwork is None or demo_ids is None or demo_mask is None:
            blocks = {} if self.learned is None else self.learned()
            logits = self.main(query_ids, query_mask, labels=labels, blocks=blocks, peft=self.kinds).logits
            return HartOutput(logits, logits.new_zeros(query_ids.shape[0], len(self.main.shape.stacks), 0, 1, 1))
        made = self.hypernetwork(demo_ids, demo_mask)
        batch = query_ids.shape[0]
        if batch % demo_ids.shape[0]:
            raise HartError(f"demo_ids has {demo_ids.shape[0]} rows, which must divide the {batch} queries")
        output = self.main(
            query_ids,
            query_mask,
            labels=labels,
            blocks={name: repeated(rows, batch) for name, rows in made.blocks.items()},
            peft=self.kinds,
            memory=repeated(made.memory, batch) if self.gives_memory else None,
            memory_mask=repeated(made.memory_mask, batch) if self.gives_memory else None,
        )
        return HartOutput(output.logits, made.states)

    @torch.no_grad()
    def adapt(
        self, task: Task | Sequence[Task], *, demonstration_groups: int | None = None, cuts: Cuts | None = None
    ) -> Adaptation:
        """Adapt the main model to a task in one forward pass, without gradients. Thread-safe.

        The adaptation to several tasks has one entry per task; use it with one query per entry, or index it. Without a
        hypernetwork nothing is computed: the adaptation holds the learned parameters, or the demonstrations that the
        main model reads before each query.

        A warning is logged if a task has more demonstrations or longer texts than the model reads.

        Args:
            demonstration_groups: largest number of groups of demonstrations that the hypernetwork reads; None: as many
                as in training (`data.demonstration_groups`). A group has `data.num_demonstrations` demonstrations.
            cuts: records these cuts instead of the warning.

        Raises:
            HartError: no task is given, a value is not a task, a task has no text that the model reads, groups are
                given to a model that reads none, or the generated parameters are not finite.
        """
        given = isinstance(task, Iterable) and not isinstance(task, str | Mapping)
        tasks = [task] if isinstance(task, Task) else list(task) if given else None
        if tasks is None or not all(isinstance(each, Task) for each in tasks):
            raise HartError("adapt needs a hart.Task, or a list of them: Task(definition, demonstrations)")
        if not tasks:
            raise HartError("adapt needs at least one task")
        return adapting.adapt(self, tasks, self.format_with_groups(demonstration_groups), cuts)

    def format_with_groups(self, groups: int | None) -> InputFormat:
        """The input format of this model with another number of groups of demonstrations.

        Raises:
            HartError: the model has no hypernetwork that reads groups, or the number is below 1.
        """
        if groups is None or groups == self.input_format.demonstration_groups:
            return self.input_format
        if self.hypernetwork is None or not self.input_format.num_demonstrations:
            raise HartError(
                f"demonstration_groups: {self.name or 'this model'} has no hypernetwork to read them; leave it out"
            )
        return replace(self.input_format, demonstration_groups=groups)

    def incremental(self, task: Task) -> adapting.IncrementalTask:
        """A task whose demonstrations arrive over time; see `hart.model.adapting.IncrementalTask`.

        Raises:
            HartError: the model reads no demonstrations, or the task has no text that the model reads.
        """
        return adapting.IncrementalTask(self, task)

    def read(self, tasks: Sequence[Task], cuts: Cuts) -> HyperOutput:
        """Run the hypernetwork over tasks, without dropout: the first part of `adapt`.

        Args:
            cuts: records demonstrations and texts that did not fit.

        Raises:
            HartError: the system has no hypernetwork, or a task has no text that the model reads.
        """
        return adapting.read(self, tasks, self.input_format, cuts)

    def generate(self, queries: str | Sequence[str], adaptation: Adaptation | None = None, **options: Any) -> list[str]:
        """Generate answers to the queries with the adapted main model; options as in `MainModel.answers`. Thread-safe.

        `adaptation` has one entry for all queries, one per query (a batch that mixes tasks), or one per group of
        neighbouring queries, all groups of equal size; None: the un-adapted base answers.
        """
        return [answer.text for answer in self.answers(queries, adaptation, **options)]

    def answers(
        self, queries: str | Sequence[str], adaptation: Adaptation | None = None, **options: Any
    ) -> list[Answer]:
        """As `generate`, but returns each answer with its tokens, token counts and whether it is finished."""
        return self.main.answers([queries] if isinstance(queries, str) else queries, adaptation, **options)

    def score(
        self, query: str, choices: Sequence[str], adaptation: Adaptation | None = None, **options: Any
    ) -> list[float]:
        """Log-probability of each choice as the answer, in nats; options as in `hart.model.scoring.score_choices`.

        Thread-safe. For many queries at once use `classify`, which gives probabilities among the choices, or
        `hart.model.scoring.score_choices(model.main, queries, choices, adaptation)` with choices for each query.

        Raises:
            HartError: as in `score_choices`, or `query` is not a text.
        """
        if not isinstance(query, str):
            raise HartError(
                f"score: query must be one text, not {type(query).__name__}; for many take classify, or "
                "hart.model.scoring.score_choices(model.main, …)"
            )
        return score_choices(self.main, [query], [choices], adaptation, **options)[0]

    def classify(
        self,
        queries: str | Sequence[str],
        choices: Sequence[str] | Sequence[Sequence[str]],
        adaptation: Adaptation | None = None,
        **options: Any,
    ) -> list[Classification]:
        """The most probable choice for each query and all probabilities; options as in `classifying.classify`.

        Thread-safe. `choices` is one list for all queries, or one list per query.
        """
        return classify(self.main, [queries] if isinstance(queries, str) else queries, choices, adaptation, **options)
