"""A simulated thin film with out-of-plane anisotropy: stripes, skyrmion-like bubbles, nucleation and annihilation.

A scalar phase field phi (+1 up, -1 down) relaxes in time:

    dphi/dt = alpha (1 + mu a(r)) (phi - phi^3) + beta lap phi - gamma K * phi + h + f(r) + sqrt(2 T) xi

`*` is a convolution with the out-of-plane demagnetising factor of a film of thickness d,
K(k) = (1 - exp(-k d)) / (k d); a and f are frozen Gaussian random fields (random anisotropy, and a random field that
pins); xi is white noise. The model is of the family of E. A. Jagla (Phys. Rev. E, 2004, and Phys. Rev. B, 2005) and of
K. Kudo, M. Mino and K. Nakamura (arXiv:cond-mat/0610142), which combine the same terms; it reproduces none of their
figures.

What it is not: phi is one number a pixel, so there is no topology, no chirality and no Magnus force: a "skyrmion" here
is a round domain. Walls are some 3 px wide, where real ones measure 10-20 nm. Fields, times and temperatures are in the
model's own units: the scale to mT is free, and is set by equating the annihilation field (h = 0.37) with the sample's.
The film is periodic at its borders.
"""

import math

import cv2
import numpy as np
import scipy.fft
from numpy.typing import NDArray

from realtime_skyseg.errors import SettingsError
from realtime_skyseg_simulator.patterns import edge_of, element_of
from realtime_skyseg_simulator.samples import (
    FilmSampleSettings,
    FilmSettings,
    FloatImage,
    Truth,
    check_advance,
    class_mask,
    truth_of,
)

MARGIN_PX = 24  # of the sample around the view: hides that the film is periodic
ANNIHILATION = 0.37  # field at which the last skyrmions of the film with default settings vanish, in the model's unit

_NOISE_FIELDS = 8  # rolled at random: fresh normal deviates would cost as much as the Fourier transforms
_STABILISER = 1.0  # S of the semi-implicit step: added on both sides, makes steps of 0.4 stable
_SETTLING_STEPS = 200  # to rest after a pulse


class Film:
    """The state of a film of `height` x `width` px; the same seed and calls give the same states bit for bit.

    `phi` is the state: (H, W) float32, about +1 where the magnetisation is up. Never changed in place: a reference to
    it stays valid after `step`. Where `element`, (H, W) bool, is given, phi is 0 outside of it: no material there.
    """

    def __init__(
        self,
        height: int,
        width: int,
        seed: int = 0,
        settings: FilmSettings | None = None,
        element: NDArray[np.bool_] | None = None,
    ) -> None:
        if height < 8 or width < 8:
            raise SettingsError(f"height and width: a film of {height}x{width} px is too small; allowed: 8x8 or more")
        self.settings = settings or FilmSettings()
        self.shape = (height, width)
        self._random = np.random.default_rng(seed)
        k = 2 * np.pi * np.hypot(np.fft.rfftfreq(width)[None, :], np.fft.fftfreq(height)[:, None])
        s = self.settings
        kd = np.maximum(k * s.thickness, 1e-6)
        stiffness = s.beta * k**2 + s.gamma * (1 - np.exp(-kd)) / kd
        self._damping = (1 / (1 + s.time_step * (_STABILISER + stiffness))).astype(np.float32)
        low_pass = np.exp(-0.5 * (k * s.disorder_length) ** 2)
        self._anisotropy = (1 + s.anisotropy_disorder * self._disorder(low_pass)).astype(np.float32)
        self._pinning = (s.pinning * self._disorder(low_pass)).astype(np.float32)
        self._noise = [self._random.standard_normal(self.shape, dtype=np.float32) for _ in range(_NOISE_FIELDS)]
        self._element = None if element is None else element.astype(np.float32)
        self._linear, self._cubic, self._drive, self._terms, self._work = (
            np.empty(self.shape, np.float32) for _ in range(5)
        )
        self._alpha = math.nan  # for which _linear and _cubic hold
        self.phi: FloatImage = self._cut(0.1 * self._random.standard_normal(self.shape, dtype=np.float32))

    def step(self, field: float, n: int = 1) -> FloatImage:
        """Advance by `n` time steps under the out-of-plane field h; returns `phi`, (H, W) float32.

        Raises `SettingsError` for a field that is not finite.
        """
        return self._advance(field, n, self.settings.alpha, self.settings.temperature)

    def pulse(self, field: float, n: int | None = None) -> FloatImage:
        """Apply an in-plane pulse of `n` steps at the out-of-plane field h, which nucleates; returns `phi`.

        The state right after it is far from rest: follow it by some 100 steps. Ensembles of skyrmions come at fields
        of 0.12-0.2. Raises `SettingsError` for a field that is not finite.
        """
        s = self.settings
        return self._advance(field, s.pulse_steps if n is None else n, s.pulse_alpha, s.pulse_temperature)

    def saturate(self) -> FloatImage:
        """Set the whole film to "up", as a field far above annihilation does; returns `phi`, (H, W) float32."""
        self.phi = self._cut(np.ones(self.shape, np.float32))
        return self.phi

    def _advance(self, field: float, n: int, alpha: float, temperature: float) -> FloatImage:
        if not np.isfinite(field):
            raise SettingsError(f"field: {field} is not allowed; allowed: finite numbers")
        dt = np.float32(self.settings.time_step)
        if alpha != self._alpha:
            self._alpha = alpha
            self._linear[:] = 1 + dt * (_STABILISER + np.float32(alpha) * self._anisotropy)
            self._cubic[:] = dt * np.float32(alpha) * self._anisotropy
        np.add(self._pinning, np.float32(field), out=self._drive)
        self._drive *= dt
        amplitude = np.float32(np.sqrt(2 * temperature * self.settings.time_step))
        terms, work = self._terms, self._work
        for _ in range(n):
            noise = self._noise[self._random.integers(_NOISE_FIELDS)]
            rows, columns = (int(self._random.integers(size)) for size in self.shape)
            _roll(noise, rows, columns, work)
            work *= amplitude
            np.multiply(self.phi, self.phi, out=terms)
            terms *= self._cubic
            np.subtract(self._linear, terms, out=terms)
            terms *= self.phi
            work += terms
            work += self._drive
            spectrum = scipy.fft.rfft2(work)
            spectrum *= self._damping
            self.phi = self._cut(scipy.fft.irfft2(spectrum, s=self.shape, overwrite_x=True))
        return self.phi

    def _cut(self, phi: FloatImage) -> FloatImage:
        if self._element is not None:
            phi *= self._element
        return phi

    def _disorder(self, low_pass: NDArray[np.float64]) -> NDArray[np.float64]:
        """A smooth Gaussian random field, (H, W) float64, of mean 0 and standard deviation 1."""
        white = self._random.standard_normal(self.shape)
        smooth = scipy.fft.irfft2(scipy.fft.rfft2(white) * low_pass, s=self.shape)
        standard: NDArray[np.float64] = (smooth - smooth.mean()) / max(float(smooth.std()), 1e-12)
        return standard


