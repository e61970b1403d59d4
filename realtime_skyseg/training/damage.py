"""What can be wrong with an image: each kind made from a good one, to learn and to test what is out of range.

`DAMAGE` has by name the reason that is to be given, and a function (image as float in grey levels of 8 bits, random
numbers, severity) -> image; a severity of 1 is plain to see, of 0.5 mild.
"""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Grey = Any  # (height, width), floats: OpenCV's stubs know no more than that
Random = np.random.Generator

#: Reasons, in words that follow "out of range: ".
REASONS = {
    "focus": "out of focus, or moved during the exposure",
    "noise": "too much noise for the contrast",
    "hot pixels": "hot or dead pixels",
    "gradient": "uneven light",
    "contrast": "too few grey levels",
    "overexposed": "overexposed, or black is cut off",
    "scale": "objects of another size than the network knows",
    "drift": "the sample drifts against the background, or two images lie over each other",
    "line noise": "lines: noise of rows or columns, or mains hum",
    "rings": "interference rings",
    "maze": "a maze, in which there is nothing to count",
    "torn": "torn or incomplete frame",
    "dirt": "dirt or scratches",
    "not Kerr": "not a Kerr image, or something drawn over it",
}


def _noise(shape: tuple[int, ...], random: Random, sigma: float = 0) -> Grey:
    grain: Any = random.standard_normal(shape, np.float32)
    if sigma:
        grain = cv2.GaussianBlur(grain, (0, 0), sigma)
    return np.asarray(grain / grain.std(), np.float32)


def _spread(image: Grey) -> float:
    low, high = np.percentile(image[::4, ::4], (1, 99))
    return max(float(high - low), 1.0)


def _axes(image: Grey) -> tuple[Grey, Grey]:
    """From -1 to 1 along columns, along rows."""
    x = np.linspace(-1, 1, image.shape[1], dtype=np.float32)[None]
    y = np.linspace(-1, 1, image.shape[0], dtype=np.float32)[:, None]
    return x, y


def _turned(image: Grey, random: Random) -> Grey:
    x, y = _axes(image)
    angle = random.uniform(0, 2 * np.pi)
    return np.asarray(np.cos(angle) * x + np.sin(angle) * y, np.float32)


def defocus(image: Grey, random: Random, severity: float) -> Grey:
    """Disc of confusion; the camera's noise comes after it."""
    grain = _grain(image)
    radius = (3 + 9 * random.random()) * severity + 1.5
    side = 2 * int(radius + 1) + 1
    y, x = np.mgrid[:side, :side] - side // 2
    disc = np.clip(radius + 0.5 - np.hypot(x, y), 0, 1).astype(np.float32)
    return np.asarray(cv2.filter2D(image, -1, disc / disc.sum()), np.float32) + grain * _noise(image.shape, random)


