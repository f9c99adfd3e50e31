"""The whole system: a hypernetwork that reads a task, and the frozen main model that it adapts (Fig. 2).

`HartModel` holds both networks. `adapt` turns a task into an `Adaptation` in one forward pass; `generate` and
`score` use one. `forward` is the training pass: demonstrations and queries in, logits and layer states out. A
saved model holds the hypernetwork alone and names the main model by id, revision and fingerprint.
"""

import dataclasses
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers.models.t5.modeling_t5 import T5Stack

from hart.adaptation import Adaptation
from hart.config import DataConfig, ModelConfig
from hart.data.prompts import Lengths, encode_task
from hart.data.tasks import Task
from hart.errors import HartError
from hart.files import new_directory
from hart.hypernetwork import HyperNetwork, HyperNetworkConfig
from hart.main_model import MainModel
from hart.model_card import model_card
from hart.peft import Blocks
from hart.resources import resolve_model


@dataclass(frozen=True)
class InputFormat:
    """How a task and a query are turned into tokens; a trained model expects the format of its training."""

    num_demonstrations: int = 2
    explanations: bool = False
    max_demonstrations_length: int = 1024
    max_query_length: int = 384
    max_target_length: int = 128

    @property
    def lengths(self) -> Lengths:
        return Lengths(self.max_demonstrations_length, self.max_query_length, self.max_target_length)

    @classmethod
    def from_config(cls, data: DataConfig) -> Self:
        return cls(**{f.name: getattr(data, f.name) for f in dataclasses.fields(cls)})


@dataclass
class HartOutput:
    """What a training pass yields.

    Attributes:
        logits: `[b, u, v]`, of the main model, for the shifted labels.
        states: layer states `[n, 2, L, m, d]` of the hypernetwork.
        blocks: generated parameters, block name → `[n, layers, rows, width]`.
    """

    logits: Tensor
    states: Tensor
    blocks: Blocks


