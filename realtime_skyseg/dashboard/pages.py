"""The pages that begin something: a run without YAML, a finished run, one image to try settings on."""

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from nicegui import events, ui

from realtime_skyseg import devices
from realtime_skyseg.config import DEFAULT_ADDRESS, AnalysisSettings, MeasureSettings, PrepareSettings, validate
from realtime_skyseg.config.sections import RecordSettings
from realtime_skyseg.dashboard.finished import FinishedRun
from realtime_skyseg.dashboard.form import Form
from realtime_skyseg.dashboard.hub import Hub, is_free
from realtime_skyseg.dashboard.page import frame_of_page, plain_button, view
from realtime_skyseg.dashboard.trial import Trial
from realtime_skyseg.errors import SkysegError
from realtime_skyseg.recordings import open_recording
from realtime_skyseg.records import Image
from realtime_skyseg.segmentation import shipped_models
from realtime_skyseg.yaml_text import dump

#: Files that are brought to the page go here, in the folder in which it was started.
_BROUGHT = Path("skyseg-files")

#: Largest file that can be brought; a larger one is named by its path.
_MOST_BYTES = 2_000_000_000

#: A run that ends before this has failed to begin.
_BEGINS_S = 4.0

#: Where frames come from: name, and the settings that this needs.
_SOURCES: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "replay": ("a recording", {}, ["path", "rate_hz", "loop"]),
    "twin": (
        "the simulated microscope",
        {
            "camera": {"rate_hz": 16, "height_px": 512, "width_px": 672, "image": "difference",
                       "sample": {"kind": "film", "start": "skyrmions", "start_mT": 1.2}},
            "field": {
                "driver": "twin", "unit": "mT",
                "calibration": {"date": "2026-11-22", "note": "its own", "table": [[-10.0, -10.0], [10.0, 10.0]]},
                "limit_mT": [-8, 8], "slew_mT_per_s": 2, "tolerance_mT": 0.1, "settle_s": 0.5, "safe": "zero",
                "initial_mT": 1.2, "pulse_limit_mT": [-60, 60],
            },
            "measure": {"polarity": "dark", "pixel_size_um": 0.2},
        },
        ["rate_hz", "height_px", "width_px"],
    ),
    "micromanager": (
        "a Micro-Manager camera", {"camera": {"mode": "own"}}, ["adapters", "configuration", "exposure_ms"]
    ),
}  # fmt: skip


def runs_page(hub: Hub, folder: Path) -> None:
    """Choose a finished run."""
    frame_of_page(hub, "/runs", titled=False)
    with ui.element("div").classes("sheet"):
        ui.label("Finished runs").classes("title").props("role=heading aria-level=1")
        path = ui.input("Run file").classes("wide").props("dense")
        problem = ui.label("").classes("problem").props("role=alert")

        def show(file: str) -> None:
            try:
                FinishedRun(file).close()
            except SkysegError as error:
                problem.text = str(error)
                return
            ui.navigate.to(f"/run?path={Path(file).resolve()}")

        plain_button("Open", lambda: show(path.value or ""))
        found = sorted(folder.glob("**/*.h5"), key=lambda one: one.stat().st_mtime, reverse=True)[:50]
        ui.label(f"The newest in {folder.resolve()}:" if found else f"None in {folder.resolve()}.").classes("small")
        with ui.element("ul").classes("files"):
            for file in found:
                with ui.element("li"):
                    size = file.stat().st_size / 1e6
                    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(file.stat().st_mtime))
                    ui.button(f"{file.relative_to(folder)}", on_click=lambda file=file: show(str(file))).props(
                        "flat no-caps dense align=left color=light-blue-3"
                    )
                    ui.label(f"{when}, {size:.0f} MB").classes("small")


