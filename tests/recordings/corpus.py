"""Recordings as other programs write them, each with its truth: frames in order, or the sentence that refuses them."""

import io
import json
import struct
import subprocess
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import h5py
import imageio.v3 as iio
import imageio_ffmpeg
import numpy as np
import tifffile
import zarr

from realtime_skyseg.recordings import Choice

N, HEIGHT, WIDTH = 6, 32, 48


@dataclass
class Case:
    """A recording: how it is made, and what comes out."""

    name: str
    make: Callable[[Path], Any]
    frames: np.ndarray | None = None  #: (N, H, W), bit for bit; None: refused at once
    says: str = ""  #: what the refusal says, or what ends the recording after `frames`
    choice: Choice = field(default_factory=Choice)
    rate_hz: float | None = None  #: None: not looked at
    times_s: list[float] | None = None
    close: int = 0  #: grey levels by which lossy kinds may differ


def frames(dtype: str = "u1", n: int = N, bits: int | None = None) -> np.ndarray:
    """Noise with the frame's number in it."""
    random = np.random.default_rng(3)
    kind = np.dtype(dtype)
    if kind.kind == "f":
        stack = random.normal(0, 100, (n, HEIGHT, WIDTH)).astype(kind)
    else:
        limits = np.iinfo(kind)
        high = limits.max if bits is None else 2**bits - 1
        stack = random.integers(limits.min, high, (n, HEIGHT, WIDTH), dtype=kind.newbyteorder("="), endpoint=True)
    stack[:, :4, :4] = np.arange(n)[:, None, None]
    return stack.astype(kind)


def grey(stack: np.ndarray) -> np.ndarray:
    """Red, green, blue (..., 3) as grey."""
    return np.stack([cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY) for image in stack])


def ffmpeg(path: Path, stack: np.ndarray, pixels: str, *options: str, rate: str = "10") -> None:
    """Encode with the command line of FFmpeg."""
    height, width = stack.shape[1:3]
    subprocess.run(
        [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", pixels,
         "-s", f"{width}x{height}", "-r", rate, "-i", "-", *options, str(path)],
        input=stack.tobytes(), check=True, capture_output=True,
    )  # fmt: skip


def pages(path: Path, stack: np.ndarray, **options: Any) -> None:
    """Page by page."""
    options = {"photometric": "minisblack", "metadata": None, **options}
    with tifffile.TiffWriter(path) as tiff:
        for image in stack:
            tiff.write(image, **options)


def images(path: Path, stack: np.ndarray, names: list[str]) -> None:
    """Single images in a folder, by OpenCV or tifffile."""
    path.mkdir()
    for image, name in zip(stack, names, strict=True):
        if name.endswith((".tif", ".tiff")):
            tifffile.imwrite(path / name, image, photometric="minisblack")
        else:
            (path / name).write_bytes(cv2.imencode(Path(name).suffix, image)[1].tobytes())


def hdf5(path: Path, fill: Callable[[h5py.File], Any]) -> None:
    """An HDF5 file."""
    with h5py.File(path, "w") as file:
        fill(file)


# --- TIFF

OME = (
    '<?xml version="1.0" encoding="UTF-8"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"{uuid}>'
    '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="{order}" Type="uint8" SizeX="48" SizeY="32" '
    'SizeC="{c}" SizeZ="{z}" SizeT="{t}"{more}><Channel ID="Channel:0:0" SamplesPerPixel="1"/>{data}</Pixels></Image></OME>'
)


def ome(data: str, t: int = N, c: int = 1, z: int = 1, order: str = "XYCZT", more: str = "", uuid: str = "") -> str:
    """A description as OME-XML."""
    return OME.format(data=data, t=t, c=c, z=z, order=order, more=more, uuid=uuid)


def described(path: Path, stack: np.ndarray, text: str) -> None:
    """Pages of which the first has a description."""
    with tifffile.TiffWriter(path) as tiff:
        for k, image in enumerate(stack):
            tiff.write(image, description=text if k == 0 else None, photometric="minisblack", metadata=None)


def split_ome(path: Path, stack: np.ndarray, missing: bool = False) -> None:
    """A series in two files; opened by the first."""
    path.mkdir()
    name = "part_{}.ome.tif"
    data = "".join(
        f'<TiffData FirstT="{t}" IFD="{t % 3}" PlaneCount="1"><UUID FileName="{name.format(t // 3)}">urn:uuid:'
        f"0000000{t // 3}-0000-4000-8000-000000000000</UUID></TiffData>"
        for t in range(6)
    )
    for part in (0,) if missing else (0, 1):
        described(path / name.format(part), stack[3 * part : 3 * part + 3], ome(data))


def mm_stack(
    path: Path,
    stack: np.ndarray,
    wanted: int = N,
    channels: int = 1,
    positions: int = 1,
    order: list[int] | None = None,
    start: int = 0,
    new: bool = False,
) -> None:
    """A stack file of Micro-Manager: the summary in the header, what a page is in its tag 51123."""
    names = ["Kerr", "Bright"][:channels]
    summary: dict[str, Any] = {"MicroManagerVersion": "2.0.0", "Frames": wanted, "Channels": channels,
                               "Positions": positions, "Slices": 1, "ChNames": names, "Prefix": path.stem}  # fmt: skip
    if new:
        summary["IntendedDimensions"] = {"time": wanted, "channel": channels, "position": positions}
    with tifffile.TiffWriter(path, ome=False) as tiff:
        for k, image in enumerate(stack):
            number = order[k] if order else k
            time, rest = divmod(number, channels * positions)
            channel, position = rest % channels, rest // channels
            plane = {
                "FrameIndex": time + start, "ChannelIndex": channel, "SliceIndex": 0, "PositionIndex": position,
                "Channel": names[channel], "PositionName": f"Pos{position}", "ElapsedTime-ms": 100.0 * (time + start),
            }  # fmt: skip
            if k == 0:
                plane["Summary"] = summary  # type: ignore[assignment]
            tiff.write(
                image, photometric="minisblack", metadata=None,
                extratags=[(51123, "s", 0, json.dumps(plane), True)],
            )  # fmt: skip


