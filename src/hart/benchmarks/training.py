"""Speed of a training step: HART against HyperTuning, and against fine-tuning the main model on the same tokens."""

import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from hart.benchmarks import Figure, Settings, measure, summary
from hart.benchmarks.measuring import ratios
from hart.benchmarks.models import Numbers, hypernetwork, stock_model, t5_config, twin
from hart.model.encoder_decoder import EncoderDecoder
from hart.model.hart_model import HartModel
from hart.model.main_model import MainModel
from hart.training.consistency import SlotConsistency
from hart.training.losses import prediction_loss

ALPHA = 1.0


def training_step(settings: Settings) -> Iterator[Figure]:
    """A training step (forward, backward, AdamW) on demonstrations of 1024, a query of 96 and an answer of 16 tokens.

    Fine-tuning reads demonstrations and query in one input, so the tokens are the same.
    """
    config = t5_config(settings.shape or "t5-base", vocabulary=4096)
    model = stock_model(config, settings.device, settings.torch_dtype)
    for batch in settings.batch or (2,):
        demos = torch.randint(3, 4096, (batch, settings.tokens), device=settings.device)
        query = torch.randint(3, 4096, (batch, settings.scaled(96)), device=settings.device)
        labels = torch.randint(3, 4096, (batch, settings.scaled(16)), device=settings.device)
        whole = torch.cat([demos, query], dim=1)
        short = {"query_ids": query, "query_mask": torch.ones_like(query), "labels": labels}
        read = {**short, "demo_ids": demos, "demo_mask": torch.ones_like(demos)}
        long = {**short, "query_ids": whole, "query_mask": torch.ones_like(whole)}
        steps: dict[str, Callable[[], None]] = {}
        for name, scheme, alpha in (("HART", "autoregressive", ALPHA), ("HyperTuning", "shared", 0.0)):
            train = step(HartModel(_main(model), hypernetwork(config, scheme)), alpha)
            steps[name] = functools.partial(train, read)
        tuned = step(HartModel(_main(model, trained=True), None, train_main=True), 0.0)
        steps["full fine-tuning"] = functools.partial(tuned, long)
        # The counted pass is the first step, which also creates the optimizer's state.
        times, counts = measure(steps, settings)
        variants = summary(times, counts)
        name = f"training step, HART, {settings.shape or 't5-base'}, batch {batch}"
        yield Figure(
            name,
            "HyperTuning",
            ratios(times, "HART", "HyperTuning"),
            f"{counts['HART'].flops / counts['HyperTuning'].flops:.3f}× by products",
            ("≤", 1.10),
            variants=variants,
        )
        yield Figure(
            name.replace("HART,", "HART beside fine-tuning,"),
            "full fine-tuning, same tokens",
            ratios(times, "HART", "full fine-tuning"),
            f"{counts['HART'].flops / counts['full fine-tuning'].flops:.3f}× by products",
            variants=variants,
        )


def step(system: HartModel, alpha: float) -> Callable[[dict[str, Tensor]], None]:
    """A function of a batch that makes one optimizer step as in `hart.training.train`."""
    system.train()
    optimizer = torch.optim.AdamW([p for p in system.parameters() if p.requires_grad], lr=1e-5)
    consistency = SlotConsistency()

    def run(batch: dict[str, Tensor]) -> None:
        output = system(**batch)
        total, tokens = prediction_loss(output.logits, batch["labels"])
        slots = torch.arange(len(output.states), device=total.device)
        loss = total / tokens + alpha * consistency.loss(output.states, slots, slots)
        loss.backward()
        nn.utils.clip_grad_norm_(system.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        consistency.advance(lambda rows: rows)

    return run


def _main(model: nn.Module, *, trained: bool = False) -> MainModel:
    made = twin(model)  # type: ignore[arg-type]
    if trained:
        made.load_state_dict({name: value.clone() for name, value in made.state_dict().items()}, assign=True)
        made.requires_grad_(True)
    return EncoderDecoder(made, Numbers(), name="random")  # type: ignore[arg-type]
