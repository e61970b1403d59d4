"""The stream: messages, publisher and subscriber over real sockets."""

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from realtime_skyseg.analysers.objects import measure
from realtime_skyseg.config import StreamSettings
from realtime_skyseg.errors import SettingsError, StreamError
from realtime_skyseg.records import OBJECT_DTYPE, Class, Event, Frame, Result, Segmentation
from realtime_skyseg.streaming import (
    CountsMessage,
    EventMessage,
    HeaderMessage,
    HeartbeatMessage,
    ImageMessage,
    Preview,
    PreviewMessage,
    Publisher,
    SeriesEndMessage,
    Subscriber,
    decode,
)
from realtime_skyseg.streaming.access import MOST_CONNECTIONS, make_keys
from realtime_skyseg.streaming.messages import encode, encode_result, object_columns
from realtime_skyseg.streaming.preview import eight_bits

HEADER = {
    "filename": "/runs/run.h5",
    "shape": (40, 60),
    "classes": {value.name.lower(): value.value for value in Class},
    "model": "compact",
    "engine": "openvino",
    "started_ns": 1,
    "clock": "camera",
}


def result(index: int, seed: int = 0, shape: tuple[int, int] = (40, 60)) -> Result:
    mask = np.random.default_rng(seed + index).integers(0, 5, shape, np.uint8)
    frame = Frame(mask, number=index, index=index, received_ns=time.time_ns(), field_mT=0.5)
    return Result(frame, measure(mask, min_area_px=1), segmented_ns=time.time_ns())


def frame(index: int, shape: tuple[int, int] = (40, 60)) -> Frame:
    image = np.random.default_rng(index).integers(0, 4096, shape, np.uint16)
    return Frame(image, number=index, index=index, received_ns=time.time_ns())


# --- messages ---


@pytest.mark.parametrize("kind", ["header", "image", "series_end"])
def test_dranspose_reads_what_is_published(kind: str) -> None:
    """MAX IV's own parser of STINS, on messages off a real socket."""
    stream1 = pytest.importorskip("dranspose.middlewares.stream1", reason="needs dranspose: pip install '.[test]'")
    from dranspose.event import StreamData

    publisher = Publisher(StreamSettings(address="tcp://127.0.0.1:0"), "run")
    sent = result(7)
    with zmq.Context() as context, context.socket(zmq.SUB) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.subscribe(b'{"htype":"' + kind.encode())
        socket.connect(publisher.address)
        assert publisher.wait_for_clients(1, 5)
        publisher.start(HEADER)
        publisher.result(sent)
        publisher.end("ok", "", {})
        assert socket.poll(5000)
        packet = stream1.parse(StreamData(typ="STINS", frames=socket.recv_multipart(copy=False)))
    publisher.close()
    assert packet.htype == kind
    if kind == "header":
        assert packet.filename == "/runs/run.h5"
    if kind == "image":
        assert (packet.frame, packet.count) == (7, sent.segmentation.count)
        np.testing.assert_array_equal(packet.data, sent.segmentation.mask)


def test_the_end_of_a_run_is_said_twice_and_no_message_is_missed() -> None:
    """The second end is for whoever joins late; it has the first one's number, so it is no gap."""
    publisher = Publisher(StreamSettings(address="tcp://127.0.0.1:0"), "run")
    with Subscriber(publisher.address) as early:
        assert publisher.wait_for_clients(1, 5)
        publisher.start(HEADER)
        publisher.end("ok", "", {"received": 3})
        with Subscriber(publisher.address) as late:
            closing = threading.Thread(target=publisher.close)
            closing.start()
            kinds = [message.htype for message in late.every(2)]
            closing.join()
        assert kinds == ["header", "series_end"]
        heard = list(iter(lambda: early.receive(0.5), None))
    ends = [message for message in heard if isinstance(message, SeriesEndMessage)]
    assert len(ends) == 2
    assert ends[0] == ends[1]
    assert (early.lost, early.ended) == (0, True)


