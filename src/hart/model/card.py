"""The README.md of a saved model, from its configuration."""

from collections.abc import Mapping
from typing import Any

from huggingface_hub import ModelCardData


def model_card(config: Mapping[str, Any]) -> str:
    """Markdown with the hub's metadata block.

    Args:
        config: content of the saved config.json (`HyperNetworkConfig` with its `system` part).
    """
    system = config["system"]
    weights, trained = system.get("weights", "generated"), system.get("train_main", False)
    kinds = ", ".join(kind["kind"] for kind in config["peft"]) or "none"
    rows = [
        (
            "base",
            f"{system['base']}, revision {system['base_revision']}, fingerprint `{system['base_fingerprint'][:16]}`",
        ),
        ("main model", "trained, in `main/`" if trained else "frozen"),
        (f"PEFT parameters ({weights})", kinds),
    ]
    if weights == "generated":
        fused = "is" if system["fusion"] else "is not"
        layers = config.get("encoder_layers")
        read = "its own" if layers is None else f"the main model, states of layer {', '.join(map(str, layers))}"
        rows += [
            ("generation scheme", config["scheme"]["name"]),
            ("encoder of the hypernetwork", "the main model's, trained" if config.get("tied_encoder") else read),
            ("decoder layers of the hypernetwork", config["decoder_layers"]),
            ("fusion-in-decoder", f"the main model's decoder {fused} given the hypernetwork's encoding"),
        ]
        if config.get("memory_in_front"):
            rows[-1] = ("memory in front", "keys and values of the hypernetwork's memory stand before each query")
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    # Of a system without a hypernetwork, config.json does not say which family its base is of.
    family = ["t5"] if config.get("main", {}).get("encoder_layers") else []
    header = ModelCardData(
        base_model=system["base"], library_name="hart-hypernet", tags=["hypernetwork", "peft", *family, "hart"]
    )
    return f"""---
{header}
---

# {_TITLES[weights]} for {system["base"]}

{_WHAT[weights].format(demonstrations=system["input_format"]["num_demonstrations"])}

| | |
|---|---|
{table}

```python
from hart import HartModel, Task

model = HartModel.from_pretrained("THIS FOLDER OR NAME")
task = Task(definition="…", demonstrations=[("input", "output"), ("input", "output")])
adaptation = model.adapt(task)
model.generate(["query"], adaptation)
```
"""


_TITLES = {"generated": "HART hypernetwork", "learned": "Learned PEFT parameters", "none": "Fine-tuned model"}
_WHAT = {
    "generated": "Reads the definition and {demonstrations} demonstrations of a task and generates, in one\n"
    "forward pass, parameters that adapt the base model to it.",
    "learned": "One set of PEFT parameters for all tasks, learned beside the base model.",
    "none": "All weights of the base model, fine-tuned on many tasks.",
}
