"""Elements that a film is cut into: discs, triangles, wires, Hall bars."""

import cv2
import numpy as np
from numpy.typing import NDArray

from realtime_skyseg.errors import SettingsError
from realtime_skyseg_simulator.samples import Pattern

#: What counts as the edge of an element reaches this far outside it, and one pixel inside.
EDGE_PX = 3


def element_of(
    pattern: Pattern, shape: tuple[int, int], view_shape: tuple[float, float], size: float
) -> NDArray[np.bool_] | None:
    """Where the magnetic material is, (H, W) bool; None for the pattern `none`: everywhere.

    Args:
        pattern: what is cut out of the film, around the centre of the sample.
        shape: (H, W) of the sample in px.
        view_shape: (H, W) of what the camera will see.
        size: extent as a share of the view. Discs and triangles fit into its shorter side; wires and Hall bars leave
            the sample to the left and right, as in real images, and `size` is the width of the wire, or the length of
            the Hall bar's arms.

    Raises:
        SettingsError: the element is narrower than 8 px.
    """
    if pattern == "none":
        return None
    across = size * min(view_shape)
    narrowest = across / 4 if pattern == "hall_bar" else across
    if narrowest < 8:
        raise SettingsError(f"pattern_size: {size:g} makes a {pattern} {narrowest:.1f} px wide; allowed: 8 px or more")
    y, x = (np.arange(n, dtype=np.float64) - (n - 1) / 2 for n in shape)
    down, right = y[:, None], x[None, :]
    if pattern == "disc":
        return np.asarray(np.hypot(down, right) <= across / 2)
    if pattern == "triangle":
        # Equilateral, as high as `across`, its base below.
        depth = down + across / 2
        return np.asarray((depth >= 0) & (depth <= across) & (np.abs(right) <= depth / np.sqrt(3)))
    if pattern == "wire":
        return np.asarray((np.abs(down) <= across / 2) & (np.abs(right) <= shape[1]))
    # A Hall bar: a wire of half the width, and two pairs of arms as wide as a quarter.
    bar = np.abs(down) <= across / 4
    arms = (np.abs(np.abs(right) - view_shape[1] * size / 4) <= across / 8) & (np.abs(down) <= across / 2)
    return np.asarray(bar | arms)


def edge_of(element: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The rim of an element, (H, W) bool: as labels of real images draw it, mostly outside of the material."""
    material = element.astype(np.uint8)
    square = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * EDGE_PX + 1, 2 * EDGE_PX + 1))
    outer = cv2.dilate(material, square, borderType=cv2.BORDER_REPLICATE)
    inner = cv2.erode(material, np.ones((3, 3), np.uint8), borderType=cv2.BORDER_REPLICATE)
    return np.asarray(outer > inner)
