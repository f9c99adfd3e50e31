"""Fingerprints of bases (`hart.runtime.identity`) compared as texts, without torch."""


def same_base(one: str, other: str) -> bool:
    """Whether two fingerprints stand for the same weights and the same tokenizer, as far as both say."""
    mine, theirs = one.split("-"), other.split("-")
    return all(a == b for a, b in zip(mine, theirs, strict=False))


def difference(one: str, other: str) -> str:
    """What two different fingerprints say, to follow "whose": the weights differ, or only the tokenizer does."""
    return "weights differ" if one.split("-")[0] != other.split("-")[0] else "tokenizer differs"
