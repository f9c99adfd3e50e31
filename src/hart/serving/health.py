"""The routes for monitoring: liveness, readiness, health with the state of the store, and counters."""

import math
from contextlib import suppress
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from hart.serving import schemas
from hart.serving.engine import Engine, StoreTrouble
from hart.serving.metrics import Metrics

_DOWN: dict[int | str, dict[str, Any]] = {503: {"model": schemas.ErrorOut}}


def add_health(app: APIRouter, engine: Engine) -> None:
    @app.get("/livez", response_model=schemas.State, responses=_DOWN)
    async def live() -> Any:
        """Liveness: 200 while the server works, 503 when only a restart helps."""
        engine.check_running()
        return schemas.State()

    @app.get("/readyz", response_model=schemas.State, responses=_DOWN)
    async def ready() -> Any:
        """Readiness: 200 if the server accepts requests now, 503 while its queue is full or it is shutting down."""
        engine.check_ready()
        return schemas.State()

    @app.get("/health", response_model=schemas.Health, responses={503: {"model": schemas.Trouble}})
    async def health() -> Any:
        """Report the model and whether requests are answered and adaptations stored; 503 if one of the two fails.

        With the status "degraded" the store cannot be used, and tasks that are given in full are still answered.
        """
        engine.check_running()
        state = schemas.Health(
            status="ok" if await engine.store_works() else "degraded",
            model=engine.model.name,
            base=engine.model.main.name,
            reads_definition=engine.form.prompt_format == "instructions",
        )
        if state.status == "ok":
            return state
        told = schemas.ErrorBody(
            message="the store cannot be used, the server's log says why; tasks given in full are answered",
            type="storage",
        )
        return JSONResponse(schemas.Trouble(**state.model_dump(), error=told).model_dump(), status_code=503)


def add_metrics(app: APIRouter, engine: Engine, metrics: Metrics) -> None:
    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def prometheus() -> Response:
        """Return counters in the text format of Prometheus."""
        count = size = math.nan  # a store that cannot be read hides no other number
        with suppress(StoreTrouble):
            count, size = await engine.totals()
        metrics.stored.set(count)
        metrics.stored_bytes.set(size)
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")
