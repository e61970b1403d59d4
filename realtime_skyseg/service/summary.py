"""How a run went: its numbers, its verdict, and what several legs add up to."""

import time
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from realtime_skyseg.errors import RunFileError
from realtime_skyseg.pipeline import STAGES, Latency, Pipeline
from realtime_skyseg.records import Counters
from realtime_skyseg.storage import RunWriter

Status = Literal["ok", "stopped", "lost", "fault"]


@dataclass(frozen=True, slots=True)
class Summary:
    """How a run went. The same numbers stand in the file, in the stream's end message and in the exit status.

    A run whose camera changed its frames has several run files. Each holds the numbers of its own leg; here they
    are added up.
    """

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
    run_file: str  # the first, where there are several
    run_files: list[str]
    lost_messages: int  # of the stream, by at least one slow subscriber
    analysers: dict[str, dict[str, Any]]  # name: frames, failed, empty (values), switched_off, ms

    def as_dict(self) -> dict[str, Any]:
        """As printed by `--json` and kept in the run file."""
        return asdict(self)


class Total:
    """What the legs of a run add up to."""

    def __init__(self) -> None:
        self.summaries: list[Summary] = []
        self.faults: list[str] = []  # that are no leg's
        self._counters = Counters()
        self._latency = {stage: Latency() for stage in STAGES}
        self._span_s = 0.0
        self._intervals = 0
        self._started = time.monotonic()

    def add(self, pipeline: Pipeline, summary: Summary) -> None:
        """Count in a leg."""
        self.summaries.append(summary)
        self._counters.add(pipeline.counters)
        for stage, clock in self._latency.items():
            clock.merge(pipeline.latency[stage])
        self._span_s += pipeline.span_s
        self._intervals += max(0, pipeline.counters.received - 1)

    def summary(self, stopped: bool) -> Summary:
        """Of the whole run; of one that has one leg, that leg's."""
        last = self.summaries[-1]
        if len(self.summaries) == 1 and not self.faults:
            return last
        frames = self._counters.as_dict()
        faults = [summary.message for summary in self.summaries if summary.status == "fault"] + self.faults
        status, message = verdict(frames, faults, stopped)
        return replace(
            last,
            status=status,
            exit_status=0 if status in ("ok", "stopped") else 1,
            message=message,
            frames=frames,
            latency_ms={stage: clock.percentiles_ms() for stage, clock in self._latency.items()},
            rate_hz=round(self._intervals / self._span_s, 3) if self._span_s > 0 else 0.0,
            duration_s=round(time.monotonic() - self._started, 3),
            run_file=self.summaries[0].run_file,
            run_files=[summary.run_file for summary in self.summaries],
        )


def range_of(analysers: dict[str, dict[str, Any]]) -> tuple[float, str] | None:
    """Share of the judged frames that were out of the model's range, and a sentence; None: none was judged."""
    domain = analysers.get("domain", {})
    judged, outside = domain.get("judged", 0), domain.get("out_of_range", 0)
    if not judged:
        return None
    why = "" if not outside else f", mostly: {next(iter(domain['reasons']))}"
    return outside / judged, f"{outside / judged:.0%} of {judged} frames were out of the model's range{why}"


def with_range(message: str, analysers: dict[str, dict[str, Any]]) -> str:
    """A run's sentence; of one that was out of range most of the time that comes first."""
    judged = range_of(analysers)
    if judged is None or judged[0] <= 0.5:
        return message
    return "; ".join(filter(None, (f"counts cannot be believed: {judged[1]}", message)))


def verdict(frames: dict[str, Any], faults: list[str], stopped: bool) -> tuple[Status, str]:
    """Status and sentence of a run, from its counters, its faults, and whether it was asked to end."""
    if faults:
        return "fault", "; ".join(dict.fromkeys(faults))
    not_written = sum(frames["not_written"].values())
    if not_written or frames["camera_lost"]:
        return "lost", f"{not_written} raw frames were not written and {frames['camera_lost']} were lost by the camera"
    return ("stopped" if stopped else "ok"), ""


def close_file(writer: RunWriter, summary: Summary) -> Summary:
    """Finish the run file; a file that cannot be finished becomes the run's fault."""
    try:
        writer.close(summary.as_dict(), summary.exit_status)
    except RunFileError as error:
        message = "; ".join(filter(None, (summary.message, str(error))))
        frames, lost = summary.frames, summary.frames["written"] - writer.frames_written
        if lost:
            causes = {**frames["not_written"], "file": frames["not_written"].get("file", 0) + lost}
            frames = {**frames, "written": writer.frames_written, "not_written": causes}
        values = summary.as_dict() | {
            "status": "fault",
            "exit_status": 1,
            "message": message,
            "frames": frames,
            "run_file": str(writer.partial),
            "run_files": [str(writer.partial)],
        }
        return Summary(**values)
    return summary
