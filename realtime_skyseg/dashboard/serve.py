"""The server of the page: what is at which address."""

import asyncio
from pathlib import Path

from fastapi import HTTPException, Request, WebSocket
from nicegui import app, background_tasks, ui

from realtime_skyseg.dashboard.finished import FinishedRun
from realtime_skyseg.dashboard.hub import Hub
from realtime_skyseg.dashboard.page import Page, frame_of_page
from realtime_skyseg.dashboard.pages import StartPage, TryPage, keep_file, runs_page
from realtime_skyseg.errors import SkysegError

_STATIC = Path(__file__).with_name("static")


def serve(hub: Hub, port: int = 8080, folder: Path = Path(), show: bool = False) -> None:
    """Serve the page to browsers of this computer, until it is interrupted.

    Args:
        hub: what is shown; belongs to the caller.
        port: of the page.
        folder: where finished runs are sought.
        show: open a browser.
    """
    app.add_static_files("/skyseg", str(_STATIC))
    app.on_startup(lambda: background_tasks.create(hub.watch(), name="skyseg status"))

    @app.websocket("/skyseg/frames")
    async def frames(socket: WebSocket, source: str = "live") -> None:
        await hub.send_frames(socket, source)

    @app.post("/skyseg/files")
    async def files(request: Request, name: str) -> dict[str, str]:
        # Pages of others cannot send this header, so that none of them writes to this computer.
        if request.headers.get("x-skyseg") != "1":
            raise HTTPException(403, "files come from this page only")
        try:
            return {"path": str((await keep_file(name, request.stream())).resolve())}
        except (ValueError, OSError) as error:
            raise HTTPException(400, str(error)) from None

    @ui.page("/")
    def live() -> None:
        if hub.feed is None:
            StartPage(hub).build()
        else:
            Page(hub, hub.feed, hub.add(hub.feed)).build("/")

    @ui.page("/start")
    def start() -> None:
        StartPage(hub).build()

    @ui.page("/runs")
    def runs() -> None:
        runs_page(hub, folder)

    @ui.page("/run")
    def run(path: str) -> None:
        try:
            finished = FinishedRun(path)
        except SkysegError as error:
            frame_of_page(hub, "/runs")
            ui.label(str(error)).classes("problem").props("role=alert")
            return
        name = hub.add(finished)
        ui.context.client.on_delete(lambda: hub.drop(name))
        Page(hub, finished, name).build("/runs")

    @ui.page("/try")
    async def trial() -> None:
        await asyncio.sleep(0)
        TryPage(hub).build()

    ui.run(
        host="127.0.0.1", port=port, title="skyseg", dark=True, reload=False, show=show, favicon="🧲",
        show_welcome_message=False,
    )  # fmt: skip
