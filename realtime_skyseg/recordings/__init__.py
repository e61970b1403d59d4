"""Recordings of labs, read frame by frame: folders, TIFF, video, NumPy, HDF5, Zarr, NDTiff and run files.

Every kind is read lazily: a broken recording yields its good frames first and then a `RecordingError` that names the
file and the frame, counted from 0. Pacing is not done here (see `realtime_skyseg_simulator.replay`).
"""

from pathlib import Path

from realtime_skyseg.errors import RecordingError, SettingsError
from realtime_skyseg.recordings.arrays import ArrayRecording
from realtime_skyseg.recordings.folder import (
    IMAGE_SUFFIXES,
    TIFF_SUFFIXES,
    FolderRecording,
    MicroManagerFolder,
    NDTiffRecording,
    decode_image,
    is_micro_manager,
    ndtiff_folder,
)
from realtime_skyseg.recordings.hdf5 import Hdf5Recording
from realtime_skyseg.recordings.ome_zarr import ZarrRecording
from realtime_skyseg.recordings.recording import Choice, Recording
from realtime_skyseg.recordings.run import LabelledRecording, RunRecording, kind_of
from realtime_skyseg.recordings.tiff import TiffRecording
from realtime_skyseg.recordings.video import VideoRecording

__all__ = ["Choice", "LabelledRecording", "Recording", "decode_image", "kind_of", "open_recording"]

_VIDEO_SUFFIXES = (".avi", ".mp4", ".mkv", ".mov")
_HDF5_SUFFIXES = (".h5", ".hdf5", ".nxs", ".hdf", ".he5", ".nx", ".partial")
_ARRAY_SUFFIXES = (".npy", ".npz")
_ZARR_FILES = (".zattrs", ".zgroup", ".zarray", "zarr.json")
_FILE_SUFFIXES = (*IMAGE_SUFFIXES, *_VIDEO_SUFFIXES, *_ARRAY_SUFFIXES, *_HDF5_SUFFIXES, ".zarr.zip")


def open_recording(path: str | Path, choice: Choice = Choice()) -> Recording:  # noqa: B008  frozen
    """Open a folder or file as a `Recording`.

    Args:
        path: of the recording; `~` is the home folder.
        choice: what is played of a recording of several channels, positions, planes or arrays.

    Raises:
        SettingsError: the path does not exist, its suffix is not supported, the folder holds no images, or there is
            more than one sequence and none was chosen.
        RecordingError: not even the first frame can be reached.
    """
    path = Path(path).expanduser()
    allowed = f"allowed: a folder of images ({', '.join(IMAGE_SUFFIXES)}) or a file ({', '.join(_FILE_SUFFIXES)})"
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, ValueError) as error:
        raise SettingsError(f"path: '{path!s:.200}' cannot be opened ({error}); {allowed}") from error
    if is_folder:
        return _open_folder(path, choice)
    if not is_file:
        raise SettingsError(f"path: {path!s:.500} does not exist; {allowed}")
    name, suffix = path.name.lower(), path.suffix.lower()
    if path.stat().st_size == 0:
        raise RecordingError(f"{path}: frame 0 cannot be read: the file is empty")
    if suffix in TIFF_SUFFIXES:
        return TiffRecording(path, choice)
    if suffix in _ARRAY_SUFFIXES:
        return ArrayRecording(path, choice)
    if suffix in _HDF5_SUFFIXES:
        kind = kind_of(path)
        if kind == "" and suffix != ".partial":
            return Hdf5Recording(path, choice)
        return _unchosen(LabelledRecording(path) if kind == "labelled" else RunRecording(path), choice)
    if suffix in _VIDEO_SUFFIXES:
        return _unchosen(VideoRecording(path), choice)
    if suffix in IMAGE_SUFFIXES:
        return _unchosen(FolderRecording(path.parent, Choice(), [path]), choice)
    if name.endswith(".zarr.zip"):
        return ZarrRecording(path, choice)
    raise SettingsError(f"path: {path} has the unsupported suffix '{path.suffix}'; {allowed}")


def _open_folder(path: Path, choice: Choice) -> Recording:
    if any((path / name).is_file() for name in _ZARR_FILES):
        return ZarrRecording(path, choice)
    if ndtiff_folder(path) is not None:
        return NDTiffRecording(path, choice)
    try:
        if is_micro_manager(path):
            return MicroManagerFolder(path, choice)
        return FolderRecording(path, choice)
    except OSError as error:
        raise RecordingError(f"{path}: the folder cannot be read: {error.strerror or error}") from error


def _unchosen(recording: Recording, choice: Choice) -> Recording:
    """A recording of which there is nothing to choose."""
    for key in ("channel", "position", "z", "dataset"):
        if getattr(choice, key) not in (None, 0, "0"):
            recording.close()
            raise SettingsError(f"{key}: {getattr(choice, key)!r} is not in {recording.path}; allowed: 0, or nothing")
    return recording
