"""The publishing end of the stream."""

import logging
import math
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq

from realtime_skyseg.config import StreamSettings
from realtime_skyseg.errors import SettingsError
from realtime_skyseg.records import Event, Frame, Image, LateResult, Result
from realtime_skyseg.scheduling import patient_threads
from realtime_skyseg.streaming.access import Door
from realtime_skyseg.streaming.messages import (
    EventMessage,
    HeaderMessage,
    HeartbeatMessage,
    LateMessage,
    Message,
    Preview,
    SeriesEndMessage,
    asked_preview,
    encode,
    encode_result,
)

log = logging.getLogger(__name__)

#: What was published last may stay in flight for this long after the end.
_LINGER_MS = 500

#: A subscription is a few characters; this many may wait in the socket, and are taken in one turn.
_MOST_TOPIC_BYTES, _MOST_WAITING, _MOST_CHANGES = 1024, 16, 64

#: This often somebody looks who came and left.
_LOOK_NS = 100_000_000

#: For so long nobody subscribes, once a client has said all that it wants.
_SETTLED_MS = 50

#: So many changes of subscriptions, less a few per look, are no viewer's doing.
_FLOOD, _CALM_CHANGES = 2000, 20

#: Kinds of previews that are made at once; whoever asks for one more gets none.
_MOST_PREVIEWS = 4

#: A preview is made again only after so many times what it took, so that viewers cost the frames' path little.
_PREVIEW_COSTS = 10

#: The end of the run is said again after this time, for clients that were busy or join late.
_AGAIN_S = 0.15


