"""A look at every device of a configuration: each is opened and read, nothing is set."""

import time

from realtime_skyseg.config import Config, FieldSettings
from realtime_skyseg.devices import Camera, CameraEnded, CameraNotice
from realtime_skyseg.errors import CameraError
from realtime_skyseg.field import FieldGuard

#: Cameras that are triggered, or expose for long, may take a while.
_FRAME_S = 10.0


def look(config: Config) -> dict[str, str]:
    """Open the camera and take one frame; open the magnet's supply and read it back.

    Returns:
        What was found, one sentence per device.

    Raises:
        SettingsError: a device cannot be opened with these settings.
        CameraError: no frame came within 10 s.
        FieldError: the supply cannot be read, or stands outside the limits.
    """
    camera = config.camera.open()
    try:
        found = {"camera": _look_at_camera(config, camera)}
        # While the camera is open: a supply may hang on the same device, as in a run.
        if config.field:
            found["field"] = _look_at_field(config.field)
    finally:
        camera.close()
    return found


def _look_at_field(settings: FieldSettings) -> str:
    with FieldGuard(settings) as field:
        reading = field.latest
        low, high = settings.limit_mT
        gives = f"gives {field.range[0]:g} to {field.range[1]:g} {field.unit}" if field.range else "can only be read"
        return (
            f"{settings.driver}: {reading.field_mT:g} mT ({reading.device:g} {field.unit}) is read back; the "
            f"supply {gives}; limits {low:g} to {high:g} mT; nothing was set"
        )


def _look_at_camera(config: Config, camera: Camera) -> str:
    deadline = time.monotonic() + _FRAME_S
    frame = None
    while frame is None:
        if time.monotonic() > deadline:
            raise CameraError(f"camera.driver: '{config.camera.driver}' gave no frame within {_FRAME_S:g} s")
        try:
            frame = camera.read(0.5)
        except CameraNotice:
            continue
        except CameraEnded as error:
            raise CameraError(f"camera.driver: '{config.camera.driver}' ended before its first frame") from error
    height, width = frame.image.shape
    rate = f"{camera.rate_hz:g} frames/s" if camera.rate_hz else "rate not known"
    return (
        f"{config.camera.driver}: {height}x{width} {frame.image.dtype}, mean grey {frame.image.mean():.1f}, {rate}, "
        f"clock: {camera.clock}"
    )
