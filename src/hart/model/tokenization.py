"""The input format and tokenizers of a model, loaded without its weights."""

from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from hart.data.config import DataConfig
from hart.data.input_format import InputFormat
from hart.errors import HartError, first_line
from hart.model.base_checkpoint import load_tokenizer, read_base_config
from hart.model.bundled import resolve_base
from hart.model.config import ModelConfig
from hart.model.folder import MAIN_FOLDER, fetch, read_config, read_input_format, read_reader
from hart.peft.architectures import architecture
from hart.peft.base import MainShape


class Tokenization(NamedTuple):
    """Input format and tokenizers. `reader` tokenises tasks: the hypernetwork's own tokenizer or the main model's."""

    form: InputFormat
    tokenizer: PreTrainedTokenizerBase
    reader: PreTrainedTokenizerBase


def tokenization_of_model(name: str) -> Tokenization:
    """The tokenization of a trained system: a folder, a hub name or `mini`.

    Raises:
        HartError: there is no such system, or the tokenizer of its base is missing.
    """
    folder = fetch(name, None)
    config = read_config(folder)
    info = config["system"]
    trained = info["train_main"]
    revision = None if trained else info["base_revision"]
    tokenizer = load_tokenizer(str(folder / MAIN_FOLDER) if trained else info["base"], revision=revision)
    # A system without a hypernetwork has no reader, and its config.json no shape of the base.
    has_encoder = "main" not in config or MainShape(**config["main"]).has_encoder
    reader = read_reader(folder, config, has_encoder) or tokenizer
    return Tokenization(read_input_format(folder, info["input_format"]), tokenizer, reader)


def tokenization_of_config(model: ModelConfig, data: DataConfig) -> Tokenization:
    """The tokenization of an untrained system, from its configuration.

    Raises:
        HartError: the base, or the checkpoint of the hypernetwork's initialisation, has no tokenizer.
    """
    tokenizer = reader = load_tokenizer(model.base, revision=model.base_revision)
    if model.weights == "generated" and model.encoder != "main_model" and model.hypernetwork_init is not None:
        try:
            config = read_base_config(resolve_base(model.base), revision=model.base_revision)
            has_encoder = architecture(config).has_encoder
        except (OSError, ValueError) as error:
            raise HartError(f"{model.base}: no checkpoint there ({first_line(error)})") from error
        reader = tokenizer if has_encoder else load_tokenizer(model.hypernetwork_init)
    return Tokenization(InputFormat.from_config(data), tokenizer, reader)
