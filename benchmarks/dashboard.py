"""What the page shows beside a run, and what it costs the run: displayed frames per second, their age, latency.

    python benchmarks/dashboard.py [--seconds 20] [--rounds 3] [--rate-hz 25] [--viewers 0 1 2]

Runs of the bundled recording, in turns without and with browsers that look at the page (headless Chromium; needs
playwright and a Chromium of the system). Ratios of `total` are those of one call.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from playwright.sync_api import sync_playwright

import realtime_skyseg as sky
from realtime_skyseg.config import validate

PAGE = 8097


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rate-hz", type=float, default=25)
    parser.add_argument("--viewers", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    totals: dict[int, list[dict[str, float]]] = {n: [] for n in arguments.viewers}
    with sync_playwright() as playwright:
        for _ in range(arguments.rounds):
            for n in arguments.viewers:
                totals[n].append(one(playwright, n, arguments.seconds, arguments.rate_hz))
                print(n, "viewers", {name: round(value, 2) for name, value in totals[n][-1].items()}, flush=True)
    first = arguments.viewers[0]
    for n, found in totals.items():
        ratio = {
            name: statistics.median(one[name] for one in found) / statistics.median(one[name] for one in totals[first])
            for name in ("p50", "p99")
        }
        print(f"{n} viewers: total p50 {ratio['p50']:.2f}, p99 {ratio['p99']:.2f} times that with {first}")


def one(playwright: Any, viewers: int, seconds: float, rate_hz: float) -> dict[str, float]:
    """One run; `total` in ms, frames that were not analysed, and what the browsers have shown."""
    with tempfile.TemporaryDirectory() as folder:
        config = validate({
            "camera": {"driver": "replay", "path": "bundled", "loop": True, "rate_hz": rate_hz},
            "record": {"folder": folder}, "stream": {"address": "tcp://127.0.0.1:5597"},
        })  # fmt: skip
        command = [sys.executable, "-m", "realtime_skyseg", "dashboard", config.stream.address, "--port", str(PAGE)]
        page = subprocess.Popen(command, stdout=subprocess.DEVNULL) if viewers else None
        browsers = [
            playwright.chromium.launch(
                executable_path=shutil.which("chromium") or shutil.which("google-chrome"),
                args=["--no-sandbox", "--disable-gpu"],
            )
            for _ in range(viewers)
        ]
        pages = [browser.new_page(viewport={"width": 1440, "height": 900}) for browser in browsers]
        for one_page in pages:
            for _ in range(100):
                try:
                    one_page.goto(f"http://127.0.0.1:{PAGE}")
                    break
                except Exception:  # it is not there yet
                    time.sleep(0.1)
        with sky.Service(config).start() as run:
            for one_page in pages:
                one_page.wait_for_function("window.skysegView && window.skysegView.drawn > 5", timeout=30_000)
            begun, before = time.monotonic(), [one_page.evaluate("window.skysegView.drawn") for one_page in pages]
            ages: list[float] = []
            while time.monotonic() - begun < seconds:
                time.sleep(0.25)
                ages += [one_page.evaluate("window.skysegView.age") for one_page in pages]
            took = time.monotonic() - begun
            after = [one_page.evaluate("window.skysegView.drawn") for one_page in pages]
            run.stop()
            summary = run.wait()
        for browser in browsers:
            browser.close()
        if page:
            page.terminate()
            page.wait()
    total = summary.latency_ms["total"]
    found = {"p50": total["p50"] or 0.0, "p99": total["p99"] or 0.0,
             "not_analysed": float(sum(summary.frames["not_analysed"].values()))}  # fmt: skip
    if viewers:
        found["displayed_hz"] = min((b - a) / took for a, b in zip(before, after, strict=True))
        found["age_ms"] = statistics.median(ages)
    return found


if __name__ == "__main__":
    main()
