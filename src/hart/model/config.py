"""The `model` section of a configuration: the main model and what adapts it."""

from typing import Any, ClassVar, Literal, Self

from pydantic import model_validator

from hart.runtime.sections import Fraction, PositiveInt, Section


class ModelConfig(Section):
    """The main model and what adapts it: every system of the paper is a choice of these fields."""

    section: ClassVar[str] = "model"

    base: str = "google/t5-large-lm-adapt"
    """Main model, a hub name or folder: "the LM-adapted T5 models (version 1.1)" (§4.1), or a decoder-only model."""
    base_revision: str | None = None
    """Revision of the main model on the hub; null is its newest."""
    weights: Literal["generated", "learned", "none"] = "generated"
    """Where the PEFT parameters come from: a hypernetwork, one learned set for all tasks (the Prefix-Tuning and
    LoRA baselines), or nowhere (full fine-tuning)."""
    train_main: bool = False
    """Train the main model too: full fine-tuning, and HINT, whose networks "are jointly fine-tuned" (§4.1)."""
    tied_encoder: bool = False
    """The hypernetwork's encoder is the main model's own, one module (HINT: "share weights")."""
    init_from: str | None = None
    """Folder of a trained model whose trained weights this run starts from (pre-training, then fine-tuning)."""
    hypernetwork_init: str | None = None
    """T5 checkpoint of the hypernetwork; null: the base ("initialize both ... with", §4.1). A decoder-only base needs
    one, of any size, which reads tasks with its own tokenizer."""
    encoder: Literal["t5", "main_model"] = "t5"
    """What encodes a task for the hypernetwork: a T5's encoder, or the frozen decoder-only main model, whose own hidden
    states a new T5 decoder reads (ours, after doc-to-lora and SHINE; nothing of the main model is copied)."""
    encoder_layers: list[PositiveInt] | None = None
    """Layers of the main model, counted from 1, whose states are read; null: one at three quarters of the depth."""
    hypernetwork_width: PositiveInt | None = None
    """Width of the new decoder where the main model encodes; null: the main model's."""
    decoder_layers: PositiveInt = 8
    """Decoder layers of the hypernetwork, from the bottom: "the first 8 decoder layers (out of 24)" (§4.1)."""
    scheme: dict[str, Any] = {"name": "autoregressive"}
    """How layer states are generated, by name, with the scheme's own fields (§3.1)."""
    peft: list[dict[str, Any]] = [{"kind": "prefix", "length": 32}]
    """What is generated; "the length of the prefix ... p, which is set to be 32" (App. 8.1.2).
    An empty list leaves fusion alone (ablation)."""
    fusion: bool = True
    """Fusion-in-decoder: "prepend the hypernetwork's encoder output to the main model's" (App. 8.1.3)."""
    memory_in_front: bool = False
    """Counterpart of fusion for a decoder-only main model (ours): the hypernetwork's memory, mapped once to the main
    model's width, gives keys and values in front of the query in every layer."""
    head_bias: bool = False
    """Add a learned part, the same for all tasks, to the generated rows (ours, after text-to-lora and doc-to-lora)."""
    dropout: Fraction | None = None
    """Dropout of the hypernetwork (open); null keeps its checkpoint's. A frozen main model has none."""
    attention: Literal["sdpa", "eager"] = "sdpa"
    """Attention kernel of the main model; both give the same numbers."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type in which a frozen main model is stored; T5 overflows in float16."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time, the same gradients."""

    @model_validator(mode="after")
    def _check(self) -> Self:
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
        return self

    def _check_generated(self) -> None:
        if not self.peft and not self.fusion and not self.memory_in_front:
            self._refuse("peft", "is empty while fusion is off: demonstrations would have no effect")
        if self.fusion and self.memory_in_front:
            self._refuse(
                "memory_in_front",
                "is for decoder-only bases, and model.fusion for T5s; set one of the two to false",
            )
        if self.head_bias and not self.peft:
            self._refuse("head_bias", "must be false where model.peft is []: no rows are generated")
        self._check_encoder()
        if self.tied_encoder and not self.train_main:
            self._refuse("tied_encoder", "needs model.train_main: a frozen encoder cannot learn to read tasks")
        if self.tied_encoder and self.hypernetwork_init is not None:
            self._refuse("hypernetwork_init", "must be null where model.tied_encoder shares the main model's encoder")

    def _check_encoder(self) -> None:
        if self.encoder == "t5":
            for name in ("encoder_layers", "hypernetwork_width"):
                if getattr(self, name) is not None:
                    self._refuse(name, "must be null where model.encoder is t5, whose checkpoint has its own")
            return
        if self.train_main:
            self._refuse(
                "encoder", "main_model needs a frozen main model: set model.train_main to false, or this to t5"
            )
        if self.hypernetwork_init is not None:
            self._refuse(
                "hypernetwork_init", "must be null where model.encoder is main_model: the decoder is newly initialised"
            )

    def _check_without_hypernetwork(self) -> None:
        if self.fusion:
            self._refuse("fusion", f"needs a hypernetwork, and model.weights is {self.weights}; set it to false")
        for name in (
            "tied_encoder",
            "hypernetwork_init",
            "encoder",
            "encoder_layers",
            "hypernetwork_width",
            "memory_in_front",
            "head_bias",
        ):
            if getattr(self, name) != type(self).model_fields[name].default:
                self._refuse(name, f"belongs to a hypernetwork, and model.weights is {self.weights}; remove it")
        if self.weights == "learned" and not self.peft:
            self._refuse("peft", "is empty, and model.weights is learned: there is nothing to learn; name a kind")
        if self.weights == "none" and self.peft:
            self._refuse("peft", "must be [] where model.weights is none")
        if self.weights == "none" and not self.train_main:
            self._refuse("weights", "is none and the main model is frozen: nothing would be trained")
