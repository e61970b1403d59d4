"""One run from its settings: camera, engine, stream and file put together, and the summary at the end.

Longer than other files: what one run opens is closed by the same class, in the opposite order.
"""

import logging
import math
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from realtime_skyseg.analysers import RunningAnalyser
from realtime_skyseg.analysers.running import BUDGET_MS
from realtime_skyseg.analysis import FramePath, Segmenter
from realtime_skyseg.config import Config
from realtime_skyseg.devices import Camera
from realtime_skyseg.errors import (
    ConservationError,
    ControlError,
    FieldError,
    SettingsError,
    SkysegError,
    StreamError,
)
from realtime_skyseg.experiment import Experiment
from realtime_skyseg.experiment.decide_again import changed_since
from realtime_skyseg.field import FieldGuard
from realtime_skyseg.metrics import Metrics
from realtime_skyseg.pipeline import Flow, Pipeline
from realtime_skyseg.preparation import Preparation, check_model
from realtime_skyseg.records import Class, Event
from realtime_skyseg.service.handle import RunningService
from realtime_skyseg.service.requests import Requests
from realtime_skyseg.service.summary import Summary, Total, close_file, verdict, with_range
from realtime_skyseg.storage import Provenance, RunWriter
from realtime_skyseg.streaming import ControlServer, Publisher

log = logging.getLogger(__name__)

#: A camera may take so long to close.
_RELEASE_S = 20.0