def test_subscribers_skip_and_count_ten_thousand_malformed_messages() -> None:
    """Random bytes, and real messages with a byte or a part damaged; then a good one still arrives."""
    rng = np.random.default_rng(0)
    found = result(7)
    image = ImageMessage(
        msg_number=9, run="r", frame=7, shape=found.segmentation.mask.shape, number=7, count=0, stripes=0,
        area_fraction=0.0, field_mT=None, camera_ns=-1, received_ns=1, segmented_ns=2,
        **object_columns(found.segmentation.objects),
    )  # fmt: skip
    good = [encode(image), found.segmentation.mask.tobytes()]

    def damaged(place: int) -> list[bytes]:
        head = bytearray(good[0])
        match place % 5:
            case 0:
                return [rng.bytes(int(rng.integers(0, 200)))]
            case 1:
                return [rng.bytes(int(rng.integers(1, 50))) for _ in range(int(rng.integers(2, 6)))]
            case 2:
                return [bytes(head[: int(rng.integers(0, len(head) - 1))]), good[1]]
            case 3:
                return [good[0], good[1][: int(rng.integers(0, len(good[1]) - 1))]]
            case _:
                head[int(rng.integers(0, 12))] ^= 0x15
                return [bytes(head), good[1]]

    with zmq.Context() as context, context.socket(zmq.PUB) as socket:
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.setsockopt(zmq.LINGER, 0)
        port = socket.bind_to_random_port("tcp://127.0.0.1")
        with Subscriber(f"tcp://127.0.0.1:{port}", queue_messages=0) as subscriber:
            while subscriber.receive(0.05) is None:  # until it has joined
                socket.send_multipart(good)
            while subscriber.receive(0.2):
                pass
            before = subscriber.malformed
            for place in range(10_000):
                socket.send_multipart(damaged(place))
            socket.send_multipart(good)
            last = subscriber.receive(20)
            assert isinstance(last, ImageMessage)
            assert subscriber.malformed - before == 10_000


@given(
    frame=st.integers(0, 2**62),
    mask=hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=30)),
    objects=hnp.arrays(OBJECT_DTYPE, st.integers(0, 20)),
    field_mT=st.none() | st.floats(-1e3, 1e3),
)
def test_images_survive_the_wire(frame: int, mask: np.ndarray, objects: np.ndarray, field_mT: float | None) -> None:
    sent = ImageMessage(
        msg_number=3, run="r", frame=frame, shape=mask.shape, number=frame, count=1, stripes=2, area_fraction=0.1,
        field_mT=field_mT, camera_ns=-1, received_ns=5, segmented_ns=6, **object_columns(objects),
    )  # fmt: skip
    received = decode([encode(sent), mask.tobytes()])
    assert isinstance(received, ImageMessage)
    np.testing.assert_array_equal(received.mask, mask)
    assert received.objects.tobytes() == objects.tobytes()
    assert received.objects.dtype == OBJECT_DTYPE
    assert received.model_dump() == sent.model_dump()


