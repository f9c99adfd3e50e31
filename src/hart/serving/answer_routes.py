"""The routes with reply formats of our own: generate, classify, score."""

import time
from typing import Any

from fastapi import APIRouter, Request

from hart.serving import schemas
from hart.serving.answering import (
    STREAMS,
    check_choices,
    check_queries,
    generate_all,
    options,
    resolve,
    resolve_each,
    results,
    within,
)
from hart.serving.batching import Job
from hart.serving.engine import Engine
from hart.serving.running import Query
from hart.serving.settings import Settings
from hart.serving.streaming import Stream, start_stream


def add_answers(app: APIRouter, engine: Engine, settings: Settings) -> None:
    missing: dict[int | str, dict[str, Any]] = {404: {"model": schemas.ErrorOut}}

    @app.post("/v1/generate", response_model=schemas.GenerateOut, responses=STREAMS)
    async def generate(request: Request, body: schemas.GenerateIn) -> Any:
        """Generate an answer to each input with the adapted model.

        `adaptation` is one id or task for all inputs, or a list with one for each; without it the un-adapted base
        answers. With `stream`, the answer to a single input arrives as server-sent events.
        """
        start = time.monotonic()
        how = options(engine, body, body.max_new_tokens, num_beams=body.num_beams)

        async def work() -> Any:
            far = await check_queries(engine, body.inputs, how)
            adapted = await resolve_each(engine, body.adaptation, len(body.inputs))
            if body.stream:
                return start_stream(engine, body.inputs[0], *adapted[0], how)
            answers = await generate_all(engine, body.inputs, adapted, how)
            outputs = [answer.text for answer in answers]
            return schemas.GenerateOut(outputs=outputs, seconds=time.monotonic() - start, far=far)

        done = await within(request, settings.time_limit, work())
        if not isinstance(done, Stream):
            return done
        return done.reply(
            settings.time_limit, start, lambda piece: {"text": piece}, lambda answer: [{"output": answer.text}]
        )

    @app.post("/v1/classify", response_model=schemas.ClassifyOut, responses=missing)
    async def classify(request: Request, body: schemas.ClassifyIn) -> Any:
        """Find the most probable of the given choices for each input, with the probability of every choice.

        `choices` is one list for all inputs, or a list per input. `adaptation` is as in /v1/generate.
        """
        start = time.monotonic()

        async def work() -> Any:
            choices, far = await check_choices(engine, body)
            adapted = await resolve_each(engine, body.adaptation, len(body.inputs))
            jobs = [
                Job(
                    "classify",
                    (adaptation is not None, body.normalisation, body.calibrate),
                    Query(text, adaptation, choices=own),
                    task=id,
                    weight=len(own),
                )
                for text, own, (id, adaptation) in zip(body.inputs, choices, adapted, strict=True)
            ]
            found = [schemas.ClassificationOut(**vars(each)) for each in await results(engine, jobs)]
            return schemas.ClassifyOut(classifications=found, seconds=time.monotonic() - start, far=far)

        return await within(request, settings.time_limit, work())

    @app.post("/v1/score", response_model=schemas.ScoreOut, responses=missing)
    async def score(request: Request, body: schemas.ScoreIn) -> Any:
        """Return the log-probability, in nats, of each choice as the answer to one input."""

        def check() -> None:
            longest = max(engine.checks.choice(text, f"choices.{number}") for number, text in enumerate(body.choices))
            engine.checks.query(body.input, "input", longest)

        async def work() -> Any:
            await engine.checks.aside(check)
            id, adaptation = await resolve(engine, body.adaptation, "adaptation")
            row = Query(body.input, adaptation, choices=body.choices)
            key = (adaptation is not None, body.normalisation)
            (scores,) = await results(engine, [Job("score", key, row, task=id, weight=len(body.choices))])
            return schemas.ScoreOut(scores=scores, best=max(range(len(scores)), key=scores.__getitem__))

        return await within(request, settings.time_limit, work())
