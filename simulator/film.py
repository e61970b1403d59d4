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

from dataclasses import dataclass

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from realtime_skyseg.errors import SettingsError

FloatImage = NDArray[np.float32]

_NOISE_FIELDS = 8  # rolled at random: fresh normal deviates would cost as much as the Fourier transforms
_STABILISER = 1.0  # S of the semi-implicit step: added on both sides, makes steps of 0.4 stable


@dataclass(frozen=True)
class FilmSettings:
    """Parameters of `Film`; lengths in px, the rest in the model's units. gamma 0.6-0.8 and d 10-20 give bubbles."""

    alpha: float = 1.0  # anisotropy: depth of the two wells of phi
    beta: float = 1.1  # exchange
    gamma: float = 0.7  # dipolar coupling
    thickness: float = 14.0  # d in K(k)
    temperature: float = 0.03
    anisotropy_disorder: float = 0.08  # mu, with a(r) of standard deviation 1
    pinning: float = 0.02  # standard deviation of f(r)
    disorder_length: float = 2.5  # correlation length of a and f
    time_step: float = 0.4
    pulse_alpha: float = 0.2  # an in-plane field tilts the magnetisation, which weakens the two wells ...
    pulse_temperature: float = 0.15  # ... and stirs it
    pulse_steps: int = 50


class Film:
    """The state of a film of `height` x `width` px; the same seed and calls give the same states bit for bit.

    `phi` is the state: (H, W) float32, about +1 where the magnetisation is up. Never changed in place: a reference to
    it stays valid after `step`.
    """

    def __init__(self, height: int, width: int, seed: int = 0, settings: FilmSettings | None = None) -> None:
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
        self.phi: FloatImage = 0.1 * self._random.standard_normal(self.shape, dtype=np.float32)

    def step(self, field: float, n: int = 1) -> FloatImage:
        """Advance by `n` time steps under the out-of-plane field h; returns `phi`, (H, W) float32.

        Raises `SettingsError` for a field that is not finite.
        """
        return self._advance(field, n, self.settings.alpha, self.settings.temperature)

    def pulse(self, field: float) -> FloatImage:
        """Apply an in-plane pulse at the out-of-plane field h, which nucleates; returns `phi`, (H, W) float32.

        The state right after it is far from rest: follow it by some 100 steps. Ensembles of skyrmions come at fields
        of 0.12-0.2. Raises `SettingsError` for a field that is not finite.
        """
        s = self.settings
        return self._advance(field, s.pulse_steps, s.pulse_alpha, s.pulse_temperature)

    def saturate(self) -> FloatImage:
        """Set the whole film to "up", as a field far above annihilation does; returns `phi`, (H, W) float32."""
        self.phi = np.ones(self.shape, np.float32)
        return self.phi

    def _advance(self, field: float, n: int, alpha: float, temperature: float) -> FloatImage:
        if not np.isfinite(field):
            raise SettingsError(f"field: {field} is not allowed; allowed: finite numbers")
        dt = np.float32(self.settings.time_step)
        linear = 1 + dt * (_STABILISER + np.float32(alpha) * self._anisotropy)
        cubic = dt * np.float32(alpha) * self._anisotropy
        drive = dt * (np.float32(field) + self._pinning)
        amplitude = np.float32(np.sqrt(2 * temperature * self.settings.time_step))
        for _ in range(n):
            noise = self._noise[self._random.integers(_NOISE_FIELDS)]
            rows, columns = (int(self._random.integers(size)) for size in self.shape)
            new = np.roll(noise, (rows, columns), (0, 1))
            new *= amplitude
            new += self.phi * (linear - cubic * self.phi**2)
            new += drive
            new = scipy.fft.irfft2(scipy.fft.rfft2(new) * self._damping, s=self.shape)
            self.phi = new
        return self.phi

    def _disorder(self, low_pass: NDArray[np.float64]) -> NDArray[np.float64]:
        """A smooth Gaussian random field, (H, W) float64, of mean 0 and standard deviation 1."""
        white = self._random.standard_normal(self.shape)
        smooth = scipy.fft.irfft2(scipy.fft.rfft2(white) * low_pass, s=self.shape)
        standard: NDArray[np.float64] = (smooth - smooth.mean()) / smooth.std()
        return standard
