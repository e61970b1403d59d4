"""What others do, to be timed beside ours: each kind in a process of its own, whose threads end with its turn.

    python -P peers.py KIND HEIGHT WIDTH

This file is run by its path, and imports of this package only where the kind needs it: TensorFlow may live in
another environment, without this package. The process says what it has as a line of JSON, then reads lines
`NAME CALLS` and answers each with the milliseconds of every call.

The networks of kind `tensorflow` are those of the "Skyrmion U-Net" (Winkler et al., Zenodo
10.5281/zenodo.10997175), small and large, with random weights and in float32, which they use on a CPU.
"""

import itertools
import json
import pickle
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

#: Of an answer; libraries print too.
MARK = "skyseg-peer "

#: Side of the large U-Net's input, and the share of it that its tiling cuts off on each side.
_TILE, _CUT = 512, 0.2

Call = Callable[[], object]
Peers = tuple[dict[str, Call], dict[str, str], Call]  # what can be called, versions, what to call at the end


def tensorflow(height: int, width: int) -> Peers:
    """The reference U-Nets in Keras. Raises `ImportError`."""
    import os

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras
    import tensorflow as tf

    frame = _frame(height, width)
    scaled = (frame / np.float32(255)).astype(np.float32)
    small = u_net(keras, (-(-height // 2) * 2, -(-width // 2) * 2), 5, 1, 8, 2)
    large = u_net(keras, (-(-height // 16) * 16, -(-width // 16) * 16), 16, 4, 3, 8)
    tile = u_net(keras, (_TILE, _TILE), 16, 4, 3, 8)
    calls: dict[str, Call] = {}
    for name, model in (("small", small), ("large", large)):
        wanted = model.input_shape[1:3]
        more = [(0, there - here) for there, here in zip(wanted, scaled.shape, strict=True)]
        image = np.pad(scaled, more, "symmetric")[None, ..., None]
        compiled = tf.function(model)

        def predict(model: Any = model, image: Any = image) -> object:
            return model.predict(image, verbose=0)

        def function(compiled: Any = compiled, image: Any = image) -> object:
            return compiled(image, training=False).numpy()

        calls[f"{name} U-Net, predict"] = predict
        calls[f"{name} U-Net, tf.function"] = function
    calls["large U-Net, tiling"] = lambda: tiled(lambda part: tile.predict(part, verbose=0), scaled)
    versions = {"tensorflow": tf.__version__, "keras": keras.__version__, "python": sys.version.split()[0]}
    versions["parameters"] = f"small {small.count_params()}, large {large.count_params()}"
    return calls, versions, lambda: None


def u_net(keras: Any, shape: tuple[int, int], filters: int, depth: int, kernel: int, up_multiplier: int) -> Any:
    """The reference architecture: (batch, height, width, 1) -> probabilities of 3 classes."""
    layers = keras.layers

    def block(x: Any, channels: int) -> Any:
        for _ in range(2):
            x = layers.Conv2D(channels, kernel, padding="same")(x)
            x = layers.Activation("mish")(layers.BatchNormalization()(x))
        return x

    image = x = keras.Input((*shape, 1))
    skips = []
    for level in range(depth):
        x = block(x, filters << level)
        skips.append(x)
        x = layers.MaxPooling2D()(x)
    x = block(x, filters << depth)
    for level in reversed(range(depth)):
        x = layers.Conv2DTranspose((filters << level) * up_multiplier, kernel, strides=2, padding="same")(x)
        x = block(layers.Concatenate()([x, skips.pop()]), filters << level)
    return keras.Model(image, layers.Conv2D(3, 1, activation="softmax")(x))


def tiles(length: int, side: int = _TILE, cut: float = _CUT) -> list[tuple[int, int, int]]:
    """Along one axis of `length` px >= `side`: where each tile begins, and from where to where its result is used."""
    margin = 0 if length == side else int(np.ceil(side * cut))
    step = side - 2 * margin
    return [
        (min(max(begin - margin, 0), length - side), begin, min(begin + step, length))
        for begin in range(0, length, step)
    ]


def tiled(predict: Callable[[Any], Any], image: Any, side: int = _TILE) -> Any:
    """The reference's production path: tiles that overlap, one `predict` each, the inner part of each kept.

    Args:
        predict: (1, side, side, 1) -> (1, side, side, classes).
        image: (height, width); what is smaller than a tile is mirrored to its size.
        side: of a tile, px.

    Returns:
        Classes, (height, width) uint8.
    """
    height, width = image.shape
    image = np.pad(image, [(0, max(0, side - height)), (0, max(0, side - width))], "symmetric")
    classes = np.zeros(image.shape, np.uint8)
    for (top, row, end_row), (left, column, end_column) in itertools.product(
        tiles(image.shape[0], side), tiles(image.shape[1], side)
    ):
        found = predict(image[None, top : top + side, left : left + side, None]).argmax(-1)[0]
        classes[row:end_row, column:end_column] = found[row - top : end_row - top, column - left : end_column - left]
    return classes[:height, :width]


def torch(height: int, width: int) -> Peers:
    """Our own network as one writes it in a notebook."""
    import torch as library

    from realtime_skyseg.segmentation import load_model

    predict = _eager(load_model("compact"), height, width)
    frame = _frame(height, width)
    return {"our network, eager torch": lambda: predict(frame)}, {"torch": str(library.__version__)}, lambda: None


def naive(height: int, width: int) -> Peers:
    """Snap, predict, label, write, send: one after the other, as in the examples of camera libraries."""
    import cv2
    import h5py
    import zmq

    from realtime_skyseg.segmentation import load_model

    predict = _eager(load_model("compact"), height, width)
    scene = _frame(height, width)
    scenes = [np.roll(scene, 7 * shift, 1) for shift in range(8)]
    folder = tempfile.TemporaryDirectory()
    file = h5py.File(Path(folder.name) / "run.h5", "x")
    frames, masks = (
        file.create_dataset(name, (0, height, width), "u1", maxshape=(None, height, width), chunks=(1, height, width))
        for name in ("frames", "masks")
    )
    context = zmq.Context()
    socket = context.socket(zmq.PUB)
    socket.bind("tcp://127.0.0.1:0")

    def step() -> None:
        n = len(frames)
        frame = scenes[n % len(scenes)].copy()
        mask = predict(frame)
        _, _, boxes, centres = cv2.connectedComponentsWithStats((mask == 1).astype(np.uint8), connectivity=8)
        for dataset, values in ((frames, frame), (masks, mask)):
            dataset.resize(n + 1, axis=0)
            dataset[n] = values
        file.flush()
        socket.send(pickle.dumps({"frame": n, "mask": mask, "boxes": boxes, "centres": centres}))

    def end() -> None:
        socket.close(0)
        context.term()
        file.close()
        folder.cleanup()

    return {"naive loop": step}, {"h5py": h5py.__version__, "pyzmq": zmq.__version__}, end


def _eager(model: Any, height: int, width: int) -> Callable[[Any], Any]:
    """Frame -> mask, by torch in float32 without any preparation of the network."""
    import torch as library
    from torch.nn import functional

    network, shape = model.load_network(), model.shape
    padded = shape.padded((height, width))

    def predict(frame: Any) -> Any:
        low, middle, high = np.percentile(frame, [1, 50, 99])
        image = (frame.astype(np.float32) - middle) / max(high - low, 8)
        image = np.pad(image, [(0, padded[0] - height), (0, padded[1] - width)], "symmetric")
        with library.no_grad():
            logits = functional.pixel_shuffle(network(library.from_numpy(image)[None, None].float()), shape.unshuffle)
        return logits[0].argmax(0).numpy()[:height, :width].astype(np.uint8)

    return predict


def _frame(height: int, width: int) -> Any:
    """Dark discs in noise, uint8."""
    rng = np.random.default_rng(0)
    y, x = np.indices((height, width))
    image = rng.normal(128, 12, (height, width))
    image[((y % 28 - 14) ** 2 + (x % 28 - 14) ** 2) < 30] -= 40
    return np.clip(image, 0, 255).astype(np.uint8)


def main(kind: str, height: int, width: int) -> None:
    """See the module."""

    def answer(what: Any) -> None:
        print(MARK + json.dumps(what), flush=True)  # noqa: T201

    try:
        calls, versions, end = {"tensorflow": tensorflow, "torch": torch, "naive": naive}[kind](height, width)
    except ImportError as error:
        answer({"missing": str(error)})
        return
    try:
        for call in calls.values():
            call()  # the first one builds and allocates
        answer({"names": list(calls), "versions": versions})
        for line in sys.stdin:
            name, _, n = line.strip().rpartition(" ")
            took_ms = []
            for _ in range(int(n)):
                begun = time.perf_counter()
                calls[name]()
                took_ms.append((time.perf_counter() - begun) * 1e3)
            answer(took_ms)
    finally:
        end()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
