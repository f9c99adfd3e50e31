"""Speed of the hypernetwork's pass: HART against HyperTuning, against its matrix products, and with a cache."""

import functools
from collections.abc import Iterator
from statistics import median
from typing import Any

import torch
from torch import Tensor

from hart.benchmarks import Figure, Settings, compare, summary
from hart.benchmarks.measuring import Run, alternate, count, products, ratios
from hart.benchmarks.models import hypernetwork, t5_config
from hart.hypernetwork.decoding import DecoderPass, relative_bias
from hart.hypernetwork.network import HyperNetwork
from hart.hypernetwork.schemes.autoregressive import Autoregressive
from hart.runtime.third_party.transformers import T5Stack


@torch.no_grad()
def hypernetwork_pass(settings: Settings) -> Iterator[Figure]:
    """One pass over demonstrations with autoregressive states, against one shared state.

    Encoder, decoder blocks and number of generated parameters are the same. The machine's rate is that of a matrix
    product of the encoder's feed-forward, timed in the same repeats.
    """
    config = t5_config(settings.shape or "t5-large", vocabulary=1000)
    networks = {
        name: hypernetwork(config, scheme, device=settings.device, dtype=settings.torch_dtype)
        for name, scheme in (("HART", "autoregressive"), ("HyperTuning", "shared"))
    }
    for batch in settings.batch or (1, 8):
        ids = torch.randint(1000, (batch, settings.tokens), device=settings.device)
        mask = torch.ones_like(ids)

        def run(network: HyperNetwork, ids: Tensor = ids, mask: Tensor = mask) -> None:
            network(ids, mask)

        product, operations = products(
            batch * settings.tokens, config.d_model, config.d_ff, settings.device, settings.torch_dtype
        )
        variants: dict[str, Run] = {name: functools.partial(run, network) for name, network in networks.items()}
        # The counted pass warms up.
        counts = {name: count(variant) for name, variant in variants.items()}
        once = alternate({"product": product}, 1, settings.device)["product"][0]
        loops = max(1, round(0.5 / once))

        def only_products(loops: int = loops, product: Run = product) -> None:
            for _ in range(loops):
                product()

        timed = {**variants, "product": only_products}
        times = alternate(timed, settings.repeats, settings.device, warm_up=False)
        rates = [operations * loops / elapsed for elapsed in times.pop("product")]
        flops = {name: counted.flops for name, counted in counts.items()}
        read = [
            weight.numel() * weight.element_size()
            for name, weight in networks["HART"].named_parameters()
            # Cross-attention's maps of the memory run once, not in every step.
            if name.startswith("decoder.")
            and not name.endswith(("EncDecAttention.k.weight", "EncDecAttention.v.weight"))
        ]
        yield Figure(
            f"hypernetwork pass, batch {batch}",
            "HyperTuning's",
            ratios(times, "HART", "HyperTuning"),
            f"{flops['HART'] / flops['HyperTuning']:.3f}× by products; "
            f"{config.num_layers} steps read {sum(read) / 1e9:.2f} GB of decoder weights each",
            ("≤", 1.05 if batch >= 8 else 1.20),
            variants=summary(times, counts),
        )
        shares = [100 * flops["HART"] / rate / elapsed for rate, elapsed in zip(rates, times["HART"], strict=True)]
        yield Figure(
            f"share of the pass that its products need, batch {batch}",
            "the rate of one large product",
            shares,
            f"100 %; {median(rates) / 1e9:.0f} GFLOP/s, {flops['HART'] / 1e9:.0f} GFLOP",
            ("≥", 70.0),
            unit="%",
            variants=summary({"HART": times["HART"]}, counts),
            notes={"gflops_per_second": [rate / 1e9 for rate in rates]},
        )


@torch.no_grad()
def cached_steps(settings: Settings) -> Iterator[Figure]:
    """The decoder's steps and all heads on an encoded task, with a key/value cache against without."""
    config = t5_config(settings.shape or "t5-large", vocabulary=1000)
    network = hypernetwork(config, device=settings.device, dtype=settings.torch_dtype)
    assert isinstance(network.scheme, Autoregressive)
    anew = functools.partial(uncached, network.scheme)
    for batch in settings.batch or (1,):
        memory = torch.randn(batch, settings.tokens, config.d_model, device=settings.device, dtype=settings.torch_dtype)
        mask = torch.ones(batch, settings.tokens, dtype=torch.long, device=settings.device)

        yield compare(
            f"autoregressive steps with cache, all heads, {config.num_layers} layers, batch {batch}",
            "without cache",
            {
                "cached": functools.partial(_blocks, network, network.scheme, memory, mask),
                "not cached": functools.partial(_blocks, network, anew, memory, mask),
            },
            settings,
            target=("≥", 5.0),
        )


def _blocks(network: HyperNetwork, scheme: Any, memory: Tensor, mask: Tensor) -> None:
    network.heads(scheme(network.decoder, memory, mask))


def uncached(scheme: Autoregressive, decoder: T5Stack, memory: Tensor, mask: Tensor) -> Tensor:
    """The states of HART's scheme, bottom up, with the whole sequence decoded again in each step."""
    bias = relative_bias(decoder, scheme.layers * scheme.stacks)
    step_of = torch.arange(bias.shape[-1], device=bias.device) // scheme.stacks
    bias = bias.masked_fill(step_of[:, None] < step_of[None, :], torch.finfo(bias.dtype).min)
    inputs = scheme.z.expand(memory.shape[0], -1, -1)
    for _ in range(scheme.layers):
        length = inputs.shape[1]
        states = DecoderPass(decoder, memory, mask).step(inputs, bias[:, :, :length, :length])
        inputs = torch.cat((inputs, states[:, -scheme.stacks :]), dim=1)
    return states.unflatten(1, (scheme.layers, scheme.stacks)).transpose(1, 2).unsqueeze(3)
