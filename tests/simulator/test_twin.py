"""The twin: a virtual microscope behind the same drivers as a real one, which fails on demand."""

import json
import math
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import h5py
import hdf5plugin  # noqa: F401  reads the masks
import numpy as np
import pytest
from conftest import settings
from hypothesis import given
from hypothesis import strategies as st
from realtime_skyseg_simulator import twin_field
from realtime_skyseg_simulator.magnet import MagnetSettings, TwinMagnet
from realtime_skyseg_simulator.twin import TwinCamera
from realtime_skyseg_simulator.twin_field import TwinField, TwinFieldSettings
from realtime_skyseg_simulator.twin_settings import TwinSettings

import realtime_skyseg as sky
from realtime_skyseg.config import FieldSettings, load_config, validate
from realtime_skyseg.devices import Camera, CameraEnded, FieldSource, PulseSource
from realtime_skyseg.errors import FieldError, SettingsError
from realtime_skyseg.field import FieldGuard
from realtime_skyseg.records import Frame
from realtime_skyseg.service import Summary

CONFIGS = Path(__file__).parents[2] / "configs"

#: Small, so that a frame takes some 2 ms.
SMALL = {"port": 0, "height_px": 96, "width_px": 128, "optics": {"dirt_spots": 3}}
#: As fast as frames are taken.
FAST = {**SMALL, "rate_hz": None}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def twin(**changes: Any) -> Iterator[TwinCamera]:
    camera = TwinCamera(TwinSettings.model_validate({**FAST, **changes}))
    try:
        yield camera
    finally:
        camera.close()


def frames(camera: TwinCamera, n: int | None = None) -> list[Frame]:
    """The next frames, or all until the end."""
    taken: list[Frame] = []
    while n is None or len(taken) < n:
        try:
            frame = camera.read(5.0)
        except CameraEnded:
            break
        assert frame is not None, "no frame in time"
        taken.append(frame)
    return taken


def within(seconds: float, condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.01)


# --- camera ---


@pytest.mark.parametrize(
    ("sample", "image", "dtype"),
    [({"kind": "film"}, "difference", np.uint8), ({"kind": "particles", "skyrmions": 40}, "raw", np.uint16)],
)
def test_the_same_seeds_give_the_same_frames(sample: dict[str, Any], image: str, dtype: type) -> None:
    seen = []
    for seed in (5, 5, 6):
        with twin(frames=6, seed=seed, image=image, sample={**sample, "seed": seed}) as camera:
            assert isinstance(camera, Camera)
            taken = frames(camera)
            assert [frame.number for frame in taken] == list(range(6))
            assert [frame.camera_ns for frame in taken] == [62_500_000 * i for i in range(6)]
            assert {(frame.image.shape, frame.image.dtype.type) for frame in taken} == {((96, 128), dtype)}
            seen.append(np.stack([frame.image for frame in taken]))
    np.testing.assert_array_equal(seen[0], seen[1])
    assert (seen[0] != seen[2]).mean() > 0.5
    assert all((one != other).any() for one, other in zip(seen[0], seen[0][1:], strict=False))


def test_real_time_is_kept() -> None:
    with twin(rate_hz=25.0) as camera:
        taken = frames(camera, 30)
        late_ms = [(time.time_ns() - taken[-1].camera_ns) / 1e6]
        for _ in range(20):
            (frame,) = frames(camera, 1)
            late_ms.append((time.time_ns() - frame.camera_ns) / 1e6)
            taken.append(frame)
    numbers = np.array([frame.number for frame in taken])
    exposed_ms = np.array([frame.camera_ns for frame in taken]) / 1e6
    # A busy computer may lose a frame, but never shifts the others.
    np.testing.assert_allclose(exposed_ms - exposed_ms[0], 40 * (numbers - numbers[0]), atol=2)
    assert numbers[-1] - numbers[0] < 60
    assert 0 < np.median(late_ms) < 80


def test_a_service_that_does_not_read_loses_frames() -> None:
    """The buffer's frames are kept; what comes after them leaves a gap, and then all goes on."""
    with twin(rate_hz=20.0, buffer_frames=5) as camera:
        frames(camera, 2)
        time.sleep(1.2)
        numbers = np.array([frame.number for frame in frames(camera, 20)])
    gaps = np.diff(numbers)
    assert numbers[0] == 2
    assert (gaps[:4] == 1).all()
    assert gaps.max() > 5
    assert np.median(gaps) == 1


