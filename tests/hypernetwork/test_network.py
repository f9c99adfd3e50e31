"""The hypernetwork: its parts of a checkpoint, the paper's sizes, and refused configurations."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import T5Config, T5ForConditionalGeneration

from hart.errors import HartError
from hart.hypernetwork.config import T5_FIELDS, HyperNetworkConfig
from hart.hypernetwork.network import HyperNetwork
from hart.peft.base import MainShape

PREFIX = {"kind": "prefix", "length": 4}
HART = {"name": "autoregressive"}


def make(base, **kwargs) -> HyperNetwork:
    settings = {"decoder_layers": 2, "scheme": HART, "peft": [PREFIX]}
    return HyperNetwork.from_base(base, **{**settings, **kwargs}).eval()


def on_meta(t5: T5Config, scheme: dict) -> HyperNetwork:
    shape = MainShape.from_config(t5)
    config = HyperNetworkConfig(
        t5={name: getattr(t5, name) for name in T5_FIELDS},
        scheme=scheme,
        peft=[{"kind": "prefix"}],
        main=vars(shape),
    )
    with torch.device("meta"):
        return HyperNetwork(config)


T5_LARGE = T5Config(d_model=1024, d_kv=64, d_ff=2816, num_heads=16, num_layers=24, feed_forward_proj="gated-gelu")
T5_XL = T5Config(d_model=2048, d_kv=64, d_ff=5120, num_heads=32, num_layers=24, feed_forward_proj="gated-gelu")
T5_SMALL = T5Config(d_model=512, d_kv=64, d_ff=1024, num_heads=6, num_layers=8, feed_forward_proj="gated-gelu")


@pytest.mark.parametrize(("t5", "first_millions", "second_millions"), [(T5_LARGE, 134, 101), (T5_XL, 537, 403)])
def test_head_sizes_are_those_of_the_paper(t5: T5Config, first_millions: int, second_millions: int):
    """App. 8.1.2 with p = 32 and 24 layers: 4 first maps d → 32·d, 96 second maps d → d."""
    network = on_meta(t5, HART)
    counts = network.count_parameters()
    assert counts["heads.first"] == 4 * t5.d_model * 32 * t5.d_model
    assert counts["heads.second"] == 96 * t5.d_model**2
    assert round(counts["heads.first"] / 1e6) == first_millions
    assert round(counts["heads.second"] / 1e6) == second_millions
    assert counts["scheme"] == 2 * t5.d_model
    assert sum(counts.values()) == sum(p.numel() for p in network.parameters())


def test_hypertuning_sizes_at_t5_large():
    """App. 8.1.2: z has 2p rows and the first maps are d → d."""
    counts = on_meta(T5_LARGE, {"name": "shared"}).count_parameters()
    assert counts["scheme"] == 2 * 32 * T5_LARGE.d_model
    assert counts["heads.first"] == 4 * T5_LARGE.d_model**2
    assert counts["heads.second"] == 96 * T5_LARGE.d_model**2


@pytest.mark.parametrize("t5", [T5_SMALL, T5_LARGE, T5_XL], ids=["small", "large", "xl"])
def test_block_shapes_at_real_sizes(t5: T5Config):
    """On the meta device: T5 v1.1-small has heads · d_kv = 384, d_model = 512."""
    network = on_meta(t5, HART)
    memory = torch.empty(2, 10, t5.d_model, device="meta")
    states = network.scheme(network.decoder, memory, torch.ones(2, 10, device="meta"))
    inner = t5.num_heads * t5.d_kv
    assert states.shape == (2, 2, t5.num_layers, 1, t5.d_model)
    assert {b.shape for b in network.heads(states).values()} == {(2, t5.num_layers, 32, inner)}


def test_encoder_and_first_decoder_layers_are_copies(tiny_t5):
    network = make(tiny_t5)
    for name, weight in network.encoder.state_dict().items():
        assert torch.equal(weight, tiny_t5.encoder.state_dict()[name])
    source = tiny_t5.decoder.state_dict()
    copied = network.decoder.state_dict()
    assert all(torch.equal(weight, source[name]) for name, weight in copied.items())
    left_out = {name for name in source.keys() - copied.keys()}
    assert left_out == {n for n in source if n.startswith(("block.2.", "embed_tokens."))}
    assert "block.0.layer.0.SelfAttention.relative_attention_bias.weight" in copied


def test_with_all_decoder_layers_the_decoder_is_the_checkpoints(tiny_t5):
    network = make(tiny_t5, decoder_layers=3)
    ids = torch.randint(3, 200, (2, 6))
    mask, embeds = torch.ones_like(ids), torch.randn(2, 4, 48)
    expected = tiny_t5.decoder(
        inputs_embeds=embeds,
        encoder_hidden_states=tiny_t5.encoder(input_ids=ids).last_hidden_state,
        use_cache=False,
    ).last_hidden_state
    ours = network.decoder(
        inputs_embeds=embeds,
        encoder_hidden_states=network(ids, mask).memory,
        encoder_attention_mask=mask,
        use_cache=False,
    ).last_hidden_state
    torch.testing.assert_close(ours, expected)


def test_the_base_is_not_touched(tiny_t5):
    before = {name: weight.clone() for name, weight in tiny_t5.state_dict().items()}
    network = make(tiny_t5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(w, before[name]) for name, w in tiny_t5.state_dict().items())


def test_another_checkpoint_can_be_the_start(tiny_t5, tiny_base_dir):
    """HART-FLAN: the hypernetwork from one checkpoint, head scales from the base."""
    with torch.no_grad():
        for parameter in tiny_t5.parameters():
            parameter.mul_(2.0)
    torch.manual_seed(0)
    from_other = make(tiny_t5, source=T5ForConditionalGeneration.from_pretrained(tiny_base_dir))
    torch.manual_seed(0)
    from_base = make(tiny_t5)
    for a, b in zip(from_other.encoder.parameters(), from_base.encoder.parameters(), strict=True):
        assert torch.equal(2 * a, b)
    for a, b in zip(from_other.heads.parameters(), from_base.heads.parameters(), strict=True):
        assert torch.equal(a, b)


def test_new_weights_depend_on_the_seed_alone(tiny_t5):
    networks = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        networks.append(make(tiny_t5).state_dict())
    assert all(torch.equal(networks[0][n], networks[1][n]) for n in networks[0])
    assert not torch.equal(networks[0]["scheme.z"], networks[2]["scheme.z"])


@pytest.mark.parametrize("scheme", ["autoregressive", "shared"])
def test_generated_rows_start_at_the_size_the_kind_asks_for(tiny_t5, scheme: str):
    network = make(tiny_t5, scheme={"name": scheme}, peft=[{"kind": "prefix", "length": 32}])
    std = network.kinds[0].init_std(tiny_t5, network.shape)
    ids = torch.randint(3, 200, (8, 20))
    with torch.no_grad():
        blocks = network(ids, torch.ones_like(ids)).blocks
    for name, block in blocks.items():
        # One draw of a narrow second map: d = 48 leaves some 10 % to chance.
        torch.testing.assert_close(block.std(dim=(0, 2, 3)), std[name], rtol=0.3, atol=0)


def test_learnable_inputs_start_like_embeddings(tiny_t5):
    with torch.no_grad():
        tiny_t5.shared.weight.mul_(7.0)
    network = make(tiny_t5, scheme={"name": "shared"}, peft=[{"kind": "prefix", "length": 100}])
    torch.testing.assert_close(network.scheme.z.std(), tiny_t5.shared.weight.std(), rtol=0.05, atol=0)


def test_resolved_configuration_names_every_option(tiny_t5):
    config = make(tiny_t5).config
    assert config.scheme == {
        "name": "autoregressive",
        "history": "all",
        "order": "bottom_up",
        "order_seed": 0,
        "feedback": "state",
        "step_embeddings": False,
    }
    assert config.peft[0].keys() > {"kind", "length"}
    assert MainShape(**config.main) == MainShape.from_config(tiny_t5.config)


def test_dropout_of_the_checkpoint_or_of_the_configuration(tiny_t5):
    def rates(network):
        return {m.p for m in network.modules() if isinstance(m, torch.nn.Dropout)}

    assert rates(make(tiny_t5)) == {tiny_t5.config.dropout_rate}
    assert rates(make(tiny_t5, dropout=0.25)) == {0.25}


def test_new_weights_are_float32_even_from_a_bf16_base(tiny_t5):
    network = make(tiny_t5.bfloat16())
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert network.dtype == torch.float32


@pytest.mark.parametrize("peft", [[], [{"kind": "prefix", "length": 0}]])
def test_with_nothing_to_generate_it_is_the_encoder(tiny_t5, peft: list):
    network = make(tiny_t5, peft=peft)
    assert all(name.startswith("encoder.") for name, _ in network.named_parameters())
    ids = torch.randint(3, 200, (2, 6))
    output = network(ids, torch.ones_like(ids))
    assert output.states.shape == (2, 2, 0, 1, 48)
    torch.testing.assert_close(output.memory, tiny_t5.encoder(input_ids=ids).last_hidden_state)
    assert all(block.shape[2] == 0 for block in output.blocks.values())
    assert len(output.blocks) == 4 * len(peft)


def test_stacks_of_different_depth_get_their_own_number_of_layers():
    config = T5Config(vocab_size=30, d_model=16, d_kv=4, d_ff=16, num_heads=2, num_layers=4, num_decoder_layers=2)
    output = make(T5ForConditionalGeneration(config))(torch.tensor([[3, 4]]), torch.tensor([[1, 1]]))
    assert output.states.shape[2] == 4
    assert output.blocks["prefix.encoder.key"].shape[1] == 4
    assert output.blocks["prefix.decoder.key"].shape[1] == 2


def test_built_from_its_configuration_alone(tiny_t5):
    """Weights drawn like T5's; needed where shapes are studied without a checkpoint."""
    network = HyperNetwork(make(tiny_t5).config).eval()
    ids = torch.randint(3, 200, (8, 20))
    with torch.no_grad():
        blocks = network(ids, torch.ones_like(ids)).blocks
    std = network.kinds[0].init_std(None, network.shape)
    for name, block in blocks.items():
        torch.testing.assert_close(block.std(dim=(0, 2, 3)), std[name], rtol=0.3, atol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decoder_layers": 4}, "decoder_layers is 4; the checkpoint has 3 decoder layers"),
        ({"decoder_layers": 0}, "decoder_layers is 0"),
        ({"scheme": {"name": "sharde"}}, "unknown name 'sharde'"),
        ({"peft": [{"kind": "prefxi"}]}, "unknown kind 'prefxi'"),
    ],
)
def test_mistakes_are_named(tiny_t5, settings: dict, message: str):
    with pytest.raises(HartError, match=message):
        make(tiny_t5, **settings)


@pytest.mark.parametrize("name", ["d_model", "vocab_size"])
def test_a_start_that_does_not_fit_the_base_is_refused(tiny_base_dir, name: str):
    sizes = {"vocab_size": 300, "d_model": 48, "d_kv": 8, "d_ff": 64, "num_heads": 3}
    stored = json.loads((tiny_base_dir / "config.json").read_text())
    sizes["vocab_size"] = stored["vocab_size"]
    sizes[name] += 8
    base = T5ForConditionalGeneration(T5Config(num_layers=2, **sizes))
    with pytest.raises(HartError, match=f"hypernetwork_init: .* has {name} "):
        make(base, source=T5ForConditionalGeneration.from_pretrained(tiny_base_dir))


def test_weights_that_lack_a_tensor_are_refused(tiny_t5, tmp_path):
    make(tiny_t5).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["scheme.z"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(HartError, match="does not fit config.json at scheme.z"):
        HyperNetwork.from_pretrained(tmp_path)