def mm_folder(path: Path, stack: np.ndarray, new: bool, wanted: int | None = None, channels: int = 1,
              positions: int = 1, metadata: str = "whole") -> None:  # fmt: skip
    """Single images of Micro-Manager 1.4 or 2.0, with `metadata.txt`."""
    names = ["Kerr", "Bright"][:channels]
    summary: dict[str, Any] = {"ChNames": names, "Positions": positions}
    if new:
        summary["IntendedDimensions"] = {"time": wanted or len(stack) // channels // positions, "channel": channels}
    else:
        summary |= {"Frames": wanted or len(stack) // channels // positions, "Channels": channels}
    path.mkdir()
    for position in range(positions):
        folder = path / (f"Pos{position}" if positions > 1 or not new else "Default")
        folder.mkdir()
        told: dict[str, Any] = {"Summary": summary}
        for k in range(len(stack) // positions):
            time, channel = divmod(k, channels)
            name = (
                f"img_channel{channel:03}_position000_time{time:09}_z000.tif" if new
                else f"img_{time:09}_{names[channel]}_000.tif"
            )  # fmt: skip
            tifffile.imwrite(folder / name, stack[(time * positions + position) * channels + channel])
            plane = {"ElapsedTime-ms": 250.0 * time, "FileName": name, "Channel": names[channel]}
            told[f"Metadata-Default/{name}" if new else f"FrameKey-{time}-{channel}-0"] = plane
        text = json.dumps(told)
        if metadata != "none":
            (folder / "metadata.txt").write_text(text[:-1] if metadata == "cut" else text)


def ndtiff(path: Path, stack: np.ndarray, axes: list[dict[str, Any]], wanted: int | None = None) -> None:
    """A dataset by `ndstorage`, as pycromanager saves it."""
    from ndstorage import NDTiffDataset

    with redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        summary = {"Frames": wanted} if wanted else {}
        dataset = NDTiffDataset(str(path), name="acq", summary_metadata=summary, writable=True)
        for image, place in zip(stack, axes, strict=True):
            time = place.get("time", 0)
            dataset.put_image(place, image, {"ElapsedTime-ms": 50.0 * time if isinstance(time, int) else 0})
        dataset.finish()
        dataset.close()
    made = next(path.iterdir())
    for file in made.iterdir():
        file.replace(path / file.name)
    made.rmdir()


def ome_zarr(path: Path, stack: np.ndarray, names: str, version: str = "0.4", unit: str | None = None,
             labels: list[str] | None = None, chunks: tuple[int, ...] | None = None) -> None:  # fmt: skip
    """An image of OME-Zarr."""
    root = zarr.open_group(str(path), mode="w", zarr_format=2 if version == "0.4" else 3)
    root.create_array("0", data=stack, chunks=chunks or (1,) * (stack.ndim - 2) + stack.shape[-2:])
    axes = [
        {"name": name, "type": "time" if name == "t" else "channel" if name == "c" else "space",
         **({"unit": unit} if name == "t" and unit else {})}
        for name in names
    ]  # fmt: skip
    scale = [0.05 if name == "t" else 1.0 for name in names]
    image = {"version": version, "axes": axes,
             "datasets": [{"path": "0", "coordinateTransformations": [{"type": "scale", "scale": scale}]}]}  # fmt: skip
    told: dict[str, Any] = {"multiscales": [image]}
    if labels:
        told["omero"] = {"channels": [{"label": label} for label in labels]}
    root.attrs.update(told if version == "0.4" else {"ome": {"version": version, **told}})


zarr.create_array(store={}, data=np.zeros(1))  # zarr's own thread and sockets begin here, and stay


def cases() -> Iterator[Case]:
    """All of them."""
    yield from _tiff()
    yield from _series()
    yield from _micro_manager()
    yield from _folders()
    yield from _videos()
    yield from _arrays()
    yield from _hdf5()
    yield from _zarr()


def _tiff() -> Iterator[Case]:
    types = ("u1", "u2", "i2", "u4", "i4", "f2", "f4", "f8", "i1")
    for dtype in types:
        data = frames(dtype)
        yield Case(f"tifffile {dtype}.tif", lambda p, d=data: tifffile.imwrite(p, d, photometric="minisblack"), data)
        yield Case(f"pages {dtype}.tif", lambda p, d=data: pages(p, d), data)
        yield Case(
            f"big-endian bigtiff {dtype}.tif",
            lambda p, d=data: tifffile.imwrite(p, d, photometric="minisblack", byteorder=">", bigtiff=True), data,
        )  # fmt: skip
    for dtype in ("u1", "u2", "f4"):
        data = frames(dtype)
        for codec in ("zlib", "lzw", "zstd", "packbits", "lzma"):
            yield Case(f"{codec} {dtype}.tif", lambda p, d=data, c=codec: pages(p, d, compression=c), data)
        for codec in ("zlib", "lzw"):
            yield Case(
                f"{codec} with predictor {dtype}.tif",
                lambda p, d=data, c=codec: pages(p, d, compression=c, predictor=True), data,
            )  # fmt: skip
        yield Case(f"tiles {dtype}.tif", lambda p, d=data: pages(p, d, tile=(16, 16)), data)
        yield Case(f"strips {dtype}.tif", lambda p, d=data: pages(p, d, rowsperstrip=5), data)
        yield Case(f"ImageJ {dtype}.tif", lambda p, d=data: tifffile.imwrite(p, d, imagej=True), data)
        yield Case(
            f"OME {dtype}.tif", lambda p, d=data: tifffile.imwrite(p, d, ome=True, photometric="minisblack"), data
        )
        yield Case(f"shaped TYX {dtype}.tif",
                   lambda p, d=data: tifffile.imwrite(p, d, photometric="minisblack", metadata={"axes": "TYX"}), data)  # fmt: skip
        yield Case(
            f"imageio {dtype}.tif",
            lambda p, d=data: iio.imwrite(p, d, plugin="tifffile", photometric="minisblack"),
            data,
        )
        yield Case(f"one {dtype}.tif", lambda p, d=data: tifffile.imwrite(p, d[0]), data[:1])
    for dtype in ("u1", "u2"):
        data = frames(dtype)
        most = np.iinfo(dtype).max
        yield Case(f"OpenCV {dtype}.tif", lambda p, d=data: cv2.imwritemulti(str(p), list(d)), data)
        yield Case(f"min is white {dtype}.tif", lambda p, d=data: pages(p, d, photometric="miniswhite"), most - data)
        yield Case(f"min is white lzw {dtype}.tif",
                   lambda p, d=data: pages(p, d, photometric="miniswhite", compression="lzw"), most - data)  # fmt: skip
        yield Case(f"preview of the same size {dtype}.tif", lambda p, d=data: _preview(p, d, d[0]), data)
        yield Case(f"thumbnail {dtype}.tif", lambda p, d=data: _preview(p, d, d[0, ::2, ::2]), data)
    data = frames("f4")
    yield Case(
        "min is white, floats.tif",
        lambda p: pages(p, data, photometric="miniswhite"),
        None,
        "floats in which 0 is white",
    )
    twelve = frames("u2", bits=12)
    yield Case("12 bit in 16.tif", lambda p: pages(p, twelve), twelve)
    colour = np.stack([frames("u1"), frames("u1")[::-1], frames("u1")], -1)
    yield Case("RGB.tif", lambda p: pages(p, colour, photometric="rgb"), grey(colour))
    yield Case("RGB in planes.tif",
               lambda p: pages(p, np.moveaxis(colour, 3, 1), photometric="rgb", planarconfig="separate"), grey(colour))  # fmt: skip
    yield Case(
        "RGB, all grey.tif",
        lambda p: pages(p, np.repeat(frames("u2")[..., None], 3, 3), photometric="rgb"),
        frames("u2"),
    )
    ramp = np.arange(255, -1, -1, dtype=np.uint16)
    for name, scale in (("", 257), (" of 8 bits", 1)):
        yield Case(f"palette{name}.tif",
                   lambda p, s=scale: pages(p, frames(), photometric="palette", colormap=np.tile(ramp * s, (3, 1))), 255 - frames())  # fmt: skip
    yield Case(
        "CMYK.tif",
        lambda p: pages(p, np.repeat(frames()[..., None], 4, 3), photometric="separated"),
        None,
        "its pixels are SEPARATED",
    )
    yield Case(
        "samples.tif",
        lambda p: tifffile.imwrite(p, frames(), photometric="minisblack", planarconfig="separate"),
        frames(),
    )
    yield Case("two samples a page.tif",
               lambda p: pages(p, np.stack([frames(), frames()], 1), planarconfig="separate"), None, "pages of 2 samples")  # fmt: skip
    bits = frames() > 127
    yield Case("1 bit.tif", lambda p: pages(p, bits), bits.astype(np.uint8))
    yield Case(
        "stated more.tif",
        lambda p: described(p, frames(), '{"shape": [9, 32, 48]}'),
        frames(),
        "states 9 frames but holds 6 pages",
    )
    yield Case(
        "absurd numbers, JSON.tif",
        lambda p: described(p, frames(), '{"shape": [1000000000, 1000000000, 32, 48], "axes": "TCYX"}'),
        None,
        "it states 1000000000000000000 frames; allowed",
    )
    yield Case(
        "absurd numbers, ImageJ.tif",
        lambda p: described(p, frames(), "ImageJ=1.5\nimages=999999998\nchannels=2\nframes=499999999\n"),
        None,
        "it states 999999998 frames; allowed",
    )
    yield Case(
        "absurd numbers, OME.tif",
        lambda p: described(p, frames(), ome("<TiffData/>", t=999999999)),
        None,
        "its OME-XML states 999999999 planes; allowed",
    )
    yield Case(
        "absurd numbers, Micro-Manager.tif",
        lambda p: mm_stack(p, frames(), wanted=2**31 - 1),
        frames(),
        "states 2147483647 frames but holds 6",
    )
    yield Case("no TIFF.tif", lambda p: p.write_bytes(b"not at all"), None, "not a TIFF file")
    yield Case("empty.tif", lambda p: p.write_bytes(b""), None, "the file is empty")


def _preview(path: Path, stack: np.ndarray, small: np.ndarray) -> None:
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(small, subfiletype=1, photometric="minisblack", metadata=None)
        for image in stack:
            tiff.write(image, photometric="minisblack", metadata=None)


def _series() -> Iterator[Case]:
    """What a description says of planes: their order, their axes, their number."""
    data = frames()
    order = [3, 1, 0, 2, 5, 4]  # page k holds time point order[k]
    shuffled = "".join(f'<TiffData FirstT="{t}" IFD="{order.index(t)}" PlaneCount="1"/>' for t in range(6))
    yield Case("OME, shuffled.ome.tif", lambda p: described(p, data[order], ome(shuffled)), data)
    yield Case("OME, all in order.ome.tif", lambda p: described(p, data, ome("<TiffData/>")), data)
    yield Case(
        "OME, from a page on.ome.tif", lambda p: described(p, data, ome('<TiffData IFD="0" PlaneCount="6"/>')), data
    )
    yield Case("OME, more stated.ome.tif",
               lambda p: described(p, data, ome('<TiffData IFD="0" PlaneCount="9"/>', 9)), data, "states 9 frames but holds 6 pages")  # fmt: skip
    gap = "".join(f'<TiffData FirstT="{t}" IFD="{t}" PlaneCount="1"/>' for t in range(4))
    yield Case(
        "OME, planes left out.ome.tif",
        lambda p: described(p, data, ome(gap)),
        data[:4],
        "states 6 frames but holds 4 pages",
    )
    step = ' TimeIncrement="50" TimeIncrementUnit="ms"'
    yield Case("OME, interval.ome.tif", lambda p: described(p, data, ome("<TiffData/>", more=step)), data, rate_hz=20.0)
    planes = "<TiffData/>" + "".join(f'<Plane TheZ="0" TheT="{t}" TheC="0" DeltaT="{t * t / 10}"/>' for t in range(6))
    yield Case(
        "OME, times.ome.tif", lambda p: described(p, data, ome(planes)), data, times_s=[t * t / 10 for t in range(6)]
    )
    yield Case("OME, renamed.ome.tif",
               lambda p: described(p, data, ome('<TiffData IFD="0" PlaneCount="6"><UUID FileName="old.ome.tif">urn:uuid:1</UUID></TiffData>')), data)  # fmt: skip
    evil = "".join(
        f'<TiffData FirstT="{t}" IFD="{t}" PlaneCount="1"><UUID FileName="../../../etc/{t % 2}.tif">u{t % 2}</UUID></TiffData>'
        for t in range(6)
    )
    yield Case("OME, leads elsewhere.ome.tif", lambda p: described(p, data, ome(evil)), None, "is described as one of")
    yield Case("OME, entities.ome.tif",
               lambda p: described(p, data, '<!DOCTYPE x [<!ENTITY a "b">]>' + ome(shuffled)), data)  # fmt: skip
    yield Case("OME in two files", lambda p: split_ome(p, data), data)
    yield Case("OME in two files, one gone", lambda p: split_ome(p, data, True), data[:3], "cannot be opened")
    for name, first in (
        ("XYCZT", "CZT"),
        ("XYZCT", "ZCT"),
        ("XYTCZ", "TCZ"),
        ("XYZTC", "ZTC"),
        ("XYTZC", "TZC"),
        ("XYCTZ", "CTZ"),
    ):
        several = frames(n=12)
        sizes = {"C": 2, "Z": 1, "T": 6}
        cube = several.reshape([sizes[axis] for axis in reversed(first)] + [32, 48])
        pick = tuple(1 if axis == "C" else 0 if axis == "Z" else slice(None) for axis in reversed(first))
        yield Case(
            f"OME, {name}.ome.tif",
            lambda p, s=several, n=name: described(p, s, ome("<TiffData/>", 6, 2, 1, n)),
            cube[pick],
            choice=Choice(channel=1),
        )
    two = frames(n=12)
    for letters, shape in (("TCYX", (6, 2)), ("CTYX", (2, 6)), ("TZYX", (6, 2)), ("ZTYX", (2, 6)), ("TPYX", (6, 2))):
        other = next(letter for letter in letters if letter in "CZP")
        key = {"C": "channel", "Z": "z", "P": "position"}[other]
        cube = two.reshape(*shape, HEIGHT, WIDTH)
        want = cube[:, 1] if letters[0] == "T" else cube[1]
        yield Case(f"axes {letters}.tif",
                   lambda p, c=cube, a=letters: tifffile.imwrite(p, c, photometric="minisblack", metadata={"axes": a}),
                   want, choice=Choice(**{key: 1}))  # fmt: skip
        yield Case(f"axes {letters}, none chosen.tif",
                   lambda p, c=cube, a=letters: tifffile.imwrite(p, c, photometric="minisblack", metadata={"axes": a}),
                   None, f"^{key}: .* holds 2 .*allowed: 0 to 1")  # fmt: skip
        if other != "P":
            yield Case(f"OME of tifffile, {letters}.ome.tif",
                       lambda p, c=cube, a=letters: tifffile.imwrite(p, c, photometric="minisblack", ome=True, metadata={"axes": a}),
                       want, choice=Choice(**{key: 1}))  # fmt: skip
    cube = two.reshape(2, 6, HEIGHT, WIDTH)
    yield Case(
        "axes without names.tif",
        lambda p: tifffile.imwrite(p, cube, photometric="minisblack"),
        None,
        "2 .*x 6 .* allowed: one axis",
    )
    for t, z, c in ((6, 1, 2), (6, 2, 1), (3, 2, 2)):
        stack = frames(n=t * z * c).reshape(t, z, c, HEIGHT, WIDTH)
        chosen = Choice(channel=c - 1, z=z - 1)
        yield Case(
            f"ImageJ, {t} x {z} x {c}.tif",
            lambda p, s=stack: tifffile.imwrite(p, s, imagej=True),
            stack[:, z - 1, c - 1],
            choice=chosen,
        )
        yield Case(
            f"ImageJ, {t} x {z} x {c}, none chosen.tif",
            lambda p, s=stack: tifffile.imwrite(p, s, imagej=True),
            None,
            "and frames of one are analysed",
        )
    yield Case("ImageJ, z only.tif", lambda p: tifffile.imwrite(p, frames()[None, :, None], imagej=True), frames())
    yield Case(
        "ImageJ, composite.tif",
        lambda p: tifffile.imwrite(p, frames(n=3)[None, None], imagej=True, metadata={"mode": "composite"}),
        None,
        "holds 3 channels",
    )
    yield Case(
        "ImageJ, interval.tif",
        lambda p: tifffile.imwrite(p, frames(), imagej=True, metadata={"finterval": 0.25, "axes": "TYX"}),
        frames(),
        rate_hz=4.0,
    )
    yield Case(
        "ImageJ, one directory.tif", lambda p: tifffile.imwrite(p, frames(), imagej=True, truncate=True), frames()
    )
    yield Case(
        "tifffile, one directory.tif",
        lambda p: tifffile.imwrite(p, frames(), truncate=True, photometric="minisblack"),
        frames(),
    )


def _micro_manager() -> Iterator[Case]:
    data = frames("u2", bits=12)
    times = [0.1 * t for t in range(N)]
    yield Case("MM stack.tif", lambda p: mm_stack(p, data), data, times_s=times)
    yield Case("MM stack 2.0.tif", lambda p: mm_stack(p, data, new=True), data, times_s=times)
    yield Case(
        "MM stack, shuffled.tif",
        lambda p: mm_stack(p, data[[2, 0, 1, 5, 4, 3]], order=[2, 0, 1, 5, 4, 3]),
        data,
        times_s=times,
    )
    yield Case(
        "MM stack, aborted.tif", lambda p: mm_stack(p, data[:4], wanted=10), data[:4], "states 10 frames but holds 4"
    )
    two = frames("u2", 12, 12)
    for kind in ("channels", "positions"):
        key = kind.removesuffix("s")
        yield Case(
            f"MM stack, 2 {kind}.tif",
            lambda p, k=kind: mm_stack(p, two, **{k: 2}),
            two[1::2],
            choice=Choice(**{key: 1}),
        )
        name = "Bright" if key == "channel" else "Pos1"
        yield Case(
            f"MM stack, a {key} by name.tif",
            lambda p, k=kind: mm_stack(p, two, **{k: 2}),
            two[1::2],
            choice=Choice(**{key: name}),
        )
        yield Case(
            f"MM stack, no {key} chosen.tif",
            lambda p, k=kind: mm_stack(p, two, **{k: 2}),
            None,
            f"^{key}: .* holds 2 {kind}",
        )
        yield Case(
            f"MM stack, no such {key}.tif",
            lambda p, k=kind: mm_stack(p, two, **{k: 2}),
            None,
            f"^{key}: 'Dark' is not in",
            choice=Choice(**{key: "Dark"}),
        )

    def parts(path: Path) -> None:
        path.mkdir()
        mm_stack(path / "run_MMStack_Pos0.ome.tif", data[:4])
        mm_stack(path / "run_MMStack_Pos0_1.ome.tif", data[4:], start=4)

    yield Case("MM stack in parts", parts, data, times_s=times)
    for new in (False, True):
        version = "2.0" if new else "1.4"
        yield Case(
            f"MM folder {version}", lambda p, n=new: mm_folder(p, data, n), data, times_s=[0.25 * t for t in range(N)]
        )
        yield Case(
            f"MM folder {version}, aborted",
            lambda p, n=new: mm_folder(p, data, n, wanted=10),
            data,
            "states 10 frames, but the folder holds 6",
        )
        yield Case(f"MM folder {version}, killed", lambda p, n=new: mm_folder(p, data, n, metadata="cut"), data)
        yield Case(f"MM folder {version}, no metadata", lambda p, n=new: mm_folder(p, data, n, metadata="none"), data)
        yield Case(
            f"MM folder {version}, channels",
            lambda p, n=new: mm_folder(p, two, n, channels=2),
            two[1::2],
            choice=Choice(channel="Bright"),
        )
        yield Case(
            f"MM folder {version}, positions",
            lambda p, n=new: mm_folder(p, two, n, positions=2),
            two[1::2],
            choice=Choice(position="Pos1"),
        )
        yield Case(
            f"MM folder {version}, no position chosen",
            lambda p, n=new: mm_folder(p, two, n, positions=2),
            None,
            "holds 2 positions.*Pos0, Pos1",
        )
    for dtype in ("u1", "u2"):
        stack = frames(dtype)
        yield Case(
            f"NDTiff {dtype}",
            lambda p, s=stack: ndtiff(p, s, [{"time": t} for t in range(N)]),
            stack,
            times_s=[0.05 * t for t in range(N)],
        )
    axes = [{"time": t, "channel": c} for t in range(6) for c in ("Kerr", "Bright")]
    yield Case("NDTiff, channels", lambda p: ndtiff(p, two, axes), two[::2], choice=Choice(channel="Kerr"))
    yield Case("NDTiff, no channel chosen", lambda p: ndtiff(p, two, axes), None, "holds 2 channels.*Bright, Kerr")
    yield Case(
        "NDTiff, positions",
        lambda p: ndtiff(p, two, [{"time": t, "position": c} for t in range(6) for c in (0, 1)]),
        two[1::2],
        choice=Choice(position=1),
    )
    yield Case("NDTiff, z alone", lambda p: ndtiff(p, data, [{"z": z} for z in range(N)]), data)
    yield Case("NDTiff, an axis of its own", lambda p: ndtiff(p, data, [{"field": z} for z in range(N)]), data)
    yield Case(
        "NDTiff, aborted",
        lambda p: ndtiff(p, data, [{"time": t} for t in range(N)], 20),
        data,
        "states 20 frames but holds 6",
    )
    yield Case("NDTiff, shuffled", lambda p: ndtiff(p, data[::-1], [{"time": t} for t in range(N)[::-1]]), data)


def _folders() -> Iterator[Case]:
    for suffix in (".png", ".tif", ".bmp"):
        for dtype in ("u1", "u2") if suffix != ".bmp" else ("u1",):
            data = frames(dtype)
            yield Case(
                f"folder of {dtype} {suffix[1:]}",
                lambda p, d=data, s=suffix: images(p, d, [f"{i}{s}" for i in range(N)]),
                data,
            )
    for name, names in {
        "numbers": ["2.png", "10.png", "100.png", "101.png", "1000.png", "1001.png"],
        "signs": [f"field_{v}.png" for v in (-10, -2, 0, 1, 2, 10)],
        "signs after a word": [f"field{v:+d}.png" for v in (-10, -2, 0, 1, 2, 10)],
        "signs in some": [f"B{v}mT.png" for v in (-10, -2, 0, 1, 2, 10)],
        "decimals": [f"{v}mT.png" for v in ("0.5", "1.0", "1.25", "1.5", "2", "10.0")],
        "signed decimals": [f"B={v}mT.png" for v in ("-1.25", "-1.2", "-0.5", "0", "0.75", "3.2")],
        "decimal commas": [f"{v}mT.png" for v in ("0,5", "1,0", "1,25", "1,5", "2", "10,0")],
        "decimal p": [f"B_{v}_mT.png" for v in ("0p5", "1p0", "1p25", "1p5", "2p0", "10p0")],
        "hyphens": [f"scan-{v}.png" for v in (1, 2, 3, 9, 10, 11)],
        "dates": [f"2026-11-{d}_1.png" for d in (1, 2, 9, 10, 11, 25)],
        "versions": [f"v1.{v}.png" for v in (1, 2, 9, 10, 11, 100)],
        "frames after a dot": [f"run.{v:04}.png" for v in range(N)],
        "two numbers": [f"{a}_B={b}.png" for a, b in ((1, 5), (1, 10), (2, -3), (2, -1), (2, 4), (10, 0))],
        "zeros": ["01.png", "2.png", "003.png", "4.png", "05.png", "6.png"],
    }.items():
        yield Case(f"folder by {name}", lambda p, n=names: images(p, frames(), n), frames())

    def in_parts(path: Path) -> None:
        path.mkdir()
        for part in range(3):
            tifffile.imwrite(path / f"part{part + 9}.tif", frames()[2 * part : 2 * part + 2], photometric="minisblack")

    yield Case("folder of parts", in_parts, frames())

    def mixed(path: Path) -> None:
        images(path, frames()[:2], ["0.tif", "1.tif"])
        tifffile.imwrite(path / "2.tif", frames()[2:], photometric="minisblack")
        (path / "notes.txt").write_text("no image")
        (path / ".hidden.png").write_text("no image")

    yield Case("folder of images and parts", mixed, frames())

    def palette(path: Path) -> None:
        path.mkdir()
        from PIL import Image

        for i, image in enumerate(frames()):
            one = Image.frombytes("P", (WIDTH, HEIGHT), image.tobytes())
            one.putpalette([v for k in range(256) for v in (255 - k,) * 3])
            one.save(path / f"{i}.png")

    yield Case("folder of palettes", palette, 255 - frames())
    yield Case("empty folder", lambda p: p.mkdir(), None, "holds no images")
    yield Case("folder of folders", lambda p: (p / "inner").mkdir(parents=True), None, "holds no images.*inner")
    yield Case("one.png", lambda p: iio.imwrite(p, frames()[0]), frames()[:1])
    yield Case("one16.png", lambda p: iio.imwrite(p, frames("u2")[0]), frames("u2")[:1])
    yield Case("one.bmp", lambda p: iio.imwrite(p, frames()[0]), frames()[:1])
    yield Case("huge.png", _huge_png, None, "allowed: up to 67 million px")
    yield Case("one.gif", lambda p: iio.imwrite(p, frames()[0]), None, "unsupported suffix '.gif'")


def _huge_png(path: Path) -> None:
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def _videos() -> Iterator[Case]:
    data = frames()
    for suffix in (".avi", ".mkv", ".mov", ".mp4"):
        yield Case(
            f"FFV1 gray{suffix}",
            lambda p: ffmpeg(p, data, "gray", "-c:v", "ffv1"),
            data,
            rate_hz=10.0,
            times_s=[t / 10 for t in range(N)],
        )
    for bits in (10, 12, 16):
        deep = frames("u2", bits=bits)
        yield Case(f"FFV1 gray{bits}.mkv", lambda p, d=deep, b=bits: ffmpeg(p, d, f"gray{b}le", "-c:v", "ffv1"), deep)
        yield Case(f"FFV1 gray{bits}.avi", lambda p, d=deep, b=bits: ffmpeg(p, d, f"gray{b}le", "-c:v", "ffv1"), deep)
    deep = frames("u2", bits=12)
    yield Case("PNG gray16.mov", lambda p: ffmpeg(p, deep.astype(">u2"), "gray16be", "-c:v", "png"), deep)
    yield Case("PNG gray.mov", lambda p: ffmpeg(p, data, "gray", "-c:v", "png"), data)
    yield Case(
        "HEVC gray12.mp4",
        lambda p: ffmpeg(p, deep, "gray12le", "-c:v", "libx265", "-x265-params", "lossless=1:log-level=none"),
        deep,
    )
    yield Case(
        "HEVC gray.mkv",
        lambda p: ffmpeg(p, data, "gray", "-c:v", "libx265", "-x265-params", "lossless=1:log-level=none"),
        data,
    )
    yield Case("raw gray.avi", lambda p: ffmpeg(p, data, "gray", "-c:v", "rawvideo"), data)
    yield Case(
        "raw gray16.avi",
        lambda p: ffmpeg(p, deep, "gray16le", "-c:v", "rawvideo"),
        None,
        "raw rgb555le, which is also what 16 bit grey",
    )
    yield Case(
        "H.264, lossless RGB.mkv",
        lambda p: ffmpeg(p, np.repeat(data[..., None], 3, 3), "rgb24", "-c:v", "libx264rgb", "-qp", "0"),
        data,
    )
    yield Case("PNG RGB.mov", lambda p: ffmpeg(p, np.repeat(data[..., None], 3, 3), "rgb24", "-c:v", "png"), data)
    yield Case(
        "FFV1 GBR.mkv",
        lambda p: ffmpeg(p, np.repeat(data[..., None], 3, 3), "rgb24", "-c:v", "ffv1", "-pix_fmt", "gbrp"),
        data,
    )
    smooth = np.stack([cv2.GaussianBlur(image, (0, 0), 4) for image in frames()])
    for codec, suffix, close in (
        ("libx264", ".mp4", 24),
        ("mjpeg", ".avi", 24),
        ("mpeg4", ".avi", 24),
        ("libx264", ".mkv", 24),
    ):
        yield Case(f"{codec}{suffix}", lambda p, c=codec: ffmpeg(p, smooth, "gray", "-c:v", c, "-q:v", "2", "-pix_fmt", "yuvj420p" if c == "mjpeg" else "yuv420p"),
                   smooth, close=close, rate_hz=10.0)  # fmt: skip
    for rate in ("16", "30000/1001", "250"):
        value = float(eval(rate))
        yield Case(
            f"rate {rate.replace('/', ' by ')}.mkv",
            lambda p, r=rate: ffmpeg(p, data, "gray", "-c:v", "ffv1", rate=r),
            data,
            times_s=[t / value for t in range(N)],
        )
    yield Case(
        "variable rate.mkv",
        lambda p: ffmpeg(
            p, data, "gray", "-vf", "setpts=N*N/10/TB", "-fps_mode", "vfr", "-c:v", "ffv1", "-enc_time_base", "1/1000"
        ),
        data,
        times_s=[t * t / 10 for t in range(N)],
    )
    yield Case("cut without decoding.mp4", _cut_mp4, _long()[5:], close=4)
    for codec, suffix in (("FFV1", ".avi"), ("MJPG", ".avi")):
        yield Case(
            f"OpenCV {codec}{suffix}",
            lambda p, c=codec: _opencv(p, data if c == "FFV1" else smooth, c),
            data if codec == "FFV1" else smooth,
            close=0 if codec == "FFV1" else 24,
        )
    yield Case("no video.mp4", lambda p: p.write_bytes(bytes(500)), None, "not an intact video")
    yield Case(
        "sound only.mkv",
        lambda p: subprocess.run(
            [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-f", "lavfi", "-i", "sine=duration=0.2", str(p)],
            check=True,
        ),
        None,
        "holds no video",
    )


def _long() -> np.ndarray:
    return np.stack([cv2.GaussianBlur(image, (0, 0), 3) for image in frames(n=20)])


def _cut_mp4(path: Path) -> None:
    """Ten key frames apart, cut in between: an edit list leaves out what comes before."""
    whole = path.with_name("whole.mp4")
    ffmpeg(whole, _long(), "gray", "-c:v", "libx264", "-qp", "1", "-g", "10", "-bf", "0", "-pix_fmt", "yuv420p")
    subprocess.run(
        [
            imageio_ffmpeg.get_ffmpeg_exe(),
            "-loglevel",
            "error",
            "-ss",
            "0.5",
            "-i",
            str(whole),
            "-c",
            "copy",
            str(path),
        ],
        check=True,
    )
    whole.unlink()


def _opencv(path: Path, stack: np.ndarray, codec: str) -> None:
    video = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*codec), 16.0, (WIDTH, HEIGHT), False)
    for image in stack:
        video.write(image)
    video.release()


def _arrays() -> Iterator[Case]:
    for dtype in ("u1", "u2", ">u2", "i2", "u4", "i8", "f2", "f4", ">f4", "f8", ">f8"):
        data = frames(dtype)
        yield Case(f"{dtype.replace('>', 'be ')}.npy", lambda p, d=data: np.save(p, d), data)
        yield Case(f"{dtype.replace('>', 'be ')}.npz", lambda p, d=data: np.savez_compressed(p, d), data)
    data = frames()
    yield Case("fortran.npy", lambda p: np.save(p, np.asfortranarray(data)), data)
    yield Case("one image.npy", lambda p: np.save(p, data[0]), data[:1])
    yield Case("bool.npy", lambda p: np.save(p, data > 99), (data > 99).astype(np.uint8))
    yield Case(
        "colour image.npy", lambda p: np.save(p, np.stack([data[0]] * 3, -1)), None, r"its shape is \(32, 48, 3\)"
    )
    yield Case("colour.npy", lambda p: np.save(p, np.stack([data] * 3, -1)), data)
    yield Case(
        "four axes.npy",
        lambda p: np.save(p, data.reshape(2, 3, HEIGHT, WIDTH)),
        None,
        "allowed: .frames, height, width",
    )
    yield Case("two arrays.npy", _two_arrays, None, "bytes follow its array of 3 frames")
    yield Case("cut.npy", lambda p: _cut_npy(p, data), data[:3], "the file is cut: it states 6 frames")
    yield Case("complex.npy", lambda p: np.save(p, data.astype(complex)), None, "its pixels are complex128")
    yield Case(
        "objects.npy", lambda p: np.save(p, np.array([{}], object), allow_pickle=True), None, "its pixels are object"
    )
    yield Case("a list.npy", lambda p: np.save(p, np.arange(5)), None, r"its shape is \(5,\)")
    yield Case(
        "several.npz",
        lambda p: np.savez(p, a=data, b=data[::-1], times=np.arange(6)),
        None,
        "^dataset: .* holds 2 arrays.*allowed: a, b",
    )
    yield Case("chosen.npz", lambda p: np.savez(p, a=data, b=data[::-1]), data[::-1], choice=Choice(dataset="b"))
    yield Case("frames.npz", lambda p: np.savez(p, frames=data, b=data[::-1]), data)
    yield Case(
        "not chosen.npz", lambda p: np.savez(p, a=data), None, "^dataset: 'c' is not in", choice=Choice(dataset="c")
    )
    yield Case(
        "channel of an array.npy", lambda p: np.save(p, data), None, "^channel: 1 is not in", choice=Choice(channel=1)
    )
    yield Case("huge.npy", _huge_npy, None, "the file is cut: it states")


def _two_arrays(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, frames()[:3])
        np.save(file, frames()[3:])


def _cut_npy(path: Path, stack: np.ndarray) -> None:
    np.save(path, stack)
    data = path.read_bytes()
    path.write_bytes(data[: 128 + int(3.5 * HEIGHT * WIDTH)])


def _huge_npy(path: Path) -> None:
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (9, 10**9, 10**9)})
        file.write(bytes(100))


