"""Terse wordings of the primitives in the pre-training text, four each, different from those of task definitions."""

import numpy as np

from hart.data.procedural import Combination, combinations

JOINERS = (" , ", " and then ", " - ")

_TABLE = """
first_two: initial two | the two first ones | two words from the start | opening pair
last_two: final two | the two last ones | two words from the end | closing pair
all_but_first: except initial | everything after the first | without the word at the start | first word dropped
before_bar: prior to # | left side of the sign | words until the mark # | what is ahead of #
after_bar: following # | right side of the sign | words behind # only | what comes after the mark
inside: within ( ) | the bracket content | words that brackets enclose | what is held inside
small: less than ten | below ten only | those under ten | the smaller numbers
large: more than ten | above ten only | those over ten | the larger numbers
even: even ones | only even numbers | numbers two divides | divided by two
numbers: number ones | only numbers | each number in it | all that is a number
words: without number ones | no numbers | each word that is no number | numbers left away
giver_receiver: who and to whom | giver then receiver | both people in it | the one who gave and the one who received
color_thing: color and thing | the gift with its color | how it looks and what it is | color then gift
day_place: day and place | when and where | time then location | the day and where it was
keys: left column | names of the table | all people in it | each name only
values: right column | fruit of the table | all fruit in it | each fruit only
lookup: matching row | what the named person wears | look up the name | color and garment of the one asked for
opposite: opposites | each word turned to its opposite | contrary of all | the reverse in meaning
past: past forms | verbs in past tense | each in the past | past of every verb
plural: plurals | many of each animal | plural of every one | each as many
dedupe: unique ones | repeats removed | equal words only once | each different one
doubled: repeated ones | words that occur twice | only what comes again | those found two times
plain: as is | same order | order kept | just write them
reverse: backward | in reverse | order turned around | from last to first
repeat_each: each doubled | every one twice | each repeated at once | two times each
echo: all doubled | whole result repeated | the complete list two times | result twice over
join: with and | joined by and | and put between | connected with and
plus: with plus | separated by plus | plus put between | divided with plus
first: top one | only the first | first of them and stop | nothing after the first
last: bottom one | only the last | last of them alone | nothing before the last
count: how many | the number of them | counted | count of all
swap: ends exchanged | first and last swapped | both ends trade places | first for last and last for first
announce: answer ahead | word answer in front | begins with answer | answer first then them
close: done behind | word done at the end | finishes with done | them first then done
"""

WORDINGS: dict[str, tuple[str, ...]] = {
    key: tuple(wording.strip() for wording in row.split("|"))
    for key, _, row in (line.partition(":") for line in _TABLE.strip().splitlines())
}
for _name in {c.selector.key.partition("_")[2] for c in combinations() if c.selector.key.startswith("keep_")}:
    WORDINGS[f"keep_{_name}"] = (f"{_name} ones", f"only {_name} words", f"every {_name} in it", f"just the {_name}s")
    WORDINGS[f"drop_{_name}"] = (
        f"without {_name} ones",
        f"no {_name} words",
        f"all except {_name}s",
        f"everything but the {_name}s",
    )


def prompt(combination: Combination, text: str, select: int = 0, finish: int = 0, joiner: int = 0) -> str:
    """The base's input for a combination, in the chosen wordings."""
    first = WORDINGS[combination.selector.key][select]
    second = WORDINGS[combination.finisher.key][finish]
    return f"{first}{JOINERS[joiner]}{second} : {text}"


def synonyms(combination: Combination, rng: np.random.Generator) -> tuple[str, str]:
    """A phrase of the task definitions, and the equivalent terse wording of `prompt`.

    They are for one primitive or for both of a combination, and never the text of a task definition.
    """
    parts = [
        (p.phrasings[rng.integers(len(p.phrasings))], WORDINGS[p.key])
        for p in (combination.selector, combination.finisher)
    ]
    how = rng.random()
    if how < 0.5:
        parts = [parts[int(how < 0.2)]]
    joiner, stop = JOINERS[rng.integers(len(JOINERS))], (" ; ", " . ", " , ")[rng.integers(3)]
    said = stop.join(phrase for phrase, _ in parts)
    meant = joiner.join(wordings[rng.integers(len(wordings))] for _, wordings in parts)
    return f"{said} means :", meant
