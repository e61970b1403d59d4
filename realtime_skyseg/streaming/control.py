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
from queue import Full, Queue
from types import TracebackType
from typing import Annotated, Any, Literal, Self, get_args

import zmq
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from realtime_skyseg.errors import ControlError, SettingsError, SkysegError
from realtime_skyseg.records import printable
from realtime_skyseg.streaming.access import Door, connect

log = logging.getLogger(__name__)

#: A longer request is answered with an error; one beyond the second limit is not even read, and its sender is cut off.
_MOST_BYTES, _CUT_OFF_BYTES = 65_536, 1_048_576

#: Requests that wait for their turn; the service takes no more from a client meanwhile. And answers that a client may
#: leave unread, before it loses the next.
_QUEUE, _UNREAD = 64, 1000

#: This often somebody looks who came and left.
_LOOK_MS = 200

#: A client that waits for the field asks this often.
_ASK_AGAIN_MS = 20

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


def kinds(do: str) -> dict[str, Any]:
    """The annotations of a request's keys, by name; none for a request that does not exist."""
    for kind in get_args(Request):
        if get_args(kind.model_fields["do"].annotation) == (do,):
            return {key: field.annotation for key, field in kind.model_fields.items()}
    return {}


def requests() -> list[str]:
    """What can be asked for."""
    return [do for kind in get_args(Request) for do in get_args(kind.model_fields["do"].annotation)]


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
        if fault["type"].startswith("union_tag"):
            asked = fault["ctx"].get("tag")
            what = "this key is missing" if asked is None else f"'{printable(asked)[:40]}' is no request"
            message = f"do: {what}; allowed: {', '.join(requests())}"
        raise ControlError(f"malformed request: {place + ': ' if place else ''}{message}"[:500]) from None


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


class Control:
    """A client of the control socket. Used by one thread; close it, or use it as a context manager.

    >>> with sky.Control("tcp://127.0.0.1:5556") as service:         # doctest: +SKIP
    ...     service.set_field(12.5, wait=True)["status"]["field_mT"]

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

    def set_field(self, field_mT: float, wait: bool = False, timeout_s: float = 60.0) -> dict[str, Any]:
        """Go to a field, and return the answer: `target` is the number of this target.

        Args:
            field_mT: where to.
            wait: return only once the field is there and read back within the tolerance; then `status` is in the
                answer too, with the field that was read.
            timeout_s: longest wait for that.

        Raises:
            ControlError: it was refused, another target took its place, or it was not reached in time.
        """
        answer = self.ask("set_field", field_mT=field_mT)
        return answer | {"status": self.wait_settled(answer["target"], timeout_s)} if wait else answer

    def demagnetise(
        self,
        amplitude_mT: float,
        ratio: float = 0.8,
        smallest_mT: float | None = None,
        dwell_s: float = 0.2,
        wait: bool = False,
        timeout_s: float = 60.0,
    ) -> dict[str, Any]:
        """Alternate the field, each swing smaller than the one before, and end at zero; the answer as of `set_field`.

        Args:
            amplitude_mT: first swing.
            ratio: of each swing to the one before, 0.1 to 0.99.
            smallest_mT: last swing at least; None: the tolerance.
            dwell_s: stay at each turn.
            wait: return only once zero is reached, as of `set_field`.
            timeout_s: longest wait for that.

        Raises:
            ControlError: as of `set_field`.
        """
        values = {"amplitude_mT": amplitude_mT, "ratio": ratio, "smallest_mT": smallest_mT, "dwell_s": dwell_s}
        answer = self.ask("demagnetise", **values)
        return answer | {"status": self.wait_settled(answer["target"], timeout_s)} if wait else answer

    def wait_settled(self, target: int | None = None, timeout_s: float = 60.0) -> dict[str, Any]:
        """Wait until a target, by its number, is reached and read back; the service's status then.

        Args:
            target: its number; None: the last one, whichever it is, such as that of `safe_field`.
            timeout_s: longest wait.

        Raises:
            ControlError: there was a fault, another target took its place, or it was not reached in time.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            status: dict[str, Any] = self.ask("status")["status"]
            last = status["field_target"]
            if status["fault"]:
                raise ControlError(f"target {last if target is None else target} of the field was given up: "
                                   f"{status['fault']}")  # fmt: skip
            if target is not None and last != target:
                raise ControlError(f"target {target} of the field was given up for another one, {last}")
            if status["field_settled"] or not (target or last):  # a field that was never set is left alone
                return status
            if time.monotonic() > deadline:
                raise ControlError(
                    f"target {last} of the field was not reached within {timeout_s:g} s; it is at "
                    f"{status['field_mT']} mT"
                )
            self._socket.poll(_ASK_AGAIN_MS)  # a pause: nothing comes that was not asked for

    def close(self) -> None:
        """Release the socket. Safe to call twice."""
        self._context.destroy(linger=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
