"""Ratios of times that a change of the code may not make worse, and those recorded for this kind of processor.

    python benchmarks/ratios.py [--renew]

Each ratio is our code against a library's for the same data, both on one thread, in turn, so that the machine's speed
and load fall out; the shortest of many calls counts on both sides. tests/bench/test_bench_guard.py fails if one is
more than 25 % above the recorded one. `--renew` writes those of this computer to ratios.json.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch

import realtime_skyseg as sky
from realtime_skyseg.analysers import objects
from realtime_skyseg.segmentation import load_model
from realtime_skyseg.segmentation.choice import open_engine
from realtime_skyseg.segmentation.openvino_engine import capabilities
from realtime_skyseg.segmentation.scaling import scale_mirrored

RECORDED = Path(__file__).with_name("ratios.json")


def processor() -> str:
    """What arithmetic this processor has: ratios hold among computers that have the same."""
    return " ".join(capabilities())


def ratios(rounds: int = 60, shortest: dict[str, list[float]] | None = None) -> dict[str, float]:
    """Our time over the library's, by name. `shortest` keeps the shortest times of both (s) over several calls."""
    shortest = {} if shortest is None else shortest
    rng = np.random.default_rng(0)
    height, width = 512, 672
    y, x = np.indices((height, width))
    discs = (y % 28 - 14) ** 2 + (x % 28 - 14) ** 2 < 30
    image = np.clip(rng.normal(128, 12, (height, width)) - 45 * discs, 0, 255).astype(np.uint8)
    mask = discs.astype(np.uint8)
    segmenter = sky.Segmenter.load("compact", "openvino", threads=1)
    threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        segmenter(image)  # scales it into the engine's input
        with tempfile.TemporaryDirectory() as folder:
            network = open_engine(load_model("compact"), (height, width), "openvino", 1, Path(folder))
        network.input[...] = segmenter.engine.input
        a, b = torch.rand(1024, 768), torch.rand(768, 1024)
        out, product = np.empty((height, width), np.float32), torch.empty(1024, 1024)
        ready = mask.copy()

        def measure() -> None:
            np.copyto(ready, mask)
            objects.measure(ready, image=segmenter.engine.input[:height, :width])

        pairs: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
            "network / matrix product": (network.run, lambda: torch.mm(a, b, out=product)),
            "measure / connectedComponentsWithStats": (measure, lambda: cv2.connectedComponentsWithStats(mask)),
            "scale / Gaussian blur": (lambda: scale_mirrored(image, out), lambda: cv2.GaussianBlur(image, (0, 0), 2.0)),
        }
        found = {}
        for name, (ours, theirs) in pairs.items():
            times: tuple[list[float], list[float]] = ([], [])
            for _ in range(rounds):
                for side, call in zip(times, (ours, theirs), strict=True):
                    begun = time.perf_counter()
                    call()
                    side.append(time.perf_counter() - begun)
            before = shortest.get(name, [float("inf")] * 2)
            ours_s, theirs_s = shortest[name] = [min(old, *new) for old, new in zip(before, times, strict=True)]
            found[name] = round(ours_s / theirs_s, 3)
    finally:
        torch.set_num_threads(threads[0])
        cv2.setNumThreads(threads[1])
    return found


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--renew", action="store_true")
    options = parser.parse_args()
    recorded = json.loads(RECORDED.read_text()) if RECORDED.is_file() else {}
    before = recorded.get(processor(), {})
    runs = [ratios() for _ in range(5 if options.renew else 1)]
    # The middle one: a lucky minimum as the mark would fail honest runs.
    found = {name: sorted(run[name] for run in runs)[len(runs) // 2] for name in runs[0]}
    for name, ratio in found.items():
        print(f"{name}: {ratio} (recorded: {before.get(name)})")
    if options.renew:
        RECORDED.write_text(json.dumps({**recorded, processor(): found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
