"""The camera driver `micromanager` on real parts: MMCore with its DemoCamera, and pycromanager's real client.

Mode `attach` looks at a stand-in for Micro-Manager (`fake_mm_server.py`) in another process. Mode `own` has one MMCore
per process, which all its tests share.
"""

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from realtime_skyseg_drivers.micromanager_picture import read_picture

import realtime_skyseg as sky
from realtime_skyseg.config import validate
from realtime_skyseg.devices import Camera, CameraChanged, CameraNotice
from realtime_skyseg.errors import CameraError, SettingsError
from realtime_skyseg.records import Class, Frame, Skipped
from realtime_skyseg.service import Summary
from realtime_skyseg.streaming import EventMessage, HeaderMessage, SeriesEndMessage

pytest.importorskip("mmpycorex", reason="needs pycromanager: pip install 'realtime_skyseg[micromanager]'")
pytest.importorskip("mm_test_adapters", reason="needs mm-test-adapters: pip install 'realtime_skyseg[test]'")
pytest.importorskip("pymmcore_plus", reason="needs pymmcore-plus: pip install 'realtime_skyseg[test]'")

from fake_mm_server import truth
from known_camera import PICTURES, picture

SERVER = Path(__file__).with_name("fake_mm_server.py")

OWN: dict[str, Any] = {
    "driver": "micromanager",
    "mode": "own",
    "adapters": "mm-test-adapters",
    "configuration": "MMConfig_demo.cfg",
    "exposure_ms": 10,
    "properties": {
        "Camera": {"PixelType": "16bit", "FastImage": 1, "OnCameraCCDXSize": 128, "OnCameraCCDYSize": 96}
    },
}  # fmt: skip


def open_camera(**camera: Any) -> Camera:
    return validate({"camera": {"driver": "micromanager", **camera}}).camera.open()


def take(camera: Camera, n: int, timeout_s: float = 10) -> tuple[list[Frame], list[CameraNotice]]:
    """The next n frames, and what was said between them."""
    frames: list[Frame] = []
    notices: list[CameraNotice] = []
    deadline = time.monotonic() + timeout_s
    while len(frames) < n:
        assert time.monotonic() < deadline, (len(frames), notices)
        try:
            frame = camera.read(0.1)
        except CameraNotice as notice:
            notices.append(notice)
        else:
            frames += [frame] if frame else []
    return frames, notices


