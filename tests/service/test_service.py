"""The whole product, as its users meet it: the command line, a file, and clients in other processes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import pytest
import realtime_skyseg_simulator
import tifffile
from conftest import settings

import realtime_skyseg as sky
from realtime_skyseg.cli import main
from realtime_skyseg.errors import SettingsError
from realtime_skyseg.segmentation import load_model

#: Saves every mask of a stream, in order, until its end: a client in a process of its own.
CLIENT = """
import sys, numpy as np, realtime_skyseg as sky
from realtime_skyseg.streaming import ImageMessage, SeriesEndMessage
masks, numbers = [], []
with sky.Subscriber(sys.argv[1], queue_messages=2000) as stream:
    print("joining", flush=True)
    for message in stream.every(timeout_s=120):
        if isinstance(message, ImageMessage):
            masks.append(message.mask)
            numbers.append((message.frame, message.count, message.stripes))
    assert isinstance(message, SeriesEndMessage), "no end"
    assert (stream.lost, stream.malformed) == (0, 0), (stream.lost, stream.malformed)
np.savez(sys.argv[2], masks=np.stack(masks), numbers=np.array(numbers), **{k: message.frames[k] for k in ("received", "analysed", "written")})
"""  # noqa: E501


def noisy_discs(index: int, shape: tuple[int, int] = (96, 128), dtype: type = np.uint8) -> np.ndarray:
    """An image with 6 dark discs in noise."""
    picture = np.full(shape, 128.0)
    for k in range(6):
        cv2.circle(picture, (20 + 40 * (k % 3) + index % 5, 25 + 45 * (k // 3)), 7, 85.0, -1)
    noise = np.random.default_rng(index).normal(0, 12, shape)
    return np.clip(picture + noise, 0, 255).astype(dtype)


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """A folder of ten small images."""
    folder = tmp_path / "recording"
    folder.mkdir()
    for index in range(10):
        cv2.imwrite(str(folder / f"{index}.png"), noisy_discs(index))
    return folder


def free_address() -> str:
    """Where the next port is free, too: that of the control socket."""
    while True:
        with socket.socket() as probe, socket.socket() as next_one:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
            with suppress(OSError, OverflowError):
                next_one.bind(("127.0.0.1", port + 1))
                return f"tcp://127.0.0.1:{port}"


def command(*arguments: str, **options: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "realtime_skyseg.cli", *arguments],
        capture_output=True, text=True, timeout=120, check=False, **options,  # type: ignore[call-overload]
    )  # fmt: skip


def test_masks_in_the_file_equal_masks_in_another_process(tmp_path: Path) -> None:
    """300 frames of the bundled recording: what a client received, the file holds, bit for bit."""
    address = free_address()
    client = subprocess.Popen([sys.executable, "-c", CLIENT, address, str(tmp_path / "client.npz")])
    config = settings(
        tmp_path,
        {"path": "bundled", "loop": True, "limit": 300},
        stream={"address": address, "wait_for_subscribers": 1, "queue_messages": 1000},
    )
    summary = sky.Service(config).run()
    assert client.wait(60) == 0
    assert (summary.status, summary.exit_status) == ("ok", 0)
    assert summary.frames["received"] == summary.frames["analysed"] == summary.frames["written"] == 300
    received = np.load(tmp_path / "client.npz")
    with sky.open_run(summary.run_file) as run:
        np.testing.assert_array_equal(run.mask[:], received["masks"])
        table = run.table
        np.testing.assert_array_equal(received["numbers"][:, 0], np.arange(300))
        np.testing.assert_array_equal(received["numbers"][:, 1], table["count"])
        np.testing.assert_array_equal(received["numbers"][:, 2], table["stripes"])
        assert run.summary is not None
        for key in ("received", "analysed", "written"):
            assert int(received[key]) == run.summary["frames"][key] == 300
        assert (table["published_ns"] >= table["segmented_ns"]).all()
        assert (table["segmented_ns"] >= table["received_ns"]).all()


def test_the_count_follows_the_truth_of_the_bundled_recording(tmp_path: Path) -> None:
    summary = sky.Service(settings(tmp_path)).run()
    bundled = Path(realtime_skyseg_simulator.__file__).parent / "recordings" / "skyrmions_field_sweep.tif"
    with tifffile.TiffFile(bundled) as file:
        truth = np.array(json.loads(file.pages[0].description)["true_count"])  # type: ignore[union-attr]
    with sky.open_run(summary.run_file) as run:
        found = run.table["count"] + run.table["stripes"]
        assert np.isfinite(run.table["field_mT"]).all()
    error = np.abs(found - truth) / np.maximum(truth, 1)
    assert np.median(error) < 0.05


def test_a_run_analysed_again_gives_the_same(tmp_path: Path, recording: Path) -> None:
    """Run files are recordings too, and the same frames give the same masks."""
    first = sky.Service(settings(tmp_path / "first", {"path": str(recording)})).run()
    second = sky.Service(settings(tmp_path / "second", {"path": first.run_file})).run()
    with sky.open_run(first.run_file) as one, sky.open_run(second.run_file) as two:
        np.testing.assert_array_equal(one.raw[:], two.raw[:])
        np.testing.assert_array_equal(one.mask[:], two.mask[:])
        assert one.objects().tobytes() == two.objects().tobytes()
        assert set(one.table["count"]) == {6}


def test_the_segmenter_gives_what_the_run_gave(tmp_path: Path, recording: Path) -> None:
    summary = sky.Service(settings(tmp_path, {"path": str(recording)})).run()
    segmenter = sky.Segmenter.load("compact")
    with sky.open_run(summary.run_file) as run:
        for index in range(run.n_frames):
            np.testing.assert_array_equal(segmenter(run.raw[index]).mask, run.mask[index])


def test_a_run_without_a_stream(tmp_path: Path, recording: Path) -> None:
    service = sky.Service(settings(tmp_path, {"path": str(recording)}, stream={"enabled": False}))
    assert service.run().frames["analysed"] == 10
    assert service.address == ""


def test_a_display_that_fails_does_not_end_the_run(tmp_path: Path, recording: Path) -> None:
    def broken(_: object) -> None:
        raise BrokenPipeError

    summary = sky.Service(settings(tmp_path, {"path": str(recording)})).run(broken, watch_s=0.01)
    assert (summary.status, summary.frames["written"]) == ("ok", 10)


def test_an_interrupt_in_a_notebook_ends_cleanly(tmp_path: Path, recording: Path) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    summary = sky.Service(settings(tmp_path, {"path": str(recording), "loop": True})).run(interrupt, watch_s=0.2)
    assert summary.status == "stopped"
    assert summary.frames["received"] == summary.frames["written"] > 0


def test_the_run_file_says_where_it_comes_from(tmp_path: Path, recording: Path) -> None:
    config = settings(tmp_path, {"path": str(recording)}, record={"sample": "Co", "operator": "Ada"})
    summary = sky.Service(config).run()
    with sky.open_run(summary.run_file) as run:
        assert run.config == json.loads(config.model_dump_json())
        assert run.provenance["weights_sha256"] == load_model("compact").sha256
        assert run.provenance["engine"] == summary.engine
        assert run.summary == summary.as_dict()


# --- the command line ---


def test_run_prints_its_summary_as_json_last(
    tmp_path: Path, recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(settings(tmp_path, {"path": str(recording)}).to_yaml())
    assert main(["run", str(path), "--json", "--plot", str(tmp_path / "run.png")]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["frames"] == {
        "received": 10, "analysed": 10, "written": 10, "not_analysed": {}, "not_written": {}, "camera_lost": 0,
    }  # fmt: skip
    assert set(summary["latency_ms"]) == {"queue", "prepare", "segment", "measure", "publish", "others", "total"}
    assert all(set(stage) == {"p50", "p99", "p99_9", "max"} for stage in summary["latency_ms"].values())
    assert {"rate_hz", "engine", "device", "model"} <= set(summary)
    assert cv2.imread(str(tmp_path / "run.png")) is not None
    assert main(["info", summary["run_file"]]) == 0
    text = capsys.readouterr().out
    assert "10 of 96x128 uint8" in text
    assert "finished, exit status 0" in text


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C of another process works differently there")
def test_ctrl_c_ends_cleanly(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "realtime_skyseg.cli", "demo", "--json", "--set", "camera.loop=true",
         "--set", f"record.folder={tmp_path}", "--set", "stream.address=tcp://127.0.0.1:0"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    with process.stdout:
        while "received" not in process.stdout.readline():
            pass
        process.send_signal(signal.SIGINT)
        summary = json.loads(process.stdout.read().splitlines()[-1])
    assert process.wait(30) == 0
    assert summary["status"] == "stopped"
    frames = summary["frames"]
    assert frames["received"] == frames["analysed"] == frames["written"] > 0
    with sky.open_run(summary["run_file"]) as run:
        assert run.n_frames == frames["received"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_terminal_shows_the_run_as_it_goes(tmp_path: Path) -> None:
    import pty

    shown: list[float] = []

    def note(handle: int) -> bytes:
        data = os.read(handle, 65536)
        if b"skyrmions" in data:
            shown.append(time.monotonic())
        return data

    overrides = [f"record.folder={tmp_path}", "stream.enabled=false"]
    arguments = [part for override in overrides for part in ("--set", override)]
    assert pty.spawn([sys.executable, "-m", "realtime_skyseg.cli", "demo", *arguments], note) == 0
    assert len(shown) > 4
    assert shown[-1] - shown[0] > 1


def test_brackets_are_printed(tmp_path: Path, recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are markup to the library that draws the tables."""
    path = tmp_path / "run.yaml"
    record = {"name": "run [bold]", "title": "from A [/x] to B"}
    path.write_text(settings(tmp_path, {"path": str(recording)}, record=record).to_yaml())
    assert main(["run", str(path)]) == 0
    assert main(["info", str(tmp_path / "run [bold].h5")]) == 0
    text = capsys.readouterr().out
    assert "from A [/x] to B" in text
    assert "[bold].h5" in text


