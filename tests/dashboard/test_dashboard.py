"""The live page, on a real service; the page itself in a real browser."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import settings
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from test_service import free_address

import realtime_skyseg as sky
from realtime_skyseg.config import validate
from realtime_skyseg.dashboard import Feed, Series
from realtime_skyseg.dashboard.frames import pack, pack_runs, unpack_runs
from realtime_skyseg.errors import ControlError, SettingsError

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@given(arrays.arrays(np.uint8, arrays.array_shapes(min_dims=2, max_dims=2, max_side=40), elements=st.integers(0, 5)))
def test_masks_arrive_as_they_are(mask: np.ndarray) -> None:
    np.testing.assert_array_equal(unpack_runs(pack_runs(mask), mask.shape), mask)


def test_series_are_thinned_where_they_are_old() -> None:
    series = Series()
    for k in range(130_000):
        series.add(k / 25, {"count": float(k)} if k < 50_000 else {"count": float(k), "mean_psi6": 0.5})
    time_s, count, psi6 = series.arrays("time_s", "count", "mean_psi6")
    assert len(time_s) <= 2000
    assert len(series.columns["time_s"]) < 60_000
    assert count[-1] == 129_999
    assert np.isnan(psi6[0])
    assert psi6[-1] == 0.5
    assert (np.diff(time_s) > 0).all()
    assert [len(one) for one in Series().arrays("time_s", "count")] == [0, 0]


def until(true: Any, timeout_s: float = 20.0) -> None:
    """Wait for something."""
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)


def test_a_feed_follows_a_run_to_its_end(tmp_path: Path) -> None:
    address = free_address()
    feed = Feed(address)
    feed.want("somebody", 25)
    feed.start()
    try:
        stream = {"address": address, "wait_for_subscribers": 1}
        made = settings(tmp_path, {"path": "bundled", "limit": 40, "rate_hz": 20}, stream=stream,
                        analysers={"lattice": {}},
                        measure={"pixel_size_um": 0.2})  # fmt: skip
        told: list[int] = []
        leave = feed.listen(lambda: told.append(1))
        summary = sky.Service(made).run()
        until(lambda: feed.ended is not None)
        leave()
        assert feed.about is not None
        assert feed.about.pixel_size_um == 0.2
        assert feed.ended == ("ok", "")
        assert feed.counters["received"] == 40
        assert len(told) >= 10
        assert "mean_psi6" in feed.about.quantities
        assert feed.shown is not None
        with sky.open_run(summary.run_file) as run:
            np.testing.assert_array_equal(feed.series.columns["count"], run.table["count"])
            np.testing.assert_allclose(feed.series.columns["mean_psi6"], run.table["mean_psi6"], rtol=1e-6)
            shown = feed.shown
            np.testing.assert_array_equal(shown.mask, run.mask[shown.frame])
            # what the browser gets
            content = pack(shown, 7)
            length = int.from_bytes(content[:4], "little")
            head = json.loads(content[4 : 4 + length])
            image, runs, table = head["parts"]
            at = 4 + length
            assert (head["number"], head["frame"], head["count"]) == (7, shown.frame, shown.count)
            assert cv2.imdecode(np.frombuffer(content[at : at + image], np.uint8), 0).shape == (512, 672)
            np.testing.assert_array_equal(unpack_runs(content[at + image : at + image + runs], (512, 672)), shown.mask)
            columns = np.frombuffer(content[at + image + runs :], "<f4").reshape(len(head["columns"]), head["objects"])
            assert table == columns.nbytes
            np.testing.assert_allclose(columns[head["columns"].index("x")], shown.objects["x"])
    finally:
        feed.close()


def as_a_user() -> dict[str, str]:
    """The environment without what tells NiceGUI of a test."""
    return {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}


@pytest.fixture
def service() -> Iterator[Any]:
    """Runs a service with settings, and a page for it; both end with the test."""
    left: list[Any] = []

    def start(folder: Path, **more: Any) -> tuple[sky.Service, str, Any]:
        made = settings(folder, {"path": "bundled", "loop": True, "rate_hz": 20}, **more)
        running = sky.Service(made).start()
        port = free_address().rsplit(":", 1)[1]
        command = [sys.executable, "-m", "realtime_skyseg", "dashboard", running.address, "--port", port]
        command += ["--control", running.control_address] if running.control_address else []
        page = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=as_a_user())
        left.extend((page, running))
        assert page.stdout is not None
        assert page.stdout.readline().startswith("http://")
        return running, f"http://127.0.0.1:{port}", page

    yield start
    for one in left:
        if isinstance(one, subprocess.Popen):
            one.send_signal(signal.SIGINT)
            one.communicate(timeout=20)
        else:
            one.stop()
            one.wait()


@pytest.fixture
def browser() -> Iterator[Any]:
    """A real one, without a network beyond this computer."""
    if CHROMIUM is None:
        pytest.skip("no Chromium here")
    sync = pytest.importorskip("playwright.sync_api")
    with sync.sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu",
                  "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"],
        )  # fmt: skip
        yield started
        started.close()


def visit(page: Any, url: str) -> None:
    """Go there, as soon as it is there."""
    for _ in range(200):
        try:
            page.goto(url)
            return
        except Exception:
            time.sleep(0.1)


def open_page(browser: Any, url: str, width: int = 1440, height: int = 900) -> Any:
    page = browser.new_page(viewport={"width": width, "height": height})
    visit(page, url)
    page.wait_for_function("window.skysegView && window.skysegView.frame !== null", timeout=30_000)
    return page


def test_frames_with_their_outlines_in_the_right_place(tmp_path: Path, service: Any, browser: Any) -> None:
    _, url, _ = service(tmp_path, control={"enabled": True, "address": "tcp://127.0.0.1:0"})
    page = open_page(browser, url)
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.wait_for_function("window.skysegView.frame.head.count > 450")  # the recording loses them at its end
    page.get_by_role("button", name="Pause", exact=True).click()
    page.wait_for_timeout(500)
    found = page.evaluate("""() => {
        const view = window.skysegView, { head, mask } = view.frame, [height, width] = head.shape;
        const { scale, left, top } = view.place();
        view.low = view.high = 0; view.draw();
        const picture = view.context.getImageData(0, 0, view.canvas.width, view.canvas.height);
        let inside = 0, right = 0;
        for (let y = 1; y < height - 1; y++) for (let x = 1; x < width - 1; x++) {
            const at = y * width + x, own = mask[at];
            if (own !== 1) continue;
            const rim = mask[at - 1] !== 1 || mask[at + 1] !== 1 || mask[at - width] !== 1 || mask[at + width] !== 1;
            if (!rim) continue;
            const u = Math.floor(left + (x + 0.5) * scale), v = Math.floor(top + (y + 0.5) * scale);
            const [r, g, b] = picture.data.slice(4 * (v * view.canvas.width + u), 4 * (v * view.canvas.width + u) + 3);
            inside += 1;
            right += (r === 230 && g === 159 && b === 0) || (r === 86 && g === 180 && b === 233);
        }
        return [inside, right, head.count, view.frame.objects.length];
    }""")
    inside, right, count, objects = found
    assert inside > 1000
    assert right / inside > 0.97
    assert objects >= count > 100
    # an object under the pointer
    place = page.evaluate("""() => {
        const view = window.skysegView, one = view.frame.objects.find((o) => o.kind === 0 && o.border === 0);
        const { scale, left, top } = view.place(), box = view.canvas.getBoundingClientRect();
        return [box.left + left + (one.x + 0.5) * scale, box.top + top + (one.y + 0.5) * scale, one.diameter];
    }""")
    page.mouse.move(place[0], place[1])
    page.wait_for_function("document.getElementById('skyseg-object').textContent.startsWith('skyrmion at')")
    assert f"diameter {place[2]:.1f} px" in page.locator("#skyseg-object").text_content()
    drawn = page.evaluate("window.skysegView.drawn")
    page.get_by_role("button", name="Step").click()
    page.wait_for_function(f"window.skysegView.drawn > {drawn}")
    page.get_by_role("button", name="Go on").click()
    page.wait_for_function(f"window.skysegView.drawn > {drawn + 20}", timeout=15_000)
    assert not faults


def test_what_is_told_is_text_and_reaches_the_file(tmp_path: Path, service: Any, browser: Any) -> None:
    running, url, _ = service(tmp_path, control={"enabled": True, "address": "tcp://127.0.0.1:0"})
    page = open_page(browser, url)
    hostile = '<img src=x onerror="window.hostile=1"><b>look</b>'
    page.get_by_role("tab", name="Control").click()
    page.get_by_label("Note").fill(hostile)
    page.get_by_role("button", name="Write").click()
    page.get_by_text(hostile).first.wait_for(timeout=10_000)
    assert page.evaluate("window.hostile") is None
    page.get_by_role("button", name="Stop recording").click()
    page.get_by_role("button", name="No").click()
    page.wait_for_timeout(500)
    assert page.get_by_text("live", exact=True).is_visible()
    page.get_by_role("button", name="Stop recording").click()
    page.get_by_role("button", name="Yes").click()
    page.get_by_text("the run is over: stopped").wait_for(timeout=15_000)
    summary = running.wait()
    with sky.open_run(summary.run_file) as run:
        assert any(hostile in event["message"] for event in run.events)


def test_a_dead_service_is_said_and_its_return_too(tmp_path: Path, browser: Any) -> None:
    address = free_address()
    port = free_address().rsplit(":", 1)[1]
    command = [sys.executable, "-m", "realtime_skyseg", "dashboard", address, "--port", port]
    page_process = subprocess.Popen(command, env=as_a_user())
    config = tmp_path / "run.yaml"
    config.write_text(
        f"camera: {{driver: replay, path: bundled, loop: true, rate_hz: 20}}\nstream: {{address: '{address}'}}\n"
        f"control: {{enabled: false}}\nrecord: {{folder: '{tmp_path}'}}\n"
    )
    command = [sys.executable, "-m", "realtime_skyseg", "run", str(config)]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        page = open_page(browser, f"http://127.0.0.1:{port}")
        page.get_by_text("live", exact=True).wait_for(timeout=10_000)
        first.kill()
        killed = time.monotonic()
        page.get_by_text("the service has not spoken").wait_for(timeout=10_000)
        assert time.monotonic() - killed < 4
        first.wait()
        first = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        page.get_by_text("live", exact=True).wait_for(timeout=30_000)
    finally:
        first.terminate()
        first.wait()
        page_process.send_signal(signal.SIGINT)
        page_process.wait(20)


def test_without_its_packages_the_command_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "nicegui", None)
    monkeypatch.delitem(sys.modules, "realtime_skyseg.dashboard.page", raising=False)
    from realtime_skyseg.cli import main

    assert main(["dashboard"]) == 2
    assert "pip install 'realtime_skyseg[dashboard]'" in capsys.readouterr().err
    assert validate({"camera": {"driver": "replay", "path": "bundled"}})


def film_settings() -> dict[str, Any]:
    """A small film with its magnet, at a port of its own."""
    port = int(free_address().rsplit(":", 1)[1])
    sample = {"kind": "film"}
    return {
        "camera": {"driver": "twin", "port": port, "rate_hz": 10, "height_px": 160, "width_px": 200, "sample": sample},
        "field": {
            "driver": "twin", "port": port, "unit": "mT", "limit_mT": [-6, 6], "slew_mT_per_s": 20, "settle_s": 0.1,
            "tolerance_mT": 0.1, "initial_mT": 1.0,
            "calibration": {"date": "2026-11-22", "note": "its own", "table": [[-10, -10], [10, 10]]},
        },
    }  # fmt: skip


def test_a_field_reaches_the_magnet_after_a_question(tmp_path: Path, page_of: Any, browser: Any) -> None:
    made = settings(tmp_path, **film_settings(), control={"enabled": True, "address": "tcp://127.0.0.1:0"})
    with sky.Service(made).start() as run, sky.Control(run.control_address) as control:
        page = open_page(browser, page_of(run.address, "--control"))
        page.get_by_role("tab", name="Control").click()
        page.get_by_label("Field (mT)").fill("2.5")
        page.get_by_role("button", name="Set", exact=True).click()
        page.get_by_role("button", name="No").click()
        page.wait_for_timeout(300)
        assert control.ask("status")["status"]["field_set_mT"] == pytest.approx(1.0)
        page.get_by_role("button", name="Set", exact=True).click()
        page.get_by_role("button", name="Yes").click()
        until(lambda: control.ask("status")["status"]["field_set_mT"] == pytest.approx(2.5))
        with pytest.raises(ControlError) as refusal:
            control.ask("set_field", field_mT=60.0)
        page.get_by_label("Field (mT)").fill("60")
        page.get_by_role("button", name="Set", exact=True).click()
        page.get_by_role("button", name="Yes").click()
        page.get_by_text(str(refusal.value)).wait_for(timeout=10_000)
        page.get_by_role("button", name="Safe field").click()
        until(lambda: abs(control.ask("status")["status"]["field_mT"]) < 0.1)
        run.stop()


def test_a_programme_is_seen_and_its_abort_is_safe(tmp_path: Path, page_of: Any, browser: Any) -> None:
    programme = {
        "programme": [{"do": "staircase", "name": "up", "from_mT": 1, "to_mT": 4, "step_mT": 0.5, "frames": 3},
                      {"do": "hold", "name": "wait", "field_mT": 4, "frames": 900}],
    }  # fmt: skip
    made = settings(
        tmp_path, **film_settings(), experiment=programme, control={"enabled": True, "address": "tcp://127.0.0.1:0"}
    )
    with sky.Service(made).start() as run:
        page = open_page(browser, page_of(run.address, "--control"))
        page.get_by_role("tab", name="Programme").click()
        page.get_by_text("the programme runs").wait_for(timeout=10_000)
        page.get_by_role("cell", name="up").first.wait_for(timeout=20_000)
        page.get_by_role("tab", name="Control").click()
        page.get_by_role("button", name="Abort programme").click()
        page.get_by_role("button", name="Yes").click()
        page.get_by_text("the run is over").wait_for(timeout=20_000)
        summary = run.wait()
    with sky.open_run(summary.run_file) as file:
        assert file.experiment is not None
        assert abs(file.table["field_mT"][-1]) < 1.5 or any(event["kind"] == "field_safe" for event in file.events)


@pytest.fixture
def page_of() -> Iterator[Any]:
    """Serves a page, with what its command is given; ends it with the test. Gives its address."""
    left: list[subprocess.Popen[str]] = []

    def start(*given: str, folder: Path | None = None) -> str:
        port = free_address().rsplit(":", 1)[1]
        command = [sys.executable, "-m", "realtime_skyseg", "dashboard", *given, "--port", port]
        left.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=as_a_user(), cwd=folder))
        assert left[-1].stdout is not None
        assert left[-1].stdout.readline().startswith("http://")
        return f"http://127.0.0.1:{port}"

    yield start
    for page in left:
        page.send_signal(signal.SIGINT)
        page.communicate(timeout=20)


def test_a_finished_run_is_looked_through(tmp_path: Path, page_of: Any, browser: Any) -> None:
    summary = sky.Service(settings(tmp_path, {"path": "bundled", "limit": 12, "rate_hz": "max"},
                                   analysis={"policy": "every"})).run()  # fmt: skip
    url = page_of("tcp://127.0.0.1:9", "--runs", str(tmp_path))
    page = open_page(browser, f"{url}/run?path={summary.run_file}")
    reel = page.locator(".reel [tabindex='0']")
    reel.focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    page.wait_for_function("window.skysegView.frame.head.frame === 3", timeout=10_000)
    with sky.open_run(summary.run_file) as run:
        assert page.evaluate("window.skysegView.frame.head.count") == run.table["count"][3]
    with page.expect_download() as download:
        page.get_by_role("button", name="Save numbers").click()
    rows = Path(download.value.path()).read_text().split()
    assert (rows[0], len(rows)) == ("time_s,field_mT,count", 13)
    with page.expect_download() as download:
        page.get_by_role("button", name="Save picture").click()
    assert cv2.imread(str(download.value.path())).shape[1] > 300
    page.get_by_role("button", name="Play").click()
    page.wait_for_function("window.skysegView.frame.head.frame > 6", timeout=10_000)
    page.goto(f"{url}/run?path={tmp_path / 'none.h5'}")
    page.get_by_text("none.h5").wait_for()


def test_settings_are_tried_on_one_image(tmp_path: Path, page_of: Any, browser: Any) -> None:
    image = np.full((200, 240), 128, np.uint8)
    for k in range(12):
        cv2.circle(image, (30 + 60 * (k % 4), 40 + 60 * (k // 4)), 6 + 3 * (k % 2), 70, -1)
    image = (image + np.random.default_rng(0).normal(0, 8, image.shape)).clip(0, 255).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "discs.png"), image)
    page = open_page(browser, page_of("tcp://127.0.0.1:9", folder=tmp_path) + "/try")
    page.get_by_label("or its path").fill(str(tmp_path / "discs.png"))
    page.get_by_role("button", name="Open", exact=True).click()
    page.get_by_text("discs.png: 12 dark skyrmions").wait_for(timeout=20_000)
    page.wait_for_function("window.skysegView.frame.head.count === 12", timeout=10_000)
    page.get_by_label("min area").fill("200")
    page.get_by_text("discs.png: 6 dark skyrmions").wait_for(timeout=20_000)
    page.get_by_label("or its path").fill("nowhere.png")
    page.get_by_role("button", name="Open", exact=True).click()
    page.get_by_text("nowhere.png does not exist").wait_for(timeout=10_000)
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as settings").click()
    assert "min_area_px: 200" in Path(download.value.path()).read_text()


def test_a_run_is_begun_without_an_editor(tmp_path: Path, page_of: Any, browser: Any) -> None:
    page = browser.new_page()
    visit(page, page_of(folder=tmp_path) + "/start")
    page.get_by_label("pixel size").fill("0.1")
    page.get_by_label("rate (Hz)").fill("-3")
    page.get_by_role("button", name="Start").click()
    page.get_by_text("camera.rate_hz").wait_for(timeout=10_000)  # the sentence of the settings
    page.get_by_label("rate (Hz)").fill("8")
    page.get_by_label("loop").click()
    page.get_by_role("button", name="Start").click()
    page.wait_for_function("window.skysegView && window.skysegView.frame?.head.count > 100", timeout=40_000)
    made = sky.load_config(tmp_path / "skyseg.yaml")
    assert made.measure.pixel_size_um == 0.1
    page.get_by_role("tab", name="Control").click()
    page.get_by_role("button", name="Stop recording").click()
    page.get_by_role("button", name="Yes").click()
    page.get_by_text("the run is over: stopped").wait_for(timeout=20_000)
    (file,) = (tmp_path / "runs").glob("*.h5")
    with sky.open_run(file) as run:
        assert run.pixel_size_um == 0.1


def test_files_come_from_the_page_only(tmp_path: Path, page_of: Any) -> None:
    url = page_of("tcp://127.0.0.1:9", folder=tmp_path)

    def post(name: str, header: dict[str, str]) -> int:
        request = urllib.request.Request(f"{url}/skyseg/files?name={name}", b"content", header, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    def is_there() -> bool:
        try:
            return post("a.txt", {}) == 403
        except OSError:
            return False

    until(is_there)
    own = {"X-Skyseg": "1"}
    assert [post(name, own) for name in ("film.tif", "..%2F..%2Fhome.tif", ".hidden", "")] == [200, 200, 400, 400]
    assert sorted(one.name for one in (tmp_path / "skyseg-files").iterdir()) == ["film.tif", "home.tif"]
    assert not (tmp_path / "a.txt").exists()


def test_frames_go_to_the_page_only(page_of: Any) -> None:
    client = pytest.importorskip("websockets.sync.client")
    url = page_of("tcp://127.0.0.1:9")
    frames = url.replace("http", "ws") + "/skyseg/frames?source=live"

    def joins(origin: str) -> bool:
        try:
            with client.connect(frames, origin=origin) as socket:
                socket.send(json.dumps({"want": False}))
                return True
        except OSError as error:
            raise ConnectionError from error
        except Exception:  # refused
            return False

    def is_there() -> bool:
        try:
            return joins(url)
        except ConnectionError:
            return False

    until(is_there)
    assert not joins("http://elsewhere.example")


def test_a_run_brings_its_page_along(tmp_path: Path) -> None:
    address = free_address()
    port = free_address().rsplit(":", 1)[1]
    config = tmp_path / "run.yaml"
    config.write_text(
        f"camera: {{driver: replay, path: bundled, loop: true, rate_hz: 5}}\nstream: {{address: '{address}'}}\n"
        f"dashboard: {{port: {port}}}\nrecord: {{folder: '{tmp_path}'}}\n"
    )
    run = subprocess.Popen([sys.executable, "-m", "realtime_skyseg", "run", str(config)], env=as_a_user(),
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip

    def answers() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=2) as answer:
                return b"skyseg" in answer.read()
        except OSError:
            return False

    try:
        until(answers, 40)
    finally:
        run.send_signal(signal.SIGINT)
        assert run.wait(30) == 0
    assert not answers()


def test_a_page_needs_a_stream_to_look_at() -> None:
    camera = {"driver": "replay", "path": "bundled"}
    with pytest.raises(SettingsError, match=r"dashboard\.port"):
        validate({"camera": camera, "stream": {"address": "tcp://127.0.0.1:0"}, "dashboard": {"port": 8080}})
