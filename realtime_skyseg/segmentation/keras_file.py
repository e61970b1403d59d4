"""Guests: models of the "Skyrmion U-Net", saved by Keras, turned into the product's format without TensorFlow.

A .keras file is a zip of `config.json` (layers and how they are connected) and `model.weights.h5`.
"""

import io
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from realtime_skyseg import json_text
from realtime_skyseg.errors import ModelError, SettingsError
from realtime_skyseg.records import Class
from realtime_skyseg.segmentation.model import save_model
from realtime_skyseg.segmentation.shape import NetworkShape

if TYPE_CHECKING:
    import torch

    from realtime_skyseg.segmentation.network import UNet

#: Layers that do nothing when a model is used.
_IDLE = {"InputLayer", "Cast", "Dropout", "SpatialDropout2D", "GaussianNoise"}

_ACTIVATIONS = {"mishlayer": "mish", "mish": "mish", "relu": "relu"}


@dataclass(frozen=True, slots=True)
class _Layer:
    kind: str
    name: str
    config: dict[str, Any]
    inputs: list[str]
    weights: list[NDArray[np.float32]]


def import_keras(path: Path, classes: Sequence[str], out: Path) -> Path:
    """Turn a .keras file into a model file of the product.

    The graph must be that of the "Skyrmion U-Net": per level twice convolution, batch normalisation and Mish (or
    ReLU), max-pooling, transposed convolution, concatenation, and a 1x1 convolution at the end. Its input is
    value / 255. Its classes are put in the product's order, so that its masks mean what all others mean.

    Args:
        path: the .keras file.
        classes: what the model's outputs mean, in its order, for example ("skyrmion", "defect", "background").
        out: the .safetensors file to write.

    Returns:
        `out`.

    Raises:
        SettingsError: `path` or `classes` is wrong, or `out` cannot be written.
        ModelError: the file is not of that kind.
    """
    layers = _read(path)
    shape = _shape(layers, path)
    order = _order(classes, shape.classes, path)
    network = _network(layers, shape, order, path)
    save_model(network, out, {"imported_from": path.name, "classes": list(classes)}, scaling="range")
    return out


def _read(path: Path) -> list[_Layer]:
    if not path.is_file():
        raise SettingsError(f"model file '{path}' does not exist")
    try:
        with zipfile.ZipFile(path) as archive:
            config = json_text.load(archive.read("config.json"))["config"]["layers"]
            weights = io.BytesIO(archive.read("model.weights.h5"))
        with h5py.File(weights, "r") as file:
            return list(_layers(config, file))
    except (zipfile.BadZipFile, KeyError, ValueError, OSError, TypeError) as error:
        raise ModelError(f"model file '{path}' cannot be read as a .keras file (a zip by Keras 3): {error}") from error


def _layers(config: list[dict[str, Any]], file: h5py.File) -> Iterator[_Layer]:
    """Layers in the order of the graph. Weights are filed by kind and number: conv2d, conv2d_1, ..."""
    groups = file["layers"] if "layers" in file else file["_layer_checkpoint_dependencies"]
    seen: Counter[str] = Counter()
    for layer in config:
        kind = layer["class_name"]
        group = _snake_case(kind) + (f"_{seen[kind]}" if seen[kind] else "")
        seen[kind] += 1
        stored = groups[group]["vars"] if group in groups and "vars" in groups[group] else {}
        weights = [np.asarray(stored[str(index)], np.float32) for index in range(len(stored))]
        if kind not in _IDLE:
            yield _Layer(kind, layer["config"].get("name", group), layer["config"], _inputs(layer), weights)


def _inputs(layer: dict[str, Any]) -> list[str]:
    """Names of the layers that feed a layer, in order."""
    found = []
    waiting = [layer.get("inbound_nodes", [])]
    while waiting:
        node = waiting.pop(0)
        if isinstance(node, dict):
            if "keras_history" in node:
                found.append(str(node["keras_history"][0]))
            else:
                waiting = [*node.values(), *waiting]
        elif isinstance(node, list):
            if len(node) >= 3 and isinstance(node[0], str) and isinstance(node[1], int):  # Keras 2
                found.append(node[0])
            else:
                waiting = [*node, *waiting]
    return found


def _snake_case(name: str) -> str:
    """As Keras names its groups: Conv2DTranspose -> conv2d_transpose."""
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def _shape(layers: list[_Layer], path: Path) -> NetworkShape:
    """The member of the family that has these layers."""
    convolutions = [layer for layer in layers if layer.kind == "Conv2D"]
    enlarging = [layer for layer in layers if layer.kind == "Conv2DTranspose"]
    depth = len(enlarging)
    if len(convolutions) < 3 or any(not layer.weights for layer in [*convolutions, *enlarging]):
        raise ModelError(f"model file '{path}' has {len(convolutions)} convolutions with weights; allowed: a U-Net")
    filters = int(convolutions[0].config["filters"])
    activation = next((_activation(layer) for layer in layers if _activation(layer)), "relu")
    shape = NetworkShape(
        unshuffle=1,
        filters=filters,
        depth=depth,
        classes=int(convolutions[-1].config["filters"]),
        kernel=int(convolutions[0].config["kernel_size"][0]),
        activation="mish" if activation == "mish" else "relu",
        up_multiplier=int(enlarging[-1].config["filters"]) // filters if enlarging else 1,
    )
    expected = _expected(shape)
    found = [_described(layer) for layer in layers]
    for index, (wanted, got) in enumerate(zip(expected, found, strict=False)):
        if wanted != got:
            raise ModelError(
                f"model file '{path}': layer {layers[index].name} is {got}, where a Skyrmion U-Net of depth {depth} "
                f"has {wanted}"
            )
    if len(expected) != len(found):
        raise ModelError(
            f"model file '{path}' has {len(found)} layers; a Skyrmion U-Net of depth {depth} has {len(expected)}"
        )
    return shape


