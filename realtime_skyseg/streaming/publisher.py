"""The publishing end of the stream."""

import time
from pathlib import Path
from typing import Any

import zmq

from realtime_skyseg.config import StreamSettings
from realtime_skyseg.errors import SettingsError
from realtime_skyseg.records import Event, Result
from realtime_skyseg.scheduling import patient_threads
from realtime_skyseg.streaming.access import Doorkeeper, bind
from realtime_skyseg.streaming.messages import (
    EventMessage,
    HeaderMessage,
    HeartbeatMessage,
    Message,
    SeriesEndMessage,
    encode,
    encode_result,
)

#: What was published last may stay in flight for this long after the end.
_LINGER_MS = 2000

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
        self._context = zmq.Context()
        with patient_threads():  # the context's own begin with its first socket
            self._socket = self._context.socket(zmq.XPUB)
        self._socket.setsockopt(zmq.SNDHWM, settings.queue_messages)
        self._socket.setsockopt(zmq.LINGER, _LINGER_MS)
        self._socket.setsockopt(zmq.XPUB_VERBOSE, 1)  # report every join, so that each gets the header
        self._socket.setsockopt(zmq.XPUB_NODROP, 1)  # a full queue is an error here, not silence
        self._doorkeeper: Doorkeeper | None = None
        try:
            self._doorkeeper = bind(self._context, self._socket, "stream.address", settings.address, keys)
        except SettingsError:
            self.close()
            raise
        self.address = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def wait_for_subscriptions(self, wanted: int, timeout_s: float) -> bool:
        """Wait until `wanted` subscriptions were seen; False when the time is up."""
        deadline = time.monotonic() + timeout_s
        while self.subscriptions < wanted:
            left = deadline - time.monotonic()
            if left <= 0 or not self._socket.poll(int(left * 1000) + 1):
                return self.subscriptions >= wanted
            self.serve()
        return True

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

    def seconds_to_heartbeat(self) -> float:
        """How long the owner may wait before it calls `heartbeat`."""
        return max(0.0, (self._next_heartbeat_ns - time.monotonic_ns()) / 1e9)

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
        """Take notice of who joined or left; who joins gets the header."""
        joined = False
        while int(self._socket.get(zmq.EVENTS)) & zmq.POLLIN:
            change = self._socket.recv(zmq.NOBLOCK)
            if change[:1] == b"\x01":
                self.subscriptions += 1
                joined = True
        if joined and self._header is not None:
            self._send_header()

    def close(self) -> None:
        """Repeat the end of the run, send what is in flight, at most 2 s, and release the socket. Safe to repeat."""
        if self._end and not self._socket.closed:
            # The same msg_number, so that it is no loss to whoever has it already.
            if self.subscriptions or self._socket.poll(0):
                time.sleep(_AGAIN_S)
            self.serve()
            self._send_one(self._end)
        self._socket.close()
        if self._doorkeeper:
            self._doorkeeper.close()
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
