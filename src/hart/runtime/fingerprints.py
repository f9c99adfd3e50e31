"""Fingerprints of bases (`hart.runtime.identity`) compared as texts, without torch."""


def difference(one: str, other: str) -> str:
    """What two different fingerprints say, to follow "whose": the weights differ, or only the tokenizer does."""
    return "weights differ" if one.split("-")[0] != other.split("-")[0] else "tokenizer differs"
