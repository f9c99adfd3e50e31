"""The hypernetwork: it maps demonstrations to row blocks and a memory in one pass (§2.2, §3.1).

A T5 encoder reads the demonstrations. The first N layers of a T5 decoder, run by a generation scheme, turn its output
into layer states, and the heads turn layer states into row blocks. "We only keep the first 8 decoder layers (out of
24) in the hypernetwork for training efficiency" (§4.1). The encoder's output also goes to the main model's decoder
(fusion-in-decoder, App. 8.1.3).

For decoder-only main models (not in the paper), the frozen main model's own states can replace the encoder
(`hart.hypernetwork.main_states`), and the memory, mapped to the main model's width, can stand in front of queries.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, T5ForConditionalGeneration

from hart.errors import HartError
from hart.hypernetwork.config import T5_FIELDS, HyperNetworkConfig, check_beside, new_decoder, no_t5
from hart.hypernetwork.heads import BlockHead, RowBlockHeads
from hart.hypernetwork.main_states import MainStates, StatesToMemory, WidthMap, chosen_layers
from hart.hypernetwork.schemes.base import GenerationScheme, build_scheme, uses_decoder
from hart.hypernetwork.schemes.bidirectional import Bidirectional
from hart.hypernetwork.step_linear import step_linears
from hart.peft.base import Blocks, MainShape, RowBlock, build_kinds, row_blocks
from hart.runtime.third_party.transformers import T5Stack


@dataclass
class HyperOutput:
    """The output of one pass over the demonstrations of n tasks.

    Attributes:
        blocks: block name → generated rows of the n tasks.
        states: layer states h of §3.1, which the local consistency loss compares; axis 1 has the stacks of the main
            model; L = 0 where no parameters are generated.
        memory: the encoder's output, for fusion; mapped to the main model's width if it stands in front of queries.
        memory_mask: 1 for tokens, 0 for padding.
    """

    blocks: Blocks
    states: Float[Tensor, "n S L m d"]
    memory: Float[Tensor, "n s x"]
    memory_mask: Shaped[Tensor, "n s"]


class HyperNetwork(PreTrainedModel):
    """H(d; ξ) of Eq. 2: encoder, truncated decoder, generation scheme and heads.

    `from_base` initialises one from a T5 checkpoint, `from_states` one that reads the main model's states, and
    `from_pretrained` loads a trained one. With nothing to generate (`peft: []`) it consists of the encoder alone.

    Raises:
        HartError: a kind or scheme is unknown, or the width differs from that of a T5 main model.
    """

    config_class = HyperNetworkConfig
    config: HyperNetworkConfig
    main_input_name = "demo_ids"
    supports_gradient_checkpointing = True
    encoder: Any
    _no_split_modules = ["T5Block"]

    def __init__(self, config: HyperNetworkConfig) -> None:
        super().__init__(config)
        self.shape = MainShape(**config.main)
        self.kinds = build_kinds(config.peft)
        blocks = row_blocks(self.kinds, self.shape)
        encoder_config = config.stack_config(decoder=False)
        d_model = encoder_config.d_model
        if self.shape.has_encoder and d_model != self.shape.d_model:
            raise HartError(
                f"hypernetwork: d_model {d_model} differs from the main model's "
                f"{self.shape.d_model}; initialise it from a checkpoint of the same width"
            )
        if config.has_own_encoder:
            self.encoder = T5Stack(encoder_config)
        self.to_memory: StatesToMemory | None = None
        if config.encoder_layers is not None:
            self.to_memory = StatesToMemory(len(config.encoder_layers), self.shape.d_model, d_model)
        # One map for all layers of the main model.
        self.to_front = WidthMap(d_model, self.shape.d_model) if config.memory_in_front else None
        self.decoder: T5Stack | None = None
        self.scheme: GenerationScheme | None = None
        generated = [block for block in blocks if block.rows]
        if generated:
            self.scheme = build_scheme(
                config.scheme,
                d_model=d_model,
                layers=max(self.shape.depths),
                blocks=generated,
                stacks=len(self.shape.stacks),
            )
        if self.scheme is not None and self.scheme.uses_decoder:
            self.decoder = T5Stack(config.stack_config(decoder=True))
            step_linears(self.decoder)
            self.decoder.set_input_embeddings(None)
        vectors_of = self.scheme.vectors_of if self.scheme is not None else _no_vectors
        self.heads = RowBlockHeads(blocks, d_model, vectors_of, self.shape.stacks, bias=config.head_bias)
        self.post_init()

    @classmethod
    def from_base(
        cls,
        base: PreTrainedModel,
        *,
        source: PreTrainedModel | None = None,
        decoder_layers: int = 8,
        scheme: Mapping[str, Any],
        peft: Sequence[Mapping[str, Any]],
        dropout: float | None = None,
        tied_encoder: bool = False,
        memory_in_front: bool = False,
        head_bias: bool = False,
    ) -> Self:
        """Build a hypernetwork for `base`, initialised from its checkpoint or from another one (§4.1).

        Encoder, embeddings, the first `decoder_layers` decoder blocks (including block 0, which owns the relative bias)
        and the decoder's final norm are copies. The learnable inputs are drawn with the standard deviation of the
        checkpoint's embeddings, the scale of input that the decoder was trained on. The heads are drawn so that
        generated rows have the standard deviation that each kind states (`PeftKind.init_std`, computed from the weights
        of `base`). With generated parameters alone, the first loss is close to that of the un-adapted model. With
        fusion the main decoder also sees an encoding of the demonstrations that it was not trained to read.

        Args:
            base: the main model; it is not changed.
            source: the loaded checkpoint to start from; None: `base` itself. For a decoder-only base, a T5 of any width
                and vocabulary: the heads map to the base's widths.
            decoder_layers: N, the number of decoder layers to keep.
            scheme, peft, dropout, tied_encoder, memory_in_front, head_bias: as in `HyperNetworkConfig`.

        Raises:
            HartError: the checkpoint has fewer decoder layers; `source` is not a T5, or differs in width or vocabulary
                from a T5 `base`; `tied_encoder` with a decoder-only `base`; `memory_in_front` with a T5 `base`; or a
                kind or scheme is unknown.
        """
        shape = MainShape.from_config(base.config)
        check_beside(shape, memory_in_front=memory_in_front, main_states=False, tied_encoder=tied_encoder)
        source = base if source is None else source
        if not isinstance(source, T5ForConditionalGeneration):
            raise HartError(no_t5(source.name_or_path or "the base", source.config.model_type))
        _check_source(source, base.config if shape.has_encoder else None, decoder_layers if uses_decoder(scheme) else 1)
        config = HyperNetworkConfig(
            t5={name: getattr(source.config, name) for name in T5_FIELDS},
            decoder_layers=decoder_layers,
            scheme=dict(scheme),
            peft=[kind.to_config() for kind in build_kinds(peft)],
            main=asdict(shape),
            dropout=dropout,
            tied_encoder=tied_encoder,
            memory_in_front=memory_in_front,
            head_bias=head_bias,
        )
        # All weights are filled below; initialising them here would take longer than copying.
        with torch.device("meta"):
            network = cls(config)
        nn.Module.to(network, torch.float32)  # trained weights are float32, whatever type the checkpoint has
        network.to_empty(device=base.device)
        if not tied_encoder:
            network.encoder.load_state_dict(source.encoder.state_dict())
        if network.decoder is not None:
            weights = source.decoder.state_dict()
            network.decoder.load_state_dict({n: weights[n] for n in network.decoder.state_dict()})
        if network.scheme is not None:
            config.scheme = network.scheme.to_config()
            embeddings = source.get_input_embeddings().weight
            network.scheme.reset_parameters(embeddings.float().std().item())
            network.heads.reset_parameters(network._init_std(base))
        if network.to_front is not None:
            network.to_front.reset_parameters()
        return network

    @classmethod
    def from_states(
        cls,
        base: PreTrainedModel,
        *,
        layers: Sequence[int] | None = None,
        width: int | None = None,
        decoder_layers: int = 8,
        scheme: Mapping[str, Any],
        peft: Sequence[Mapping[str, Any]],
        dropout: float | None = None,
        memory_in_front: bool = False,
        head_bias: bool = False,
    ) -> Self:
        """Build a hypernetwork whose new decoder reads the hidden states of `base`, a frozen decoder-only model.

        All its weights are new: decoder and learnable inputs are initialised as in a new T5, maps from and to the width
        of `base` as in `WidthMap`, and heads as in `from_base`.

        Args:
            base: the main model; it is not changed.
            layers: layers whose states are read, counted from 1; None: one layer at three quarters of the depth.
            width: d_model of the decoder and the memory; None: that of `base`.
            decoder_layers: N, the number of decoder layers.
            scheme, peft, dropout, memory_in_front, head_bias: as in `HyperNetworkConfig`.

        Raises:
            HartError: `base` is a T5 or lacks one of the layers, or a kind or scheme is unknown.
        """
        shape = MainShape.from_config(base.config)
        check_beside(shape, memory_in_front=memory_in_front, main_states=True, tied_encoder=False)
        network = cls(
            HyperNetworkConfig(
                t5=new_decoder(width or shape.d_model, decoder_layers),
                decoder_layers=decoder_layers,
                scheme=dict(scheme),
                peft=[kind.to_config() for kind in build_kinds(peft)],
                main=asdict(shape),
                dropout=dropout,
                encoder_layers=chosen_layers(layers, shape.decoder_layers),
                memory_in_front=memory_in_front,
                head_bias=head_bias,
            )
        )
        if network.scheme is not None:
            network.config.scheme = network.scheme.to_config()
            network.heads.reset_parameters(network._init_std(base))
        nn.Module.to(network, base.device)
        network.use_main(base)
        return network

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Self:
        """Load a trained hypernetwork as any model of `transformers`; incomplete weights are an error, not a warning.

        Raises:
            HartError: the weights lack a tensor of the configuration, or have one of another shape.
        """
        loaded: Any = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        network, loading = loaded
        wrong = [*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])]
        if wrong:
            raise HartError(
                f"{network.name_or_path}: model.safetensors does not fit config.json at "
                f"{min(wrong)}; get both files from the same model"
            )
        return network

    def use_main(self, main: PreTrainedModel) -> None:
        """Use the main model as the encoder, if the configuration says so: its T5 encoder (HINT) or its hidden states.

        The encoder then is the main model's own module and not a copy. It is not registered as a submodule here, so it
        is trained, moved and saved as part of the main model. A hypernetwork with its own encoder ignores `main`.
        """
        if self.config.tied_encoder:
            self.__dict__["encoder"] = main.encoder
        elif self.config.encoder_layers is not None:
            self.encoder = MainStates(main, self.config.encoder_layers)

    @torch.no_grad()
    def attention_maps(
        self, demo_ids: Int[Tensor, "n *g s"], demo_mask: Shaped[Tensor, "n *g s"]
    ) -> Float[Tensor, "n S L L"]:
        """Attention between layer states (Fig. 1); see `Bidirectional.attention_maps`.

        Raises:
            HartError: the generation scheme is neither `bidirectional` nor `causal`.
        """
        if not isinstance(self.scheme, Bidirectional):
            raise HartError("attention maps between layers need model.scheme {name: bidirectional} or {name: causal}")
        return self.scheme.attention_maps(self.decoder, *self.encode(demo_ids, demo_mask))

    def encode(
        self, demo_ids: Int[Tensor, "n *g s"], demo_mask: Shaped[Tensor, "n *g s"]
    ) -> tuple[Float[Tensor, "n memory d"], Shaped[Tensor, "n memory"]]:
        """Memory of n tasks, the input of the decoder's cross-attention, and its mask.

        Groups of demonstrations are encoded one by one. The memory of a task has the tokens of all of its groups,
        padded on the right; the decoder attends to them regardless of their order.
        """
        if demo_ids.dim() == 2:
            return self._encoded(demo_ids, demo_mask), demo_mask
        read = demo_mask.any(-1)
        states = self._encoded(demo_ids[read], demo_mask[read])
        lengths = demo_mask.sum((1, 2))
        present = torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]
        memory = states.new_zeros(*present.shape, states.shape[-1])
        memory[present] = states[demo_mask[read].bool()]
        return memory, present.to(demo_mask.dtype)

    def _encoded(self, demo_ids: Int[Tensor, "n s"], demo_mask: Shaped[Tensor, "n s"]) -> Float[Tensor, "n s d"]:
        if self.to_memory is not None:
            states: Tensor = self.to_memory(self.encoder(demo_ids, demo_mask))
        else:
            states = self.encoder(input_ids=demo_ids, attention_mask=demo_mask).last_hidden_state
        return states

    def forward(self, demo_ids: Int[Tensor, "n *g s"], demo_mask: Shaped[Tensor, "n *g s"]) -> HyperOutput:
        """Encode demonstrations and generate row blocks from them.

        Args:
            demo_ids: tokens of n tasks, or of g groups of demonstrations per task.
            demo_mask: 1 for tokens and 0 for padding; no task may be all padding.
        """
        return self.generate_blocks(*self.encode(demo_ids, demo_mask))

    def generate_blocks(
        self, memory: Float[Tensor, "n memory d"], memory_mask: Shaped[Tensor, "n memory"]
    ) -> HyperOutput:
        """Row blocks from the output of `encode`."""
        if self.scheme is None:
            states = memory.new_zeros(memory.shape[0], len(self.shape.stacks), 0, 1, memory.shape[2])
        else:
            states = self.scheme(self.decoder, memory, memory_mask)
        if self.to_front is not None:
            memory = self.to_front(memory)
        return HyperOutput(self.heads(states), states, memory, memory_mask)

    def count_parameters(self) -> dict[str, int]:
        """Part → number of parameters. The parts add up to the whole network, without an encoder of the main model.

        `heads.first` and `heads.second` are the shared and the per-layer maps of App. 8.1.2. `to_memory`, `to_front`
        and `heads.bias` are included only if the network has them.
        """
        heads = self.heads.heads()
        encoder = self.encoder if self.config.has_own_encoder else None
        some = {
            "to_memory": _size(self.to_memory),
            "to_front": _size(self.to_front),
            "heads.bias": sum(head.bias.numel() for head in heads if head.bias is not None),
        }
        embedding = 0 if encoder is None else encoder.embed_tokens.weight.numel()
        return {
            "embedding": embedding,
            "encoder": _size(encoder) - embedding,
            "decoder": _size(self.decoder),
            "scheme": _size(self.scheme),
            "heads.norm": sum(_size(head.norm) for head in heads),
            "heads.first": sum(_size(head.first) for head in heads),
            "heads.second": sum(head.second.numel() for head in heads),
            **{name: count for name, count in some.items() if count},
        }

    @property
    def one_state(self) -> bool:
        """Whether all layers share one state by construction, so that the cosine between layers is always 1."""
        return self.scheme is not None and self.scheme.shared_by_layers

    @property
    def dropout_rate(self) -> float:
        """Dropout rate of encoder and decoder in training."""
        rate: float = self.config.stack_config(decoder=False).dropout_rate
        return rate

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder.embed_tokens

    def _init_weights(self, module: nn.Module) -> None:
        """Initialise a network that is built from its configuration alone; T5 stacks initialise themselves."""
        if isinstance(module, GenerationScheme):
            # T5 draws embeddings with this standard deviation.
            module.reset_parameters(self.config.stack_config(decoder=False).initializer_factor)
        elif isinstance(module, BlockHead):
            module.reset_parameters(self._init_std(None)[module.block.name])

    def _init_std(self, main: PreTrainedModel | None) -> dict[str, Tensor]:
        std: dict[str, Tensor] = {}
        for kind in self.kinds:
            std.update(kind.init_std(main, self.shape))
        return std


def _no_vectors(block: RowBlock) -> slice:
    return slice(0, 1)


def _size(module: nn.Module | None) -> int:
    return 0 if module is None else sum(p.numel() for p in module.parameters())


def _check_source(source: T5ForConditionalGeneration, main: PreTrainedConfig | None, decoder_layers: int) -> None:
    available = source.config.num_decoder_layers or source.config.num_layers
    if not 1 <= decoder_layers <= available:
        raise HartError(
            f"model.decoder_layers is {decoder_layers}; the checkpoint has {available} decoder "
            f"layers, choose 1 to {available}"
        )
    for name, why in (
        ("d_model", "its memory is fused into the main model"),
        ("vocab_size", "it reads the main model's tokens"),
    ):
        if main is not None and getattr(source.config, name) != getattr(main, name):
            raise HartError(
                f"model.hypernetwork_init: {source.name_or_path} has {name} {getattr(source.config, name)}, the base "
                f"{getattr(main, name)}; they must be equal because {why}"
            )