def test_the_command_gives_signal_handlers_back(tmp_path: Path, recording: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    path = tmp_path / "run.yaml"
    path.write_text(settings(tmp_path, {"path": str(recording)}).to_yaml())
    assert main(["run", str(path)]) == 0
    assert signal.getsignal(signal.SIGINT) is before


def test_watch_prints_a_run_in_another_process(tmp_path: Path, recording: Path) -> None:
    address = free_address()
    watch = subprocess.Popen(
        [sys.executable, "-m", "realtime_skyseg.cli", "watch", address, "--once"], stdout=subprocess.PIPE, text=True
    )
    stream = {"address": address, "wait_for_subscribers": 1}
    sky.Service(settings(tmp_path, {"path": str(recording)}, stream=stream)).run()
    output, _ = watch.communicate(timeout=60)
    assert watch.returncode == 0
    assert "model compact on" in output
    assert "skyrmions 6" in output
    assert "run ended: ok  received 10  analysed 10  written 10" in output


def test_nobody_joins(tmp_path: Path, recording: Path) -> None:
    stream = {"wait_for_subscribers": 1, "wait_s": 0.1}
    summary = sky.Service(settings(tmp_path, {"path": str(recording)}, stream=stream)).run()
    assert summary.exit_status == 1
    assert summary.message == "stream.wait_for_subscribers: 0 of 1 joined within 0.1 s"


def test_models_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    assert "compact: " in capsys.readouterr().out


# --- what goes wrong ends with one sentence, its exit status, and what was recorded until then ---


def size_changes(folder: Path) -> Path:
    for index in range(8):
        cv2.imwrite(str(folder / f"{index}.png"), noisy_discs(index, (96, 128) if index < 5 else (80, 128)))
    return folder


def truncated_tiff(folder: Path) -> Path:
    path = folder / "cut.tif"
    with tifffile.TiffWriter(path) as writer:
        for index in range(8):
            writer.write(noisy_discs(index), contiguous=False)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.65)])
    return path


