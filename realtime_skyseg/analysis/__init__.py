"""One way for a frame: prepared image, network, objects, analysers."""

from realtime_skyseg.analysis.path import FramePath
from realtime_skyseg.analysis.segmenter import Segmenter

__all__ = ["FramePath", "Segmenter"]
