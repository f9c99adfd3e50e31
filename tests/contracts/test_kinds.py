"""Contract of every registered PEFT kind on the main model, alone and all together."""

import pytest
import torch
from decoder_models import decoder_model
from torch import Tensor

from hart.model.adaptation import Adaptation
from hart.model.main_model import MainModel
from hart.peft.base import KINDS, Blocks, build_kinds, row_blocks

SIZES = {"prefix": {"length": 4}, "lora": {"rank": 2, "targets": ["q", "v", "o", "cross_q", "cross_k", "wi", "wo"]},
         "adapter": {"bottleneck": 3}, "ia3": {"cross": True}}  # fmt: skip
LISTS = {name: [{"kind": name, **SIZES.get(name, {})}] for name in KINDS}
LISTS["all"] = [kind for kinds in list(LISTS.values()) for kind in kinds]
LISTS["prefix with cross-attention"] = [{"kind": "prefix", "length": 3, "cross": True}]
TASKS = 3
QUERIES = ["the cat sat", "one two three one two", "mat"]


# A decoder-only model has no cross-attention.
WITHOUT_CROSS = {**SIZES, "lora": {"rank": 2, "targets": ["q", "v", "o", "wi", "wo"]}, "ia3": {}}
DECODER_ONLY = {name: [{"kind": name, **WITHOUT_CROSS.get(name, {})}] for name in KINDS}
DECODER_ONLY["all"] = [kind for kinds in list(DECODER_ONLY.values()) for kind in kinds]
CASES = {f"t5, {name}": ("t5", kinds) for name, kinds in LISTS.items()}
CASES |= {f"llama, {name}": ("llama", kinds) for name, kinds in DECODER_ONLY.items()}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[str, list[dict]]:
    return CASES[request.param]


@pytest.fixture
def peft(case: tuple[str, list[dict]]) -> list[dict]:
    return case[1]


@pytest.fixture(scope="session")
def base_dirs(tiny_base_dir, tiny_tokenizer, tmp_path_factory) -> dict[str, str]:
    """A base of each family."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    decoder_model("llama", len(tiny_tokenizer)).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return {"t5": str(tiny_base_dir), "llama": str(folder)}


@pytest.fixture
def main(case: tuple[str, list[dict]], base_dirs: dict[str, str]) -> MainModel:
    main = MainModel.from_pretrained(base_dirs[case[0]], dtype="float32")
    main.freeze()
    return main


def random_blocks(main: MainModel, peft: list[dict], n: int = TASKS) -> Blocks:
    generator = torch.Generator().manual_seed(1)
    return {
        block.name: 0.1 * torch.randn(n, block.layers, block.rows, block.width, generator=generator)
        for block in row_blocks(build_kinds(peft), main.shape)
    }


def adaptation(main: MainModel, peft: list[dict], blocks: Blocks) -> Adaptation:
    task = {"name": "t", "Definition": ["d"], "Positive Examples": [{"input": "a", "output": "b"}]}
    n = next(iter(blocks.values())).shape[0]
    return Adaptation(
        blocks, None, None, [kind.to_config() for kind in build_kinds(peft)], tasks=[task] * n, **main.identity
    )


def logits(main: MainModel, peft: list[dict], blocks: Blocks | None) -> Tensor:
    ids, mask = main.pad([[5, 6, 7, 8, 1], [9, 1], [10, 11, 12, 1]])
    labels = torch.tensor([[5, 6, 7, 1], [8, 1, -100, -100], [9, 10, 1, -100]])
    return main(ids, mask, labels=labels, blocks=blocks, peft=build_kinds(peft)).logits


def test_identity_at_the_start_for_kinds_that_promise_it(main: MainModel, peft: list[dict]):
    kinds = build_kinds(peft)
    blocks: Blocks = {}
    for kind in kinds:
        stds = kind.init_std(main.model, main.shape)
        assert stds.keys() == {block.name for block in kind.row_blocks(main.shape)}
        for block in kind.row_blocks(main.shape):
            blocks[block.name] = (
                torch.randn(TASKS, block.layers, block.rows, block.width) * stds[block.name][:, None, None]
            )
    same = torch.equal(logits(main, peft, blocks), logits(main, [], None))
    assert same == all(kind.identity_at_start for kind in kinds)


def test_each_block_and_layer_changes_the_output(main: MainModel, peft: list[dict]):
    blocks = {name: values.requires_grad_() for name, values in random_blocks(main, peft).items()}
    logits(main, peft, blocks).square().sum().backward()
    for name, values in blocks.items():
        assert values.grad is not None and values.grad.flatten(2).any(dim=2).all(), name
    assert not any(p.grad is not None for p in main.model.parameters())


def test_rows_of_a_batch_are_independent(main: MainModel, peft: list[dict]):
    blocks = random_blocks(main, peft)
    together = logits(main, peft, blocks)
    for row in range(TASKS):
        one = logits(main, peft, {name: values[row : row + 1] for name, values in blocks.items()})
        torch.testing.assert_close(together[row], one[row], rtol=1e-4, atol=1e-5)


def test_clearing_leaves_the_stock_model(main: MainModel, peft: list[dict]):
    before = logits(main, [], None)
    assert not torch.allclose(logits(main, peft, random_blocks(main, peft)), before, atol=1e-2)
    assert torch.equal(logits(main, [], None), before)


def test_gradient_checkpointing_gives_the_same_gradients(main: MainModel, peft: list[dict]):
    found = []
    for recompute in (False, True):
        if recompute:
            main.enable_gradient_checkpointing()
        main.train()
        assert main.model.training == recompute, "transformers checkpoints in training mode alone"
        blocks = {name: values.requires_grad_() for name, values in random_blocks(main, peft).items()}
        # Two passes with other blocks before the gradient: each must be recomputed with its own.
        output = logits(main, peft, blocks)
        logits(main, peft, {name: 2 * values.detach() for name, values in blocks.items()})
        output.square().sum().backward()
        found.append({name: values.grad for name, values in blocks.items()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"num_beams": 3}], ids=str)
def test_mixed_batch_generates_what_each_task_does_alone(main: MainModel, peft: list[dict], options: dict):
    mixed = adaptation(main, peft, random_blocks(main, peft))
    alone = [main.generate([query], mixed[i], max_new_tokens=6)[0] for i, query in enumerate(QUERIES)]
    if "num_beams" in options:
        alone = [main.generate([q], mixed[i], max_new_tokens=6, **options)[0] for i, q in enumerate(QUERIES)]
    assert main.generate(QUERIES, mixed, max_new_tokens=6, **options) == alone
    bare = main.generate(QUERIES, max_new_tokens=6, **options)
    assert alone != bare and (main.shape.stacks == ("decoder",) or all(map(str.__ne__, alone, bare)))


def test_saved_and_loaded_adaptation_is_the_same(main: MainModel, peft: list[dict], tmp_path):
    made = adaptation(main, peft, random_blocks(main, peft))
    made.save_pretrained(tmp_path / "a")
    loaded = Adaptation.from_pretrained(tmp_path / "a")
    assert loaded.peft == made.peft and loaded.blocks.keys() == made.blocks.keys()
    assert all(torch.equal(loaded.blocks[name], made.blocks[name]) for name in made.blocks)


def test_float32_blocks_serve_a_bfloat16_model(
    case: tuple[str, list[dict]], base_dirs: dict[str, str], peft: list[dict]
):
    main = MainModel.from_pretrained(base_dirs[case[0]], dtype="bfloat16")
    made = logits(main, peft, random_blocks(main, peft))
    assert made.dtype == torch.bfloat16 and made.isfinite().all()
