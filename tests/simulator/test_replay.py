"""The replay camera: which recordings it opens, what it says of broken ones, and when it hands frames over."""

import json
import re
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pydantic
import pytest
import tifffile
from realtime_skyseg_simulator.replay import ReplayCamera, ReplaySettings

from realtime_skyseg.devices import Camera, CameraEnded, driver
from realtime_skyseg.errors import CameraError, RecordingError, SettingsError
from realtime_skyseg.recordings import Recording, open_recording
from realtime_skyseg.records import Frame
from realtime_skyseg.storage import Provenance, RunWriter

N, HEIGHT, WIDTH = 20, 48, 64


def stack(dtype: str = "u1", n: int = N, colours: int = 0) -> np.ndarray:
    random = np.random.default_rng(7)
    shape = (n, HEIGHT, WIDTH, colours) if colours else (n, HEIGHT, WIDTH)
    if dtype.startswith("f"):
        return random.normal(100, 30, shape).astype(dtype)
    return random.integers(0, 2 ** (8 * np.dtype(dtype).itemsize), shape, dtype=np.uint16).astype(dtype)


def write_folder(path: Path, frames: np.ndarray, suffix: str = ".png") -> None:
    path.mkdir()
    for i, frame in enumerate(frames):
        if suffix == ".tif":
            tifffile.imwrite(path / f"{i + 1}{suffix}", frame)
        else:
            assert cv2.imwrite(str(path / f"{i + 1}{suffix}"), frame[..., ::-1] if frame.ndim == 3 else frame)


def write_pages(path: Path, frames: np.ndarray, **options: Any) -> None:
    with tifffile.TiffWriter(path) as tiff:
        for frame in frames:
            tiff.write(frame, contiguous=False, **options)


def write_video(path: Path, frames: np.ndarray, codec: str, rate_hz: float = 16.0) -> None:
    deep = [cv2.VIDEOWRITER_PROP_DEPTH, cv2.CV_16U] if frames.dtype == np.uint16 else []
    video = cv2.VideoWriter(
        str(path),
        cv2.CAP_FFMPEG,
        cv2.VideoWriter_fourcc(*codec),
        rate_hz,
        (frames.shape[2], frames.shape[1]),
        [cv2.VIDEOWRITER_PROP_IS_COLOR, 0, *deep],
    )
    assert video.isOpened()
    for frame in frames:
        video.write(frame)
    video.release()


#: How a stack gets into a TIFF file.
TIFF_WRITERS: dict[str, Callable[[Path, np.ndarray], Any]] = {
    "imwrite": lambda path, frames: tifffile.imwrite(path, frames),
    "plain": lambda path, frames: tifffile.imwrite(path, frames, metadata=None),
    "bigtiff": lambda path, frames: tifffile.imwrite(path, frames, bigtiff=True),
    "big-endian": lambda path, frames: tifffile.imwrite(path, frames, byteorder=">"),
    "deflate": lambda path, frames: tifffile.imwrite(path, frames, compression="zlib"),
    "strips": lambda path, frames: tifffile.imwrite(path, frames, rowsperstrip=5, metadata=None),
    "page by page": write_pages,
    "page by page, plain": lambda path, frames: write_pages(path, frames, metadata=None),
    "ImageJ": lambda path, frames: tifffile.imwrite(path, frames, imagej=True),
    "OME": lambda path, frames: tifffile.imwrite(path, frames, ome=True),
    "OME, deflate": lambda path, frames: tifffile.imwrite(path, frames, ome=True, compression="zlib"),
    "OpenCV": lambda path, frames: cv2.imwritemulti(str(path), list(frames)),
}


def until_broken(recording: Recording) -> tuple[list[np.ndarray], str]:
    """The frames that come, and the message of the `RecordingError` that ends them."""
    frames: list[np.ndarray] = []
    while True:
        try:
            frames.append(recording.read(len(frames)))
        except RecordingError as error:
            return frames, str(error)


def cut(path: Path, share: float = 0.6) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


