"""The words of the procedural collection, by category.

Every word belongs to only one category, so that "keep only the animals" has one correct answer, and is short and
common, so that a small sub-word vocabulary has it as one token.
"""

CATEGORIES: dict[str, tuple[str, ...]] = {
    "animal": tuple(
        "cat dog horse cow sheep pig goat lion tiger bear wolf fox rabbit mouse frog snake duck owl".split()
    ),
    "fruit": tuple("apple pear plum grape lemon peach cherry mango melon fig banana lime berry apricot".split()),
    "color": tuple("red green blue yellow black white brown pink purple gray gold silver".split()),
    "tool": tuple("hammer saw drill axe shovel rake knife wrench ladder rope chisel brush pliers spade".split()),
    "garment": tuple("hat coat shirt sock shoe glove scarf belt dress boot jacket skirt sweater cap".split()),
    "vehicle": tuple("car bus train truck boat plane bike ship van taxi tram wagon ferry rocket".split()),
    "instrument": tuple("piano violin flute drum guitar trumpet harp cello organ horn banjo fiddle".split()),
    "job": tuple("doctor teacher farmer baker nurse pilot judge lawyer painter singer sailor soldier".split()),
}

NAMES: tuple[str, ...] = tuple(
    "Anna Tom Lily Jack Emma Paul Sara Mark Nina Adam Lucy Peter Clara David Julia Henry".split()
)
PLACES: tuple[str, ...] = tuple("garden kitchen school park office library station market church hotel".split())
DAYS: tuple[str, ...] = tuple("Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split())
NUMBERS: tuple[str, ...] = tuple(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
    " sixteen seventeen eighteen nineteen twenty".split()
)
OPPOSITES: dict[str, str] = {
    a: b
    for pair in (
        "hot cold|big small|old new|fast slow|high low|wet dry|rich poor|hard soft|light dark|near far"
        "|full empty|early late|loud quiet|strong weak|open closed|happy sad|clean dirty|wide narrow"
    ).split("|")
    for a, b in (pair.split(), pair.split()[::-1])
}
PAST: dict[str, str] = dict(
    pair.split()
    for pair in (
        "go went|see saw|eat ate|run ran|buy bought|sell sold|give gave|take took|make made|write wrote"
        "|speak spoke|sing sang|swim swam|drive drove|find found|lose lost|think thought|know knew"
    ).split("|")
)
PLURALS: dict[str, str] = {
    word: {"mouse": "mice", "wolf": "wolves", "fox": "foxes"}.get(word, word + "s")
    for word in CATEGORIES["animal"]
    if word != "sheep"
}

MARKERS: tuple[str, ...] = ("and", "plus", "answer", "done")
"""Words that finishers add."""
FRAME: tuple[str, ...] = ("on", "gave", "the", "to", "in")
"""Function words of the sentences, which occur in no answer."""

ALL_WORDS: tuple[str, ...] = tuple(word for words in CATEGORIES.values() for word in words)
CATEGORY_OF: dict[str, str] = {word: name for name, words in CATEGORIES.items() for word in words}


def vocabulary() -> tuple[str, ...]:
    """All words of answers, sorted and distinct; inputs also have those of `FRAME` and some signs."""
    words = {*ALL_WORDS, *NAMES, *PLACES, *DAYS, *NUMBERS, *CATEGORIES, *MARKERS}
    words |= {*OPPOSITES, *PAST, *PAST.values(), *PLURALS.values()}
    return tuple(sorted(words))