class TryPage:
    """Open a picture, see what prepare makes of it, the mask and the numbers, and move the settings."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._trial: Trial = _example()
        self._name = hub.add(self._trial)
        ui.context.client.on_delete(lambda: hub.drop(self._name))

    def build(self) -> None:
        """Lay it out."""
        with frame_of_page(self._hub, "/try"):
            ui.label("").classes("state")
            ui.label("").classes("count").props("id=skyseg-count")
        with ui.element("div").classes("body"):
            with ui.element("section").classes("live").props('aria-label="Image"'):
                with ui.element("div").classes("tools"):
                    bring_file("skyseg-picture", "Open a picture", self._open)
                    path = ui.input("or its path").classes("wide").props("dense")
                    plain_button("Open", lambda: self._open(Path(path.value or "")))
                    raw = ui.select({False: "as segmented", True: "as it is"}, value=False, label="Image")
                    raw.classes("colour").props("dense options-dense")
                    raw.on_value_change(lambda e: ui.run_javascript(
                        f"window.skysegView?.set({{raw: {'true' if e.value else 'false'}}})"))  # fmt: skip
                    plain_button("Save picture", lambda: ui.run_javascript("window.skysegView?.save()"))
                view(self._name)
            with ui.element("section").classes("side entries").props('aria-label="Settings"'):
                self._problem = ui.label("").classes("problem").props("role=alert")
                self._numbers = ui.label("").classes("small")
                models = [name for name in shipped_models() if not name.endswith("-0.1")]
                self._model = ui.select(models, value="compact", label="model", on_change=self._again)
                self._model.classes("entry").props("dense options-dense")
                self._analysis = Form(AnalysisSettings, ["captions", "rings", "large_domains", "close_gaps", "specks"],
                                      on_change=self._again)  # fmt: skip
                self._measure = Form(
                    MeasureSettings, ["polarity", "min_area_px", "stripe_slenderness", "pixel_size_um"],
                    on_change=self._again,
                )  # fmt: skip
                with ui.expansion("Preparation of raw images").classes("more"):
                    self._prepare = Form(PrepareSettings, ["background", "flat_field", "drift"], on_change=self._again)
                with ui.element("div").classes("tools"):
                    plain_button("Save as settings", self._save)
        self._tell()

    def _tree(self) -> dict[str, Any]:
        tree = {"camera": {"driver": "replay", "path": "bundled"}, "measure": self._measure.values(),
                "analysis": {**self._analysis.values(), "model": self._model.value}}  # fmt: skip
        if prepare := self._prepare.values():
            tree["prepare"] = prepare
        return tree

    async def _again(self) -> None:
        try:
            config = validate(self._tree())
            await asyncio.to_thread(self._trial.use, config)
        except (SkysegError, ValueError) as error:
            self._problem.text = str(error)
            return
        self._problem.text = ""
        self._tell()

    def _tell(self) -> None:
        trial = self._trial
        found = trial.found
        assert found is not None
        diameters = found.objects["diameter"][found.objects["kind"] == 0]
        middle = f", median diameter {np.median(diameters):.1f} px" if len(diameters) else ""
        dark = {-1: "dark", 1: "bright", 0: "of either kind"}[found.polarity]
        seen = [
            text for on, text in ((found.drawn, "a caption is left out"), (found.ringed, "rings are taken out")) if on
        ]
        numbers = "shows nothing" if found.count is None else f"{found.count} {dark} skyrmions, {found.stripes} stripes"
        self._numbers.text = ". ".join([f"{trial.name}: {numbers}{middle}", *seen])

    async def _open(self, path: Path) -> None:
        try:
            image = await asyncio.to_thread(read_image, path)
            trial = await asyncio.to_thread(Trial, image, path.name, validate(self._tree()))
        except (SkysegError, ValueError) as error:
            self._problem.text = str(error)
            return
        self._problem.text = ""
        self._hub.drop(self._name)
        self._trial, self._name = trial, self._hub.add(trial)
        ui.run_javascript(f"window.skysegView?.show({self._name!r})")
        self._tell()

    def _save(self) -> None:
        tree = {key: value for key, value in self._tree().items() if key != "camera" and value}
        ui.download(dump(tree).encode(), "skyseg-settings.yaml")


class StartPage:
    """Begin a run without an editor: the settings that matter as a form, and the rest as by default."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._forms: dict[str, Form] = {}
        self._path = ""

    def build(self) -> None:
        """Lay it out."""
        frame_of_page(self._hub, "/start", titled=False)
        with ui.element("div").classes("sheet"):
            ui.label("Begin a run").classes("title").props("role=heading aria-level=1")
            choices = {name: text for name, (text, _, _) in _SOURCES.items() if name in devices.drivers("cameras")}
            ui.label("Frames come from").classes("small")
            self._source = ui.toggle(choices, value=next(iter(choices)), on_change=lambda: self._camera.refresh())
            self._source.props("no-caps unelevated")
            self._camera: Any = ui.refreshable(self._build_camera)
            self._camera()
            ui.label("What is known of the sample").classes("heading")
            with ui.element("div").classes("entries"):
                self._measure = Form(MeasureSettings, ["pixel_size_um", "polarity"])
                self._analysis = Form(AnalysisSettings, ["model"])
                self._record = Form(RecordSettings, ["folder", "name", "title", "sample", "operator"])
            with ui.element("div").classes("tools"):
                self._file = ui.input("Settings are kept in", value="skyseg.yaml").classes("wide").props("dense")
                self._control = ui.checkbox("The page may stop it and move the field", value=True)
            self._problem = ui.label("").classes("problem").props("role=alert")
            with ui.element("div").classes("tools"):
                self._begin = ui.button("Start", on_click=self._start).props("no-caps size=lg color=primary")
                self._waits = ui.spinner(size="1.5em")
                self._waits.visible = False

    def _build_camera(self) -> None:
        name = self._source.value
        _, tree, keys = _SOURCES[name]
        kind = devices.driver("cameras", name).Settings
        with ui.element("div").classes("entries"):
            known = [key for key in keys if key in kind.model_fields]
            values = {**tree.get("camera", {}), **({"path": self._path or "bundled"} if name == "replay" else {})}
            self._forms["camera"] = Form(kind, known, values)
            if name == "replay":
                bring_file("skyseg-recording", "A file, chosen or dropped here", self._brought)

    def _brought(self, path: Path) -> None:
        self._path = str(path)
        self._camera.refresh()

    def tree(self) -> dict[str, Any]:
        """The settings as filled in."""
        name = self._source.value
        _, fixed, _ = _SOURCES[name]
        camera = {"driver": name, **fixed.get("camera", {}), **self._forms["camera"].values()}
        if name == "replay":
            camera.setdefault("path", "bundled")
        tree = {"camera": camera, **{key: value for key, value in fixed.items() if key not in ("camera", "measure")},
                "measure": {**fixed.get("measure", {}), **self._measure.values()},
                "analysis": self._analysis.values(), "record": self._record.values()}  # fmt: skip
        return {key: value for key, value in tree.items() if value}

    async def _start(self) -> None:
        self._problem.text = ""
        file = Path(self._file.value or "skyseg.yaml")
        try:
            tree = self.tree()
            validate(tree)
            if file.suffix not in (".yaml", ".yml"):
                raise ValueError(f"'{file}' is no name for settings; allowed: one that ends with .yaml")
            file.write_text(dump(tree), encoding="utf-8")
        except (SkysegError, ValueError, OSError) as error:
            self._problem.text = str(error)
            return
        self._begin.disable()
        self._waits.visible = True
        address = DEFAULT_ADDRESS if is_free(DEFAULT_ADDRESS) else f"tcp://127.0.0.1:{_free_port()}"
        child = _run(file, address)
        self._hub.follow(address)
        self._hub.may_control = self._control.value
        until = time.monotonic() + _BEGINS_S
        while time.monotonic() < until and child.poll() is None and not (self._hub.feed and self._hub.feed.about):
            await asyncio.sleep(0.1)
        if child.poll() not in (None, 0):
            said = log_of(file).read_text(errors="replace").strip().splitlines()
            self._problem.text = said[-1] if said else f"the run ended with status {child.returncode}"
            self._begin.enable()
            self._waits.visible = False
            return
        ui.navigate.to("/")