@pytest.fixture
def replay() -> Iterator[Callable[..., ReplayCamera]]:
    """Makes replay cameras and closes them after the test."""
    with ExitStack() as opened:

        def make(path: Path | str, **settings: Any) -> ReplayCamera:
            camera = ReplayCamera(ReplaySettings(path=str(path), **settings))
            opened.callback(camera.close)
            return camera

        yield make


Replay = Callable[..., ReplayCamera]


def all_frames(camera: ReplayCamera) -> list[Frame]:
    frames = []
    while True:
        try:
            frame = camera.read(1.0)
        except CameraEnded:
            return frames
        assert frame is not None
        frames.append(frame)


# --- what can be opened


@pytest.mark.parametrize(
    ("name", "dtype", "write"),
    [
        ("png folder", "u1", write_folder),
        ("16 bit png folder", "u2", write_folder),
        ("tiff folder", "u1", lambda path, frames: write_folder(path, frames, ".tif")),
        ("float tiff folder", "f4", lambda path, frames: write_folder(path, frames, ".tif")),
        ("bmp folder", "u1", lambda path, frames: write_folder(path, frames, ".bmp")),
        ("tiff.tif", "f4", tifffile.imwrite),
        ("array.npy", "u1", np.save),
        ("array16.npy", "u2", np.save),
        ("array32.npy", "f4", np.save),
        ("big-endian.npy", ">u2", np.save),
        ("fortran.npy", "u1", lambda path, frames: np.save(path, np.asfortranarray(frames))),
        ("only.npz", "u2", lambda path, frames: np.savez(path, a=frames, rate=np.array(3.0))),
        ("named.npz", "u1", lambda path, frames: np.savez_compressed(path, frames=frames, other=frames[:2])),
        ("lossless.avi", "u1", lambda path, frames: write_video(path, frames, "FFV1")),
        ("lossless16.avi", "u2", lambda path, frames: write_video(path, frames, "FFV1")),
        ("lossless.mkv", "u1", lambda path, frames: write_video(path, frames, "FFV1")),
        ("lossless.mp4", "u1", lambda path, frames: write_video(path, frames, "FFV1")),
        ("lossless.mov", "u1", lambda path, frames: write_video(path, frames, "FFV1")),
        *((f"{name}.tif", dtype, write) for name, write in TIFF_WRITERS.items() for dtype in ("u1", "u2")),
    ],
    ids=str,
)
def test_every_kind_of_recording_gives_its_pixels(
    tmp_path: Path, name: str, dtype: str, write: Callable[[Path, np.ndarray], None]
) -> None:
    frames = stack(dtype)
    write(tmp_path / name, frames)
    with open_recording(tmp_path / name) as recording:
        images = list(recording)
        assert recording.n_frames == N or (recording.n_frames is None and name.endswith(".mkv"))
        assert recording.rate_hz == (16.0 if recording.format == "video" else None)
        again = recording.read(3)
    assert len(images) == N
    assert all(np.array_equal(image, frame) for image, frame in zip(images, frames, strict=True))
    assert np.array_equal(again, frames[3])
    for image in images:
        assert image.dtype == np.dtype(dtype).newbyteorder("=")
        assert image.dtype.isnative
        assert image.flags.c_contiguous
        assert image.flags.owndata
        assert image.flags.writeable


