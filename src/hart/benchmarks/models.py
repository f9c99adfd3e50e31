"""Networks of published sizes with random weights: the time of a pass does not depend on their values."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, T5Config, T5ForConditionalGeneration

from hart.data.input_format import InputFormat
from hart.hypernetwork.config import T5_FIELDS, HyperNetworkConfig
from hart.hypernetwork.network import HyperNetwork
from hart.model.adaptation import Adaptation
from hart.model.encoder_decoder import EncoderDecoder
from hart.model.main_model import MainModel
from hart.peft.base import MainShape, build_kinds, row_blocks

VOCABULARY = 32128

SHAPES: dict[str, dict[str, int]] = {
    "tiny": {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_heads": 4, "num_layers": 6},
    "small": {"d_model": 512, "d_kv": 64, "d_ff": 1024, "num_heads": 8, "num_layers": 8},
    "t5-small": {"d_model": 512, "d_kv": 64, "d_ff": 1024, "num_heads": 6, "num_layers": 8},
    "t5-base": {"d_model": 768, "d_kv": 64, "d_ff": 2048, "num_heads": 12, "num_layers": 12},
    "t5-large": {"d_model": 1024, "d_kv": 64, "d_ff": 2816, "num_heads": 16, "num_layers": 24},
    "t5-xl": {"d_model": 2048, "d_kv": 64, "d_ff": 5120, "num_heads": 32, "num_layers": 24},
}
"""The sizes of T5 v1.1, one for tests, and one for quick runs: T5 small with enough heads to fill its width."""

PREFIX_LENGTH = 32
"""Prefix length p (App. 8.1.2)."""

PREFIX: dict[str, Any] = {"kind": "prefix", "length": PREFIX_LENGTH}


class Numbers:
    """A tokenizer of texts that consist of token numbers; other words are unknown."""

    pad_token_id, eos_token_id, unk_token_id = 0, 1, 2

    def __len__(self) -> int:
        return VOCABULARY

    def get_vocab(self) -> dict[str, int]:
        return {str(number): number for number in range(VOCABULARY)}

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": [int(word) if word.isdecimal() else self.unk_token_id for word in text.split()]}

    def decode(self, ids: list[int], **_: object) -> str:
        return " ".join(map(str, ids))


def t5_config(shape: str, vocabulary: int = VOCABULARY, **sizes: int) -> T5Config:
    """The configuration of a shape, with some of its sizes replaced."""
    values: dict[str, Any] = {
        **SHAPES[shape],
        **sizes,
        "vocab_size": vocabulary,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "decoder_start_token_id": 0,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }
    return T5Config(**values)


def stock_model(
    config: T5Config, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> T5ForConditionalGeneration:
    """A stock T5 in eval mode, whose answers always have the maximum length."""
    with torch.device("meta"):
        model = T5ForConditionalGeneration(config)
    model.lm_head.weight = nn.Parameter(torch.empty_like(model.lm_head.weight))  # new models tie it
    draw(model, device, dtype)
    model.generation_config = GenerationConfig(decoder_start_token_id=0, pad_token_id=0, eos_token_id=None)
    return model.eval().requires_grad_(False)


def twin(model: T5ForConditionalGeneration) -> T5ForConditionalGeneration:
    """Another model that shares the weight tensors, for other attention functions."""
    with torch.device("meta"):
        other = T5ForConditionalGeneration(copy.deepcopy(model.config))
    other.load_state_dict(model.state_dict(), assign=True)
    other.generation_config = copy.deepcopy(model.generation_config)
    return other.eval().requires_grad_(False)


def main_model(model: T5ForConditionalGeneration) -> MainModel:
    main = EncoderDecoder(twin(model), Numbers(), name="random")  # type: ignore[arg-type]
    main.freeze()
    return main


def hypernetwork(
    config: T5Config,
    scheme: str = "autoregressive",
    *,
    decoder_layers: int = 8,
    peft: Sequence[Mapping[str, Any]] = (PREFIX,),
    main: MainShape | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> HyperNetwork:
    """A hypernetwork for main models of shape `main`; None: T5s of its own configuration.

    `decoder_layers` is at most the number of layers in `config`.
    """
    network_config = HyperNetworkConfig(
        t5={name: getattr(config, name) for name in T5_FIELDS},
        decoder_layers=min(decoder_layers, config.num_layers),
        scheme={"name": scheme},
        peft=[dict(kind) for kind in peft],
        main=asdict(main or MainShape.from_config(config)),
    )
    with torch.device("meta"):
        network = HyperNetwork(network_config)
    return draw(network, device, dtype).eval()  # type: ignore[return-value]


@torch.no_grad()
def draw(module: nn.Module, device: str, dtype: torch.dtype) -> nn.Module:
    """Materialise a module on the meta device, with random weights that keep activations finite."""
    nn.Module.to(module, dtype)
    module.to_empty(device=device)
    for parameter in module.parameters():
        bound = parameter.shape[-1] ** -0.5
        parameter.uniform_(-bound, bound)
    for name, buffer in module.named_buffers():
        raise AssertionError(f"buffer {name} of {list(buffer.shape)} would stay empty")
    return module


def random_adaptation(
    main: MainModel,
    tasks: int,
    memory_tokens: int,
    *,
    peft: Sequence[Mapping[str, Any]] = (PREFIX,),
    max_target_length: int = 128,
) -> Adaptation:
    """A random adaptation to some tasks, in the shapes that a hypernetwork generates; no memory for 0 memory tokens."""
    kinds = build_kinds(peft)
    like = main.model.get_input_embeddings().weight
    sizes = row_blocks(kinds, main.shape)
    memory = torch.randn(tasks, memory_tokens, main.shape.d_model).to(like) if memory_tokens else None
    return Adaptation(
        blocks={b.name: 0.1 * torch.randn(tasks, b.layers, b.rows, b.width).to(like) for b in sizes},
        memory=memory,
        memory_mask=None if memory is None else torch.ones(tasks, memory_tokens, dtype=torch.long, device=like.device),
        peft=[kind.to_config() for kind in kinds],
        **main.identity,
        input_format=InputFormat(max_target_length=max_target_length),
        tasks=[{"name": f"task {number}"} for number in range(tasks)],
    )


def random_queries(number: int, tokens: int) -> list[list[int]]:
    return torch.randint(3, 1000, (number, tokens)).tolist()
