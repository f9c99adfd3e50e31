"""Primitives of the procedural collection: selectors map an input to a list of words, finishers to the output.

A task of the collection is one selector followed by one finisher. Each primitive has three phrasings for
task definitions. The bundled base model is pre-trained to *do* the primitives, requested in other words
(recipes/mini_base/wordings.py); it has never read a definition.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hart.data.procedural import lexicon as lx

# ruff: noqa: E501  (a primitive is one line of a table)

Rng = np.random.Generator


@dataclass(frozen=True)
class Source:
    """A kind of input: its name in definitions, and the function that draws one."""

    key: str
    nouns: tuple[str, str, str]
    draw: Callable[[Rng], str]


@dataclass(frozen=True)
class Selector:
    """First step of a task: input text → list of words, never empty on inputs that `draw` accepts."""

    key: str
    family: str
    source: Source
    phrasings: tuple[str, str, str]
    apply: Callable[[str], list[str]]


@dataclass(frozen=True)
class Finisher:
    """Second step of a task: list of words → list of words, joined by single spaces."""

    key: str
    phrasings: tuple[str, str, str]
    apply: Callable[[list[str]], list[str]]


def pick(rng: Rng, words: tuple[str, ...], count: int) -> list[str]:
    """`count` distinct words in random order."""
    return [words[i] for i in rng.permutation(len(words))[:count]]


# --- sources ---------------------------------------------------------------------------------------------


def _draw_words(rng: Rng) -> str:
    return " ".join(pick(rng, lx.ALL_WORDS, int(rng.integers(4, 8))))


def _draw_about(name: str) -> Callable[[Rng], str]:
    """Inputs with one to three words of a category and two to four others, so that a filter keeps and drops some."""
    others = tuple(word for word in lx.ALL_WORDS if lx.CATEGORY_OF[word] != name)

    def draw(rng: Rng) -> str:
        words = pick(rng, lx.CATEGORIES[name], int(rng.integers(1, 4)))
        words += pick(rng, others, int(rng.integers(2, 5)))
        return " ".join(pick(rng, tuple(words), len(words)))

    return draw


def _draw_numbers(rng: Rng) -> str:
    return " ".join(pick(rng, lx.NUMBERS, int(rng.integers(4, 8))))


def _draw_mixed(rng: Rng) -> str:
    numbers = pick(rng, lx.NUMBERS, int(rng.integers(2, 4)))
    words = pick(rng, lx.ALL_WORDS, int(rng.integers(2, 4)))
    return " ".join(pick(rng, tuple(numbers + words), len(numbers) + len(words)))


def _draw_bar(rng: Rng) -> str:
    left, right = int(rng.integers(2, 5)), int(rng.integers(2, 5))
    words = pick(rng, lx.ALL_WORDS, left + right)
    return " ".join([*words[:left], "#", *words[left:]])


def _draw_brackets(rng: Rng) -> str:
    sizes = [int(rng.integers(1, 3)), int(rng.integers(2, 4)), int(rng.integers(1, 3))]
    words = pick(rng, lx.ALL_WORDS, sum(sizes))
    a, b = sizes[0], sizes[0] + sizes[1]
    return " ".join([*words[:a], "(", *words[a:b], ")", *words[b:]])


def _draw_sentence(rng: Rng) -> str:
    giver, receiver = pick(rng, lx.NAMES, 2)
    day, place = pick(rng, lx.DAYS, 1)[0], pick(rng, lx.PLACES, 1)[0]
    color = pick(rng, lx.CATEGORIES["color"], 1)[0]
    kind = ("garment", "fruit", "tool")[int(rng.integers(3))]
    thing = pick(rng, lx.CATEGORIES[kind], 1)[0]
    return f"on {day} {giver} gave the {color} {thing} to {receiver} in the {place}"


def _draw_records(rng: Rng) -> str:
    count = int(rng.integers(2, 5))
    names, things = pick(rng, lx.NAMES, count), pick(rng, lx.CATEGORIES["fruit"], count)
    return " ; ".join(f"{name} {thing}" for name, thing in zip(names, things, strict=True))


def _draw_lookup(rng: Rng) -> str:
    count = int(rng.integers(2, 5))
    names, things = pick(rng, lx.NAMES, count), pick(rng, lx.CATEGORIES["garment"], count)
    colors = pick(rng, lx.CATEGORIES["color"], count)
    rows = " ; ".join(f"{n} {c} {t}" for n, c, t in zip(names, colors, things, strict=True))
    return f"{names[int(rng.integers(count))]} ? {rows}"


def _draw_repeats(rng: Rng) -> str:
    words = pick(rng, lx.ALL_WORDS, int(rng.integers(3, 5)))
    extra = pick(rng, tuple(words), 2)
    return " ".join(pick(rng, tuple(words + extra), len(words) + 2))


def _draw_from(words: dict[str, str]) -> Callable[[Rng], str]:
    return lambda rng: " ".join(pick(rng, tuple(words), int(rng.integers(2, 5))))


WORDS = Source("words", ("a list of words", "several words", "a row of words"), _draw_words)
NUMBERS = Source("numbers", ("a list of numbers", "several numbers", "a row of numbers"), _draw_numbers)
MIXED = Source(
    "mixed",
    ("a list of words and numbers", "words mixed with numbers", "a row of numbers and words"),
    _draw_mixed,
)
BAR = Source(
    "bar",
    (
        "two lists with a # between them",
        "words split by the sign #",
        "words with a # in the middle",
    ),
    _draw_bar,
)
BRACKETS = Source(
    "brackets",
    (
        "words, some of them in brackets",
        "a list with a part in brackets",
        "a row of words and a bracket",
    ),
    _draw_brackets,
)
SENTENCE = Source(
    "sentence",
    ("a sentence about a gift", "a report of who gave what", "a line that tells of a present"),
    _draw_sentence,
)
RECORDS = Source(
    "records",
    ("people and the fruit each has", "a table of names and fruit", "rows of a name and a fruit"),
    _draw_records,
)
LOOKUP = Source(
    "lookup",
    (
        "a name and a table of what people wear",
        "a question about one row of a table",
        "a name, then who wears what",
    ),
    _draw_lookup,
)
REPEATS = Source(
    "repeats",
    ("a list in which some words come twice", "words with repeats", "a row of words, some doubled"),
    _draw_repeats,
)
OPPOSITES = Source(
    "opposites",
    ("a list of adjectives", "several adjectives", "a row of adjectives"),
    _draw_from(lx.OPPOSITES),
)
VERBS = Source("verbs", ("a list of verbs", "several verbs", "a row of verbs"), _draw_from(lx.PAST))
ANIMALS = Source("animals", ("a list of animals", "several animals", "a row of animals"), _draw_from(lx.PLURALS))


# --- selectors -------------------------------------------------------------------------------------------


def _about(name: str) -> Source:
    return Source("words", WORDS.nouns, _draw_about(name))


def _keep(name: str) -> Selector:
    many = name + "s"
    phrasings = (f"keep only the {many}", f"find every {name}", f"pick out the {many}")
    words = set(lx.CATEGORIES[name])
    return Selector(
        f"keep_{name}", "category filtering", _about(name), phrasings,
        lambda text: [w for w in text.split() if w in words],
    )  # fmt: skip


def _drop(name: str) -> Selector:
    many = name + "s"
    phrasings = (
        f"remove the {many}",
        f"leave out every {name}",
        f"take everything that is not a kind of {name}",
    )
    words = set(lx.CATEGORIES[name])
    return Selector(
        f"drop_{name}", "category removal", _about(name), phrasings,
        lambda text: [w for w in text.split() if w not in words],
    )  # fmt: skip


def _on_words(
    key: str, family: str, source: Source, phrasings: tuple[str, str, str],
    apply: Callable[[list[str]], list[str]],
) -> Selector:  # fmt: skip
    return Selector(key, family, source, phrasings, lambda text: apply(text.split()))


def _number_rule(key: str, phrasings: tuple[str, str, str], rule: Callable[[int], bool]) -> Selector:
    chosen = {word for value, word in enumerate(lx.NUMBERS) if rule(value)}
    return _on_words(key, "number selection", NUMBERS, phrasings, lambda ws: [w for w in ws if w in chosen])


def _part(key: str, phrasings: tuple[str, str, str], *positions: int) -> Selector:
    # "on Monday Anna gave the red hat to Tom in the park": positions of the content words
    return _on_words(key, "sentence extraction", SENTENCE, phrasings, lambda ws: [ws[i] for i in positions])


def _rows(text: str) -> list[list[str]]:
    return [row.split() for row in text.split(" ; ")]


def _lookup(text: str) -> list[str]:
    name, table = text.split(" ? ")
    return next(row[1:] for row in _rows(table) if row[0] == name)


def _inside(ws: list[str]) -> list[str]:
    return ws[ws.index("(") + 1 : ws.index(")")]


def _mapped(key: str, source: Source, phrasings: tuple[str, str, str], table: dict[str, str]) -> Selector:
    return _on_words(key, "word mapping", source, phrasings, lambda ws: [table[w] for w in ws])


_POSITION, _SPAN, _MIX, _RECORD, _REPEAT = (
    "position selection", "marked span", "type separation", "record lookup", "repetition",
)  # fmt: skip

SELECTORS: tuple[Selector, ...] = (
    *(_keep(name) for name in ("animal", "fruit", "color")),
    *(_drop(name) for name in ("animal", "fruit", "color")),
    _on_words("first_two", _POSITION, WORDS, ("take the first two words", "use only the opening two", "keep the two at the start"), lambda ws: ws[:2]),
    _on_words("last_two", _POSITION, WORDS, ("take the last two words", "use only the closing two", "keep the two at the end"), lambda ws: ws[-2:]),
    _on_words("all_but_first", _POSITION, WORDS, ("skip the first word", "take all but the one at the start", "drop the word in front"), lambda ws: ws[1:]),
    _on_words("before_bar", _SPAN, BAR, ("take what stands before the sign", "use the part to the left of #", "keep the words ahead of the mark"), lambda ws: ws[: ws.index("#")]),
    _on_words("after_bar", _SPAN, BAR, ("take what stands after the sign", "use the part to the right of #", "keep the words behind the mark"), lambda ws: ws[ws.index("#") + 1 :]),
    _on_words("inside", _SPAN, BRACKETS, ("take the words inside the brackets", "use what the brackets hold", "keep the enclosed part"), _inside),
    _number_rule("small", ("keep the numbers below ten", "find those smaller than ten", "pick the numbers under ten"), lambda n: n < 10),
    _number_rule("large", ("keep the numbers above ten", "find those larger than ten", "pick the numbers over ten"), lambda n: n > 10),
    _number_rule("even", ("keep the even numbers", "find those that two divides", "pick the numbers that are even"), lambda n: n % 2 == 0),
    _on_words("numbers", _MIX, MIXED, ("keep the numbers only", "take every number", "ignore all that is no number"), lambda ws: [w for w in ws if w in lx.NUMBERS]),
    _on_words("words", _MIX, MIXED, ("leave the numbers away", "take all that is no number", "ignore every number"), lambda ws: [w for w in ws if w not in lx.NUMBERS]),
    _part("giver_receiver", ("name who gave and who received", "write the giver and the receiver", "list both people"), 2, 8),
    _part("color_thing", ("say what was given with its color", "write the color and the gift", "list how the gift looks and what it is"), 5, 6),
    _part("day_place", ("say when and where it happened", "write the day and the place", "list the time and the location"), 1, 11),
    Selector("keys", _RECORD, RECORDS, ("list all the people", "write each name", "give the names of the table"), lambda t: [row[0] for row in _rows(t)]),
    Selector("values", _RECORD, RECORDS, ("list all the fruit", "write each fruit", "give the fruit of the table"), lambda t: [row[1] for row in _rows(t)]),
    Selector("lookup", _RECORD, LOOKUP, ("say what the named person wears", "look up the color and garment of the name", "find the row of the name and write what follows"), _lookup),
    _mapped("opposite", OPPOSITES, ("replace each word by its opposite", "write the contrary of every word", "turn each adjective around in meaning"), lx.OPPOSITES),
    _mapped("past", VERBS, ("put each verb into the past", "write the past tense of every verb", "turn each verb into its past form"), lx.PAST),
    _mapped("plural", ANIMALS, ("write the plural of each", "turn every animal into many", "put each animal into the plural"), lx.PLURALS),
    _on_words("dedupe", _REPEAT, REPEATS, ("write each different word once", "remove the repeats", "keep only the first of equal words"), lambda ws: list(dict.fromkeys(ws))),
    _on_words("doubled", _REPEAT, REPEATS, ("find the words that come twice", "keep only what is repeated", "take each word that occurs again"), lambda ws: [w for w in dict.fromkeys(ws) if ws.count(w) > 1]),
)  # fmt: skip


# --- finishers -------------------------------------------------------------------------------------------

FINISHERS: tuple[Finisher, ...] = (
    Finisher("plain", ("write them in order", "answer with these in the same order", "leave the order as it is"), lambda ws: ws),
    Finisher("reverse", ("write them in reverse order", "answer with these backwards", "turn the order around"), lambda ws: ws[::-1]),
    Finisher("repeat_each", ("write each of them twice", "answer with every one doubled", "repeat every single one"), lambda ws: [w for w in ws for _ in range(2)]),
    Finisher("echo", ("write the whole result twice", "answer with the complete result two times", "repeat the result as a whole"), lambda ws: ws + ws),
    Finisher("join", ("join them with the word and", "put and between them", "connect them by and"), lambda ws: " and ".join(ws).split()),
    Finisher("plus", ("separate them with the word plus", "put plus between them", "divide them by plus"), lambda ws: " plus ".join(ws).split()),
    Finisher("first", ("give only the first of them", "answer with the one that comes first", "stop after the first"), lambda ws: ws[:1]),
    Finisher("last", ("give only the last of them", "answer with the one that comes last", "go straight to the last"), lambda ws: ws[-1:]),
    Finisher("count", ("say how many there are", "answer with their number", "count them"), lambda ws: [lx.NUMBERS[len(ws)]]),
    Finisher("swap", ("exchange the first and the last of them", "answer with both ends swapped", "let the first and the last trade places"), lambda ws: ws if len(ws) < 2 else [ws[-1], *ws[1:-1], ws[0]]),
    Finisher("announce", ("begin the answer with the word answer", "put the word answer in front", "start with answer"), lambda ws: ["answer", *ws]),
    Finisher("close", ("end the answer with the word done", "put the word done behind", "finish with done"), lambda ws: [*ws, "done"]),
)  # fmt: skip


def draw_input(selector: Selector, rng: Rng) -> str:
    """An input text from which the selector gets at least two words (one if more are rare).

    With two words, finishers such as `reverse` and `swap` have an effect.
    """
    for _ in range(200):
        text = selector.source.draw(rng)
        found = len(selector.apply(text))
        if found >= 2 or (found == 1 and rng.random() < 0.05):
            return text
    raise RuntimeError(f"selector {selector.key} finds nothing in inputs of kind {selector.source.key}")
