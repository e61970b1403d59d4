"""Two hundred hostile files and messages: a sentence or a result each, and nothing else happens."""

import io
import json
import os
import pickle
import resource
import struct
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
import zmq
from conftest import settings
from safetensors.numpy import save_file
from test_service import noisy_discs

import realtime_skyseg as sky
from realtime_skyseg.errors import StreamError
from realtime_skyseg.hdf5_filters import bitshuffle
from realtime_skyseg.segmentation.model import FORMAT
from realtime_skyseg.storage import layout
from realtime_skyseg.streaming.messages import decode

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="limits memory as POSIX does")]

#: What each command may take, and beyond that is a fault.
MOST_BYTES, MOST_S = 1_500_000_000, 60.0

#: Python files that lie in the working folder, under names that Python and the product import.
TRAPS = (
    "json", "numpy", "h5py", "sitecustomize", "usercustomize", "realtime_skyseg", "hdf5plugin", "imagecodecs", "zmq",
    "yaml", "torch", "typing", "cv2",
)  # fmt: skip

YAML_BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + k)}: &{chr(98 + k)} [{','.join(['*' + chr(97 + k)] * 9)}]\n" for k in range(9)
)
PYTHON_TAG = "!!python/object/apply:os.system ['touch PWN']"
NAUGHTY = "\x1b]0;PWNED\x07\x1b[2J\x1b[31m[/red]\ud800\u202e"


class Pickled:
    """Makes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch PWN",)


# --- run files ---


def put(file: h5py.File, place: str, value: Any, **how: Any) -> None:
    if place in file:
        del file[place]
    file.create_dataset(place, data=value, **how)


def text(content: str) -> np.ndarray:
    data = content.encode(errors="replace") or b" "
    return np.array(data, h5py.string_dtype("utf-8", len(data)))


def relink(place: str, link: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        if place in file:
            del file[place]
        file[place] = link

    return change


def grow(place: str, rows: int) -> Callable[[h5py.File], None]:
    return lambda file: file[place].resize(rows, axis=0)


def outside(place: str) -> Callable[[h5py.File], None]:
    """The dataset's values lie in another file."""

    def change(file: h5py.File) -> None:
        if place in file:
            del file[place]
        file.create_dataset(place, (100,), "S1", external=[("secret.txt", 0, 100)])

    return change


def view(source: str, inner: str) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        shape = file[layout.RAW].shape
        del file[layout.RAW], file["entry/data/raw"]
        virtual = h5py.VirtualLayout(shape, "u1")
        virtual[:] = h5py.VirtualSource(source, inner, shape)
        file.create_virtual_dataset(layout.RAW, virtual)

    return change


def enormous(file: h5py.File) -> None:
    del file[layout.RAW], file["entry/data/raw"]
    side = 200_000
    file.create_dataset(
        layout.RAW, (4, side, side), "u1", chunks=(1, 1000, 1000), maxshape=(None, side, side), **bitshuffle
    )


def every_column(file: h5py.File) -> None:
    for column in file[layout.FRAMES].values():
        column.resize(10**10, axis=0)


def deep_groups(file: h5py.File) -> None:
    group = file["entry"]
    for _ in range(200):
        group = group.create_group("deeper")


def naughty_events(file: h5py.File) -> None:
    for name in ("time_ns", "frame", "kind", "message"):
        file[f"{layout.EVENTS}/{name}"].resize(3, axis=0)
    file[f"{layout.EVENTS}/message"][:] = NAUGHTY.encode(errors="replace")
    file[f"{layout.EVENTS}/time_ns"][:] = [-(2**63), 2**63 - 1, 0]


