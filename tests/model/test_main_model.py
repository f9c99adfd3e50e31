"""The main model: loading, freezing, blocks and memory in forward passes, answering, scoring."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import T5ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from hart.data.input_format import InputFormat
from hart.errors import HartError
from hart.model.adaptation import Adaptation
from hart.model.answering import encode_queries
from hart.model.main_model import MainModel
from hart.model.scoring import score_choices
from hart.peft.base import Blocks
from hart.peft.prefix import Prefix

KIND = Prefix(length=4)
QUERIES = ["the cat sat", "one", "reverse the words of this sentence", "naïve ☃ text", "a b", "two"]
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(params=["sdpa", "eager"])
def main(request: pytest.FixtureRequest, tiny_base_dir: Path) -> MainModel:
    return MainModel.from_pretrained(str(tiny_base_dir), attention=request.param)


@pytest.fixture
def sdpa(tiny_base_dir: Path) -> MainModel:
    return MainModel.from_pretrained(str(tiny_base_dir))


def make_blocks(main: MainModel, batch: int) -> Blocks:
    # Large enough that the answers of a random model change.
    return {
        b.name: (3 * torch.randn(batch, b.layers, b.rows, b.width)).requires_grad_()
        for b in KIND.row_blocks(main.shape)
    }


def make_adaptation(main: MainModel, tokens: int | None = 5) -> Adaptation:
    memory = None if tokens is None else 3 * torch.randn(1, tokens, main.shape.d_model)
    return Adaptation(
        blocks={name: values.detach() for name, values in make_blocks(main, 1).items()},
        memory=memory,
        memory_mask=None if tokens is None else torch.ones(1, tokens, dtype=torch.long),
        peft=[KIND.to_config()],
        base=main.name,
        base_revision=main.revision,
        base_fingerprint=main.fingerprint,
        tasks=[{}],
    )


def make_batch(main: MainModel) -> dict[str, Tensor]:
    lengths = torch.tensor([6, 4, 2])
    mask = (torch.arange(6) < lengths[:, None]).long()
    labels = torch.randint(3, 200, (3, 5))
    labels[1, 3:] = -100
    return {
        "query_ids": torch.randint(3, 200, (3, 6)) * mask,
        "query_mask": mask,
        "labels": labels,
    }


def test_forward_without_blocks_is_the_stock_model(main: MainModel, tiny_t5: T5ForConditionalGeneration) -> None:
    tiny_t5.set_attn_implementation(main.model.config._attn_implementation.removeprefix("hart_"))
    batch = make_batch(main)
    expected = tiny_t5(input_ids=batch["query_ids"], attention_mask=batch["query_mask"], labels=batch["labels"])
    assert torch.equal(main(**batch).logits, expected.logits)


@pytest.mark.parametrize("rows", [1, 3])
def test_memory_stands_before_the_encoder_output(main: MainModel, rows: int) -> None:
    batch = make_batch(main)
    memory, mask = torch.randn(rows, 4, main.shape.d_model), torch.tensor([[1, 1, 1, 0]] * rows)
    actual = main(**batch, memory=memory, memory_mask=mask).logits

    ids, query_mask = batch["query_ids"], batch["query_mask"]
    states = main.model.encoder(input_ids=ids, attention_mask=query_mask).last_hidden_state
    for row in range(3):  # by hand and without padding
        own = [memory[row % rows, :3], states[row][query_mask[row].bool()]]
        expected = main.model(
            encoder_outputs=BaseModelOutput(torch.cat(own)[None]), labels=batch["labels"][row, None]
        ).logits
        torch.testing.assert_close(actual[row, None], expected, **CLOSE)


def test_masked_memory_does_not_act(main: MainModel) -> None:
    batch = make_batch(main)
    memory, mask = torch.randn(1, 4, main.shape.d_model), torch.zeros(1, 4, dtype=torch.long)
    actual = main(**batch, memory=memory, memory_mask=mask).logits
    torch.testing.assert_close(actual, main(**batch).logits)
    with_one = main(**batch, memory=memory, memory_mask=mask.index_fill(1, torch.tensor(0), 1))
    assert not torch.allclose(with_one.logits, actual, **CLOSE)


def test_a_mixed_batch_is_each_row_alone(main: MainModel) -> None:
    batch, blocks = make_batch(main), make_blocks(main, 3)
    adaptations = [make_adaptation(main, tokens) for tokens in (2, 5, 3)]
    stacked = Adaptation.stack(adaptations)
    fused = {"memory": stacked.memory, "memory_mask": stacked.memory_mask}
    together = main(**batch, blocks=blocks, peft=[KIND], **fused).logits
    for row, adaptation in enumerate(adaptations):
        alone = main(
            **{name: values[row, None] for name, values in batch.items()},
            blocks={name: values[row, None] for name, values in blocks.items()},
            peft=[KIND],
            memory=adaptation.memory,
            memory_mask=adaptation.memory_mask,
        ).logits
        torch.testing.assert_close(together[row, None], alone, **CLOSE)


def test_gradients_reach_blocks_and_memory_but_not_the_frozen_weights(main: MainModel) -> None:
    main.freeze()
    before = {name: value.clone() for name, value in main.state_dict().items()}
    blocks = make_blocks(main, 3)
    memory = torch.randn(3, 4, main.shape.d_model, requires_grad=True)
    output = main(**make_batch(main), blocks=blocks, peft=[KIND], memory=memory, memory_mask=torch.ones(3, 4))
    output.logits.square().mean().backward()
    for values in (*blocks.values(), memory):
        assert values.grad is not None and values.grad.isfinite().all()
        assert values.grad.abs().flatten(1).amax(dim=1).min() > 0, "a row gets no gradient"
    assert all(parameter.grad is None for parameter in main.parameters())
    assert all(torch.equal(value, before[name]) for name, value in main.state_dict().items())


@torch.no_grad()  # SDPA takes another kernel, with other rounding, where gradients are wanted
def test_a_frozen_model_has_no_dropout(sdpa: MainModel) -> None:
    batch = make_batch(sdpa)
    expected = sdpa.eval()(**batch).logits
    assert not torch.equal(sdpa.train()(**batch).logits, expected), "dropout should act here"
    sdpa.freeze()
    torch.nn.Sequential(sdpa).train()
    assert sdpa.training and not sdpa.model.training
    assert torch.equal(sdpa(**batch).logits, expected)
    sdpa.enable_gradient_checkpointing()
    assert sdpa.model.training, "transformers checkpoint nothing in eval mode"
    assert torch.equal(sdpa(**batch).logits, expected)
    sdpa.eval()
    assert not sdpa.model.training


def test_gradient_checkpointing_gives_the_same_gradients(main: MainModel) -> None:
    """Two forward passes with different blocks before one backward, and an evaluation between."""
    main.freeze()
    main.train()
    batch, first, second = make_batch(main), make_blocks(main, 3), make_blocks(main, 1)
    calls = 0

    def count(*args: Any) -> None:
        nonlocal calls
        calls += 1

    main.model.encoder.block[0].layer[0].register_forward_hook(count)

    def gradients() -> list[Tensor]:
        leaves = [*first.values(), *second.values()]
        outputs = [main(**batch, blocks=blocks, peft=[KIND]).logits for blocks in (first, second)]
        main.generate(QUERIES[:1], max_new_tokens=2)
        return list(torch.autograd.grad(sum(out.square().mean() for out in outputs), leaves))

    expected = gradients()
    without = calls
    main.enable_gradient_checkpointing()
    actual = gradients()
    assert calls - without == without + 2, "each of the two forwards is recomputed once"
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("kwargs", [{}, {"num_beams": 3}], ids=["greedy", "beam"])
@pytest.mark.parametrize("tokens", [5, None], ids=["fused", "unfused"])
def test_cached_generation_is_uncached_generation(main: MainModel, kwargs: dict[str, Any], tokens: int | None) -> None:
    adaptation = Adaptation.stack([make_adaptation(main, tokens) for _ in QUERIES])
    cached = main.generate(QUERIES, adaptation, max_new_tokens=8, **kwargs)
    uncached = main.generate(QUERIES, adaptation, max_new_tokens=8, use_cache=False, **kwargs)
    assert cached == uncached
    assert cached != main.generate(QUERIES, max_new_tokens=8, **kwargs)


@pytest.mark.parametrize("kwargs", [{}, {"num_beams": 3}], ids=["greedy", "beam"])
def test_answers_do_not_depend_on_the_batch(main: MainModel, kwargs: dict[str, Any]) -> None:
    """One adaptation per query, sorted, batched and padded, against each query alone."""
    adaptations = [make_adaptation(main, tokens) for tokens in (2, 7, 3, 5, 1, 4)]
    settings = {"max_new_tokens": 8, **kwargs}
    together = main.generate(QUERIES, Adaptation.stack(adaptations), batch_size=4, **settings)
    alone = [
        main.generate([query], adaptation, **settings)[0]
        for query, adaptation in zip(QUERIES, adaptations, strict=True)
    ]
    assert together == alone
    assert len(set(together)) > 1
    shared = main.generate(QUERIES, adaptations[0], batch_size=4, **settings)
    assert shared == [main.generate([q], adaptations[0], **settings)[0] for q in QUERIES]


def test_sampling_draws_from_the_adapted_distribution(sdpa: MainModel) -> None:
    adaptation = make_adaptation(sdpa)
    greedy = sdpa.generate(QUERIES, adaptation, max_new_tokens=6)
    settings: dict[str, Any] = {"do_sample": True, "max_new_tokens": 6}
    assert sdpa.generate(QUERIES, adaptation, top_k=1, **settings) == greedy
    torch.manual_seed(1)
    first = sdpa.generate(QUERIES, adaptation, temperature=5.0, top_k=0, **settings)
    torch.manual_seed(1)
    assert sdpa.generate(QUERIES, adaptation, temperature=5.0, top_k=0, **settings) == first
    assert first != greedy


def test_generate_restores_training_mode(sdpa: MainModel) -> None:
    sdpa.train()
    first = sdpa.generate(QUERIES, max_new_tokens=6)
    assert sdpa.model.training
    assert first == sdpa.eval().generate(QUERIES, max_new_tokens=6)


def test_long_queries_are_cut_from_the_end(sdpa: MainModel) -> None:
    text = "the cat sat on the mat"
    tokens = sdpa.tokenizer(text, add_special_tokens=False)["input_ids"]
    limit = 4
    head = sdpa.tokenizer.decode(tokens[: limit - 1])
    settings = {"max_new_tokens": 6, "max_query_length": limit}
    assert sdpa.generate([text + " and more"], **settings) == sdpa.generate([head], **settings)


def test_bfloat16_weights(tiny_base_dir: Path, sdpa: MainModel) -> None:
    half = MainModel.from_pretrained(str(tiny_base_dir), dtype="bfloat16")
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in sdpa.parameters()} == {torch.float32}, "as stored"
    assert half.fingerprint == sdpa.fingerprint
    adaptation = make_adaptation(sdpa, 3)  # float32 blocks and memory
    actual, expected = (score_choices(m, QUERIES[:1], [["yes", "no"]], adaptation)[0] for m in (half, sdpa))
    assert actual == pytest.approx(expected, rel=0.05)
    assert len(half.generate(QUERIES, adaptation, max_new_tokens=4)) == len(QUERIES)


def test_fingerprint_tells_bases_apart(sdpa: MainModel, tiny_base_dir: Path) -> None:
    other = MainModel.from_pretrained(str(tiny_base_dir), attention="eager")
    assert other.fingerprint == sdpa.fingerprint
    changed = MainModel.from_pretrained(str(tiny_base_dir))
    with torch.no_grad():
        changed.model.decoder.block[2].layer[2].DenseReluDense.wo.weight.mul_(1.01)
    assert changed.fingerprint != sdpa.fingerprint
    with pytest.raises(HartError, match="this adaptation belongs to the base .*adapt again"):
        changed.generate(QUERIES, make_adaptation(sdpa))


def test_bad_queries_and_adaptations(sdpa: MainModel) -> None:
    adaptation = make_adaptation(sdpa)
    with pytest.raises(HartError, match="query 2 of 2 is empty"):
        sdpa.generate(["fine", " \n"])
    with pytest.raises(HartError, match="adaptation of 4 tasks cannot serve 6 queries"):
        sdpa.generate(QUERIES, Adaptation.stack([adaptation] * 4))
    with pytest.raises(HartError, match="num_return_sequences must be 1"):
        sdpa.generate(QUERIES, num_return_sequences=2)
    assert sdpa.generate([]) == []
    batch = make_batch(sdpa)
    with pytest.raises(HartError, match="do not match the PEFT kinds"):
        sdpa(**batch, blocks=make_blocks(sdpa, 3))
    with pytest.raises(HartError, match="2 rows for a batch of 3"):
        sdpa(**batch, blocks=make_blocks(sdpa, 2), peft=[KIND])


def test_loading_what_is_not_a_base(tmp_path: Path, tiny_base_dir: Path) -> None:
    def load_changed(name: str, content: bytes | None) -> str:
        folder = tmp_path / "base"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tiny_base_dir, folder)
        (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
        with pytest.raises(HartError) as caught:
            MainModel.from_pretrained(str(folder))
        message = str(caught.value)
        assert message.startswith((f"{folder}: ", f"{folder / name}: ")) and "\n" not in message
        return message

    weights = (tiny_base_dir / "model.safetensors").read_bytes()
    config = json.loads((tiny_base_dir / "config.json").read_text())
    assert "no checkpoint" in load_changed("config.json", None)
    assert "config.json: not a file of a model, the text is not JSON" in load_changed("config.json", b"{")
    bert = json.dumps({"model_type": "bert"}).encode()
    assert "architecture 'bert' have no row" in load_changed("config.json", bert)
    wider = json.dumps(config | {"d_ff": config["d_ff"] * 2}).encode()
    assert "cannot be loaded" in load_changed("config.json", wider)
    deeper = json.dumps(config | {"num_layers": config["num_layers"] + 1}).encode()
    assert "the checkpoint lacks encoder.block.3" in load_changed("config.json", deeper)
    for cut in (len(weights) - 8, 100, 0):
        assert "model.safetensors: truncated" in load_changed("model.safetensors", weights[:cut])
    assert "cannot be loaded" in load_changed("model.safetensors", None)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        load_changed(name, b"{")
    with pytest.raises(HartError, match="attention must be one of sdpa, eager, not 'flash'"):
        MainModel.from_pretrained(str(tiny_base_dir), attention="flash")
    with pytest.raises(HartError, match="no-such/model: no checkpoint there"):
        MainModel.from_pretrained("no-such/model")


def test_kept_memory_gives_the_same_answers(main: MainModel) -> None:
    """Generation and scores with the memory's keys and values kept, stacked and selected, against a forward pass."""
    adaptations = [make_adaptation(main, tokens) for tokens in (2, 5, 3)]
    stacked = Adaptation.stack(adaptations)
    kept = Adaptation.stack([main.keep_memory(each) for each in adaptations])
    assert kept.kept is not None and kept.kept[0].shape == (3, 3, 3, 5, 8)  # layers, rows, heads, tokens, d_kv
    queries, choices = QUERIES[:3], [["one", "the cat"], ["two"], ["on the mat", "a b", "six"]]
    for each in (stacked, kept, kept.select([0, 1, 2])):
        for row in range(3):
            fused = {"memory": adaptations[row].memory, "memory_mask": adaptations[row].memory_mask}
            ids, mask = main.pad(encode_queries(main.tokenizer, queries[row : row + 1], None, InputFormat()))
            with main.binding(adaptations[row].blocks, [KIND], batch=1):
                states, both = main.encode(ids, mask, **fused)
                tokens = main.model.generate(
                    encoder_outputs=BaseModelOutput(states), attention_mask=both, max_new_tokens=8
                )
            expected = main.tokenizer.batch_decode(tokens, skip_special_tokens=True)
            assert main.generate(queries[row : row + 1], each[row], max_new_tokens=8) == expected
            assert main.generate(queries, each, max_new_tokens=8)[row] == expected[0]
        scores = score_choices(main, queries, choices, each)
        for row in range(3):
            alone = score_choices(main, queries[row : row + 1], choices[row : row + 1], adaptations[row])[0]
            assert scores[row] == pytest.approx(alone, abs=1e-3)


