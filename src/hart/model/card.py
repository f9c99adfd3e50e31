"""The model card (README.md) of a saved model, from its configuration, and the scores added to it later."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from hart.runtime.files import write_text

CARD_FILE = "README.md"
_BEGIN, _END = "<!-- hart: scores -->", "<!-- hart: end of scores -->"
"""Lines around the scores; a card without them was written by hand."""


def model_card(config: Mapping[str, Any], about: str = "") -> str:
    """Markdown with the hub's metadata block.

    Args:
        config: content of the saved config.json (`HyperNetworkConfig` with its `system` part).
        about: Markdown appended to the card.
    """
    system = config["system"]
    weights, trained = system["weights"], system["train_main"]
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
    # The config.json of a system without a hypernetwork does not name the family of its base.
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

## Scores

{_BEGIN}
None were measured yet: `hart evaluate THIS FOLDER … --output THIS FOLDER/../results.json` puts them here.
{_END}
{about and chr(10) + about}"""


def put_scores(folder: Path, scores: str) -> bool:
    """Write scores into the card of a saved model, replacing earlier ones; False if the card has no place for them.

    Raises:
        HartError: the card cannot be written.
    """
    path = folder / CARD_FILE
    try:
        card = path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
    head, begin, rest = card.partition(f"{_BEGIN}\n")
    _, end, tail = rest.partition(_END)
    if not begin or not end:
        return False
    write_text(path, f"{head}{begin}{scores.strip()}\n{end}{tail}")
    return True


_TITLES = {"generated": "HART hypernetwork", "learned": "Learned PEFT parameters", "none": "Fine-tuned model"}
_WHAT = {
    "generated": "Reads the definition and {demonstrations} demonstrations of a task and generates, in one\n"
    "forward pass, parameters that adapt the base model to it.",
    "learned": "One set of PEFT parameters for all tasks, learned beside the base model.",
    "none": "All weights of the base model, fine-tuned on many tasks.",
}
