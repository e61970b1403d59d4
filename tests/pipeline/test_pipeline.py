"""The way of a frame through the threads, with cameras of every temper; the books always balance."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_run_file import ORIGIN

from realtime_skyseg.analysis import FramePath, Segmenter
from realtime_skyseg.config import StreamSettings
from realtime_skyseg.devices import Camera, CameraChanged, CameraEnded, CameraNotice, DriverSettings
from realtime_skyseg.errors import CameraError
from realtime_skyseg.pipeline import Channel, Closed, Flow, Latency, Pipeline
from realtime_skyseg.records import NOT_ANALYSED, Frame, Skipped
from realtime_skyseg.storage import Run, RunWriter, open_run
from realtime_skyseg.streaming import Publisher

SHAPE = (64, 80)


class ListCamera:
    """A live camera in memory: hands over what it is given, waits for nobody."""

    Settings: ClassVar[type[DriverSettings]] = DriverSettings
    clock = "list"
    rate_hz = None

    def __init__(self, frames: Iterator[Frame | Exception], waits: bool = False) -> None:
        self._frames = frames
        self.waits = waits
        self.shape = SHAPE
        self.dtype = np.dtype(np.uint8)
        self.description: dict[str, str | int | float | bool] = {}

    def read(self, timeout_s: float) -> Frame | None:
        item = next(self._frames, None)
        if item is None:
            raise CameraEnded
        if isinstance(item, Exception):
            raise item
        return item

    def close(self) -> None:
        pass


def image(index: int, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    return np.random.default_rng(index).normal(128, 12, shape).astype(np.uint8)


def frames(n: int, pause_s: float = 0.0, numbers: Callable[[int], int] = int) -> Iterator[Frame]:
    for index in range(n):
        time.sleep(pause_s)
        yield Frame(image(index), number=numbers(index))


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter.load("compact", "openvino")


@pytest.fixture
def drive(tmp_path: Path, segmenter: Segmenter) -> Iterator[Callable[..., tuple[Pipeline, Run]]]:
    """Run a camera to its end; gives the pipeline and the run file."""
    opened: list[Run] = []

    def run(
        camera: Camera,
        policy: Any = "every",
        analysis_queue: int = 4,
        recorder_queue: int = 8,
        publisher: Publisher | None = None,
    ) -> tuple[Pipeline, Run]:
        segmenter.open(SHAPE)
        writer = RunWriter(tmp_path / "run.h5", SHAPE, camera.dtype, ORIGIN)
        pipeline = Pipeline(
            camera, FramePath(segmenter), writer, publisher, Flow(policy, analysis_queue, recorder_queue)
        )
        pipeline.start()
        assert pipeline.wait(60)
        pipeline.finish()
        writer.close(pipeline.counters.as_dict(), 0)
        assert pipeline.counters.imbalance() is None
        opened.append(open_run(tmp_path / "run.h5"))
        return pipeline, opened[0]

    yield run
    for one in opened:
        one.close()


def test_a_camera_that_waits_loses_nothing(drive: Callable[..., tuple[Pipeline, Run]]) -> None:
    pipeline, run = drive(ListCamera(frames(50), waits=True), analysis_queue=2, recorder_queue=2)
    assert pipeline.counters.as_dict() == {
        "received": 50, "analysed": 50, "written": 50, "not_analysed": {}, "not_written": {}, "camera_lost": 0,
    }  # fmt: skip
    for index in (0, 17, 49):
        np.testing.assert_array_equal(run.raw[index], image(index))
    assert run.table["number"].tolist() == list(range(50))


@pytest.mark.parametrize(
    ("images", "kinds"),
    [
        ([0, 1, 2, 3], []),
        ([0, 1, 1, 1, 2], ["camera_frozen", "camera_frozen_end"]),
        ([0, 0, 1, 2, 2], ["camera_frozen", "camera_frozen_end"] * 2),
    ],
)
def test_a_camera_that_repeats_an_image_is_noticed(
    drive: Callable[..., tuple[Pipeline, Run]], images: list[int], kinds: list[str]
) -> None:
    camera = ListCamera(iter([Frame(image(seed), number=n) for n, seed in enumerate(images)]), waits=True)
    _, run = drive(camera)
    assert [event["kind"] for event in run.events] == kinds
    if kinds:
        assert run.events[0]["frame"] == next(n for n in range(1, 9) if images[n] == images[n - 1])


def test_policy_latest_skips_and_says_so(drive: Callable[..., tuple[Pipeline, Run]]) -> None:
    pipeline, run = drive(ListCamera(frames(200, pause_s=0.0001)), policy="latest", recorder_queue=400)
    counters = pipeline.counters
    assert counters.written == 200, "every raw frame is saved"
    assert counters.not_analysed == {"superseded": 200 - counters.analysed}
    table = run.table
    assert (table["skipped"] == Skipped.NOT_SKIPPED).sum() == counters.analysed
    assert (table["skipped"] == Skipped.SUPERSEDED).sum() == 200 - counters.analysed
    assert table["skipped"][-1] == Skipped.NOT_SKIPPED, "the newest frame is always analysed"


def test_policy_every_with_a_live_camera_counts_what_did_not_fit(drive: Callable[..., tuple[Pipeline, Run]]) -> None:
    pipeline, run = drive(ListCamera(frames(100)), analysis_queue=3, recorder_queue=400)
    counters = pipeline.counters
    assert counters.written == 100
    assert counters.not_analysed == {"queue_full": 100 - counters.analysed}
    assert (run.table["skipped"] == Skipped.QUEUE_FULL).sum() == 100 - counters.analysed


def test_a_camera_faster_than_the_disk_loses_raw_frames_and_says_so(drive: Callable[..., tuple[Pipeline, Run]]) -> None:
    pipeline, run = drive(ListCamera(frames(300)), policy="latest", recorder_queue=1)
    counters = pipeline.counters
    assert counters.not_written == {"queue_full": 300 - counters.written}
    table = run.table
    assert table["written"].sum() == counters.written
    for index in np.flatnonzero(table["written"])[::40]:
        np.testing.assert_array_equal(run.raw[index], image(int(index)), "no frame moved into a gap")


def test_gaps_in_the_cameras_numbers_are_its_losses(drive: Callable[..., tuple[Pipeline, Run]]) -> None:
    pipeline, run = drive(ListCamera(frames(10, numbers=lambda k: k + 5 * (k >= 4)), waits=True))
    assert pipeline.counters.camera_lost == 5
    assert run.table["camera_lost"].tolist() == [0, 0, 0, 0, 5, 0, 0, 0, 0, 0]
    assert [(event["kind"], event["frame"]) for event in run.events] == [("camera_lost", 4)]


def test_a_camera_that_breaks_off_keeps_what_came(drive: Callable[..., tuple[Pipeline, Run]]) -> None:
    def broken() -> Iterator[Frame | Exception]:
        yield from frames(6)
        yield CameraError("the cable was pulled at frame 6")

    pipeline, run = drive(ListCamera(broken(), waits=True))
    assert pipeline.fault == "the cable was pulled at frame 6"
    assert (pipeline.counters.analysed, pipeline.counters.written) == (6, 6)
    assert run.events[-1]["kind"] == "fault"


def test_an_analysis_that_breaks_off_leaves_the_recording_whole(drive: Callable[..., tuple[Pipeline, Run]]) -> None:
    publisher = Publisher(StreamSettings(address="tcp://127.0.0.1:0"), "run-1")
    publisher.close()
    del publisher._door  # its socket is gone: the first heartbeat breaks the analysis thread
    pipeline, run = drive(ListCamera(frames(20), waits=True), publisher=publisher)
    assert "the analysis thread broke off" in pipeline.fault
    assert any("the analysis thread broke off" in event["message"] for event in run.events)
    assert pipeline.counters.written == 20
    assert pipeline.counters.not_analysed == {"failed": 20}
    assert run.table["skipped"].tolist() == [Skipped.FAILED] * 20
    assert "fault" in [event["kind"] for event in run.events]


def test_what_a_camera_says_is_an_event_and_the_run_goes_on(drive: Callable[..., tuple[Pipeline, Run]]) -> None:
    def away() -> Iterator[Frame | Exception]:
        yield from frames(3)
        yield CameraNotice("camera_gone", "the cable was pulled")
        yield CameraNotice("camera_back", "the cable is back")
        yield from frames(6, numbers=lambda k: k + 3)

    pipeline, run = drive(ListCamera(away(), waits=True))
    assert (pipeline.fault, pipeline.camera_changed) == ("", False)
    assert pipeline.counters.written == 9
    assert [(event["kind"], event["message"]) for event in run.events] == [
        ("camera_gone", "the cable was pulled"),
        ("camera_back", "the cable is back"),
    ]
    assert list(pipeline.notices) == ["camera_gone: the cable was pulled", "camera_back: the cable is back"]


def test_a_camera_that_says_it_changes_ends_the_run_well(drive: Callable[..., tuple[Pipeline, Run]]) -> None:
    def changing() -> Iterator[Frame | Exception]:
        yield from frames(4)
        yield CameraChanged("camera_changed", "another size")
        pytest.fail("read after the change")

    pipeline, run = drive(ListCamera(changing(), waits=True))
    assert (pipeline.fault, pipeline.camera_changed) == ("", True)
    assert pipeline.counters.received == pipeline.counters.written == pipeline.counters.analysed == 4
    assert [event["kind"] for event in run.events] == ["camera_changed"]


CHANGES = [
    ("size", np.zeros((32, 80), np.uint8), "32x80 uint8"),
    ("pixel type", np.zeros(SHAPE, np.uint16), "64x80 uint16"),
]


@pytest.mark.parametrize(("what", "odd", "name"), CHANGES, ids=[what for what, _, _ in CHANGES])
def test_a_change_ends_the_run(
    drive: Callable[..., tuple[Pipeline, Run]], what: str, odd: np.ndarray, name: str
) -> None:
    def changing() -> Iterator[Frame]:
        yield from frames(5)
        yield Frame(odd, number=5)
        yield from frames(5)

    pipeline, run = drive(ListCamera(changing(), waits=True))
    assert f"changed to {name} at frame 5, but the run began with 64x80 uint8" in pipeline.fault
    assert pipeline.counters.received == 6
    assert pipeline.counters.not_analysed == pipeline.counters.not_written == {"changed_size": 1}
    assert run.table["skipped"].tolist() == [0] * 5 + [Skipped.CHANGED_SIZE][: len(run.table) - 5]


def test_stop_ends_an_endless_camera(tmp_path: Path, segmenter: Segmenter) -> None:
    def endless() -> Iterator[Frame]:
        yield from frames(10**9, pause_s=0.002)

    segmenter.open(SHAPE)
    writer = RunWriter(tmp_path / "run.h5", SHAPE, np.dtype(np.uint8), ORIGIN)
    pipeline = Pipeline(ListCamera(endless()), FramePath(segmenter), writer, None, Flow("latest", 4, 64))
    pipeline.start()
    assert not pipeline.wait(0.2)
    pipeline.stop()
    assert pipeline.wait(5)
    pipeline.finish()
    writer.close({}, 0)
    assert pipeline.counters.received > 0
    assert pipeline.counters.imbalance() is None


ODD_NUMBERS = [
    # numbers a driver gives, what the file holds, kinds of events
    ("back", lambda k: k if k < 4 else k - 4, [0, 1, 2, 3, 0, 1, 2, 3], ["camera_number"]),
    ("the same", lambda k: 7, [7] * 8, ["camera_number"]),
    ("none", lambda k: None, [-1] * 8, ["camera_number"] * 2),
    ("too large", lambda k: 2**63 + k, [-1] * 8, ["camera_number"] * 2),
    ("of numpy", lambda k: np.uint16(k), [0, 1, 2, 3, 4, 5, 6, 7], []),
    ("a great leap", lambda k: k if k < 4 else k + 2**40, [0, 1, 2, 3, *(2**40 + k for k in range(4, 8))],
     ["camera_lost"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("numbers", "kept", "kinds"), [row[1:] for row in ODD_NUMBERS], ids=[r[0] for r in ODD_NUMBERS]
)
def test_odd_frame_numbers_are_told_and_lose_nothing(
    drive: Callable[..., tuple[Pipeline, Run]], numbers: Any, kept: list[int], kinds: list[str]
) -> None:
    pipeline, run = drive(ListCamera(frames(8, numbers=numbers), waits=True))
    assert pipeline.fault == ""
    assert run.table["written"].tolist() == [1] * 8
    assert run.table["number"].tolist() == kept
    assert [event["kind"] for event in run.events] == kinds


def test_odd_time_stamps_fields_and_texts_are_told_and_lose_nothing(drive: Callable[..., tuple[Pipeline, Run]]) -> None:
    def odd() -> Iterator[Frame | Exception]:
        yield Frame(image(0), 0, camera_ns=2**63 + 5, field_mT=np.float32(2.5))  # type: ignore[arg-type]
        yield CameraNotice("camera_says", "a half \ud800 and an escape \x1b[31m")
        yield Frame(image(1), 1, camera_ns=np.int64(7), field_mT="3")  # type: ignore[arg-type]

    pipeline, run = drive(ListCamera(odd(), waits=True))
    assert pipeline.fault == ""
    assert run.table["camera_ns"].tolist() == [-1, 7]
    np.testing.assert_array_equal(run.table["field_mT"], [2.5, np.nan])
    assert run.events[1]["message"] == "a half ? and an escape ?[31m"


@pytest.mark.parametrize("raised", [SystemExit(3), KeyboardInterrupt(), ValueError("a bug")], ids=repr)
def test_whatever_a_driver_raises_is_the_runs_fault(
    drive: Callable[..., tuple[Pipeline, Run]], raised: BaseException
) -> None:
    class Camera(ListCamera):
        def read(self, timeout_s: float) -> Frame | None:
            if frame := next(self._frames, None):
                assert isinstance(frame, Frame)
                return frame
            raise raised

    pipeline, run = drive(Camera(frames(5), waits=True))
    assert pipeline.fault == f"the camera thread broke off: {raised!r}"
    assert pipeline.counters.written == len(run.raw) == 5


def test_a_camera_that_never_returns_is_told_of_and_left_behind(tmp_path: Path, segmenter: Segmenter) -> None:
    gone_home = threading.Event()

    class Camera(ListCamera):
        def read(self, timeout_s: float) -> Frame | None:
            frame = super().read(timeout_s)
            if frame is not None and frame.number == 3:
                gone_home.wait(60)
            return frame

    segmenter.open(SHAPE)
    writer = RunWriter(tmp_path / "run.h5", SHAPE, np.dtype(np.uint8), ORIGIN)
    pipeline = Pipeline(Camera(frames(10)), FramePath(segmenter), writer, None, Flow("every", 4, 64, stall_s=0.3))
    pipeline.start()
    assert not pipeline.wait(1.0)
    pipeline.stop()
    assert pipeline.wait(8)
    pipeline.finish()
    gone_home.set()
    writer.close({}, 1)
    assert pipeline.fault == "the camera's driver does not return, and is left behind"
    with open_run(tmp_path / "run.h5") as run:
        assert len(run.raw) == pipeline.counters.written == 3
        assert [event["kind"] for event in run.events] == ["camera_hangs", "fault"]
    pipeline._threads[0].join(5)


# --- hand-over between threads ---


def test_a_channel_keeps_order_and_its_bound() -> None:
    channel: Channel[int] = Channel(2)
    assert channel.put(1, wait=False)
    assert channel.put(2, wait=False)
    assert not channel.put(3, wait=False)
    assert [channel.get(0), channel.get(0), channel.get(0.01)] == [1, 2, None]


NEWEST = [
    # capacity, items put, what is left
    (1, 5, [4]),
    (3, 3, [0, 1, 2]),
    (3, 4, [3]),
    (3, 6, [3, 4, 5]),
]


@pytest.mark.parametrize(("capacity", "n", "left"), NEWEST)
def test_a_channel_where_the_newest_wins(capacity: int, n: int, left: list[int]) -> None:
    channel: Channel[int] = Channel(capacity, newest_wins=True)
    assert all(channel.put(item, wait=False) for item in range(n))
    assert [channel.get(0) for _ in left] == left
    assert channel.get(0) is None


@pytest.mark.parametrize("newest_wins", [False, True])
def test_a_closed_channel_takes_nothing_and_loses_nothing(newest_wins: bool) -> None:
    channel: Channel[int] = Channel(1, newest_wins)
    channel.put(1, wait=False)
    channel.close()
    assert not channel.put(2, wait=False)
    assert channel.get(1) == 1
    with pytest.raises(Closed):
        channel.get(1)


def test_closing_wakes_who_waits() -> None:
    full: Channel[int] = Channel(1)
    full.put(1, wait=False)
    answers: list[bool] = []
    waiter = threading.Thread(target=lambda: answers.append(full.put(2, wait=True)))
    waiter.start()
    full.close()
    waiter.join(5)
    assert answers == [False]


def test_who_takes_may_be_left_asleep() -> None:
    channel: Channel[int] = Channel(4)
    taken: list[int | None] = []
    taker = threading.Thread(target=lambda: taken.append(channel.get(5)))
    taker.start()
    channel.put(1, wait=False, wake=False)
    taker.join(0.1)
    assert taken == []
    channel.wake()
    taker.join(5)
    assert taken == [1]


@pytest.mark.parametrize("capacity", [1, 2, 50])
def test_a_channel_of_many_that_put_and_one_that_takes(capacity: int) -> None:
    """No item is lost or changes place with another of the same thread, and nobody sleeps on for good."""
    channel: Channel[tuple[int, int]] = Channel(capacity)

    def put(who: int) -> None:
        for number in range(1000):
            assert channel.put((who, number), wait=True, timeout_s=30)

    putting = [threading.Thread(target=put, args=(who,)) for who in range(3)]
    for thread in putting:
        thread.start()
    taken: list[tuple[int, int]] = []
    while item := channel.get(0.5):
        taken.append(item)
    for thread in putting:
        thread.join(5)
    for who in range(3):
        assert [number for one, number in taken if one == who] == list(range(1000))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has this policy")
def test_the_recorder_takes_no_processor_from_the_analysis(tmp_path: Path, segmenter: Segmenter) -> None:
    before = set(threading.enumerate())
    writer = RunWriter(tmp_path / "run.h5", SHAPE, np.dtype(np.uint8), ORIGIN)
    pipeline = Pipeline(
        ListCamera(frames(10**9, pause_s=0.01)), FramePath(segmenter), writer, None, Flow("latest", 4, 64)
    )
    pipeline.start()
    pipeline.wait(0.3)
    policies = {thread.name: os.sched_getscheduler(thread.native_id or 0) for thread in threading.enumerate()}
    pipeline.finish()
    writer.close({}, 0)
    assert {policies[thread.name] for thread in before} == {os.SCHED_OTHER}
    assert (policies["skyseg-camera"], policies["skyseg-analysis"]) == (os.SCHED_OTHER, os.SCHED_OTHER)
    patient = {name: policy for name, policy in policies.items() if name.startswith(("skyseg-rec", "skyseg-comp"))}
    assert len(patient) >= 2
    assert set(patient.values()) == {os.SCHED_BATCH}


# --- stage clocks ---


@given(st.lists(st.integers(1_000, 10**11), min_size=1, max_size=300))
def test_percentiles_are_right_to_one_per_cent(durations_ns: list[int]) -> None:
    clock = Latency()
    for duration_ns in durations_ns:
        clock.add(duration_ns)
    found = clock.percentiles_ms()
    exact = np.percentile(durations_ns, [50, 99, 99.9], method="inverted_cdf") / 1e6
    for name, value in zip(("p50", "p99", "p99_9"), exact, strict=True):
        assert found[name] == pytest.approx(value, rel=0.0101, abs=1e-3)
    assert found["max"] == pytest.approx(max(durations_ns) / 1e6, abs=1e-3)


def test_no_frame_no_percentile() -> None:
    assert Latency().percentiles_ms() == {"p50": None, "p99": None, "p99_9": None, "max": None}


def test_frames_that_show_nothing_have_no_count(drive: Callable[..., tuple[Pipeline, Run]]) -> None:
    """A black or overexposed frame, and one of NaN: analysed, written, and without a number that could be believed."""
    images = [frame.image.astype(np.float32) for frame in frames(6)]
    images[1][:], images[2][:], images[4][:] = 0, np.nan, 65535
    images[5][:40] = np.nan  # of half a frame something can be told
    given: list[Frame | Exception] = [Frame(image, number) for number, image in enumerate(images)]
    camera = ListCamera(iter(given), waits=True)
    camera.dtype = np.dtype(np.float32)
    pipeline, run = drive(camera)
    assert pipeline.counters.analysed == pipeline.counters.written == 6
    assert np.isnan(run.table["count"]).tolist() == [False, True, True, False, True, False]
    assert np.isnan(run.table["stripes"]).tolist() == [False, True, True, False, True, False]
    assert (run.mask[1] == NOT_ANALYSED).all()
    assert len(run.objects(2)) == 0
    assert [event["kind"] for event in run.events] == [
        "frame_blank",
        "frame_blank_end",
        "frame_blank",
        "frame_blank_end",
    ]
    assert all(run.problem(index) == "" for index in range(6))
