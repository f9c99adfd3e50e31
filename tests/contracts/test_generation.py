"""Contract of every registered generation scheme with every registered PEFT kind."""

import copy
import itertools
from pathlib import Path

import pytest
import torch
from decoder_models import decoder_model
from transformers import PreTrainedModel, T5ForConditionalGeneration
from transformers.models.t5.modeling_t5 import T5Attention

from hart.hypernetwork.network import HyperNetwork, HyperOutput
from hart.hypernetwork.schemes.base import SCHEMES
from hart.peft.base import KINDS, check_blocks
from hart.peft.injection import attach, binding

LISTS = {name: [{"kind": name}] for name in KINDS}
LISTS["all"] = [kind for kinds in list(LISTS.values()) for kind in kinds]
LISTS["cross"] = [{"kind": "prefix", "length": 2, "cross": True}]
PAIRS = [("t5", *pair) for pair in itertools.product(SCHEMES, LISTS)]
PAIRS += [("llama", *pair) for pair in itertools.product(SCHEMES, LISTS) if "cross" not in pair]


@pytest.fixture(scope="module")
def bases(tiny_base_dir: Path) -> dict[str, PreTrainedModel]:
    """Main models of both families: one with the hypernetwork's sizes, and one with others. Changed by no test."""
    t5 = T5ForConditionalGeneration.from_pretrained(tiny_base_dir).eval()
    return {"t5": t5, "llama": decoder_model("llama")}


@pytest.fixture(params=PAIRS, ids=["-".join(pair) for pair in PAIRS])
def case(request: pytest.FixtureRequest) -> tuple[str, str, str]:
    """Base, scheme and list of kinds."""
    return request.param


@pytest.fixture
def base(case: tuple[str, str, str], bases: dict[str, PreTrainedModel]) -> PreTrainedModel:
    return bases[case[0]]


@pytest.fixture
def fresh(case: tuple[str, str, str], base: PreTrainedModel, bases: dict[str, PreTrainedModel]) -> HyperNetwork:
    """As a run starts with it."""
    _, scheme, kinds = case
    settings: dict = {"decoder_layers": 2, "scheme": {"name": scheme}, "peft": LISTS[kinds]}
    return HyperNetwork.from_base(base, source=bases["t5"], **settings).eval()


@pytest.fixture
def network(fresh: HyperNetwork) -> HyperNetwork:
    trained(fresh)
    return fresh


def trained(network: HyperNetwork) -> None:
    """Kinds that start as the identity have second maps of 0, which let no gradient through; trained ones do."""
    with torch.no_grad():
        for head in network.heads.heads():
            if not head.second.any():
                head.second.normal_(std=0.1)


@pytest.fixture
def demo_ids() -> torch.Tensor:
    return torch.randint(3, 200, (3, 9))


@pytest.fixture
def demo_mask() -> torch.Tensor:
    return torch.tensor([[1] * 9, [1] * 6 + [0] * 3, [1] * 8 + [0]])


def random_loss(output: HyperOutput) -> torch.Tensor:
    """Sensitive to every generated number; the same for equal outputs."""
    generator = torch.Generator().manual_seed(0)
    return sum((block * torch.randn(block.shape, generator=generator)).sum() for block in output.blocks.values())  # type: ignore[return-value]


def test_shapes(network, demo_ids, demo_mask):
    output = network(demo_ids, demo_mask)
    assert network.scheme is not None
    shape, rows = network.shape, network.scheme.state_vectors
    layers = max(shape.encoder_layers, shape.decoder_layers)
    d_model = network.config.t5["d_model"]
    assert output.states.shape == (3, len(shape.stacks), layers, rows, d_model)
    assert output.memory.shape == (3, 9, d_model)
    check_blocks(network.kinds, shape, output.blocks)
    assert {block.shape[0] for block in output.blocks.values()} == {3}


def test_one_state_serves_all_layers_where_the_scheme_says_so_alone(network, demo_ids, demo_mask):
    states = network(demo_ids, demo_mask).states
    assert torch.equal(states, states[:, :, :1].expand_as(states)) == network.one_state