def broken_png(folder: Path) -> Path:
    for index in range(8):
        cv2.imwrite(str(folder / f"{index}.png"), noisy_discs(index))
    (folder / "5.png").write_bytes((folder / "5.png").read_bytes()[:200])
    return folder


def empty_folder(folder: Path) -> Path:
    return folder


FAULTS = [
    # recording, settings, exit status, frames recorded, what the sentence names
    (size_changes, [], 1, 5, "frame 5 (5.png) is 80x128 uint8, but the recording began with 96x128 uint8"),
    (truncated_tiff, [], 1, 5, "cut.tif"),
    (broken_png, [], 1, 5, "5.png"),
    (empty_folder, [], 2, None, "camera.path: the folder "),
    (size_changes, ["camera.lop=true"], 2, None, "camera.lop: unknown key; did you mean 'loop'? allowed: "),
    (size_changes, ["analysis.model=none"], 2, None, "'none' is neither a shipped model nor a file"),
    (size_changes, ["camera.path=nowhere"], 2, None, "camera.path: nowhere does not exist; allowed: "),
    (size_changes, ["camera.rate_hz=recorded"], 2, None, "camera.rate_hz: 'recorded' is not possible"),
    (size_changes, ["record.folder=/dev/null/runs"], 2, None, "record.folder: run file '/dev/null/runs/"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "overrides", "status", "recorded", "sentence"), FAULTS)
