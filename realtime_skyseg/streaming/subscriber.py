"""The receiving end of the stream."""

import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import zmq

from realtime_skyseg.config import DEFAULT_ADDRESS
from realtime_skyseg.errors import SettingsError, StreamError
from realtime_skyseg.streaming.access import connect
from realtime_skyseg.streaming.messages import (
    MAX_PREVIEW_HZ,
    MAX_PREVIEW_PX,
    ImageMessage,
    Message,
    Preview,
    SeriesEndMessage,
    asked_preview,
    decode,
    preview_topic,
)

_WITHOUT_MASKS = (b'{"htype":"header"', b'{"htype":"series_end"', b'{"htype":"skyseg_')


class Subscriber:
    """A client of the stream. Used by one thread; close it, or use it as a context manager.

    >>> with Subscriber(running.address) as stream:  # of a running service; else tcp://127.0.0.1:5555
    ...     for message in stream.every():
    ...         if isinstance(message, ImageMessage):
    ...             break
    >>> message.count > 0, message.mask.shape
    (True, (512, 672))

    Args:
        address: of the service, tcp://HOST:PORT.
        masks: False leaves the image messages out, for a client that wants counts only; losses are then not seen.
        queue_messages: messages kept while this client is busy.
        keys: folder of this client's keys, where the service asks for them.
        preview: (Hz, px) asks for `PreviewMessage`s of the raw frames, at most so many per second and of this longer
            side; a `Preview` may ask for the images that were segmented; None: for none. What others ask for comes
            here, too, unless `masks` is False.

    Raises:
        StreamError: the address cannot be used, or there are no such previews.
        SettingsError: there are no keys.

    Attributes:
        lost: messages that were published but never arrived, seen as gaps in msg_number.
        malformed: messages that were skipped because they do not follow the schema.
        ended: True after the end of a run, until the next one begins.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        masks: bool = True,
        queue_messages: int = 256,
        keys: str | Path | None = None,
        preview: Preview | tuple[int, int] | None = None,
    ) -> None:
        topics = [b""] if masks else [*_WITHOUT_MASKS]
        self._preview = b"" if preview is None else _topic(Preview(*preview))
        topics += [self._preview] if self._preview else []
        self.address = address
        self.lost = 0
        self.malformed = 0
        self.ended = False
        self._masks = masks
        self._run = ""
        self._next_number = -1
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.RCVHWM, queue_messages)
        self._socket.setsockopt(zmq.LINGER, 0)
        for prefix in topics:
            self._socket.subscribe(prefix)
        try:
            connect(self._socket, address, keys)
        except SettingsError:
            self.close()
            raise
        except zmq.ZMQError as error:
            self.close()
            raise StreamError(
                f"address '{address}' cannot be joined: {error.strerror}; allowed: tcp://HOST:PORT"
            ) from error

    def receive(self, timeout_s: float | None = None) -> Message | None:
        """The next message in order; None when none came in time. Malformed messages are skipped and counted."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left = None if deadline is None else max(0, round((deadline - time.monotonic()) * 1000))
            if not self._socket.poll(left):
                return None
            try:
                message = decode(self._socket.recv_multipart())
            except StreamError:
                self.malformed += 1
                continue
            self._note(message)
            return message

    def every(self, timeout_s: float | None = None) -> Iterator[Message]:
        """Every message in order, up to and including the end of the run, or until none comes within `timeout_s`.

        A client that is slower than the stream falls behind and then loses messages: watch `lost`.
        """
        while (message := self.receive(timeout_s)) is not None:
            yield message
            if isinstance(message, SeriesEndMessage):
                return

    def latest(self, timeout_s: float | None = None) -> ImageMessage | None:
        """The newest mask that has arrived; older ones are thrown away. Waits for one, at most `timeout_s`; None
        when none came or the run ended (see `ended`).
        """
        newest: ImageMessage | None = None
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            if newest is not None:
                message = self.receive(0)
            else:
                message = self.receive(None if deadline is None else max(0.0, deadline - time.monotonic()))
            if message is None or isinstance(message, SeriesEndMessage):
                return newest
            if isinstance(message, ImageMessage):
                newest = message

    def ask_previews(self, preview: Preview | None) -> None:
        """Ask for other previews than before; None: for none. Raises `StreamError`: there are no such previews."""
        topic = b"" if preview is None else _topic(preview)
        if topic != self._preview:
            if topic:
                self._socket.subscribe(topic)
            if self._preview:
                self._socket.unsubscribe(self._preview)
            self._preview = topic

    def close(self) -> None:
        """Leave the stream. Safe to call twice."""
        self._socket.close()
        self._context.term()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _note(self, message: Message) -> None:
        if message.run != self._run:
            self._run, self._next_number = message.run, message.msg_number
        if self._masks:
            self.lost += max(0, message.msg_number - self._next_number)
        self._next_number = message.msg_number + 1
        self.ended = isinstance(message, SeriesEndMessage)


def _topic(preview: Preview) -> bytes:
    topic = preview_topic(preview)
    if asked_preview(topic) is None:
        raise StreamError(
            f"preview is {tuple(preview[:2])}; allowed: (1 to {MAX_PREVIEW_HZ} Hz, 16 to {MAX_PREVIEW_PX} px)"
        )
    return topic