@given(
    mask=hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=30)),
    objects=hnp.arrays(OBJECT_DTYPE, st.integers(0, 20)),
    field_mT=st.floats(-1e3, 1e3) | st.just(float("nan")),
    drift_px=st.tuples(st.floats(-99, 99), st.floats(-99, 99)) | st.just((float("nan"), float("nan"))),
    area_fraction=st.floats(0, 1),
    run=st.text(max_size=20),
)
def test_a_result_is_sent_as_the_messages_of_its_frame(
    mask: np.ndarray,
    objects: np.ndarray,
    field_mT: float,
    drift_px: tuple[float, float],
    area_fraction: float,
    run: str,
) -> None:
    """Results are written without the checks of the message classes: they must hold all the same."""
    frame = Frame(mask, number=12, camera_ns=99, index=7, received_ns=2**60, field_mT=field_mT)
    found = Segmentation(mask, objects, count=5, stripes=2, area_fraction=area_fraction)
    texts = encode_result(Result(frame, found, segmented_ns=2**60 + 1, drift_px=drift_px), run, 30)
    image, counts = decode([texts[0], mask.tobytes()]), decode([texts[1]])
    assert isinstance(image, ImageMessage)
    assert isinstance(counts, CountsMessage)
    assert [json.loads(encode(message)) for message in (image, counts)] == [json.loads(text) for text in texts]
    assert (image.msg_number, counts.msg_number, image.run, counts.run) == (30, 31, run, run)
    assert (image.frame, image.number, image.camera_ns, image.count, image.stripes) == (7, 12, 99, 5, 2)
    assert (image.area_fraction, image.received_ns, image.segmented_ns) == (area_fraction, 2**60, 2**60 + 1)
    assert image.field_mT == (None if np.isnan(field_mT) else field_mT)
    assert image.drift_px == (None if np.isnan(drift_px[0]) else drift_px)
    assert image.objects.tobytes() == objects.tobytes()
    np.testing.assert_array_equal(image.mask, mask)
    shared = counts.model_dump(exclude={"htype", "msg_number"})
    assert shared.items() <= image.model_dump().items()


def test_the_header_part_follows_stins() -> None:
    """What a reader of the MAX IV convention relies on: `htype` first, without spaces, and these keys."""
    text, _ = encode_result(replace(result(7), frame=Frame(np.zeros((40, 60), np.uint8), number=7, index=7)), "r", 9)
    assert text.startswith(b'{"htype":"image","msg_number":9,')
    tree = json.loads(text)
    assert (tree["frame"], tree["shape"], tree["type"], tree["compression"]) == (7, [40, 60], "uint8", "none")
    assert tree["field_mT"] is None


IMAGE = json.loads(
    encode(
        ImageMessage(
            msg_number=0,
            run="r",
            frame=0,
            shape=(2, 3),
            number=0,
            count=0,
            stripes=0,
            area_fraction=0.0,
            field_mT=None,
            camera_ns=-1,
            received_ns=1,
            segmented_ns=2,
            **object_columns(np.zeros(0, OBJECT_DTYPE)),
        )
    )
)


def changed(**values: object) -> bytes:
    return json.dumps({**IMAGE, **values}).encode()


END = SeriesEndMessage(msg_number=1, run="r", status="ok", message="", frames={})

MALFORMED = [
    # what, parts
    ("no part", []),
    ("three parts", [changed(), b"123456", b""]),
    ("no JSON", [b"\xff\x00"]),
    ("no object", [b"[]"]),
    ("unknown kind", [b'{"htype":"party","msg_number":0,"run":"r"}']),
    ("mask missing", [changed()]),
    ("mask too short", [changed(), b"12345"]),
    ("negative shape", [changed(shape=[-2, -3]), b"123456"]),
    ("enormous shape", [changed(shape=[2**40, 2**40]), b""]),
    ("another pixel type", [changed(type="float64"), b"123456"]),
    ("objects not base64", [changed(objects_base64="!"), b"123456"]),
    ("objects cut", [changed(objects_base64="AAAA"), b"123456"]),
    ("objects of Python objects", [changed(object_dtype=[["x", "|O"]], objects_base64=""), b"123456"]),
    ("a column twice", [changed(object_dtype=[["x", "<f4"], ["x", "<f4"]]), b"123456"]),
    ("a blob where none belongs", [encode(END), b""]),
]  # fmt: skip


@pytest.mark.parametrize(("what", "parts"), MALFORMED, ids=[what for what, _ in MALFORMED])
def test_malformed_messages_are_one_error(what: str, parts: list[bytes]) -> None:
    with pytest.raises(StreamError, match="malformed"):
        decode(parts)


@given(st.lists(st.binary(max_size=200), max_size=3))
def test_random_bytes_are_one_error(parts: list[bytes]) -> None:
    with pytest.raises(StreamError):
        decode(parts)


