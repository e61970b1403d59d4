"""Frames per second to the disk: the recorder, beside plain h5py with the same filter, and the disk itself.

    python benchmarks/recorder.py [--folder DIR] [--frames N] [--rounds N] [--json FILE]

Each round writes the same 512x512 uint16 frames (camera noise around a level) with uint8 masks three ways, one after
the other: the recorder, flushed each second; h5py as one writes it by hand, with the same filter, two columns,
and a flush after each frame (single-writer-multiple-reader mode both); and as many bytes as the recorder's file has, in
one piece with an fsync at the end. The medians over the rounds are printed, with their spread.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np

from realtime_skyseg.analysers.objects import measure
from realtime_skyseg.records import Frame, Result
from realtime_skyseg.storage import Provenance, RunWriter, crc32

SHAPE = (512, 512)
DIFFERENT = 24  # frames that are repeated
ORIGIN = Provenance(
    run_id="benchmark", configuration="{}", model="none", weights_sha256="", engine="none", device="none",
    precision="none", agreement=1.0,
)  # fmt: skip


def make_frames() -> tuple[list[np.ndarray], list[Result]]:
    """Frames as a 12 bit camera gives them, and masks with some 60 discs."""
    draw = np.random.default_rng(0)
    rows, columns = np.indices(SHAPE)
    images, results = [], []
    for index in range(DIFFERENT):
        discs = (((rows + 3 * index) % 64 - 32) ** 2 + ((columns + index) % 64 - 32) ** 2) < 100
        image = np.clip(draw.normal(2000, 60, SHAPE) - 200 * discs, 0, 4095).astype(np.uint16)
        images.append(image)
        frame = Frame(image, number=index, index=index)
        results.append(Result(frame, measure(discs.astype(np.uint8)), 1, 2, source_crc32=crc32(image)))
    return images, results


def recorder(path: Path, n: int, images: list[np.ndarray], results: list[Result], threads: int) -> float:
    """Seconds for n frames, until all is flushed."""
    writer = RunWriter(path, SHAPE, np.dtype(np.uint16), ORIGIN, flush_s=1.0, threads=threads)
    begun = time.perf_counter()
    for index in range(n):
        frame = Frame(images[index % DIFFERENT], number=index, index=index, received_ns=time.time_ns())
        found = results[index % DIFFERENT]
        writer.add_frame(frame)
        writer.add_result(Result(frame, found.segmentation, 1, 2, source_crc32=found.source_crc32))
        writer.flush_if_due()
    writer.flush()
    took_s = time.perf_counter() - begun
    writer.close({}, 0)
    return took_s


def plain(path: Path, n: int, images: list[np.ndarray], results: list[Result]) -> float:
    """The same by hand."""
    with h5py.File(path, "x", libver="latest") as file:
        filters = hdf5plugin.Bitshuffle(cname="lz4")
        raw = file.create_dataset("raw", (0, *SHAPE), "u2", maxshape=(None, *SHAPE), chunks=(1, *SHAPE), **filters)
        mask = file.create_dataset("mask", (0, *SHAPE), "u1", maxshape=(None, *SHAPE), chunks=(1, *SHAPE), **filters)
        stamp = file.create_dataset("time_ns", (0,), "i8", maxshape=(None,), chunks=(1024,))
        count = file.create_dataset("count", (0,), "i4", maxshape=(None,), chunks=(1024,))
        file.swmr_mode = True
        begun = time.perf_counter()
        for index in range(n):
            found = results[index % DIFFERENT].segmentation
            values = (
                (raw, images[index % DIFFERENT]),
                (mask, found.mask),
                (stamp, time.time_ns()),
                (count, found.count),
            )
            for dataset, value in values:
                dataset.resize(index + 1, axis=0)
                dataset[index] = value
            file.flush()
        return time.perf_counter() - begun


def settle() -> None:
    """Let the system write what it holds of the file before: it would slow down who comes next."""
    if hasattr(os, "sync"):  # not on Windows
        os.sync()


def disk(path: Path, size: int) -> float:
    """Seconds to write so many bytes that no disk compresses, with an fsync."""
    block = np.random.default_rng(1).bytes(8 << 20)
    begun = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for start in range(0, size, len(block)):
            file.write(block[: size - start])
        os.fsync(file.fileno())
    return time.perf_counter() - begun


def main() -> None:
    """Run all rounds and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="on the disk to be measured; default: the temporary folder")
    parser.add_argument("--frames", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2, help="of the recorder that compress")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    images, results = make_frames()
    rates: dict[str, list[float]] = {
        "recorder_fps": [],
        "plain_fps": [],
        "ratio": [],
        "recorder_MBps": [],
        "disk_MBps": [],
    }
    for _ in range(options.rounds):
        folder = Path(tempfile.mkdtemp(dir=options.folder))
        try:
            settle()
            ours = options.frames / recorder(folder / "run.h5", options.frames, images, results, options.threads)
            size = (folder / "run.h5").stat().st_size
            settle()
            by_hand = options.frames / plain(folder / "plain.h5", options.frames, images, results)
            settle()
            raw = size / disk(folder / "raw", size) / 1e6
        finally:
            shutil.rmtree(folder)
        figures = (ours, by_hand, ours / by_hand, ours * size / options.frames / 1e6, raw)
        for name, figure in zip(rates, figures, strict=True):
            rates[name].append(figure)
    for name, values in rates.items():
        print(f"{name:14} {statistics.median(values):8.2f}   {min(values):.2f} to {max(values):.2f}")
    if options.json:
        options.json.write_text(
            json.dumps({name: statistics.median(values) for name, values in rates.items()}, indent=1)
        )


if __name__ == "__main__":
    main()
