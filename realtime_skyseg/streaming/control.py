"""The control socket: requests to a running service, and its answers.

A request is one JSON object of at most 64 kB in one message, `{"do": "set_field", "field_mT": 12.5}`; the answer is one
too: `{"ok": true, ...}`, or `{"ok": false, "error": "one sentence"}` for anything that is malformed or refused. The
service's socket is a ROUTER: REQ and DEALER clients in any language can use it. A key `id` comes back as it was sent.
"""

import json
import logging
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal, Self

import zmq
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from realtime_skyseg.errors import ControlError, SettingsError, SkysegError
from realtime_skyseg.streaming.access import bind, connect

log = logging.getLogger(__name__)

#: A longer request is answered with an error; one beyond the second limit is not even read, and its sender is cut off.
_MOST_BYTES, _CUT_OFF_BYTES = 65_536, 1_048_576

#: Requests that wait for their turn; the service takes no more from a client meanwhile. And answers that a client may
#: leave unread, before it loses the next.
_QUEUE, _UNREAD = 64, 1000

#: Longer than the field guard may take for its answer.
_ANSWER_S = 10.0


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    id: Annotated[str, Field(max_length=100)] | int | None = None


class Status(_Request):
    """How the run fares: counters, rate, latest count, field, addresses."""

    do: Literal["status"]


class Stop(_Request):
    """End the run: what was received is still analysed and written."""

    do: Literal["stop"]


class SetField(_Request):
    """Go to a field; answered once it is accepted, while it is still on its way."""

    do: Literal["set_field"]
    field_mT: float


class EnterField(_Request):
    """Say what field a person has set: for the field driver `manual`."""

    do: Literal["enter_field"]
    field_mT: float


class SafeField(_Request):
    """Go to the safe state."""

    do: Literal["safe_field"]


class Demagnetise(_Request):
    """Alternate the field, each swing smaller than the one before, and end at zero."""

    do: Literal["demagnetise"]
    amplitude_mT: float
    ratio: float = 0.8
    smallest_mT: float | None = None
    dwell_s: float = 0.2


class Pulse(_Request):
    """Apply an in-plane field for a while, where the supply can."""

    do: Literal["pulse"]
    in_plane_mT: float
    seconds: float


class Pause(_Request):
    """The field programme stands still, at the field of now."""

    do: Literal["pause"]


class Resume(_Request):
    """The field programme goes on."""

    do: Literal["resume"]


class Abort(_Request):
    """The field programme ends: the field goes to its safe state, and the run ends."""

    do: Literal["abort"]


class TakeBackground(_Request):
    """Average the next frames into the background that is taken from every frame from then on."""

    do: Literal["take_background"]
    frames: Annotated[int, Field(ge=1, le=1000)] = 16


class Mark(_Request):
    """Note an event in the file and the stream."""

    do: Literal["mark"]
    message: Annotated[str, Field(min_length=1, max_length=1000)]


Request = (
    Status
    | Stop
    | SetField
    | EnterField
    | SafeField
    | Demagnetise
    | Pulse
    | Pause
    | Resume
    | Abort
    | TakeBackground
    | Mark
)

_REQUEST: TypeAdapter[Request] = TypeAdapter(Annotated[Request, Field(discriminator="do")])


def parse(data: bytes) -> Request:
    """A request from its bytes.

    Raises:
        ControlError: it is malformed; nothing else, whatever the bytes.
    """
    if len(data) > _MOST_BYTES:
        raise ControlError(f"a request of {len(data)} bytes is refused; allowed: at most {_MOST_BYTES}")
    try:
        return _REQUEST.validate_json(data)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=True)[0]
        place = ".".join(str(part) for part in fault["loc"][1:])
        message = fault["msg"]
        raise ControlError(f"malformed request: {place + ': ' if place else ''}{message}"[:500]) from None