@given(st.sampled_from(sorted(IMAGE)), st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists))
def test_any_value_in_any_key_is_a_message_or_one_error(key: str, value: object) -> None:
    with contextlib.suppress(StreamError):
        decode([changed(**{key: value}), b"123456"])


# --- sockets ---


def settings(**values: object) -> StreamSettings:
    return StreamSettings.model_validate({"address": "tcp://127.0.0.1:0", **values})


def test_a_run_reaches_its_subscriber() -> None:
    publisher = Publisher(settings(), "run-1")
    with Subscriber(publisher.address) as subscriber:
        assert publisher.wait_for_clients(1, 5)
        publisher.start(HEADER)
        sent = [result(index) for index in range(3)]
        for one in sent:
            publisher.result(one)
        publisher.event(Event(time.time_ns(), "note", "look here", 2))
        publisher.end("ok", "", {"received": 3})
        received = list(subscriber.every(timeout_s=5))
        assert subscriber.lost == subscriber.malformed == 0
        assert subscriber.ended
    publisher.close()
    kinds = [type(message) for message in received]
    assert kinds == [HeaderMessage, *[ImageMessage, CountsMessage] * 3, EventMessage, SeriesEndMessage]
    masks = [message for message in received if isinstance(message, ImageMessage)]
    for message, one in zip(masks, sent, strict=True):
        np.testing.assert_array_equal(message.mask, one.segmentation.mask)
        assert message.objects.tobytes() == one.segmentation.objects.tobytes()
        assert (message.frame, message.count) == (one.frame.index, one.segmentation.count)
        assert message.field_mT == 0.5
    assert not masks[0].mask.flags.writeable


def test_who_joins_late_gets_the_header() -> None:
    publisher = Publisher(settings(), "run-1")
    publisher.start(HEADER)
    publisher.result(result(0))
    with Subscriber(publisher.address) as late:
        assert publisher.wait_for_clients(1, 5)
        publisher.result(result(1))
        first = late.receive(5)
        assert isinstance(first, HeaderMessage)
        assert first.model == "compact"
        second = late.receive(5)
        assert isinstance(second, ImageMessage)
        assert second.frame == 1
        assert late.lost == 0
    publisher.close()


def test_latest_skips_what_is_old() -> None:
    publisher = Publisher(settings(), "run-1")
    with Subscriber(publisher.address) as subscriber:
        assert publisher.wait_for_clients(1, 5)
        for index in range(20):
            publisher.result(result(index))
        time.sleep(0.3)  # a busy client
        newest = subscriber.latest(5)
        assert newest is not None
        assert newest.frame == 19
        assert subscriber.latest(0.05) is None
        publisher.end("ok", "", {})
        assert subscriber.latest(5) is None
        assert subscriber.ended
    publisher.close()


def test_counts_alone_need_no_masks() -> None:
    publisher = Publisher(settings(), "run-1")
    with Subscriber(publisher.address, masks=False) as subscriber:
        assert publisher.wait_for_clients(1, 5)
        publisher.result(result(0))
        publisher.end("ok", "", {})
        assert [type(message) for message in subscriber.every(5)] == [CountsMessage, SeriesEndMessage]
    publisher.close()


