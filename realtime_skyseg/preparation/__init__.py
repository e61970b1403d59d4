"""From a microscope's raw image, which shows almost nothing, to the difference image that is segmented.

crop -> flat field -> drift against the background -> minus the background, shifted onto the frame -> mean over frames

Masks stay aligned with the raw frame: what has little noise, the background, is shifted and interpolated, never the
frame. The frame is first brought to the background's brightness, so that a flickering lamp leaves no structure behind.
"""

from realtime_skyseg.preparation.background import load_image
from realtime_skyseg.preparation.drift import Drift, reach
from realtime_skyseg.preparation.image import crop
from realtime_skyseg.preparation.preparation import Preparation, check_model

__all__ = [
    "Drift",
    "Preparation",
    "check_model",
    "crop",
    "load_image",
    "reach",
]
