"""The live page, on a real service; the page itself in a real browser."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
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
        assert feed.header is not None
        assert feed.header.pixel_size_um == 0.2
        assert feed.ended is not None
        assert feed.ended.status == "ok"
        assert feed.counters["received"] == 40
        assert len(told) >= 10
        assert "mean_psi6" in feed.quantities
        assert feed.shown is not None
        with sky.open_run(summary.run_file) as run:
            np.testing.assert_array_equal(feed.series.columns["count"], run.table["count"])
            np.testing.assert_allclose(feed.series.columns["mean_psi6"], run.table["mean_psi6"], rtol=1e-6)
            result = feed.shown.result
            np.testing.assert_array_equal(result.mask, run.mask[result.frame])
            # what the browser gets
            content = pack(feed.shown, 7)
            length = int.from_bytes(content[:4], "little")
            head = json.loads(content[4 : 4 + length])
            image, runs, table = head["parts"]
            at = 4 + length
            assert (head["number"], head["frame"], head["count"]) == (7, result.frame, result.count)
            assert cv2.imdecode(np.frombuffer(content[at : at + image], np.uint8), 0).shape == (512, 672)
            np.testing.assert_array_equal(unpack_runs(content[at + image : at + image + runs], (512, 672)), result.mask)
            columns = np.frombuffer(content[at + image + runs :], "<f4").reshape(len(head["columns"]), head["objects"])
            assert table == columns.nbytes
            np.testing.assert_allclose(columns[head["columns"].index("x")], result.objects["x"])
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


def open_page(browser: Any, url: str, width: int = 1440, height: int = 900) -> Any:
    page = browser.new_page(viewport={"width": width, "height": height})
    for _ in range(100):
        try:
            page.goto(url)
            break
        except Exception:  # it is not there yet
            time.sleep(0.1)
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
    page.mouse.click(place[0], place[1])
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