def test_the_truth_of_each_frame(tmp_path: Path) -> None:
    path = tmp_path / "truth.h5"
    size = {"height_px": 256, "width_px": 256}
    optics = {"contrast": 0.3, "dirt_spots": 0, "offset_px": [0, 0], "vibration_px": 0}
    with twin(frames=5, truth=str(path), optics=optics, **size) as camera:
        images = np.stack([frame.image for frame in frames(camera)]).astype(float)
    with h5py.File(path) as truth:
        numbers, counts, ends = (truth[f"frames/{name}"][:] for name in ("number", "count", "positions_end"))
        masks, positions = truth["mask"][:], truth["positions"][:]
        assert "twin" not in truth.attrs["settings"]
        np.testing.assert_allclose(truth["frames/sample_s"], 0.0625 * np.arange(5))
    assert numbers.tolist() == list(range(5))
    assert (counts > 10).all()
    np.testing.assert_array_equal(np.diff(ends, prepend=0), counts)
    for image, mask, end, count in zip(images, masks, ends, counts, strict=True):
        inside, outside = image[mask == 1], image[mask == 0]
        # At this contrast and without dirt each pixel tells what it is, walls apart.
        assert (inside < 113).mean() > 0.9
        assert (outside > 113).mean() > 0.9
        x, y = positions[end - count : end].T
        assert (mask[y.round().astype(int), x.round().astype(int)] == 1).mean() > 0.9


WRONG = [
    ({"height_px": 1}, "camera.height_px: 1 is not allowed"),
    ({"rate": 5}, "camera.rate: unknown key; did you mean 'rate_hz'?"),
    ({"faults": [{"kind": "lamp"}]}, "a fault begins at_frame or at_s; allowed: one of them"),
    ({"faults": [{"kind": "lamp", "at_s": 1, "at_frame": 2}]}, "a fault begins at_frame or at_s; allowed: one of them"),
    ({"faults": [{"kind": "fire", "at_s": 1}]}, "'lost_frames', 'late_frames'"),
    ({"faults": [{"kind": "lamp", "at_s": 1, "brightnes": 0}]}, "brightnes: unknown key"),
    ({"magnet": {"limit_V": -1}}, "camera.magnet.limit_V: -1 is not allowed"),
    ({"optics": {"camera_bits": 13}}, "camera.optics.camera_bits: 13 is not allowed"),
]


@pytest.mark.parametrize(("changes", "sentence"), WRONG)
def test_wrong_settings_are_one_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SettingsError) as caught:
        validate({"camera": {"driver": "twin", **changes}})
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_only_the_microscope_can_refuse(tmp_path: Path) -> None:
    (tmp_path / "taken.h5").touch()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for changes, sentence in [
            ({"port": port}, f"camera.port: {port} cannot be used: .*is another twin running"),
            ({"truth": str(tmp_path / "taken.h5")}, r"camera.truth: '.*taken.h5' cannot be written: it exists already"),
            ({"sample": {"pattern": "wire", "pattern_size": 0.1}, "height_px": 40}, "camera.sample.pattern_size: 0.1"),
        ]:
            config = validate({"camera": {"driver": "twin", **FAST, **changes}})
            with pytest.raises(SettingsError, match=sentence):
                config.camera.open()


def test_the_example_configs_are_valid() -> None:
    for name in ("twin.yaml", "twin_particles.yaml"):
        config = load_config(CONFIGS / name)
        assert config.camera.driver == config.field.driver == "twin"  # type: ignore[union-attr]


# --- magnet ---


@given(st.lists(st.tuples(st.floats(-10, 10), st.floats(0, 5)), max_size=30), st.floats(0, 0.5), st.floats(0.01, 2))
def test_the_field_is_where_the_supply_leads(
    sets: list[tuple[float, float]], remanence_mT: float, turn_mT: float
) -> None:
    """Whatever came before: within the remanence once the lag is over, and between old and new on the way."""
    magnet = TwinMagnet(MagnetSettings(remanence_mT=remanence_mT, turn_mT=turn_mT, read_noise_mT=0), 0, 0.0)
    now = before = 0.0
    for volts, wait_s in sets:
        before = magnet.field_mT(now)
        magnet.set(volts, now)
        assert magnet.field_mT(now) == pytest.approx(before, abs=1e-9)
        low, high = sorted((before, volts))
        assert low - 2 * remanence_mT - 1e-9 <= magnet.field_mT(now + wait_s / 2) <= high + 2 * remanence_mT + 1e-9
        now += wait_s
    end = sets[-1][0] if sets else 0.0
    assert magnet.read(now + 10) == pytest.approx(end, abs=remanence_mT + 1e-6)


