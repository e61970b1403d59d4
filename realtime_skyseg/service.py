"""One run from its settings: camera, engine, stream and file put together, and the summary at the end."""

import logging
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from realtime_skyseg.config import Config
from realtime_skyseg.devices import Camera
from realtime_skyseg.errors import ConservationError, RunFileError, StreamError
from realtime_skyseg.pipeline import Pipeline
from realtime_skyseg.records import Class
from realtime_skyseg.segmenter import Segmenter
from realtime_skyseg.storage import Provenance, RunWriter
from realtime_skyseg.streaming import Publisher

log = logging.getLogger(__name__)

Status = Literal["ok", "stopped", "lost", "fault"]


@dataclass(frozen=True, slots=True)
class Summary:
    """How a run went. The same numbers stand in the file, in the stream's end message and in the exit status."""

    status: Status  # ok: the camera ended; stopped: on request; lost: raw frames are missing; fault: see message
    exit_status: int
    message: str  # one sentence where the run did not end well
    frames: dict[str, Any]  # `Counters.as_dict`
    latency_ms: dict[str, dict[str, float | None]]  # stage: p50, p99, p99_9, max
    rate_hz: float
    duration_s: float
    engine: str
    device: str
    precision: str
    model: str
    run_file: str
    lost_messages: int  # of the stream, by at least one slow subscriber

    def as_dict(self) -> dict[str, Any]:
        """As printed by `--json` and kept in the run file."""
        return asdict(self)


