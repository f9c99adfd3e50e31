"""Decoder-only main models: answers, scores and training passes against the stock model, alone and in batches."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from decoder_models import CONFIGS, decoder_model, fitting, frozen
from transformers import PreTrainedTokenizerFast

from hart.data.input_format import InputFormat
from hart.errors import HartError
from hart.hypernetwork.network import HyperNetwork
from hart.model.adaptation import Adaptation
from hart.model.decoder_only import DecoderOnly
from hart.model.hart_model import HartModel
from hart.model.main_model import MainModel
from hart.model.scoring import score_choices
from hart.peft.base import Blocks, build_kinds, row_blocks

PREFIX = [{"kind": "prefix", "length": 3}]
LORA = [{"kind": "lora", "rank": 2, "targets": ["q", "v", "wi"]}]
KINDS = {"prefix": PREFIX, "lora": LORA, "all": [*PREFIX, *LORA, {"kind": "ia3"}, {"kind": "adapter", "bottleneck": 2}]}
QUERIES = ["the cat sat on the mat one", "two", "three in order"]


@pytest.fixture(params=["llama", "qwen3", "gemma3_text", "gpt2"])
def main(request: pytest.FixtureRequest, tiny_tokenizer: PreTrainedTokenizerFast) -> MainModel:
    return frozen(request.param, tiny_tokenizer)


def adaptation(main: MainModel, peft: list[dict], n: int = len(QUERIES)) -> Adaptation:
    generator = torch.Generator().manual_seed(1)
    peft = fitting(peft, main.shape)
    blocks: Blocks = {
        block.name: 0.4 * torch.randn(n, block.layers, block.rows, block.width, generator=generator)
        for block in row_blocks(build_kinds(peft), main.shape)
    }
    task = {"name": "t", "Definition": ["d"], "Positive Examples": [{"input": "a", "output": "b"}]}
    configs = [kind.to_config() for kind in build_kinds(peft)]
    return Adaptation(blocks, None, None, configs, tasks=[task] * n, **main.identity)


def batch(main: MainModel) -> dict[str, Any]:
    ids, mask = main.pad([[5, 6, 7, 8, 9, 10, 1], [9, 1], [10, 11, 12, 1]])
    labels = torch.tensor([[5, 6, 7, 1], [8, 1, -100, -100], [9, 10, 1, -100]])
    return {"query_ids": ids, "query_mask": mask, "labels": labels}


@torch.no_grad()
def test_a_training_pass_predicts_the_answer_behind_the_query(main: MainModel) -> None:
    given = batch(main)
    logits = main(**given).logits
    assert logits.shape[:2] == given["labels"].shape
    for row in range(3):
        query = given["query_ids"][row][given["query_mask"][row] == 1]
        answer = given["labels"][row][given["labels"][row] >= 0]
        whole = main.model(torch.cat([query, answer])[None]).logits[0, len(query) - 1 : -1]
        torch.testing.assert_close(logits[row, : len(answer)], whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kinds", KINDS)
def test_gradient_reaches_every_row_and_none_of_the_frozen_model(main: MainModel, kinds: str) -> None:
    found = []
    for recompute in (False, True):
        if recompute:
            main.enable_gradient_checkpointing()
        main.train()
        assert main.model.training == recompute
        blocks = {k: v.requires_grad_() for k, v in adaptation(main, KINDS[kinds]).blocks.items()}
        output = main(**batch(main), blocks=blocks, peft=build_kinds(KINDS[kinds])).logits
        main(**batch(main), blocks={k: 2 * v.detach() for k, v in blocks.items()}, peft=build_kinds(KINDS[kinds]))
        kept = batch(main)["labels"] >= 0
        output[kept].square().mean().backward()
        found.append({name: values.grad for name, values in blocks.items()})
    for name, gradient in found[0].items():
        assert gradient.isfinite().all() and gradient.flatten(2).any(dim=2).all(), name
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-3, atol=1e-4)
    assert not any(p.grad is not None for p in main.model.parameters())


@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"num_beams": 3}], ids=str)
@pytest.mark.parametrize("kinds", KINDS)
def test_a_batch_of_mixed_tasks_answers_as_each_does_alone(main: MainModel, kinds: str, options: dict) -> None:
    mixed = adaptation(main, KINDS[kinds])
    alone = [main.generate([query], mixed[i], max_new_tokens=6, **options)[0] for i, query in enumerate(QUERIES)]
    assert main.generate(QUERIES, mixed, max_new_tokens=6, **options) == alone
    if options == {"use_cache": False}:
        assert main.generate(QUERIES, mixed, max_new_tokens=6) == alone
    bare = main.generate(QUERIES, max_new_tokens=6, **options)
    assert alone != bare


def test_answers_of_the_bare_base_are_those_of_the_stock_model(main: MainModel) -> None:
    """Behind the query as it is: an end of sequence would tell the base that another text begins."""
    form = InputFormat(input_eos=False)
    stock = decoder_model(main.name, len(main.tokenizer))
    for answer, query in zip(main.answers(QUERIES, max_new_tokens=6), QUERIES, strict=True):
        ids = torch.tensor([form.encode_query(main.tokenizer, query)])
        made: Any = stock.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
        tokens = made[0, ids.shape[1] :].tolist()
        assert answer.text == main.tokenizer.decode(tokens, skip_special_tokens=True)
        assert answer.query_tokens == ids.shape[1] and answer.tokens == len(tokens)


def test_a_choice_of_a_plain_base_goes_on_behind_a_space(main: MainModel) -> None:
    tokenizer, form = main.tokenizer, InputFormat(input_eos=False, max_target_length=3)
    for text in ("cat", "the cat sat on the mat"):
        before, whole = (tokenizer(each, add_special_tokens=False)["input_ids"] for each in ("one", f"one {text}"))
        assert form.encode_continuation(tokenizer, text) == whole[len(before) :][:3]
    assert form.encode_continuation(tokenizer, " ") == [tokenizer.eos_token_id]


def test_the_base_of_a_system_is_told_a_query_as_the_system_is(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    """In its chat template, with its limits; demonstrations come with an adaptation alone."""
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = "{% for m in messages %}the {{ m.content }} cat{% endfor %}"
    main = frozen("llama", tokenizer)
    form = InputFormat(chat_template=True, demonstrations_to="main", max_query_length=40, max_target_length=4)
    system = HartModel(main, None, train_main=True, input_format=form)
    (answer,) = system.answers("one two")
    assert answer.query_tokens == len(tokenizer("the one two cat", add_special_tokens=False)["input_ids"])
    assert answer.tokens <= 4


def test_a_token_without_an_embedding_is_refused(main: MainModel) -> None:
    rows = main.model.get_input_embeddings().num_embeddings
    for wrong in (rows, -1):
        with pytest.raises(
            HartError, match=f"has embeddings of {rows} tokens, and token {wrong} is not among them; leave it out"
        ):
            main.answers([[3, wrong]])


def test_sampling_is_decided_by_the_seed(main: MainModel) -> None:
    made = []
    for _ in range(2):
        torch.manual_seed(3)
        made.append(main.generate(QUERIES, adaptation(main, PREFIX), max_new_tokens=6, temperature=0.8, top_p=0.9))
    assert made[0] == made[1] != main.generate(QUERIES, adaptation(main, PREFIX), max_new_tokens=6)


@pytest.mark.parametrize("kinds", [None, *KINDS])
def test_a_score_is_that_of_a_pass_of_its_own(main: MainModel, kinds: str | None) -> None:
    choices = [["cat", "the cat sat on", ""], ["one"], ["in", "order two"]]
    mixed = None if kinds is None else adaptation(main, KINDS[kinds])
    found = score_choices(main, QUERIES, choices, mixed)
    form = InputFormat(input_eos=kinds is not None)
    encode = form.encode_continuation if kinds is None else form.encode_target
    for row, (query, own) in enumerate(zip(QUERIES, choices, strict=True)):
        ids, mask = main.pad([form.encode_query(main.tokenizer, query)])
        for score, text in zip(found[row], own, strict=True):
            labels = torch.tensor([encode(main.tokenizer, text)])
            part = {} if mixed is None else {"blocks": mixed[row].blocks, "peft": mixed.kinds}
            with torch.no_grad():
                logits = main(ids, mask, labels=labels, **part).logits.log_softmax(-1)
            expected = logits.gather(2, labels[..., None]).sum().item()
            assert score == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_all_architectures_train_answer_and_score_in_bf16(name: str, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    main = frozen(name, tiny_tokenizer)
    main.to(torch.bfloat16)
    mixed = adaptation(main, KINDS["all"])
    blocks = {key: values.requires_grad_() for key, values in mixed.blocks.items()}
    logits = main(**batch(main), blocks=blocks, peft=mixed.kinds).logits
    assert logits.dtype == torch.bfloat16 and logits.isfinite().all()
    logits[batch(main)["labels"] >= 0].float().square().mean().backward()
    assert all(values.grad is not None and values.grad.isfinite().all() for values in blocks.values())
    assert len(main.generate(QUERIES, mixed, max_new_tokens=3)) == 3
    assert len(score_choices(main, QUERIES, [["a", "b"]] * 3, mixed)) == 3


def test_loaded_by_the_family_of_its_checkpoint(tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    decoder_model("llama", len(tiny_tokenizer)).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    loaded = MainModel.from_pretrained(str(tmp_path), dtype="float32")
    assert isinstance(loaded, DecoderOnly) and loaded.shape.stacks == ("decoder",)
    assert loaded.fingerprint == frozen("llama", tiny_tokenizer).fingerprint


def test_no_room_is_told(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    main = frozen("gpt2", tiny_tokenizer)
    with pytest.raises(HartError, match="gpt2: has 512 positions, and query and answer have .* behind a prefix of 3"):
        main.generate(QUERIES, adaptation(main, PREFIX), max_new_tokens=510)


def test_learned_positions_are_used_to_the_last_one(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    main, short, long = frozen("gpt2", tiny_tokenizer), "cat", "the cat sat on the mat one two three in order"
    answers = [len(InputFormat().encode_target(tiny_tokenizer, text)) for text in (short, long)]
    # The last token of an answer is predicted and never read.
    room = 512 - 3 - (answers[0] - 1)
    mixed = adaptation(main, PREFIX, n=2)
    assert score_choices(main, [[5] * room], [[short]], mixed[0])[0][0] < 0
    with pytest.raises(HartError, match=f"query and answer have {room + answers[0]} tokens"):
        score_choices(main, [[5] * (room + 1)], [[short]], mixed[0])
    # Rows of a batch are padded to the longest, and padding has no position.
    together = score_choices(main, [[5] * room, [5, 6]], [[short], [long]], mixed)
    assert together[1][0] == pytest.approx(score_choices(main, [[5, 6]], [[long]], mixed[1])[0][0], abs=1e-3)
    ids, mask = main.pad([[5] * room, [5, 6]])
    labels, kept = main.pad([InputFormat().encode_target(tiny_tokenizer, text) for text in (short, long)])
    with torch.no_grad():
        assert main(ids, mask, labels.masked_fill(kept == 0, -100), mixed.blocks, mixed.kinds).logits.isfinite().all()


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_the_tokenizer_of_the_hypernetwork_comes_back(
    family: str, tiny_base_dir: Path, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Also where it was not told apart from the main model's; and a T5's own, where it was."""
    base, reader = tiny_base_dir, None
    if family == "llama":
        base = tmp_path / "base"
        decoder_model("llama", len(tiny_tokenizer)).save_pretrained(base)
        tiny_tokenizer.save_pretrained(base)
    else:
        reader = PreTrainedTokenizerFast.from_pretrained(tiny_base_dir, sep_token="<sep>")
    main = MainModel.from_pretrained(str(base), dtype="float32")
    t5 = MainModel.from_pretrained(str(tiny_base_dir), dtype="float32").model
    network = HyperNetwork.from_base(main.model, source=t5, decoder_layers=1, scheme={"name": "causal"}, peft=PREFIX)
    system = HartModel(main, network, fusion=False, reader=reader).eval()
    system.save_pretrained(tmp_path / "model")
    loaded = HartModel.from_pretrained(tmp_path / "model")
    assert loaded.reader.get_vocab() == system.reader.get_vocab()
    assert loaded.reader.sep_token == system.reader.sep_token
