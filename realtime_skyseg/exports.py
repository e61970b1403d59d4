"""A run as pictures and videos: one picture per frame, label stacks for ImageJ and napari, an overlay video."""

import io
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast, get_args

import av
import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image as Pillow

from realtime_skyseg.afterwards import Progress, StoredImages, analysed_frames
from realtime_skyseg.analysers.objects import label_image
from realtime_skyseg.errors import SettingsError
from realtime_skyseg.plots.pictures import overlay, round_length
from realtime_skyseg.plots.quantities import view_figure
from realtime_skyseg.records import Class, Image, Mask
from realtime_skyseg.storage import Run
from realtime_skyseg.tables import frame_table, object_table, tracked_objects

#: What is written of each frame: the raw image, the prepared one, classes as colours, outlines on the image.
Kind = Literal["input", "prepared", "mask", "overlay"]
KINDS: tuple[Kind, ...] = get_args(Kind)

#: Colours of a mask picture, which `skyseg train` and `skyseg evaluate` take as labels.
_PALETTE = {
    Class.BACKGROUND: (0, 0, 255), Class.SKYRMION: (255, 0, 0), Class.DEFECT: (0, 255, 0), Class.OUTSIDE: (255, 255, 0),
    Class.EDGE: (0, 255, 255),
}  # fmt: skip

#: Most labels of an image that ImageJ takes as whole numbers.
_MOST_LABELS = 65535


def write_pictures(
    run: Run,
    out: Path,
    kinds: Sequence[Kind] = KINDS,
    frames: Sequence[int] | None = None,
    progress: Progress | None = None,
    shown: Sequence[str] = (),
) -> int:
    """Write pictures of each frame that was analysed, and the tables of frames and objects beside them.

    Args:
        run: open.
        out: a folder, or a ZIP file if its name ends so. KIND/NAME.png, frames.csv, objects.csv.
        kinds: of pictures. Inputs of floats become TIFF; masks are pictures of a palette, whose numbers are classes
            and whose colours those of labels.
        frames: indices; None: all that were analysed.
        progress: called now and then.
        shown: panels of a picture in the folder `views`, see `plots.quantities.view_figure`.

    Returns:
        How many frames.

    Raises:
        SettingsError: `out` exists, or cannot be written; a frame was not analysed.
        RunFileUnusableError: no frame was analysed.
    """
    chosen = analysed_frames(run, frames)
    images, names, shift = StoredImages(run), run.frame_names, len(str(run.n_frames))
    if images.are_raw and set(kinds) == set(KINDS):
        kinds = [kind for kind in kinds if kind != "prepared"]  # they would be the inputs
    with _folder(out) as write:
        for done, frame in enumerate(chosen):
            stem = f"frame_{frame:0{shift}d}" if names is None else Path(names[frame].replace("\\", "/")).stem
            if names is not None and names.count(names[frame]) > 1:
                stem = f"{stem}_{frame:0{shift}d}"
            for kind in kinds:
                write(*_picture(run, images, frame, kind, f"{kind}/{stem}"))
            if shown:
                content = io.BytesIO()
                view_figure(run, shown, frame, alone=True).savefig(content, dpi=110)
                write(f"views/{stem}.png", content.getvalue())
            if progress:
                progress(done + 1, len(chosen))
        for name, table in (("frames.csv", frame_table(run)), ("objects.csv", object_table(run))):
            text = io.StringIO()
            table.to_csv(text)
            write(name, text.getvalue().encode())
    return len(chosen)