def test_the_same_images_as_png_folder_and_tiff_are_equal(tmp_path: Path) -> None:
    for dtype, colours in (("u1", 0), ("u2", 0), ("u1", 3), ("u2", 3)):
        frames = stack(dtype, 4, colours)
        folder, file = tmp_path / f"{dtype}{colours}", tmp_path / f"{dtype}{colours}.tif"
        write_folder(folder, frames)
        tifffile.imwrite(file, frames, photometric="rgb" if colours else "minisblack")
        with open_recording(folder) as one, open_recording(file) as other:
            assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("colours", [3, 4])
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        *((kind, dtype) for kind in ("tif", "planar.tif", "npy") for dtype in ("u1", "u2", "f4")),
        *(("folder", dtype) for dtype in ("u1", "u2")),
        ("imagej.tif", "u1"),
    ],
)
def test_grey_that_is_stored_as_colour_stays_exact(tmp_path: Path, kind: str, dtype: str, colours: int) -> None:
    grey = stack(dtype, 3)
    colour = np.repeat(grey[..., None], colours, axis=3)
    if colours == 4:
        colour[..., 3] = 255
    path = tmp_path / kind
    options: dict[str, Any] = {"photometric": "rgb", "extrasamples": ["unassalpha"] if colours == 4 else None}
    if kind == "tif":
        path = tmp_path / "a.tif"
        tifffile.imwrite(path, colour, **options)
    elif kind == "planar.tif":
        tifffile.imwrite(path, np.moveaxis(colour, 3, 1), planarconfig="separate", **options)
    elif kind == "imagej.tif":
        tifffile.imwrite(path, colour[:, None, None], imagej=True)
    elif kind == "npy":
        path = tmp_path / "a.npy"
        np.save(path, colour)
    else:
        path.mkdir()
        for i, frame in enumerate(colour):
            cv2.imwrite(str(path / f"{i}.png"), frame)
    with open_recording(path) as recording:
        images = list(recording)
    assert len(images) == 3
    assert all(np.array_equal(a, b) for a, b in zip(images, grey, strict=True))


def test_colours_are_weighed_as_opencv_does(tmp_path: Path) -> None:
    colour = stack("u1", 2, 3)
    tifffile.imwrite(tmp_path / "a.tif", colour, photometric="rgb")
    with open_recording(tmp_path / "a.tif") as recording:
        assert np.array_equal(recording.read(1), cv2.cvtColor(colour[1, :, :, ::-1].copy(), cv2.COLOR_BGR2GRAY))


def test_a_folder_is_read_in_natural_order_and_other_files_are_ignored(tmp_path: Path) -> None:
    names = ["a2.png", "a10.png", "a100.PNG", "b1.tif", "B2.jpg"]
    for value, name in enumerate(names):
        image = np.full((8, 8), value * 10, np.uint8)
        (tmp_path / name).write_bytes(cv2.imencode(Path(name).suffix.lower(), image)[1].tobytes())
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_text("no image")
    (tmp_path / "folder.png").mkdir()
    with open_recording(tmp_path) as recording:
        assert [int(image[0, 0]) for image in recording] == [0, 10, 20, 30, 40]


def test_a_stack_with_a_single_directory_is_read_whole(tmp_path: Path) -> None:
    # ImageJ and tifffile store stacks beyond 4 GB like this: one directory, and a number of images in the text.
    frames = stack()
    tifffile.imwrite(tmp_path / "a.tif", frames, metadata={"axes": "TYX"}, truncate=True, contiguous=True)
    tifffile.imwrite(tmp_path / "b.tif", frames, imagej=True, truncate=True)
    for name in ("a.tif", "b.tif"):
        with tifffile.TiffFile(tmp_path / name) as tiff:
            assert len(tiff.pages) == 1
        with open_recording(tmp_path / name) as recording:
            assert np.array_equal(np.stack(list(recording)), frames)
        cut(tmp_path / name)
        with open_recording(tmp_path / name) as recording:
            images, message = until_broken(recording)
        assert len(images) in (11, 12)
        assert np.array_equal(np.stack(images), frames[: len(images)])
        assert f"frame {len(images)} " in message


def test_what_a_tiff_states_of_itself_is_read(tmp_path: Path, replay: Replay) -> None:
    described = {"rate_hz": 12.5, "field_mT": [1.0, 1.5, 2.0, 2.5, 3.0], "synthetic": True}
    tifffile.imwrite(tmp_path / "a.tif", stack(n=5), description=json.dumps(described), metadata=None)
    camera = replay(tmp_path / "a.tif")
    assert camera.rate_hz == 12.5
    assert camera.description["synthetic"] is True
    assert [frame.field_mT for frame in all_frames(camera)] == [1.0, 1.5, 2.0, 2.5, 3.0]