class Service:
    """One run. `run` blocks until the camera ends or `stop` is called from another thread or a signal handler.

    It may be run again. A `stop` that came before `run` ends it at once.

    >>> import realtime_skyseg as sky
    >>> summary = sky.Service(sky.load_config("short.yaml")).run()
    >>> summary.frames["received"], summary.frames["written"]
    (8, 8)

    Attributes:
        address: of the stream, once the run has begun; empty where nothing is published.
        control_address: of the control socket, once the run has begun; empty where there is none.
        metrics_port: where Prometheus finds figures, once the run has begun; None: nowhere.
        field: the magnet, once the run has begun; None where the settings have none.
        running: within `run`.
        opened: set while the addresses above are known.
        pipeline, publisher: of the run that goes on.
        run_file: where the run is saved, once it has begun; after a change of the camera's frames, the next file.
        experiment: the field programme, once the run has begun; None where the settings have none.

    Args:
        config: the settings.
        resume: run file of an experiment that broke off: it goes on, in a file beside that one.
        accept_changes: it goes on with another programme, other limits and so on than in that file, too.
    """

    def __init__(self, config: Config, resume: Path | None = None, accept_changes: bool = False) -> None:
        self.config = config
        self.experiment: Experiment | None = None
        self._resume = resume
        self._accept_changes = accept_changes
        self.address = ""
        self.control_address = ""
        self.metrics_port: int | None = None
        self.run_file = Path()
        self.field: FieldGuard | None = None
        self._stop = threading.Event()
        self.pipeline: Pipeline | None = None
        self.publisher: Publisher | None = None
        self._field_brought = False
        self.run_id = ""
        self.running = False
        self.opened = threading.Event()

    @property
    def stopping(self) -> bool:
        """The run was asked to end."""
        return self._stop.is_set()

    def start(self) -> "RunningService":
        """Begin the run in a thread of its own; returns once its addresses are known.

        >>> import realtime_skyseg as sky
        >>> with sky.Service(sky.load_config("run.yaml")).start() as run:
        ...     with sky.Subscriber(run.address) as stream:
        ...         newest = stream.latest(timeout_s=30)
        ...     run.stop()

        Raises as `run`.
        """
        return RunningService(self)

    def stop(self) -> None:
        """End the run: what was received is still analysed and written."""
        self._stop.set()
        if self.pipeline:
            self.pipeline.stop()

    def take_background(self, frames: int) -> None:
        """Make the mean of the next frames that are analysed the background. From any thread, during the run.

        Raises:
            ControlError: the run has not begun.
            SettingsError: these settings have no background that could be taken.
        """
        if self.pipeline is None:
            raise ControlError("take_background: the run has not begun yet; allowed: once frames come")
        self.pipeline.take_background(frames)

    def run(self, watch: Callable[[Pipeline], None] | None = None, watch_s: float = 0.25) -> Summary:
        """Run until the camera ends or `stop`.

        Args:
            watch: called every `watch_s` from this thread with the running pipeline, for display.
            watch_s: see there.

        Raises:
            SettingsError: before anything was recorded: a path, an address, a model or an engine is not usable.
            CameraError: the camera cannot be opened.
            FieldError: the magnet's supply cannot be opened or read.
        """
        config, requests = self.config, Requests(self)
        self._field_brought = False
        self.pipeline = self.experiment = None  # of a run before this one
        self.run_file = Path()
        self.run_id = run_id = uuid.uuid4().hex
        with ExitStack() as owned:
            owned.callback(self._stop.clear)  # it was about this run
            self.running = True
            owned.callback(setattr, self, "running", False)
            owned.callback(self.opened.clear)
            changes = self._changes()
            camera = config.camera.open()
            owned.callback(_release, camera)
            if min(camera.shape) < 16:  # before the engine is built
                height, width = camera.shape
                raise SettingsError(f"camera: its frames have {height} x {width} px; allowed: sides of 16 px or more")
            segmenter = Segmenter.of(config.analysis, config.measure)
            _check_trust(config, segmenter)
            preparation = self._preparation(camera, segmenter)
            segmenter.open(preparation.shape if preparation else camera.shape)
            if config.field:
                self.field = FieldGuard(config.field)
                owned.callback(self.field.close)
            publisher = None
            if config.stream.enabled:
                publisher = Publisher(config.stream, run_id, config.access.keys)
                owned.callback(publisher.close)
                self.publisher = publisher
                self.address = publisher.address
            if config.control_address:
                server = ControlServer(config.control_address, requests.answer, config.access.keys, requests.notice)
                owned.callback(server.close)
                self.control_address = server.address
            if config.metrics.port is not None:
                metrics = Metrics(config.metrics.port, requests.status, self.latency_ms)
                owned.callback(metrics.close)
                self.metrics_port = metrics.port
            self.run_file = first_file = self._path()
            self.opened.set()
            if config.experiment and config.field and self.field:
                self.experiment = Experiment(config.experiment, config.field, self.field, self._resume, changes)
                owned.callback(self.experiment.close)
            if self._resume:
                first_file = self._resume.with_name(self._resume.name.removesuffix(".partial"))
                self.run_file = _next_file(first_file, 2)
            total = Total()
            while True:
                try:
                    pipeline, summary = self._leg(run_id, camera, segmenter, publisher, watch, watch_s)
                except SkysegError as error:
                    if not total.summaries:
                        raise
                    total.faults.append(str(error))
                    if publisher:
                        publisher.event(Event(time.time_ns(), "fault", str(error)))
                    break
                total.add(pipeline, summary)
                if not pipeline.camera_changed or self._stop.is_set() or self.experiment:
                    break
                self.run_file = _next_file(first_file, len(total.summaries) + 1)
            stopped = self._stop.is_set()
        return total.summary(stopped)

    def _changes(self) -> list[str]:
        """What is not as in the file that this run goes on from. Raises `SettingsError` where that is not accepted."""
        changes = changed_since(self._resume, self.config) if self._resume else []
        if changes and not self._accept_changes:
            raise SettingsError(
                f"--resume: not as '{self._resume}' was made with: {', '.join(changes)}; allowed: the same, or "
                "--accept-changes"
            )
        return changes

    def _leg(
        self,
        run_id: str,
        camera: Camera,
        segmenter: Segmenter,
        publisher: Publisher | None,
        watch: Callable[[Pipeline], None] | None,
        watch_s: float,
    ) -> tuple[Pipeline, Summary]:
        """Frames of one size and type, in one run file: all of the run, unless the camera changes them."""
        config = self.config
        with ExitStack() as owned:
            preparation = self._preparation(camera, segmenter)
            engine = segmenter.open(preparation.shape if preparation else camera.shape)
            provenance = self._provenance(run_id, camera, segmenter)
            record = config.record
            hurries = not camera.waits or camera.rate_hz is not None
            analysers = config.open_analysers(BUDGET_MS if hurries else math.inf)
            writer = RunWriter(
                self.run_file, camera.shape, camera.dtype, provenance, record.flush_s, record.threads,
                record.volume_gb, analysers,
            )  # fmt: skip
            owned.callback(writer.close, {}, 1)  # where an error goes past `close_file`
            pipeline = Pipeline(
                camera,
                FramePath(segmenter, preparation, analysers, config.measure.pixel_size_um),
                writer,
                publisher,
                Flow(
                    config.analysis.policy,
                    config.analysis.lag_frames if config.analysis.policy == "latest" else config.analysis.queue_frames,
                    record.queue_frames,
                    record.stall_s,
                    stop_when_full=self.experiment is not None,
                ),
                self.field.reading_nearest if self.field else None,
                analysers,
            )
            started = time.monotonic()
            faults: list[str] = []
            if publisher:
                publisher.start(self._header(camera, segmenter, analysers))
                try:
                    self._wait_for_subscribers(publisher)
                except StreamError as error:
                    faults.append(str(error))
                    self._stop.set()
            try:
                self._bring_field()
            except FieldError as error:
                faults.append(str(error))
                self._stop.set()
            self.pipeline = pipeline
            if not self._stop.is_set():
                self._drive(pipeline, watch, watch_s)
                faults += self._experiment_faults(pipeline)
            if self.field:
                if self._ends_with(pipeline):
                    self.field.close()
                for event in self.field.notices():
                    writer.add_event(event)
                    if publisher:
                        publisher.event(event)
                if self.field.fault:
                    faults.append(self.field.fault)
            frames = pipeline.counters.as_dict()
            if pipeline.fault:
                faults.append(pipeline.fault)
            imbalance = pipeline.counters.imbalance()
            if imbalance:
                faults.append(str(ConservationError(f"the counters of this run do not balance: {imbalance}")))
            status, message = verdict(frames, faults, self._stop.is_set())
            found = pipeline.analyser_summary()
            summary = Summary(
                status=status,
                exit_status=0 if status in ("ok", "stopped") else 1,
                message=with_range(message, found),
                frames=frames,
                latency_ms={stage: clock.percentiles_ms() for stage, clock in pipeline.latency.items()},
                rate_hz=round(pipeline.rate_hz, 3),
                duration_s=round(time.monotonic() - started, 3),
                engine=engine.name,
                device=engine.device,
                precision=engine.precision,
                model=segmenter.model.name,
                run_file=str(self.run_file),
                run_files=[str(self.run_file)],
                lost_messages=publisher.lost_messages if publisher else 0,
                analysers=found,
            )
            summary = close_file(writer, summary)
            if publisher:
                publisher.end(summary.status, summary.message, summary.frames)
        return pipeline, summary

    def _drive(self, pipeline: Pipeline, watch: Callable[[Pipeline], None] | None, watch_s: float) -> None:
        if self.experiment:
            self.experiment.start(pipeline)
        pipeline.start()
        try:
            # `stop` may have come between the last look and `start`.
            if self._stop.is_set():
                pipeline.stop()
            while not pipeline.wait(watch_s):
                self._note_field(pipeline)
                if watch and not _show(watch, pipeline):
                    watch = None
        except KeyboardInterrupt:  # where no signal handler calls `stop`, as in a notebook
            self._stop.set()
            watch = None
        finally:
            if self.experiment:
                self.experiment.close()
            if self.field and self._ends_with(pipeline):
                # At once, not after the analysis of what still waits.
                self.field.safe("the service ends")
                self._note_field(pipeline)
            pipeline.finish()
        if watch:
            _show(watch, pipeline)

    def _experiment_faults(self, pipeline: Pipeline) -> list[str]:
        if self.experiment is None:
            return []
        outcome = self.experiment.outcome
        if outcome is None:
            return ["experiment: it broke off"]
        if pipeline.camera_changed:
            return ["the camera changed its frames, which ends an experiment"]
        if outcome.status == "fault":
            return [f"experiment: {outcome.message}"]
        if outcome.status == "aborted":
            self._stop.set()
        return []

    def _ends_with(self, pipeline: Pipeline) -> bool:
        """True where no leg follows."""
        return self._stop.is_set() or not pipeline.camera_changed or self.experiment is not None

    def _bring_field(self) -> None:
        """Set the initial field, once, and wait until it is there; unless somebody has asked for another one."""
        settings = self.config.field
        if self.field is None or settings is None or settings.initial_mT is None or self._field_brought:
            return
        self._field_brought = True
        if self.field.target or self.field.halts:
            return
        way_mT = abs(settings.initial_mT - self.field.latest.field_mT)
        try:
            target = self.field.set_mT(settings.initial_mT, halts=0)
        except FieldError:
            if self.field.halts and not self.field.fault:
                return  # a request that makes safe has come just now
            raise
        deadline = time.monotonic() + 1.5 * way_mT / settings.slew_mT_per_s + settings.settle_s + 5.0
        while not self._stop.is_set() and self.field.target == target:
            try:
                if self.field.wait_settled(0.25, target):
                    return
            except FieldError:
                if self.field.fault:
                    raise
                return  # a request that came meanwhile has taken its place
            if time.monotonic() > deadline:
                raise FieldError(
                    f"field.initial_mT: {settings.initial_mT:g} mT was not reached in time; the field is at "
                    f"{self.field.latest.field_mT:g} mT"
                )

    def _note_field(self, pipeline: Pipeline) -> None:
        for event in self.field.notices() if self.field else ():
            pipeline.note(event)
            pipeline.notices.append(f"{event.kind}: {event.message}")

    def latency_ms(self) -> dict[str, dict[str, float | None]]:
        """Stage: p50, p99, p99_9, max; None where nothing was measured."""
        latency = self.pipeline.latency if self.pipeline else {}
        return {stage: clock.percentiles_ms() for stage, clock in latency.items()}

    def _wait_for_subscribers(self, publisher: Publisher) -> None:
        wanted, seconds = self.config.stream.wait_for_subscribers, self.config.stream.wait_s
        deadline = time.monotonic() + seconds
        while not self._stop.is_set():
            if publisher.wait_for_clients(wanted, min(0.25, max(0.0, deadline - time.monotonic()))):
                return
            if time.monotonic() >= deadline:
                joined = publisher.joined
                raise StreamError(f"stream.wait_for_subscribers: {joined} of {wanted} joined within {seconds:g} s")

    def _preparation(self, camera: Camera, segmenter: Segmenter) -> Preparation | None:
        settings = self.config.prepare
        if settings is None:
            return None
        check_model(segmenter.model)
        return Preparation(settings, camera.shape)

    def _provenance(self, run_id: str, camera: Camera, segmenter: Segmenter) -> Provenance:
        record, engine = self.config.record, segmenter.engine
        calibration = self.config.field.calibration if self.config.field else None
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
            timing="hand-over" if not camera.waits else "unknown" if camera.clock == "none" else "recording",
            frame_names=getattr(camera, "names", None),
            camera=camera.description,
            pixel_size_um=self.config.measure.pixel_size_um,
            supply=self.field.description if self.field else {},
            calibration=calibration.to_yaml() if calibration else "",
            experiment=self.experiment.texts if self.experiment else None,
        )

    def _header(self, camera: Camera, segmenter: Segmenter, analysers: Sequence[RunningAnalyser]) -> dict[str, Any]:
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
            "quantities": [
                {"name": q.name, "unit": q.unit, "meaning": q.meaning, "of": q.of}
                for one in analysers
                for q in one.quantities.values()
            ],
            "control": self.control_address,
        }

    def _path(self) -> Path:
        record = self.config.record
        stamp = time.strftime("%Y-%m-%dT%H%M%S") + f"-{time.time_ns() // 1_000_000 % 1000:03d}"
        return record.folder / f"{record.name.replace('{time}', stamp)}.h5"


