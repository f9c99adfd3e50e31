"""From the `data` section of a configuration to lists of tasks."""

from hart.data.config import DataConfig
from hart.data.p3.subsets import DEFAULT_HUB_NAME as DEFAULT_P3
from hart.data.p3.subsets import load_p3
from hart.data.procedural import load_procedural
from hart.data.super_natural_instructions import DEFAULT_HUB_NAME, load_sni
from hart.data.tasks import Task

# The procedural collection is generated, so its instances have no natural end.
PROCEDURAL_INSTANCES = 100


def load_tasks(data: DataConfig, split: str) -> list[Task]:
    """The tasks of `split` ("train", "validation" or "test") under the caps of `data`.

    Validation tasks never occur in training. Of S-NI, `data.validation_tasks` training tasks are set aside, of P3 so
    many data sets; the
    procedural collection has a validation split of its own, of which the first `data.validation_tasks` (all: 0) of
    an even spread over the selectors are taken.

    Raises:
        HartError: missing or malformed files, as the loaders say.
    """
    training = split in ("train", "validation")
    cap = data.max_train_instances if training else data.max_test_instances
    if data.collection == "procedural":
        tasks = load_procedural(split, max_instances=cap or PROCEDURAL_INSTANCES)
        wanted = data.validation_tasks
        if split == "validation" and 0 < wanted < len(tasks):
            tasks = [tasks[i * len(tasks) // wanted] for i in range(wanted)]
        return tasks
    if data.collection == "p3":
        return load_p3(
            data.dir,
            split,
            subsets=data.test_subsets if split == "test" else data.train_subsets,
            num_demonstrations=data.num_demonstrations,
            max_instances=cap,
            seed=data.seed,
            validation_tasks=data.validation_tasks,
            hub_name=data.hub_name or DEFAULT_P3,
        )
    return load_sni(
        data.dir,
        split,
        max_instances=cap,
        seed=data.seed,
        validation_tasks=data.validation_tasks,
        hub_name=data.hub_name or DEFAULT_HUB_NAME,
    )
