"""Previews of frames for viewers: smaller, and in 8 bits."""

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic_core import to_json

from realtime_skyseg.records import Frame, Image
from realtime_skyseg.streaming.messages import Preview


def encode_preview(frame: Frame, shown: Image, asked: Preview, run: str, msg_number: int) -> tuple[bytes, Image]:
    """The JSON of a preview message of a frame, and its pixels, which show that image of it."""
    image, low, high = eight_bits(shown, asked.side_px)
    head = {
        "htype": "preview",
        **({"of": "prepared"} if asked.prepared else {}),
        "rate_hz": asked.rate_hz,
        "side_px": asked.side_px,
        "msg_number": msg_number,
        "run": run,
        "frame": frame.index,
        "shape": image.shape,
        "type": "uint8",
        "compression": "none",
        "low": low,
        "high": high,
        "received_ns": frame.received_ns,
    }
    return to_json(head), image


def eight_bits(image: Image, side_px: int) -> tuple[NDArray[np.uint8], float, float]:
    """An image made smaller, and in 8 bits: the grey levels that 0 and 255 stand for are told, too.

    They are the 0.5th and 99.5th percentile, so that a low contrast can be seen and a bright pixel hides nothing.
    Pixels that are not finite become 0.
    """
    height, width = image.shape
    share = min(1.0, side_px / max(height, width))
    size = (max(1, round(width * share)), max(1, round(height * share)))
    small = np.asarray(image, np.float32)
    if share < 1:
        small = np.asarray(cv2.resize(small, size, interpolation=cv2.INTER_AREA), np.float32)
    sample = small[:: max(1, size[1] // 128), :: max(1, size[0] // 128)]
    sample = sample[np.isfinite(sample)]
    low, high = (float(level) for level in np.percentile(sample, (0.5, 99.5))) if sample.size else (0.0, 0.0)
    scaled = (small - np.float32(low)) * np.float32(255 / ((high - low) or 1.0))
    return np.clip(np.nan_to_num(scaled, posinf=0, neginf=0), 0, 255).astype(np.uint8), low, high
