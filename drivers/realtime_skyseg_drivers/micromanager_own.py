"""Mode `own` of the camera driver `micromanager`: MMCore in this process."""

import re
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from realtime_skyseg.errors import CameraError, MissingExtraError, SettingsError
from realtime_skyseg_drivers.micromanager_picture import FIRST_RETRY_S, LONGEST_RETRY_S, Gone, Picture, read_picture
from realtime_skyseg_drivers.micromanager_settings import MicroManagerSettings, log

#: MMCore announces no frame, so mode `own` looks for one this often. It is what a frame waits, half of it on average.
_LOOK_S = 0.0005

#: Device interface version: the Micro-Manager builds that have it, and the pymmcore that goes with them.
_INTERFACES = {
    70: ("up to 20221030", "10.1.1.70.6"),
    71: ("from 20221031 to 20250310", "11.2.1.71.0"),
    73: ("from 20250318 to 20250814", "11.9.0.73.0"),
    74: ("from 20250815 to 20260225", "11.10.0.74.1"),
    75: ("from 20260226", "12.5.1.75.0"),
}


class OwnCore:
    """The camera through an MMCore in this process, of which pycromanager allows one at a time."""

    def __init__(self, settings: MicroManagerSettings) -> None:
        self._settings = settings
        self._retry_at_s = 0.0  # monotonic
        self._retry_s = FIRST_RETRY_S
        self._running = False
        self._closed = False
        self._core = _core()
        try:
            self._load()
            self.shape, self.dtype = self._form()
        except BaseException:
            self.close()
            raise
        core, camera = self._core, self._core.get_camera_device()
        self.description: dict[str, str | int | float | bool] = {
            "mode": "own",
            "camera": camera,
            "adapter": f"{core.get_device_library(camera)}/{core.get_device_name(camera)}",
            "micromanager": f"{core.get_version_info()}, {core.get_api_version_info()}",
            "pymmcore": version("pymmcore"),
            "pycromanager": version("pycromanager"),
            "exposure_ms": core.get_exposure(),
            "roi_px": ", ".join(map(str, core.get_roi())),
        }

    def next(self, timeout_s: float) -> Picture | None:
        """See `Source`."""
        core, deadline = self._core, time.monotonic() + timeout_s
        try:
            if not self._running and not self._start(timeout_s):
                return None
            while not core.get_remaining_image_count():
                if time.monotonic() >= deadline:
                    if not core.is_sequence_running():
                        raise RuntimeError("it has stopped by itself")
                    return None
                time.sleep(_LOOK_S)
            tagged = core.pop_next_tagged_image()
            self._retry_s = FIRST_RETRY_S
            return read_picture(tagged.tags, tagged.pix)
        except IndexError:
            # A full buffer was emptied by MMCore between the two calls; the numbers will show what is lost.
            return None
        except (RuntimeError, OSError, SettingsError, CameraError) as error:
            self._running = False
            self._retry_at_s = time.monotonic() + self._retry_s
            self._retry_s = min(2 * self._retry_s, LONGEST_RETRY_S)
            raise Gone(f"the camera gives no images: {_first_line(error)}") from error

    def close(self) -> None:
        """See `Source`."""
        if self._closed:
            return
        self._closed = True
        import mmpycorex

        try:
            if self._core.is_sequence_running():
                self._core.stop_sequence_acquisition()
        except (RuntimeError, OSError) as error:
            log.warning("the camera cannot be stopped: %s", _first_line(error))
        try:
            mmpycorex.terminate_core_instances()
        except (RuntimeError, OSError) as error:
            log.warning("the camera cannot be released: %s", _first_line(error))

    def _start(self, timeout_s: float) -> bool:
        """Start the sequence; False while it is not yet time to try again."""
        wait_s = self._retry_at_s - time.monotonic()
        if wait_s > 0:
            time.sleep(min(wait_s, timeout_s))
            return False
        core = self._core
        try:
            if core.is_sequence_running():
                core.stop_sequence_acquisition()
            core.start_continuous_sequence_acquisition(0.0)
        except RuntimeError:
            # A camera that was unplugged must be initialised again.
            self._load()
            core.start_continuous_sequence_acquisition(0.0)
        self._running = True
        return True

    def _load(self) -> None:
        core, settings = self._core, self._settings
        adapters = _adapters(settings.adapters)
        configuration = next(
            (path for path in (settings.configuration, adapters / settings.configuration) if path.is_file()), None
        )
        if configuration is None:
            raise SettingsError(
                f"configuration: '{settings.configuration}' is no file, neither here nor in '{adapters}'; allowed: "
                "Micro-Manager's system configuration file (.cfg)"
            )
        core.set_device_adapter_search_paths([str(adapters)])
        try:
            core.load_system_configuration(str(configuration))
        except (RuntimeError, OSError) as error:
            raise CameraError(_loading_failed(configuration, adapters, str(error))) from error
        camera = core.get_camera_device()
        if not camera:
            raise SettingsError(f"configuration: '{configuration}' names no camera; allowed: one that does")
        for label, values in settings.properties.items():
            for name, value in values.items():
                self._set(f"properties.{label}.{name}", label, name, value)
        if settings.binning is not None:
            self._set("binning", camera, "Binning", settings.binning)
        if settings.roi_px is not None:
            self._set_roi(*settings.roi_px)
        if settings.exposure_ms is not None:
            core.set_exposure(settings.exposure_ms)
        try:
            core.set_circular_buffer_memory_footprint(settings.buffer_mb)
        except (MemoryError, RuntimeError) as error:
            raise SettingsError(f"buffer_mb: {settings.buffer_mb} is refused: {_first_line(error)}") from error

    def _set(self, key: str, label: str, name: str, value: str | int | float) -> None:
        core = self._core
        if label not in core.get_loaded_devices():
            raise SettingsError(f"{key}: no device '{label}'; allowed: {', '.join(core.get_loaded_devices())}")
        if not core.has_property(label, name):
            names = ", ".join(core.get_device_property_names(label))
            raise SettingsError(f"{key}: '{label}' has no property '{name}'; allowed: {names}")
        try:
            core.set_property(label, name, str(value))
            core.wait_for_device(label)
        except RuntimeError as error:
            allowed = ", ".join(core.get_allowed_property_values(label, name))
            if core.has_property_limits(label, name):
                low, high = core.get_property_lower_limit(label, name), core.get_property_upper_limit(label, name)
                allowed = f"{low:g} to {high:g}"
            raise SettingsError(f"{key}: '{value}' is refused; allowed: {allowed or _first_line(error)}") from error

    def _set_roi(self, left: int, top: int, width: int, height: int) -> None:
        core = self._core
        # Some adapters take a part beyond the sensor without a word.
        core.clear_roi()
        full_width, full_height = core.get_image_width(), core.get_image_height()
        inside = min(left, top) >= 0 and left + width <= full_width and top + height <= full_height
        if not inside or min(width, height) < 1:
            raise SettingsError(
                f"roi_px: [{left}, {top}, {width}, {height}] is not inside the image; allowed: left, top, width, "
                f"height within {full_width} x {full_height} px"
            )
        try:
            core.set_roi(left, top, width, height)
        except RuntimeError as error:
            raise SettingsError(
                f"roi_px: [{left}, {top}, {width}, {height}] is refused: {_first_line(error)}"
            ) from error

    def _form(self) -> tuple[tuple[int, int], np.dtype[Any]]:
        core = self._core
        depth, components = core.get_bytes_per_pixel(), core.get_number_of_components()
        if depth not in (1, 2) or components != 1:
            raise SettingsError(
                f"properties: the camera gives {depth} bytes and {components} colours per pixel; allowed: grey of 8 or "
                "16 bit, for most cameras by {Camera: {PixelType: 16bit}}"
            )
        return (core.get_image_height(), core.get_image_width()), np.dtype(np.uint8 if depth == 1 else np.uint16)


