"""Rescue a run file that was killed, truncated, or lost pages of its end in a power cut.

The damaged file is opened for reading only, through a view that ends where its superblock says, with zeros for what is
missing, so that HDF5 opens what it would refuse. Every frame, mask and row is then taken over only if its checks hold:
HDF5's own checksum of each chunk, and the CRC-32 columns that `layout` describes. If a page is missing, zero or too
old, the frames on it are lost, but no frame is made up. If HDF5 has lost the place of an image, the whole file is
searched for it: its CRC-32 tells which one it is.
"""

import faulthandler
import io
import json
import logging
import os
import secrets
import subprocess
import sys
import threading
import zlib
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from realtime_skyseg import json_text
from realtime_skyseg.errors import RunFileError, SettingsError
from realtime_skyseg.quantities import Quantity
from realtime_skyseg.records import Counters, Event, Skipped
from realtime_skyseg.storage import layout, tables, trust
from realtime_skyseg.storage.provenance import iso
from realtime_skyseg.storage.rescue_images import Alive, Images, clear_columns, copy_group, value_of
from realtime_skyseg.storage.rescue_tables import DAMAGE, DamagedFile, fill_of, good_rows, read_rows, read_table, reason

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Rescue:
    """What came out of a damaged file."""

    path: Path  # of the new file
    frames: int = 0  # that the damaged file knows of
    written: int = 0  # raw frames rescued
    analysed: int = 0  # results rescued
    lost_frames: list[int] = field(default_factory=list)  # indices of raw frames that the damage took
    lost_results: list[int] = field(default_factory=list)
    checked: bool = True  # False: a file of the first versions, which has no checksums
    notes: list[str] = field(default_factory=list)  # what else is missing

    @property
    def whole(self) -> bool:
        """True where the damage took nothing that the file knows of."""
        return not (self.lost_frames or self.lost_results or self.notes)

    def sentence(self) -> str:
        """What was rescued and what was not, for people."""
        text = f"{self.written} frames and {self.analysed} results of {self.frames} frames rescued to '{self.path}'"
        if self.lost_frames:
            text += f"; {len(self.lost_frames)} raw frames are damaged, the first is frame {self.lost_frames[0]}"
        if self.lost_results:
            text += f"; {len(self.lost_results)} results are damaged, the first is that of frame {self.lost_results[0]}"
        if not self.checked:
            text += "; the file has no checksums: what is rescued could be decompressed, no more is known of it"
        return "; ".join([text, *self.notes])

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "recovered": str(self.path),
            "frames": self.frames,
            "written": self.written,
            "analysed": self.analysed,
            "damaged_frames": self.lost_frames,
            "damaged_results": self.lost_results,
            "checked": self.checked,
            "notes": self.notes,
        }


def recover(path: str | Path, out: str | Path | None = None, patience_s: float = 20.0) -> Rescue:
    """Copy what is whole in a damaged run file to a new one; the damaged one is not touched.

    Args:
        path: the run file, usually NAME.h5.partial.
        out: the new file; default: NAME.recovered.h5 beside it. Never overwritten.
        patience_s: HDF5 is given up when it hangs on the damage for longer.

    Raises:
        SettingsError: there is no such file, or the new one exists.
        RunFileError: nothing can be rescued, and why; or the new file cannot be written.
    """
    path = Path(path)
    if not path.is_file():
        raise SettingsError(f"run file '{path}' does not exist")
    target = (
        Path(out) if out else path.with_name(path.name.removesuffix(".partial").removesuffix(".h5") + ".recovered.h5")
    )
    if target.exists():
        raise SettingsError(f"'{target}' exists already and is not overwritten; move it away")
    # A name of its own: another rescue of the same file at the same time, or one that was killed, is not in the way.
    partial = target.with_name(f"{target.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
    program = "import sys; from realtime_skyseg.storage.rescue import _rescue_here; _rescue_here(*sys.argv[1:])"
    command = [sys.executable, "-P", "-c", program, str(path), str(partial), str(patience_s)]
    # The process ends with this one: its standard input is the sign of life.
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace"
    )
    try:
        with process, ThreadPoolExecutor(1) as pool:
            said = pool.submit(process.stderr.read if process.stderr else str)
            answered, told = process.stdout.read() if process.stdout else "", said.result()
            status = process.wait()
        try:
            answer = json_text.load(answered)
        except ValueError:
            what = f"hangs for more than {patience_s:g} s" if "Timeout" in told else f"broke off (status {status})"
            answer = {"error": f"HDF5 {what} on its damage"}
        if "error" in answer:
            raise RunFileError(f"nothing can be rescued from '{path}': {answer['error']}")
        _name(partial, target)
    except BaseException:
        process.kill()
        process.wait()
        partial.unlink(missing_ok=True)
        raise
    return Rescue(target, **answer)


