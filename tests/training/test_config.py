"""Every field of a configuration, every wrong value, and the round trip through a file."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from hart.data.input_format import InputFormat
from hart.errors import HartError
from hart.training.config import SECTIONS, DataConfig, ModelConfig, RunConfig, TrainingConfig, load, with_defaults


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text("")
    return path


def from_text(file: Path, text: str, *overrides: str) -> RunConfig:
    file.write_text(text, encoding="utf-8")
    return load(file, overrides)


def test_an_empty_file_is_the_papers_setting(file: Path) -> None:
    config = load(file)
    assert config == RunConfig()
    # Section 4.1 and appendix 8.1.3, T5-Large.
    assert (config.training.max_steps, config.training.batch_size) == (10_000, 256)
    assert config.training.learning_rate == 5e-5
    assert config.model.decoder_layers == 8
    assert config.model.peft == [{"kind": "prefix", "length": 32}]


def test_default_lengths_are_those_of_the_data_module() -> None:
    assert InputFormat.from_config(DataConfig()) == InputFormat()


# One value per field that differs from its default: a new field must be added here.
OTHER: dict[str, dict[str, Any]] = {
    "model": {
        "base": "mini-base",
        "base_revision": "2024",
        "weights": "generated",
        "train_main": False,
        "tied_encoder": False,
        "init_from": "runs/pretraining/final",
        "hypernetwork_init": None,
        "encoder": "main_model",
        "encoder_layers": [6, 8],
        "hypernetwork_width": 256,
        "decoder_layers": 2,
        "scheme": {"name": "shared", "order": [1, 2]},
        "peft": [{"kind": "prefix", "length": 8}, {"kind": "lora", "rank": 2}],
        "fusion": False,
        "memory_in_front": True,
        "head_bias": True,
        "dropout": 0.25,
        "attention": "eager",
        "dtype": "bfloat16",
        "gradient_checkpointing": True,
    },
    "data": {
        "collection": "procedural",
        "dir": None,
        "hub_name": None,
        "train_subsets": None,
        "test_subsets": None,
        "max_average_length": 100,
        "max_document_tokens": 100,
        "demonstrations_to": "hypernetwork",
        "max_train_instances": None,
        "max_test_instances": 7,
        "training_tasks": 6,
        "validation_tasks": 5,
        "num_demonstrations": 3,
        "demonstration_groups": 4,
        "omit_definition": 0.25,
        "omit_demonstrations": 0.125,
        "definition_first": 0.75,
        "fewest_demonstrations": 3,
        "distractors": "queries.txt",
        "distractor_share": 0.125,
        "explanations": True,
        "demonstrations": "sampled",
        "input_eos": False,
        "chat_template": True,
        "task_sampling": "uniform",
        "max_demonstrations_length": 10,
        "max_query_length": 11,
        "max_target_length": 12,
        "seed": 3,
    },
    "training": {
        "output_dir": "runs/no",
        "max_steps": 4,
        "batch_size": 8,
        "micro_batch_size": 4,
        "queries_per_task": 2,
        "learning_rate": 1e-3,
        "schedule": "cosine",
        "warmup_steps": 1,
        "weight_decay": 1e-7,
        "max_grad_norm": None,
        "optimizer": "muon",
        "muon_rate": 2e-3,
        "adam_beta1": 0.8,
        "adam_beta2": 0.95,
        "adam_epsilon": 1e-6,
        "alpha": 20.0,
        "pairing": "task",
        "previous_dropout": False,
        "seed": 4,
        "bf16": True,
        "deepspeed": "zero2.json",
        "fsdp": False,
        "log_every": 1,
        "eval_every": 2,
        "eval_instances": 3,
        "save_every": 4,
        "keep_checkpoints": 5,
        "num_workers": 6,
        "trackers": [],
        "resume": False,
        "num_threads": 1,
    },
    "distillation": {
        "teacher": "base",
        "weight": 5.0,
        "cross_entropy": 0.5,
        "temperature": 3.0,
        "top_k": 16,
        "hidden_weight": 0.25,
        "cache": None,
    },
}


def other_config() -> RunConfig:
    return RunConfig().changed(**OTHER)


def test_the_table_of_values_covers_every_field() -> None:
    for section in SECTIONS:
        assert list(OTHER[section.section]) == list(section.model_fields)
    changed, default = other_config().to_dict(), RunConfig().to_dict()
    same = {
        f"{section}.{name}"
        for section in default
        for name in default[section]
        if changed[section][name] == default[section][name]
    }
    # FSDP excludes DeepSpeed, a main model that encodes a checkpoint to start from, and hidden states a cache (below).
    # No folder, hub data set and subsets with the procedural collection (tested below, and in
    # tests/training/test_p3_systems.py); the others make other systems (tests/model/test_systems.py).
    no_procedural = {"data.dir", "data.hub_name", "data.train_subsets", "data.test_subsets"}
    other_systems = {"model.weights", "model.train_main", "model.tied_encoder", "data.demonstrations_to"}
    assert same == {*no_procedural, "training.fsdp", "model.hypernetwork_init", "distillation.cache", *other_systems}


def test_a_configuration_of_an_earlier_version_has_todays_defaults() -> None:
    """The section distillation, and fields, are younger than others; what lacks more is no configuration."""
    config = RunConfig().changed(training={"seed": 3})
    saved = config.to_dict()
    del saved["distillation"], saved["training"]["pairing"]
    assert with_defaults(saved) == config.to_dict()
    assert with_defaults(config.to_dict()) == config.to_dict()
    for wrong in (None, [], {}, {"model": {}}, {**saved, "other": {}}, {**saved, "data": 3}):
        assert with_defaults(wrong) is None


def test_saved_and_loaded_is_the_same(file: Path) -> None:
    config = other_config().changed(data=DataConfig(dir="no: such # folder"))
    config.save(file)
    assert load(file) == config
    RunConfig().save(file)
    assert load(file) == RunConfig()
    assert set(yaml.safe_load(file.read_text())) == {"model", "data", "training", "distillation"}


def test_overrides_set_every_field(file: Path) -> None:
    words = []
    for section, fields in OTHER.items():
        for name, value in fields.items():
            text = value if isinstance(value, str) else yaml.safe_dump(value, width=10**6).strip()
            words += [f"--{section}.{name}", text.removesuffix("\n...")]
    assert load(file, words) == other_config()
    joined = [f"{option}={text}" for option, text in zip(words[::2], words[1::2], strict=True)]
    assert load(file, joined) == other_config()


def test_overrides_reach_into_mappings_and_lists(file: Path) -> None:
    text = "model: {peft: [{kind: prefix, length: 32}, {kind: lora}]}"
    words = ["--model.peft.1.rank", "4", "--model.scheme.name", "shared", "--model.scheme.x=1e-2"]
    model = from_text(file, text, *words).model
    assert model.peft == [{"kind": "prefix", "length": 32}, {"kind": "lora", "rank": 4}]
    assert model.scheme == {"name": "shared", "x": 0.01}
    assert RunConfig().model.scheme == {"name": "autoregressive"}


def test_the_last_override_wins_over_earlier_ones_and_the_file(file: Path) -> None:
    words = ["--training.max_steps", "2", "--training.max_steps=3"]
    assert from_text(file, "training: {max_steps: 1}", *words).training.max_steps == 3


@pytest.mark.parametrize("text", ["2024", "no", "~/a: b", "[x", "#1", "-"])
def test_text_fields_take_the_words_of_the_command_line_as_they_stand(file: Path, text: str) -> None:
    assert load(file, ["--data.dir", text]).data.dir == text
    assert load(file, [f"--data.dir={text}"]).data.dir == text


def test_null_clears_an_optional_field(file: Path) -> None:
    assert from_text(file, "data: {dir: x}", "--data.dir", "null").data.dir is None
    assert from_text(file, "", "--training.max_grad_norm", "null").training.max_grad_norm is None


@pytest.mark.parametrize("text", ["5e-5", "5.0e-5", "5E-05", "0.00005", "+5e-5", ".5e-4"])
def test_every_way_to_write_a_number_is_read_as_one(file: Path, text: str) -> None:
    config = from_text(file, f"training: {{learning_rate: {text}}}")
    assert config.training.learning_rate == 5e-5
    assert from_text(file, "", "--training.learning_rate", text) == config


def test_a_whole_number_serves_as_a_float(file: Path) -> None:
    alpha = from_text(file, "training: {alpha: 10}").training.alpha
    assert alpha == 10 and type(alpha) is float


FILE_MISTAKES = {
    "a: [": "not valid YAML, line 1",
    "training: {seed: 1, seed: 2}": "line 1: seed is given twice",
    "- model": "must hold the sections model, data, training, distillation",
    "training: 3": "training must be a mapping of fields, not 3",
    "training: !!python/name:os.system": "not valid YAML",
    "trainin: {seed: 1}": "unknown section trainin; did you mean training?",
    "learning_rate: 1": "unknown section learning_rate; did you mean training.learning_rate?",
    "zzz: 1": "unknown section zzz; choose one of model, data, training, distillation",
    "training: {learning_rat: 1}": ("unknown field training.learning_rat; did you mean training.learning_rate?"),
    "model: {learning_rate: 1}": ("unknown field model.learning_rate; did you mean training.learning_rate?"),
    "model: {zzz: 1}": "unknown field model.zzz; choose one of base, base_revision",
    "model: {section: x}": "unknown field model.section",
    "training: {1: 1}": "unknown field training.1",
    "training: {learning_rate: fast}": "training.learning_rate: must be a number, not 'fast'",
    "training: {learning_rate: .nan}": "training.learning_rate: must be a finite number",
    "training: {learning_rate: 0}": "training.learning_rate: must be greater than 0, not 0",
    "training: {learning_rate: null}": "training.learning_rate: must be a number, not None",
    "training: {max_steps: 1.5}": "training.max_steps: must be a whole number, not 1.5",
    "training: {max_steps: true}": "training.max_steps: must be a whole number, not True",
    "training: {max_steps: 0}": "training.max_steps: must be at least 1, not 0",
    "training: {bf16: 'true'}": "training.bf16: must be true or false, not 'true'",
    "training: {deepspeed: a.json, fsdp: true}": "training.fsdp: and training.deepspeed both divide",
    "training: {bf16: 1}": "training.bf16: must be true or false, not 1",
    "training: {schedule: liner}": "training.schedule: must be one of linear, cosine",
    "training: {output_dir: ' '}": "training.output_dir: is empty",
    "training: {batch_size: 8, micro_batch_size: 3}": "training.micro_batch_size: 3 does not",
    "data: {dir: 2024}": "data.dir: must be text, not 2024",
    "data: {collection: procedural, dir: x}": "data.dir: has no effect where data.collection is procedural",
    "model: {base: ''}": "model.base: is empty",
    "model: {dropout: 1.0}": "model.dropout: must be less than 1, not 1.0",
    "model: {scheme: shared}": "model.scheme: must be a mapping, not 'shared'",
    "model: {scheme: {kind: shared}}": "model.scheme: needs a name",
    "model: {scheme: {name: shared, 1: 2}}": "model.scheme: keys must be text, not 1",
    "model: {peft: {kind: prefix}}": "model.peft: must be a list",
    "model: {peft: [prefix]}": "model.peft.0: must be a mapping, not 'prefix'",
    "model: {peft: [{length: 3}]}": "model.peft.0: needs a kind",
    "model: {peft: [], fusion: false}": "model.peft: is empty while fusion is off",
    "model: {memory_in_front: true}": "model.memory_in_front: is for decoder-only bases, and model.fusion for T5s",
    "model: {head_bias: true, peft: []}": "model.head_bias: must be false where model.peft is []",
    "model: {encoder_layers: [0]}": "model.encoder_layers.0: must be at least 1, not 0",
    "model: {encoder_layers: [3]}": "model.encoder_layers: must be null where model.encoder is t5",
    "model: {hypernetwork_width: 64}": "model.hypernetwork_width: must be null where model.encoder is t5",
    "model: {encoder: main_model, hypernetwork_init: x}": "model.hypernetwork_init: must be null where",
    "model: {encoder: main_model, train_main: true}": "model.encoder: main_model needs a frozen main model",
    "model: {weights: learned, fusion: false, head_bias: true}": "model.head_bias: belongs to a hypernetwork",
    "model: {weights: learned, fusion: false, encoder: main_model}": "model.encoder: belongs to a hypernetwork",
    "data: {omit_definition: 0.5, omit_demonstrations: 0.5}": "data.omit_definition: and omit_demonstrations",
    "data: {omit_definition: 1}": "data.omit_definition: must be less than 1, not 1",
    "data: {collection: four_segments, omit_definition: 0.1}": "data.omit_definition: must be 0 with four_segments",
    "data: {num_demonstrations: 0, omit_demonstrations: 0.1}": "data.omit_demonstrations: must be 0 unless",
    "data: {definition_first: 1}": "data.definition_first: must be less than 1, not 1",
    "data: {collection: p3, demonstrations: sampled, definition_first: 0.5}": "data.definition_first: must be 0 with",
    "data: {demonstrations_to: nowhere, definition_first: 0.5}": "data.definition_first: must be 0 unless",
    "data: {collection: four_segments, fewest_demonstrations: 1}": "data.fewest_demonstrations: must be null where",
    "data: {distractor_share: 0.1}": "data.distractor_share: must be 0 without a file of data.distractors",
    "data: {distractors: ' '}": "data.distractors: is empty; give the path of a file",
    "data: {distractors: x, distractor_share: 0.1, collection: three_segments}": "data.distractor_share: must be 0",
    "data: {distractors: x, distractor_share: 0.1}\ndistillation: {teacher: y}": "data.distractor_share: must be 0 w",
    "data: {fewest_demonstrations: 3}": "data.fewest_demonstrations: must be at most 2, the demonstrations",
    "data: {collection: four_segments, demonstration_groups: 2}": "data.demonstration_groups: must be 1 with four_seg",
    "data: {num_demonstrations: 0, demonstration_groups: 2}": "data.demonstration_groups: must be 1 where num_dem",
    "distillation: {teacher: ' '}": "distillation.teacher: is empty; give base",
    "distillation: {temperature: 0}": "distillation.temperature: must be greater than 0, not 0",
    "distillation: {top_k: 0}": "distillation.top_k: must be at least 1, not 0",
    "distillation: {teacher: runs/x, hidden_weight: 1}": "distillation.hidden_weight: must be 0 with the teacher",
    "distillation: {teacher: base, cache: ' '}": "distillation.cache: is empty; give a folder",
    "distillation: {teacher: base, cache: x, hidden_weight: 1}": "distillation.cache: keeps no hidden states",
    "distillation: {teacher: base, weight: 0, cross_entropy: 0}": "distillation.weight: must be above 0",
    "distillation: {teacher: base}\nmodel: {train_main: true}": "distillation.teacher: base must be frozen",
    "distillation: {teacher: base}\ntraining: {fsdp: true}": "distillation.teacher: base is divided by training.fsdp",
    "distillation: {teacher: x}\ndata: {demonstrations_to: main}\nmodel: {weights: learned, fusion: false}\n"
    "training: {alpha: 0}": "distillation.teacher: must be null where data.demonstrations_to is main",
    "distillation: {teacher: x}\ndata: {collection: p3, demonstrations_to: nowhere}\n"
    "model: {weights: learned, fusion: false}\ntraining: {alpha: 0}": "data.demonstrations: must be sampled with p3",
    # What a YAML file can hold that no configuration does.
    "[" * 100_000: "not valid YAML, line 1: nested too deeply",
    "a: {" * 100_000: "not valid YAML, line 1: nested too deeply",
    "- " * 100_000: "not valid YAML, line 1: nested too deeply",
    f"model: {{scheme: {'[' * 300}{']' * 300}}}": "line 1: nested too deeply",
    f"training: {{seed: {'9' * 5000}}}": "line 1: no int: '99999",
    f"training: {{seed: 0x{'9' * 5000}}}": "line 1: no int: '0x99999",
    f"training: {{alpha: {'9' * 5000}.0}}": "training.alpha: must be a finite number, not inf",
    f"training: {{alpha: 1{'0' * 400}}}": "line 1: no int: '10000",
    "training: {seed: 1000000000000000000}": "training.seed: must be less than 1e+18",
    "training: {seed: 2024-13-45}": "line 1: no timestamp: '2024-13-45'",
    "training: {seed: !!int ''}": "line 1: no int: ''",
    "training: {bf16: !!bool x}": "line 1: no bool: 'x'",
    "training: {seed: !!timestamp x}": "line 1: no timestamp: 'x'",
    "training: {seed: 2024-12-31}": "training.seed: must be a whole number, not datetime.date(2024, 12, 31)",
    'model: {base: "\\ud800"}': "model.base: contains half of a character",
    'model: {base: "\\ud83d\\ude00"}': "model.base: contains half of a character",
    'model: {scheme: {name: shared, x: ["\\udc00"]}}': "model.scheme.x[0]: contains half of a character",
    'model: {scheme: {name: shared, "\\udc00": 1}}': "model.scheme (a name in it): contains half of a character",
    '"\\ud800": 1': "unknown section",
    "model: {scheme: &a {name: shared, x: *a}}": "line 1: an alias of a list or mapping is not supported; write it out",
    "a: &a [x, x]\nb: &b [*a, *a]": "line 2: an alias of a list or mapping",
    "model: &a {base: x}\ndata: {<<: *a}": "line 2: an alias of a list or mapping",
    "model: {base: a\0b}": "not valid YAML, character 16: special characters are not allowed",
    "m\0o\0d\0e\0l\0:\0": "not valid YAML, character 2",
    "--- a\n--- b": "not valid YAML, line 2: but found another document",
    "model: {? [a, b] : c}": "not valid YAML",
    "model: *base": "not valid YAML, line 1: found undefined alias",
    f"training: {{seed: {'x' * 5000}}}": "training.seed: must be a whole number, not 'xxxxx",
}


@pytest.mark.parametrize("text", FILE_MISTAKES, ids=lambda text: ascii(text[:60]))
def test_mistakes_in_the_file_are_named_in_one_line(file: Path, text: str) -> None:
    with pytest.raises(HartError, match=re.escape(FILE_MISTAKES[text])) as caught:
        from_text(file, text)
    assert len(str(caught.value)) < 600
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)


OPTION_MISTAKES = {
    "4": "unexpected argument '4'",
    "--training.max_steps": "--training.max_steps: the value is missing",
    "--training.max_steps --data.dir": "--training.max_steps: the value is missing",
    "--max_steps 4": "unknown option --max_steps; did you mean --training.max_steps?",
    "--training.max_step 4": ("unknown field --training.max_step; did you mean --training.max_steps?"),
    "--training 4": "name one of its fields, e.g. --training.output_dir",
    "--training.max_steps x": "--training.max_steps: must be a whole number, not 'x'",
    "--training.alpha [1": "--training.alpha: '[1' is not valid YAML",
    "--model.peft.3.length 8": "--model.peft.3.length: there is no entry '3'",
    "--model.peft.x 8": "--model.peft.x: there is no entry 'x'",
    "--model.fusion.x 8": "--model.fusion.x: there is no entry 'x'",
    "--model.peft.0.kind 8": "--model.peft.0: needs a kind",
    f"--training.seed {'9' * 5000}": "--training.seed: '99999",
    f"--model.peft {'[' * 5000}": "--model.peft: '[[[[[",
    "--data.dir x\udcff": "--data.dir: contains half of a character or bytes that are not UTF-8",
    "--model.peft.0.x \udcff": "--model.peft.0.x: '\\udcff' is not valid YAML",
}


@pytest.mark.parametrize("words", OPTION_MISTAKES, ids=lambda words: ascii(words[:60]))
def test_mistakes_on_the_command_line_are_named_in_one_line(file: Path, words: str) -> None:
    with pytest.raises(HartError, match=re.escape(OPTION_MISTAKES[words])) as caught:
        load(file, words.split())
    assert "\n" not in str(caught.value)
    assert str(file) not in str(caught.value)


def test_a_mistake_in_the_file_is_not_blamed_on_the_command_line(file: Path) -> None:
    with pytest.raises(HartError, match=re.escape(f"{file}: training.max_steps: ")):
        from_text(file, "training: {max_steps: 0}", "--training.seed", "1")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(HartError, match=r"missing\.yaml: no such configuration file"):
        load(tmp_path / "missing.yaml")
    with pytest.raises(HartError, match="cannot be read"):
        load(tmp_path)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(HartError, match="not UTF-8"):
        load(binary)
    binary.write_bytes("model: {}".encode("utf-16"))
    with pytest.raises(HartError, match="not UTF-8"):
        load(binary)
    binary.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(HartError, match="is a Git LFS pointer"):
        load(binary)
    with pytest.raises(HartError, match="cannot be read"):
        load("run\0.yaml")


def test_a_byte_order_mark_is_no_text(file: Path) -> None:
    assert from_text(file, "\ufefftraining: {seed: 1}").training.seed == 1


def test_what_is_still_yaml(file: Path) -> None:
    """An alias of a single value, a document's marks, a section without fields."""
    data = from_text(file, "---\ndata: {max_query_length: &n 64, max_target_length: *n}\nmodel:\n...").data
    assert (data.max_query_length, data.max_target_length) == (64, 64)


