"""The way of a frame: camera -> recorder and analysis -> stream, each in its thread, and the books that balance.

camera thread     reads the camera, numbers and stamps the frames, hands each to the recorder and to analysis
analysis thread   prepare -> segment -> measure -> publish, and the heartbeat
recorder thread   writes raw frames, results and events to the run file; without room on the disk, events only

Longer than other files: one class owns the three threads and what they share.
"""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal

import numpy as np

from realtime_skyseg.analysers import RunningAnalyser
from realtime_skyseg.analysis import FramePath
from realtime_skyseg.devices import Camera, CameraChanged, CameraEnded, CameraNotice
from realtime_skyseg.errors import CameraError, DiskFullError, SettingsError, SkysegError
from realtime_skyseg.pipeline.channel import Channel, Closed
from realtime_skyseg.pipeline.idle import IdleAnalysers
from realtime_skyseg.pipeline.latency import STAGES, Latency
from realtime_skyseg.records import (
    Background,
    Counters,
    Event,
    Frame,
    LateResult,
    Result,
    Skipped,
    TableRow,
    printable,
)
from realtime_skyseg.scheduling import patient_threads
from realtime_skyseg.storage import RunWriter, crc32
from realtime_skyseg.streaming import Publisher

log = logging.getLogger(__name__)

#: The camera thread looks this often whether the run was stopped.
_STOP_CHECK_S = 0.1

#: A camera's driver that has not returned for so long, at the end of a run, is left behind.
_LEAVE_S = 5.0

#: Fill of the recorder's queue that gives an alarm, and below which the next alarm may be given.
_ALARM_FILL, _CALM_FILL = 0.75, 0.5


@dataclass(frozen=True, slots=True)
class _SkippedFrame:
    index: int
    cause: Skipped


@dataclass(slots=True)
class _Recording:
    """Where the recorder stands."""

    taken: int = 0  # frames
    newest: int = -1  # index of the newest frame that was taken
    full_from: float = math.inf  # index of the first frame that the disk has no room for
    broken: bool = False
    changed: bool = False  # the camera wrote into an image that it had handed over, and that was said


#: What the recorder takes.
_Recorded = Frame | Result | LateResult | _SkippedFrame | Event | Background | list[TableRow]


@dataclass(frozen=True, slots=True)
class Flow:
    """How much may wait where, and what happens then."""

    policy: Literal["latest", "every"]  # see `AnalysisSettings.policy`
    analysis_queue: int  # frames that may wait for analysis
    recorder_queue: int  # frames, results and so on that may wait for the disk
    stall_s: float = 5.0  # an alarm is given when disk or camera do not answer for so long
    stop_when_full: bool = False  # end the run when the disk is full