def test_previews_are_made_for_who_asks_and_no_longer() -> None:
    publisher = Publisher(settings(), "run-1")
    with Subscriber(publisher.address) as everything:
        assert publisher.wait_for_clients(1, 5)
        publisher.preview(frame(0))
        with Subscriber(publisher.address, masks=False, preview=(10, 32)) as viewer:
            assert publisher.wait_for_clients(2, 5)
            begun = time.monotonic()
            index = 0
            while time.monotonic() - begun < 0.95:
                index += 1
                publisher.preview(frame(index))
                time.sleep(0.01)
            got = [
                message for message in iter(lambda: viewer.receive(0.2), None) if isinstance(message, PreviewMessage)
            ]
        assert 4 <= len(got) <= 11, "ten per second, of about a hundred frames; fewer on a busy computer"
        for message in got:
            assert (message.shape, message.image.shape) == ((21, 32), (21, 32))
            np.testing.assert_array_equal(message.image, eight_bits(frame(message.frame).image, 32)[0])
        until = time.monotonic() + 5
        while publisher.subscriptions and time.monotonic() < until:  # until the viewer has left
            before = publisher._number
            publisher.serve()
            publisher.preview(frame(1))
            if publisher._number == before:
                break
            time.sleep(0.01)
        publisher.event(Event(1, "note", "the last", -1))
        seen = list(iter(lambda: everything.receive(0.2), None))
        assert everything.lost == 0, "previews are numbered like all messages"
        assert isinstance(seen[-1], EventMessage)
    publisher.close()


def test_a_viewer_changes_what_it_wants_to_see() -> None:
    """The raw frame, or the image that was segmented; one without preparation is segmented as it is."""
    publisher = Publisher(settings(), "run-1")
    prepared = np.full(frame(0).image.shape, 7.5, np.float32)
    prepared[:, :20] = np.nan  # beyond a crop
    with Subscriber(publisher.address, masks=False, preview=Preview(60, 32, prepared=True)) as viewer:
        assert publisher.wait_for_clients(1, 5)
        publisher.preview(frame(0), lambda: prepared)
        first = viewer.receive(2)
        publisher.preview(frame(1), lambda: None)
        viewer.ask_previews(Preview(60, 16))
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            publisher.serve()
            publisher.preview(frame(2), lambda: prepared)
            last = viewer.receive(0.05)
            if isinstance(last, PreviewMessage) and last.of == "raw":
                break
        assert isinstance(first, PreviewMessage)
        assert isinstance(last, PreviewMessage)
        assert (first.of, first.high, last.of, last.side_px) == ("prepared", 7.5, "raw", 16)
        viewer.ask_previews(None)
        with pytest.raises(StreamError):
            viewer.ask_previews(Preview(0, 16))
    publisher.close()


def test_few_kinds_of_previews_are_made_at_once() -> None:
    publisher = Publisher(settings(), "run-1")
    with contextlib.ExitStack() as stack:
        viewers = [
            stack.enter_context(Subscriber(publisher.address, masks=False, preview=(60, side)))
            for side in range(20, 26)
        ]
        assert publisher.wait_for_clients(6, 5)
        publisher.preview(frame(0))
        got = [viewer.receive(0.3) for viewer in viewers]
        assert sum(isinstance(message, PreviewMessage) for message in got) == 4
    publisher.close()


@pytest.mark.parametrize("asked", [(0, 512), (61, 512), (10, 15), (10, 5000), (-1, 512)])
def test_previews_that_nobody_can_have(asked: tuple[int, int]) -> None:
    with pytest.raises(StreamError, match=r"preview is .*; allowed: \(1 to 60 Hz, 16 to 4096 px\)"):
        Subscriber("tcp://127.0.0.1:5555", preview=asked)


@pytest.mark.parametrize(
    ("image", "low", "high", "corner"),
    [
        (np.arange(64, dtype=np.uint8).reshape(8, 8), 0.315, 62.685, 0),
        (np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000, 315, 62685, 0),
        (np.full((8, 8), 7, np.uint16), 7, 7, 0),
        (np.full((8, 8), np.nan, np.float32), 0, 0, 0),
        (np.where(np.eye(8) > 0, np.inf, 5.0), 5, 5, 0),
    ],
)
def test_any_image_in_eight_bits(image: np.ndarray, low: float, high: float, corner: int) -> None:
    small, *levels = eight_bits(image, 512)
    assert (small.dtype, small.shape) == (np.uint8, (8, 8))
    np.testing.assert_allclose(levels, [low, high], rtol=0.01)
    assert small[0, 0] == corner