def test_lag_and_remanence() -> None:
    magnet = TwinMagnet(MagnetSettings(lag_ms=20, remanence_mT=0.1, turn_mT=0.5, mT_per_V=2), 0, 0.0)
    magnet.set(4.0, 1.0)
    assert magnet.field_mT(1.02) == pytest.approx(8 * (1 - math.exp(-1)) - 0.1)
    assert magnet.field_mT(3.0) == pytest.approx(7.9)  # from below
    magnet.set(0.0, 3.0)
    assert magnet.field_mT(5.0) == pytest.approx(0.1)  # it remembers
    swing, now = 2.0, 5.0
    while abs(swing) > 0.01:
        magnet.set(swing, now)
        swing, now = -0.8 * swing, now + 1.0
    magnet.set(0.0, now)
    assert abs(magnet.field_mT(now + 1)) < 0.03  # demagnetised
    assert magnet.field_mT(1.02) == pytest.approx(8 * (1 - math.exp(-1)) - 0.1)  # the past stays what it was


def test_what_the_sample_sees_of_pulse_and_ac() -> None:
    magnet = TwinMagnet(MagnetSettings(ac_mT=0.5, ac_hz=4, remanence_mT=0), 0, 0.0)
    magnet.pulse(40.0, 0.3)
    parts = [magnet.parts(0.25, 0.25 * i, 0.25 * i, 0.25 * (i + 1)) for i in range(3)]
    assert [sum(seconds for seconds, _, _ in part) for part in parts] == pytest.approx([0.25] * 3)
    pulsed = [sum(seconds for seconds, _, in_plane in part if in_plane == 40.0) for part in parts]
    assert pulsed == pytest.approx([0.25, 0.05, 0.0])
    for part in parts:
        mean = sum(seconds * field for seconds, field, _ in part) / 0.25
        square = sum(seconds * field**2 for seconds, field, _ in part) / 0.25
        assert mean == pytest.approx(0, abs=0.02)
        assert square == pytest.approx(0.125, rel=0.1)


def test_there_has_to_be_a_microscope(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(twin_field, "_CONNECT_S", 0.3)
    port = free_port()
    with pytest.raises(FieldError, match=f"no twin microscope at port {port} .*start the camera driver `twin`"):
        TwinField(TwinFieldSettings(port=port))


def test_what_the_supply_refuses() -> None:
    port = free_port()
    with twin(port=port, magnet={"mT_per_V": 2.0}) as camera:
        supply = TwinField(TwinFieldSettings(port=port, unit="mT"))
        try:
            assert isinstance(supply, FieldSource)
            assert isinstance(supply, PulseSource)
            assert supply.range == (-20, 20)
            for value in (math.nan, 20.1, "3", True):
                with pytest.raises(FieldError, match="allowed: a number from -20 to 20"):
                    supply.set(value)  # type: ignore[arg-type]
            with pytest.raises(FieldError, match=r"the pulse: 61\.0 mT is refused"):
                supply.pulse(61.0, 0.1)
            assert supply.read() == pytest.approx(0, abs=0.03)
            supply.set(8.0)
            within(2, lambda: supply.read() == pytest.approx(8, abs=0.1))
            frames(camera, 1)
        finally:
            supply.close()
    # The microscope has ended with its last connection.
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), timeout=1).close()


def field(port: int, **changes: Any) -> dict[str, Any]:
    return {
        "driver": "twin", "port": port, "limit_mT": [-8, 8], "slew_mT_per_s": 20, "tolerance_mT": 0.1,
        "settle_s": 0.3, "read_every_ms": 20, "pulse_limit_mT": [-60, 60], "pulse_limit_s": 1.0, **changes,
    }  # fmt: skip


def test_the_field_moves_the_sample(tmp_path: Path) -> None:
    """Skyrmions, saturation, an in-plane pulse, skyrmions: each by the guard, seen in the truth."""
    port, path = free_port(), tmp_path / "truth.h5"
    calibration = {"date": "2026-11-22", "note": "nominal", "table": [[-10, -10], [10, 10]]}
    changes = {"port": port, "rate_hz": 25.0, "truth": str(path), "sample": {"start_mT": 1.5}}
    marks = []
    with (
        twin(**changes) as camera,
        FieldGuard(FieldSettings(**field(port, unit="V", calibration=calibration))) as guard,
    ):

        def look(seconds: float) -> None:
            marks.append(frames(camera, round(25 * seconds))[-1].number)

        for field_mT in (1.5, 6.0, 1.5):
            guard.set_mT(field_mT)
            while not guard.wait_settled(0.01):
                frames(camera, 1)
            look(0.6)
        guard.pulse(40.0, 0.6)
        look(1.2)
    with h5py.File(path) as truth:
        place = [truth["frames/number"][:].tolist().index(mark) for mark in marks]
        counts, fields = truth["frames/count"][:][place], truth["frames/field_mT"][:][place]
        assert 40.0 in truth["frames/in_plane_mT"][:]
        assert truth.attrs["end_field_mT"] == pytest.approx(0, abs=0.1)  # the yoke keeps a little
        told = truth["magnet/set_V"][:]
    assert fields == pytest.approx([1.5, 6, 1.5, 1.5], abs=0.05)
    start, saturated, still, pulsed = counts
    assert (saturated, still) == (0, 0)
    assert min(start, pulsed) >= 5
    assert told.max() == 6.0
    assert told[-1] == 0.0