class ControlServer:
    """Answers requests, one after the other, in a thread of its own. Owns the thread and its socket until `close`.

    Args:
        address: where to bind.
        answer: carries a request out and returns what the answer holds beside `ok`. A `SkysegError` from it becomes
            the answer's `error`.
        keys: folder of keys; None: whoever can reach the address is served.

    Raises:
        SettingsError: the address cannot be bound, or there are no keys.

    Attributes:
        address: where it is, with the port that was taken.
    """

    def __init__(self, address: str, answer: Callable[[Request], dict[str, Any]], keys: Path | None = None) -> None:
        self._answer = answer
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 200)
        self._socket.setsockopt(zmq.MAXMSGSIZE, _CUT_OFF_BYTES)
        self._socket.setsockopt(zmq.RCVHWM, _QUEUE)
        self._socket.setsockopt(zmq.SNDHWM, _UNREAD)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # an answer that is lost is an error here, not silence
        try:
            self._doorkeeper = bind(self._context, self._socket, "control.address", address, keys)
        except SettingsError:
            self._context.destroy(linger=0)
            raise
        self.address = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        name = f"inproc://{secrets.token_hex(8)}"
        self._closing = self._context.socket(zmq.PAIR)
        self._closing.bind(name)
        self._wake = self._context.socket(zmq.PAIR)
        self._wake.connect(name)
        self._thread = threading.Thread(target=self._serve, name="skyseg-control")
        self._thread.start()

    def close(self) -> None:
        """End the thread, after the request that it carries out. Safe to call twice."""
        if self._thread.is_alive():
            self._wake.send(b"")
            self._thread.join()
        self._wake.close()
        if self._doorkeeper:
            self._doorkeeper.close()
        self._context.term()

    def _serve(self) -> None:
        poller = zmq.Poller()
        for way in (self._socket, self._closing):
            poller.register(way, zmq.POLLIN)
        while self._closing not in (ready := dict(poller.poll())):
            if self._socket in ready:
                self._take()
        self._socket.close()
        self._closing.close()

    def _take(self) -> None:
        sender, *parts = self._socket.recv_multipart(copy=True)
        # A REQ client puts an empty part before its request, and expects it back.
        envelope = parts[:1] if len(parts) > 1 and not parts[0] else []
        reply = self._reply(parts[len(envelope) :])
        try:
            self._socket.send_multipart([sender, *envelope, json.dumps(reply).encode()], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            log.warning("an answer did not reach its client: %s", error.strerror)

    def _reply(self, parts: list[bytes]) -> dict[str, Any]:
        number: str | int | None = None
        try:
            if len(parts) != 1:
                raise ControlError(f"a request of {len(parts)} parts is malformed; allowed: 1")
            request = parse(parts[0])
            number = request.id
            reply = {"ok": True, **self._answer(request)}
        except SkysegError as error:
            reply = {"ok": False, "error": str(error)}
        except Exception as error:
            log.exception("a request failed")
            reply = {"ok": False, "error": f"the service failed to carry it out: {error!r}"}
        return reply if number is None else {**reply, "id": number}


class Control:
    """A client of the control socket. Used by one thread; close it, or use it as a context manager.

    >>> with sky.Control("tcp://127.0.0.1:5556") as service:         # doctest: +SKIP
    ...     service.ask("set_field", field_mT=12.5)
    ...     service.ask("status")["field_mT"]

    Args:
        address: of the service's control socket, tcp://HOST:PORT.
        timeout_s: longest wait for an answer.
        keys: folder of this client's keys, where the service asks for them.

    Raises:
        ControlError: the address cannot be used.
        SettingsError: there are no keys.
    """

    def __init__(self, address: str, timeout_s: float = _ANSWER_S, keys: str | Path | None = None) -> None:
        self.address = address
        self._timeout_s = timeout_s
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        try:
            connect(self._socket, address, keys)
        except SettingsError:
            self.close()
            raise
        except zmq.ZMQError as error:
            self.close()
            raise ControlError(
                f"address '{address}' cannot be reached: {error.strerror}; allowed: tcp://HOST:PORT"
            ) from error

    def ask(self, do: str, **values: object) -> dict[str, Any]:
        """Send a request, wait for the answer, and return it.

        Raises:
            ControlError: it was refused, or no answer came in time.
        """
        number = secrets.token_hex(8)
        deadline = time.monotonic() + self._timeout_s
        self._socket.send(json.dumps({"do": do, "id": number, **values}).encode())
        while self._socket.poll(max(0, round(1000 * (deadline - time.monotonic())))):
            reply: dict[str, Any] = json.loads(self._socket.recv_multipart()[-1])
            if not reply["ok"] and reply.get("id", number) == number:
                raise ControlError(str(reply["error"]))
            if reply.pop("id", None) == number:
                return reply
            # The answer to a request that was given up before.
        raise ControlError(f"no answer from '{self.address}' within {self._timeout_s:g} s; is the service running?")

    def close(self) -> None:
        """Release the socket. Safe to call twice."""
        self._context.destroy(linger=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
