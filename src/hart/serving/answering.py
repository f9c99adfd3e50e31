"""The common steps of answering routes: from a request to rows, and to a reply within the time limit."""

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any

from fastapi import Request, Response

from hart.model.adaptation import Adaptation
from hart.model.answering import Answer
from hart.serving import schemas
from hart.serving.access import exchange
from hart.serving.batching import Job
from hart.serving.engine import Engine
from hart.serving.refusals import Refused
from hart.serving.running import Options, Query

Resolved = tuple[str | None, Adaptation | None]
"""An adaptation's id and the adaptation; both None for the bare base."""

STREAMS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
    404: {"model": schemas.ErrorOut},
}


async def resolve(engine: Engine, given: str | schemas.TaskIn | None, where: str) -> Resolved:
    """Id and adaptation for an id or a task; both None for the bare base."""
    if given is None:
        return None, None
    if isinstance(given, str):
        id = await full_id(engine, given, where)
        found = await engine.find(id)
        if found is None:
            raise unknown(given, where)
        return id, found
    task = given.to_task()
    await engine.checks.aside(engine.checks.task, task)
    adapted = await engine.adapt(task)
    exchange().note(adapted.id)
    return adapted.id, adapted.adaptation


async def full_id(engine: Engine, given: str, where: str) -> str:
    """The only id that begins with `given`, or `given` itself if no id does.

    Raises:
        Refused: several ids begin with it.
    """
    found = await engine.ids(given)
    if len(found) > 1:
        told = f"{where}: several adaptations have ids that begin with {given}; give more of its digits"
        raise Refused(422, told, "invalid_request", where)
    if not found:
        return given
    exchange().note(found[0])
    return found[0]


def options(engine: Engine, body: schemas.Sampling, max_new_tokens: int | None, **more: Any) -> Options:
    return Options(
        max_new_tokens or engine.form.max_target_length,
        temperature=body.temperature,
        top_p=body.top_p if body.temperature > 0 else 1.0,
        stop=body.stops,
        seed=body.seed if body.temperature > 0 else None,
        **more,
    )


async def check_queries(engine: Engine, texts: Sequence[str], how: Options, where: str | None = None) -> list[int]:
    """Check queries; returns the indices of those far from a bundled model's training data."""

    def check() -> list[int]:
        for number, text in enumerate(texts):
            engine.checks.query(text, where or f"inputs.{number}", how.max_new_tokens)
        return engine.checks.far(texts)

    return await engine.checks.aside(check)


async def check_choices(engine: Engine, body: schemas.ClassifyIn) -> tuple[list[list[str]], list[int]]:
    """Check the inputs and choices of a request.

    Returns:
        The stripped choices of each input, and the indices of the inputs far from a bundled model's training data.
    """

    def check() -> tuple[list[list[str]], list[int]]:
        known: dict[tuple[str, ...], tuple[list[str], int]] = {}
        for number, (text, given) in enumerate(zip(body.inputs, body.choices_of_each, strict=True)):
            if tuple(given) not in known:
                where = f"choices.{number}" if isinstance(body.choices[0], list) else "choices"
                known[tuple(given)] = engine.checks.classes(given, where)
            engine.checks.query(text, f"inputs.{number}", known[tuple(given)][1])
        return [known[tuple(given)][0] for given in body.choices_of_each], engine.checks.far(body.inputs)

    return await engine.checks.aside(check)


async def resolve_each(engine: Engine, given: Any, count: int) -> list[Resolved]:
    """Id and adaptation for each of `count` inputs; one is given for all inputs, or one for each."""
    # In parallel, so that new tasks share a pass of the hypernetwork.
    each = given if isinstance(given, list) else [given]
    ids = list(dict.fromkeys(one for one in each if isinstance(one, str)))
    found = dict(zip(ids, await asyncio.gather(*(resolve(engine, id, "adaptation") for id in ids)), strict=True))
    new = iter(await asyncio.gather(*(resolve(engine, one, "adaptation") for one in each if not isinstance(one, str))))
    adapted = [found[one] if isinstance(one, str) else next(new) for one in each]
    return adapted * count if len(adapted) == 1 else adapted


async def generate_all(
    engine: Engine, texts: Sequence[str | list[int]], adapted: Sequence[Resolved], how: Options, n: int = 1
) -> list[Answer]:
    """The answers to all queries; the n answers to one query are adjacent."""
    jobs = [
        # A row with a seed has its own batch, because samples depend on the other rows.
        Job("generate", (adaptation is not None, own), Query(text, adaptation), task=id, alone=own.seed is not None)
        for text, (id, adaptation) in zip(texts, adapted, strict=True)
        for own in map(how.of_sample, range(n))
    ]
    answers: list[Answer] = await results(engine, jobs)
    engine.count(answers)
    return answers


async def results(engine: Engine, jobs: Sequence[Job]) -> list[Any]:
    """The results of the jobs, which are abandoned if the caller is cancelled."""
    engine.submit(jobs)
    try:
        return list(await asyncio.gather(*(job.result for job in jobs)))
    finally:
        for job in jobs:  # no effect on finished jobs
            job.abandon()


async def within(request: Request, limit: float, work: Awaitable[Any]) -> Any:
    """The result of `work`, which is cancelled if it exceeds the time limit or the client leaves."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({task, gone}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone.done():
            return Response(status_code=499)  # the client has left
        raise Refused(504, f"no answer within {limit:g} s", "timeout")
    finally:
        task.cancel()
        gone.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def unknown(id: str, param: str = "id") -> Refused:
    told = f"no adaptation {id} of this model here; post its task to /v1/adaptations"
    return Refused(404, told, "not_found", param, "model_not_found" if param == "model" else None)
