"""What a computer that runs no analysis needs: a few packages, and no codecs, engines or compilers."""

import subprocess
import sys
from pathlib import Path

from conftest import settings

import realtime_skyseg as sky

#: Packages of the full install that requirements-client.txt leaves out.
HEAVY = ("torch", "openvino", "numba", "cv2", "av", "imagecodecs", "matplotlib", "scipy", "safetensors", "tifffile",
         "PIL", "rich", "filelock", "platformdirs")  # fmt: skip

PROGRAM = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {heavy}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
import realtime_skyseg as sky

with sky.open_run({path!r}) as run:
    print(run.n_frames, run.problem(1) or "whole", sky.Subscriber, sky.Control)
"""


def test_a_client_needs_little(tmp_path: Path) -> None:
    summary = sky.Service(settings(tmp_path, {"limit": 3})).run()
    program = PROGRAM.format(heavy=HEAVY, path=summary.run_file)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("3 whole <class")
    listed = (Path(__file__).parents[1] / "requirements-client.txt").read_text()
    assert not any(f"\n{name}" in listed for name in HEAVY)


def test_what_a_notebook_offers() -> None:
    assert {"Control", "Segmenter", "Service", "Subscriber", "load_config", "open_run"} <= set(dir(sky))
    assert sky.__version__