class Service:
    """One run. `run` blocks until the camera ends or `stop` is called from another thread or a signal handler.

    >>> import realtime_skyseg as sky
    >>> summary = sky.Service(sky.load_config("configs/demo.yaml")).run()     # doctest: +SKIP
    >>> summary.frames["received"], summary.run_file                          # doctest: +SKIP

    Attributes:
        address: of the stream, once the run has begun; empty where nothing is published.
        run_file: where the run is saved, once it has begun.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.address = ""
        self.run_file = Path()
        self._stop = threading.Event()
        self._pipeline: Pipeline | None = None

    def stop(self) -> None:
        """End the run: what was received is still analysed and written."""
        self._stop.set()
        if self._pipeline:
            self._pipeline.stop()

    def run(self, watch: Callable[[Pipeline], None] | None = None, watch_s: float = 0.25) -> Summary:
        """Run until the camera ends or `stop`.

        Args:
            watch: called every `watch_s` from this thread with the running pipeline, for display.
            watch_s: see there.

        Raises:
            SettingsError: before anything was recorded: a path, an address, a model or an engine is not usable.
            CameraError: the camera cannot be opened.
        """
        config = self.config
        run_id = uuid.uuid4().hex
        with ExitStack() as owned:
            camera = config.camera.open()
            owned.callback(camera.close)
            segmenter = Segmenter.load(
                config.analysis.model,
                config.analysis.engine,
                config.analysis.threads,
                config.measure.min_area_px,
                config.measure.stripe_slenderness,
            )
            engine = segmenter.open(camera.shape)
            publisher = None
            if config.stream.enabled:
                publisher = Publisher(config.stream, run_id)
                owned.callback(publisher.close)
                self.address = publisher.address
            self.run_file = self._path()
            provenance = self._provenance(run_id, camera, segmenter)
            writer = RunWriter(self.run_file, camera.shape, camera.dtype, provenance, config.record.flush_s)
            owned.callback(writer.close, {}, 1)  # where an error goes past `_close`
            pipeline = Pipeline(
                camera,
                segmenter,
                writer,
                publisher,
                config.analysis.policy,
                config.analysis.lag_frames if config.analysis.policy == "latest" else config.analysis.queue_frames,
                config.record.queue_frames,
            )
            started = time.monotonic()
            faults: list[str] = []
            if publisher:
                publisher.start(self._header(camera, segmenter))
                try:
                    self._wait_for_subscribers(publisher)
                except StreamError as error:
                    faults.append(str(error))
                    self._stop.set()
            self._pipeline = pipeline
            if not self._stop.is_set():
                self._drive(pipeline, watch, watch_s)
            frames = pipeline.counters.as_dict()
            if pipeline.fault:
                faults.append(pipeline.fault)
            imbalance = pipeline.counters.imbalance()
            if imbalance:
                faults.append(str(ConservationError(f"the counters of this run do not balance: {imbalance}")))
            status, message = _verdict(frames, faults, self._stop.is_set())
            summary = Summary(
                status=status,
                exit_status=0 if status in ("ok", "stopped") else 1,
                message=message,
                frames=frames,
                latency_ms={stage: clock.percentiles_ms() for stage, clock in pipeline.latency.items()},
                rate_hz=round(pipeline.rate_hz, 3),
                duration_s=round(time.monotonic() - started, 3),
                engine=engine.name,
                device=engine.device,
                precision=engine.precision,
                model=segmenter.model.name,
                run_file=str(self.run_file),
                lost_messages=publisher.lost_messages if publisher else 0,
            )
            summary = _close(writer, summary)
            if publisher:
                publisher.end(summary.status, summary.message, summary.frames)
        return summary

    def _drive(self, pipeline: Pipeline, watch: Callable[[Pipeline], None] | None, watch_s: float) -> None:
        pipeline.start()
        try:
            # `stop` may have come between the last look and `start`.
            if self._stop.is_set():
                pipeline.stop()
            while not pipeline.wait(watch_s):
                if watch and not _show(watch, pipeline):
                    watch = None
        except KeyboardInterrupt:  # where no signal handler calls `stop`, as in a notebook
            self._stop.set()
            watch = None
        finally:
            pipeline.finish()
        if watch:
            _show(watch, pipeline)

    def _wait_for_subscribers(self, publisher: Publisher) -> None:
        wanted, seconds = self.config.stream.wait_for_subscribers, self.config.stream.wait_s
        deadline = time.monotonic() + seconds
        while not self._stop.is_set():
            if publisher.wait_for_subscriptions(wanted, min(0.25, max(0.0, deadline - time.monotonic()))):
                return
            if time.monotonic() >= deadline:
                joined = publisher.subscriptions
                raise StreamError(f"stream.wait_for_subscribers: {joined} of {wanted} joined within {seconds:g} s")

    def _provenance(self, run_id: str, camera: Camera, segmenter: Segmenter) -> Provenance:
        record, engine = self.config.record, segmenter.engine
        return Provenance(
            run_id=run_id,
            configuration=self.config.to_yaml(),
            model=segmenter.model.name,
            weights_sha256=segmenter.model.sha256,
            engine=engine.name,
            device=engine.device,
            precision=engine.precision,
            agreement=engine.agreement,
            title=record.title,
            sample=record.sample,
            operator=record.operator,
            clock=camera.clock,
            camera=camera.description,
            pixel_size_um=self.config.measure.pixel_size_um,
        )

    def _header(self, camera: Camera, segmenter: Segmenter) -> dict[str, Any]:
        """The fields of the stream's `HeaderMessage`."""
        return {
            "filename": str(self.run_file.resolve()),
            "shape": camera.shape,
            "classes": {value.name.lower(): value.value for value in Class},
            "model": segmenter.model.name,
            "engine": segmenter.engine.name,
            "started_ns": time.time_ns(),
            "clock": camera.clock,
            "pixel_size_um": self.config.measure.pixel_size_um,
        }

    def _path(self) -> Path:
        record = self.config.record
        stamp = time.strftime("%Y-%m-%dT%H%M%S") + f"-{time.time_ns() // 1_000_000 % 1000:03d}"
        return record.folder / f"{record.name.replace('{time}', stamp)}.h5"


def _show(watch: Callable[[Pipeline], None], pipeline: Pipeline) -> bool:
    """Call a display; False where it failed, which must not end the run."""
    try:
        watch(pipeline)
    except Exception:
        log.exception("the display of the run failed and is left out from here on")
        return False
    return True


def _verdict(frames: dict[str, Any], faults: list[str], stopped: bool) -> tuple[Status, str]:
    if faults:
        return "fault", "; ".join(dict.fromkeys(faults))
    not_written = sum(frames["not_written"].values())
    if not_written or frames["camera_lost"]:
        return "lost", f"{not_written} raw frames were not written and {frames['camera_lost']} were lost by the camera"
    return ("stopped" if stopped else "ok"), ""


def _close(writer: RunWriter, summary: Summary) -> Summary:
    """Finish the run file; a file that cannot be finished becomes the run's fault."""
    try:
        writer.close(summary.as_dict(), summary.exit_status)
    except RunFileError as error:
        message = "; ".join(filter(None, (summary.message, str(error))))
        values = summary.as_dict() | {
            "status": "fault",
            "exit_status": 1,
            "message": message,
            "run_file": str(writer.partial),
        }
        return Summary(**values)
    return summary
