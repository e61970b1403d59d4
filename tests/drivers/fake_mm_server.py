"""A stand-in for an open Micro-Manager with its server on: only its Java is imitated.

Every call of a client goes to a real MMCore with its DemoCamera, over the protocol that pycromanager's real client
speaks (version 5.1.0: JSON, then pairs of an array's id and its bytes). Beside it a viewer looks at the last image 30
times a second, as Micro-Manager's live view does.

It runs in a process of its own and obeys lines of JSON on standard input, each answered by one on standard output:

    {"do": "live", "on": true}                  press Live
    {"do": "set", "PixelType": "16bit", ...}    properties of the camera; `exposure_ms`, `roi` too
    {"do": "delay", "s": 3.0}                   the next call is answered this much later
    {"do": "stats"}                             what clients called, and how the viewer fares
"""

import argparse
import collections
import itertools
import json
import os
import sys
import threading
import time
from typing import Any

import numpy as np
import pymmcore
import zmq
from mm_test_adapters import device_adapter_path

TEXT, INT, LONG, DOUBLE, BOOL, VOID = "java.lang.String", "int", "long", "double", "boolean", "void"
IMAGE = "mmcorej.TaggedImage"
CORE_METHODS = [
    ("getVersionInfo", [], TEXT),
    ("getAPIVersionInfo", [], TEXT),
    ("getCameraDevice", [], TEXT),
    ("getDeviceLibrary", [TEXT], TEXT),
    ("getDeviceName", [TEXT], TEXT),
    ("getExposure", [], DOUBLE),
    ("isSequenceRunning", [], BOOL),
    ("getRemainingImageCount", [], INT),
    ("getLastTaggedImage", [], IMAGE),
    ("getNBeforeLastTaggedImage", [LONG], IMAGE),
    ("popNextTaggedImage", [], IMAGE),
    ("startContinuousSequenceAcquisition", [DOUBLE], VOID),
    ("stopSequenceAcquisition", [], VOID),
    ("snapImage", [], VOID),
]


def truth(number: int, shape: tuple[int, int]) -> np.ndarray:
    """What the image with this number shows where the stand-in is told to show known pictures."""
    rows, columns = np.indices(shape)
    return ((rows * 7 + columns * 13 + number * 101) % 4096).astype(np.uint16)


class TaggedImage:
    """An image and its tags, as the Java core gives them."""

    java_class, methods, fields = IMAGE, [], ["pix", "tags"]

    def __init__(self, pix: np.ndarray, tags: dict[str, Any]) -> None:
        self.pix, self.tags = pix, tags


class Core:
    """The Java core: methods of the real one, images with their tags."""

    java_class, methods, fields = "mmcorej.CMMCore", CORE_METHODS, []

    def __init__(self, core: pymmcore.CMMCore, known: bool) -> None:
        self._core, self._known = core, known

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)

    def getLastTaggedImage(self) -> TaggedImage:
        return self._tagged(self._core.getLastImageMD)

    def getNBeforeLastTaggedImage(self, n: int) -> TaggedImage:
        return self._tagged(lambda metadata: self._core.getNBeforeLastImageMD(n, metadata))

    def popNextTaggedImage(self) -> TaggedImage:
        return self._tagged(self._core.popNextImageMD)

    def _tagged(self, take: Any) -> TaggedImage:
        metadata = pymmcore.Metadata()
        pix = take(metadata)
        tags = {name: metadata.GetSingleTag(name).GetValue() for name in metadata.GetKeys()}
        if self._known:
            pix = truth(int(tags["ImageNumber"]), pix.shape)
        return TaggedImage(pix, {**tags, "Width": int(tags["Width"]), "Height": int(tags["Height"])})