def write_labels(run: Run, path: Path, by_track: bool = False, progress: Progress | None = None) -> None:
    """Write a TIFF stack of labels: which object each pixel belongs to, 0: to none.

    ImageJ and napari read it with its axes, and its size of a pixel where the run knows that.

    Args:
        run: open.
        path: the TIFF file.
        by_track: the label is the track's number + 1, the same in all frames, instead of the row + 1 in the frame's
            table; stripes, which have no track, are 0 then.
        progress: called now and then.

    Raises:
        SettingsError: the file cannot be written.
    """
    frames = analysed_frames(run)
    tracked = tracked_objects(run)[0] if by_track else None
    most = int(tracked["track"].max()) + 1 if tracked is not None and len(tracked) else 0
    most = max(most, int(np.nanmax(run.table["count"] + run.table["stripes"], initial=0)))
    small = most <= _MOST_LABELS
    size = run.pixel_size_um
    told = {"axes": "TYX"} | ({} if size is None else {"unit": "um"})
    resolution = None if size is None else (1 / size, 1 / size)
    try:
        with tifffile.TiffWriter(path, imagej=small, bigtiff=not small) as file:
            file.write(
                _labels(run, frames, tracked, np.dtype("u2" if small else "u4"), progress),
                shape=(len(frames), *run.mask.shape[1:]), dtype="u2" if small else "u4", metadata=told,
                resolution=resolution,
            )  # fmt: skip
    except OSError as error:
        raise SettingsError(f"'{path}' cannot be written: {error.strerror or error}") from error