def test_the_bundled_recording(replay: Replay) -> None:
    assert ReplaySettings() == ReplaySettings(path="bundled", rate_hz="recorded", loop=False, limit=None)
    camera = replay("bundled", limit=2, rate_hz="max")
    assert camera.description == {"path": "bundled", "format": "tiff", "synthetic": True, "frames": 48}
    frames = all_frames(camera)
    assert frames[0].image.shape == (512, 672)
    assert [frame.camera_ns for frame in frames] == [0, 62_500_000]
    assert [frame.field_mT for frame in frames] == [1.25, 1.3]
    camera.close()


def write_run(path: Path, indices: list[int], camera_ns: list[int], finish: bool = True) -> None:
    origin = Provenance("r1", "{}", "m", "0", "torch", "cpu", "float32", 1.0)
    writer = RunWriter(path, (HEIGHT, WIDTH), np.dtype(np.uint16), origin)
    for index, stamp in zip(indices, camera_ns, strict=True):
        frame = Frame(
            stack("u2")[index], index, stamp, 0.5 * index, index=index, received_ns=10**15 + 20_000_000 * index
        )
        writer.add_frame(frame)
    writer.flush()
    if finish:
        writer.close({}, 0)


@pytest.mark.parametrize(
    ("indices", "camera_ns", "stamps", "rate_hz"),
    [
        ([0, 1, 2], [500, 100_000_500, 200_000_500], [500, 100_000_500, 200_000_500], 10.0),
        ([0, 1, 2], [-1, -1, -1], [10**15, 10**15 + 20_000_000, 10**15 + 40_000_000], 50.0),
        ([0, 1, 2, 5], [0, 1_000_000, 2_000_000, 5_000_000], [0, 1_000_000, 2_000_000, 5_000_000], 1000.0),
    ],
    ids=["camera's stamps", "stamps of the hand-over", "lost frames"],
)
def test_a_run_file_plays_again(
    tmp_path: Path,
    replay: Replay,
    indices: list[int],
    camera_ns: list[int],
    stamps: list[int],
    rate_hz: float,
) -> None:
    write_run(tmp_path / "run.h5", indices, camera_ns)
    camera = replay(tmp_path / "run.h5", loop=True, limit=len(indices) + 1)
    assert camera.rate_hz == rate_hz
    assert camera.clock == "recorded"
    frames = all_frames(camera)
    assert [frame.camera_ns for frame in frames[:-1]] == stamps
    assert frames[-1].camera_ns == stamps[-1] + round(1e9 / rate_hz)
    assert [frame.field_mT for frame in frames[:-1]] == [0.5 * index for index in indices]
    assert all(np.array_equal(f.image, stack("u2")[i]) for f, i in zip(frames, indices, strict=False))