def heard(camera: Camera, kind: str, timeout_s: float = 10) -> CameraNotice:
    """Read until the camera has something of this kind to say."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            camera.read(0.1)
        except CameraNotice as notice:
            if notice.kind == kind:
                return notice
    pytest.fail(f"no {kind} within {timeout_s} s")


class Server:
    """The stand-in, in its process."""

    def __init__(self, *arguments: str) -> None:
        self.arguments = arguments
        self.port = 0
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(SERVER), "--port", str(self.port), *self.arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.port = self._line()["port"]

    def tell(self, do: str, **order: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, **order}) + "\n")
        self.process.stdin.flush()
        return self._line()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()

    def _line(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        return dict(json.loads(self.process.stdout.readline()))


@pytest.fixture
def server() -> Iterator[Callable[..., Server]]:
    """Starts stand-ins with the arguments it is given."""
    started: list[Server] = []

    def start(*arguments: str) -> Server:
        started.append(Server("--size", "128", "96", *arguments))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.kill()


class Running:
    """A service in a thread."""

    def __init__(self, config: Any) -> None:
        self.service = sky.Service(config)
        self.summary: Summary | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self.summary = self.service.run()

    def received(self) -> int:
        pipeline = self.service.pipeline
        return pipeline.counters.received if pipeline else 0

    def segment(self) -> str:
        """The run file that is being written."""
        pipeline = self.service.pipeline
        return pipeline._writer.path.name if pipeline else ""

    def until(self, condition: Callable[[], bool], timeout_s: float = 20) -> float:
        """Wait for something; gives how long that took."""
        begun = time.monotonic()
        while not condition():
            assert time.monotonic() - begun < timeout_s
            time.sleep(0.02)
        return time.monotonic() - begun

    def end(self) -> Summary:
        self.service.stop()
        self._thread.join(30)
        assert self.summary is not None
        return self.summary


def live(folder: Path, camera: dict[str, Any]) -> Running:
    """A service under way, with at least one frame received."""
    config = validate(
        {
            "camera": {"driver": "micromanager", **camera},
            "analysis": {"policy": "latest", "threads": 1},
            "stream": {"address": "tcp://127.0.0.1:0", "queue_messages": 20_000},
            "record": {"folder": str(folder), "name": "run", "queue_frames": 1000},  # other programs use the disk too
        }
    )
    running = Running(config)
    running.until(lambda: running.received() > 0, 60)
    return running


def events(path: str) -> list[str]:
    with sky.open_run(path) as run:
        return [event["kind"] for event in run.events]


# --- attach ---


def test_attach_sees_the_live_images_and_takes_none_away(server: Callable[..., Server]) -> None:
    stand_in = server("--known")
    camera = open_camera(mode="attach", port=stand_in.port)
    try:
        assert (camera.shape, camera.dtype) == ((96, 128), np.uint16)
        assert camera.description["adapter"] == "DemoCamera/DCam"
        assert camera.description["exposure_ms"] == 20
        assert camera.description["roi_px"] == "0, 0, 128, 96"
        frames, notices = take(camera, 60)
        age_s = [(time.time_ns() - frame.camera_ns) / 1e9 for frame in frames[-1:]]
    finally:
        camera.close()
    assert notices == []
    # `truth` is another picture for each of MMCore's numbers; its first pixel tells the number.
    first = int(frames[0].image[0, 0]) * pow(101, -1, 4096) % 4096
    for frame in frames:
        np.testing.assert_array_equal(frame.image, truth(first + frame.number, (96, 128)))
    assert frames[0].number == 0
    assert 0 <= age_s[0] < 1
    stats = stand_in.tell("stats")
    assert stats["grabs"] > 10
    assert stats["answered"] >= 0.99 * stats["grabs"]
    assert set(stats["calls"]) <= {
        "getCameraDevice", "getDeviceLibrary", "getDeviceName", "getVersionInfo", "getAPIVersionInfo", "getExposure",
        "isSequenceRunning", "getRemainingImageCount", "getLastTaggedImage", "getNBeforeLastTaggedImage",
    }  # fmt: skip


def test_frames_of_known_truth_become_their_masks(server: Callable[..., Server], tmp_path: Path) -> None:
    """From a camera behind the real MMCore to the run file: every frame is whole, and has its own mask and count."""
    stand_in = server("--discs", "--size", "320", "256", "--exposure-ms", "60")
    running = live(tmp_path, {"mode": "attach", "port": stand_in.port})
    running.until(lambda: running.received() > 24)
    summary = running.end()
    assert (summary.status, summary.frames["camera_lost"]) == ("stopped", 0)
    known = [picture(place, (256, 320)) for place in range(PICTURES)]
    with sky.open_run(summary.run_file) as run:
        table = run.table
        first = next(place for place in range(PICTURES) if np.array_equal(run.raw[0], known[place][0]))
        scores = []
        for index in range(run.n_frames):
            image, truth = known[(first + int(table["number"][index])) % PICTURES]
            np.testing.assert_array_equal(run.raw[index], image)
            if table["skipped"][index] == Skipped.NOT_SKIPPED:
                assert table["count"][index] == cv2.connectedComponents(truth.astype(np.uint8))[0] - 1
                found = run.mask[index] == Class.SKYRMION
                scores.append((found & truth).sum() / (found | truth).sum())
    assert len(scores) > 5
    assert min(scores) > 0.7


def test_attach_says_when_live_images_go_and_when_they_are_back(server: Callable[..., Server]) -> None:
    stand_in = server()
    camera = open_camera(mode="attach", port=stand_in.port)
    try:
        before, _ = take(camera, 5)
        stand_in.tell("live", on=False)
        assert "press Live" in str(heard(camera, "camera_gone", 3))
        assert [camera.read(0.1) for _ in range(8)] == [None] * 8, "one notice is enough"
        stand_in.tell("live", on=True)
        assert "again, after" in str(heard(camera, "camera_back", 3))
        after, notices = take(camera, 3)
        assert notices == []
        stand_in.tell("live", on=True)  # off and on within a moment
        restarted, notices = take(camera, 20)
    finally:
        camera.close()
    assert [notice.kind for notice in notices] in (["camera_restarted"], ["camera_gone", "camera_back"])
    assert after[0].number > before[-1].number
    assert restarted[-1].number - after[-1].number < 25, "a restart is no loss"


def test_attach_fills_a_short_gap_from_the_buffer(server: Callable[..., Server]) -> None:
    """What came while a call was slow is fetched afterwards, each picture under its own number and in order."""
    stand_in = server("--known", "--exposure-ms", "50")
    camera = open_camera(mode="attach", port=stand_in.port)
    try:
        before, _ = take(camera, 5)
        stand_in.tell("delay", s=0.17)
        after, notices = take(camera, 12)
    finally:
        camera.close()
    assert notices == []
    frames = before + after
    assert [frame.number for frame in frames] == list(range(len(frames)))
    first = int(frames[0].image[0, 0]) * pow(101, -1, 4096) % 4096
    for frame in frames:
        np.testing.assert_array_equal(frame.image, truth(first + frame.number, (96, 128)))
    assert stand_in.tell("stats")["calls"]["getNBeforeLastTaggedImage"] >= 2


def test_attach_counts_what_it_could_not_see(server: Callable[..., Server], tmp_path: Path) -> None:
    stand_in = server()
    running = live(tmp_path, {"mode": "attach", "port": stand_in.port})
    running.until(lambda: running.received() > 10)
    stand_in.tell("delay", s=0.6)
    received = running.received()
    running.until(lambda: running.received() > received + 40)
    summary = running.end()
    assert (summary.status, summary.exit_status) == ("lost", 1)
    assert 20 <= summary.frames["camera_lost"] <= 60
    assert "camera_lost" in events(summary.run_file)
    with sky.open_run(summary.run_file) as run:
        numbers = run.table["number"]
        assert numbers[-1] - numbers[0] + 1 - len(numbers) == summary.frames["camera_lost"]


@pytest.mark.parametrize(("n_bytes", "fits"), [(64 * 96 * 2, True), (64 * 96, False), (3, False), (0, False)])
def test_an_image_that_does_not_fit_its_tags_is_left_out(n_bytes: int, fits: bool) -> None:
    """Both are read one after the other, and the camera may change in between."""
    tags = {"PixelType": "GRAY16", "Height": "64", "Width": "96", "ImageNumber": "7"}
    assert (read_picture(tags, memoryview(bytes(n_bytes))) is not None) == fits


def test_another_size_begins_another_run_file(server: Callable[..., Server], tmp_path: Path) -> None:
    stand_in = server()
    running = live(tmp_path, {"mode": "attach", "port": stand_in.port})
    heard: list[Any] = []
    with sky.Subscriber(running.service.address, queue_messages=20_000) as stream:
        running.until(lambda: running.received() > 10)
        stand_in.tell("set", roi=[16, 8, 96, 64])
        running.until(lambda: running.segment() == "run-2.h5" and running.received() > 10)
        stand_in.tell("set", PixelType="8bit")
        running.until(lambda: running.segment() == "run-3.h5" and running.received() > 10)
        summary = running.end()
        while sum(isinstance(message, SeriesEndMessage) for message in heard) < 3:
            message = stream.receive(5)
            assert message is not None
            heard.append(message)
    assert summary.status == ("lost" if summary.frames["camera_lost"] else "stopped")  # by a busy computer
    assert [Path(path).name for path in summary.run_files] == ["run.h5", "run-2.h5", "run-3.h5"]
    assert summary.run_file == summary.run_files[0]
    parts = []
    for path, shape, dtype in zip(
        summary.run_files, [(96, 128), (64, 96), (64, 96)], [np.uint16, np.uint16, np.uint8], strict=True
    ):
        with sky.open_run(path) as run:
            assert run.raw.shape[1:] == shape
            assert run.raw.dtype == dtype
            assert run.summary is not None
            parts.append(run.summary["frames"])
            assert run.exit_status == (1 if parts[-1]["camera_lost"] else 0)
            assert run.n_frames == parts[-1]["received"] == parts[-1]["written"]
            assert path == summary.run_files[-1] or "camera_changed" in [event["kind"] for event in run.events]
    for key in ("received", "written", "analysed", "camera_lost"):
        assert summary.frames[key] == sum(part[key] for part in parts)
    headers = [message for message in heard if isinstance(message, HeaderMessage)]
    assert list(dict.fromkeys(tuple(header.shape) for header in headers)) == [(96, 128), (64, 96)]
    assert len({header.filename for header in headers}) == 3
    ends = [message for message in heard if isinstance(message, SeriesEndMessage)]
    assert [end.frames for end in ends] == parts
    assert "camera_changed" in [message.kind for message in heard if isinstance(message, EventMessage)]


def test_a_server_that_is_killed_and_comes_back(server: Callable[..., Server], tmp_path: Path) -> None:
    stand_in = server()
    running = live(tmp_path, {"mode": "attach", "port": stand_in.port})
    running.until(lambda: running.received() > 20)
    stand_in.kill()
    time.sleep(0.2)  # what was on its way has come
    before = running.received()
    time.sleep(5)
    assert running.received() == before
    stand_in.start()
    assert running.until(lambda: running.received() > before, 10) < 3
    running.until(lambda: running.received() > before + 10)
    summary = running.end()
    assert summary.frames["received"] == summary.frames["written"] > before
    happened = events(summary.run_file)
    assert happened.count("camera_gone") == happened.count("camera_back") == 1
    with sky.open_run(summary.run_file) as run:
        assert run.n_frames == summary.frames["received"]
        assert (np.diff(run.table["time_s"]) > 4.5).sum() == 1


def test_a_call_that_hangs_is_noticed(server: Callable[..., Server]) -> None:
    stand_in = server()
    camera = open_camera(mode="attach", port=stand_in.port)
    try:
        take(camera, 5)
        stand_in.tell("delay", s=4)
        begun = time.monotonic()
        assert "has not returned" in str(heard(camera, "camera_gone"))
        assert time.monotonic() - begun < 2.2
        heard(camera, "camera_back", 15)
        take(camera, 5)
    finally:
        camera.close()


ORPHAN = """
import sys, time
from realtime_skyseg.config import validate
camera = validate({"camera": {"driver": "micromanager", "mode": "attach", "port": int(sys.argv[1])}}).camera.open()
while not camera.read(1):
    pass