def _hdf5() -> Iterator[Case]:
    for dtype in ("u1", "u2", "i2", ">i4", "f4", "f8"):
        data = frames(dtype)
        yield Case(
            f"any {dtype.replace('>', 'be ')}.h5",
            lambda p, d=data: hdf5(
                p, lambda f: f.create_dataset("measured/images", data=d, chunks=(2, 32, 48), compression="gzip")
            ),
            data,
        )
    data = frames()

    def nexus(file: h5py.File, default: bool = True) -> None:
        entry = file.create_group("entry")
        entry.attrs["NX_class"] = "NXentry"
        plot = entry.create_group("data")
        plot.attrs["NX_class"] = "NXdata"
        plot.attrs["signal"], plot.attrs["axes"] = "images", ["t", ".", "."]
        plot["images"], plot["dark"] = data, data[::-1]
        plot["t"] = np.arange(N) * 40.0
        plot["t"].attrs["units"] = "ms"
        if default:
            file.attrs["default"], entry.attrs["default"] = "entry", "data"

    yield Case("NeXus default.nxs", lambda p: hdf5(p, nexus), data, times_s=[0.04 * t for t in range(N)])
    yield Case("NeXus without default.nxs", lambda p: hdf5(p, lambda f: nexus(f, False)), data)
    yield Case("Eiger.h5", lambda p: hdf5(p, lambda f: f.create_dataset("/entry/data/data", data=data)), data)
    yield Case(
        "two arrays.h5",
        lambda p: hdf5(p, lambda f: (f.create_dataset("a", data=data), f.create_dataset("b", data=data[::-1]))),
        None,
        "^dataset: .*holds 2 arrays.*one of /a, /b",
    )
    yield Case(
        "chosen.h5",
        lambda p: hdf5(p, lambda f: (f.create_dataset("a", data=data), f.create_dataset("g/b", data=data[::-1]))),
        data[::-1],
        choice=Choice(dataset="g/b"),
    )
    yield Case(
        "not there.h5",
        lambda p: hdf5(p, lambda f: f.create_dataset("a", data=data)),
        None,
        "^dataset: 'c' is no array.*allowed: /a",
        choice=Choice(dataset="c"),
    )
    yield Case("one image.h5", lambda p: hdf5(p, lambda f: f.create_dataset("a", data=data[0])), data[:1])
    yield Case(
        "nothing.h5", lambda p: hdf5(p, lambda f: f.create_dataset("a", data=5)), None, "holds no array of 2 dimensions"
    )
    yield Case(
        "external link.h5",
        lambda p: hdf5(p, lambda f: f.__setitem__("a", h5py.ExternalLink("other.h5", "x"))),
        None,
        "is a link to 'other.h5'",
        choice=Choice(dataset="a"),
    )
    yield Case(
        "external storage.h5",
        lambda p: hdf5(
            p, lambda f: f.create_dataset("a", data.shape, "u1", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])
        ),
        None,
        "is stored in '/etc/passwd'",
    )

    def view(file: h5py.File, source: str, name: str) -> None:
        layout = h5py.VirtualLayout(data.shape, "u1")
        layout[:] = h5py.VirtualSource(source, name, data.shape)
        file.create_virtual_dataset("a", layout)

    yield Case(
        "a view of another file.h5",
        lambda p: hdf5(p, lambda f: view(f, "other.h5", "x")),
        None,
        "is a view of 'other.h5'",
    )
    yield Case("a view of itself.h5", lambda p: hdf5(p, lambda f: view(f, ".", "a")), None, "is a view of 'a'")
    yield Case(
        "a view within.h5",
        lambda p: hdf5(p, lambda f: (f.create_dataset("x", data=data), view(f, ".", "x"))),
        data,
        choice=Choice(dataset="a"),
    )
    yield Case(
        "a loop of groups.h5",
        lambda p: hdf5(p, lambda f: (f.create_dataset("g/x", data=data), f["g"].__setitem__("up", f["/"]))),
        data,
    )
    yield Case(
        "huge chunks.h5",
        lambda p: hdf5(
            p, lambda f: f.create_dataset("a", (4, 8000, 8000), "f8", chunks=(4, 8000, 8000), compression="gzip")
        ),
        None,
        "its chunks are",
    )
    yield Case(
        "huge frames.h5",
        lambda p: hdf5(p, lambda f: f.create_dataset("a", (4, 10**5, 10**5), "f8", chunks=(1, 100, 100))),
        None,
        "px; allowed: up to 67 million px",
    )
    yield Case(
        "texts.h5", lambda p: hdf5(p, lambda f: f.create_dataset("a", data=[[b"x"] * 9] * 9)), None, "holds no array"
    )

    def labelled(file: h5py.File) -> None:
        named = file.create_dataset("a", data=frames(n=12).reshape(2, 6, HEIGHT, WIDTH))
        for number, name in enumerate("ctyx"):
            named.dims[number].label = name

    yield Case("named axes.h5", lambda p: hdf5(p, labelled), frames(n=12)[6:], choice=Choice(channel=1))
    yield Case("no HDF5.h5", lambda p: p.write_bytes(b"no"), None, "frame 0 cannot be read")


