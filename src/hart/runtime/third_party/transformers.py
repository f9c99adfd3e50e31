"""Uses of undocumented parts of `transformers`; reasons are in docs/architecture.md."""

from collections.abc import Collection
from inspect import signature
from typing import Any

from transformers import GenerationMixin
from transformers.integrations.sdpa_attention import create_position_bias_mask as create_position_bias_mask
from transformers.integrations.sdpa_attention import sdpa_attention_forward as sdpa_attention_forward
from transformers.masking_utils import eager_mask as eager_mask
from transformers.masking_utils import sdpa_mask as sdpa_mask
from transformers.models.t5.modeling_t5 import T5Attention as T5Attention
from transformers.models.t5.modeling_t5 import T5Stack as T5Stack
from transformers.models.t5.modeling_t5 import eager_attention_forward as eager_attention_forward

CACHE = "cache" if "cache" in signature(GenerationMixin.prepare_inputs_for_generation).parameters else "past_key_values"
"""Name of the models' argument for a cache, which was renamed in version 5.24."""


def forget_renamings(model: Any, patterns: Collection[str]) -> None:
    """Let a model be saved with its own weight names, not those of the checkpoint from which it was loaded.

    `patterns` are the names, or patterns of names, in that checkpoint. Other conversions of weights are kept.
    """
    renamings: Any = getattr(model, "_weight_conversions", None) or ()
    kept = [each for each in renamings if not set(each.source_patterns) & set(patterns)]
    if kept:
        model._weight_conversions = kept
    elif renamings:
        del model._weight_conversions