class Publisher:
    """An XPUB socket that never waits for a subscriber. Used by one thread at a time.

    A subscriber that reads too slowly loses messages beyond `queue_messages`; `lost_messages` counts the messages
    that at least one subscriber did not get.

    Args:
        settings: the section `stream`.
        run: name of the run, in every message.
        keys: folder of keys; None: whoever can reach the address is let in.

    Raises:
        SettingsError: the address cannot be bound, or there are no keys.
    """

    def __init__(self, settings: StreamSettings, run: str, keys: Path | None = None) -> None:
        self._run = run
        self._heartbeat_ns = int(settings.heartbeat_s * 1e9)
        self._next_heartbeat_ns = time.monotonic_ns() + self._heartbeat_ns
        self._number = 0
        self._header: dict[str, Any] | None = None
        self._end: Message | None = None
        self.subscriptions = 0
        self.lost_messages = 0
        self.notices: deque[tuple[str, str]] = deque(maxlen=100)  # kind and sentence of what happened; for the owner
        self._queue_messages = settings.queue_messages
        self._previews: dict[Preview, int] = {}  # that somebody asks for: when the next is due, in ns
        self._changes = 0  # subscriptions and their ends since the socket was made
        self._next_look_ns = 0
        self._context = zmq.Context()
        try:
            with patient_threads():  # the context's own begin with its first socket
                self._door = Door(self._context, zmq.XPUB, "stream.address", settings.address, keys, self._prepare)
        except SettingsError:
            self._context.destroy(linger=0)
            raise
        self.address = self._door.address

    def _prepare(self, socket: "zmq.Socket[bytes]") -> None:
        socket.setsockopt(zmq.SNDHWM, self._queue_messages)
        socket.setsockopt(zmq.LINGER, _LINGER_MS)
        socket.setsockopt(zmq.XPUB_VERBOSE, 1)  # report every join, so that each gets the header
        socket.setsockopt(zmq.XPUB_NODROP, 1)  # a full queue is an error here, not silence
        # Whoever sends more than subscriptions is cut off. Few may wait inside: libzmq takes all that wait in one turn,
        # in the thread that sends, and goes on while more come.
        socket.setsockopt(zmq.MAXMSGSIZE, _MOST_TOPIC_BYTES)
        socket.setsockopt(zmq.RCVHWM, _MOST_WAITING)

    @property
    def _socket(self) -> "zmq.Socket[bytes]":
        return self._door.socket

    @property
    def joined(self) -> int:
        """Clients that have subscribed. One may subscribe several times, and one may connect and not subscribe."""
        return min(self.subscriptions, self._door.connections)

    def wait_for_clients(self, wanted: int, timeout_s: float) -> bool:
        """Wait until so many clients have joined; False if the time is up."""
        deadline = time.monotonic() + timeout_s
        while wanted and (left := deadline - time.monotonic()) > 0:
            if self._socket.closed:  # it was flooded, and is made anew
                time.sleep(_SETTLED_MS / 1e3)
                self.serve()
                continue
            # A client's subscriptions come one by one: what it wants last should be there before the first message.
            changed = self._socket.poll(min(int(left * 1000) + 1, _SETTLED_MS))
            if not changed and self.joined >= wanted:
                return True
            self.serve()
        return self.joined >= wanted

    def start(self, header: dict[str, Any]) -> None:
        """Send the run's header: the fields of `HeaderMessage` besides run and msg_number."""
        self._header, self._end = header, None
        self.serve()
        self._send_header()

    def result(self, result: Result) -> None:
        """Send a frame's mask and its counts."""
        self.serve()
        image, counts = encode_result(result, self._run, self._number)
        self._number += 2
        self._send([image, result.segmentation.mask.data])
        self._send([counts])

    def preview(self, frame: Frame, prepared: Callable[[], Image | None] | None = None) -> None:
        """Send a frame in 8 bits to the viewers that ask for it, as often as they ask for.

        Args:
            frame: analysed last.
            prepared: gives the image of it that was segmented; None: the frame itself was.
        """
        if not self._previews:
            return
        for asked, due in list(self._previews.items()):
            now = time.monotonic_ns()
            if now < due:
                continue
            try:
                ready = prepared() if asked.prepared and prepared else None
                shown = frame.image if ready is None else ready
                head, image = self._encode_preview(frame, shown, asked, self._run, self._take_number())
            except Exception:  # what only a viewer wants must not end the analysis
                log.exception("there is no preview of %d px any more", asked.side_px)
                del self._previews[asked]
                continue
            self._send([head, image.data])
            # In the rhythm that was asked for, though frames come in another one; and less often if it costs too much.
            period = 1_000_000_000 // asked.rate_hz
            took = time.monotonic_ns() - now
            self._previews[asked] = max(due + period, now + _PREVIEW_COSTS * took, now + period // 2)

    def event(self, event: Event) -> None:
        """Send an event."""
        self._send_one(
            EventMessage(
                msg_number=self._take_number(),
                run=self._run,
                time_ns=event.time_ns,
                kind=event.kind,
                message=event.message,
                frame=event.frame,
            )
        )

    def late(self, late: LateResult) -> None:
        """Send what an analyser beside the frames' path has found; its maps are in the run file only."""
        values = {name: value if math.isfinite(value) else None for name, value in late.values.items()}
        self._send_one(
            LateMessage(
                msg_number=self._take_number(), run=self._run, analyser=late.analyser, frame=late.frame, values=values
            )
        )

    def seconds_to_heartbeat(self) -> float:
        """How long the owner may wait before it calls `heartbeat`."""
        return min(max(0.0, (self._next_heartbeat_ns - time.monotonic_ns()) / 1e9), _LOOK_NS / 1e9)

    def heartbeat(self, frames: dict[str, Any]) -> None:
        """Send a heartbeat if one is due; `frames` are the counters so far."""
        self.serve()
        if time.monotonic_ns() < self._next_heartbeat_ns:
            return
        self._next_heartbeat_ns = time.monotonic_ns() + self._heartbeat_ns
        self._send_one(
            HeartbeatMessage(
                msg_number=self._take_number(),
                run=self._run,
                time_ns=time.time_ns(),
                frames=frames,
                lost_messages=self.lost_messages,
            )
        )

    def end(self, status: str, message: str, frames: dict[str, Any]) -> None:
        """Send the end of the run; `close` sends it again."""
        self._end = SeriesEndMessage(
            msg_number=self._take_number(), run=self._run, status=status, message=message, frames=frames
        )
        self._send_one(self._end)

    def serve(self) -> None:
        """Take notice of who joined or left, of so many at a time; who joins gets the header."""
        if time.monotonic_ns() >= self._next_look_ns:
            self._next_look_ns = time.monotonic_ns() + _LOOK_NS
            self.notices.extend(self._door.look())
            self._changes = max(self._changes - _CALM_CHANGES, 0)
        joined = False
        for _ in range(0 if self._socket.closed else _MOST_CHANGES):
            if not int(self._socket.get(zmq.EVENTS)) & zmq.POLLIN:
                break
            change = self._socket.recv(zmq.NOBLOCK)
            self._changes += 1
            if change[:1] == b"\x01":
                self.subscriptions += 1
                joined = True
            self._note_preview(change)
        if self._changes > _FLOOD:
            self._changes = 0
            message = f"{self.address} was flooded with subscriptions: all were sent away, it is opened anew"
            self.notices.append(("stream_flooded", message))
            self._previews.clear()
            self._door.shut()
        elif joined and self._header is not None:
            self._send_header()

    def _note_preview(self, change: bytes) -> None:
        """A subscription, or that the last one of its kind has ended, may ask for previews."""
        asked = asked_preview(change[1:])
        if asked is None:
            return
        if change[:1] == b"\x00":
            self._previews.pop(asked, None)
        elif len(self._previews) < _MOST_PREVIEWS:
            from realtime_skyseg.streaming.preview import encode_preview  # needs OpenCV, which clients do without

            self._encode_preview = encode_preview
            self._previews.setdefault(asked, 0)

    def close(self) -> None:
        """Repeat the end of the run, send what is in flight, at most 0.5 s, and release the socket. Safe to repeat."""
        if self._end and not self._socket.closed:
            # The same msg_number, so that it is no loss to whoever has it already.
            if self.subscriptions:
                time.sleep(_AGAIN_S)
            self.serve()
            self._send_one(self._end)
        self._door.close()
        self._context.term()

    def _take_number(self) -> int:
        self._number += 1
        return self._number - 1

    def _send_header(self) -> None:
        assert self._header is not None
        self._send_one(HeaderMessage(msg_number=self._take_number(), run=self._run, **self._header))

    def _send_one(self, message: Message) -> None:
        self._send([encode(message)])

    def _send(self, parts: list[Any]) -> None:
        if self._socket.closed:  # it is made anew
            self.lost_messages += 1
            return
        try:
            self._socket.send_multipart(parts, zmq.NOBLOCK, copy=True)
        except zmq.Again:
            # One full queue refuses the message to all. Count it, then let those who keep up have it.
            self.lost_messages += 1
            self._socket.setsockopt(zmq.XPUB_NODROP, 0)
            try:
                self._socket.send_multipart(parts, zmq.NOBLOCK, copy=True)
            except zmq.Again:
                pass
            finally:
                self._socket.setsockopt(zmq.XPUB_NODROP, 1)
