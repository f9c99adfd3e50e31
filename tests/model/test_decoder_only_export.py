"""What a decoder-only model's adaptation gives, the PEFT library gives with its export, to rounding and in text."""

from pathlib import Path
from typing import Any

import pytest
import torch
from decoder_models import CONFIGS, decoder_model
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from hart.data.input_format import InputFormat
from hart.model.adaptation import Adaptation
from hart.model.decoder_only import DecoderOnly
from hart.model.export import save_merged, save_peft, to_peft, what_is_lost
from hart.model.main_model import MainModel
from hart.peft.base import build_kinds, row_blocks

peft = pytest.importorskip("peft")
from peft_prefixes import peft_prefixes  # noqa: E402

KINDS = {
    "prefix": {"kind": "prefix", "length": 4},
    "lora": {"kind": "lora", "rank": 2, "alpha": 3.0, "targets": ["q", "v", "o", "wi", "wo"]},
    "ia3": {"kind": "ia3"},
}
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
QUERIES = ["one three", "two four one", "the cat sat on the mat"]


@pytest.fixture(params=CONFIGS)
def main(request: pytest.FixtureRequest, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> MainModel:
    model = decoder_model(request.param, len(tiny_tokenizer))
    model.save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    main = MainModel.from_pretrained(str(tmp_path / "base"), dtype="float32")
    main.freeze()
    return main


def adapted(main: MainModel, kind: dict[str, Any]) -> Adaptation:
    kinds = build_kinds([kind])
    blocks = {
        block.name: 0.3 * torch.randn(1, block.layers, block.rows, block.width)
        for block in row_blocks(kinds, main.shape)
    }
    task = {"name": "t", "Definition": ["d"], "Positive Examples": [{"input": "a", "output": "b"}]}
    return Adaptation(blocks, None, None, [kinds[0].to_config()], tasks=[task], **main.identity)


@torch.no_grad()
def logits(model: Any, ids: Tensor) -> Tensor:
    return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


def texts(model: Any, main: MainModel) -> list[str]:
    made = []
    for query in QUERIES:
        ids = torch.tensor([InputFormat().encode_query(main.tokenizer, query)])
        options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 8, "do_sample": False}
        tokens = model.generate(input_ids=ids, pad_token_id=0, **options)
        made.append(main.tokenizer.decode(tokens[0, ids.shape[1] :], skip_special_tokens=True))
    return made


@pytest.mark.parametrize(
    "name", [pytest.param(kind, marks=peft_prefixes if kind == "prefix" else ()) for kind in KINDS]
)
def test_an_export_is_exact(main: MainModel, name: str, tmp_path: Path) -> None:
    adaptation = adapted(main, KINDS[name])
    assert what_is_lost(adaptation) == []
    ids = torch.randint(3, 60, (1, 14))
    with main.adapted(adaptation, batch=1):
        changed = logits(main.model, ids)
    stock = logits(main.model, ids)
    assert not torch.allclose(changed, stock, atol=1e-2)
    save_peft(adaptation, main, tmp_path / "peft")
    theirs = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(main.name, dtype=torch.float32), tmp_path / "peft"
    ).eval()
    assert theirs.peft_config["default"].task_type == "CAUSAL_LM"
    torch.testing.assert_close(logits(theirs, ids), changed, **CLOSE)
    torch.testing.assert_close(logits(to_peft(adaptation, main), ids), changed, **CLOSE)
    answers = main.generate(QUERIES, adaptation, max_new_tokens=8)
    assert texts(theirs, main) == answers != main.generate(QUERIES, max_new_tokens=8)
    if name != "prefix":
        save_merged(adaptation, main, tmp_path / "merged")
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
        torch.testing.assert_close(logits(merged, ids), changed, **CLOSE)
        assert texts(merged, main) == answers
    assert torch.equal(logits(main.model, ids), stock)
    assert isinstance(main, DecoderOnly)