def _check_trust(config: Config, segmenter: Segmenter) -> None:
    """Raises `SettingsError` for rules that wait for a score that this model does not give."""
    if config.experiment and config.experiment.min_domain is not None and segmenter.model.trust is None:
        raise SettingsError(
            f"experiment.min_domain: the model '{segmenter.model.name}' gives no score, because it was not calibrated; "
            "allowed: a shipped model, or one that went through skyseg calibrate"
        )


def _release(camera: Camera) -> None:
    """Close a camera; a driver that does not return, or fails, does not keep the run from ending."""

    def close() -> None:
        try:
            camera.close()
        except BaseException:
            log.exception("the camera could not be closed")

    thread = threading.Thread(target=close, name="skyseg-camera-close", daemon=True)
    thread.start()
    thread.join(_RELEASE_S)
    if thread.is_alive():
        log.warning("the camera's driver does not return from close, and is left behind")


def _next_file(first: Path, number: int) -> Path:
    """The run file of a later leg; files of other runs are passed over."""
    while True:
        path = first.with_name(f"{first.stem}-{number}{first.suffix}")
        if not (path.exists() or path.with_name(path.name + ".partial").exists()):
            return path
        number += 1


def _show(watch: Callable[[Pipeline], None], pipeline: Pipeline) -> bool:
    """Call a display; False where it failed, which must not end the run."""
    try:
        watch(pipeline)
    except Exception:
        log.exception("the display of the run failed and is left out from here on")
        return False
    return True