def test_a_slow_subscriber_loses_and_a_fast_one_does_not() -> None:
    """Neither makes the publisher wait; losses are counted at both ends."""
    publisher = Publisher(settings(queue_messages=4), "run-1")
    with (
        Subscriber(publisher.address, queue_messages=4) as slow,
        Subscriber(publisher.address, queue_messages=1000) as fast,
    ):
        assert publisher.wait_for_clients(2, 5)
        received = 0
        longest_s = 0.0
        n = 60
        for index in range(n):
            one = result(index, shape=(700, 700))
            begun = time.perf_counter()
            publisher.result(one)
            longest_s = max(longest_s, time.perf_counter() - begun)
            while isinstance(message := fast.receive(2), ImageMessage):
                received += 1
            assert isinstance(message, CountsMessage)
        assert received == n
        assert fast.lost == 0
        assert publisher.lost_messages > 0
        assert longest_s < 1
        publisher.end("ok", "", {})
        arrived = 0
        while slow.receive(0.5) is not None:
            arrived += 1
        assert arrived < 2 * n
    publisher.close()


def test_a_gap_in_the_numbers_is_a_loss() -> None:
    import zmq

    context = zmq.Context()
    socket = context.socket(zmq.XPUB)
    port = socket.bind_to_random_port("tcp://127.0.0.1")
    with Subscriber(f"tcp://127.0.0.1:{port}") as subscriber:
        socket.recv()  # the subscription
        for number in (0, 1, 4, 5):
            socket.send(encode(EventMessage(msg_number=number, run="r", time_ns=0, kind="k", message="m", frame=-1)))
        socket.send(b"garbage")
        socket.send(encode(EventMessage(msg_number=9, run="another run", time_ns=0, kind="k", message="m", frame=-1)))
        assert len([subscriber.receive(2) for _ in range(5)]) == 5
        assert (subscriber.lost, subscriber.malformed) == (2, 1)
    socket.close()
    context.term()


def test_the_heartbeat_comes_when_due() -> None:
    publisher = Publisher(settings(heartbeat_s=1.0), "run-1")
    begun = time.monotonic()
    with Subscriber(publisher.address) as subscriber:
        assert publisher.wait_for_clients(1, 5)
        publisher.heartbeat({"received": 0})
        assert subscriber.receive(0.02) is None
        while time.monotonic() - begun < 1.0:
            time.sleep(publisher.seconds_to_heartbeat())
        publisher.heartbeat({"received": 4})
        beat = subscriber.receive(2)
        assert isinstance(beat, HeartbeatMessage)
        assert beat.frames == {"received": 4}
    publisher.close()


def test_an_address_in_use_is_a_wrong_setting() -> None:
    first = Publisher(settings(), "run-1")
    with pytest.raises(
        SettingsError, match=f"stream.address: '{first.address}' cannot be bound: Address already in use"
    ):
        Publisher(settings(address=first.address), "run-2")
    first.close()


def test_a_wrong_address_cannot_be_joined() -> None:
    with pytest.raises(StreamError, match="'nonsense' cannot be joined"):
        Subscriber("nonsense")


# --- what strangers can do to it


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    one = Publisher(StreamSettings(address="tcp://127.0.0.1:0"), "run")
    one.start(HEADER)
    yield one
    one.close()


def turns(publisher: Publisher, seconds: float, until: str = "") -> float:
    """Publish as an analysis does, at about 50 frames per second; the longest turn in seconds."""
    one = result(0)
    longest, end = 0.0, time.monotonic() + seconds
    while time.monotonic() < end and not (until and any(kind == until for kind, _ in publisher.notices)):
        begun = time.monotonic()
        publisher.result(one)
        longest = max(longest, time.monotonic() - begun)
        time.sleep(0.02)
    return longest


