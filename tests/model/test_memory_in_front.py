"""A memory in front of a decoder-only model's tokens: against the stock model, cached, in batches, with prefixes."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from decoder_models import CONFIGS, decoder_model, fitting, frozen
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedTokenizerFast

from hart.data.input_format import InputFormat
from hart.errors import HartError
from hart.model.adaptation import Adaptation
from hart.model.main_model import MainModel
from hart.model.scoring import score_choices
from hart.peft.architectures import architecture
from hart.peft.base import Blocks, build_kinds, row_blocks
from hart.peft.modules import at
from hart.runtime.third_party.transformers import CACHE

PREFIX = [{"kind": "prefix", "length": 3}]
# At k and v, LoRA and (IA)³ change what is made of a memory too.
CHANGES = [{"kind": "lora", "rank": 2, "targets": ["k", "v", "wi"]}, {"kind": "ia3"}]
KINDS = {"alone": [], "prefix": PREFIX, "changes": CHANGES, "all": [*PREFIX, *CHANGES]}
QUERIES = ["the cat sat on the mat one two three", "two", "three in order"]
MEMORIES = [6, 2, 4]


@pytest.fixture(params=CONFIGS)
def main(request: pytest.FixtureRequest, tiny_tokenizer: PreTrainedTokenizerFast) -> MainModel:
    return frozen(request.param, tiny_tokenizer)


def adaptations(main: MainModel, peft: list[dict]) -> list[Adaptation]:
    """One for each query, with memories of different lengths."""
    peft = fitting(peft, main.shape)
    generator = torch.Generator().manual_seed(1)
    task = {"name": "t", "Definition": ["d"], "Positive Examples": [{"input": "a", "output": "b"}]}
    configs = [kind.to_config() for kind in build_kinds(peft)]
    each = []
    for length in MEMORIES:
        blocks: Blocks = {
            block.name: 0.4 * torch.randn(1, block.layers, block.rows, block.width, generator=generator)
            for block in row_blocks(build_kinds(peft), main.shape)
        }
        memory = torch.randn(1, length, main.shape.d_model, generator=generator)
        each.append(Adaptation(blocks, memory, torch.ones(1, length), configs, tasks=[task], **main.identity))
    return each


def batch(main: MainModel) -> dict[str, Any]:
    ids, mask = main.pad([[5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 1], [9, 1], [10, 11, 12, 1]])
    labels = torch.tensor([[5, 6, 7, 1], [8, 1, -100, -100], [9, 10, 1, -100]])
    return {"query_ids": ids, "query_mask": mask, "labels": labels}


def given(adaptation: Adaptation) -> dict[str, Any]:
    return {
        "blocks": adaptation.blocks,
        "peft": adaptation.kinds,
        "memory": adaptation.memory,
        "memory_mask": adaptation.memory_mask,
    }


@torch.no_grad()
def test_keys_and_values_are_those_of_the_stock_layers_at_position_0(main: MainModel) -> None:
    """Each layer of the stock model is given the memory as if it were the first one."""
    if main.name == "gemma4_text, shared":
        pytest.skip("its layers read token ids besides, which a memory has not")
    memory = torch.randn(2, 5, main.shape.d_model)
    keys, values = main._memory_key_values(memory)
    table, zero = architecture(main.model.config), torch.zeros(2, 5, dtype=torch.long)
    stack, _, last = table.stacks["decoder"].rpartition(".")
    for index, layer in enumerate(main.shape.attention or range(main.shape.decoder_layers)):
        one = copy.deepcopy(decoder_model(main.name, len(main.tokenizer)))
        holder: Any = at(one, stack)
        setattr(holder, last, nn.ModuleList([getattr(holder, last)[layer]]))
        one.config.num_hidden_layers = 1
        inputs = memory
        if main.name == "gpt2":
            inputs = memory - one.transformer.wpe.weight[0]
        if main.name == "gemma2":
            inputs = memory / torch.tensor(main.shape.d_model**0.5)
        cache = DynamicCache()
        one(inputs_embeds=inputs, position_ids=zero, **{CACHE: cache}, use_cache=True)
        for found, own in ((keys, "keys"), (values, "values")):
            torch.testing.assert_close(found[index], getattr(cache.layers[layer], own), rtol=1e-4, atol=1e-5)


def test_a_norm_of_keys_that_not_all_checkpoints_have(
    tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, sizes = CONFIGS["phi"]
    monkeypatch.setitem(CONFIGS, "phi, normed", (config, {**sizes, "qk_layernorm": True}))
    test_keys_and_values_are_those_of_the_stock_layers_at_position_0(frozen("phi, normed", tiny_tokenizer))


@pytest.mark.parametrize("name", ["llama", "qwen3", "glm4", "gpt2", "gpt_neox"])
@torch.no_grad()
def test_it_is_a_past_that_takes_no_positions(name: str, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    """Of models without a sliding window, in which a past is seen from everywhere."""
    main = frozen(name, tiny_tokenizer)
    stock = decoder_model(name, len(tiny_tokenizer))
    memory, ids = torch.randn(1, 6, 32), torch.tensor([[5, 6, 7, 8, 9, 1]])
    past = DynamicCache()
    for layer, (keys, values) in enumerate(zip(*main._memory_key_values(memory), strict=True)):
        past.update(keys, values, layer)
    mask, positions = torch.ones(1, 12, dtype=torch.long), torch.arange(6)[None]
    mask[0, 4:6] = 0  # the end of the memory is padding
    expected = stock(ids, attention_mask=mask, position_ids=positions, **{CACHE: past}).logits
    found = main(ids[:, :1], mask[:, :1], labels=ids[:, 1:], memory=memory, memory_mask=mask[:, :6]).logits
    torch.testing.assert_close(found, expected[:, :-1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kinds", KINDS)
@torch.no_grad()
def test_a_mixed_batch_is_each_task_alone(main: MainModel, kinds: str) -> None:
    each = adaptations(main, KINDS[kinds])
    whole = batch(main)
    together = main(**whole, **given(Adaptation.stack(each))).logits
    bare = main(**whole).logits
    for row, own in enumerate(each):
        one = {name: values[row : row + 1] for name, values in whole.items()}
        one["query_ids"] = one["query_ids"][:, : int(one["query_mask"].sum())]
        one["query_mask"] = one["query_mask"][:, : one["query_ids"].shape[1]]
        answer = whole["labels"][row] >= 0
        alone = main(**one, **given(own)).logits[0][answer]
        torch.testing.assert_close(together[row][answer], alone, rtol=1e-3, atol=2e-4)
        without = main(**one, **{**given(own), "memory": None, "memory_mask": None}).logits[0][answer]
        assert not torch.allclose(alone, without, atol=1e-2) and not torch.allclose(alone, bare[row][answer], atol=1e-2)


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}], ids=str)
@pytest.mark.parametrize("kinds", ["alone", "all"])
def test_answers_are_the_same_cached_kept_and_mixed(main: MainModel, kinds: str, options: dict) -> None:
    each = adaptations(main, KINDS[kinds])
    mixed = Adaptation.stack(each)
    alone = [main.generate([q], own, max_new_tokens=6, **options)[0] for q, own in zip(QUERIES, each, strict=True)]
    assert main.generate(QUERIES, mixed, max_new_tokens=6, **options) == alone
    assert main.generate(QUERIES, mixed, max_new_tokens=6, use_cache=False, **options) == alone
    kept = main.keep_memory(mixed)
    assert kept.kept is not None and kept.kept[0].shape[:2] == (len(main.shape.attention or range(3)), 3)
    assert main.generate(QUERIES, kept, max_new_tokens=6, **options) == alone
    assert main.generate(QUERIES, max_new_tokens=6, **options) != alone


@pytest.mark.parametrize("kinds", ["alone", "all"])
def test_a_score_is_that_of_a_training_pass(main: MainModel, kinds: str) -> None:
    choices = [["cat", "the cat sat on", ""], ["one"], ["in", "order two"]]
    each = adaptations(main, KINDS[kinds])
    found = score_choices(main, QUERIES, choices, Adaptation.stack(each))
    form = InputFormat()
    for row, (query, own) in enumerate(zip(QUERIES, choices, strict=True)):
        ids, mask = main.pad([form.encode_query(main.tokenizer, query)])
        for score, text in zip(found[row], own, strict=True):
            labels = torch.tensor([form.encode_target(main.tokenizer, text)])
            with torch.no_grad():
                logits = main(ids, mask, labels=labels, **given(each[row])).logits.log_softmax(-1)
            assert score == pytest.approx(logits.gather(2, labels[..., None]).sum().item(), rel=1e-4, abs=1e-4)


def test_gradient_reaches_every_token_of_it_and_nothing_frozen(main: MainModel) -> None:
    found: list[Tensor] = []
    mixed = Adaptation.stack(adaptations(main, KINDS["all"]))
    for recompute in (False, True):
        if recompute:
            main.enable_gradient_checkpointing()
        main.train()
        assert mixed.memory is not None and mixed.memory_mask is not None
        memory = mixed.memory.clone().requires_grad_()
        logits = main(**batch(main), **{**given(mixed), "memory": memory}).logits
        logits[batch(main)["labels"] >= 0].square().mean().backward()
        assert memory.grad is not None and memory.grad.isfinite().all()
        assert torch.equal(memory.grad.any(dim=-1), mixed.memory_mask.bool())
        found.append(memory.grad)
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-5)
    assert not any(p.grad is not None for p in main.model.parameters())


@pytest.mark.parametrize("name", ["mistral", "gemma3_text"])
def test_no_window_leaves_it_behind(name: str, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    """The window has 8 tokens; a prefix is out of it long before the end of the query, in a layer with a window."""
    main = frozen(name, tiny_tokenizer)
    ids = torch.randint(5, 60, (1, 40))
    labels = torch.tensor([[5, 1]])
    own = adaptations(main, PREFIX)[0]
    assert own.memory is not None
    # One layer, so that nothing comes to the end over tokens in between.
    main.model.model.layers = main.model.model.layers[:1]
    main.model.config.num_hidden_layers = 1
    main.shape = replace(main.shape, decoder_layers=1)
    blocks = {key: values[:, :1].requires_grad_() for key, values in own.blocks.items()}
    memory = own.memory.requires_grad_()
    main(ids, torch.ones_like(ids), labels, blocks, own.kinds, memory, own.memory_mask).logits.square().sum().backward()
    assert memory.grad is not None and memory.grad.any(dim=-1).all()
    assert all(values.grad is None or not values.grad.any() for values in blocks.values())


def test_a_memory_has_a_mask(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    main = frozen("llama", tiny_tokenizer)
    with pytest.raises(HartError, match="memory and memory_mask must be given together"):
        main(**batch(main), memory=torch.zeros(3, 2, 32))
    main.to(torch.bfloat16)
    assert main(**batch(main), **given(Adaptation.stack(adaptations(main, PREFIX)))).logits.isfinite().all()