def test_one_row_serves_neighbouring_queries(main: MainModel) -> None:
    """Two rows for six queries are each row for its three, also in batches that cut through the groups."""
    adaptations = [make_adaptation(main, tokens) for tokens in (2, 5)]
    stacked = Adaptation.stack(adaptations)
    expected = [main.generate(QUERIES[3 * row : 3 * row + 3], adaptations[row], max_new_tokens=8) for row in range(2)]
    for batch_size in (6, 4, 2, 1):
        assert main.generate(QUERIES, stacked, max_new_tokens=8, batch_size=batch_size) == sum(expected, [])
    assert main.generate(QUERIES, stacked, max_new_tokens=8, num_beams=2) == sum(
        (main.generate(QUERIES[3 * r : 3 * r + 3], adaptations[r], max_new_tokens=8, num_beams=2) for r in range(2)), []
    )


def test_kept_memory_is_not_saved(sdpa: MainModel, tmp_path: Path) -> None:
    kept = sdpa.keep_memory(make_adaptation(sdpa))
    kept.save_pretrained(tmp_path / "kept")
    assert Adaptation.from_pretrained(tmp_path / "kept").kept is None
    assert sdpa.keep_memory(kept) is not None and kept.to("cpu").kept is not None
    without = make_adaptation(sdpa, tokens=None)
    assert sdpa.keep_memory(without).kept is None
    assert Adaptation.stack([kept, make_adaptation(sdpa)]).kept is None


def test_a_static_cache_gives_the_same_answers(sdpa: MainModel) -> None:
    adaptation = make_adaptation(sdpa)
    expected = sdpa.generate(QUERIES, adaptation, max_new_tokens=5)
    assert sdpa.generate(QUERIES, adaptation, max_new_tokens=5, cache_implementation="static") == expected
