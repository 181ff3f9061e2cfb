"""The web application of `textrl collect`: pages, API and error responses for one label store."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from fastapi.templating import Jinja2Templates
from sqlalchemy.exc import SQLAlchemyError

import textrl
from textrl.feedback import labeler_api, lead_api
from textrl.feedback.security import HEADERS, Gate, SecurityHeaders
from textrl.labels.answers import InvalidAnswerError
from textrl.labels.reports import Reports
from textrl.labels.store import RefusedError, Store

MAX_BODY = 1_000_000
"""Maximum number of bytes of a request."""
HERE = Path(__file__).parent


def create_app(store: Store, trouble: Callable[[], str] = lambda: "") -> FastAPI:
    """Return the application, without FastAPI's documentation pages, which load from a CDN.

    Args:
        store: The label database.
        trouble: A function that returns a message about the server for the lead, or "".
    """
    app = FastAPI(
        title="textrl collect",
        version=textrl.__version__,
        docs_url=None,
        redoc_url=None,
        max_body_size=MAX_BODY,
    )
    app.state.trouble = trouble
    app.state.store, app.state.gate, app.state.reports = store, Gate(store), Reports(store)
    app.add_middleware(SecurityHeaders)
    app.include_router(labeler_api.router)
    app.include_router(lead_api.router)
    app.mount("/static", StaticFiles(directory=HERE / "static"), name="static")
    templates = Jinja2Templates(directory=HERE / "templates")

    @app.get("/", include_in_schema=False)
    def labeler_page(request: Request) -> HTMLResponse:
        return templates.TemplateResponse(request, "labeler.html")

    @app.get("/lead", include_in_schema=False)
    def lead_page(request: Request) -> HTMLResponse:
        return templates.TemplateResponse(request, "lead.html")

    app.add_exception_handler(RefusedError, _refused)
    app.add_exception_handler(InvalidAnswerError, _invalid)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(SQLAlchemyError, _database_failed)
    app.add_exception_handler(Exception, _broken)
    return app


def _refused(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, status_code=409)


def _invalid(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, status_code=422)


def _malformed(request: Request, error: Exception) -> JSONResponse:
    """Name the field and the error, but not the value, which may be large or not a text."""
    assert isinstance(error, RequestValidationError)
    faults: list[Any] = [{"loc": e["loc"], "msg": e["msg"]} for e in error.errors()]
    text = "; ".join(f"{'.'.join(map(str, f['loc']))}: {f['msg']}" for f in faults[:10])
    printable = text.encode(errors="replace").decode()
    return JSONResponse(jsonable_encoder({"detail": printable}), status_code=422)


def _database_failed(request: Request, error: Exception) -> JSONResponse:
    """Report that nothing was stored (a full disk, a lost database); the page tries again."""
    detail = "not stored: the database did not answer"
    return JSONResponse({"detail": detail}, status_code=503, headers={"Retry-After": "5"})


def _broken(request: Request, error: Exception) -> JSONResponse:
    """Report an error of the server; this runs outside the middleware, so it adds the headers."""
    return JSONResponse({"detail": "a fault in the server"}, status_code=500, headers=HEADERS)