RUN_FILES: dict[str, Callable[[h5py.File], None]] = {
    "title is a link to another file": relink("entry/title", h5py.ExternalLink("secret.h5", "/secret")),
    "raw frames are a link to another file": relink(layout.RAW, h5py.ExternalLink("secret.h5", "/secret")),
    "links in a circle": relink("entry/loop", h5py.SoftLink("/entry/loop")),
    "a group inside itself": lambda file: file["entry"].__setitem__("self", file["entry"]),
    "title in another file": outside("entry/title"),
    "host in another file": outside("entry/provenance/host"),
    "raw frames are a view of themselves": view(".", layout.RAW),
    "raw frames are a view of another file": view("secret.h5", "/secret"),
    "a billion frames": grow(layout.RAW, 10**9),
    "a billion masks": grow(layout.MASK, 10**9),
    "10^11 objects": grow(f"{layout.OBJECTS}/area", 10**11),
    "10^10 rows": every_column,
    "frames of 40 GB": enormous,
    "200 groups in each other": deep_groups,
    "settings: a bomb": lambda file: put(file, layout.CONFIGURATION, text(YAML_BOMB)),
    "settings: a Python tag": lambda file: put(file, layout.CONFIGURATION, text(PYTHON_TAG)),
    "settings: nested": lambda file: put(file, layout.CONFIGURATION, text("[" * 5000)),
    "settings: a number": lambda file: put(file, layout.CONFIGURATION, 5),
    "summary: nested": lambda file: put(file, layout.SUMMARY, np.bytes_(b"[" * 100_000)),
    "summary: another shape": lambda file: put(file, layout.SUMMARY, np.bytes_(b'{"latency_ms": 5, "frames": []}')),
    "events that command a terminal": naughty_events,
    "no masks": lambda file: file.__delitem__(layout.MASK),
    "no rows": lambda file: file.__delitem__(layout.FRAMES),
    "rows of text": lambda file: put(file, f"{layout.FRAMES}/count", np.array([b"x"] * 4)),
    "objects: columns that are not there": lambda file: file[layout.OBJECTS].attrs.__setitem__("columns", '["x", "y"]'),
    "objects: columns that are no list": lambda file: file[layout.OBJECTS].attrs.__setitem__("columns", "[" * 9000),
    "masks of another size": lambda file: put(file, layout.MASK, np.zeros((4, 3, 5), np.uint8)),
    "a layout of the future": lambda file: file.attrs.__setitem__("layout", NAUGHTY.encode(errors="replace")),
}

ON_RUN_FILES = ("info {}", "info {} --check", "recover {}", "table {} --out out.csv",
                "check replay.yaml --set camera.path={}")  # fmt: skip

# --- settings ---

SETTINGS = {
    "bomb": "camera: {driver: replay}\n" + YAML_BOMB,
    "bomb in a value": YAML_BOMB + "camera: {driver: replay, path: *i}\n",
    "Python tag": f"camera: {PYTHON_TAG}\n",
    "nested": "camera: " + "[" * 5000 + "]" * 5000,
    "an alias in itself": "camera: &a {driver: replay, path: *a}\n",
    "a programme in itself": "experiment: &a {programme: [{do: repeat, times: 2, programme: [*a]}]}\ncamera: {}\n",
    "another file": "include: ../../../../etc/passwd\n",
    "includes itself": "include: includes_itself.yaml\n",
    "a number of 5000 digits": "camera: {driver: replay, rate_hz: " + "9" * 5000 + "}\n",
    "binary": "camera: !!binary //79\n",
    "no end of keys": "camera: {" + ", ".join(f"k{n}: 1" for n in range(20_000)) + "}\n",
    "20000^6 steps": "camera: {driver: replay}\nexperiment: {programme: ["
    + "{do: repeat, times: 20000, programme: [" * 6
    + "{do: hold, field_mT: 1}"
    + "]}" * 6
    + "]}\n",
    "escapes": 'camera: {driver: "\\e]0;PWNED\\a"}\n',
    "a driver with a path": "camera: {driver: ../../evil}\n",
    "a name with NUL": 'camera: {driver: replay}\nrecord: {name: "x\\0y"}\n',
    "a path of 100,000 characters": "camera: {driver: replay, path: " + "x" * 100_000 + "}\n",
    "NaN": "camera: {driver: replay, rate_hz: .nan}\n",
    "merge bomb": "a: &a {x: 1}\n" + "camera: {<<: [" + ", ".join(["*a"] * 10_000) + "]}\n",
}

# --- recordings, models ---


def zip_bomb(path: Path) -> None:
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("frames.npy", "w", force_zip64=True) as out,
    ):
        header = {"descr": "|u1", "fortran_order": False, "shape": (4000, 1000, 1000)}
        np.lib.format.write_array_header_2_0(out, header)
        for _ in range(400):
            out.write(bytes(10_000_000))


def npy_header(shape: tuple[int, ...], kind: str = "|u1") -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array_header_2_0(out, {"descr": kind, "fortran_order": False, "shape": shape})
    return out.getvalue()


