"""mT5: the same numbers as the stock model, and support in all functions for a T5."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from decoder_models import decoder_model
from torch import Tensor, nn
from transformers import (
    AutoModelForSeq2SeqLM,
    MT5Config,
    MT5ForConditionalGeneration,
    PreTrainedTokenizerFast,
    UMT5Config,
)

from hart import HartError, HartModel, Task
from hart.model.export import save_merged, save_peft
from hart.model.main_model import MainModel
from hart.training.config import DataConfig, ModelConfig, RunConfig
from hart.training.estimate import estimate

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
TASK = Task("Swap the words.", [("one two", "two one"), ("three four", "four three")])
LORA = {"kind": "lora", "rank": 2, "targets": ["q", "v"]}
SIZES: dict[str, Any] = {
    "d_model": 32,
    "d_kv": 12,
    "d_ff": 40,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "num_heads": 4,
}


@pytest.fixture
def base(tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    """As on the hub: an output matrix that is not the embeddings, and a configuration that says so."""
    folder = tmp_path / "mt5"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = MT5ForConditionalGeneration(MT5Config(vocab_size=len(tiny_tokenizer), **SIZES))
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.3)
        model.lm_head.weight = nn.Parameter(torch.randn_like(model.lm_head.weight))
    model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"tie_word_embeddings": False}))
    return folder


@torch.no_grad()
def logits(model: Any, **options: Any) -> Tensor:
    ids = torch.arange(3, 33).view(3, 10)
    found: Tensor = model(ids, torch.ones_like(ids), labels=torch.arange(2, 23).view(3, 7), **options).logits
    return found


def test_a_main_model_is_the_stock_model(base: Path) -> None:
    stock = MT5ForConditionalGeneration.from_pretrained(base).eval()
    main = MainModel.from_pretrained(str(base))
    assert torch.equal(logits(main), logits(stock))
    assert (main.shape.encoder_layers, main.shape.decoder_layers, main.shape.kv_inner) == (3, 2, 48)


def test_its_tokenizer_as_on_the_hub(base: Path) -> None:
    """A sentencepiece model, and no sentinels behind its pieces."""
    sentences = ["der Hund läuft schnell", "el gato come pescado", "the cat sat on the mat", "猫 は 魚 が 好き"]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences * 50),
        model_writer=model,
        vocab_size=50,
        character_coverage=1.0,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    for path in base.glob("*token*"):
        path.unlink()
    (base / "spiece.model").write_bytes(model.getvalue())
    special = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    (base / "tokenizer_config.json").write_text(json.dumps({**special, "extra_ids": 0, "tokenizer_file": None}))
    tokenizer = MainModel.from_pretrained(str(base)).tokenizer
    for text in sentences:
        tokens = tokenizer(text).input_ids
        assert tokens[-1] == tokenizer.eos_token_id == 1 and tokenizer.unk_token_id not in tokens
        assert tokenizer.decode(tokens, skip_special_tokens=True) == text


def test_its_adaptations_leave_for_the_stock_model(base: Path, tmp_path: Path) -> None:
    config = ModelConfig(base=str(base), decoder_layers=1, peft=[LORA], fusion=False)
    model = HartModel.from_config(config, DataConfig(max_target_length=8)).eval()
    adaptation = model.adapt(TASK)
    adaptation.blocks = {name: 0.3 * torch.randn_like(rows) for name, rows in adaptation.blocks.items()}
    changed = logits(model.main, blocks=adaptation.blocks, peft=adaptation.kinds)
    assert not torch.allclose(changed, logits(model.main), atol=1e-2)
    save_merged(adaptation, model.main, tmp_path / "merged")
    merged = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(logits(merged), changed, **CLOSE)
    peft = pytest.importorskip("peft")
    save_peft(adaptation, model.main, tmp_path / "peft")
    stock = AutoModelForSeq2SeqLM.from_pretrained(base)
    assert isinstance(stock, MT5ForConditionalGeneration)
    theirs = peft.PeftModel.from_pretrained(stock, tmp_path / "peft").eval()
    torch.testing.assert_close(logits(theirs), changed, **CLOSE)


def test_a_saved_system_comes_back(base: Path, tmp_path: Path) -> None:
    for name, settings in {
        "hart": {"peft": [{"kind": "prefix", "length": 2}], "decoder_layers": 2},
        "fine-tuned": {"weights": "none", "train_main": True, "peft": [], "fusion": False},
    }.items():
        model = HartModel.from_config(ModelConfig(base=str(base), **settings), DataConfig(max_target_length=8)).eval()
        model.save_pretrained(tmp_path / name)
        again = HartModel.from_pretrained(tmp_path / name)
        assert torch.equal(logits(again.main), logits(model.main))
        if name == "hart":
            queries = ["one three", "two four one"]
            assert again.generate(queries, again.adapt(TASK)) == model.generate(queries, model.adapt(TASK))


def test_a_hypernetwork_for_another_base_starts_from_it(
    base: Path, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    decoder_model("llama", len(tiny_tokenizer)).save_pretrained(tmp_path / "llama")
    tiny_tokenizer.save_pretrained(tmp_path / "llama")
    config = ModelConfig(
        base=str(tmp_path / "llama"), hypernetwork_init=str(base), decoder_layers=2, peft=[LORA], fusion=False
    )
    model = HartModel.from_config(config, DataConfig(max_target_length=8)).eval()
    assert len(model.generate(["one three"], model.adapt(TASK))) == 1
    assert estimate(RunConfig(model=config)).parameters["hypernetwork.encoder"] > 0


@pytest.mark.parametrize(("size", "millions"), [("small", 300), ("base", 580), ("large", 1200), ("xl", 3700)])
def test_published_sizes_are_known_without_a_download(size: str, millions: int) -> None:
    counts = estimate(RunConfig().changed(model={"base": f"google/mt5-{size}"})).parameters
    main = sum(count for name, count in counts.items() if name.startswith("main"))
    assert main / 1e6 == pytest.approx(millions, rel=0.03)


def test_umt5_is_told_apart(tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    """Each of its layers has a relative bias of its own, so it is not one of these."""
    UMT5Config().save_pretrained(tmp_path / "umt5")
    tiny_tokenizer.save_pretrained(tmp_path / "umt5")
    with pytest.raises(HartError, match="umt5: main models of the architecture 'umt5' have no row in hart's table"):
        MainModel.from_pretrained(str(tmp_path / "umt5"))
