"""Models on disk: one safetensors file holds the weights, the network's shape and where it came from."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from safetensors import SafetensorError, safe_open

from realtime_skyseg import json_text
from realtime_skyseg.errors import ModelError, SettingsError
from realtime_skyseg.segmentation.scaling import Scaling
from realtime_skyseg.segmentation.shape import NetworkShape

if TYPE_CHECKING:
    from realtime_skyseg.segmentation.network import UNet

FORMAT = "skyseg-model-1"
_SHIPPED = Path(__file__).parent.parent / "models"

#: No network has more levels, or a larger number of anything else.
_MOST_LEVELS, _LARGEST = 8, 1024


#: What skyrmions a network knows: dark ones only, or dark and bright ones.
TrainedPolarity = Literal["any", "dark"]


@dataclass(frozen=True, slots=True)
class Model:
    """A model file that was found and is of the right format; weights are read when an engine needs them."""

    name: str
    path: Path
    sha256: str  # of the whole file, as it was before it was calibrated
    network: dict[str, Any]  # fields of `NetworkShape`
    scaling: Scaling  # what the network was trained on
    polarity: TrainedPolarity  # the same
    training: dict[str, Any]  # data, split, seed and figures, as written by training
    trust: dict[str, Any] | None = (
        None  # how far its results can be believed, as written by `save_trust`; None: unknown
    )

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
    whole = path.read_bytes()
    sha256, trust = hashlib.sha256(whole).hexdigest(), None
    if "trust" in metadata:
        trust = json_text.load(metadata["trust"])
        of = trust.get("of", {}) if isinstance(trust, dict) else {}
        # Weights that were changed since are other weights, of which nothing is known.
        known = of.get("content_sha256") == _content(whole)
        sha256, trust = (of["file_sha256"], trust) if known else (sha256, None)
    return Model(
        name=path.stem,
        path=path,
        sha256=sha256,
        network=network,
        scaling=metadata.get("scaling", "percentiles"),
        polarity=metadata.get("polarity", "any"),  # models of version 0.1 do not tell
        training=training,
        trust=trust,
    )


def _tensors(whole: bytes) -> bytes:
    """The part of a safetensors file behind its header."""
    return whole[8 + int.from_bytes(whole[:8], "little") :]


def _content(whole: bytes) -> str:
    """Of the tensors, and of all that is told of them but for `trust`."""
    tensors = _tensors(whole)
    header = json.loads(whole[8 : len(whole) - len(tensors)])
    header["__metadata__"].pop("trust", None)
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode() + tensors).hexdigest()


def save_trust(model: Model, trust: dict[str, Any], path: Path) -> None:
    """Write a model file that is the same but for what is known of how far its results can be believed.

    The model's `sha256`, by which run files and engines know it, stays what it is.

    Raises:
        SettingsError: the file cannot be written.
    """
    whole = model.path.read_bytes()
    tensors = _tensors(whole)
    header = json.loads(whole[8 : len(whole) - len(tensors)])
    of = {"file_sha256": model.sha256, "content_sha256": _content(whole)}
    header["__metadata__"]["trust"] = json.dumps({"of": of, **trust})
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    _write(path, len(head).to_bytes(8, "little") + head + tensors)


def save_model(
    network: "UNet",
    path: Path,
    training: dict[str, Any],
    scaling: Scaling = "percentiles",
    polarity: TrainedPolarity = "any",
) -> None:
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
        "polarity": polarity,
        "training": json.dumps(training),
    }
    _write(path, save(tensors, metadata))


def _write(path: Path, whole: bytes) -> None:
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(whole)
        partial.replace(path)
    except OSError as error:
        raise SettingsError(f"model file '{path}' cannot be written: {error.strerror}") from error