def patched_tiff(tag: int, value: int) -> bytes:
    """A TIFF whose tag says something else."""
    out = io.BytesIO()
    tifffile.imwrite(out, np.stack([noisy_discs(0)] * 3), photometric="minisblack")
    data = bytearray(out.getvalue())
    (start,) = struct.unpack("<I", data[4:8])
    (n,) = struct.unpack("<H", data[start : start + 2])
    for entry in range(start + 2, start + 2 + 12 * n, 12):
        if struct.unpack("<H", data[entry : entry + 2])[0] == tag:
            data[entry + 2 : entry + 12] = struct.pack("<HII", 4, 1, value)
    return bytes(data)


def damaged(data: bytes, seed: int) -> bytes:
    draw, spoilt = np.random.default_rng(seed), bytearray(data)
    for place in draw.integers(0, min(len(spoilt), 4000), 12):
        spoilt[place] = draw.integers(256)
    return bytes(spoilt[: draw.integers(len(spoilt) // 2, len(spoilt))] if seed % 2 else spoilt)


def recordings() -> Iterator[tuple[str, bytes]]:
    yield "pickle.npy", pickle.dumps(Pickled())
    yield "object.npy", npy_header((4,), "|O") + pickle.dumps([Pickled()] * 4)
    yield "huge.npy", npy_header((10**12, 1000, 1000))
    yield "negative.npy", npy_header((-1, 64, 64))
    yield "wide.npy", npy_header((2, 1, 2**40))
    yield "zero.npy", npy_header((0, 64, 64))
    yield "header.npy", b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + b"{"
    yield "code.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", 60) + b"__import__('os').system('touch PWN')".ljust(60)
    end = 2**32 - 1
    for tag, value in ((256, 2**31), (257, 2**31), (258, 64), (259, 60000), (273, end), (277, 65535), (279, end)):
        yield f"tag{tag}.tif", patched_tiff(tag, value)
    out = io.BytesIO()
    tifffile.imwrite(out, np.stack([noisy_discs(0)] * 3), photometric="minisblack", ome=True)
    for seed in range(16):
        yield f"damaged{seed}.tif", damaged(out.getvalue(), seed)
    array = npy_header((3, 96, 128)) + bytes(3 * 96 * 128)
    for seed in range(6):
        yield f"damaged{seed}.npy", damaged(array, seed)
    for name in ("a.avi", "a.mp4", "a.mkv"):
        yield name, b"RIFF\xff\xff\xff\xffAVI LIST" + bytes(range(256)) * 20
    yield "a.png", b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + struct.pack(">II", 2**31 - 1, 2**31 - 1) + bytes(40)


def models(folder: Path) -> Iterator[str]:
    (folder / "pickle.safetensors").write_bytes(pickle.dumps(Pickled()))
    (folder / "pickle.pt").write_bytes(pickle.dumps(Pickled()))
    told = {
        "deep": "[" * 50_000,
        "list": "[]",
        "wide": '{"filters": 1024, "depth": 8}',
        "far": '{"depth": 10000000}',
        "key": '{"a": 1}',
        "nothing": "{}",
        "text": '"x"',
    }
    for name, network in told.items():
        values = {"x": np.zeros(3, np.float32)}
        save_file(values, folder / f"{name}.safetensors", {"format": FORMAT, "network": network})
    (folder / "header.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")
    (folder / "short.safetensors").write_bytes(b"\x01")
    for name in (*told, "pickle", "header", "short"):
        yield f"run replay.yaml --set analysis.model={name}.safetensors"
    yield "run replay.yaml --set analysis.model=pickle.pt"
    with h5py.File(folder / "lambda.h5", "w") as file:
        layer = {"class_name": "Lambda", "config": {"function": ["gASV", None, None]}}
        file.attrs["model_config"] = json.dumps({"class_name": "Functional", "config": {"layers": [layer]}})
    for name, member in (("traversal.keras", "../../PWN"), ("deep.keras", "config.json")):
        with zipfile.ZipFile(folder / name, "w") as archive:
            archive.writestr(member, "[" * 50_000)
            archive.writestr("metadata.json", "{}")
    for name in ("lambda.h5", "traversal.keras", "deep.keras"):
        yield f"import {name}"


#: Runs commands one after the other; a line of JSON for each. Not from the working folder, as `skyseg` is not.
HARNESS = """
import contextlib, io, json, resource, sys, time, traceback
resource.setrlimit(resource.RLIMIT_AS, (12_000_000_000,) * 2)
from realtime_skyseg.cli import main
for line in sys.stdin:
    arguments, begun, told = json.loads(line), time.monotonic(), io.StringIO()
    fault = ""
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        try:
            status = main(arguments)
        except SystemExit as end:
            status = end.code
        except BaseException:
            status, fault = -1, traceback.format_exc()
    peak = 1024 * max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(json.dumps([status, told.getvalue(), fault, time.monotonic() - begun, peak]), file=sys.__stdout__, flush=True)
"""


def commands(folder: Path, finished: Path) -> Iterator[list[str]]:
    """All that is typed, after its files are made."""
    (folder / "images.npy").write_bytes(npy_header((3, 96, 128)) + noisy_discs(0).tobytes() * 3)
    run = (
        "camera: {driver: replay, path: images.npy, rate_hz: max, limit: 3}\nrecord: {folder: out, name: 'r-{time}'}\n"
    )
    (folder / "replay.yaml").write_text(run + "stream: {enabled: false}\ncontrol: {enabled: false}\n")
    for number, (name, change) in enumerate(RUN_FILES.items()):
        path = folder / f"run{number}.h5"
        path.write_bytes(finished.read_bytes())
        with h5py.File(path, "r+") as file:
            change(file)
        assert name
        for typed in ON_RUN_FILES:
            yield typed.format(path.name).split()
    for name, content in SETTINGS.items():
        path = folder / f"{name.replace(' ', '_').replace('/', '')}.yaml"
        path.write_text(content)
        yield ["check", path.name]
    for name, data in recordings():
        (folder / name).write_bytes(data)
        yield ["run", "replay.yaml", "--set", f"camera.path={name}"]
    np.savez(folder / "object.npz", frames=np.array([Pickled()], object))
    zip_bomb(folder / "bomb.npz")
    for name in ("object.npz", "bomb.npz"):
        yield ["run", "replay.yaml", "--set", f"camera.path={name}"]
    for typed in models(folder):
        yield typed.split()


def test_hostile_files(tmp_path: Path) -> None:
    folder, harness = tmp_path / "evil", tmp_path / "harness" / "run.py"
    folder.mkdir()
    harness.parent.mkdir()
    harness.write_text(HARNESS)
    summary = sky.Service(settings(tmp_path / "good", {"limit": 4}, measure={"min_area_px": 10})).run()
    typed = list(commands(folder, Path(summary.run_file)))
    (folder / "secret.txt").write_text("TOP SECRET " * 200)
    with h5py.File(folder / "secret.h5", "w") as file:
        file["secret"] = np.frombuffer(b"TOP SECRET" * 1000, np.uint8)[: 96 * 96].reshape(1, 96, 96)
    for name in TRAPS:
        (folder / f"{name}.py").write_text("open('PWN', 'w').close()\nraise SystemExit('trapped')\n")
    given = {path: path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()}

    faults, slowest, most = [], 0.0, 0
    process: subprocess.Popen[str] | None = None
    for arguments in typed:
        if process is None:
            process = subprocess.Popen(
                [sys.executable, harness], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL, text=True,
            )  # fmt: skip
        assert process.stdin
        assert process.stdout
        process.stdin.write(json.dumps(arguments) + "\n")
        process.stdin.flush()
        alarm = threading.Timer(MOST_S, process.kill)
        alarm.start()
        answer = process.stdout.readline()
        alarm.cancel()
        alarm.join()
        if not answer:
            faults.append(f"{arguments}: hangs, or ended the process ({process.wait()})")
            process.stdin.close()
            process.stdout.close()
            process = None
            continue
        status, told, fault, took_s, peak = json.loads(answer)
        slowest, most = max(slowest, took_s), max(most, peak)
        last = told.strip().splitlines()[-1] if told.strip() else ""
        print(f"{status} {took_s:5.1f} s {' '.join(arguments)[:60]:60s} {last[:120]}")  # noqa: T201
        if fault or "Traceback" in told or "this should not happen" in told or status not in (0, 1, 2):
            faults.append(f"{arguments}: {status} {last} {fault[-600:]}")
        if status and not last:
            faults.append(f"{arguments}: no sentence")
        if "TOP SECRET" in told or "\x1b]0;" in told or peak > MOST_BYTES:
            faults.append(f"{arguments}: leaks, commands the terminal, or takes {peak / 1e6:.0f} MB")
    if process and process.stdin and process.stdout:
        process.stdin.close()
        process.wait(20)
        process.stdout.close()
    named = {".recovered.h5", ".csv", ".safetensors"}
    for path in tmp_path.rglob("*"):
        if path.is_file() and given.get(path) != path.stat().st_size and path.parent != folder / "out":
            if not any(path.name.endswith(end) for end in named):
                faults.append(f"{path} was written")
            elif b"TOP SECRET" in path.read_bytes():
                faults.append(f"{path} holds another file's text")
    print(f"{len(typed)} commands, the slowest {slowest:.1f} s, at most {most / 1e6:.0f} MB")  # noqa: T201
    assert not faults, "\n".join(faults)
    assert len(typed) >= 200


# --- messages ---

REQUESTS = [
    b"", b"{", b"[" * 60_000, b'{"do":' * 10_000, b'{"do":"set_field","field_mT":NaN}', b"null", b"[]", b"5", b'"x"',
    b'{"do":"set_field","field_mT":1e999}', b'{"do":"set_field","field_mT":' + b"9" * 5000 + b"}",
    b'{"do":"set_field","field_mT":"5"}', b'{"do":"set_field","field_mT":true}', b'{"do":"set_field"}',
    b'{"do":"set_field","field_mT":5,"field_mT":500}', b'{"do":"mark","message":"\\ud800"}',
    b'{"do":"mark","message":"\xff\xfe"}', b'{"do":"mark","message":"a\\u0000b"}', b'{"do":["status"]}',
    b'{"do":"mark","message":"\\u001b]0;PWNED\\u0007\\u001b[2J"}', b'{"do":"mark","message":"[/red] [link=x]y[/link]"}',
    b'{"do":"status","id":' + b"9" * 3000 + b"}", b'{"do":"status","x":1}', b'{"do":"__class__"}', b'{"do":null}',
    b'{"do":"demagnetise","amplitude_mT":50,"ratio":0.99,"smallest_mT":1e-300}', b"\x00" * 1000,
    b'{"do":"pulse","in_plane_mT":1e308,"seconds":-1}', b'{"do":"take_background","frames":1000}',
    b'{"do":"mark","message":"' + b"x" * 70_000 + b'"}', b"x" * 900_000, b'{"do":"status","key":{"a":[[[[[[]]]]]]}}',
]  # fmt: skip


def test_hostile_requests(tmp_path: Path) -> None:
    """Each gets an answer or is cut off; the run goes on and answers everybody else."""
    service = sky.Service(settings(tmp_path, {"rate_hz": 20, "loop": True}, control={"address": "tcp://127.0.0.1:0"}))
    thread = threading.Thread(target=service.run)
    thread.start()
    try:
        deadline = time.monotonic() + 20
        while not service.control_address and time.monotonic() < deadline:
            time.sleep(0.05)
        with zmq.Context() as context:
            for request in REQUESTS:
                with context.socket(zmq.DEALER) as client:
                    client.setsockopt(zmq.LINGER, 0)
                    client.connect(service.control_address)
                    client.send(request)
                    if client.poll(3000):
                        answer = json.loads(client.recv())
                        assert answer["ok"] or answer["error"], request[:80]
                        assert "Traceback" not in str(answer)
                with sky.Control(service.control_address) as control:
                    assert control.ask("status")
    finally:
        service.stop()
        thread.join()


HEADS = [
    b"", b"{", b"[]", b"null", b'{"htype":"image"}', b'{"htype":"nothing"}', b'{"htype":' + b"[" * 50_000,
    b'{"htype":"image","shape":[1000000000,1000000000],"type":"uint8"}', b'{"htype":"image","shape":[-1,5]}',
    b'{"htype":"image","frame":1e999}', b'{"htype":["image"]}', b"\xff\xfe", b'{"htype":"header","shape":"x"}',
    b'{"htype":"image","object_dtype":[["x","O"]],"objects_base64":"gASV"}', b'{"htype":"series_end","frames":[]}',
    b'{"htype":"image","objects_base64":"' + b"A" * 100_000 + b'"}',
]  # fmt: skip


@pytest.mark.parametrize("n_parts", [0, 1, 2, 5])
def test_hostile_messages(n_parts: int) -> None:
    for head in HEADS:
        with pytest.raises(StreamError):
            decode([head, *[b"x" * 100] * 4][:n_parts])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 < 3_000_000_000
