"""Binarisation by a threshold, as a network with weights set by hand: every engine runs it like any other model."""

from pathlib import Path
from typing import Any

import numpy as np

from realtime_skyseg.errors import SettingsError
from realtime_skyseg.records import Class
from realtime_skyseg.segmentation.model import save_model
from realtime_skyseg.segmentation.shape import NetworkShape


def save_threshold(out: Path, level: float = 0.25, blur_px: float = 1.5, bright: bool = False) -> Path:
    """Write a model that blurs an image and calls skyrmion what lies further than `level` from its median.

    Args:
        out: the .safetensors file to write.
        level: in units of the spread between the 1st and 99th percentile; above 0.
        blur_px: sigma of the Gaussian blur before, 0 to 5 px.
        bright: skyrmions are brighter than the median, not darker.

    Raises:
        SettingsError: a value is out of range, or `out` cannot be written.
    """
    if not 0 < level < 10:
        raise SettingsError(f"level: {level} is not allowed: above 0, below 10")
    if not 0 <= blur_px <= 5:
        raise SettingsError(f"blur_px: {blur_px} is not allowed: 0 to 5")
    import torch

    from realtime_skyseg.segmentation.network import UNet

    reach = max(1, int(np.ceil(3 * blur_px)))
    shape = NetworkShape(unshuffle=1, filters=1, depth=0, classes=Class.SKYRMION + 1, kernel=2 * reach + 1)
    network: Any = UNet(shape)
    blur, _, _, copy, _, _ = network.lowest
    x = np.arange(-reach, reach + 1)
    profile = np.exp(-0.5 * (x / blur_px) ** 2) if blur_px else (x == 0).astype(float)
    profile /= profile.sum()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        for normalisation in (network.lowest[1], network.lowest[4]):
            normalisation.running_var.fill_(1 - normalisation.eps)
            normalisation.weight.fill_(1)
        blur.weight[0, 0] = torch.from_numpy(np.outer(profile, profile) * (1 if bright else -1))
        copy.weight[0, 0, reach, reach] = 1
        network.head.weight[Class.SKYRMION] = 1
        network.head.bias[Class.SKYRMION] = -level
    save_model(network, out, {"threshold": {"level": level, "blur_px": blur_px, "bright": bright}})
    return out
