"""The page's server: Gradio, the frames of runs, files, and who may ask."""

from __future__ import annotations

import os
import secrets
import socket
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dg_mlx.errors import MissingPackageError, SettingsError

if TYPE_CHECKING:
    from fastapi import FastAPI

    from .desk import Desk

LOCAL = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where the page is served, and to whom."""

    host: str = "127.0.0.1"
    port: int = 7860
    password: str | None = None
    """Asked of everyone; needed unless `host` is this machine alone."""
    allowed_hosts: tuple[str, ...] = ()
    """More names by which the page may be asked for."""

    @property
    def local(self) -> bool:
        """Only this machine can reach it."""
        return self.host in LOCAL

    def check(self) -> None:
        """Raise `SettingsError` for what would let strangers in."""
        if not 0 <= self.port <= 65535:
            raise SettingsError(f"port {self.port} is not one; choose 1..65535.")
        if not self.local and not self.password:
            raise SettingsError(
                f"{self.host} can be reached from other machines; set a password with --password, "
                "or leave out --host."
            )


@contextmanager
def temporary_files() -> Iterator[Path]:
    """Where uploads are until they are kept; gone afterwards. Before gradio is imported."""
    with tempfile.TemporaryDirectory(prefix="dg-mlx-", ignore_cleanup_errors=True) as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        yield Path(folder)


def build(desk: Desk, address: Address) -> FastAPI:
    """The application: page, frames and files."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of libraries about libraries: no user could mend it
            import gradio as gr
        from fastapi import FastAPI
        from starlette.middleware.trustedhost import TrustedHostMiddleware
        from starlette.requests import HTTPConnection
        from starlette.routing import Mount
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f'the page needs {error.name}; run `pip install "dg-mlx[ui]"`.'
        ) from None
    from dg_mlx.serve.routes import router

    from . import uploads
    from .files import router as files
    from .view import THEME, Page

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    if address.local:  # else it is asked for by names that nobody knows here; a password guards it
        app.add_middleware(
            TrustedHostMiddleware, allowed_hosts=[*LOCAL, "[::1]", *address.allowed_hosts]
        )
    mounted: list[Any] = []

    def allowed(connection: HTTPConnection) -> bool:
        return address.password is None or _signed_in(connection, mounted[0])

    app.include_router(router(desk.runs, allowed))
    app.include_router(files(desk, allowed))
    page = Page(desk)
    gr.mount_gradio_app(
        app,
        page.blocks,
        path="/",
        auth=_judge(address.password) if address.password else None,
        auth_message="The password that dg-mlx ui was started with; any name.",
        allowed_paths=[str(desk.store.path)] if desk.store is not None else [],
        max_file_size=uploads.MOST_BYTES,
        show_error=True,
        ssr_mode=False,
        footer_links=[],
        theme=THEME,
    )
    mounted += [route.app for route in app.routes if isinstance(route, Mount)]
    return app


@contextmanager
def listening(address: Address) -> Iterator[socket.socket]:
    """The socket of an address. Raises `SettingsError` where it cannot be had."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        try:
            if sys.platform != "win32":
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((address.host, address.port))
            listener.listen(128)
        except OSError as error:
            raise SettingsError(
                f"{address.host}:{address.port} cannot be used ({error.strerror}); choose another "
                "with --port."
            ) from None
        yield listener


def url(listener: socket.socket) -> str:
    """Where a browser finds it."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def serve(app: FastAPI, listener: socket.socket) -> None:
    """Serve until interrupted."""
    import uvicorn

    config = uvicorn.Config(
        app, log_level="warning", ws_max_size=1 << 20, timeout_graceful_shutdown=3
    )
    uvicorn.Server(config).run(sockets=[listener])


def _judge(password: str) -> Callable[[str, str], bool]:
    def judge(name: str, given: str) -> bool:
        return secrets.compare_digest(given.encode(), password.encode())

    return judge


def _signed_in(connection: Any, page: Any) -> bool:
    names = (f"access-token-{page.cookie_id}", f"access-token-unsecure-{page.cookie_id}")
    return any(connection.cookies.get(name) in page.tokens for name in names)
