"""The torch-free parts of a base's fingerprint (`hart.runtime.identity`): digest of the tokenizer, comparison."""

import hashlib
import json
from typing import Any

_TEXTS = (
    "Definition: In this task, you're given 2 sentences.\n\nInput: The cat sat on the mat.",
    "  two  spaces,\ta tab; UPPER lower – “quotes” café naïve 12,345.67 <extra_id_0> </s>",
    "日本語 Привет مرحبا हिन्दी 🙂",
)


def tokenizer_digest(tokenizer: Any) -> str:
    """Hex digest of a tokenizer's behaviour: vocabulary, special tokens, and the tokens of a few texts.

    The digest does not use the tokenizer's file, which versions of the libraries write differently.
    """
    special = [tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id]
    tokens = [tokenizer(text, add_special_tokens=True, verbose=False)["input_ids"] for text in _TEXTS]
    content = json.dumps([sorted(tokenizer.get_vocab().items()), special, tokens])
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()


def difference(one: str, other: str) -> str:
    """The difference between two fingerprints, as text after "whose": the weights differ, or only the tokenizer."""
    return "weights differ" if one.split("-")[0] != other.split("-")[0] else "tokenizer differs"
