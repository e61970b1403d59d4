"""Shared parts of the tests: settings for a run in a temporary folder, and the watch for leaks."""

import gc
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import hypothesis
import pytest

from realtime_skyseg.config import Config, validate

# The computers that run the tests are shared: no single example has a deadline.
hypothesis.settings.register_profile("skyseg", deadline=None)
hypothesis.settings.load_profile("skyseg")

#: Real labelled Kerr images, where the computer has them.
KERR = Path(os.environ.get("SKYSEG_KERR", Path(__file__).parents[2] / "shared" / "kerr"))


def _open_files() -> int:
    return int(h5py.h5f.get_obj_count(h5py.h5f.OBJ_ALL, h5py.h5f.OBJ_FILE))


def _open_sockets() -> int:
    """Sockets and their wake-up handles of this process; 0 where the system does not list them."""
    here = Path("/proc/self/fd")
    if not here.is_dir():
        return 0
    kinds = []
    for handle in here.iterdir():
        try:
            kinds.append(str(handle.readlink()))
        except OSError:
            continue
    return sum(kind.startswith(("socket:", "anon_inode:[eventfd]")) for kind in kinds)


@pytest.fixture(autouse=True)
def no_leaks() -> Iterator[None]:
    """Fail a test that leaves a thread of ours, a socket or an HDF5 file open."""
    threads, sockets, files = set(threading.enumerate()), _open_sockets(), _open_files()
    yield
    deadline = time.monotonic() + 3
    while True:
        # Libraries keep their worker threads; ours and those of a test have Python names.
        left = [thread for thread in threading.enumerate() if thread not in threads and not thread.daemon]
        if not (left or _open_sockets() > sockets or _open_files() > files):
            return
        if time.monotonic() > deadline:
            break
        gc.collect()
        time.sleep(0.02)
    pytest.fail(
        f"left open: threads {[thread.name for thread in left]}, {_open_sockets() - sockets} sockets, "
        f"{_open_files() - files} HDF5 files"
    )


@pytest.fixture
def kerr() -> Path:
    """The folder of real Kerr images; skips where there is none."""
    if not (KERR / "table.csv").is_file():
        pytest.skip(f"needs the labelled Kerr images in {KERR} (or in $SKYSEG_KERR)")
    return KERR


def settings(folder: Path, camera: dict[str, Any] | None = None, **sections: dict[str, Any]) -> Config:
    """Settings of a run whose file goes to `folder` and whose stream takes a free port."""
    tree: dict[str, Any] = {
        "camera": {"driver": "replay", "rate_hz": "max", **(camera or {})},
        "analysis": {"policy": "every", **sections.pop("analysis", {})},
        "stream": {"address": "tcp://127.0.0.1:0", **sections.pop("stream", {})},
        "record": {"folder": str(folder), "name": "run", **sections.pop("record", {})},
        **sections,
    }
    return validate(tree)


@pytest.fixture(scope="module")
def dark_only(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that marks what is darker than the rest, and says that it knows nothing else."""
    from realtime_skyseg.segmentation.model import load_model, save_model
    from realtime_skyseg.segmentation.threshold import save_threshold

    folder = tmp_path_factory.mktemp("models")
    network = load_model(str(save_threshold(folder / "threshold.safetensors", 0.3, 1.0, bright=False))).load_network()
    save_model(network, folder / "dark.safetensors", {}, polarity="dark")
    return str(folder / "dark.safetensors")