class Server:
    """Answers one client after the other, as the Java server does on its port."""

    def __init__(self, core: Core, port: int, version: str) -> None:
        self._core, self._version = core, version
        self._objects: dict[str, Any] = {}
        self._ids = itertools.count(1)
        self.delay_s = 0.0
        self.calls: collections.Counter[str] = collections.Counter()
        self._socket = zmq.Context.instance().socket(zmq.REP)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(f"tcp://127.0.0.1:{port or '*'}")
        self.port = int(self._socket.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2])

    def serve(self) -> None:
        while True:
            request = json.loads(self._socket.recv_multipart()[0].decode("iso-8859-1"))
            delay_s, self.delay_s = self.delay_s, 0.0
            time.sleep(delay_s)
            arrays: list[bytes] = []
            try:
                answer = self._answer(request, arrays)
            except Exception as error:
                answer, arrays = {"type": "exception", "value": f"java.lang.Exception: {error}"}, []
            self._socket.send_multipart([json.dumps(answer).encode("iso-8859-1"), *arrays])

    def _answer(self, request: dict[str, Any], arrays: list[bytes]) -> dict[str, Any]:
        match request["command"]:
            case "connect":
                return {"type": "none", "version": self._version}
            case "get-constructors":
                return {"type": "none", "api": [{"name": request["classpath"], "arguments": []}]}
            case "constructor":
                return self._encode(self._core, arrays)
            case "run-method":
                self.calls[request["name"]] += 1
                method = getattr(self._objects[request["hash-code"]], request["name"])
                return self._encode(method(*request["arguments"]), arrays)
            case "get-field":
                return self._encode(getattr(self._objects[request["hash-code"]], request["name"]), arrays)
            case "destructor":
                self._objects.pop(request["hash-code"], None)
                return {"type": "none"}
        raise ValueError(f"unknown command {request['command']}")

    def _encode(self, value: Any, arrays: list[bytes]) -> dict[str, Any]:
        match value:
            case None:
                return {"type": "null"}
            case bool() | int() | float():
                return {"type": "primitive", "value": value}
            case str():
                return {"type": "string", "value": value}
            case dict():
                return {"type": "object", "class": "JSONObject", "value": json.dumps(value)}
            case np.ndarray():
                number = next(self._ids)
                arrays += [np.int32(number).tobytes(), np.ascontiguousarray(value).tobytes()]
                kind = {1: "byte-array", 2: "short-array", 4: "int-array"}[value.dtype.itemsize]
                return {"type": kind, "value": f"[B@{number:x}"}
        name = f"{next(self._ids):x}"
        self._objects[name] = value
        return {
            "type": "unserialized-object", "class": value.java_class, "hash-code": name, "port": self.port,
            "interfaces": [value.java_class, "java.lang.Object"], "fields": value.fields,
            "api": [{"name": method, "arguments": arguments, "return-type": kind}
                    for method, arguments, kind in value.methods],
        }  # fmt: skip


class Viewer:
    """Looks at the last image 30 times a second while Live is on."""

    def __init__(self, core: pymmcore.CMMCore) -> None:
        self._core = core
        self.grabs = self.answered = 0
        self.on = False

    def look(self) -> None:
        while True:
            time.sleep(1 / 30)
            if self.on and self._core.isSequenceRunning():
                self.grabs += 1
                try:
                    self._core.getLastImageMD(pymmcore.Metadata())
                    self.answered += 1
                except (IndexError, RuntimeError):
                    pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="of the server; 0: a free one")
    parser.add_argument("--exposure-ms", type=float, default=20.0)
    parser.add_argument("--size", type=int, nargs=2, default=(672, 512), help="width and height")
    parser.add_argument("--off", action="store_true", help="begin without live images")
    parser.add_argument("--known", action="store_true", help="show `truth` instead of the DemoCamera's pictures")
    parser.add_argument("--discs", action="store_true", help="a camera in Python behind MMCore: see known_camera")
    parser.add_argument("--version", default="5.1.0", help="of the protocol that it says it speaks")
    options = parser.parse_args()
    if options.discs:
        from known_camera import known_core

        core = known_core(*options.size)
    else:
        core = pymmcore.CMMCore()
        core.setDeviceAdapterSearchPaths([str(device_adapter_path())])
        core.loadSystemConfiguration(f"{device_adapter_path()}/MMConfig_demo.cfg")
        core.setProperty("Camera", "PixelType", "16bit")
        core.setProperty("Camera", "FastImage", "1")
        core.setProperty("Camera", "OnCameraCCDXSize", str(options.size[0]))
        core.setProperty("Camera", "OnCameraCCDYSize", str(options.size[1]))
    core.setExposure(options.exposure_ms)
    server, viewer = Server(Core(core, options.known), options.port, options.version), Viewer(core)
    for run in (server.serve, viewer.look):
        threading.Thread(target=run, daemon=True).start()

    def live(on: bool) -> None:
        viewer.on = False
        if core.isSequenceRunning():
            core.stopSequenceAcquisition()
        if on:
            core.startContinuousSequenceAcquisition(0.0)
            time.sleep(0.1)  # the first image comes after an exposure
            viewer.on = True

    live(not options.off)
    print(json.dumps({"port": server.port}), flush=True)  # noqa: T201
    for line in sys.stdin:
        order = json.loads(line)
        answer: dict[str, Any] = {}
        match order.pop("do"):
            case "live":
                live(order["on"])
            case "set":
                # As Micro-Manager's own window does: live images stop for it.
                live(False)
                if "exposure_ms" in order:
                    core.setExposure(order.pop("exposure_ms"))
                if "roi" in order:
                    core.setROI(*order.pop("roi"))
                for name, value in order.items():
                    core.setProperty("Camera", name, value)
                live(True)
            case "delay":
                server.delay_s = order["s"]
            case "stats":
                answer = {"calls": dict(server.calls), "grabs": viewer.grabs, "answered": viewer.answered}
        print(json.dumps(answer), flush=True)  # noqa: T201
    live(False)
    os._exit(0)  # pymmcore-plus does not survive the regular end of an interpreter


if __name__ == "__main__":
    main()