def test_sections_made_in_python_are_checked_too() -> None:
    with pytest.raises(HartError, match=r"training\.max_steps: must be at least 1"):
        TrainingConfig(max_steps=0)
    with pytest.raises(HartError, match=r"model\.decoder_layers: must be a whole number"):
        ModelConfig(decoder_layers="8")  # type: ignore[arg-type]
    with pytest.raises(HartError, match=r"data\.dirs: no such field; choose one of collection, dir"):
        DataConfig(dirs="x")  # type: ignore[call-arg]
    with pytest.raises(HartError, match=r"^model: must be .*ModelConfig, not 3$"):
        RunConfig(model=3)  # type: ignore[arg-type]


def test_a_changed_copy_is_held_to_the_same_rules() -> None:
    config = RunConfig()
    assert config.changed() == config
    changed = config.changed(training={"max_steps": 3}, data=DataConfig(seed=1))
    assert (changed.training.max_steps, changed.data.seed, config.training.max_steps) == (3, 1, 10_000)
    for wrong in ({"max_steps": 0}, {"micro_batch_size": 3}, {"steps": 3}):
        with pytest.raises(HartError, match=r"^training\."):
            config.changed(training=wrong)
    with pytest.raises(HartError, match=r"training\.alpha: must be 0"):
        config.changed(model={"weights": "learned", "fusion": False}, data={"demonstrations_to": "main"})


def test_instances_share_nothing() -> None:
    RunConfig().model.peft.append({"kind": "lora"})
    RunConfig().model.scheme["name"] = "shared"
    assert (RunConfig().model.peft, RunConfig().model.scheme) == (
        [{"kind": "prefix", "length": 32}],
        {"name": "autoregressive"},
    )


def test_a_configuration_is_read_without_torch(file: Path) -> None:
    code = f"""
import sys
from hart.training.config import load
load({str(file)!r})
print(sorted({{"torch", "transformers", "datasets"}} & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
