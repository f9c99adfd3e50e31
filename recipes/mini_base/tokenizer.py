"""Train the sub-word tokenizer of the bundled base model: byte-level BPE, so that any UTF-8 text has tokens.

python recipes/mini_base/tokenizer.py --text-dir DIR --output-dir DIR [--architecture llama]
"""

import argparse
import gzip
import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast
from wordings import WORDINGS

from hart.data.procedural import combinations
from hart.data.procedural.lexicon import vocabulary

VOCABULARY_SIZE = 4096
SENTINELS = 32
# Repetitions of the procedural collection's words in the training text, enough for each to become one token.
REPEATS = 3000


def passages(directory: Path, pattern: str = "*train*.json.gz") -> Iterator[str]:
    """The `text` fields of a folder of C4-format gzipped JSON lines, in file order."""
    for path in sorted(directory.glob(pattern)):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)["text"]


def training_text(directory: Path) -> Iterator[str]:
    yield from passages(directory)
    words = " " + " ".join(vocabulary())
    wordings = " ".join(wording for wordings in WORDINGS.values() for wording in wordings)
    for _ in range(REPEATS):
        yield words
    for _ in range(REPEATS // 50):
        yield wordings
        yield " ".join(c.definition() for c in combinations("train"))


def train_tokenizer(directory: Path, architecture: str) -> PreTrainedTokenizerFast:
    """Train a tokenizer with the special tokens of an architecture.

    T5: sentinels, and an end of sequence after each text. Llama: a beginning of sequence before each text.
    """
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    # One space in front, so that a word has the same token at the start of a text as within it.
    tokenizer.normalizer = normalizers.Prepend(" ")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    is_t5 = architecture == "t5"
    sentinels = [f"<extra_id_{i}>" for i in range(SENTINELS)] if is_t5 else []
    third = "<unk>" if is_t5 else "<s>"
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=["<pad>", "</s>", third, *sentinels],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(training_text(directory), trainer)
    single, special = ("$A </s>", ("</s>", 1)) if is_t5 else ("<s> $A", ("<s>", 2))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, pair=f"{single} {single.replace('$A', '$B')}", special_tokens=[special]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        **({"unk_token": third, "additional_special_tokens": sentinels} if is_t5 else {"bos_token": third}),
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text-dir", type=Path, required=True)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--architecture", choices=("t5", "llama"), default="t5", help="of the base that reads with it")
    arguments = parser.parse_args()
    trained = train_tokenizer(arguments.text_dir, arguments.architecture)
    trained.save_pretrained(arguments.output_dir)
    split = [word for word in vocabulary() if len(trained.tokenize(word)) > 1]
    print(f"{len(trained)} tokens; words of the collection with more than one: {split}")
