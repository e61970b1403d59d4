"""Videos, decoded by FFmpeg (PyAV)."""

import math
import re
from collections.abc import Iterator
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from realtime_skyseg.recordings.recording import Recording, check_size

#: Grey formats whose values are taken as they are stored: name and type of a pixel.
_GREY: dict[str, str] = {
    "gray": "u1",
    **{f"gray{bits}{end}": f"{'<' if end == 'le' else '>'}u2" for bits in (9, 10, 12, 14, 16) for end in ("le", "be")},
    **{f"gray{bits}{end}": f"{'<' if end == 'le' else '>'}u4" for bits in (32,) for end in ("le", "be")},
    **{f"grayf32{end}": f"{'<' if end == 'le' else '>'}f4" for end in ("le", "be")},
}


class VideoRecording(Recording):
    """An AVI, MP4, MOV or Matroska file.

    Grey of any depth comes as it is stored; colour as 8 bit, or where it has more, as 16 bit. Times are those of the
    container. The decoder hides damage: it stops without a word, and the last frame before a cut may be half a picture.
    So the number of decoded frames is compared with the number that the container states, and the last frame before a
    premature end is withheld. AVI, MP4 and MOV store that number; Matroska does not, but states the length of the file.
    """

    format = "video"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._container: Any = None
        try:
            self._rewind()
        except (av.FFmpegError, OSError, ValueError, IndexError) as error:
            self.close()
            known = isinstance(error, ValueError) and not isinstance(error, av.FFmpegError)
            self._broken(0, error if known else "the file is not an intact video, or its codec is unknown")
        if self._current is None:
            self.close()
            self._broken(0, "the file is not an intact video, or its codec is unknown")
        rate = self._stream.average_rate or self._stream.guessed_rate
        self.rate_hz = float(rate) if rate and math.isfinite(rate) and rate > 0 else None
        self._cut = _matroska_is_cut(path)
        if self._stream.frames > 0 and self._cut is None:
            self.n_frames = self._stream.frames - self._discarded()

    def close(self) -> None:
        """Release the decoder."""
        if self._container is not None:
            self._container.close()
            self._container = None

    def stamp_ns(self, index: int) -> int:
        """The time of the frame that was read last, as the container has it."""
        if index != self._position or self._current is None:
            return -1
        return self._current[1]

    def _rewind(self) -> None:
        self.close()
        self._container = av.open(str(self.path), metadata_errors="replace")
        videos = [s for s in self._container.streams.video if s.codec_context and not _is_picture(s)]
        if not videos:
            raise ValueError("the file holds no video")
        self._stream = videos[0]
        codec = self._stream.codec_context
        if codec.name == "rawvideo" and re.match("(rgb|bgr)(444|555|565)", str(codec.pix_fmt)):
            raise ValueError(f"it is raw {codec.pix_fmt}, which is also what 16 bit grey turns into; allowed: FFV1")
        check_size(self._stream.codec_context.height, self._stream.codec_context.width)
        self._began: Fraction | None = None
        self._pictures = self._decoded()
        self._position = 0
        self._current = next(self._pictures, None)
        self._following = next(self._pictures, None)

    def _discarded(self) -> int:
        """Frames that an edit list leaves out, as cutting without decoding does. It needs no decoding to count them."""
        with av.open(str(self.path), metadata_errors="replace") as container, suppress(av.FFmpegError):
            return sum(packet.is_discard for packet in container.demux(container.streams[self._stream.index]))
        return 0

    def _decoded(self) -> Iterator[tuple[NDArray[Any], int]]:
        """Pixels and times of the frames, until the end or damage."""
        number = 0
        try:
            for frame in self._container.decode(self._stream):
                if frame.is_corrupt:
                    return
                yield _pixels(frame), self._stamp(frame, number)
                number += 1
        except (av.FFmpegError, OSError):
            return

    def _stamp(self, frame: VideoFrame, number: int) -> int:
        if frame.pts is None or frame.time_base is None:
            return -1
        shown = frame.pts * frame.time_base
        self._began = shown if self._began is None else self._began
        time_s = shown - self._began
        rate = self._stream.average_rate
        if rate and abs(time_s - number / rate) <= frame.time_base:
            time_s = number / rate  # a container that counts in milliseconds rounds
        return round(time_s * 10**9)

    def _decode(self, index: int) -> NDArray[Any]:
        if index < self._position:
            self._rewind()
        while self._position < index and self._following is not None:
            self._position += 1
            self._current, self._following = self._following, next(self._pictures, None)
        if self._following is None:
            length = self._position + 1
            short = self._cut if self.n_frames is None else length < self.n_frames
            if short and index >= self._position:
                stated = "" if self.n_frames is None else f"; it states {self.n_frames} frames"
                self._broken(self._position, f"the file is cut or damaged from here on{stated}")
            if index >= length:
                raise self._ended()
        assert self._current is not None
        return self._current[0]


def _is_picture(stream: Any) -> bool:
    """Whether a stream is the cover of a file."""
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def _pixels(frame: VideoFrame) -> NDArray[Any]:
    name = frame.format.name
    if name in _GREY:
        plane, dtype = frame.planes[0], np.dtype(_GREY[name])
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[: frame.height]
        pixels = np.ascontiguousarray(rows[:, : frame.width * dtype.itemsize]).view(dtype)
        return pixels.astype(dtype.newbyteorder("="))
    deep = max(component.bits for component in frame.format.components) > 8
    grey = len(frame.format.components) <= 2 and not frame.format.has_palette
    wanted = ("gray16le" if deep else "gray") if grey else ("rgb48le" if deep else "rgb24")
    return np.asarray(frame.to_ndarray(format=wanted))


def _matroska_is_cut(path: Path) -> bool | None:
    """Whether a Matroska file is shorter than its segment says; None for other containers.

    A segment of unknown length, as streams and killed recorders leave it, counts as whole.
    """
    with path.open("rb") as file:
        size = path.stat().st_size
        if file.read(4) != b"\x1a\x45\xdf\xa3":
            return None
        header = _ebml_length(file.read(8))
        if header is None:
            return True
        start = 4 + header[1] + header[0]
        file.seek(start)
        begin = file.read(12)
        segment = _ebml_length(begin[4:])
        if begin[:4] != b"\x18\x53\x80\x67" or segment is None:
            return True
        length, digits = segment
        unknown = length == (1 << (7 * digits)) - 1
        return not unknown and start + 4 + digits + length > size


def _ebml_length(data: bytes) -> tuple[int, int] | None:
    """Value and number of bytes of an EBML length (RFC 8794, section 4), or None where `data` has none."""
    digits = 9 - data[0].bit_length() if data and data[0] else 9
    if digits > min(8, len(data)):
        return None
    return int.from_bytes(data[:digits], "big") & ((1 << (7 * digits)) - 1), digits