def _expected(shape: NetworkShape) -> list[str]:
    def block(filters: int) -> list[str]:
        return [f"Conv2D {filters} x {shape.kernel}", "BatchNormalization", shape.activation] * 2

    layers = []
    for level in range(shape.depth):
        layers += [*block(shape.filters << level), "MaxPooling2D"]
    layers += block(shape.filters << shape.depth)
    for level in reversed(range(shape.depth)):
        filters = shape.filters << level
        layers += [f"Conv2DTranspose {filters * shape.up_multiplier} x {shape.kernel}", "Concatenate", *block(filters)]
    return [*layers, f"Conv2D {shape.classes} x 1"]


def _described(layer: _Layer) -> str:
    if layer.kind in ("Conv2D", "Conv2DTranspose"):
        return f"{layer.kind} {layer.config['filters']} x {layer.config['kernel_size'][0]}{_unusual(layer)}"
    return _activation(layer) or layer.kind


def _unusual(layer: _Layer) -> str:
    """What a convolution does beyond what its number of filters says; it would be lost without a word."""
    stride = 1 if layer.kind == "Conv2D" else 2
    usual = {
        "strides": [stride, stride],
        "padding": "same",
        "dilation_rate": [1, 1],
        "groups": 1,
        "activation": "linear",
    }
    # The decision is the same before and after a softmax.
    last = layer.config["kernel_size"][0] == 1 and layer.config.get("activation") == "softmax"
    return "".join(
        f", {key} {layer.config[key]}"
        for key, value in usual.items()
        if layer.config.get(key, value) != value and not (last and key == "activation")
    )


def _activation(layer: _Layer) -> str | None:
    name = layer.config.get("activation", "") if layer.kind == "Activation" else layer.kind
    return _ACTIVATIONS.get(str(name).lower())


def _order(classes: Sequence[str], n: int, path: Path) -> list[int]:
    """For each of the product's classes, its place among the model's outputs."""
    allowed = [value.name.lower() for value in list(Class)[:n]]
    if sorted(classes) != sorted(allowed):
        raise SettingsError(
            f"classes: {','.join(classes)} does not fit the {n} outputs of '{path}'; "
            f"allowed: {', '.join(allowed)}, in the model's order"
        )
    return [list(classes).index(name) for name in allowed]


def _network(layers: list[_Layer], shape: NetworkShape, order: list[int], path: Path) -> "UNet":
    import torch

    from realtime_skyseg.segmentation.network import UNet

    network: Any = UNet(shape).eval()
    kept = [layer for layer in layers if layer.weights or layer.kind == "Concatenate"]
    blocks = [*network.down, network.lowest]
    try:
        with torch.no_grad():
            rest = iter(kept)
            for block in blocks:
                _fill_block(block, rest)
            for enlarge, block in zip(network.reduce, network.up, strict=True):
                transposed, concatenate = next(rest), next(rest)
                weight, bias = transposed.weights
                _copy(enlarge.conv.weight, weight.transpose(3, 2, 0, 1))
                _copy(enlarge.conv.bias, bias)
                enlarged_first = concatenate.inputs[:1] == [transposed.name]
                _fill_block(block, rest, None if enlarged_first else weight.shape[2])
            weight, bias = next(rest).weights
            _copy(network.head.weight, weight.transpose(3, 2, 0, 1)[order])
            _copy(network.head.bias, bias[order])
    except (ValueError, RuntimeError, StopIteration) as error:
        raise ModelError(f"model file '{path}': its weights do not fit its layers ({error})") from error
    filled: UNet = network
    return filled


def _fill_block(block: Any, rest: Iterator[_Layer], enlarged: int | None = None) -> None:
    """Fill a block. `enlarged`: so many channels, the transposed convolution's, come last in Keras, but first here."""
    from torch import nn

    convolutions: list[Any] = [layer for layer in block if isinstance(layer, nn.Conv2d)]
    normalisations: list[Any] = [layer for layer in block if isinstance(layer, nn.BatchNorm2d)]
    for convolution, normalisation in zip(convolutions, normalisations, strict=True):
        source, norm = next(rest), next(rest)
        weight = source.weights[0].transpose(3, 2, 0, 1)
        if enlarged is not None:
            weight = np.concatenate([weight[:, -enlarged:], weight[:, :-enlarged]], axis=1)
            enlarged = None
        _copy(convolution.weight, weight)
        # The product's convolutions have no bias: the normalisation after it takes it over, and Keras' larger epsilon.
        bias = source.weights[1] if len(source.weights) > 1 else np.float32(0)
        gamma, beta, mean, variance = norm.weights
        _copy(normalisation.weight, gamma)
        _copy(normalisation.bias, beta)
        _copy(normalisation.running_mean, mean - bias)
        _copy(normalisation.running_var, variance + np.float32(norm.config["epsilon"] - normalisation.eps))


def _copy(target: "torch.Tensor", value: NDArray[np.float32]) -> None:
    import torch

    if tuple(target.shape) != value.shape:
        raise ValueError(f"shape {value.shape} instead of {tuple(target.shape)}")
    target.copy_(torch.from_numpy(np.ascontiguousarray(value)))
