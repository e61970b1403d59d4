"""Does a Micro-Manager camera arrive whole and in time? Measured end to end through the service.

python benchmarks/micromanager.py own --seconds 60        DemoCamera in mode own: 672x512, 16 bit, 10 ms
python benchmarks/micromanager.py attach --seconds 60     live images of 20 ms in a stand-in for Micro-Manager, beside
                                                          a viewer that looks at them like Micro-Manager's own
python benchmarks/micromanager.py outage                  that stand-in killed, and restarted 5 s later
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

import realtime_skyseg as sky
from realtime_skyseg.config import validate
from realtime_skyseg.service import Summary

SERVER = Path(__file__).parents[1] / "tests" / "drivers" / "fake_mm_server.py"
WIDTH, HEIGHT = 672, 512


class StandIn:
    """`tests/drivers/fake_mm_server.py` in its process."""

    def __init__(self, exposure_ms: float) -> None:
        self._exposure_ms = exposure_ms
        self.port = 0
        self.start()

    def start(self) -> None:
        """Start it, on the port it had before."""
        self._process = subprocess.Popen(
            [sys.executable, str(SERVER), "--port", str(self.port), "--exposure-ms", str(self._exposure_ms),
             "--size", str(WIDTH), str(HEIGHT)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        self.port = json.loads(self._process.stdout.readline())["port"]

    def stats(self) -> dict[str, Any]:
        """What clients called, and how the viewer fares."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write('{"do": "stats"}\n')
        self._process.stdin.flush()
        return dict(json.loads(self._process.stdout.readline()))

    def kill(self) -> None:
        """End it as a crash would."""
        self._process.kill()
        self._process.wait()


class Run:
    """The service in a thread."""

    def __init__(self, folder: str, camera: dict[str, Any]) -> None:
        config = validate(
            {
                "camera": {"driver": "micromanager", **camera},
                "stream": {"address": "tcp://127.0.0.1:0"},
                "record": {"folder": folder},
            }
        )
        self._service = sky.Service(config)
        self._summary: Summary | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        self.wait_for(1)

    def received(self) -> int:
        """Frames so far."""
        pipeline = self._service.pipeline
        return pipeline.counters.received if pipeline else 0

    def wait_for(self, received: int) -> None:
        """Wait for so many frames."""
        while self.received() < received and self._thread.is_alive():
            time.sleep(0.01)

    def end(self) -> Summary:
        """Stop the service."""
        self._service.stop()
        self._thread.join()
        if self._summary is None:
            sys.exit(1)
        return self._summary

    def _run(self) -> None:
        self._summary = self._service.run()


def main() -> int:
    """Print the figures as JSON; 0 where all frames arrived."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("own", "attach", "outage"))
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--exposure-ms", type=float, help="default: 10 in mode own, else 20")
    options = parser.parse_args()
    exposure_ms = options.exposure_ms or (10.0 if options.what == "own" else 20.0)
    size = {"PixelType": "16bit", "FastImage": 1, "OnCameraCCDXSize": WIDTH, "OnCameraCCDYSize": HEIGHT}
    camera: dict[str, Any] = {
        "mode": "own", "adapters": "mm-test-adapters", "configuration": "MMConfig_demo.cfg",
        "exposure_ms": exposure_ms, "properties": {"Camera": size},
    }  # fmt: skip
    stand_in = None
    if options.what != "own":
        stand_in = StandIn(exposure_ms)
        camera = {"mode": "attach", "port": stand_in.port}
    figures: dict[str, Any] = {"what": options.what, "exposure_ms": exposure_ms}
    with tempfile.TemporaryDirectory() as folder:
        run = Run(folder, camera)
        cpu_s, begun = time.process_time(), time.monotonic()
        if options.what == "outage":
            assert stand_in is not None
            time.sleep(5)
            stand_in.kill()
            time.sleep(5)
            before = run.received()
            stand_in.start()
            restarted = time.monotonic()
            run.wait_for(before + 1)
            figures["back_after_s"] = round(time.monotonic() - restarted, 2)
            figures["frames_before"] = before
            time.sleep(5)
        else:
            time.sleep(options.seconds)
        figures["cpu"] = round((time.process_time() - cpu_s) / (time.monotonic() - begun), 2)
        if stand_in:
            figures.update(stand_in.stats())
        summary = run.end()
        if stand_in:
            stand_in.kill()
        with sky.open_run(summary.run_file) as recorded:
            table = recorded.table
            figures["in_the_file"] = int(table["written"].sum())
            ages_ms = (table["received_ns"] - table["camera_ns"]) / 1e6
            figures["age_ms"] = {f"p{share}": round(float(np.percentile(ages_ms, share)), 2) for share in (50, 99)}
            figures["events"] = [f"{event['kind']}: {event['message']}" for event in recorded.events]
    figures.update(rate_hz=summary.rate_hz, frames=summary.frames, status=summary.status)
    figures["total_ms"] = summary.latency_ms["total"]
    print(json.dumps(figures, indent=1))
    frames = summary.frames
    return 0 if frames["received"] == frames["written"] and not frames["camera_lost"] else 1


if __name__ == "__main__":
    sys.exit(main())