print("looking", flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc")
def test_nobody_looks_on_after_a_kill_of_the_service(server: Callable[..., Server]) -> None:
    stand_in = server()

    def lookers() -> int:
        n = 0
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):  # it has just ended
                command = path.read_bytes()
                n += b"micromanager_peek" in command and str(stand_in.port).encode() in command
        return n

    service = subprocess.Popen([sys.executable, "-c", ORPHAN, str(stand_in.port)], stdout=subprocess.PIPE, text=True)
    assert service.stdout is not None
    with service.stdout:
        assert service.stdout.readline() == "looking\n"
        assert lookers() == 1
        service.kill()
        service.wait()
    deadline = time.monotonic() + 5
    while lookers():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_attach_without_micromanager_says_what_to_switch_on() -> None:
    port = free_port()
    with pytest.raises(CameraError, match=f"nothing listens at 127.0.0.1:{port}; .*'Run pycro-manager server on port"):
        open_camera(mode="attach", port=port)


def test_attach_without_live_images_says_so(server: Callable[..., Server]) -> None:
    with pytest.raises(CameraError, match="no live images: Micro-Manager takes no images; press Live there"):
        open_camera(mode="attach", port=server("--off").port)


def test_another_version_of_the_bridge_is_named(server: Callable[..., Server]) -> None:
    with pytest.raises(
        CameraError, match=r"speaks version 4\.2\.0 of the bridge, .* pycromanager 5\.1\.0; install a newer"
    ):
        open_camera(mode="attach", port=server("--version", "4.2.0").port)