class FilmSample:
    """A film under a microscope, as a `realtime_skyseg_simulator.samples.Sample`: fields in mT, time in seconds."""

    def __init__(self, settings: FilmSampleSettings, height: int, width: int) -> None:
        """Make the film and bring it into its first state; see `realtime_skyseg_simulator.samples.open_sample`."""
        self.settings = settings
        scale = settings.scale
        rows, columns = (  # the transform is real along rows only
            scipy.fft.next_fast_len(math.ceil((size + 2 * MARGIN_PX) / scale), real=axis == 1)
            for axis, size in enumerate((height, width))
        )
        self.shape = (round(rows * scale), round(columns * scale))
        self.element = element_of(settings.pattern, self.shape, (height, width), settings.pattern_size)
        self._edge = None if self.element is None else edge_of(self.element)
        inside = element_of(settings.pattern, (rows, columns), (height / scale, width / scale), settings.pattern_size)
        self.film = Film(rows, columns, settings.seed, settings.film, inside)
        self._due = 0.0  # steps that time asks for, less those made
        self._seen: FloatImage | None = None
        start = self._model_field(settings.start_mT)
        if settings.start == "saturated":
            self.film.saturate()
        elif settings.start == "skyrmions":
            self.film.saturate()
            self.film.pulse(start)
        self.film.step(start, _SETTLING_STEPS)

    def advance(self, seconds: float, field_mT: float, in_plane_mT: float = 0.0) -> None:
        """Let time pass; see `realtime_skyseg_simulator.samples.Sample`."""
        check_advance(seconds, field_mT, in_plane_mT)
        self._due += seconds * self.settings.steps_per_s
        steps = int(self._due + 1e-6)
        self._due -= steps
        if not steps:
            return
        move = self.film.pulse if abs(in_plane_mT) >= self.settings.in_plane_threshold_mT else self.film.step
        move(self._model_field(field_mT), steps)
        self._seen = None

    def magnetisation(self) -> FloatImage:
        """The magnetisation, (H, W) float32; see `realtime_skyseg_simulator.samples.Sample`."""
        if self._seen is None:
            self._seen = self.film.phi
            if self.film.shape != self.shape:
                smooth = cv2.INTER_CUBIC if self.settings.scale > 1 else cv2.INTER_AREA
                self._seen = np.asarray(cv2.resize(self.film.phi, self.shape[::-1], interpolation=smooth), np.float32)
                if self.element is not None:
                    self._seen *= self.element
        return self._seen

    def truth(self) -> Truth:
        """What is there now; see `realtime_skyseg_simulator.samples.Sample`."""
        return truth_of(class_mask(self.magnetisation(), self.element, self._edge))

    def _model_field(self, field_mT: float) -> float:
        return field_mT * ANNIHILATION / self.settings.annihilation_mT


def _roll(image: FloatImage, rows: int, columns: int, out: FloatImage) -> None:
    """`np.roll` of both axes into `out`, without a copy in between."""
    out[rows:, columns:] = image[: image.shape[0] - rows, : image.shape[1] - columns]
    out[rows:, :columns] = image[: image.shape[0] - rows, image.shape[1] - columns :]
    out[:rows, columns:] = image[image.shape[0] - rows :, : image.shape[1] - columns]
    out[:rows, :columns] = image[image.shape[0] - rows :, image.shape[1] - columns :]
