"""The kinds of samples."""

from realtime_skyseg_simulator.film import FilmSample
from realtime_skyseg_simulator.particles import ParticleSample
from realtime_skyseg_simulator.samples import FilmSampleSettings, ParticleSampleSettings, Sample


def open_sample(settings: FilmSampleSettings | ParticleSampleSettings, height: int, width: int) -> Sample:
    """Make the sample for a view of `height` x `width` px; the view is its centre.

    Raises `SettingsError` for a view or a pattern that is too small.
    """
    if isinstance(settings, FilmSampleSettings):
        return FilmSample(settings, height, width)

    return ParticleSample(settings, height, width)
