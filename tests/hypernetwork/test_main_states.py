"""The frozen main model as encoder: against the stock model's states, in batches, with gradients, saved."""

from pathlib import Path
from typing import Any

import pytest
import torch
from decoder_models import CONFIGS, decoder_model
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel, T5ForConditionalGeneration

from hart.errors import HartError
from hart.hypernetwork.main_states import MainStates, StatesToMemory, chosen_layers
from hart.hypernetwork.network import HyperNetwork
from hart.hypernetwork.schemes.base import SCHEMES
from hart.peft.base import KINDS, check_blocks
from hart.peft.injection import attach
from hart.peft.modules import layers

PEFT = [{"kind": "prefix", "length": 2}, {"kind": "lora", "rank": 2}]
LENGTHS = [11, 4, 14]


@pytest.fixture(params=CONFIGS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def main(name: str) -> PreTrainedModel:
    return prepared(name)


def prepared(name: str) -> PreTrainedModel:
    model = decoder_model(name)
    attach(model, "sdpa")
    return model.requires_grad_(False)


def batch() -> tuple[Tensor, Tensor]:
    """Padded on the right, with tokens that are no padding anywhere else."""
    ids = torch.randint(2, 60, (len(LENGTHS), max(LENGTHS)), generator=torch.Generator().manual_seed(2))
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    return ids * mask, mask


def network_of(main: PreTrainedModel, **options: Any) -> HyperNetwork:
    """With maps that let gradient through and tell layers apart."""
    settings: dict[str, Any] = {"decoder_layers": 2, "scheme": {"name": "causal"}, "peft": PEFT, "dropout": 0.0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = HyperNetwork.from_states(main, **{**settings, **options}).eval()
        with torch.no_grad():
            for head in network.heads.heads():
                head.second.normal_(std=0.1)
    return network


@torch.no_grad()
def test_states_are_those_of_the_stock_model(name: str, main: PreTrainedModel) -> None:
    """In front of the last layer, whose output the stock model gives behind its final norm only."""
    ids, mask = batch()
    stock = decoder_model(name)
    expected = stock(ids, attention_mask=mask, output_hidden_states=True).hidden_states
    first, second = MainStates(main, [2, 1])(ids, mask)
    torch.testing.assert_close(first[mask == 1], expected[2][mask == 1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(second[mask == 1], expected[1][mask == 1], rtol=1e-4, atol=1e-5)
    assert MainStates(main, [3])(ids, mask)[0].shape == expected[-1].shape


@torch.no_grad()
def test_layers_above_the_highest_that_is_read_do_not_run(main: PreTrainedModel) -> None:
    expected = MainStates(main, [2, 1])(*batch())
    for parameter in layers(main, "decoder")[2].parameters():
        parameter.fill_(torch.nan)
    found, ran = MainStates(main, [2, 1]), []
    layers(main, "decoder")[2].register_forward_hook(lambda *_: ran.append(True))
    assert all(torch.equal(*states) for states in zip(found(*batch()), expected, strict=True)) and not ran
    main(batch()[0])
    assert ran  # the model itself is whole


@torch.no_grad()
def test_a_task_in_a_mixed_batch_is_read_as_alone(main: PreTrainedModel) -> None:
    ids, mask = batch()
    network = network_of(main, layers=[1, 3], memory_in_front=True)
    together = network(ids, mask)
    for row, length in enumerate(LENGTHS):
        alone = network(ids[row : row + 1, :length], mask[row : row + 1, :length])
        torch.testing.assert_close(together.memory[row, :length], alone.memory[0], rtol=1e-4, atol=1e-5)
        for name, values in alone.blocks.items():
            torch.testing.assert_close(together.blocks[name][row], values[0], rtol=1e-4, atol=1e-5)


def test_gradient_reaches_all_that_is_trained_and_nothing_of_the_main_model(main: PreTrainedModel) -> None:
    main.requires_grad_(True)  # so that a gradient would be seen
    network = network_of(main, layers=[1, 2], width=48, memory_in_front=True, head_bias=True)
    output = network(*batch())
    sum(values.square().sum() for values in (*output.blocks.values(), output.memory)).backward()
    assert not any(parameter.grad is not None for parameter in main.parameters())
    names = [
        name for name, parameter in network.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ]
    assert not names
    assert {"to_memory.weights", "to_memory.projection.weight", "to_front.weight"} < dict(
        network.named_parameters()
    ).keys()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_makes_every_kind_of_them(scheme: str) -> None:
    peft = [{"kind": name} for name in KINDS]
    network = network_of(prepared("llama"), scheme={"name": scheme}, peft=peft, width=48, head_bias=True)
    output = network(*batch())
    check_blocks(network.kinds, network.shape, output.blocks)
    assert output.memory.shape == (3, 14, 48)
    sum(values.square().sum() for values in output.blocks.values()).backward()  # type: ignore[union-attr]
    unreached = {name for name, parameter in network.named_parameters() if parameter.grad is None}
    assert not unreached
    assert network.to_memory is not None and network.to_memory.projection.weight.grad.any()  # type: ignore[union-attr]


def test_with_nothing_to_generate_it_is_the_memory_alone() -> None:
    network = network_of(prepared("llama"), peft=[], memory_in_front=True)
    output = network(*batch())
    assert dict(network.named_parameters()).keys() == {"to_memory.projection.weight", "to_front.weight"}
    assert output.blocks == {} and output.states.shape == (3, 1, 0, 1, 32)
    output.memory.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())


def test_a_new_network_gives_the_states_on(main: PreTrainedModel) -> None:
    """Maps between equal widths start as the identity, those between others keep sizes."""
    ids, mask = batch()
    (states,) = MainStates(main, [2])(ids, mask)
    same = network_of(main, memory_in_front=True)
    assert same.config.encoder_layers == [2] and same.config.t5["d_model"] == 32
    torch.testing.assert_close(same(ids, mask).memory, F.rms_norm(states, states.shape[-1:]))
    other = network_of(main, width=512, memory_in_front=True)
    assert other.encode(ids, mask)[0].shape == (3, 14, 512)
    assert 0.7 < other.encode(ids, mask)[0].square().mean().sqrt().item() < 1.4
    assert other(ids, mask).memory.shape == (3, 14, 32)


def test_several_layers_are_scaled_and_summed() -> None:
    to_memory = StatesToMemory(3, 8, 5)
    assert to_memory.weights is not None and to_memory.weights.tolist() == pytest.approx([1 / 3] * 3)
    with torch.no_grad():
        to_memory.weights.copy_(torch.tensor([1.0, -2.0, 0.5]))
    states = [scale * torch.randn(2, 4, 8) for scale in (1.0, 30.0, 0.1)]
    expected = sum(
        weight * each / each.square().mean(-1, keepdim=True).sqrt()
        for weight, each in zip(to_memory.weights, states, strict=True)
    )
    torch.testing.assert_close(to_memory(states), expected @ to_memory.projection.weight.T, rtol=1e-3, atol=1e-4)
    assert StatesToMemory(1, 8, 5).weights is None


def test_saved_and_loaded_it_is_the_same_and_holds_nothing_of_the_main_model(tmp_path: Path) -> None:
    main = prepared("llama")
    network = network_of(main, layers=[3, 1], memory_in_front=True, head_bias=True)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    network.save_pretrained(tmp_path)
    loaded = HyperNetwork.from_pretrained(tmp_path).eval()
    assert loaded.config.encoder_layers == [3, 1]
    saved = network.state_dict()
    assert loaded.state_dict().keys() == saved.keys() == dict(network.named_parameters()).keys()
    assert all(torch.equal(values, saved[name]) for name, values in loaded.state_dict().items())
    assert sum(network.count_parameters().values()) == sum(p.numel() for p in network.parameters())
    loaded.use_main(main)
    with torch.no_grad():
        assert torch.equal(loaded(*batch()).memory, network(*batch()).memory)
    half = HyperNetwork.from_pretrained(tmp_path, dtype="bfloat16").eval()
    half.use_main(prepared("llama").to(torch.bfloat16))
    assert half(*batch()).memory.isfinite().all()


def test_layers_are_named_from_one() -> None:
    assert [chosen_layers(None, depth) for depth in (1, 3, 12, 32)] == [[1], [2], [9], [24]]
    assert chosen_layers([4, 2], 4) == [4, 2]
    for named in ([], [0], [5], [2, 2]):
        with pytest.raises(HartError, match="model.encoder_layers: must be different layers from 1 to 4"):
            chosen_layers(named, 4)


def test_what_cannot_be_read_is_one_line(tiny_t5: T5ForConditionalGeneration) -> None:
    with pytest.raises(HartError, match="model.encoder: main_model is for decoder-only bases, this one is a T5"):
        network_of(tiny_t5)
    with pytest.raises(HartError, match="model.memory_in_front: is for decoder-only bases, this one is a T5"):
        HyperNetwork.from_base(tiny_t5, scheme={"name": "shared"}, peft=PEFT, decoder_layers=1, memory_in_front=True)
    long = torch.full((1, 513), 5)
    with pytest.raises(
        HartError, match="data.max_demonstrations_length: the base reads a task of 513 tokens and has 512"
    ):
        MainStates(prepared("gpt2"), [1])(long, torch.ones_like(long))