def moved(image: Grey, random: Random, severity: float) -> Grey:
    """Moved along a line during the exposure."""
    grain = _grain(image)
    n = int(6 + severity * random.uniform(14, 30))
    angle = random.uniform(0, np.pi)
    kernel = np.zeros((n | 1, n | 1), np.float32)
    middle = np.array([n // 2, n // 2])
    way = n / 2 * np.array([np.cos(angle), np.sin(angle)])
    begin, end = (tuple(int(v) for v in np.rint(middle + sign * way)) for sign in (-1, 1))
    cv2.line(kernel, begin, end, 1.0)
    return np.asarray(cv2.filter2D(image, -1, kernel / kernel.sum()), np.float32) + grain * _noise(image.shape, random)


def _grain(image: Grey) -> float:
    diagonal = image[:-1, :-1] - image[:-1, 1:] - image[1:, :-1] + image[1:, 1:]
    return float(np.median(np.abs(diagonal)) / 0.6745 / 2)


def white_noise(image: Grey, random: Random, severity: float) -> Grey:
    """More noise than contrast."""
    return image + _spread(image) * (0.3 + severity * random.uniform(0.5, 1.0)) * _noise(image.shape, random)


def coarse_noise(image: Grey, random: Random, severity: float) -> Grey:
    """Noise as large as skyrmions."""
    sigma = random.uniform(1.5, 4)
    return image + _spread(image) * (0.15 + severity * random.uniform(0.25, 0.6)) * _noise(image.shape, random, sigma)


def smooth_noise_only(image: Grey, random: Random, severity: float) -> Grey:
    """Nothing but noise as large as skyrmions."""
    kept = 0.35 * (1 - severity)
    blotches = _noise(image.shape, random, random.uniform(2.5, 6))
    return 128 + (image - 128) * kept + 25 * blotches + 4 * _noise(image.shape, random)


def hot_pixels(image: Grey, random: Random, severity: float) -> Grey:
    """Thousands of pixels are white."""
    image = image.copy()
    n = int(severity * random.uniform(3000, 9000) * image.size / 344_064)
    image.ravel()[random.integers(0, image.size, n)] = 255
    return image


def salt_and_pepper(image: Grey, random: Random, severity: float) -> Grey:
    """Pixels are white or black."""
    image = image.copy()
    n = int(severity * random.uniform(0.02, 0.1) * image.size)
    image.ravel()[random.integers(0, image.size, n)] = random.choice([0.0, 255.0], n)
    return image


def gradient(image: Grey, random: Random, severity: float) -> Grey:
    """The lamp is on one side."""
    return image + _spread(image) * severity * random.uniform(1.5, 4) * _turned(image, random)


def vignette(image: Grey, random: Random, severity: float) -> Grey:
    """The corners are dark."""
    x, y = _axes(image)
    return image - _spread(image) * severity * random.uniform(1.5, 4) * np.asarray(x * x + y * y, np.float32)


def few_levels(image: Grey, random: Random, severity: float) -> Grey:
    """The camera's offset and gain leave few grey levels."""
    levels = 2 + int(random.integers(0, 3) + 4 * (1 - severity))
    step = _spread(image) / levels
    return np.asarray(128 + np.rint((image - np.median(image)) / step + random.uniform(-0.5, 0.5)), np.float32)


def overexposed(image: Grey, random: Random, severity: float) -> Grey:
    """White is cut off."""
    low, high = np.percentile(image, (50 - 35 * severity, 85 - 50 * severity))
    at = random.uniform(low, high)
    return np.asarray(np.minimum((image - at) * 3 + 255, 255), np.float32)


def underexposed(image: Grey, random: Random, severity: float) -> Grey:
    """Black is cut off."""
    low, high = np.percentile(image, (15 + 45 * severity, 60 + 25 * severity))
    at = random.uniform(low, high)
    return np.asarray(np.maximum((image - at) * 3, 0), np.float32)


def _tiled(image: Grey, size: tuple[int, int]) -> Grey:
    """Cut or mirrored to (height, width)."""
    down, right = (max(0, want - have) for want, have in zip(size, image.shape, strict=True))
    wide = np.pad(image, ((0, down), (0, right)), "symmetric")
    return np.ascontiguousarray(wide[: size[0], : size[1]])


def smaller(image: Grey, random: Random, severity: float) -> Grey:
    """Another objective: objects of a few px."""
    factor = random.uniform(0.2, 0.35) if severity > 0.75 else random.uniform(0.4, 0.55)
    small: Any = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
    return _tiled(np.asarray(small, np.float32), image.shape) + _grain(image) * 0.7 * _noise(image.shape, random)


def larger(image: Grey, random: Random, severity: float) -> Grey:
    """Another objective: objects of a hundred px, blurred as magnified."""
    factor = random.uniform(3.5, 5) if severity > 0.75 else random.uniform(2.2, 2.8)
    height, width = (int(side / factor) for side in image.shape)
    top, left = random.integers(0, image.shape[0] - height), random.integers(0, image.shape[1] - width)
    part: Any = cv2.resize(
        image[top : top + height, left : left + width], image.shape[::-1], interpolation=cv2.INTER_CUBIC
    )
    return np.asarray(part, np.float32) + 0.5 * _grain(image) * _noise(image.shape, random)


def dipoles(image: Grey, random: Random, severity: float) -> Grey:
    """The background was taken of the same domains, which have moved since: dark and bright side by side."""
    shift = int(2 + severity * random.uniform(3, 8))
    down, right = (int(v) for v in np.rint(shift * np.array(_direction(random))))
    return 128 + (image - np.roll(image, (down, right), (0, 1))) * random.uniform(0.8, 1)


def twice(image: Grey, random: Random, severity: float) -> Grey:
    """Two exposures over each other."""
    shift = 8 + 12 * random.random()
    down, right = (int(v) for v in np.rint(shift * np.array(_direction(random))))
    share = 0.25 + 0.25 * severity
    return np.asarray((1 - share) * image + share * np.roll(image, (down, right), (0, 1)), np.float32)


def _direction(random: Random) -> tuple[float, float]:
    angle = random.uniform(0, 2 * np.pi)
    return float(np.sin(angle)), float(np.cos(angle))


def rows_noise(image: Grey, random: Random, severity: float) -> Grey:
    """Each row has its own offset."""
    amount = _spread(image) * (0.1 + severity * random.uniform(0.15, 0.4))
    return image + amount * random.standard_normal((image.shape[0], 1), np.float32)


def columns_noise(image: Grey, random: Random, severity: float) -> Grey:
    """Each column has its own offset."""
    amount = _spread(image) * (0.1 + severity * random.uniform(0.15, 0.4))
    return image + amount * random.standard_normal((1, image.shape[1]), np.float32)


def hum(image: Grey, random: Random, severity: float) -> Grey:
    """Mains hum: waves of brightness from row to row."""
    x, y = (np.arange(n, dtype=np.float32) for n in image.shape[::-1])
    phase = 2 * np.pi * (y[:, None] / random.uniform(5, 25) + x[None] * random.uniform(0, 0.02))
    return image + _spread(image) * (0.1 + severity * random.uniform(0.2, 0.5)) * np.sin(phase).astype(np.float32)


def rings(image: Grey, random: Random, severity: float) -> Grey:
    """Interference about dust on a lens: more of them than one centre explains."""
    height, width = image.shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    total = np.zeros_like(image)
    for _ in range(random.integers(2, 5)):
        radius = np.hypot(x - random.uniform(0, width), y - random.uniform(0, height))
        period = random.uniform(14, 30)
        total += np.cos(2 * np.pi * radius / period) * np.exp(-radius / random.uniform(80, 200))
    return image + _spread(image) * severity * random.uniform(0.5, 1.2) * total


def maze(image: Grey, random: Random, severity: float) -> Grey:
    """A labyrinth of as much up as down, all over."""
    period = random.uniform(9, 22)
    grain = _noise(image.shape, random)
    band: Any = cv2.GaussianBlur(grain, (0, 0), period / 5.5) - cv2.GaussianBlur(grain, (0, 0), period / 3.5)
    labyrinth = np.tanh(band / band.std() * 3)
    kept = 0.5 * (1 - severity)
    noise = random.uniform(6, 14) * _noise(image.shape, random)
    return np.asarray(128 + kept * (image - 128) + 18 * cv2.GaussianBlur(labyrinth, (0, 0), 1.2) + noise, np.float32)


def torn(image: Grey, random: Random, severity: float) -> Grey:
    """Part of the frame is of another one, moved and brighter."""
    image = image.copy()
    row = int(image.shape[0] * random.uniform(0.2, 0.8))
    step = _spread(image) * (0.3 + severity * random.uniform(0.5, 1.5)) * random.choice([-1, 1])
    image[row:] = np.roll(image[row:], int(20 + 80 * random.random()), 1) + step
    return image


def incomplete(image: Grey, random: Random, severity: float) -> Grey:
    """Blocks of rows did not arrive."""
    image = image.copy()
    for _ in range(random.integers(1, 4)):
        tall = int(image.shape[0] * random.uniform(0.05, 0.25) * (0.3 + 0.7 * severity))
        row = random.integers(0, image.shape[0] - tall)
        image[row : row + tall] = random.choice([0.0, 255.0])
    return image


def bands(image: Grey, random: Random, severity: float) -> Grey:
    """A flickering lamp before a rolling shutter."""
    y = np.arange(image.shape[0], dtype=np.float32)[:, None]
    wave = np.sin(2 * np.pi * (y / random.uniform(60, 200) + random.random()))
    return image + _spread(image) * (0.3 + severity * random.uniform(0.6, 1.5)) * wave.astype(np.float32)


def blobs(image: Grey, random: Random, severity: float) -> Grey:
    """Dirt that has walked in since the background was taken: spots dark, and bright where they were."""
    image = image.copy()
    spread = _spread(image)
    shift = np.rint(random.uniform(3, 12, 2) * random.choice([-1, 1], 2)).astype(int)
    total = np.zeros_like(image)
    for _ in range(int(severity * random.uniform(12, 50)) + 4):
        y, x = random.integers(0, image.shape[0]), random.integers(0, image.shape[1])
        cv2.circle(total, (int(x), int(y)), int(random.uniform(2, 14)), float(random.uniform(0.6, 2.0)), -1)
    total = np.asarray(cv2.GaussianBlur(total, (0, 0), 1.5), np.float32)
    return image - spread * (total - np.roll(total, shift, (0, 1)))


def scratches(image: Grey, random: Random, severity: float) -> Grey:
    """Lines across the sample."""
    image = image.copy()
    lines = np.zeros_like(image)
    for _ in range(int(severity * random.uniform(8, 25)) + 2):
        ends = random.uniform(0, 1, (2, 2)) * image.shape[::-1]
        begin, end = (tuple(int(v) for v in end) for end in ends)
        cv2.line(lines, begin, end, float(random.choice([-1, 1]) * random.uniform(0.6, 2)), int(random.integers(1, 5)))
    return image + _spread(image) * np.asarray(cv2.GaussianBlur(lines, (0, 0), 0.8), np.float32)


def text(image: Grey, random: Random, severity: float) -> Grey:
    """Text over the image."""
    drawn = np.zeros(image.shape, np.uint8)
    size = random.uniform(0.5, 1.6)
    for row in range(int(20 + 30 * random.random()), image.shape[0], int(40 + 100 * (1 - severity) + 30 * size)):
        letters = "".join(chr(c) for c in random.integers(48, 122, 40))
        at = int(20 * random.random()), row
        cv2.putText(drawn, letters, at, cv2.FONT_HERSHEY_SIMPLEX, size, 255, 1 + int(size))
    share = drawn / np.float32(255)
    return image * (1 - share) + share * float(random.choice([0, 255]))


def page(image: Grey, random: Random, severity: float) -> Grey:
    """A window of another program."""
    other = np.full(image.shape, int(random.uniform(200, 250)), np.uint8)
    for row in range(18, image.shape[0], int(random.uniform(14, 26))):
        letters = "".join(random.choice(list("abcdefgh iklmno prstu ")) for _ in range(90))
        cv2.putText(other, letters, (8, row), cv2.FONT_HERSHEY_SIMPLEX, random.uniform(0.35, 0.6), 30, 1)
    return other + random.uniform(0.2, 3) * _noise(image.shape, random)


def clouds(image: Grey, random: Random, severity: float) -> Grey:
    """A photograph: brightness falls with the square of the frequency."""
    height, width = image.shape
    y, x = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    wave = np.hypot(y, x)
    wave[0, 0] = 1
    spectrum = (random.standard_normal((height, x.size)) + 1j * random.standard_normal((height, x.size))) / wave**1.3
    other = np.fft.irfft2(spectrum, image.shape).astype(np.float32)
    return 128 + 40 * other / other.std() + (image - 128) * (1 - severity)


def grains(image: Grey, random: Random, severity: float) -> Grey:
    """A polycrystal: facets of a grey level each."""
    small = tuple(side // 2 for side in image.shape)
    seeds = random.uniform(0, 1, (int(random.uniform(60, 400)), 2)) * small
    marks = np.ones(small, np.uint8)
    marks[tuple(seeds.astype(int).T)] = 0
    _, labels = cv2.distanceTransformWithLabels(marks, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    levels = random.uniform(60, 200, int(labels.max()) + 1).astype(np.float32)
    other: Any = cv2.resize(levels[labels], image.shape[::-1], interpolation=cv2.INTER_NEAREST)
    return np.asarray(cv2.GaussianBlur(other, (0, 0), 0.8), np.float32) + 5 * _noise(image.shape, random)


def cells(image: Grey, random: Random, severity: float) -> Grey:
    """A light micrograph of something else: shaded discs with bright rims, over each other."""
    other = np.full_like(image, 150)
    for _ in range(int(random.uniform(40, 120))):
        at = tuple(int(v) for v in random.uniform(0, 1, 2) * image.shape[::-1])
        radius = int(random.uniform(8, 34))
        cv2.circle(other, at, radius, float(random.uniform(90, 170)), -1)
        cv2.circle(other, at, radius, float(random.uniform(190, 240)), 2)
        cv2.circle(other, at, radius // 3, float(random.uniform(50, 110)), -1)
    other = np.asarray(cv2.GaussianBlur(other, (0, 0), 1.2), np.float32)
    return other + 5 * _noise(image.shape, random) + (image - 128) * (1 - severity)


def compressed(image: Grey, random: Random, severity: float) -> Grey:
    """JPEG, strongly compressed."""
    quality = int(random.uniform(2, 6) + 8 * (1 - severity))
    _, code = cv2.imencode(".jpg", np.clip(image, 0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(code, cv2.IMREAD_GRAYSCALE), np.float32)


DAMAGE: dict[str, tuple[str, Callable[[Grey, Random, float], Grey]]] = {
    "defocus": ("focus", defocus),
    "moved": ("focus", moved),
    "white noise": ("noise", white_noise),
    "coarse noise": ("noise", coarse_noise),
    "smooth noise only": ("noise", smooth_noise_only),
    "hot pixels": ("hot pixels", hot_pixels),
    "salt and pepper": ("hot pixels", salt_and_pepper),
    "gradient": ("gradient", gradient),
    "vignette": ("gradient", vignette),
    "bands": ("gradient", bands),
    "few levels": ("contrast", few_levels),
    "compressed": ("contrast", compressed),
    "overexposed": ("overexposed", overexposed),
    "underexposed": ("overexposed", underexposed),
    "smaller": ("scale", smaller),
    "larger": ("scale", larger),
    "dipoles": ("drift", dipoles),
    "twice": ("drift", twice),
    "noise of rows": ("line noise", rows_noise),
    "noise of columns": ("line noise", columns_noise),
    "hum": ("line noise", hum),
    "rings": ("rings", rings),
    "maze": ("maze", maze),
    "torn": ("torn", torn),
    "incomplete": ("torn", incomplete),
    "dirt": ("dirt", blobs),
    "scratches": ("dirt", scratches),
    "text": ("not Kerr", text),
    "page": ("not Kerr", page),
    "clouds": ("not Kerr", clouds),
    "grains": ("not Kerr", grains),
    "cells": ("not Kerr", cells),
}

#: After these the image shows something else than its label.
OTHERWISE = {
    "smaller", "larger", "smooth noise only", "maze", "page", "clouds", "grains", "cells", "twice", "incomplete",
}  # fmt: skip


def damaged(
    image: NDArray[np.uint8] | NDArray[np.uint16], kind: str, random: Random, severity: float
) -> NDArray[np.uint8]:
    """An image with something wrong.

    Args:
        image: (height, width); of 16 bits the upper 8 are taken.
        kind: of `DAMAGE`.
        random: source of all chance.
        severity: 1: plain to see; 0.5: mild.
    """
    grey = image.astype(np.float32) if image.dtype == np.uint8 else image.astype(np.float32) / 257
    result = DAMAGE[kind][1](grey, random, severity)
    return np.asarray(np.clip(np.rint(result), 0, 255), np.uint8)
