"""What may not grow unseen: FLOPs, encoder passes, projections of the memory, masks, copies. Counts, not seconds.

The numbers follow from the sizes; a change that makes any of them larger has made hart slower on every machine.
"""

from collections import Counter as Tally
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hart.benchmarks.measuring import Counter, count
from hart.benchmarks.models import (
    SHAPES,
    hypernetwork,
    main_model,
    random_adaptation,
    random_queries,
    stock_model,
    t5_config,
)
from hart.model.adaptation import Adaptation
from hart.model.main_model import MainModel
from hart.model.scoring import score_choices
from hart.peft.injection import sites

BATCH, TOKENS, MEMORY, ANSWER = 4, 10, 40, 6
D, INNER, FF, LAYERS = (SHAPES["tiny"][name] for name in ("d_model", "d_model", "d_ff", "num_layers"))
VOCABULARY = 1000
JOINED = 2 * SHAPES["tiny"]["d_kv"] + 8
"""Queries from which keys and values are joined with the rows in front of them (`hart.peft.attention`)."""


@pytest.fixture(scope="module")
def main() -> MainModel:
    torch.manual_seed(0)
    return main_model(stock_model(t5_config("tiny", vocabulary=VOCABULARY)))


@pytest.fixture(scope="module")
def adaptation(main: MainModel) -> Adaptation:
    return random_adaptation(main, 1, MEMORY, max_target_length=ANSWER)