def test_a_new_network_changes_nothing_if_its_kinds_promise_it(fresh, base, demo_ids, demo_mask):
    main = copy.deepcopy(base)
    attach(main, "sdpa")
    inputs = {"input_ids": demo_ids % 60, "attention_mask": demo_mask}
    if fresh.shape.has_encoder:
        inputs["decoder_input_ids"] = inputs["input_ids"][:, :4]
    with torch.no_grad():
        before, blocks = main(**inputs).logits, fresh(demo_ids, demo_mask).blocks
        for kind in fresh.kinds:
            with binding(kind.bindings(main, blocks)):
                changed = not torch.equal(main(**inputs).logits, before)
            assert changed != kind.identity_at_start


def test_gradient_reaches_every_parameter_from_the_blocks_alone(network, demo_ids, demo_mask):
    random_loss(network(demo_ids, demo_mask)).backward()
    unreached = [
        name
        for name, p in network.named_parameters()
        if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()
    ]
    if network.scheme.uses_decoder and network.scheme.z.shape[0] == 1:
        # One position attends to itself alone, however it scores: its queries, keys and bias change nothing.
        scores = ("SelfAttention.q.weight", "SelfAttention.k.weight", "relative_attention_bias.weight")
        unreached = [name for name in unreached if not name.endswith(scores)]
    assert not unreached
    for head in network.heads.heads():
        assert head.second.grad.flatten(1).any(dim=1).all(), f"{head.block.name}: a layer is unused"


def test_states_carry_gradient_for_the_consistency_loss(network, demo_ids, demo_mask):
    network(demo_ids, demo_mask).states.square().mean().backward()
    assert network.scheme.z.grad.any()
    assert network.encoder.embed_tokens.weight.grad.any()


def test_saved_and_loaded_generates_the_same_bits(network, demo_ids, demo_mask, tmp_path):
    network.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    loaded = HyperNetwork.from_pretrained(tmp_path)
    assert loaded.config.scheme == network.config.scheme
    assert loaded.config.peft == network.config.peft
    with torch.no_grad():
        before, after = network(demo_ids, demo_mask), loaded(demo_ids, demo_mask)
    # Products with a single row round by where in memory the weights lie, which a stack of its own brings with it.
    tolerance = 0 if network.shape.has_encoder else 1e-5
    torch.testing.assert_close(after.states, before.states, rtol=tolerance, atol=tolerance)
    assert torch.equal(before.memory, after.memory)
    assert before.blocks.keys() == after.blocks.keys()
    for name, values in before.blocks.items():
        torch.testing.assert_close(after.blocks[name], values, rtol=tolerance, atol=tolerance)


def test_a_batch_equals_each_row_alone_without_its_padding(network, demo_ids, demo_mask):
    with torch.no_grad():
        together = network(demo_ids, demo_mask)
        for row, length in enumerate(demo_mask.sum(dim=1).tolist()):
            ids = demo_ids[row : row + 1, :length]
            alone = network(ids, torch.ones_like(ids))
            torch.testing.assert_close(together.states[row : row + 1], alone.states)
            for name, block in alone.blocks.items():
                torch.testing.assert_close(together.blocks[name][row : row + 1], block)


def test_gradient_checkpointing_changes_no_gradient(network, demo_ids, demo_mask):
    # Checkpointing acts in training mode only, and dropout would draw anew in each pass.
    network.train()
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(module, T5Attention):
            module.dropout = 0.0
    gradients = []
    for _ in range(2):
        network.zero_grad()
        random_loss(network(demo_ids, demo_mask)).backward()
        gradients.append({n: p.grad.clone() for n, p in network.named_parameters()})
        network.activation_checkpointing_enable({"use_reentrant": False})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_training_step_under_bf16_autocast(network, demo_ids, demo_mask):
    network.train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = random_loss(network(demo_ids, demo_mask))
    loss.backward()
    assert loss.isfinite()
    for name, parameter in network.named_parameters():
        assert parameter.grad.isfinite().all(), name
