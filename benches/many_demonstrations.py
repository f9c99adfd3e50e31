"""Benefit and cost of more demonstrations.

    python benches/many_demonstrations.py MODEL [--data procedural] [--queries 20] [--no-definition]

A model adapts to each unseen task of the collection with 2, 4, … 64 demonstrations, in groups of the size used in
training, and answers the same queries. The output for each number is exact match, seconds to adapt to one task, tokens
and MiB of its memory, and the change of the generated parameters (root mean square, relative to their own) if the
groups are in another order.
"""

import argparse
import time
from dataclasses import replace
from random import Random
from statistics import mean

import torch

from hart import HartModel, Task
from hart.data.collections import load_tasks
from hart.data.config import DataConfig
from hart.data.prompts import Cuts
from hart.data.tasks import Demonstration
from hart.evaluation.metrics import exact_match

NUMBERS = (2, 4, 8, 16, 32, 64)


def reordered(task: Task, size: int) -> Task:
    """The task with its groups of demonstrations in another order."""
    groups = [task.demonstrations[at : at + size] for at in range(0, len(task.demonstrations), size)]
    Random(0).shuffle(groups)
    return replace(task, demonstrations=tuple(each for group in groups for each in group))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", default="procedural")
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument("--no-definition", action="store_true", help="say only that there are examples")
    args = parser.parse_args()
    model = HartModel.from_pretrained(args.model)
    size = model.input_format.num_demonstrations
    if model.hypernetwork is None or not size or not model.kinds:
        parser.error(f"{args.model} generates nothing from demonstrations")
    tasks = load_tasks(DataConfig(collection=args.data, max_test_instances=args.queries + max(NUMBERS)), "test")
    print("demonstrations  exact match  seconds  tokens   MiB  other order")
    for number in NUMBERS:
        scores, seconds, tokens, moved = [], [], [], []
        for task in tasks:
            more = [Demonstration(each.input, each.references[0]) for each in task.instances[args.queries :]]
            given = (*task.demonstrations[:2], *more)[:number]
            shown = replace(task, demonstrations=given, instances=())
            if args.no_definition:
                shown = replace(shown, definition="Do as the examples do.")
            groups = max(1, -(-number // size))
            start = time.perf_counter()
            adaptation = model.adapt(shown, demonstration_groups=groups, cuts=Cuts())
            seconds.append(time.perf_counter() - start)
            other = model.adapt(reordered(shown, size), demonstration_groups=groups, cuts=Cuts())
            tokens.append(0 if adaptation.memory is None else adaptation.memory.shape[1])
            own = torch.cat([each.flatten() for each in adaptation.blocks.values()])
            theirs = torch.cat([each.flatten() for each in other.blocks.values()])
            moved.append(float((own - theirs).norm() / own.norm()))
            asked = task.instances[: args.queries]
            answers = model.generate([each.input for each in asked], adaptation)
            scores += [exact_match(each, got.references) for each, got in zip(answers, asked, strict=True)]
        width = model.main.shape.d_model
        size_mib = mean(tokens) * width * 4 / 2**20
        print(
            f"{number:14} {100 * mean(scores):12.1f} {mean(seconds):8.3f} {mean(tokens):7.0f} {size_mib:5.2f} "
            f"{max(moved):12.1e}",
            flush=True,
        )


if __name__ == "__main__":
    main()