def _name(partial: Path, target: Path) -> None:
    """Give a file its name, unless somebody else has taken it meanwhile."""
    try:
        os.link(partial, target)  # unlike a renaming it never overwrites
    except FileExistsError:
        raise SettingsError(f"'{target}' has appeared meanwhile and is not overwritten") from None
    except OSError:  # a disk without links
        if target.exists():
            raise SettingsError(f"'{target}' has appeared meanwhile and is not overwritten") from None
        partial.rename(target)
    else:
        partial.unlink()


def _rescue_here(path: str, partial: str, patience_s: str) -> None:
    """In a process of its own, because HDF5 can hang or crash on damaged metadata; the answer goes to stdout."""
    alive = Alive(float(patience_s))
    threading.Thread(target=_end_with_parent, args=(Path(partial),), daemon=True).start()
    try:
        with Path(path).open("rb") as file, h5py.File(DamagedFile(file), "r") as damaged:
            trust.check(damaged, Path(path), damaged=True)
            rescue = asdict(_rescue(damaged, file, Path(partial), Rescue(Path(path)), alive))
        del rescue["path"]
        answer = json.dumps(rescue)
    except (*DAMAGE, RunFileError) as error:
        answer = json.dumps({"error": reason(error)})
    faulthandler.cancel_dump_traceback_later()
    sys.stdout.write(answer)


def _end_with_parent(partial: Path) -> None:
    """End this process when the one that began it is gone, and leave nothing behind."""
    sys.stdin.read()
    partial.unlink(missing_ok=True)
    os._exit(1)


def _rescue(damaged: h5py.File, file: io.BufferedReader, partial: Path, rescue: Rescue, alive: Alive) -> Rescue:
    frames = damaged[layout.FRAMES]
    table = read_rows(frames, rescue.notes)
    n = len(table)
    # What analysers found belongs to the result, too.
    own_columns = set(table.dtype.names or ()) - set(layout.FRAME_COLUMNS)
    results = {name: Quantity(name, table.dtype[name], fill_of(frames, name)) for name in own_columns}
    rescue.frames = n
    rescue.checked = set(layout.CHECKS) <= set(table.dtype.names or ())
    good_row = good_rows(table, frames, "row_crc32")
    good_result = good_rows(table, frames, "result_crc32")
    objects = read_table(damaged, layout.OBJECTS, layout.OBJECT_COLUMNS, rescue.notes)
    objects = objects[np.argsort(objects["frame"], kind="stable")]
    first = np.searchsorted(objects["frame"], np.arange(n + 1))
    events = read_table(damaged, layout.EVENTS, layout.EVENT_COLUMNS, rescue.notes)

    with ExitStack() as owned:
        new = owned.enter_context(h5py.File(partial, "x", libver=("v110", "v110")))
        raws = Images(damaged[layout.RAW], "raw", file, owned)
        all_masks = Images(damaged[layout.MASK], "mask", file, owned)
        copy_group(damaged, new, damaged, rescue.notes, {damaged: new})
        raw, masks = new[layout.RAW], new[layout.MASK]
        for stack in (raw, masks):
            stack.resize(n, axis=0)
        kept: dict[int, NDArray[Any]] = {}  # objects of each result
        no_raw: dict[int, list[int]] = defaultdict(list)  # CRC-32: frames whose image HDF5 does not find
        no_mask: dict[int, list[int]] = defaultdict(list)
        for index in range(n):
            alive()
            row = table[index : index + 1]
            if not good_row[index]:
                rescue.lost_frames.append(index)
                clear_columns(row, layout.FRAME_COLUMNS)
            elif row["written"][0]:
                if not raws.copy(index, raw, value_of(row, "raw_crc32")):
                    no_raw[value_of(row, "raw_crc32")].append(index)
            elif raws.has(index):
                rescue.lost_frames.append(index)  # its row is missing, and with it what vouches for it
            if good_result[index] and row["skipped"][0] != Skipped.NOT_SKIPPED:
                continue
            own = objects[first[index] : first[index + 1]]
            if not (good_result[index] and _belong(own, row)):
                rescue.lost_results.append(index)
                clear_columns(row, results)
                continue
            kept[index] = own
            if not all_masks.copy(index, masks, value_of(row, "mask_crc32")):
                no_mask[value_of(row, "mask_crc32")].append(index)
        for index in raws.search(raw, no_raw, alive):
            rescue.lost_frames.append(index)
            table["written"][index] = 0
            if rescue.checked:
                table["raw_crc32"][index] = -1
        for index in all_masks.search(masks, no_mask, alive):
            rescue.lost_results.append(index)
            clear_columns(table[index : index + 1], results)
            del kept[index]
        rescue.lost_frames.sort()
        rescue.lost_results.sort()
        rescue.written, rescue.analysed = int(table["written"].sum()), len(kept)
        _write(new, table, list(kept.values()), events)
        _conclude(new, table, rescue)
    return rescue


