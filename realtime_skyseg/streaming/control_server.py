"""The service's end of the control socket."""

import json
import logging
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from queue import Full, Queue
from typing import Any

import zmq

from realtime_skyseg.errors import ControlError, SettingsError, SkysegError
from realtime_skyseg.streaming.access import Door
from realtime_skyseg.streaming.requests import Request, parse

log = logging.getLogger(__name__)

#: A request beyond this is not even read, and its sender is cut off.
_CUT_OFF_BYTES = 1_048_576

#: Requests that wait for their turn; the service takes no more from a client meanwhile. And answers that a client may
#: leave unread, before it loses the next.
_QUEUE, _UNREAD = 64, 1000

#: This often somebody looks who came and left.
_LOOK_MS = 200


#: What carries a request out: what its answer holds beside `ok`, at once; or how to find that out, where it takes time.
Carry = Callable[[Request], dict[str, Any] | Callable[[], dict[str, Any]]]


class ControlServer:
    """Answers requests. Owns two threads and its sockets until `close`.

    One thread takes every request as it comes, and answers those at once that take no time: what makes safe is among
    them, and waits for nobody. The others are carried out one after the other by the second thread.

    Args:
        address: where to bind.
        carry: carries a request out, see `Carry`. A `SkysegError` becomes the answer's `error`.
        keys: folder of keys; None: whoever can reach the address is served.
        notice: called in a thread of the server with the kind and the sentence of what happens at its door.

    Raises:
        SettingsError: the address cannot be bound, or there are no keys.

    Attributes:
        address: where it is, with the port that was taken.
    """

    def __init__(
        self,
        address: str,
        carry: Carry,
        keys: Path | None = None,
        notice: Callable[[str, str], None] = lambda kind, message: None,
    ) -> None:
        self._carry = carry
        self._notice = notice
        self._context = zmq.Context()
        try:
            self._door = Door(self._context, zmq.ROUTER, "control.address", address, keys, _prepare)
        except SettingsError:
            self._context.destroy(linger=0)
            raise
        self.address = self._door.address
        self._wake, self._woken = self._pair()
        self._done, self._answered = self._pair()
        self._closing = False
        self._slow: Queue[tuple[list[bytes], str | int | None, Callable[[], dict[str, Any]]] | None] = Queue(_QUEUE)
        self._threads = [
            threading.Thread(target=self._serve, name="skyseg-control"),
            threading.Thread(target=self._work, name="skyseg-requests"),
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End the threads, after the request that is carried out. Safe to call twice."""
        serving, working = self._threads
        if working.is_alive():
            self._closing = True
            self._slow.put(None)
            working.join()
            self._wake.send(b"")
            serving.join()
        self._wake.close()
        self._door.close()
        self._context.term()

    def _pair(self) -> tuple["zmq.Socket[bytes]", "zmq.Socket[bytes]"]:
        """A way from one thread to another."""
        name = f"inproc://{secrets.token_hex(8)}"
        end, begin = self._context.socket(zmq.PAIR), self._context.socket(zmq.PAIR)
        end.bind(name)
        begin.connect(name)
        return begin, end

    def _serve(self) -> None:
        next_look_s = 0.0
        while True:
            ways = [self._answered, self._woken, *([] if self._door.socket.closed else [self._door.socket])]
            poller = zmq.Poller()
            for way in ways:
                poller.register(way, zmq.POLLIN)
            ready: dict[Any, int] = dict(poller.poll(_LOOK_MS))
            if self._woken in ready:
                break
            if self._answered in ready:
                self._send(self._answered.recv_multipart())
            if self._door.socket in ready:
                self._take()
            if time.monotonic() >= next_look_s:
                next_look_s = time.monotonic() + _LOOK_MS / 1e3
                for kind, message in self._door.look():
                    self._notice(kind, message)
        while self._answered.poll(0):
            self._send(self._answered.recv_multipart())
        for way in (self._answered, self._woken):
            way.close()

    def _work(self) -> None:
        """Carry out what takes time."""
        while (asked := self._slow.get()) is not None:
            envelope, number, carry = asked
            reply = self._tried(carry, number) if not self._closing else _refused("the service ends", number)
            self._done.send_multipart([*envelope, json.dumps(reply).encode()])
        self._done.close()

    def _take(self) -> None:
        sender, *parts = self._door.socket.recv_multipart(copy=True)
        # A REQ client puts an empty part before its request, and expects it back.
        envelope = [sender, *(parts[:1] if len(parts) > 1 and not parts[0] else [])]
        number: str | int | None = None
        reply: dict[str, Any] | None
        try:
            if len(parts) != len(envelope):
                raise ControlError(f"a request of {len(parts) - len(envelope) + 1} parts is malformed; allowed: 1")
            request = parse(parts[-1])
            number = request.id
        except SkysegError as error:
            reply = _refused(str(error), None)
        else:
            reply = self._tried(lambda: self._begun(request, envelope), number)
        if reply:
            self._send([*envelope, json.dumps(reply).encode()])

    def _begun(self, request: Request, envelope: list[bytes]) -> dict[str, Any] | None:
        """The answer; None where it comes later."""
        answer = self._carry(request)
        if isinstance(answer, dict):
            return answer
        try:
            self._slow.put_nowait((envelope, request.id, answer))
        except Full:
            raise ControlError(
                f"{request.do}: {_QUEUE} requests wait already; allowed: once some are answered"
            ) from None
        return None

    def _tried(self, carry: Callable[[], dict[str, Any] | None], number: str | int | None) -> dict[str, Any] | None:
        try:
            answer = carry()
        except SkysegError as error:
            return _refused(str(error), number)
        except Exception as error:
            log.exception("a request failed")
            return _refused(f"the service failed to carry it out: {error!r}", number)
        if answer is None:
            return None
        return {"ok": True, **answer} | ({} if number is None else {"id": number})

    def _send(self, parts: list[bytes]) -> None:
        try:
            self._door.socket.send_multipart(parts, zmq.NOBLOCK)
        except zmq.ZMQError as error:
            log.warning("an answer did not reach its client: %s", error.strerror)


def _prepare(socket: "zmq.Socket[bytes]") -> None:
    socket.setsockopt(zmq.LINGER, 200)
    socket.setsockopt(zmq.MAXMSGSIZE, _CUT_OFF_BYTES)
    socket.setsockopt(zmq.RCVHWM, _QUEUE)
    socket.setsockopt(zmq.SNDHWM, _UNREAD)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # an answer that is lost is an error here, not silence


def _refused(reason: str, number: str | int | None) -> dict[str, Any]:
    return {"ok": False, "error": reason} | ({} if number is None else {"id": number})