class Pipeline:
    """The threads of one run. `start`, then `wait` until it returns True, then `finish`.

    Owns its threads; camera, writer and publisher belong to whoever made them, and are used here between `start`
    and `finish` only.
    """

    def __init__(
        self,
        camera: Camera,
        path: FramePath,
        writer: RunWriter,
        publisher: Publisher | None,
        flow: Flow,
        field_at: Callable[[int], tuple[float, int]] | None = None,
        analysers: Sequence[RunningAnalyser] = (),
    ) -> None:
        self._camera = camera
        self._path = path
        self.analysers = analysers
        self._writer = writer
        self._publisher = publisher
        self._policy = policy = flow.policy
        self._field_at = field_at  # the field in mT read back nearest to a Unix time, and how long before it, in ns
        self._gap_cause = Skipped.SUPERSEDED if policy == "latest" else Skipped.QUEUE_FULL
        self._to_analysis: Channel[Frame] = Channel(flow.analysis_queue, newest_wins=policy == "latest")
        self._to_recorder: Channel[_Recorded] = Channel(flow.recorder_queue)
        self._late: deque[LateResult] = deque(maxlen=100)  # on their way to the stream
        self._events: deque[Event] = deque(maxlen=1000)  # on their way to the stream
        self._alarms: deque[Event] = deque(maxlen=1000)  # on their way to the file, past a queue that may be full
        self._stall_s, self._stop_when_full = flow.stall_s, flow.stop_when_full
        self._asked_s = 0.0  # when the camera was asked for a frame; 0: it is not
        self._silent = False  # it has not returned since for long
        self.camera_left = False  # the camera's driver hangs in its thread, and is not waited for any more
        self._stalled_s = 0.0  # that the disk has not answered so far, once that is an alarm
        self._queue_alarm = 0.0  # fill that the last alarm was about
        self._newest_crc32: int | None = None  # of the image that was analysed last
        self._same_images = 0  # in a row, that were analysed and are the very image before
        self._blank = 0  # in a row, that show nothing
        self._stop = threading.Event()
        self._over = threading.Event()
        self._faults: list[str] = []
        self._first_ns = self._last_ns = 0
        self._next_number = 0  # that the camera should give next
        self._backwards = False  # the last frame's number was no later than the one before
        self._odd_numbers: set[str] = set()  # kinds of numbers that are no numbers
        self._following = 0  # index that the analysis should meet next
        self._analysis_broke = False
        self._changed_size = -1  # index of the frame that had another size
        self.counters = Counters()
        self.latency = {stage: Latency() for stage in STAGES}
        self.last: Result | None = None  # for display
        self._listeners: dict[str, Callable[[Result], None]] = {}
        self._analyser_latency = {one.name: Latency() for one in analysers if one.pace == "every_frame"}
        idle = [analyser for analyser in analysers if analyser.pace == "when_idle"]
        self._idle = IdleAnalysers(idle, self._take_late, self._note_idle) if idle else None
        self.notices: deque[str] = deque(maxlen=100)  # what the camera had to say, for a display to take
        self.camera_changed = False  # the run ended because its frames have another size or pixel type from now on
        self._threads = [
            # A driver that never returns must not keep the program from ending.
            threading.Thread(target=self._guard, args=(run, name), name=f"skyseg-{name}", daemon=name == "camera")
            for name, run in (("camera", self._read), ("analysis", self._analyse), ("recorder", self._record))
        ]

    @property
    def fault(self) -> str:
        """What went wrong first, one sentence; empty where nothing did."""
        return self._faults[0] if self._faults else ""

    @property
    def span_s(self) -> float:
        """Time between the first and the last frame."""
        return (self._last_ns - self._first_ns) / 1e9

    @property
    def rate_hz(self) -> float:
        """Frames received per second, between the first and the last."""
        return (self.counters.received - 1) / self.span_s if self.span_s > 0 else 0.0

    def start(self) -> None:
        """Start the threads."""
        camera, analysis, recorder = self._threads
        camera.start()
        analysis.start()
        with patient_threads():
            recorder.start()

    def stop(self) -> None:
        """Ask the camera thread to end; what was received is still analysed and written. For any thread."""
        self._stop.set()

    def wait(self, timeout_s: float) -> bool:
        """True once the camera has ended, or hangs and was asked to. Looks after camera and disk meanwhile."""
        deadline = time.monotonic() + timeout_s
        while not self._over.wait(min(max(deadline - time.monotonic(), 0.0), self._stall_s / 4)):
            self._watch_disk()
            self._watch_camera()
            if self._stop.is_set() and self._silent_s > _LEAVE_S:
                return True
            if time.monotonic() >= deadline:
                return False
        return True

    def finish(self) -> None:
        """Let everything that was received come to its end, and end the threads."""
        camera, analysis, recorder = self._threads
        self.stop()
        camera.join(max(_LEAVE_S - self._silent_s, 0.5))
        if camera.is_alive():
            self.camera_left = True
            message = "the camera's driver does not return, and is left behind"
            self.report_fault(message)
        self._to_analysis.close()
        analysis.join()
        for name in self._idle.close() if self._idle else ():
            self.event("analyser_off", f"analyser '{name}' does not return, and is left behind")
        cause = Skipped.FAILED if self._analysis_broke else self._gap_cause
        for index in range(self._following, self.counters.received):
            self._skip(index, Skipped.CHANGED_SIZE if index == self._changed_size else cause)
        self._to_recorder.close()
        recorder.join()

    def take_background(self, frames: int) -> None:
        """Let the analysis make the mean of its next frames the background. For any thread.

        Raises:
            SettingsError: these settings have no background that could be taken.
        """
        if self._path.preparation is None:
            raise SettingsError("prepare: this section is missing, so no background is subtracted; allowed: with it")
        self._path.preparation.take_background(frames)

    def listen(self, name: str, listener: Callable[[Result], None]) -> None:
        """Let somebody have each result with a count, in the analysis thread: it keeps what it wants in a queue of its
        own and returns at once. One that raises is left out from then on. For any thread.
        """
        self._listeners = {**self._listeners, name: listener}

    def unlisten(self, name: str) -> None:
        """Take a listener out; safe to repeat. For any thread."""
        self._listeners = {other: listener for other, listener in self._listeners.items() if other != name}

    def analyser_summary(self) -> dict[str, Any]:
        """What each analyser did, for the summary of the run."""
        latency = self._analyser_latency | (self._idle.latency if self._idle else {})
        return {one.name: {**one.summary(), "ms": latency[one.name].percentiles_ms()} for one in self.analysers}

    def event(self, kind: str, message: str, frame: int = -1, wait: bool = True) -> None:
        """Note an event in the file and the stream. For any thread but the recorder's.

        Without `wait` an event is left out of the file where the recorder's queue is full: a live camera's thread must
        not stand still.
        """
        self.note(Event(time.time_ns(), kind, message, frame), wait)

    def note(self, event: Event, wait: bool = True) -> None:
        """Note an event that has its time already, as `event` does."""
        log.info("%s: %s", event.kind, event.message)
        self._events.append(event)
        self._to_recorder.put(event, wait)

    def rows(self, rows: list[TableRow]) -> bool:
        """Hand rows of an experiment's tables to the recorder; False where its queue is full."""
        return self._to_recorder.put(rows, wait=False)

    def report_fault(self, message: str) -> None:
        """Something else than the frames' way went wrong, so that the run did not end well; it goes on."""
        self._faults.append(message)
        self._alarm("fault", message)

    def _alarm(self, kind: str, message: str) -> None:
        """Note an event that nobody may wait for, least of all on the disk."""
        log.info("%s: %s", kind, message)
        event = Event(time.time_ns(), kind, message)
        self._events.append(event)
        self._alarms.append(event)
        self.notices.append(f"{kind}: {message}")

    def _watch_disk(self) -> None:
        stalled_s = self._writer.stalled_s
        if stalled_s >= self._stall_s:
            if not self._stalled_s:
                waiting = f"{self._to_recorder.fill:.0%} of the recorder's queue is taken"
                self._alarm("disk_stalled", f"the disk has not answered for {stalled_s:.1f} s; {waiting}")
            self._stalled_s = stalled_s
        elif self._stalled_s:
            self._alarm("disk_back", f"the disk answers again after at least {self._stalled_s:.1f} s")
            self._stalled_s = 0.0

    @property
    def _silent_s(self) -> float:
        """For how long the camera's driver has not returned."""
        since = self._asked_s
        return time.monotonic() - since if since else 0.0

    def _watch_camera(self) -> None:
        """A driver returns from `read` in time, with a frame or without; one that does not is told of."""
        silent_s = self._silent_s
        if silent_s >= self._stall_s and not self._silent:
            self._alarm("camera_hangs", f"the camera's driver has not returned for {silent_s:.1f} s")
        elif self._silent and silent_s < self._stall_s:
            self._alarm("camera_back", "the camera's driver returns again")
        self._silent = silent_s >= self._stall_s

    # --- camera thread ---

    def _read(self) -> None:
        try:
            while not (self._stop.is_set() or self.camera_changed):
                self._asked_s = time.monotonic()
                try:
                    frame = self._camera.read(_STOP_CHECK_S)
                    if self.camera_left:
                        return
                except CameraNotice as notice:
                    self.camera_changed = isinstance(notice, CameraChanged)
                    self.notices.append(f"{notice.kind}: {notice}")
                    self.event(notice.kind, str(notice), wait=self._camera.waits)
                    continue
                if frame is not None:
                    self._receive(frame)
        except CameraEnded:
            pass
        finally:
            self._asked_s = 0.0
            self._over.set()

    def _receive(self, frame: Frame) -> None:
        frame.handed_ns = time.perf_counter_ns()
        frame.received_ns = time.time_ns()
        frame.index = self.counters.received
        frame.number, frame.camera_ns = self._whole(frame.number, "number"), self._whole(frame.camera_ns, "time stamp")
        if frame.index == 0:
            self._first_ns, self._next_number = frame.handed_ns, frame.number
        self._last_ns = frame.handed_ns
        lost = max(0, frame.number - self._next_number)
        frame.camera_lost = min(lost, 2**32 - 1)
        backwards = frame.number < self._next_number
        if backwards and not self._backwards:
            message = f"the camera gave frame {frame.number} where {self._next_number} was next, or has none"
            self.event("camera_number", message, frame.index, wait=self._camera.waits)
        self._backwards = backwards
        self._next_number = frame.number + 1
        self.counters.received += 1
        if not isinstance(frame.image, np.ndarray):
            self._changed_size = frame.index
            self.counters.not_written["changed_size"] = 1
            raise CameraError(f"the camera gave {type(frame.image).__name__} at frame {frame.index}; allowed: an array")
        if frame.image.shape != self._camera.shape or frame.image.dtype != self._camera.dtype:
            self._changed_size = frame.index
            self.counters.not_written["changed_size"] = 1
            raise CameraError(
                f"the camera changed to {_kind(frame.image.shape, frame.image.dtype)} at frame {frame.index}, "
                f"but the run began with {_kind(self._camera.shape, self._camera.dtype)}; start a new run"
            )
        if not isinstance(frame.field_mT, float):
            frame.field_mT = float(frame.field_mT) if isinstance(frame.field_mT, Real) else math.nan
        if self._field_at:
            exposed_ns = frame.camera_ns if self._camera.clock.startswith("Unix time") else frame.received_ns
            frame.field_mT, frame.field_age_ns = self._field_at(exposed_ns)
        waits = self._camera.waits
        if lost:
            self.counters.camera_lost += lost
            message = f"the camera lost {lost} frames before frame {frame.index}"
            self.event("camera_lost", message, frame.index, wait=waits)
        analysis_waits = waits and self._policy == "every"
        # Into the recorder's queue first, as its order wants; but analysis is in a hurry and woken first. It would else
        # wait for Python's lock, which the recorder takes when it begins to write.
        taken = self._to_recorder.put(frame, wait=waits, wake=analysis_waits)
        if not taken:
            _count(self.counters.not_written, "queue_full")
        if not waits:
            self._watch_queue(self._to_recorder.fill if taken else 1.0, frame.index)
        # What does not fit here is noticed by the analysis as a gap in the indices.
        self._to_analysis.put(frame, wait=analysis_waits)
        self._to_recorder.wake()

    def _whole(self, value: object, what: str) -> int:
        """A driver's number as the file can hold it; -1 where it is none."""
        whole = int(value) if isinstance(value, Integral) else -1
        if isinstance(value, Integral) and -(2**63) <= whole < 2**63 - 1:
            return whole
        if what not in self._odd_numbers:
            self._odd_numbers.add(what)
            message = f"the camera gives {printable(value)[:60]} as {what}; allowed: a whole number of 64 bits"
            self.event("camera_number", message, self.counters.received, wait=self._camera.waits)
        return -1

    @property
    def recorder_fill(self) -> float:
        """Share of the recorder's queue that is taken."""
        return self._to_recorder.fill

    def _watch_queue(self, fill: float, index: int) -> None:
        """Give an alarm at 75 % and at 100 % of the recorder's queue, each once until it is half empty again."""
        if fill < _CALM_FILL:
            self._queue_alarm = 0.0
        elif fill >= 1.0 > self._queue_alarm:
            self._queue_alarm = 1.0
            self._alarm("recorder_full", f"the recorder's queue is full at frame {index}: what comes next may be lost")
        elif fill >= _ALARM_FILL > self._queue_alarm:
            self._queue_alarm = fill
            self._alarm("recorder_late", f"{fill:.0%} of the recorder's queue is taken at frame {index}")

    # --- analysis thread ---

    def _analyse(self) -> None:
        failing = False
        while True:
            self._serve_stream()  # here, before the wait: a frame that has come does not wait for it
            try:
                frame = self._to_analysis.get(self._publisher.seconds_to_heartbeat() if self._publisher else 60.0)
            except Closed:
                break
            if frame is None:
                continue
            if self._events:
                self._serve_stream()
            for index in range(self._following, frame.index):
                self._skip(index, self._gap_cause)
            self._following = frame.index + 1
            try:
                result = self._analyse_frame(frame)
            except Exception as error:
                log.exception("analysis of frame %d failed", frame.index)
                self._skip(frame.index, Skipped.FAILED)
                if not failing:
                    failing = True
                    message = f"analysis of frame {frame.index} failed: {error}"
                    self._faults.append(message)
                    self.event("fault", message, frame.index)
                continue
            failing = False
            self.counters.analysed += 1
            self.last = result
            result.source_crc32 = crc32(frame.image)
            self._to_file(result)
            if result.segmentation.count is not None:
                self._tell_listeners(result)
            if self._publisher:
                self._publisher.preview(frame, self._path.prepared)
            self._notice_frozen(result.source_crc32, frame.index)
        self._notice_frozen(None, self.counters.received)
        self._serve_stream()

    def _notice_frozen(self, source_crc32: int | None, index: int) -> None:
        """Note when the camera gives the very same image again, which noise rules out, and for how long."""
        if source_crc32 is not None and source_crc32 == self._newest_crc32:
            self._same_images += 1
            if self._same_images == 1:
                message = f"frame {index} is the very image analysed before it: is the camera frozen, or overexposed?"
                self.event("camera_frozen", message, index)
            return
        if self._same_images:
            message = f"{self._same_images} frames before frame {index} were the very image before them"
            self.event("camera_frozen_end", message, index if source_crc32 is not None else -1)
        self._newest_crc32, self._same_images = source_crc32, 0

    def _notice_nothing(self, nothing: bool, index: int) -> None:
        """Note when frames begin and cease to show nothing."""
        if nothing and not self._blank:
            message = f"frame {index} is the same everywhere, or holds no numbers: it has no count"
            self.event("frame_blank", message, index)
            self.notices.append(f"frame_blank: {message}")
        elif self._blank and not nothing:
            self.event("frame_blank_end", f"{self._blank} frames before frame {index} had no count", index)
        self._blank = self._blank + 1 if nothing else 0

    def _analyse_frame(self, frame: Frame) -> Result:
        clock, marks = time.perf_counter_ns, dict[str, int]()

        def mark(stage: str) -> None:
            marks[stage] = clock()

        begun = clock()
        result = self._path(frame, mark=mark)
        assert result is not None
        measured = clock()
        prepared = marks.get("prepare", measured)
        segmented = marks.get("segment", prepared)
        result.segmented_ns = time.time_ns()
        self._notice_nothing(result.segmentation.count is None, frame.index)
        for background in self._path.backgrounds:
            self._to_file(background)
        for kind, message in self._path.events:
            self.event(kind, message, frame.index)
            self.notices.append(f"{kind}: {message}")
        if self._publisher:
            self._publisher.result(result)
            result.published_ns = time.time_ns()
        published = clock()
        for stage, duration_ns in zip(
            STAGES,
            (
                begun - frame.handed_ns,
                prepared - begun,
                segmented - prepared,
                measured - segmented,
                published - measured,
                published - frame.handed_ns - (segmented - prepared),
                published - frame.handed_ns,
            ),
            strict=True,
        ):
            self.latency[stage].add(duration_ns)
        return result

    def _tell_listeners(self, result: Result) -> None:
        for name, listener in self._listeners.items():
            try:
                listener(result)
            except Exception as error:
                log.exception("listener %s failed", name)
                self.unlisten(name)
                self.event("listener_failed", f"{name} is told no results any more: {error}", result.frame.index)
        for one in self.analysers:
            if one.pace == "every_frame" and not one.off:
                self._analyser_latency[one.name].add(one.took_ns)
        if self._idle and self._path.view:
            self._idle.offer(self._path.view)

    def _take_late(self, late: LateResult) -> None:
        """From an analyser beside the path, in its thread."""
        self._late.append(late)
        if not self._to_recorder.put(late, wait=False):
            self._alarm("analyser_late", f"what '{late.analyser}' found in frame {late.frame} has no room in the queue")

    def _note_idle(self, kind: str, message: str, frame: int) -> None:
        self.event(kind, message, frame, wait=False)
        self.notices.append(f"{kind}: {message}")

    def _skip(self, index: int, cause: Skipped) -> None:
        _count(self.counters.not_analysed, cause.name.lower())
        self._to_file(_SkippedFrame(index, cause))

    def _to_file(self, item: Result | _SkippedFrame | Background) -> None:
        """Wait for a place in the recorder's queue. A stalled disk so holds the analysis up, but not the heartbeat."""
        while not self._to_recorder.put(item, wait=True, timeout_s=0.2) and not self._to_recorder.closed:
            self._serve_stream()

    def _serve_stream(self) -> None:
        if self._publisher is None:
            self._events.clear()
            self._late.clear()
            return
        while self._publisher.notices:
            self._alarm(*self._publisher.notices.popleft())
        while self._events:
            self._publisher.event(self._events.popleft())
        while self._late:
            self._publisher.late(self._late.popleft())
        self._publisher.heartbeat(self.counters.as_dict())

    # --- recorder thread ---

    def _record(self) -> None:
        writer, state, over = self._writer, _Recording(), False
        while not over:
            try:
                item = self._to_recorder.get(0.5)
            except Closed:
                item, over = None, True
            state.taken += isinstance(item, Frame)
            if not state.broken:
                self._record_one(item, over, state)
            self.counters.written = writer.frames_written
            if state.full_from < math.inf:
                self.counters.not_written["disk"] = state.taken - writer.frames_written
            if writer.changed_frame >= 0 and not state.changed:
                state.changed = True
                message = f"the camera changed the image of frame {writer.changed_frame} after it handed it over"
                self.report_fault(message)
        while self._alarms and not state.broken:
            writer.add_event(self._alarms.popleft())
        if state.taken > writer.frames_written:
            self.counters.not_written["disk"] = state.taken - writer.frames_written

    def _record_one(self, item: "_Recorded | None", over: bool, state: "_Recording") -> None:
        try:
            while self._alarms:
                self._writer.add_event(self._alarms.popleft())
            if _index(item) < state.full_from:
                self._write(item)
                state.newest = max(state.newest, _index(item) if isinstance(item, Frame) else -1)
            self._writer.flush() if over else self._writer.flush_if_due()
        except DiskFullError as error:
            if state.full_from == math.inf:
                state.full_from = state.newest + 1
                self.report_fault(str(error))
                if self._stop_when_full:
                    self.stop()
        except Exception as error:
            # Go on taking items, so that nobody waits for this thread, and count what is lost.
            state.broken = True
            self._faults.append(str(error))
            log.exception("recording broke off")
            self.stop()

    def _write(self, item: "_Recorded | None") -> None:
        match item:
            case Frame():
                self._writer.add_frame(item)
            case Result():
                self._writer.add_result(item)
            case _SkippedFrame():
                self._writer.add_skipped(item.index, item.cause)
            case LateResult():
                self._writer.add_late(item)
            case Event():
                self._writer.add_event(item)
            case Background():
                self._writer.add_background(item)
            case list():
                for row in item:
                    self._writer.add_row(row)

    # --- all threads ---

    def _guard(self, run: Callable[[], None], name: str) -> None:
        """Turn an error that ends a thread into the run's fault."""
        try:
            run()
        except BaseException as error:  # a driver may raise SystemExit, too
            message = str(error) if isinstance(error, SkysegError) else f"the {name} thread broke off: {error!r}"
            if not isinstance(error, SkysegError):
                log.exception("the %s thread broke off", name)
            self._faults.append(message)
            if name == "analysis":
                # Raw frames come first: the camera is recorded to its end without analysis.
                self._analysis_broke = True
                self._to_analysis.close()
            else:
                self.stop()
                self._over.set()
            if name == "recorder":
                self._to_recorder.close()
            else:
                self.event("fault", message)


def _index(item: object) -> int:
    """Of the frame that an item for the recorder belongs to; -1: to none."""
    match item:
        case Frame() | _SkippedFrame():
            return item.index
        case Result():
            return item.frame.index
    return -1


def _count(causes: dict[str, int], cause: str) -> None:
    causes[cause] = causes.get(cause, 0) + 1


def _kind(shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> str:
    return f"{'x'.join(map(str, shape))} {dtype}"