@pytest.mark.parametrize("camera", [OWN, {"mode": "attach"}], ids=["own", "attach"])
def test_a_missing_package_is_named(camera: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mmpycorex", None)  # as if it were not installed
    with pytest.raises(SettingsError, match=r"pip install 'realtime_skyseg\[micromanager\]'"):
        open_camera(**camera)


# --- own ---


def test_own_gives_every_frame_and_can_be_opened_again() -> None:
    for binning, shape in ((1, (96, 128)), (2, (48, 64))):
        camera = open_camera(**{**OWN, "binning": binning})
        try:
            assert (camera.shape, camera.dtype) == (shape, np.uint16)
            assert camera.description["exposure_ms"] == 10
            frames, notices = take(camera, 50)
        finally:
            camera.close()
        assert notices == []
        assert [frame.number for frame in frames] == list(range(50))
        assert {frame.image.shape for frame in frames} == {shape}
        stamps = np.array([frame.camera_ns for frame in frames])
        assert 8e6 < np.median(np.diff(stamps)) < 20e6
        assert abs(time.time_ns() - stamps[-1]) < 2e9


def test_own_has_one_camera_at_a_time() -> None:
    camera = open_camera(**OWN)
    try:
        with pytest.raises(CameraError, match="open in this process already"):
            open_camera(**OWN)
    finally:
        camera.close()
        camera.close()


def test_own_starts_a_camera_again_that_stopped() -> None:
    import mmpycorex

    camera = open_camera(**OWN)
    try:
        before, _ = take(camera, 5)
        mmpycorex.Core().stop_sequence_acquisition()
        assert "stopped by itself" in str(heard(camera, "camera_gone", 3))
        heard(camera, "camera_back", 3)
        after, notices = take(camera, 5)
        assert notices == []
        assert [frame.number for frame in after] == list(range(after[0].number, after[0].number + 5))
        assert after[0].number > before[-1].number
        mmpycorex.Core().set_roi(0, 0, 64, 48)  # DemoCamera stops for it
        changed = heard(camera, "camera_changed", 5)
        assert isinstance(changed, CameraChanged)
        assert "from left, top, width, height 0, 0, 128, 96 uint16 to 0, 0, 64, 48 uint16" in str(changed)
        assert camera.shape == (48, 64)
        assert take(camera, 1)[0][0].image.shape == (48, 64)
    finally:
        camera.close()


def test_own_says_when_a_camera_that_runs_falls_silent() -> None:
    camera = open_camera(**{**OWN, "exposure_ms": 900, "silence_s": 1})
    try:
        import mmpycorex

        take(camera, 1)
        mmpycorex.Core().set_exposure(2500.0)  # what counts as silence was meant for 900 ms
        assert "no image for 1 s, though the camera seems to run" in str(heard(camera, "camera_gone"))
        frames, notices = take(camera, 1)
        assert [notice.kind for notice in notices] == ["camera_back"]
        assert frames[0].number > 0
    finally:
        camera.close()


def test_own_shows_a_full_buffer_as_a_gap() -> None:
    size = {"OnCameraCCDXSize": 1024, "OnCameraCCDYSize": 1024, "PixelType": "16bit", "FastImage": 1}
    camera = open_camera(**{**OWN, "buffer_mb": 16, "properties": {"Camera": size}})
    try:
        take(camera, 1)
        time.sleep(0.5)  # 50 frames; 7 fit
        frames, _ = take(camera, 10)
    finally:
        camera.close()
    assert frames[-1].number > 30


def test_own_records_every_frame(tmp_path: Path) -> None:
    running = live(tmp_path, OWN)
    running.until(lambda: running.received() > 100)
    summary = running.end()
    assert summary.frames["received"] == summary.frames["written"]
    assert summary.frames["camera_lost"] == 0
    with sky.open_run(summary.run_file) as run:
        table = run.table
        assert table["number"].tolist() == list(range(run.n_frames))
        assert np.median(table["received_ns"] - table["camera_ns"]) < 3e6


WRONG = [
    # settings, what the sentence says
    ({"port": 4828}, "camera: port is a key of mode attach; leave it out in mode own"),
    ({"mode": "attach"}, "camera: adapters is a key of mode own; leave it out in mode attach"),
    ({"mode": "both"}, "camera.mode: 'both' is not allowed: input should be 'own' or 'attach'"),
    ({"adapters": "/nowhere"}, "camera.adapters: '/nowhere' is no folder; allowed: "),
    ({"configuration": "nothing.cfg"}, "camera.configuration: 'nothing.cfg' is no file, neither here nor in "),
    ({"configuration": __file__}, "camera.configuration: "),
    ({"roi_px": [0, 0, 129, 96]}, "camera.roi_px: [0, 0, 129, 96] is not inside the image; allowed: "),
    ({"binning": 3}, "camera.binning: '3' is refused; allowed: 1, 2, 4, 8"),
    ({"properties": {"Camera": {"PixelTyp": 1}}}, "camera.properties.Camera.PixelTyp: 'Camera' has no property "),
    ({"properties": {"Camera": {"PixelType": "17bit"}}}, "'17bit' is refused; allowed: 16bit, 32bit, 32bitRGB, "),
    ({"properties": {"Kamera": {"PixelType": "8bit"}}}, "camera.properties.Kamera.PixelType: no device 'Kamera'"),
    ({"properties": {"Camera": {"PixelType": "32bitRGB"}}}, "camera.properties: the camera gives 4 bytes and 4 "),
    ({"exposure_ms": 6000}, "silence_s is 5; allowed: more than the exposure"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "sentence"), WRONG)
def test_own_refuses_what_is_wrong(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingsError) as error:
        open_camera(**{**OWN, **change})
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


OTHER_INTERFACE = """
long GetModuleVersion(void) { return 10; }
long GetDeviceInterfaceVersion(void) { return 74; }
void InitializeModuleData(void) {}
void *CreateDevice(const char *name) { return 0; }
void DeleteDevice(void *device) {}
unsigned GetNumberOfDevices(void) { return 0; }
int GetDeviceName(unsigned index, char *name, unsigned length) { return 0; }
int GetDeviceType(const char *name, int *type) { return 0; }
int GetDeviceDescription(const char *name, char *text, unsigned length) { return 0; }
"""


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("cc"), reason="makes a device adapter with cc")
def test_another_device_interface_is_named(tmp_path: Path) -> None:
    (tmp_path / "adapter.c").write_text(OTHER_INTERFACE)
    library = tmp_path / "libmmgr_dal_DemoCamera.so.0"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "adapter.c"], check=True)
    (tmp_path / "demo.cfg").write_text("Device,DHub,DemoCamera,DHub\n")
    with pytest.raises(CameraError) as error:
        open_camera(mode="own", adapters=str(tmp_path), configuration="demo.cfg")
    assert "have device interface 74, but pymmcore 12.5.1.75.0 needs 75" in str(error.value)
    assert "install a Micro-Manager build from 20260226, or: pip install pymmcore==11.10.0.74.1" in str(error.value)