@contextmanager
def passes(modules: dict[str, nn.Module]) -> Iterator[Tally[tuple[str, tuple[int, ...]]]]:
    """How often each module runs within, by the shape of its input."""
    found: Tally[tuple[str, tuple[int, ...]]] = Tally()

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = args[0] if args else kwargs["input_ids"]
            found[name, tuple(given.shape)] += 1

        return hook

    handles = [module.register_forward_pre_hook(note(name), with_kwargs=True) for name, module in modules.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def cross_keys(main: MainModel) -> dict[str, nn.Module]:
    return {str(i): site.k for i, site in enumerate(sites(main.model, "decoder", "cross_attention"))}  # type: ignore[misc]


def of_memory(found: Tally[tuple[str, tuple[int, ...]]]) -> list[tuple[int, int]]:
    """(batch, times per layer) of the products that project the memory."""
    per_layer = Tally({key: n for key, n in found.items() if key[1][1] == MEMORY})
    names = {name for name, _ in per_layer}
    assert not names or len(names) == LAYERS
    return sorted({(shape[0], n) for (_, shape), n in per_layer.items()})


@torch.no_grad()
def test_flops_of_the_hypernetwork_are_those_of_its_equations() -> None:
    network = hypernetwork(t5_config("tiny", vocabulary=VOCABULARY), decoder_layers=2)
    tokens, rows, prefix = 24, 2, 32
    ids = torch.randint(VOCABULARY, (1, tokens))
    encoder = LAYERS * tokens * (8 * D * INNER + 6 * D * FF + 4 * tokens * INNER)
    memory = 2 * tokens * 4 * D * INNER
    seen = sum(rows * step for step in range(1, LAYERS + 1))  # rows that a row of each step attends to
    per_row = 8 * D * INNER + 4 * D * INNER + 6 * D * FF + 4 * tokens * INNER
    decoder = 2 * (LAYERS * rows * per_row + rows * 4 * seen * INNER)
    heads = 4 * LAYERS * (2 * D * prefix * D + prefix * 2 * D * INNER)
    expected = encoder + memory + decoder + heads
    assert count(lambda: network(ids, torch.ones_like(ids))).flops == expected


@torch.no_grad()
def test_steps_do_not_repeat_what_earlier_ones_have_done() -> None:
    """The memory is projected once per decoder layer; FLOPs grow with the number of steps, not with its square."""
    flops = []
    for layers in (6, 12, 24):
        network = hypernetwork(t5_config("tiny", vocabulary=VOCABULARY, num_layers=layers), decoder_layers=2)
        memory, mask = torch.randn(2, MEMORY, D), torch.ones(2, MEMORY)
        assert network.decoder is not None and network.scheme is not None
        keys = {str(i): block.layer[1].EncDecAttention.k for i, block in enumerate(network.decoder.block)}
        with passes(keys) as found:
            flops.append(count(lambda n=network, m=memory, k=mask: n.scheme(n.decoder, m, k)).flops)
        assert found == {(name, (2, MEMORY, D)): 1 for name in keys}
    assert flops[2] - flops[1] < 2.2 * (flops[1] - flops[0])


@torch.no_grad()
def test_the_steps_of_one_task_multiply_weights_from_the_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows from the right of all weights of the decoder were twice as slow: no step takes that way."""
    network = hypernetwork(t5_config("tiny", vocabulary=VOCABULARY), decoder_layers=2)
    assert network.decoder is not None and network.scheme is not None
    mine = {id(parameter) for parameter in network.decoder.parameters()}
    given: set[int] = set()
    usual = torch.nn.functional.linear

    def linear(rows: Tensor, weight: Tensor, *args: Any) -> Tensor:
        if id(weight) in mine:
            given.add(rows.shape[-2])
        return usual(rows, weight, *args)

    monkeypatch.setattr(torch.nn.functional, "linear", linear)
    network.scheme(network.decoder, torch.randn(1, MEMORY, D), torch.ones(1, MEMORY))
    assert given == {MEMORY}


def test_one_encoder_pass_for_a_task_and_for_each_batch(main: MainModel, adaptation: Adaptation) -> None:
    encoder = {"encoder": main.model.encoder}
    with passes(encoder) as found:
        main.generate(random_queries(10, TOKENS), adaptation, batch_size=BATCH)
    assert found == {("encoder", (4, TOKENS)): 2, ("encoder", (2, TOKENS)): 1}
    with passes(encoder) as found:
        score_choices(main, random_queries(BATCH, TOKENS), [["5 6", "7", "8 9 10"]] * BATCH, adaptation)
    assert found == {("encoder", (BATCH, TOKENS)): 1}


def test_a_shared_memory_is_projected_once_for_all_queries(main: MainModel, adaptation: Adaptation) -> None:
    queries = random_queries(10, TOKENS)
    with passes(cross_keys(main)) as found:
        main.generate(queries, adaptation, batch_size=BATCH)
    assert of_memory(found) == [(1, 1)]
    with passes(cross_keys(main)) as found:
        score_choices(main, queries, [["5 6", "7"]] * 10, adaptation, batch_size=BATCH)
    assert of_memory(found) == [(1, 1)]


def test_a_kept_memory_is_not_projected_again(main: MainModel, adaptation: Adaptation) -> None:
    kept = main.keep_memory(adaptation)
    with passes(cross_keys(main)) as found:
        main.generate(random_queries(10, TOKENS), kept, batch_size=BATCH)
        score_choices(main, random_queries(2, TOKENS), [["5 6"], ["7"]], kept)
    assert of_memory(found) == []


def test_a_task_of_several_queries_is_projected_once_in_a_mixed_batch(main: MainModel) -> None:
    tasks = random_adaptation(main, 3, MEMORY, max_target_length=ANSWER)
    with passes(cross_keys(main)) as found:
        main.generate(random_queries(6, TOKENS), tasks)
    assert of_memory(found) == [(3, 1)]


def largest(run: Callable[[], Any]) -> int:
    return max(count(run).largest.values())


def test_a_shared_memory_is_never_copied_for_the_batch(main: MainModel) -> None:
    """The largest tensor of a generation does not grow with batch · memory."""
    long = main.keep_memory(random_adaptation(main, 1, 2000, max_target_length=3))
    queries = random_queries(8, TOKENS)
    copies = 8 * 2000 * D * 4
    assert largest(lambda: main.generate(queries, long)) < copies / 4


def encoder_calls(layers: int, prefix: bool) -> Counter:
    model = main_model(stock_model(t5_config("tiny", vocabulary=VOCABULARY, num_layers=layers)))
    own = random_adaptation(model, 1, 0)
    ids = torch.randint(VOCABULARY, (2, JOINED))
    mask = torch.ones_like(ids).index_fill(1, torch.tensor(JOINED - 1), 0)

    def run() -> Tensor:
        with model.binding(own.blocks if prefix else {}, own.kinds, batch=2):
            return model.model.encoder(input_ids=ids, attention_mask=mask).last_hidden_state

    with torch.no_grad():
        return count(run)


@pytest.mark.parametrize("prefix", [True, False])
def test_masks_and_biases_are_built_once_per_stack(prefix: bool) -> None:
    few, many = (encoder_calls(layers, prefix).calls for layers in (3, 12))
    for operation in ("aten.where", "aten.constant_pad_nd", "aten.masked_fill", "aten.embedding"):
        assert few[operation] == many[operation]
    assert many["aten.where"] >= 1 and many["aten.constant_pad_nd"] == prefix


@torch.no_grad()
def test_prefixes_add_their_own_products_alone(main: MainModel) -> None:
    """FLOPs of a pass with prefixes are those of the stock model and of the attention to p more columns."""
    own = random_adaptation(main, 1, 0)
    ids, labels = torch.randint(3, VOCABULARY, (2, TOKENS)), torch.randint(3, VOCABULARY, (2, ANSWER))

    def run(adapted: bool) -> None:
        main(ids, torch.ones_like(ids), labels=labels, blocks=own.blocks if adapted else None, peft=own.kinds)

    added = count(lambda: run(True)).flops - count(lambda: run(False)).flops
    assert added == LAYERS * 2 * (TOKENS + ANSWER) * 4 * 32 * INNER


@torch.no_grad()
def test_peak_memory_of_the_hypernetwork_has_one_bias_for_all_layers() -> None:
    """Twice the layers make no more of the large tensors at once."""
    peaks = []
    for layers in (3, 6):
        network = hypernetwork(t5_config("tiny", vocabulary=VOCABULARY, num_layers=layers), decoder_layers=1)
        ids = torch.randint(VOCABULARY, (2, 64))
        mask = torch.ones_like(ids).index_fill(1, torch.tensor(63), 0)
        peaks.append(count(lambda n=network, i=ids, m=mask: n.encoder(input_ids=i, attention_mask=m)).peak)
    assert peaks[1] == peaks[0]
