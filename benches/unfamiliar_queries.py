"""ROC numbers of two signals that distinguish queries like those in `mini`'s training from ordinary English.

In-domain queries are those of the 28 unseen procedural tasks, out-of-domain queries the inputs of
Super-NaturalInstructions tasks, which should be reported. The signals are the share of a query's tokens that are in no
training query of the collection, and the mean log-probability of the tokens of the (greedy) answer.

python benches/unfamiliar_queries.py mini --data-dir natural-instructions --queries 10
"""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hart import HartModel, Task
from hart.data.procedural import load_procedural
from hart.model.familiarity import unseen_share


def share(model: HartModel, query: str) -> float:
    """Share of the query's tokens that are in no training query of a bundled model."""
    found = unseen_share(model.name, model.input_format.encode_query(model.main.tokenizer, query))
    assert found is not None
    return found


def surprise(model: HartModel, task: Task, queries: list[str]) -> list[float]:
    """The negative mean log-probability of the tokens of each answer."""
    adaptation = model.adapt(task)
    return [
        -model.score(query, [answer], adaptation, normalisation="mean")[0] if answer.strip() else 0.0
        for query, answer in zip(queries, model.generate(queries, adaptation), strict=True)
    ]


def roc(inside: NDArray[np.float64], outside: NDArray[np.float64]) -> str:
    """Area under the ROC curve, and the true alarms at the lowest threshold with at most 2 % false alarms."""
    area = (outside[:, None] > inside).mean() + 0.5 * (outside[:, None] == inside).mean()
    threshold = np.sort(inside)[int(np.ceil(0.98 * len(inside))) - 1]
    false, alarms = (inside > threshold).mean(), (outside > threshold).mean()
    ends = ", ".join(f"{np.quantile(values, q):.3f}" for values in (inside, outside) for q in (0.05, 0.5, 0.95))
    return (
        f"area {area:.4f}; above {threshold:.3f}: alarms {100 * alarms:.1f} %, false ones {100 * false:.1f} %; "
        f"5, 50, 95 % of in-domain and of other queries {ends}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data-dir", type=Path, required=True, help="clone of allenai/natural-instructions")
    parser.add_argument("--queries", type=int, default=10, help="of each task")
    arguments = parser.parse_args()
    model = HartModel.from_pretrained(arguments.model)
    tasks = load_procedural("test", max_instances=arguments.queries)
    others = [Task.from_file(path) for path in sorted((arguments.data_dir / "tasks").glob("*.json"))]
    found = [
        [each.input for each in task.instances[: arguments.queries] if each.input.strip()]
        for task in others[: 4 * len(tasks)]
    ]
    inside = [[each.input for each in task.instances] for task in tasks]
    print(f"{sum(map(len, inside))} queries in domain, {sum(map(len, found))} others")
    shares = [np.array([share(model, query) for queries in some for query in queries]) for some in (inside, found)]
    print(f"share of unseen tokens: {roc(*shares)}")
    for at in (0.05, 0.1, 0.2, 0.3, 0.5):
        false, alarms = (100 * (values > at).mean() for values in shares)
        print(f"  share above {at}: {alarms:.1f} %, in domain {false:.1f} %")
    # The out-of-domain queries are answered with the adaptations of the procedural tasks in turn.
    own = [value for task, queries in zip(tasks, inside, strict=True) for value in surprise(model, task, queries)]
    asked = [value for i, queries in enumerate(found) for value in surprise(model, tasks[i % len(tasks)], queries[:3])]
    print(f"minus mean log-probability of the answer: {roc(np.array(own), np.array(asked))}")


if __name__ == "__main__":
    main()