def test_faults(
    tmp_path: Path, make: object, overrides: list[str], status: int, recorded: int | None, sentence: str
) -> None:
    folder = tmp_path / make.__name__  # type: ignore[attr-defined]
    folder.mkdir()
    path = tmp_path / "run.yaml"
    path.write_text(
        f"camera: {{driver: replay, path: '{make(folder)}', rate_hz: max}}\n"  # type: ignore[operator]
        "analysis: {policy: every}\n"
        "stream: {address: 'tcp://127.0.0.1:0'}\n"
        f"record: {{folder: '{tmp_path}', name: run}}\n"
    )
    done = command("run", str(path), *[part for override in overrides for part in ("--set", override)])
    assert done.returncode == status, done.stderr
    lines = [line for line in done.stderr.splitlines() if "libpng" not in line]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("skyseg: ")
    assert sentence in lines[0]
    if recorded is None:
        assert list(tmp_path.rglob("*.h5*")) == []
    else:
        with sky.open_run(tmp_path / "run.h5") as run:
            assert run.n_frames == recorded
            assert run.exit_status == status
            assert run.summary is not None
            assert run.summary["frames"]["analysed"] == run.summary["frames"]["written"] == recorded
            assert sentence in run.summary["message"]
            np.testing.assert_array_equal(run.raw[recorded - 1], noisy_discs(recorded - 1))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real disk of 70 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=70m", "tmpfs", folder], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"may not mount a small disk: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a small disk")
def test_a_disk_that_runs_full_leaves_a_whole_file_and_the_analysis_goes_on(small_disk: Path) -> None:
    overrides = [f"record.folder={small_disk}", "record.name=run", "stream.address=tcp://127.0.0.1:0"]
    overrides += ["camera.rate_hz=max", "camera.loop=true", "camera.limit=150"]
    done = command("demo", "--json", *[part for override in overrides for part in ("--set", override)])
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "is full but for the 59 MB that finish the run file" in done.stderr
    frames = json.loads(done.stdout.splitlines()[-1])["frames"]
    assert frames["received"] == frames["written"] + frames["not_written"]["disk"] == 150
    with sky.open_run(small_disk / "run.h5") as run:
        assert run.exit_status == 1
        assert run.table["written"].sum() == frames["written"] > 10
        assert (run.table["skipped"][: frames["written"]] == 0).all()
        assert (run.mask[frames["written"] - 1] < 5).all()
        assert [event["kind"] for event in run.events] == ["fault"]
    again = command("demo", "--set", f"record.folder={small_disk}", "--set", "stream.enabled=false")
    assert again.returncode == 2
    assert "MB free; allowed: at least 59 MB" in again.stderr


def test_wrong_use_of_the_command() -> None:
    assert command("walk").returncode == 2
    assert command("run").returncode == 2


def test_check_validates_without_touching_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "run.yaml"
    path.write_text("camera: {driver: replay, path: bundled}\n")
    assert main(["check", str(path)]) == 0
    for wrong, sentence in (
        ("camera.path=no/such/recording", "camera.path: no/such/recording does not exist"),
        ("camera.path=~/no/such/recording", f"camera.path: {Path.home()}/no/such/recording does not exist"),
        ("prepare.background=gone.tif", "prepare.background: 'gone.tif' does not exist"),
    ):
        assert main(["check", str(path), "--set", wrong]) == 2
        assert sentence in capsys.readouterr().err
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.yaml"]


def test_help_answers_quickly() -> None:
    begun = time.monotonic()
    assert command("--help").returncode == 0
    assert time.monotonic() - begun < 3


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path) -> Iterator[None]:
    """Default folders of a run are relative to the working directory."""
    before = Path.cwd()
    os.chdir(tmp_path)
    yield
    os.chdir(before)


def test_a_run_that_is_started_tells_its_addresses_and_ends_with_its_block(tmp_path: Path) -> None:
    service = sky.Service(settings(tmp_path, {"loop": True, "rate_hz": 20}, control={"address": "tcp://127.0.0.1:0"}))
    with service.start() as run:
        assert run.address.startswith("tcp://127.0.0.1:")
        with sky.Control(run.control_address) as control:
            assert control.ask("status")["status"]["stream"] == run.address
    assert run.wait().status == "stopped"
    with pytest.raises(SettingsError, match="exists already"):
        service.start().wait()


def test_a_run_that_cannot_begin_says_so_at_its_start(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="does not exist"):
        sky.Service(settings(tmp_path, {"path": str(tmp_path / "nowhere.tif")})).start()