def write_video(
    run: Run, path: Path, rate_hz: float = 25.0, progress: Progress | None = None, width: int | None = None
) -> None:
    """Write the frames with the outlines of what was found, their time, field and count, as MP4 or AVI.

    Args:
        run: open.
        path: its name ends in .mp4 or .avi.
        rate_hz: frames per second of the video.
        progress: called now and then.
        width: px of the video; None: that of the frames.

    Raises:
        SettingsError: another kind of file, or it cannot be written.
    """
    codec = {".mp4": "libx264", ".avi": "mjpeg"}.get(path.suffix.lower())
    if codec is None:
        raise SettingsError(f"--video: '{path}'; allowed: a name that ends in .mp4 or .avi")
    frames, images, table = analysed_frames(run), StoredImages(run), run.table
    height, across = run.mask.shape[1:]
    zoom = 1.0 if width is None else width / across
    size = max(2, int(across * zoom) // 2 * 2), max(2, int(height * zoom) // 2 * 2)
    try:
        with av.open(str(path), "w") as file:
            stream = cast(av.VideoStream, file.add_stream(codec, rate=round(rate_hz)))
            stream.width, stream.height = size
            stream.pix_fmt = "yuv420p" if codec == "libx264" else "yuvj420p"
            stream.options = {"crf": "18"} if codec == "libx264" else {"qmin": "2", "qmax": "3"}
            for done, frame in enumerate(frames):
                outlined = overlay(images(frame), run.mask[frame])
                picture = cv2.resize(outlined, size, interpolation=cv2.INTER_AREA).astype(np.uint8)
                _write_on(picture, _told(table[frame], frame), run.pixel_size_um, size[0] / across)
                for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                    file.mux(packet)
                if progress:
                    progress(done + 1, len(frames))
            for packet in stream.encode():
                file.mux(packet)
    except (OSError, av.error.FFmpegError) as error:
        raise SettingsError(f"--video: '{path}' cannot be written: {error}") from error


def add_to_napari(viewer: Any, run: Run) -> None:
    """Add a run to a `napari.Viewer`: frames, classes of pixels, and the ways of skyrmions.

    Frames and classes are read from the file as they are looked at: keep the run open.
    """
    size, unit = (1.0, "pixel") if run.pixel_size_um is None else (run.pixel_size_um, "um")
    place: dict[str, Any] = {"scale": (1.0, size, size), "units": ("pixel", unit, unit)}
    viewer.add_image(run.raw, name="frames", colormap="gray", **place)
    viewer.add_labels(run.mask, name="classes", colormap=class_colormap(), opacity=0.35, **place)
    objects, _ = tracked_objects(run)
    objects = objects[objects["track"] >= 0]
    objects = objects[np.lexsort((objects["frame"], objects["track"]))]
    if len(objects):
        ways = np.stack([objects["track"], objects["frame"], objects["y"], objects["x"]], 1).astype(np.float64)
        viewer.add_tracks(ways, name="tracks", **place)


def class_colormap() -> Any:
    """The colours of labels for napari, which is to be installed; class background is clear."""
    from napari.utils import DirectLabelColormap

    colours = {int(value): np.array([*colour, 255]) / 255 for value, colour in _PALETTE.items() if value}
    clear: dict[int | None, Any] = {None: np.zeros(4), 0: np.zeros(4)}
    return DirectLabelColormap(color_dict=clear | colours)


def _picture(run: Run, images: StoredImages, frame: int, kind: Kind, stem: str) -> tuple[str, bytes]:
    """Name and content of a picture."""
    if kind == "mask":
        return f"{stem}.png", mask_picture(run.mask[frame])
    if kind == "overlay":
        return f"{stem}.png", _png(overlay(images(frame), run.mask[frame])[..., ::-1])
    image = run.raw[frame] if kind == "input" else images(frame)
    if image.dtype in (np.uint8, np.uint16):
        return f"{stem}.png", _png(image)
    content = io.BytesIO()
    tifffile.imwrite(content, np.asarray(image, np.float32))
    return f"{stem}.tif", content.getvalue()


def mask_picture(mask: Mask) -> bytes:
    """A PNG whose pixels are the numbers of classes, shown in the colours of labels."""
    picture = Pillow.fromarray(mask).convert("P")
    colours = np.zeros((256, 3), np.uint8)
    for value, colour in _PALETTE.items():
        colours[value] = colour
    picture.putpalette(colours.tobytes())
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()


def _png(image: Image | NDArray[np.uint8]) -> bytes:
    return bytes(cv2.imencode(".png", image)[1])


def _labels(
    run: Run, frames: Sequence[int], tracked: NDArray[np.void] | None, dtype: np.dtype, progress: Progress | None
) -> Iterator[NDArray[np.unsignedinteger]]:
    for done, frame in enumerate(frames):
        labels = label_image(run.mask[frame], run.objects(frame))
        if tracked is not None:
            numbers = tracked["track"][tracked["frame"] == frame] + 1
            labels = np.concatenate([[0], numbers])[labels]
        if progress:
            progress(done + 1, len(frames))
        yield labels.astype(dtype)


def _told(row: np.void, frame: int) -> str:
    told = [f"frame {frame}"]
    told += [f"{row['time_s']:.2f} s"] if np.isfinite(row["time_s"]) else []
    told += [f"{row['field_mT']:.3f} mT"] if np.isfinite(row["field_mT"]) else []
    told += [f"{row['count']:.0f} skyrmions"] if np.isfinite(row["count"]) else ["nothing to see"]
    return "   ".join(told)


def _write_on(picture: NDArray[np.uint8], text: str, size_um: float | None, zoom: float) -> None:
    """A line of text on a dark ground, and a scale bar where the size of a pixel is known."""
    scale = max(0.4, picture.shape[1] / 1200)
    (_, height), base = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
    picture[: height + base + 8] //= 3
    cv2.putText(picture, text, (6, height + 5), cv2.FONT_HERSHEY_SIMPLEX, scale, (255, 255, 255), 1, cv2.LINE_AA)
    if size_um is None:
        return
    length = round_length(0.2 * picture.shape[1] / zoom * size_um)
    px, (down, right) = round(length / size_um * zoom), picture.shape[:2]
    picture[down - 34 : down, right - px - 16 :] //= 3
    picture[down - 10 : down - 6, right - px - 8 : right - 8] = 255
    cv2.putText(
        picture, f"{length:g} um", (right - px - 8, down - 15), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (255, 255, 255), 1,
        cv2.LINE_AA,
    )  # fmt: skip


@contextmanager
def _folder(out: Path) -> Iterator[Callable[[str, bytes], None]]:
    """What writes a file by its name into a new folder or a new ZIP file."""
    if out.exists():
        raise SettingsError(f"'{out}' exists; allowed: the name of a new folder, or of a new .zip file")
    try:
        if out.suffix.lower() == ".zip":
            out.parent.mkdir(parents=True, exist_ok=True)
            with zipfile.ZipFile(out, "x", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
                yield archive.writestr
        else:

            def write(name: str, content: bytes) -> None:
                path = out / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)

            yield write
    except OSError as error:
        raise SettingsError(f"'{out}' cannot be written: {error.strerror or error}") from error
