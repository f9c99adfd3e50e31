"""Fixtures shared by all tests: a tiny base checkpoint made in code, and real data if at hand.

Nothing here needs a network; the hub is switched off before any library reads the switch.
"""

import json
import os
import sys
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
# What is measured once and remembered goes to a place of these tests' own.
os.environ["HART_CACHE"] = tempfile.mkdtemp(prefix="hart-tests-")

from jaxtyping import install_import_hook  # noqa: E402

# Before hart is imported: the shapes in the signatures of these modules are checked in every call.
sys.path.insert(0, os.path.dirname(__file__))
SHAPED = {
    "hart.peft": ("attention", "base", "decoder_attention", "injection"),
    "hart.hypernetwork": ("decoding", "heads", "network", "schemes", "step_linear"),
    "hart.model": ("answering", "decoder_only", "encoder_decoder", "hart_model", "main_model", "scoring"),
}
install_import_hook([f"{package}.{name}" for package, names in SHAPED.items() for name in names], "shape_checks.check")

from collections.abc import Callable, Iterator  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors  # noqa: E402
from tokenizers import trainers as tokenizer_trainers  # noqa: E402
from transformers import (  # noqa: E402
    GenerationConfig,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.utils import logging as transformers_logging  # noqa: E402

from hart.data.tasks import Instance, Task  # noqa: E402
from hart.training.config import DataConfig, ModelConfig, RunConfig, TrainingConfig  # noqa: E402

torch.set_num_threads(1)
transformers_logging.disable_progress_bar()

TINY_VOCABULARY = 300
REPOSITORY = Path(__file__).resolve().parents[1]

TOKENIZER_TEXT = [
    "Definition: In this task you are given a sentence. Write the words in reverse order.",
    "Positive Example 1 - Input: the cat sat on the mat Output: mat the on sat cat the",
    "Now complete the following example - Input: one two three Output:",
]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that takes any UTF-8 text and, like T5's, appends </s>."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<pad>", "</s>", "<unk>"]
    tokenizer.train_from_iterator(
        TOKENIZER_TEXT,
        tokenizer_trainers.BpeTrainer(
            vocab_size=TINY_VOCABULARY,
            special_tokens=specials,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def build_model(vocab_size: int) -> T5ForConditionalGeneration:
    """A T5 v1.1-shaped model whose every part matters.

    heads * d_kv (24) differs from d_model (48); norm gains and relative biases are drawn at random,
    because at their initial values (ones, near zero) code that forgets them would pass the tests.
    """
    config = T5Config(
        vocab_size=vocab_size,
        d_model=48,
        d_kv=8,
        d_ff=64,
        num_heads=3,
        num_layers=3,
        num_decoder_layers=3,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        dropout_rate=0.1,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20240607)
        model = T5ForConditionalGeneration(config)
        # A newly built T5 shares its output matrix even where the configuration says it does not.
        model.lm_head.weight = torch.nn.Parameter(torch.randn(config.vocab_size, config.d_model) * config.d_model**-0.5)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "layer_norm" in name:
                    parameter.uniform_(0.5, 1.5)
                elif "relative_attention_bias" in name:
                    parameter.normal_()
    return model.eval()


@pytest.fixture(scope="session")
def tiny_base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random T5 and its tokenizer in the hub's layout; tests only read it."""
    folder = tmp_path_factory.mktemp("tiny-base")
    tokenizer = build_tokenizer()
    model = build_model(len(tokenizer))
    model.generation_config = GenerationConfig(decoder_start_token_id=0, pad_token_id=0, eos_token_id=1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_base_dir: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(tiny_base_dir)


@pytest.fixture
def tiny_t5(tiny_base_dir: Path) -> T5ForConditionalGeneration:
    """A fresh copy of the tiny model, in eval mode; the test may change it."""
    return T5ForConditionalGeneration.from_pretrained(tiny_base_dir).eval()


TOY_WORDS = "the cat sat on mat one two three in order".split()
TOY_RULES: dict[str, tuple[str, Callable[[list[str]], list[str]]]] = {
    "reverse": ("Write the words in reverse order.", lambda words: words[::-1]),
    "first": ("Write the first word.", lambda words: words[:1]),
    "twice": ("Write the words twice.", lambda words: words * 2),
    "last": ("Write the last word.", lambda words: words[-1:]),
}
TOY_INSTANCES = 12


def toy_task(name: str) -> Task:
    """Two demonstrations and instances of two to four words; answers are of one to eight words."""
    definition, rule = TOY_RULES[name]
    queries = [[TOY_WORDS[(i + 3 * j) % len(TOY_WORDS)] for j in range(2 + i % 3)] for i in range(TOY_INSTANCES)]
    pairs = [(" ".join(words), " ".join(rule(words))) for words in queries]
    instances = [Instance(query, (answer,), f"{name}-{i}") for i, (query, answer) in enumerate(pairs)]
    return Task(definition, pairs[:2], name=name, categories=["toy"], instances=instances[2:])


@pytest.fixture(scope="session")
def toy_data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tasks with answers of different lengths in the official layout: three to train on, one for testing."""
    folder = tmp_path_factory.mktemp("toy-data")
    *training, testing = TOY_RULES
    for name in TOY_RULES:
        toy_task(name).save(folder / "tasks" / f"{name}.json")
    splits = folder / "splits" / "default"
    splits.mkdir(parents=True)
    (splits / "train_tasks.txt").write_text("\n".join(training), encoding="utf-8")
    (splits / "test_tasks.txt").write_text(testing, encoding="utf-8")
    return folder


def p3_row(words: str, answer: str, choices: list[str] | None) -> dict[str, Any]:
    """A row as on the hub; a generated answer has no choices."""
    return {"inputs_pretokenized": words, "targets_pretokenized": answer, "answer_choices": choices}


def write_p3(folder: Path, subset: str, split: str, rows: list[dict[str, Any]]) -> Path:
    path = folder / subset / f"{split}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def toy_p3_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """P3 subsets: ag_news (two templates) and imdb to train on, CB and COPA (two templates) held out; 12 + 6 rows."""
    folder = tmp_path_factory.mktemp("toy-p3")
    subsets = {
        "ag_news_classify": ["one", "two"],
        "ag_news_recommend": ["one", "two", "three"],
        "imdb_Reviewer_Enjoyment": ["good", "bad"],
        "xsum_DOC_tldr": None,
        "super_glue_cb_can_we_infer": ["yes", "no", "maybe"],
        "super_glue_copa_best_option": ["the cat", "the mat"],
        "super_glue_copa_cause_effect": ["the cat", "the mat"],
    }
    for name, choices in subsets.items():
        answers = choices or ["the mat", "on the cat"]
        rows = [p3_row(f"{name} {i}?", answers[i % len(answers)], choices) for i in range(18)]
        write_p3(folder, name, "train", rows[:12])
        write_p3(folder, name, "validation", rows[12:])
    return folder


@pytest.fixture(scope="session")
def build_config(tiny_base_dir: Path, toy_data_dir: Path) -> Callable[..., RunConfig]:
    """Builds the configuration of a short run on the toy tasks with the tiny base, in the folder it is given."""

    def build(
        output_dir: Path, *, model: dict[str, Any] | None = None, data: dict[str, Any] | None = None, **training: Any
    ) -> RunConfig:
        small = {"decoder_layers": 2, "peft": [{"kind": "prefix", "length": 4}]}
        run = {"max_steps": 4, "batch_size": 8, "learning_rate": 1e-3, "optimizer": "adamw", "trackers": []}
        intervals = {"log_every": 1, "save_every": 2}
        lengths = {"max_demonstrations_length": 128, "max_query_length": 32, "max_target_length": 32}
        return RunConfig(
            model=ModelConfig(**{"base": str(tiny_base_dir), **small, **(model or {})}),
            data=DataConfig(**{"dir": str(toy_data_dir), **lengths, **(data or {})}),
            training=TrainingConfig(output_dir=str(output_dir), **{**run, **intervals, **training}),
        )

    return build


@pytest.fixture
def run_config(build_config: Callable[..., RunConfig], tmp_path: Path) -> Callable[..., RunConfig]:
    """As `build_config`, for a folder of the test's own, `run` or another name."""
    return lambda name="run", **settings: build_config(tmp_path / name, **settings)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real data (sni/, p3/, text/) beside the checkout; skips if there is none."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder.name}/ beside the checkout")
    return folder


@pytest.fixture(autouse=True)
def keep_random_state() -> Iterator[None]:
    """Each test starts from the same torch random state, so their order never matters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    """Chromium; it saves what it downloads in `tmp_path / "got"`."""
    from browsing import chromium

    with chromium(tmp_path / "got") as driver:
        yield driver
