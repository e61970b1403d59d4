"""Strangers at the stream of a run at 50 frames per second, for 30 s each: no frame is lost, the run can be ended."""

import json
import signal
import socket as sockets
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import realtime_skyseg as sky

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs SIGINT")

SECONDS = 30.0

CONFIG = """
camera: {{driver: replay, path: '{recording}', rate_hz: 50, loop: true}}
analysis: {{policy: every}}
stream: {{address: '{address}'}}
record: {{folder: '{folder}', name: run}}
"""

STRANGERS = {
    "one topic": """
while True:
    socket.send(b"\\x01a")
    socket.send(b"\\x00a")
""",
    "new topics": """
number = 0
while True:
    number += 1
    socket.send(b"\\x01" + str(number).encode())
""",
    "messages of 2 MB": """
import time
while True:
    socket.send(b"\\x01" + bytes(2_000_000))
    time.sleep(0.002)
""",
    "1,100 connections": """
import socket as sockets, time
host, port = "127.0.0.1", int(address.rpartition(":")[2])
while True:
    opened = []
    for _ in range(1100):
        try:
            opened.append(sockets.create_connection((host, port), 1))
        except OSError:
            pass
    time.sleep(0.5)
    for one in opened:
        one.close()
""",
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", STRANGERS)
def test_a_stranger_costs_no_frame(tmp_path: Path, kind: str) -> None:
    with sockets.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    recording = tmp_path / "frames.npy"
    np.save(recording, np.random.default_rng(0).integers(100, 150, (40, 64, 64)).astype(np.uint8))
    config = tmp_path / "run.yaml"
    config.write_text(CONFIG.format(recording=recording, folder=tmp_path, address=address))
    begin = f"import zmq\naddress = '{address}'\nsocket = zmq.Context().socket(zmq.XSUB)\nsocket.connect(address)\n"
    with subprocess.Popen(
        [sys.executable, "-m", "realtime_skyseg.cli", "run", str(config), "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as service:  # fmt: skip
        assert service.stdout is not None
        while "received" not in (line := service.stdout.readline()):
            assert line, "the service did not begin"
        with subprocess.Popen([sys.executable, "-c", begin + STRANGERS[kind]], stderr=subprocess.DEVNULL) as stranger:
            try:
                time.sleep(SECONDS)
                asked = time.monotonic()
                service.send_signal(signal.SIGINT)
                output = service.stdout.read()
                service.wait(20)
                took_s = time.monotonic() - asked
            finally:
                stranger.kill()
                service.kill()
    summary = json.loads(output[output.index("\n{") :])
    frames = summary["frames"]
    print(f"{kind}: {frames['received']} frames, ended {took_s:.2f} s after the request")  # noqa: T201
    assert frames["received"] == frames["analysed"] == frames["written"] > 45 * SECONDS
    with sky.open_run(summary["run_file"]) as run:
        assert not any(run.problem(frame) for frame in range(0, run.n_frames, 50))
    assert took_s < 2.0