def _core() -> Any:
    try:
        # pycromanager's Python backend without its acquisition engine, which is not used here, and does not survive a
        # second start in one process.
        import mmpycorex
    except ModuleNotFoundError as error:
        raise missing_package(error) from error
    if mmpycorex.is_pymmcore_active():
        raise CameraError("a camera of Micro-Manager is open in this process already; allowed: one at a time")
    mmpycorex.create_core_instance("", None, python_backend=True, buffer_size_mb=16)
    core = mmpycorex.Core()
    core.enable_stderr_log(False)
    return core


def _adapters(text: str) -> Path:
    if text == "mm-test-adapters":
        try:
            from mm_test_adapters import device_adapter_path
        except ModuleNotFoundError as error:
            raise SettingsError(
                "adapters: the package 'mm-test-adapters' is not installed; pip install 'realtime_skyseg[test]', or "
                "give Micro-Manager's folder"
            ) from error
        return Path(device_adapter_path())
    if not Path(text).is_dir():
        raise SettingsError(f"adapters: '{text}' is no folder; allowed: Micro-Manager's folder, or mm-test-adapters")
    return Path(text)


def _loading_failed(configuration: Path, adapters: Path, reason: str) -> str:
    versions = re.search(r"device interface version.*requires (\d+).*has (\d+)", reason)
    if versions:
        needed, theirs = map(int, versions.groups())
        builds = _INTERFACES.get(needed, ("", ""))[0]
        pymmcore = _INTERFACES.get(theirs, ("", ""))[1]
        return (
            f"the device adapters in '{adapters}' have device interface {theirs}, but pymmcore "
            f"{version('pymmcore')} needs {needed}; install a Micro-Manager build {builds or 'with that interface'}, "
            + (f"or: pip install pymmcore=={pymmcore}" if pymmcore else f"or a pymmcore for interface {theirs}")
        )
    return f"Micro-Manager cannot load '{configuration}': {' '.join(reason.split())}"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or repr(error)).split("\n")[0]


def missing_package(error: ModuleNotFoundError) -> MissingExtraError:
    """The sentence that says what to install."""
    return MissingExtraError(
        f"driver 'micromanager' needs the package '{error.name}', which is not installed: "
        "pip install 'realtime_skyseg[micromanager]'"
    )
