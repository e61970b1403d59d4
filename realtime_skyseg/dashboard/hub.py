"""What all viewers of a page share: the run that is followed, its control socket, and where frames come from."""

import asyncio
import contextlib
import itertools
import json
import os
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fastapi import WebSocket, WebSocketDisconnect

from realtime_skyseg.config import DEFAULT_CONTROL_ADDRESS
from realtime_skyseg.dashboard.feed import Feed
from realtime_skyseg.dashboard.finished import FinishedRun
from realtime_skyseg.dashboard.frames import pack
from realtime_skyseg.dashboard.trial import Trial
from realtime_skyseg.errors import ControlError, SkysegError
from realtime_skyseg.streaming import Control

#: What a page can show.
Source = Feed | FinishedRun | Trial

#: Frames that may be on their way to a browser; more would only be late.
_ON_THE_WAY = 2

#: Frames a second that the service is asked for, the most first; what a browser draws is looked at so often.
_RATES_HZ, _LOOK_S = (16, 10, 5, 3), 2.0

#: The service is asked for its state so often, and given so long for an answer.
_STATUS_S, _ANSWER_S = 1.0, 5.0


class Hub:
    """Belongs to the command that serves the page, which closes it.

    Args:
        feed: the run that is followed, started; None: none yet.
        control: address of the control socket, if the page may ask for something; "": the one that the run tells;
            None: the page may only look.
        keys: folder of keys for both.

    Attributes:
        status, programme: what the service has told last; empty: nothing.
    """

    def __init__(self, feed: Feed | None, control: str | None = None, keys: Path | None = None) -> None:
        self.feed = feed
        self.may_control = control is not None
        self._control, self._keys = control or "", keys
        self._sources: dict[str, Source] = {}
        self._numbers = itertools.count(1)
        self.status: dict[str, Any] = {}
        self.programme: dict[str, Any] = {}

    def add(self, source: Source) -> str:
        """A source that pages may show; its name."""
        name = "live" if source is self.feed else f"source-{next(self._numbers)}"
        self._sources[name] = source
        return name

    def drop(self, name: str) -> None:
        """A source that is not shown any more is closed."""
        if (source := self._sources.pop(name, None)) is not None:
            source.close()

    def follow(self, address: str) -> None:
        """Follow the run there from now on, in place of another one."""
        before, self.feed = self.feed, Feed(address, self._keys)
        self.feed.start()
        self._sources["live"] = self.feed
        self.status, self.programme, self._control = {}, {}, ""
        if before:
            before.close()

    def close(self) -> None:
        """Close what is shown."""
        for name in list(self._sources):
            self.drop(name)
        if self.feed:
            self.feed.close()

    # --- the control socket ---

    @property
    def _address(self) -> str:
        return self._control or (self.feed.control_address if self.feed else "") or (
            DEFAULT_CONTROL_ADDRESS if self.may_control else "")  # fmt: skip

    async def ask(self, do: str, **values: object) -> dict[str, Any]:
        """Ask the service something, in another thread: the page never waits. Raises `ControlError`."""
        address = self._address
        if not address:
            raise ControlError(f"{do}: the service has no control socket; allowed: with control.enabled")

        def ask() -> dict[str, Any]:
            with Control(address, _ANSWER_S, self._keys) as control:
                return control.ask(do, **values)

        return await asyncio.to_thread(ask)

    async def watch(self) -> None:
        """Keep `status` and `programme` up to date, for ever."""
        while True:
            with contextlib.suppress(ControlError, SkysegError, OSError):
                if self.feed and self.feed.about and self.feed.ended is None and self._address:
                    self.status = (await self.ask("status")).get("status", {})
                    if self.status.get("experiment"):
                        self.programme = (await self.ask("programme")).get("programme", {})
            await asyncio.sleep(_STATUS_S)

    # --- frames ---

    async def send_frames(self, browser: WebSocket, name: str) -> None:
        """The newest frame of a source, whenever the browser has drawn those before, until it leaves."""
        origin = browser.headers.get("origin")
        if origin and urlsplit(origin).netloc != browser.headers.get("host"):
            await browser.close(4403, "frames go to this page only")  # not to other sites that are open in the browser
            return
        await browser.accept()
        source = self._sources.get(name)
        if source is None:
            await browser.close(4404, "there is no such source")
            return
        await _Sender(browser, source).run()


def is_free(address: str) -> bool:
    """Whether nobody listens there on this computer."""
    with socket.socket() as one:
        if os.name == "posix":  # else a port counts as taken for a minute after its server has left
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("127.0.0.1", int(address.rsplit(":", 1)[1])))
        except OSError:
            return False
        return True


class _Sender:
    def __init__(self, browser: WebSocket, source: Source) -> None:
        self._browser, self._source = browser, source
        self._another = asyncio.Event()
        self._drawn = self._sent = self._held = 0
        self._wants = self._raw = False
        self._rate = 0  # place in _RATES_HZ

    async def run(self) -> None:
        loop = asyncio.get_running_loop()

        def tell() -> None:
            loop.call_soon_threadsafe(self._another.set)

        leave = self._source.listen(tell)
        self._another.set()
        hearing = asyncio.create_task(self._hear())
        last = None
        look_s, looked = loop.time() + _LOOK_S, 0
        try:
            while not hearing.done():
                waiting = asyncio.create_task(self._another.wait())
                await asyncio.wait({hearing, waiting}, timeout=_LOOK_S, return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
                self._another.clear()
                if loop.time() >= look_s:
                    self._adapt((self._drawn - looked) / (loop.time() - look_s + _LOOK_S))
                    look_s, looked = loop.time() + _LOOK_S, self._drawn
                shown = self._source.shown
                if shown is None or not self._wants or shown is last:
                    continue
                if self._sent - self._drawn >= _ON_THE_WAY:
                    self._held += 1
                    continue
                last = shown
                self._sent += 1
                await self._browser.send_bytes(await asyncio.to_thread(pack, shown, self._sent))
        except (WebSocketDisconnect, RuntimeError, ValueError):
            pass
        finally:
            leave()
            self._source.want(self, 0)
            hearing.cancel()

    async def _hear(self) -> None:
        while True:
            told = json.loads(await self._browser.receive_text())
            if "drawn" in told:
                self._drawn = max(self._drawn, int(told["drawn"]))
            if "want" in told:
                self._wants, self._raw = bool(told["want"]), bool(told.get("raw"))
                self._tell_source()
            self._another.set()

    def _tell_source(self) -> None:
        self._source.want(self, _RATES_HZ[self._rate] if self._wants else 0, self._raw)

    def _adapt(self, drawn_hz: float) -> None:
        """Ask for as many frames as the browser draws, and for more where it waits for them."""
        held, self._held = self._held, 0
        before = self._rate
        if held > _LOOK_S and self._rate + 1 < len(_RATES_HZ) and drawn_hz < 0.8 * _RATES_HZ[self._rate]:
            self._rate += 1
        elif not held and self._rate:
            self._rate -= 1
        if self._rate != before and self._wants:
            self._tell_source()
