"""From an image to a mask: scaling, the network, and the engines that run it."""

from realtime_skyseg.segmentation.choice import open_engine
from realtime_skyseg.segmentation.engine import Engine
from realtime_skyseg.segmentation.model import Model, load_model, shipped_models
from realtime_skyseg.segmentation.scaling import scale

__all__ = ["Engine", "Model", "load_model", "open_engine", "scale", "shipped_models"]