def _belong(objects: NDArray[Any], row: NDArray[Any]) -> bool:
    """These objects are those of the result in a row, which was made of the image that was written."""
    pair = value_of(row, "raw_crc32"), value_of(row, "source_crc32")
    return (
        value_of(row, "objects_crc32") in (-1, zlib.crc32(objects.tobytes()))
        and (-1 in pair or pair[0] == pair[1])
        and len(objects) == np.maximum(np.nan_to_num([row["count"][0], row["stripes"][0]]), 0).sum()
    )


def _write(new: h5py.File, table: NDArray[Any], objects: list[NDArray[Any]], events: NDArray[Any]) -> None:
    frames = new[layout.FRAMES]
    for check in set(layout.CHECKS) & set(table.dtype.names or ()):
        covers = json_text.load(frames[check].attrs["covers"])
        packed = np.empty(len(table), [(name, table.dtype[name]) for name in covers])
        for name in covers:
            packed[name] = table[name]
        known = table[check] >= 0
        table[check][known] = [zlib.crc32(row.tobytes()) for row in packed[known]]
    for name in table.dtype.names or ():
        frames[name].resize(len(table), axis=0)
        frames[name][:] = table[name]
    for name, declared, rows in (
        (layout.OBJECTS, layout.OBJECT_COLUMNS, np.concatenate(objects) if objects else np.empty(0, layout.ROW_DTYPE)),
        (layout.EVENTS, layout.EVENT_COLUMNS, events),
    ):
        if name not in new:
            tables.create(new["entry"], name.rpartition("/")[2], declared)
        if isinstance(new[name], h5py.Group):
            for missing in set(declared) - set(new[name]):  # its description was damaged
                tables.create_column(new[name], declared[missing])
        tables.append(new[name], rows)


def _conclude(new: h5py.File, table: NDArray[Any], rescue: Rescue) -> None:
    """Write the counters of what is in the new file: received is what the damaged file knows of."""
    counters = Counters(received=rescue.frames, analysed=rescue.analysed, written=rescue.written)
    damaged = len(rescue.lost_frames)
    counters.not_written = {
        cause: count
        for cause, count in (("damaged", damaged), ("not_recorded", rescue.frames - rescue.written - damaged))
        if count
    }
    causes = Counter(int(cause) for cause in table["skipped"] if cause != Skipped.NOT_SKIPPED)
    counters.not_analysed = {Skipped(cause).name.lower(): count for cause, count in sorted(causes.items())}
    counters.camera_lost = int(table["camera_lost"].sum())
    message = (
        f"recovered from '{rescue.path.name}': {rescue.written} of {rescue.frames} frames, {rescue.analysed} results; "
        "frames after its last flush are not known"
    )
    last_ns = int(max(table["written_ns"], default=0))
    summary = {
        "status": "recovered",
        "exit_status": 1,
        "message": message,
        "frames": counters.as_dict(),
        "latency_ms": {},
    }
    tables.append(new[layout.EVENTS], layout.event_row(Event(last_ns, "recovered", message), layout.version(new)))
    for name, value in (
        (layout.SUMMARY, json.dumps(summary).encode()),
        ("entry/end_time", iso(last_ns).encode()),
        ("entry/exit_status", 1),
    ):
        if name in new:
            new[name][()] = value