@pytest.mark.skipif(sys.platform == "win32", reason="kills by signal")
def test_a_service_that_is_killed_leaves_the_field_at_zero(tmp_path: Path) -> None:
    port, path = free_port(), tmp_path / "truth.h5"
    tree = {
        "camera": {"driver": "twin", **SMALL, "port": port, "truth": str(path)},
        "field": field(port, initial_mT=4.0),
        "stream": {"enabled": False},
        "record": {"folder": str(tmp_path), "name": "run"},
    }
    (tmp_path / "config.json").write_text(json.dumps(tree))  # JSON is YAML
    command = [sys.executable, "-m", "realtime_skyseg.cli", "run", str(tmp_path / "config.json")]
    service = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    supply = None
    try:
        within(60, lambda: (tmp_path / "run.h5.partial").exists())
        supply = TwinField(TwinFieldSettings(port=port))
        within(20, lambda: supply.read() > 3.9)
        service.send_signal(signal.SIGKILL)
        service.wait()
        within(5, lambda: abs(supply.read()) < 0.05)
    finally:
        service.kill()
        service.wait()
        if supply:
            supply.close()
    # The guard has ended, and then the microscope.
    within(10, lambda: not listens(port))
    with h5py.File(path) as truth:
        assert truth.attrs["end_field_mT"] == pytest.approx(0, abs=0.1)  # the yoke keeps a little
        assert truth["magnet/set_V"][-1] == 0.0


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


# --- faults ---


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """The raw frames of a run without a fault."""
    summary, run = served(tmp_path_factory.mktemp("healthy"), ())
    assert (summary.status, summary.frames["received"], summary.frames["camera_lost"]) == ("ok", 24, 0)
    assert run["events"] == []
    return run["raw"]  # type: ignore[no-any-return]


def served(folder: Path, faults: Any) -> tuple[Summary, dict[str, Any]]:
    """A run of the whole service as fast as it goes, 24 frames, and what its file holds."""
    camera = {"driver": "twin", **FAST, "frames": 24, "faults": list(faults)}
    summary = sky.Service(settings(folder, camera)).run()
    counts = summary.frames
    assert counts["received"] == counts["analysed"] == counts["written"]
    with sky.open_run(summary.run_file) as run:
        return summary, {
            "raw": run.raw[:], "number": run.table["number"], "received_ns": run.table["received_ns"],
            "camera_ns": run.table["camera_ns"], "events": [event["kind"] for event in run.events],
        }  # fmt: skip


#: fault from frame 10 on: status, frames received and lost, events, numbers whose images differ from a healthy run's
FAULTS: list[tuple[dict[str, Any], str, int, int, list[str], set[int]]] = [
    ({"kind": "lost_frames", "frames": 3}, "lost", 21, 3, ["camera_lost"], set()),
    ({"kind": "late_frames", "frames": 2, "by_s": 0.3}, "ok", 24, 0, [], set()),
    ({"kind": "frozen_frames", "frames": 3}, "ok", 24, 0, ["camera_frozen", "camera_frozen_end"], {10, 11, 12}),
    ({"kind": "torn_frames", "frames": 2}, "ok", 24, 0, [], {10, 11}),
    ({"kind": "camera_gone", "for_s": 0.5}, "ok", 24, 0, ["camera_gone", "camera_back"], set(range(10, 24))),
    ({"kind": "camera_dies"}, "fault", 10, 0, ["fault"], set()),
    ({"kind": "process_dies"}, "fault", 10, 0, ["fault"], set()),
    ({"kind": "defocus", "px": 4, "for_s": 0.25}, "ok", 24, 0, [], {10, 11, 12, 13}),
    ({"kind": "drift_jump", "for_s": 0.25}, "ok", 24, 0, [], {10, 11, 12, 13}),
    ({"kind": "lamp", "brightness": 0.98}, "ok", 24, 0, [], set(range(10, 24))),
]