class HartModel(nn.Module):
    """A hypernetwork and the frozen main model it adapts.

    Args:
        main: the main model; frozen here.
        hypernetwork: made for a main model of the same shape.
        fusion: whether the main decoder also attends to the hypernetwork's encoding (App. 8.1.3).
        input_format: how tasks and queries are turned into tokens.
        name: what the model is called in adaptations and model cards.
    """

    def __init__(
        self,
        main: MainModel,
        hypernetwork: HyperNetwork,
        *,
        fusion: bool = True,
        input_format: InputFormat | None = None,
        name: str = "",
    ) -> None:
        super().__init__()
        if hypernetwork.shape != main.shape:
            raise HartError(
                f"{name or 'hypernetwork'}: made for a main model of {hypernetwork.shape}, "
                f"{main.name} has {main.shape}; use the base it was trained with"
            )
        self.main = main
        self.hypernetwork = hypernetwork
        self.fusion = fusion
        self.input_format = input_format or InputFormat()
        self.name = name
        main.freeze()

    @classmethod
    def from_config(cls, model: ModelConfig, data: DataConfig, *, seed: int = 0) -> Self:
        """A system to be trained: the base as it is, the hypernetwork initialised from a checkpoint (§4.1).

        `seed` decides the new weights (learnable inputs and heads).
        """
        main = MainModel.from_pretrained(
            model.base,
            revision=model.base_revision,
            dtype=model.dtype,
            attention=model.attention,
        )
        torch.manual_seed(seed)
        hypernetwork = HyperNetwork.from_base(
            main,
            init=model.hypernetwork_init,
            decoder_layers=model.decoder_layers,
            scheme=model.scheme,
            peft=model.peft,
            dropout=model.dropout,
        )
        system = cls(main, hypernetwork, fusion=model.fusion, input_format=InputFormat.from_config(data))
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
        """A trained system: hypernetwork from a folder, the hub or `mini`, and the base that it names.

        Args:
            name: folder or hub name of a saved `HartModel`, or `mini`.
            revision: of the hypernetwork on the hub.
            base: where the base lies, if not where the model says (a copy on a machine without internet).
            dtype: of the frozen main model.
            attention: `sdpa` or `eager`.
            device: where both networks go.

        Raises:
            HartError: nothing there, not a HART model, damaged weights, or a base that differs from the
                one it was trained with.
        """
        folder = _fetch(resolve_model(str(name)), revision)
        info = _read_info(folder)
        try:
            # As in training, whatever type the file has: bfloat16 weights are for small downloads.
            hypernetwork = HyperNetwork.from_pretrained(folder, dtype=torch.float32)
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise HartError(f"{folder}: cannot be loaded ({reason}); is the download complete?") from error
        main = MainModel.from_pretrained(
            base or info["base"],
            revision=None if base else info["base_revision"],
            dtype=dtype,
            attention=attention,
        )
        if main.fingerprint != info["base_fingerprint"]:
            raise HartError(
                f"{folder}: was trained for another {info['base']} than the one found in "
                f"{main.name} (fingerprint {info['base_fingerprint']}, found {main.fingerprint})"
            )
        system = cls(main, hypernetwork, fusion=info["fusion"], input_format=info["input_format"], name=str(name))
        return system.eval().to(device) if device is not None else system.eval()

    def save_pretrained(self, directory: str | Path, *, card: str | None = None) -> None:
        """Write config.json, model.safetensors (the hypernetwork alone) and a model card.

        Args:
            directory: a folder that does not exist yet, is empty, or holds a saved model, which is replaced.
            card: text of README.md; None writes one from the configuration.

        Raises:
            HartError: the folder has other content, or cannot be written; nothing is left half-written.
        """
        with new_directory(directory, replaces="config.json") as partial:
            try:
                self.write(partial, card=card)
            except SafetensorError as error:  # a full disk, in its words
                raise HartError(f"{directory}: cannot be written ({error})") from error

    def write(self, folder: Path, *, card: str | None = None) -> None:
        """Put the files of `save_pretrained` into a folder that exists, for callers that make it appear whole."""
        self.hypernetwork.config.system = self._info()
        self.hypernetwork.save_pretrained(folder)
        text = card if card is not None else model_card(self.hypernetwork.config.to_dict())
        (folder / "README.md").write_text(text, encoding="utf-8")

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool = False,
        revision: str | None = None,
        card: str | None = None,
    ) -> str:
        """Upload what `save_pretrained` writes; returns the address of the commit.

        Raises:
            HartError: the hub refuses, or cannot be reached.
        """
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            self.save_pretrained(folder, card=card)
            try:
                api = HfApi()
                api.create_repo(repo_id, private=private, exist_ok=True)
                commit = api.upload_folder(repo_id=repo_id, folder_path=folder, revision=revision)
            except (HfHubHTTPError, HFValidationError, OSError) as error:
                reason = str(error).splitlines()[0]
                raise HartError(f"{repo_id}: upload failed ({reason})") from error
            return str(commit)

    def _info(self) -> dict[str, Any]:
        """What a saved model says beside its hypernetwork; the fields of `_INFO`."""
        return {
            "base": self.main.name,
            "base_revision": self.main.revision,
            "base_fingerprint": self.main.fingerprint,
            "fusion": self.fusion,
            "input_format": dataclasses.asdict(self.input_format),
        }

    @property
    def device(self) -> torch.device:
        return self.hypernetwork.device

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations of both networks in the backward pass (less memory, the same gradients)."""
        # Of the hypernetwork only the encoder: the decoder's steps hold two rows each, and their cache.
        encoder: T5Stack = self.hypernetwork.encoder
        encoder.activation_checkpointing_enable({"use_reentrant": False})
        self.main.enable_gradient_checkpointing()

    def forward(
        self,
        demo_ids: Tensor,
        demo_mask: Tensor,
        query_ids: Tensor,
        query_mask: Tensor,
        labels: Tensor,
    ) -> HartOutput:
        """One training pass (Eq. 5 before its loss): each row of the batch is its own task.

        Args:
            demo_ids, demo_mask: `[n, s]`, definition and demonstrations, for the hypernetwork; n divides b, and
                row g serves the queries g·b/n to (g+1)·b/n − 1.
            query_ids, query_mask: `[b, t]`, for the main model.
            labels: `[b, u]`, -100 on padding.
        """
        made = self.hypernetwork(demo_ids, demo_mask)
        blocks, memory, memory_mask = made.blocks, made.memory, made.memory_mask
        repeats = query_ids.shape[0] // demo_ids.shape[0]
        if repeats > 1:
            blocks = {k: v.repeat_interleave(repeats, dim=0) for k, v in blocks.items()}
            memory = memory.repeat_interleave(repeats, dim=0)
            memory_mask = memory_mask.repeat_interleave(repeats, dim=0)
        output = self.main(
            query_ids,
            query_mask,
            labels=labels,
            blocks=blocks,
            peft=self.hypernetwork.kinds,
            memory=memory if self.fusion else None,
            memory_mask=memory_mask if self.fusion else None,
        )
        return HartOutput(output.logits, made.states, made.blocks)

    @torch.no_grad()
    def adapt(self, task: Task | Sequence[Task]) -> Adaptation:
        """Read a task once and return what adapts the main model to it: one forward pass, no gradients.

        With several tasks the adaptation has one entry for each, to be used with one query each or indexed.

        Raises:
            HartError: no task, or a task without definition or demonstrations.
        """
        tasks = [task] if isinstance(task, Task) else list(task)
        if not tasks:
            raise HartError("adapt needs at least one task")
        rows = [
            encode_task(
                self.main.tokenizer,
                each,
                self.input_format.lengths,
                num_demonstrations=self.input_format.num_demonstrations,
                explanations=self.input_format.explanations,
            )
            for each in tasks
        ]
        ids, mask = self.main.pad(rows)
        training = self.training
        self.eval()
        try:
            made = self.hypernetwork(ids, mask)
        finally:
            self.train(training)
        return Adaptation(
            blocks=made.blocks,
            memory=made.memory if self.fusion else None,
            memory_mask=made.memory_mask if self.fusion else None,
            peft=[kind.to_config() for kind in self.hypernetwork.kinds],
            base=self.main.name,
            base_revision=self.main.revision,
            base_fingerprint=self.main.fingerprint,
            max_query_length=self.input_format.max_query_length,
            max_target_length=self.input_format.max_target_length,
            model=self.name,
            tasks=[{"name": each.name, **replace(each, instances=()).to_dict()} for each in tasks],
        )

    def generate(self, queries: str | Sequence[str], adaptation: Adaptation, **options: Any) -> list[str]:
        """Answers of the adapted main model; options as in `MainModel.generate`.

        `adaptation` serves all queries, or holds one entry for each (a batch that mixes tasks).
        """
        texts = [queries] if isinstance(queries, str) else list(queries)
        return self.main.generate(texts, adaptation, **options)

    def score(self, query: str, choices: Sequence[str], adaptation: Adaptation) -> list[float]:
        """Log-probability of each choice as the answer, in nats; see `MainModel.score`."""
        return self.main.score(
            query,
            list(choices),
            adaptation,
            max_query_length=self.input_format.max_query_length,
            max_target_length=self.input_format.max_target_length,
        )


_INFO = ("base", "base_revision", "base_fingerprint", "fusion", "input_format")


def _fetch(name: str, revision: str | None) -> Path:
    """The local folder of a saved model; downloads it if `name` is no folder."""
    folder = Path(name)
    if folder.is_dir():
        return folder
    try:
        return Path(snapshot_download(name, revision=revision))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise HartError(
            f"{name}: neither a folder nor a model that the hub has or that lies in its cache; "
            "give a folder, a hub name or mini"
        ) from error


def _read_info(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise HartError(f"{path}: cannot be read; is {folder} the folder of a saved HART model?") from error
    except ValueError as error:
        raise HartError(f"{path}: is not JSON ({error}); is the download complete?") from error
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind != HyperNetworkConfig.model_type:
        raise HartError(
            f"{path}: model_type is {kind!r}, not {HyperNetworkConfig.model_type!r}; "
            "give the folder of a saved HART model (a run's final/), not of a base"
        )
    info = config.get("system")
    missing = [name for name in _INFO if name not in info] if isinstance(info, dict) else ["base"]
    if missing:
        raise HartError(f"{path}: field system.{missing[0]} is missing; the model was not saved by HartModel")
    try:
        return {**info, "input_format": InputFormat(**info["input_format"])}
    except TypeError as error:
        raise HartError(f"{path}: system.input_format has other fields than this version of hart knows") from error