def _zarr() -> Iterator[Case]:
    for version in ("0.4", "0.5"):
        for dtype in ("u1", "u2", "f4"):
            data = frames(dtype)
            yield Case(
                f"OME-Zarr {version} {dtype}.zarr",
                lambda p, d=data, v=version: ome_zarr(p, d, "tyx", v, "second"),
                data,
                rate_hz=20.0,
            )
        two = frames(n=12).reshape(6, 2, 1, HEIGHT, WIDTH)
        yield Case(
            f"OME-Zarr {version}, channels.zarr",
            lambda p, d=two, v=version: ome_zarr(p, d, "tczyx", v, labels=["Kerr", "Bright"]),
            two[:, 1, 0],
            choice=Choice(channel="Bright"),
        )
        yield Case(
            f"OME-Zarr {version}, none chosen.zarr",
            lambda p, d=two, v=version: ome_zarr(p, d, "tczyx", v),
            None,
            "^channel: .*holds 2 channels",
        )
        yield Case(
            f"OME-Zarr {version}, large chunks.zarr",
            lambda p, v=version: ome_zarr(p, frames(), "tyx", v, chunks=(4, 16, 48)),
            frames(),
        )
    data = frames("u2")
    for version in (2, 3):
        yield Case(f"array {version}.zarr", lambda p, v=version: zarr.save_array(str(p), data, zarr_format=v), data)

    def group(path: Path, names: tuple[str, ...]) -> None:
        root = zarr.open_group(str(path), mode="w")
        for name in names:
            root.create_array(name, data=data)

    yield Case("a group of one.zarr", lambda p: group(p, ("a",)), data)
    yield Case("a group of two.zarr", lambda p: group(p, ("a", "b")), None, "^dataset: .* holds 2 arrays")
    yield Case("a group of two, chosen.zarr", lambda p: group(p, ("a", "b")), data, choice=Choice(dataset="b"))
    yield Case("nothing.zarr", lambda p: group(p, ()), None, "holds 0 arrays")
    yield Case("broken.zarr", lambda p: (p.mkdir(), (p / ".zarray").write_text("{")), None, "cannot be read")
