"""Masks and counts over ZeroMQ: the messages of schema `skyseg-1`, a publisher and a client."""

from realtime_skyseg.streaming.control import Control
from realtime_skyseg.streaming.control_server import ControlServer
from realtime_skyseg.streaming.messages import (
    CountsMessage,
    EventMessage,
    HeaderMessage,
    HeartbeatMessage,
    ImageMessage,
    Message,
    Preview,
    PreviewMessage,
    SeriesEndMessage,
    decode,
)
from realtime_skyseg.streaming.publisher import Publisher
from realtime_skyseg.streaming.subscriber import Subscriber

__all__ = [
    "Control",
    "ControlServer",
    "CountsMessage",
    "EventMessage",
    "HeaderMessage",
    "HeartbeatMessage",
    "ImageMessage",
    "Message",
    "Preview",
    "PreviewMessage",
    "Publisher",
    "SeriesEndMessage",
    "Subscriber",
    "decode",
]
