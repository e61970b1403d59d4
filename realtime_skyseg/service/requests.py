"""What the control socket asks of a run, and what it is told."""

import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from realtime_skyseg.errors import ControlError
from realtime_skyseg.experiment import Experiment
from realtime_skyseg.field import FieldGuard
from realtime_skyseg.records import Counters
from realtime_skyseg.streaming import requests

if TYPE_CHECKING:
    from realtime_skyseg.service.service import Service


class Requests:
    """Answers requests about a service. For the thread of the control socket."""

    def __init__(self, service: "Service") -> None:
        self._service = service

    def answer(self, request: requests.Request) -> dict[str, Any] | Callable[[], dict[str, Any]]:
        """Carry out a request of the control socket, at once; or say how, where the magnet's guard has to answer."""
        if isinstance(request, requests.SetField | requests.Demagnetise | requests.Pulse):
            self._check_free(request.do)
        if isinstance(request, requests.Programme):
            return {"programme": self._programme().course()}
        match request:
            case requests.Status():
                return {"status": self.status()}
            case requests.Stop():
                self._service.stop()
                if (
                    self._service.field and self._service.experiment is None
                ):  # whose thread ends first, and makes the field safe
                    self._service.field.safe("a request to stop on the control socket", wait_s=0.0)
            case requests.Mark():
                if self._service.pipeline is None:
                    raise ControlError("mark: the run has not begun yet; allowed: once frames come")
                self._service.pipeline.event("mark", request.message, wait=False)
            case requests.SafeField():
                if self._service.experiment:
                    self._service.experiment.abort()
                self._magnet().safe("a request on the control socket", wait_s=0.0)
            case requests.Pause() | requests.Resume() | requests.Abort():
                getattr(self._programme(), request.do)()
            case requests.TakeBackground():
                self._service.take_background(request.frames)
            case _:
                return self._move(request)
        return {}

    def _move(
        self, request: requests.SetField | requests.EnterField | requests.Demagnetise | requests.Pulse
    ) -> Callable[[], dict[str, Any]]:
        """How to carry out a request that the guard answers; not any more, once one that makes safe has come since."""
        field = self._magnet()
        halts = field.halts

        def move() -> dict[str, Any]:
            match request:
                case requests.SetField():
                    return {"target": field.set_mT(request.field_mT, halts)}
                case requests.Demagnetise():
                    values = (request.amplitude_mT, request.ratio, request.smallest_mT, request.dwell_s)
                    return {"target": field.demagnetise(*values, halts)}
                case requests.Pulse():
                    field.pulse(request.in_plane_mT, request.seconds, halts)
                case requests.EnterField():
                    field.enter_mT(request.field_mT)
            return {}

        return move

    def _magnet(self) -> FieldGuard:
        if self._service.field is None:
            raise ControlError("these settings have no magnet; allowed: requests about it with a section field")
        return self._service.field

    def _check_free(self, do: str) -> None:
        if self._service.stopping:
            raise ControlError(f"{do}: the run ends; allowed: status, safe_field")
        if self._service.experiment and self._service.experiment.outcome is None:
            raise ControlError(f"{do}: a field programme has the magnet; allowed: pause, resume, abort, safe_field")

    def _programme(self) -> Experiment:
        if self._service.experiment is None:
            raise ControlError("these settings have no field programme; allowed: requests about it with an experiment")
        return self._service.experiment

    def notice(self, kind: str, message: str) -> None:
        """Note what happens at the control socket, while there is a run to note it in."""
        if pipeline := self._service.pipeline:
            pipeline.event(kind, message, wait=False)

    def status(self) -> dict[str, Any]:
        """What the answer to `status` holds; None where something is not known."""
        pipeline, reading = self._service.pipeline, self._service.field.latest if self._service.field else None
        target = self._service.field.target if self._service.field else None
        last = pipeline.last if pipeline else None
        return {
            "run": self._service.run_id,
            "run_file": str(self._service.run_file),
            "stream": self._service.address,
            "time_ns": time.time_ns(),
            "stopping": self._service.stopping,
            "fault": (pipeline.fault if pipeline else "") or (self._service.field.fault if self._service.field else ""),
            "frames": pipeline.counters.as_dict() if pipeline else Counters().as_dict(),
            "lost_messages": self._service.publisher.lost_messages if self._service.publisher else 0,
            "rate_hz": round(pipeline.rate_hz, 3) if pipeline else 0.0,
            "frame": last.frame.index if last else None,
            "count": last.segmentation.count if last else None,
            "stripes": last.segmentation.stripes if last else None,
            "field_mT": _finite(reading.field_mT) if reading else None,
            "field_set_mT": reading.set_mT if reading else None,
            # All of one reading: a newer one may have come since.
            "field_settled": self._service.field.settled and reading.settled and reading.target == target
            if self._service.field and reading
            else None,
            "field_target": target,
            "experiment": self._service.experiment.status() if self._service.experiment else None,
            "latency_ms": self._service.latency_ms(),
            "disk_free_gb": _free_gb(self._service.run_file.parent),
            "recorder_fill": round(pipeline.recorder_fill, 3) if pipeline else None,
        }


def _free_gb(folder: Path) -> float | None:
    try:
        return round(shutil.disk_usage(folder).free / 1e9, 1)
    except OSError:
        return None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
