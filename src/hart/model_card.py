"""The README.md of a saved model, from its configuration."""

from collections.abc import Mapping
from typing import Any


def model_card(config: Mapping[str, Any]) -> str:
    """Markdown with the hub's metadata block.

    Args:
        config: content of the saved config.json (`HyperNetworkConfig` with its `system` part).
    """
    system = config["system"]
    kinds = ", ".join(kind["kind"] for kind in config["peft"]) or "none (fusion alone)"
    fused = "is" if system["fusion"] else "is not"
    return f"""---
library_name: hart-hypernet
base_model: {system["base"]}
tags: [hypernetwork, peft, t5, hart]
---

# HART hypernetwork for {system["base"]}

Reads the definition and {system["input_format"]["num_demonstrations"]} demonstrations of a task and generates, in one
forward pass, parameters that adapt the frozen base model to it.

| | |
|---|---|
| base | {system["base"]}, revision {system["base_revision"]}, fingerprint `{system["base_fingerprint"][:16]}` |
| generated | {kinds} |
| generation scheme | {config["scheme"]["name"]} |
| decoder layers of the hypernetwork | {config["decoder_layers"]} |
| fusion-in-decoder | the base's decoder {fused} given the hypernetwork's encoding |

```python
from hart import HartModel, Task

model = HartModel.from_pretrained("THIS FOLDER OR NAME")
task = Task(definition="…", demonstrations=[("input", "output"), ("input", "output")])
adaptation = model.adapt(task)
model.generate(["query"], adaptation)
```
"""
