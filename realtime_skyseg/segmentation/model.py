"""Models on disk: one safetensors file holds the weights, the network's shape and where it came from."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from safetensors import SafetensorError, safe_open

from realtime_skyseg import json_text
from realtime_skyseg.errors import ModelError, SettingsError
from realtime_skyseg.records import Class
from realtime_skyseg.segmentation.scaling import Scaling

if TYPE_CHECKING:
    from realtime_skyseg.segmentation.network import UNet

FORMAT = "skyseg-model-1"
_SHIPPED = Path(__file__).parent.parent / "models"

#: No network has more levels, or a larger number of anything else.
_MOST_LEVELS, _LARGEST = 8, 1024


@dataclass(frozen=True, slots=True)
class NetworkShape:
    """What fixes a network's layers.

    U-Net after Ronneberger et al., MICCAI 2015; the stem after Shi et al., CVPR 2016 (sub-pixel convolution); skips
    are added, not concatenated, after Chaurasia and Culurciello, VCIP 2017, which saves a quarter of the work; split
    convolutions after Romera et al., IEEE T-ITS 19, 263 (2018), need two thirds of it, and decide once more between
    their halves. With `up_multiplier` skips are concatenated and upsampling is a transposed convolution, as in the
    "Skyrmion U-Net".
    """

    unshuffle: int = 2  # the network works on 1/unshuffle of the image's grid
    filters: int = 16  # channels of the first level
    depth: int = 3  # levels above the lowest
    doubled_from: int = 1  # the first level, counted from 0, that has twice the channels of the one above; so on below
    split_levels: int = 0  # levels, from the first, with 1x3 and 3x1 convolutions for 3x3; never the very first one
    classes: int = len(Class)  # the first ones of `Class`
    kernel: int = 3  # side of the convolutions
    activation: Literal["relu", "mish"] = "relu"
    up_multiplier: int = 0  # 0: nearest neighbours, added; else transposed convolution to so many times the channels

    @property
    def margin(self) -> int:
        """How far (px) the network looks around a pixel, rounded up to `multiple`."""
        reach = 0
        for level in range(self.depth + 1):
            convolutions = 2 if level == self.depth else 4
            # Pooling and upsampling look at most one pixel of their level further.
            reach += (convolutions * (self.kernel // 2) + (level > 0) * max(1, self.kernel // 2)) * 2**level
        return -(-reach * self.unshuffle // self.multiple) * self.multiple

    def channels(self, level: int) -> int:
        """Of a level, counted from 0."""
        return self.filters << max(0, level - self.doubled_from + 1)

    @property
    def bytes_per_pixel(self) -> float:
        """Memory of the widest layer per pixel of the image, in float32."""
        return 4 * self.filters * (1 + self.up_multiplier) / self.unshuffle**2

    @property
    def multiple(self) -> int:
        """Both sides of the input must be a multiple of this many px."""
        return int(self.unshuffle * 2**self.depth)

    def padded(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """The smallest (height, width) not below `shape` that the network takes."""
        height, width = (-(-side // self.multiple) * self.multiple for side in shape)
        return height, width

    def as_dict(self) -> dict[str, Any]:
        """As stored in a model file."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Model:
    """A model file that was found and is of the right format; weights are read when an engine needs them."""

    name: str
    path: Path
    sha256: str  # of the whole file
    network: dict[str, Any]  # fields of `NetworkShape`
    scaling: Scaling  # what the network was trained on
    training: dict[str, Any]  # data, split, seed and figures, as written by training

    @property
    def quantised(self) -> Path:
        """Where its graph in 8 bits is, if it has one: an OpenVINO file, with its weights in a .bin beside it."""
        return self.path.with_suffix(".int8.xml")

    @property
    def shape(self) -> NetworkShape:
        """What the network is built from."""
        return NetworkShape(**self.network)

    def load_network(self) -> "UNet":
        """Build the torch network in float32 and evaluation mode."""
        import torch
        from safetensors.torch import load_file

        from realtime_skyseg.segmentation.network import UNet

        with torch.device("meta"):  # without weights: a file may ask for more than there is memory
            network = UNet(self.shape)
        try:
            network.load_state_dict(load_file(self.path), assign=True)
        except RuntimeError as error:
            raise ModelError(f"model {self.path}: its weights do not fit the network {self.network}") from error
        return network.eval()


def shipped_models() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(path.stem for path in _SHIPPED.glob("*.safetensors"))


def load_model(name: str) -> Model:
    """Find a shipped model by name ("compact") or any model by path.

    Raises:
        SettingsError: there is no such model.
        ModelError: the file is not a model of this product.
    """
    path = _SHIPPED / f"{name}.safetensors" if name in shipped_models() else Path(name)
    if not path.is_file():
        raise SettingsError(
            f"analysis.model: '{name}' is neither a shipped model nor a file; "
            f"allowed: {', '.join(shipped_models())} or a .safetensors path"
        )
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ModelError(f"model {path} cannot be read as safetensors: {error}") from error
    if metadata.get("format") != FORMAT:
        raise ModelError(f"model {path} has format '{metadata.get('format')}'; allowed: '{FORMAT}'")
    try:
        network, training = json_text.load(metadata["network"]), json_text.load(metadata.get("training", "{}"))
        sides = [value for value in asdict(NetworkShape(**network)).values() if not isinstance(value, str)]
        if (
            not all(isinstance(value, int) and 0 <= value <= _LARGEST for value in sides)
            or network.get("depth", 0) > _MOST_LEVELS
        ):
            raise ValueError(f"{network}; allowed: whole numbers from 0 to {_LARGEST}, depth up to {_MOST_LEVELS}")
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"model {path} does not say what network it is: {str(error)[:200]}") from error
    return Model(
        name=path.stem,
        path=path,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        network=network,
        scaling=metadata.get("scaling", "percentiles"),
        training=training,
    )


def save_model(network: "UNet", path: Path, training: dict[str, Any], scaling: Scaling = "percentiles") -> None:
    """Write a network's weights and shape to `path`.

    Raises:
        SettingsError: the file cannot be written.
    """
    from safetensors.torch import save

    tensors = {key: value.contiguous() for key, value in network.state_dict().items()}
    metadata = {
        "format": FORMAT,
        "network": json.dumps(network.shape.as_dict()),
        "scaling": scaling,
        "training": json.dumps(training),
    }
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(save(tensors, metadata))
        partial.replace(path)
    except OSError as error:
        raise SettingsError(f"model file '{path}' cannot be written: {error.strerror}") from error