def test_an_hdf5_file_of_something_else(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = 1
    with pytest.raises(RecordingError, match="frame 0 cannot be read"):
        open_recording(tmp_path / "a.h5")


# --- what is refused


def test_paths_that_cannot_be_a_recording(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no recording")
    for name, reason in (
        ("empty", "holds no images; allowed: .png, .tif"),
        ("notes.txt", "unsupported suffix '.txt'; allowed: a folder of images"),
        ("missing.tif", "does not exist; allowed: a folder of images"),
    ):
        with pytest.raises(SettingsError, match=re.escape(reason)) as caught:
            open_recording(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("suffix", [".tif", ".avi", ".mp4", ".mkv", ".mov", ".npy", ".npz"])
@pytest.mark.parametrize("content", [b"", b"hello", bytes(200), b"II*\0\x08\0\0\0", b"\x1a\x45\xdf\xa3"])
def test_files_that_hold_no_recording(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(RecordingError, match=f"^{re.escape(str(path))}: frame 0 cannot be read: ."):
        open_recording(path)


@pytest.mark.parametrize("dtype", ["?", "i1", "i2", ">i4", "u4", "u8", "f2", "f8", ">f8"])
@pytest.mark.parametrize("suffix", [".npy", ".npz", ".tif", ".h5"])
def test_numbers_of_any_type_are_kept(tmp_path: Path, dtype: str, suffix: str) -> None:
    frames = (stack("u1", 3) > 90).astype(dtype) if dtype == "?" else (stack("u1", 3) - 100.0).astype(dtype)
    path = tmp_path / f"a{suffix}"
    if suffix == ".npy":
        np.save(path, frames)
    elif suffix == ".npz":
        np.savez(path, frames)
    elif suffix == ".tif":
        tifffile.imwrite(path, frames, photometric="minisblack", byteorder=">" if dtype[0] == ">" else None)
    else:
        with h5py.File(path, "w") as file:
            file["x/y"] = frames
    with open_recording(path) as recording:
        images = list(recording)
    assert np.array_equal(np.stack(images), frames)
    assert images[0].dtype == (np.uint8 if dtype == "?" else np.dtype(dtype).newbyteorder("="))


@pytest.mark.parametrize("dtype", ["c8", "M8[s]", "S3", "U2"])
def test_what_is_no_number_is_refused(tmp_path: Path, dtype: str) -> None:
    np.save(tmp_path / "a.npy", np.zeros((2, 8, 8), dtype))
    with pytest.raises(RecordingError, match=r"its pixels are .*; allowed: integers and floats of up to 64 bit"):
        open_recording(tmp_path / "a.npy")


@pytest.mark.parametrize(
    ("arrays", "error", "reason"),
    [
        (
            {"a": stack(n=2), "b": stack(n=2)},
            SettingsError,
            "dataset: .* holds 2 arrays that can be frames; allowed: a, b",
        ),
        ({"a": np.zeros(8, "u1")}, RecordingError, "0 arrays of 2 or 3 dimensions"),
        ({"frames": np.zeros((0, 8, 8), "u1")}, RecordingError, "no frames"),
    ],
)
def test_archives_of_other_arrays(
    tmp_path: Path, arrays: dict[str, np.ndarray], error: type[Exception], reason: str
) -> None:
    np.savez(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(error, match=reason):
        open_recording(tmp_path / "a.npz")


def test_pickles_are_not_opened(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{}, []], dtype=object), allow_pickle=True)
    with pytest.raises(RecordingError):
        open_recording(tmp_path / "a.npy")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rate_hz", 0),
        ("rate_hz", -1.0),
        ("rate_hz", float("inf")),
        ("rate_hz", float("nan")),
        ("rate_hz", "fast"),
        ("limit", 0),
        ("speed", 2),
    ],
)
def test_settings_out_of_range(key: str, value: object) -> None:
    with pytest.raises(pydantic.ValidationError, match=key):
        ReplaySettings.model_validate({key: value})


def test_a_recording_without_rate_needs_one(tmp_path: Path, replay: Replay) -> None:
    np.save(tmp_path / "a.npy", stack(n=2))
    with pytest.raises(SettingsError, match=r"^rate_hz: 'recorded' is not possible.*states no rate; allowed: a number"):
        replay(tmp_path / "a.npy")


# --- broken recordings give their good frames, then say where they break


@pytest.mark.parametrize("dtype", ["u1", "u2"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.97])
@pytest.mark.parametrize("writer", TIFF_WRITERS)
def test_a_cut_tiff(tmp_path: Path, writer: str, share: float, dtype: str) -> None:
    frames = stack(dtype)
    path = tmp_path / "a.tif"
    TIFF_WRITERS[writer](path, frames)
    cut(path, share)
    with open_recording(path) as recording:
        images, message = until_broken(recording)
        assert recording.n_frames in (None, N)
    assert np.array_equal(np.stack(images), frames[: len(images)])
    assert N * share - 2 <= len(images) < N or (share > 0.9 and len(images) == N)
    assert message.startswith(f"{path}: frame {len(images)} cannot be read: ")


@pytest.mark.parametrize("writer", TIFF_WRITERS)
def test_a_tiff_cut_anywhere_never_gives_a_wrong_frame_nor_ends_regularly(tmp_path: Path, writer: str) -> None:
    frames = stack(n=5)
    path = tmp_path / "a.tif"
    TIFF_WRITERS[writer](path, frames)
    data = path.read_bytes()
    with open_recording(path) as recording:
        end = len(list(recording))
    assert end == 5
    last_needed = _end_of_directories(path)
    for length in [*range(0, 400, 7), *range(400, last_needed, max(last_needed // 60, 1)), last_needed - 1]:
        path.write_bytes(data[:length])
        images: list[np.ndarray] = []
        with pytest.raises(RecordingError), open_recording(path) as recording:  # noqa: PT012
            for image in recording:
                images.append(image)  # noqa: PERF402
        assert all(np.array_equal(a, b) for a, b in zip(images, frames, strict=False))


def _end_of_directories(path: Path) -> int:
    """First byte behind all pixels and directories; what follows are texts that no pixel depends on."""
    with tifffile.TiffFile(path) as tiff:
        pages = [tiff.pages[i] for i in range(len(tiff.pages))]
        pixels = max(o + n for p in pages for o, n in zip(p.dataoffsets, p.databytecounts, strict=True))
        layout = tiff.tiff
        return max(pixels, *(p.offset + layout.tagnosize + len(p.tags) * layout.tagsize + 4 for p in pages))


def test_a_tiff_that_promises_more_pages_than_it_has(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    write_pages(path, stack(n=5), metadata=None, description='{"shape": [20, 48, 64]}')
    with open_recording(path) as recording:
        images, message = until_broken(recording)
    assert len(images) == 5
    assert message == f"{path}: frame 5 cannot be read: the file states 20 frames but holds 5 pages"


def test_damaged_deflate_in_a_tiff(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, stack(), compression="zlib")
    with tifffile.TiffFile(path) as tiff:
        offset = tiff.pages[7].dataoffsets[0]
    data = bytearray(path.read_bytes())
    data[offset + 500] ^= 0xFF
    path.write_bytes(data)
    with open_recording(path) as recording:
        images, message = until_broken(recording)
    assert len(images) == 7
    assert f"{path}: frame 7 cannot be read" in message


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [(".avi", "MJPG"), (".avi", "FFV1"), (".avi", "mp4v"), (".mkv", "MJPG"), (".mkv", "FFV1"), (".mkv", "mp4v")],
)
def test_a_cut_video(tmp_path: Path, suffix: str, codec: str) -> None:
    path = tmp_path / f"a{suffix}"
    write_video(path, stack(n=40), codec)
    with open_recording(path) as recording:
        whole = list(recording)
    assert len(whole) == 40
    cut(path)
    with open_recording(path) as recording:
        images, message = until_broken(recording)
    assert 5 <= len(images) < 30
    assert all(np.array_equal(a, b) for a, b in zip(images, whole, strict=False))
    assert message.startswith(f"{path}: frame {len(images)} cannot be read: the file is cut or damaged")


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_a_cut_video_whose_index_is_lost(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    write_video(path, stack(), "mp4v")
    cut(path)
    with pytest.raises(RecordingError, match="frame 0 cannot be read"):
        open_recording(path)


def test_a_cut_array(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, stack("u2"))
    cut(path)
    with open_recording(path) as recording:
        images, message = until_broken(recording)
    assert np.array_equal(np.stack(images), stack("u2")[: len(images)])
    assert len(images) == 11
    assert message == f"{path}: frame 11 cannot be read: the file is cut: it states 20 frames"
    np.savez(tmp_path / "a.npz", stack())
    cut(tmp_path / "a.npz")
    with pytest.raises(RecordingError, match="frame 0 cannot be read"):
        open_recording(tmp_path / "a.npz")


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", ".jpg"])
@pytest.mark.parametrize("damage", ["cut", "emptied", "overwritten"])
def test_a_damaged_image_in_a_folder(tmp_path: Path, suffix: str, damage: str) -> None:
    folder = tmp_path / "images"
    write_folder(folder, stack(n=6), suffix)
    broken = folder / f"4{suffix}"
    if damage == "cut":
        cut(broken)
    else:
        broken.write_bytes(b"" if damage == "emptied" else b"not an image at all")
    with open_recording(folder) as recording:
        images, message = until_broken(recording)
    assert len(images) == 3
    assert message.startswith(f"{broken}: frame 3 cannot be read: ")
    assert message.count("cannot be read") == 1


def test_flipped_bits_in_a_png(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    write_folder(folder, stack(n=1))
    data = (folder / "1.png").read_bytes()
    for position in range(100, len(data) - 20, 211):  # any byte of the pixels: the checksum tells
        flipped = bytearray(data)
        flipped[position] ^= 0x10
        (folder / "1.png").write_bytes(flipped)
        with pytest.raises(RecordingError, match=r"1\.png: frame 0 cannot be read"):
            open_recording(folder).read(0)


def test_a_recording_in_parts(tmp_path: Path) -> None:
    frames = stack()
    for part in range(4):
        tifffile.imwrite(tmp_path / f"part_{part + 8}.tif", frames[5 * part : 5 * part + 5])
    with open_recording(tmp_path) as recording:
        assert np.array_equal(np.stack(list(recording)), frames)
        assert recording.names is not None
        assert recording.names[9:11] == ["part_9.tif[4]", "part_10.tif[0]"]
    cut(tmp_path / "part_9.tif")
    with open_recording(tmp_path) as recording:
        images, message = until_broken(recording)
    assert len(images) < 10
    assert message.startswith(f"{tmp_path / 'part_9.tif'}: frame {len(images)} cannot be read: ")


@pytest.mark.parametrize(
    ("other", "form"),
    [
        (np.zeros((480, 640), np.uint8), "480x640 uint8"),
        (np.zeros((512, 672), np.uint16), "512x672 uint16"),
    ],
)
def test_a_frame_that_differs_from_the_first(tmp_path: Path, other: np.ndarray, form: str) -> None:
    folder = tmp_path / "images"
    write_folder(folder, np.zeros((12, 512, 672), np.uint8))
    cv2.imwrite(str(folder / "13.png"), other)
    with open_recording(folder) as recording:
        images, message = until_broken(recording)
    assert len(images) == 12
    assert message == f"{folder}: frame 12 (13.png) is {form}, but the recording began with 512x672 uint8"
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        for frame in (*images, other):
            tiff.write(frame, contiguous=False)
    with open_recording(tmp_path / "a.tif") as recording:
        images, message = until_broken(recording)
    assert len(images) == 12
    assert f"frame 12 (a.tif) is {form}" in message


def test_a_chain_of_pages_that_bites_its_tail(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    write_pages(path, stack(n=3), metadata=None)
    with tifffile.TiffFile(path) as tiff:
        where, first = tiff.pages.next_page_offset, tiff.pages[0].offset
    data = bytearray(path.read_bytes())
    data[where : where + 4] = struct.pack("<I", first)
    path.write_bytes(data)
    with open_recording(path) as recording:
        images, message = until_broken(recording)
    assert len(images) == 3
    assert "frame 3 cannot be read" in message


# --- the camera


def test_it_is_a_camera_that_is_found_by_name(tmp_path: Path, replay: Replay) -> None:
    assert driver("cameras", "replay") is ReplayCamera
    np.save(tmp_path / "a.npy", stack(n=2))
    camera = replay(tmp_path / "a.npy", rate_hz="max")
    assert isinstance(camera, Camera)
    assert (camera.waits, camera.rate_hz, camera.clock) == (True, None, "none")
    assert (camera.shape, camera.dtype) == ((HEIGHT, WIDTH), np.uint8)
    assert [frame.camera_ns for frame in all_frames(camera)] == [-1, -1]
    camera.close()
    camera.close()
    with pytest.raises(CameraError, match="read after close"):
        camera.read(0.1)


@pytest.mark.parametrize(
    ("loop", "limit", "values"),
    [
        (False, None, [0, 1, 2]),
        (False, 2, [0, 1]),
        (False, 5, [0, 1, 2]),
        (True, 7, [0, 1, 2, 0, 1, 2, 0]),
        (True, 3, [0, 1, 2]),
    ],
)
def test_loop_and_limit(tmp_path: Path, loop: bool, limit: int | None, values: list[int], replay: Replay) -> None:
    np.save(tmp_path / "a.npy", np.arange(3, dtype=np.uint8)[:, None, None] + np.zeros((3, 8, 8), np.uint8))
    camera = replay(tmp_path / "a.npy", rate_hz=1000, loop=loop, limit=limit)
    frames = all_frames(camera)
    assert [int(frame.image[0, 0]) for frame in frames] == values
    assert [frame.number for frame in frames] == list(range(len(values)))
    assert [frame.camera_ns for frame in frames] == [1_000_000 * i for i in range(len(values))]
    assert camera.clock == "schedule"
    with pytest.raises(CameraEnded):
        camera.read(0.1)


def test_a_video_can_loop(tmp_path: Path, replay: Replay) -> None:
    write_video(tmp_path / "a.avi", stack(n=3), "FFV1")
    camera = replay(tmp_path / "a.avi", rate_hz="max", loop=True, limit=7)
    images = [frame.image for frame in all_frames(camera)]
    assert all(np.array_equal(image, stack(n=3)[i % 3]) for i, image in enumerate(images))
    assert len(images) == 7


def test_a_broken_recording_breaks_off_and_says_so_again(tmp_path: Path, replay: Replay) -> None:
    np.save(tmp_path / "a.npy", stack())
    cut(tmp_path / "a.npy")
    camera = replay(tmp_path / "a.npy", rate_hz="max", loop=True)
    for i in range(11):
        frame = camera.read(1)
        assert frame is not None
        assert frame.number == i
    for _ in range(2):
        with pytest.raises(RecordingError, match="frame 11"):
            camera.read(1)


def test_frames_come_at_the_rate(tmp_path: Path, replay: Replay) -> None:
    np.save(tmp_path / "a.npy", stack())
    camera = replay(tmp_path / "a.npy", rate_hz=50)
    times = []
    for _ in range(N):
        assert camera.read(1.0) is not None
        times.append(time.perf_counter())
    # Never early; how late depends on the computer, but the lateness must not add up.
    assert all(t - times[0] > i / 50 - 0.015 for i, t in enumerate(times))
    assert times[-1] - times[0] < (N - 1) / 50 + 0.25


def test_a_late_reader_catches_up(tmp_path: Path, replay: Replay) -> None:
    np.save(tmp_path / "a.npy", stack())
    camera = replay(tmp_path / "a.npy", rate_hz=50)
    camera.read(1.0)
    time.sleep(0.3)
    begin = time.perf_counter()
    for _ in range(15):  # all due by now
        assert camera.read(0.0) is not None
    assert time.perf_counter() - begin < 0.15


def test_a_frame_that_is_not_due_is_not_lost(tmp_path: Path, replay: Replay) -> None:
    np.save(tmp_path / "a.npy", stack(n=2))
    camera = replay(tmp_path / "a.npy", rate_hz=2)
    first = camera.read(0.0)
    assert first is not None
    begin = time.perf_counter()
    assert camera.read(0.05) is None
    assert camera.read(0.0) is None
    assert 0.04 < time.perf_counter() - begin < 0.4
    second = camera.read(5.0)
    assert second is not None
    assert (second.number, second.camera_ns) == (1, 500_000_000)
    assert time.perf_counter() - begin > 0.35


def test_a_frame_belongs_to_its_receiver(tmp_path: Path, replay: Replay) -> None:
    tifffile.imwrite(tmp_path / "a.tif", stack(n=2), photometric="minisblack")
    camera = replay(tmp_path / "a.tif", rate_hz="max", loop=True, limit=3)
    frames = all_frames(camera)
    frames[0].image[:] = 0
    assert np.array_equal(frames[2].image, stack(n=2)[0])
