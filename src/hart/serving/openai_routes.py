"""The routes in the form of OpenAI's interface: models, completions, chat completions."""

import time
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi import Path as PathParameter

from hart.serving import openai_schemas as schemas
from hart.serving.answering import STREAMS, check_queries, full_id, generate_all, options, resolve, unknown, within
from hart.serving.completions import ChatCompletion, Completion
from hart.serving.engine import Engine
from hart.serving.schemas import ErrorOut
from hart.serving.settings import Settings
from hart.serving.store import Record
from hart.serving.streaming import Stream, start_stream


def add_openai(app: APIRouter, engine: Engine, settings: Settings) -> None:
    _add_models(app, engine)

    async def reply(
        request: Request,
        body: schemas.CompletionIn | schemas.ChatIn,
        texts: Sequence[str],
        where: str,
        form: Completion | ChatCompletion,
    ) -> Any:
        how = options(engine, body, body.new_tokens)

        async def work() -> Any:
            await check_queries(engine, texts, how, where)
            adapted = await resolve(engine, None if body.model == schemas.BASE else body.model, "model")
            if body.stream:
                return start_stream(engine, texts[0], *adapted, how)
            return form.whole(await generate_all(engine, texts, [adapted] * len(texts), how))

        done = await within(request, settings.time_limit, work())
        if not isinstance(done, Stream):
            return done
        return done.reply(settings.time_limit, form.piece, form.end, form.begin())

    @app.post("/v1/completions", response_model=schemas.CompletionOut, responses=STREAMS)
    async def completions(request: Request, body: schemas.CompletionIn) -> Any:
        """Answers in the form of OpenAI's completions; `model` is the id of an adaptation, or the base."""
        prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
        form = Completion(body.model, with_usage=body.stream_options.include_usage)
        return await reply(request, body, prompts, "prompt", form)

    @app.post("/v1/chat/completions", response_model=schemas.ChatOut, responses=STREAMS)
    async def chat(request: Request, body: schemas.ChatIn) -> Any:
        """An answer in the form of OpenAI's chat completions, to the one message that a user sends as a query."""
        form = ChatCompletion(body.model, with_usage=body.stream_options.include_usage)
        return await reply(request, body, [body.query], "messages.0.content", form)


def _add_models(app: APIRouter, engine: Engine) -> None:
    base = schemas.ModelOut(id=schemas.BASE, created=int(time.time()), owned_by=engine.model.main.name)

    @app.get("/v1/models", response_model=schemas.ModelsOut)
    async def models(
        limit: Annotated[int, Query(ge=1, le=1000)] = 1000, offset: Annotated[int, Query(ge=0, le=10**9)] = 0
    ) -> Any:
        """What `model` may name: the base, and what this model has adapted to, the last used first."""
        records = await engine.records(limit, offset)
        return schemas.ModelsOut(data=[base, *map(_shown, records)])

    @app.get("/v1/models/{model}", response_model=schemas.ModelOut, responses={404: {"model": ErrorOut}})
    async def model(model: Annotated[str, PathParameter(max_length=64)]) -> Any:
        """One of them."""
        if model == schemas.BASE:
            return base
        record = await engine.record(await full_id(engine, model, "model"))
        if record is None:
            raise unknown(model, "model")
        return _shown(record)


def _shown(record: Record) -> schemas.ModelOut:
    created = int(datetime.fromisoformat(record.created).timestamp())
    return schemas.ModelOut(id=record.id, created=created, owned_by=record.model)
