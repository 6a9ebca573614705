"""The addresses of the server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException

from ..errors import ModelError
from ..inference import Predictor
from ..inference.predictor import cosines
from . import schema
from .guard import Guard
from .questions import Question, read_question
from .request_error import RequestError
from .service import Service
from .settings import Settings

logger = logging.getLogger(__name__)
PAGE = Path(__file__).parent / "page"
FILES = {"/": "index.html", "/page.js": "page.js", "/page.css": "page.css", "/icon.svg": "icon.svg"}


def create_app(predictor: Predictor, settings: Settings | None = None, card: str = "") -> Guard:
    """Return the ASGI application of a student.

    Args:
        predictor: the student; it must take pictures.
        settings: limits.
        card: its model card.

    Raises:
        DataError: the student takes no pictures.
    """
    limits = Settings() if settings is None else settings
    service = Service(predictor, limits)
    app = FastAPI(
        title=f"moekd: {predictor.title}",
        version=version("moekd"),
        description="A distilled student. Errors are JSON: `error` with `code`, `message`, `expected` and `found`.",
        docs_url=None,
        redoc_url=None,
        lifespan=_lifespan(service),
    )
    guard = Guard(app, limits)
    _add_questions(app, service, limits)
    _add_facts(app, service, guard, _info(service, card))
    _add_page(app)
    app.add_exception_handler(RequestError, _refuse)
    app.add_exception_handler(ModelError, _model_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _internal_error)
    return guard


def _lifespan(service: Service) -> Any:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        warming = asyncio.create_task(service.start())
        warming.add_done_callback(_report)
        try:
            yield
        finally:
            await asyncio.wait([warming])
            await service.stop()

    return lifespan


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("the student could not be warmed up, so the server never gets ready", exc_info=error)


def _add_questions(app: FastAPI, service: Service, settings: Settings) -> None:
    async def asked(request: Request, *keys: str) -> Question:
        if not service.ready:
            raise RequestError(503, "not_ready", "the student is being warmed up, or the server stops", retry=1)
        return await read_question(request, keys, settings)

    @app.post("/predict", openapi_extra=schema.request_body("labels", "templates", "top"), responses=schema.FAILURES)
    async def predict(request: Request) -> schema.Predictions:
        """Classify pictures: with the student's own classes, or with any labels if it reads texts."""
        question = await asked(request, "pictures", "labels", "templates", "top")
        _demand(question.pictures, "pictures")
        labels = service.labels(question.labels, question.templates)
        seen = await service.see(question.pictures)
        vectors = await service.vectors(labels) if labels is not None and service.predictor.reads_texts else None
        names = service.predictor.class_names if labels is None else labels.names
        probabilities = service.predictor.probabilities(seen, labels, vectors)
        values, indices = probabilities.topk(min(question.top, len(names)), dim=1)
        rows = zip(question.pictures, values.tolist(), indices.tolist(), strict=True)
        return schema.Predictions(
            predictions=[
                schema.Classified(
                    picture=one.name,
                    classes=[schema.Label(label=names[c], probability=p) for c, p in zip(i, v, strict=True)],
                )
                for one, v, i in rows
            ]
        )

    @app.post("/embed", openapi_extra=schema.request_body("texts"), responses=schema.FAILURES)
    async def embed(request: Request) -> schema.Embedded:
        """Return the embeddings of pictures and texts, as the student gives them."""
        question = await asked(request, "pictures", "texts")
        _demand([*question.pictures, *question.texts], "pictures or texts")
        texts = (await service.read(question.texts)).tolist() if question.texts else None
        if not question.pictures:
            return schema.Embedded(texts=texts)
        seen = await service.see(question.pictures)
        return schema.Embedded(pictures=service.predictor.embeddings(seen).tolist(), texts=texts)

    @app.post("/search", openapi_extra=schema.request_body("texts", "top"), responses=schema.FAILURES)
    async def search(request: Request) -> schema.Matches:
        """Rank the pictures of the request by how well they fit each text."""
        question = await asked(request, "pictures", "texts", "top")
        _demand(question.pictures, "pictures")
        _demand(question.texts, "texts")
        text_TD = await service.read(question.texts)
        scores_TN = cosines(await service.see(question.pictures), text_TD).T
        values, indices = scores_TN.topk(min(question.top, len(question.pictures)), dim=1)
        matches = []
        for text, v, i in zip(question.texts, values.tolist(), indices.tolist(), strict=True):
            hits = [schema.Hit(index=n, picture=question.pictures[n].name, cosine=c) for n, c in zip(i, v, strict=True)]
            matches.append(schema.Found(text=text, pictures=hits))
        return schema.Matches(matches=matches)


def _add_facts(app: FastAPI, service: Service, guard: Guard, info: schema.Info) -> None:
    @app.get("/health", responses={503: {"model": schema.Health, "description": "Not ready."}})
    async def health() -> schema.Health:
        """Say whether the student is loaded and warm."""
        if service.ready:
            return schema.Health(status="ready")
        return JSONResponse({"status": "not ready"}, 503, {"Retry-After": "1"})  # type: ignore[return-value]

    @app.get("/info")
    async def told() -> schema.Info:
        """Say what the student is and takes, and what the server allows."""
        return info

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> str:
        """Return counters in the text format of Prometheus."""
        lines = ["# TYPE moekd_requests_total counter"]
        lines += [f'moekd_requests_total{{status="{status}"}} {n}' for status, n in sorted(guard.answers.items())]
        lines += ["# TYPE moekd_active_requests gauge", f"moekd_active_requests {guard.active}"]
        for what in ("batches", "inputs"):
            lines.append(f"# TYPE moekd_{what}_total counter")
            for tower, batcher in (("picture", service.looks), ("text", service.reads)):
                lines.append(f'moekd_{what}_total{{tower="{tower}"}} {getattr(batcher, what)}')
        return "\n".join(lines) + "\n"


def _add_page(app: FastAPI) -> None:
    for path, name in FILES.items():
        app.add_api_route(path, _file(PAGE / name), include_in_schema=False)


def _file(path: Path) -> Any:
    async def file() -> Response:
        return FileResponse(path)

    return file


def _demand(given: object, what: str) -> None:
    if not given:
        raise RequestError(422, "missing", f"{what} are missing", f"at least one of {what}", "none")


def _info(service: Service, card: str) -> schema.Info:
    predictor, field = service.predictor, service.predictor.field
    return schema.Info(
        title=predictor.title,
        version=version("moekd"),
        network=str(predictor.document["network"]["kind"]),
        parameters=sum(parameter.numel() for parameter in predictor.network.parameters()),
        classes=predictor.class_names,
        input={"modality": field["modality"], "shape": list(field["shape"])},
        reads_texts=predictor.reads_texts,
        classifies=predictor.classifies,
        embeds=predictor.embeds,
        templates=list(predictor.templates),
        limits={key: value for key, value in asdict(service.settings).items() if key != "device"},
        card=card,
    )


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return JSONResponse(error.body, error.status, dict(error.headers))


async def _model_error(request: Request, error: Exception) -> Response:
    """Answer a question that this student can't answer at all, such as a text without a text tower."""
    return await _refuse(request, RequestError(422, "student", str(error)))


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    answer = await _refuse(request, RequestError(error.status_code, "http", str(error.detail)))
    answer.headers.update(error.headers or {})
    return answer


async def _internal_error(request: Request, error: Exception) -> Response:
    """Say nothing of the cause; it is in the log of the server."""
    return await _refuse(request, RequestError(500, "internal", "the server failed; its log says why"))