#: Strangers are processes of their own: two threads of one would share Python's lock.
STRANGERS = {
    "one topic": """
number = 0
while True:
    for change in b"\\x01", b"\\x00":
        socket.send(change + b"z")
""",
    "many topics": """
number = 0
while True:
    number += 1
    socket.send(b"\\x01" + number.to_bytes(8, "big") + bytes(100))
""",
    "large": """
while True:
    socket.send(b"\\x01" + bytes(2_000_000))
""",
}


@contextlib.contextmanager
def stranger(kind: str, address: str) -> Iterator[None]:
    begin = f"import zmq\nsocket = zmq.Context().socket(zmq.XSUB)\nsocket.connect('{address}')\n"
    with subprocess.Popen([sys.executable, "-c", begin + STRANGERS[kind]], stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.kill()


@pytest.mark.parametrize("kind", ["one topic", "many topics"])
def test_a_flood_of_subscriptions_is_sent_away(publisher: Publisher, kind: str) -> None:
    with stranger(kind, publisher.address):
        assert turns(publisher, 20, until="stream_flooded") < 0.5
        assert any(kind == "stream_flooded" for kind, _ in publisher.notices)
        begun = time.monotonic()
        publisher.end("ok", "", {})
        publisher.close()
        assert time.monotonic() - begun < 3


def test_a_client_that_sends_more_than_subscriptions_is_cut_off(publisher: Publisher) -> None:
    with stranger("large", publisher.address):
        assert turns(publisher, 2) < 0.5
        with Subscriber(publisher.address) as subscriber:
            turns(publisher, 1)
            assert isinstance(subscriber.receive(5), HeaderMessage)


def test_too_many_connections_are_sent_away_and_a_viewer_comes_back(publisher: Publisher) -> None:
    host, port = "127.0.0.1", int(publisher.address.rpartition(":")[2])
    with Subscriber(publisher.address) as subscriber, contextlib.ExitStack() as opened:
        turns(publisher, 0.5)
        for _ in range(MOST_CONNECTIONS + 20):
            with contextlib.suppress(OSError):
                opened.enter_context(socket.create_connection((host, port), 1))
        turns(publisher, 10, until="stream_crowded")
        assert any(kind == "stream_crowded" for kind, _ in publisher.notices)
        opened.close()
        begun = time.monotonic()
        heard = 0
        while heard < 5 and time.monotonic() - begun < 15:
            turns(publisher, 0.1)
            while (message := subscriber.receive(0)) is not None:
                heard += isinstance(message, ImageMessage)
        assert heard >= 5


def test_clients_that_are_refused_are_told_once(tmp_path: Path) -> None:
    make_keys(tmp_path / "keys")
    publisher = Publisher(StreamSettings(address="tcp://127.0.0.1:0"), "run", tmp_path / "keys")
    publisher.start(HEADER)
    try:
        for _ in range(2):
            with Subscriber(publisher.address):  # without keys
                turns(publisher, 1.0)
        with Subscriber(publisher.address, keys=tmp_path / "keys" / "give-to-client") as subscriber:
            turns(publisher, 0.5)
            assert isinstance(subscriber.receive(5), HeaderMessage)
    finally:
        publisher.close()
    assert [kind for kind, _ in publisher.notices] == ["client_refused"]


def test_what_shows_nothing_has_no_count_in_the_stream() -> None:
    blank = result(3)
    blank.segmentation = Segmentation.of_nothing((40, 60))
    image, counts = encode_result(blank, "run", 0)
    for message in (decode([image, blank.segmentation.mask.tobytes()]), decode([counts])):
        assert isinstance(message, ImageMessage | CountsMessage)
        assert (message.count, message.stripes, message.area_fraction) == (None, None, None)
    assert json.loads(counts)["count"] is None


def test_a_run_waits_for_its_viewer_beside_a_flood(publisher: Publisher) -> None:
    with stranger("one topic", publisher.address):
        assert publisher.wait_for_clients(0, 0)
        assert not publisher.wait_for_clients(50, 3)
