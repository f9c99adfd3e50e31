"""List the tokens in the training queries of a bundled model, for `hart.model.familiarity`.

python recipes/mini/seen_tokens.py mini
"""

import argparse
from pathlib import Path

from hart import HartModel
from hart.data.procedural import load_procedural
from hart.model.bundled import MODELS, resolve_model
from hart.model.familiarity import SEEN_FILE
from hart.runtime.files import write_json

INSTANCES = 100
"""Instances per training task, as in training."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=MODELS)
    name = parser.parse_args().model
    write_json(Path(resolve_model(name)) / SEEN_FILE, seen_tokens(HartModel.from_pretrained(name)))


def seen_tokens(model: HartModel) -> list[int]:
    """The distinct tokens of all training queries in the main model's input, in ascending order."""
    form, tokenizer = model.input_format, model.main.tokenizer
    queries = (each.input for task in load_procedural("train", max_instances=INSTANCES) for each in task.instances)
    return sorted({token for query in queries for token in form.encode_query(tokenizer, query)})


if __name__ == "__main__":
    main()
