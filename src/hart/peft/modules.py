"""The modules of a main model that the table of architectures names: layers, norms, rates of dropout."""

from collections.abc import Iterator
from typing import Any, Literal

from torch import nn

from hart.peft.architectures import Stack, architecture, in_attention


def at(module: Any, path: str) -> nn.Module:
    """The module at a dotted path below another one; a list's last element is -1."""
    for name in path.split("."):
        module = module[int(name)] if isinstance(module, nn.ModuleList) else getattr(module, name)
    return module


def norm_of(part: Literal["k", "v"], config: Any, layer: nn.Module) -> nn.Module | None:
    """The norm that keys or values of a decoder-only model's layer pass, if they pass one."""
    table = architecture(config)
    path = table.key_norm if part == "k" else table.value_norm
    if path is None:
        return None
    holder, _, name = path.rpartition(".")
    found: nn.Module | None = getattr(at(layer, holder), name, None)
    return found


def layers(main: nn.Module, stack: Stack) -> list[nn.Module]:
    """The layers of one stack of a main model, from the bottom."""
    found: Any = at(main, architecture(main.config).stacks[stack])
    return list(found)


def layers_with(main: nn.Module, stack: Stack, target: str) -> list[nn.Module]:
    """Those of them that have a site."""
    table, found = architecture(main.config), layers(main, stack)
    chosen = table.attention_layers(main.config) if in_attention(target) else None
    return found if chosen is None else [found[layer] for layer in chosen]


def dropouts(main: Any) -> Iterator[tuple[str, nn.Module, str]]:
    """Name of a module, the module and its attribute that is a dropout rate, of each that acts in training."""
    table = architecture(main.config)
    for name, module in main.named_modules():
        if isinstance(module, nn.Dropout):
            yield name, module, "p"
        for what in table.dropout:
            if isinstance(getattr(module, what, None), int | float):
                yield name, module, what
