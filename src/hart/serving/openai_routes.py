"""The routes compatible with OpenAI's interface: models, completions, chat completions."""

import time
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Query, Request, Response
from fastapi import Path as PathParameter

from hart.errors import HartError
from hart.serving import openai_schemas as schemas
from hart.serving.answering import STREAMS, check_queries, full_id, generate_all, options, resolve, unknown, within
from hart.serving.completions import ChatCompletion, Completion
from hart.serving.engine import Engine
from hart.serving.logprobs import spelled
from hart.serving.openai_replies import ChatOut, CompletionOut, ModelOut, ModelsOut
from hart.serving.refusals import OpenAIRoute, Refused
from hart.serving.running import Options
from hart.serving.schemas import ErrorOut
from hart.serving.settings import Settings
from hart.serving.store import Record
from hart.serving.streaming import Stream, start_stream

IGNORED = "X-Hart-Ignored"
"""Header of a reply that names the ignored fields of the request."""

_MOST_NAMES, _MOST_LETTERS = 32, 64
"""The most ignored fields that the header names, and the most characters of each name."""

MAX_NUMBERS = 16_384
"""The most log-probabilities of one reply."""

_INVALID: dict[int | str, dict[str, Any]] = {400: {"model": ErrorOut}}


def add_openai(app: APIRouter, engine: Engine, settings: Settings) -> None:
    routes = APIRouter(route_class=OpenAIRoute)
    _add_models(routes, engine)
    # The OpenAPI description then has the requests that this model accepts.
    conversing = engine.form.chat_template and not engine.form.in_context
    chat_form: Any = schemas.ConversationIn if conversing else schemas.ChatIn

    async def reply(
        request: Request,
        response: Response,
        body: schemas.CompletionIn | schemas.ChatIn,
        form: Completion | ChatCompletion,
    ) -> Any:
        start = time.monotonic()
        ignored = _ignored(body, settings)
        how = options(engine, body, body.new_tokens, logprobs=body.top)

        async def work() -> Any:
            queries = await _queries(engine, body, how)
            _check_numbers(len(queries) * body.n, how)
            adapted = await resolve(engine, None if body.model == schemas.BASE else body.model, "model")
            if body.stream:
                return start_stream(engine, queries[0], *adapted, how)
            answers = await generate_all(engine, queries, [adapted] * len(queries), how, body.n)
            if body.top is None:
                return form.whole(answers, [None] * len(answers), body.n)
            # One call per answer, so that texts of other requests are checked in between; JSON is written there, too.
            tokens = [await engine.checks.aside(spelled, engine.checks.tokenizer, each) for each in answers]
            written = await engine.checks.aside(lambda: form.whole(answers, tokens, body.n).model_dump_json())
            return Response(written, media_type="application/json")

        done = await within(request, settings.time_limit, work())
        if isinstance(done, Stream):
            done = done.reply(settings.time_limit, start, form.piece, form.end, form.begin())
        (done if isinstance(done, Response) else response).headers.update(ignored)
        return done

    @routes.post("/v1/completions", response_model=CompletionOut, responses=STREAMS | _INVALID)
    async def completions(request: Request, response: Response, body: schemas.CompletionIn) -> Any:
        """Complete prompts, compatible with OpenAI's completions.

        `model` is the id of an adaptation, or the name of the base as GET /v1/models lists it. A prompt is a query to
        the adapted model. Unsupported fields are named in the header X-Hart-Ignored, or refused by a strict server.
        """
        form = Completion(body.model, with_usage=body.stream_options.include_usage)
        return await reply(request, response, body, form)

    @routes.post("/v1/chat/completions", response_model=ChatOut, responses=STREAMS | _INVALID)
    async def chat(request: Request, response: Response, body: chat_form) -> Any:
        """Answer a user message, compatible with OpenAI's chat completions.

        `model` is the id of an adaptation, or the name of the base as GET /v1/models lists it. The message is a query
        to the adapted model; models with a chat template take whole conversations, too. Unsupported fields are named in
        the header X-Hart-Ignored, or refused by a strict server.
        """
        form = ChatCompletion(body.model, with_usage=body.stream_options.include_usage)
        return await reply(request, response, body, form)

    app.include_router(routes)


def _check_numbers(answers: int, how: Options) -> None:
    """Raise `HartError` if a reply would have more log-probabilities than can be written while other requests wait."""
    if how.logprobs is None:
        return
    numbers = answers * how.max_new_tokens * (how.logprobs + 1)
    if numbers > MAX_NUMBERS:
        raise HartError(
            f"logprobs: {answers} answers of {how.max_new_tokens} tokens with {how.logprobs} likeliest ones each are "
            f"{numbers} numbers, above {MAX_NUMBERS}; ask for fewer tokens, answers or likeliest ones"
        )


async def _queries(
    engine: Engine, body: schemas.CompletionIn | schemas.ChatIn, how: Options
) -> Sequence[str | list[int]]:
    """The queries of a request: texts, or the tokens of a conversation in the chat template.

    Raises:
        HartError: a query is too long, or the template refuses the conversation.
    """
    if isinstance(body, schemas.CompletionIn):
        await check_queries(engine, body.prompts, how, "prompt")
        return body.prompts
    turns = body.turns
    if len(turns) > 1:
        return [await engine.checks.aside(engine.checks.conversation, turns, "messages", how.max_new_tokens)]
    await check_queries(engine, [turns[0]["content"]], how, "messages.0.content")
    return [turns[0]["content"]]


def _ignored(body: schemas.CompletionIn | schemas.ChatIn, settings: Settings) -> dict[str, str]:
    """The header that names the ignored fields of a request; empty if there are none.

    Raises:
        Refused: there are some, and the server is strict.
    """
    # Clients choose these names: they are escaped to ASCII without commas and line breaks, shortened, and never empty,
    # as a header that ends in white space is invalid and would drop the connection.
    names = [quote(name[:_MOST_LETTERS], safe="", errors="replace") or '""' for name in schemas.unread(body)]
    if not names:
        return {}
    if settings.strict:
        told = f"{names[0]}: is not known here; leave it out, or serve without --strict"
        raise Refused(422, told, "invalid_request", names[0], "unknown_parameter")
    return {IGNORED: ", ".join(names[:_MOST_NAMES])}


def _add_models(app: APIRouter, engine: Engine) -> None:
    base = ModelOut(id=schemas.BASE, created=int(time.time()), owned_by=engine.model.main.name)

    @app.get("/v1/models", response_model=ModelsOut, responses=_INVALID)
    async def models(
        limit: Annotated[int, Query(ge=1, le=1000)] = 1000, offset: Annotated[int, Query(ge=0, le=10**9)] = 0
    ) -> Any:
        """List the values that `model` may have: the base, then the ids of stored adaptations.

        Adaptations are in order of their last use, the latest first; `limit` and `offset` count them.
        """
        records = await engine.records(limit, offset)
        return ModelsOut(data=[base, *map(_shown, records)])

    @app.get("/v1/models/{model}", response_model=ModelOut, responses=_INVALID | {404: {"model": ErrorOut}})
    async def model(model: Annotated[str, PathParameter(max_length=64)]) -> Any:
        """Return the base or one stored adaptation in the form of /v1/models."""
        if model == schemas.BASE:
            return base
        record = await engine.record(await full_id(engine, model, "model"))
        if record is None:
            raise unknown(model, "model")
        return _shown(record)


def _shown(record: Record) -> ModelOut:
    created = int(datetime.fromisoformat(record.created).timestamp())
    return ModelOut(id=record.id, created=created, owned_by=record.model)
