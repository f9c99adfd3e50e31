"""The HTTP application. A route checks its request, submits rows to the batcher and waits within the time limit."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

from hart.errors import HartError

try:
    import prometheus_client as _prometheus_client  # noqa: F401
    import uvicorn as _uvicorn  # noqa: F401
    from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
    from fastapi import Path as PathParameter
    from fastapi.middleware.cors import CORSMiddleware
    from fastapi.openapi.docs import get_swagger_ui_html
    from fastapi.responses import FileResponse
    from fastapi.security import HTTPBearer
    from fastapi_offline import FastAPIOffline
except ImportError as error:
    raise HartError(f"the server needs {error.name}: pip install 'hart-hypernet[serve]'") from None

from hart.model.hart_model import HartModel
from hart.serving import schemas
from hart.serving.access import AccessLog, exchange
from hart.serving.answer_routes import add_answers
from hart.serving.answering import full_id, unknown, within
from hart.serving.batching import Batcher
from hart.serving.download import bundle
from hart.serving.engine import Engine, StoreTrouble
from hart.serving.guard import PAGE_FILES, Guard
from hart.serving.health import add_health, add_metrics
from hart.serving.metrics import Metrics
from hart.serving.openai_routes import add_openai
from hart.serving.refusals import add_error_replies
from hart.serving.settings import Settings
from hart.serving.store import Record, Store

_PAGE = Path(__file__).parent / "page"
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_DOCS_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; frame-ancestors 'none'"
)
_VERSION = "1"
"""Version of the interface, as in its paths."""

_NOTE_USES_EVERY = 5.0
_WholeId = Annotated[str, PathParameter(pattern=r"^[0-9a-f]{64}$", min_length=64, max_length=64)]
_Id = Annotated[str, PathParameter(pattern=r"^[0-9a-f]{8,64}$", min_length=8, max_length=64)]


def create_app(model: HartModel, store: Store | None = None, settings: Settings | None = None) -> FastAPI:
    """Create an ASGI application that serves a model.

    Args:
        model: the model to serve, already on its device.
        store: storage of adaptations; None: the store in the cache folder.
        settings: batching, limits and token; None: the defaults.
    """
    settings = settings or Settings()
    metrics = Metrics(model.name, model.main.name)
    engine = Engine(model, store or Store(), metrics)
    engine.warm_up()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        engine.batcher = Batcher(engine.run, settings, metrics)
        noting = asyncio.create_task(_note_uses(engine))
        yield
        noting.cancel()
        await engine.close()

    app: FastAPI = FastAPIOffline(
        docs_url=None,
        title="hart",
        version=_VERSION,
        description="Adapt a frozen language model to a task by its definition and a few demonstrations, then ask it.",
        redoc_url=None,
        # Relative to the description, so that it is right behind a proxy and in an application that mounts this one.
        servers=[{"url": "."}],
        root_path_in_servers=False,
        lifespan=lifespan,
        responses={status: {"model": schemas.ErrorOut} for status in (401, 403, 408, 413, 422, 429, 503, 504, 507)},
    )
    app.state.engine = engine
    # The last one added is the outermost.
    app.add_middleware(Guard, settings=settings, metrics=metrics)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "HEAD", "POST", "DELETE"],
            allow_headers=["*"],  # clients send headers of their own, such as the openai one's x-stainless-…
            expose_headers=["Retry-After", "X-Hart-Ignored", "X-Request-Id"],
        )
    app.add_middleware(AccessLog)
    add_error_replies(app)
    _add_page(app)
    add_health(app.router, engine)
    # The guard checks the token; this declares it in the description, so that /docs has its button Authorize.
    scheme = HTTPBearer(auto_error=False, description="The server's token; one that has none takes any.")
    guarded = APIRouter(dependencies=[Depends(scheme)])
    add_metrics(guarded, engine, metrics)
    _add_adaptations(guarded, engine, settings)
    add_answers(guarded, engine, settings)
    add_openai(guarded, engine, settings)
    app.include_router(guarded)
    return app


async def _note_uses(engine: Engine) -> None:
    while True:
        await asyncio.sleep(_NOTE_USES_EVERY)
        with suppress(StoreTrouble):
            await engine.note_uses()


def _add_page(app: FastAPI) -> None:
    def serve(path: str, name: str, media: str) -> None:
        @app.get(path, include_in_schema=False)
        async def page() -> Response:
            return FileResponse(_PAGE / name, media_type=media, headers={"Content-Security-Policy": _PAGE_POLICY})

    for path, (name, media) in PAGE_FILES.items():
        serve(path, name, media)

    @app.get("/docs", include_in_schema=False)
    async def described() -> Response:
        # Addresses are relative, so that the page works under any prefix.
        reply = get_swagger_ui_html(
            openapi_url="openapi.json",
            title="hart",
            swagger_js_url="static-offline-docs/swagger-ui-bundle.js",
            swagger_css_url="static-offline-docs/swagger-ui.css",
            swagger_favicon_url="static-offline-docs/favicon.png",
        )
        reply.headers["Content-Security-Policy"] = _DOCS_POLICY
        return reply


def _add_adaptations(app: APIRouter, engine: Engine, settings: Settings) -> None:
    missing: dict[int | str, dict[str, Any]] = {404: {"model": schemas.ErrorOut}}
    created: dict[int | str, dict[str, Any]] = {201: {"model": schemas.AdaptOut}}

    @app.post("/v1/adaptations", response_model=schemas.AdaptOut, responses=created)
    async def adapt(request: Request, response: Response, body: schemas.TaskIn) -> Any:
        """Adapt the model to a task in one forward pass, and store the adaptation under an id.

        Other routes take the id as `adaptation`. The same task always has the same id: the status is 201 for a new
        adaptation, and 200 (with `new` false) for one that exists already, which is not generated again.
        """

        async def work() -> Any:
            task = body.to_task()
            read = await engine.checks.aside(engine.checks.task, task)
            adapted = await engine.adapt(task, keep=True)
            assert adapted.record is not None
            exchange().note(adapted.id)
            response.status_code = 201 if adapted.new else 200
            lacks = engine.form.never_seen(task)
            return schemas.AdaptOut(
                **_shown(adapted.record), new=adapted.new, demonstrations_read=read, never_seen=lacks
            )

        return await within(request, settings.time_limit, work())

    @app.get("/v1/adaptations", response_model=schemas.AdaptationsOut)
    async def adaptations(
        limit: Annotated[int, Query(ge=1, le=1000)] = 100, offset: Annotated[int, Query(ge=0, le=10**9)] = 0
    ) -> Any:
        """List the stored adaptations of this model, the most recently used first, in pages of `limit`."""
        records = await engine.records(limit, offset)
        return {"adaptations": [_shown(record) for record in records]}

    @app.get("/v1/adaptations/{id}", response_model=schemas.AdaptationOut, responses=missing)
    async def adaptation(id: _Id) -> Any:
        """Return one stored adaptation: its task, model, size in bytes and number of uses.

        The id may be shortened to its first 8 digits or more, if no other id begins with them.
        """
        record = await engine.record(await full_id(engine, id, "id"))
        if record is None:
            raise unknown(id)
        return _shown(record)

    @app.get(
        "/v1/adaptations/{id}/download",
        response_class=Response,
        responses={**missing, 200: {"content": {"application/zip": {}}}},
    )
    async def download(id: _Id) -> Response:
        """Download an adaptation as a zip file. Unpacked, it is a folder that `hart predict` and `hart export` read.

        The id may be shortened to its first 8 digits or more, if no other id begins with them.
        """
        whole = await full_id(engine, id, "id")
        found = await engine.find(whole)
        if found is None:
            raise unknown(id)
        packed = await asyncio.to_thread(bundle, found)
        name = {"Content-Disposition": f'attachment; filename="adaptation-{whole[:12]}.zip"'}
        return Response(packed, media_type="application/zip", headers=name)

    @app.delete("/v1/adaptations/{id}", status_code=204, response_class=Response, responses=missing)
    async def delete(id: _WholeId) -> Response:
        """Delete an adaptation from the store. This needs the whole id, all 64 digits."""
        if not await engine.forget(id):
            raise unknown(id)
        exchange().note(id)
        return Response(status_code=204)


def _shown(record: Record) -> dict[str, Any]:
    names = ("id", "task", "model", "base", "created", "seconds", "bytes", "uses")
    return {name: getattr(record, name) for name in names}