def read_image(path: Path) -> Image:
    """A picture, or the first frame of a recording.

    Raises:
        SkysegError: it cannot be read.
    """
    content = (
        np.fromfile(path, np.uint8) if path.is_file() and path.suffix.lower() in (".png", ".bmp", ".jpg") else None
    )
    if content is not None:
        image: Any = cv2.imdecode(content, cv2.IMREAD_UNCHANGED)
        if image is not None:
            grey = image if image.ndim == 2 else cv2.cvtColor(image[..., :3], cv2.COLOR_BGR2GRAY)
            return np.asarray(grey)
    with open_recording(path) as recording:
        first: Image = recording.read(0).copy()
        return first


def _example() -> Trial:
    from realtime_skyseg.config import DEMO

    config = validate(DEMO)
    camera = config.camera.open()
    try:
        first = camera.read(5.0)
        assert first is not None
        return Trial(first.image.copy(), "the bundled recording", config)
    finally:
        camera.close()


def bring_file(place: str, text: str, then: Callable[[Path], Any]) -> None:
    """A field by which a file is brought to the page's folder, chosen or dropped; `then` is told where it is."""
    ui.html(
        f'<label class="bring" id="{place}">{text} <input type="file" aria-label="{text}"><output></output></label>',
        sanitize=False,
    )
    ui.run_javascript(f'import("/skyseg/bring.js").then((it) => it.bring("{place}"))')

    def told(event: events.GenericEventArguments) -> Any:
        return then(Path(event.args["path"])) if event.args.get("place") == place else None

    ui.on("skyseg-brought", told)


async def keep_file(name: str, pieces: AsyncIterator[bytes]) -> Path:
    """Keep a file that is brought to the page, by its own name, in a folder beside.

    Raises:
        ValueError: it is too large, or has no name for a file.
    """
    name = Path(name.replace("\\", "/")).name
    if not name or name.startswith("."):
        raise ValueError("the file has no name; allowed: one with a name")
    _BROUGHT.mkdir(exist_ok=True)
    path, total = _BROUGHT / name, 0
    with path.open("wb") as file:
        async for piece in pieces:
            total += len(piece)
            if total > _MOST_BYTES:
                raise ValueError(
                    f"{name} is larger than {_MOST_BYTES / 1e9:g} GB; allowed: its path, in the field beside"
                )
            await asyncio.to_thread(file.write, piece)
    return path


def log_of(settings: Path) -> Path:
    """Where a run that was begun from the page writes what it has to say: a pipe would fill up, and hold it."""
    return settings.with_suffix(".log")


def _run(file: Path, address: str) -> subprocess.Popen[bytes]:
    """A run in a process of its own, which goes on when the page ends."""
    command = [
        sys.executable,
        "-m",
        "realtime_skyseg",
        "run",
        str(file),
        "--set",
        f"stream.address={address}",
        "--json",
    ]
    with log_of(file).open("wb") as log:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log, start_new_session=True)


def _free_port() -> int:
    """Of two that follow each other, the first: control comes after the stream."""
    while True:
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0))
            port: int = one.getsockname()[1]
            try:
                two.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port


__all__ = ["StartPage", "TryPage", "keep_file", "read_image", "runs_page"]
