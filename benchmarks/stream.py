"""Do bad subscribers disturb a run? The same run twice: alone, and with one subscriber that is stopped (SIGSTOP) and
twenty that join and leave at random, all in other processes.

python benchmarks/stream.py --seconds 300

Frames of 256x256 at 100 Hz, segmented by a threshold, so that the stream and not the network is what is tested. Prints
the figures as JSON; exit status 0 where no frame was lost by the recorder and the latencies hold (p50 within 1.2 times,
p99 within 2 times).
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

import realtime_skyseg as sky
from realtime_skyseg.config import validate
from realtime_skyseg.segmentation.threshold import save_threshold
from realtime_skyseg.service import Summary


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each run")
    parser.add_argument("--rate-hz", type=float, default=100.0)
    parser.add_argument("--clients", metavar="ADDRESS", help="be the process of those who join and leave")
    options = parser.parse_args()
    if options.clients:
        return come_and_go(options.clients, options.seconds)
    figures: dict[str, Any] = {"seconds": options.seconds, "rate_hz": options.rate_hz}
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder))
        alone = run(Path(folder), "alone", options.rate_hz, options.seconds, disturbed=False)
        disturbed = run(Path(folder), "disturbed", options.rate_hz, options.seconds, disturbed=True)
    for name, summary in (("alone", alone), ("disturbed", disturbed)):
        latency = {stage: summary.latency_ms[stage] for stage in ("publish", "total")}
        figures[name] = {"frames": summary.frames, "latency_ms": latency, "lost_messages": summary.lost_messages}
    ratios = {
        share: (disturbed.latency_ms["total"][share] or 0) / (alone.latency_ms["total"][share] or 1)
        for share in ("p50", "p99")
    }
    figures["ratios"] = {share: round(ratio, 3) for share, ratio in ratios.items()}
    print(json.dumps(figures, indent=1))
    kept = all(summary.frames["written"] == summary.frames["received"] for summary in (alone, disturbed))
    return 0 if kept and ratios["p50"] <= 1.2 and ratios["p99"] <= 2.0 else 1


def prepare(folder: Path) -> None:
    """A recording of dark discs in noise, and a model for it."""
    rng = np.random.default_rng(0)
    y, x = np.indices((256, 256))
    frames = []
    for _ in range(32):
        image = rng.normal(128, 8, (256, 256))
        for _ in range(60):
            image[(y - rng.uniform(0, 256)) ** 2 + (x - rng.uniform(0, 256)) ** 2 < 36] -= 40
        frames.append(np.clip(image, 0, 255).astype(np.uint8))
    tifffile.imwrite(folder / "frames.tif", np.stack(frames), photometric="minisblack")
    save_threshold(folder / "threshold.safetensors", 0.25, 1.5, False)


def run(folder: Path, name: str, rate_hz: float, seconds: float, disturbed: bool) -> Summary:
    """One run, with or without bad subscribers."""
    config = validate(
        {
            "camera": {"driver": "replay", "path": str(folder / "frames.tif"), "rate_hz": rate_hz, "loop": True,
                       "limit": round(rate_hz * seconds)},
            "analysis": {"policy": "latest", "model": str(folder / "threshold.safetensors"), "threads": 1},
            "stream": {"address": "tcp://127.0.0.1:0"},
            "record": {"folder": str(folder), "name": name},
        }
    )  # fmt: skip
    service = sky.Service(config)
    others: list[subprocess.Popen[bytes]] = []

    def disturb() -> None:
        while not service.address:
            time.sleep(0.01)
        stopped = "import sys, realtime_skyseg as sky; [None for _ in sky.Subscriber(sys.argv[1]).every()]"
        others.append(subprocess.Popen([sys.executable, "-c", stopped, service.address]))
        others.append(
            subprocess.Popen([sys.executable, __file__, "--clients", service.address, "--seconds", str(seconds - 3)])
        )
        time.sleep(3)
        os.kill(others[0].pid, signal.SIGSTOP)

    thread = threading.Thread(target=disturb)
    if disturbed:
        thread.start()
    summary = service.run()
    if disturbed:
        thread.join()
        for process in others:
            process.kill()
            process.wait()
    (folder / f"{name}.h5").unlink()
    return summary


def come_and_go(address: str, seconds: float) -> int:
    """Twenty subscribers that stay for 0.1 to 3 s each, over and over."""
    end = time.monotonic() + seconds

    def client(seed: int) -> None:
        draw = random.Random(seed)
        while time.monotonic() < end:
            with sky.Subscriber(address, masks=draw.random() < 0.5) as stream:
                leave = time.monotonic() + draw.uniform(0.1, 3.0)
                while time.monotonic() < leave:
                    stream.receive(0.1)
            time.sleep(draw.uniform(0.0, 0.5))

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return 0


if __name__ == "__main__":
    sys.exit(main())