@pytest.mark.parametrize(
    ("fault", "status", "received", "lost", "events", "other"), FAULTS, ids=lambda one: str(one)[:24]
)
def test_each_fault_ends_as_promised(
    tmp_path: Path,
    healthy: np.ndarray,
    fault: dict[str, Any],
    status: str,
    received: int,
    lost: int,
    events: list[str],
    other: set[int],
) -> None:
    summary, run = served(tmp_path, [{**fault, "at_frame": 10}])
    assert (summary.status, summary.frames["received"], summary.frames["camera_lost"]) == (status, received, lost)
    assert summary.exit_status == (0 if status == "ok" else 1)
    assert run["events"] == events
    missing = {10, 11, 12} if lost else set(range(received, 24))
    assert run["number"].tolist() == [number for number in range(24) if number not in missing]
    differ = {int(n) for n, image in zip(run["number"], run["raw"], strict=True) if (image != healthy[n]).any()}
    assert differ == other
    raw = run["raw"].astype(float)
    match fault["kind"]:
        case "late_frames":
            assert run["received_ns"][10] - run["received_ns"][9] > 0.2e9
            np.testing.assert_array_equal(np.diff(run["camera_ns"]), 62_500_000)
        case "frozen_frames":
            assert (run["raw"][10:13] == healthy[9]).all()
        case "torn_frames":
            assert (run["raw"][10, :48] == healthy[10, :48]).all()
            assert (run["raw"][10, 48:] == healthy[11, 48:]).all()
        case "camera_gone":
            assert run["camera_ns"][10] - run["camera_ns"][9] == pytest.approx(0.5e9 + 62.5e6, abs=1)
        case "camera_dies" | "process_dies":
            assert "the camera of the twin has gone" in summary.message
        case "defocus":
            assert contrast(raw[11]) < 0.8 * contrast(raw[9])
        case "lamp":
            assert raw[11].mean() < raw[9].mean() - 10


def contrast(image: np.ndarray) -> float:
    """Of the skyrmions; the noise is averaged out."""
    return float(cv2.blur(image, (5, 5)).std())


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ({"kind": "magnet_ignores"}, r"0\.\d+ mT .* is read back where 2 mT was set"),
        ({"kind": "magnet_overshoots", "by": 0.5}, "mT .* is read back where .* mT was set"),
        ({"kind": "process_dies"}, "has gone"),
    ],
)
def test_a_magnet_that_disobeys_is_caught(tmp_path: Path, fault: dict[str, Any], sentence: str) -> None:
    port = free_port()
    camera = {
        **SMALL,
        "driver": "twin",
        "port": port,
        "rate_hz": 25.0,
        "frames": 60,
        "faults": [{**fault, "at_s": 0.4}],
    }
    service = sky.Service(settings(tmp_path, camera, field=field(port)))
    told = []

    def tell(pipeline: Any) -> None:
        if pipeline.counters.received > 15 and not told:
            told.append(True)
            service.field.set_mT(2.0)  # type: ignore[union-attr]

    summary = service.run(tell, watch_s=0.05)
    counts = summary.frames
    assert counts["received"] == counts["written"] == counts["analysed"]
    assert summary.status == "fault"
    with sky.open_run(summary.run_file) as run:
        events = {event["kind"]: event["message"] for event in run.events}
        last = run.table["number"][-1]
    if fault["kind"] != "process_dies":
        assert last > 40  # the run goes on, with the true field at every frame
        assert {"field_fault", "field_safe"} <= set(events)
    else:
        assert "fault" in events
    assert re.search(sentence, summary.message + events.get("field_fault", ""))


def test_the_example_of_the_documentation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (CONFIGS.parent / "docs" / "twin.md").read_text("utf-8"), re.DOTALL)
    port = free_port()
    camera = {**SMALL, "driver": "twin", "port": port, "rate_hz": 25.0}
    service = sky.Service(settings(tmp_path, camera, field=field(port), control={"enabled": True}))
    thread = threading.Thread(target=service.run)
    thread.start()
    try:
        within(30, lambda: service.control_address)
        code = code.replace("tcp://127.0.0.1:5556", service.control_address).replace("sleep(1.0)", "sleep(0.1)")
        exec(compile(code, "twin.md", "exec"), {})
    finally:
        service.stop()
        thread.join()
    assert re.fullmatch(r"(\d\.\d mT: \d+ skyrmions\n){4}", capsys.readouterr().out)
