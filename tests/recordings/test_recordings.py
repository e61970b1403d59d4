"""The recordings of `corpus`, made by other programs, each read bit for bit or refused with its sentence."""

import re
from pathlib import Path

import numpy as np
import pytest
from corpus import Case, cases

from realtime_skyseg.errors import RecordingError, SettingsError, SkysegError
from realtime_skyseg.recordings import open_recording

CASES = list(cases())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_recording_of_another_program(tmp_path: Path, case: Case) -> None:
    path = tmp_path / case.name
    case.make(path)
    if case.frames is None:
        with pytest.raises(SkysegError) as refused, open_recording(path, case.choice) as recording:
            recording.read(0)
        assert re.search(case.says, str(refused.value))
        assert "\n" not in str(refused.value)
        return
    images: list[np.ndarray] = []
    stamps = []
    with open_recording(path, case.choice) as recording:
        try:
            for index in range(1000):
                images.append(recording.read(index))
                stamps.append(recording.stamp_ns(index))
        except IndexError:
            said = ""
        except RecordingError as error:
            said = str(error)
        rate_hz = recording.rate_hz
        if not case.says and recording.n_frames is not None:
            assert recording.n_frames == len(images)
    assert re.search(case.says, said) if case.says else said == ""
    assert len(images) == len(case.frames)
    if case.close:
        far = np.abs(np.stack(images).astype(float) - case.frames)
        assert np.median(far) <= case.close
    else:
        assert images[0].dtype == case.frames.dtype.newbyteorder("=")
        np.testing.assert_array_equal(np.stack(images), case.frames)
    if case.rate_hz is not None:
        assert rate_hz == pytest.approx(case.rate_hz)
    if case.times_s is not None:
        np.testing.assert_allclose(np.array(stamps) / 1e9, case.times_s, atol=1e-6)


def test_there_are_enough() -> None:
    assert len(CASES) >= 250
    assert len({case.name for case in CASES}) == len(CASES)


def test_what_is_chosen_must_be_there(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((2, 8, 8), np.uint8))
    from realtime_skyseg.recordings import Choice

    for zero in (0, "0"):
        open_recording(tmp_path / "a.npy", Choice(channel=zero)).close()
    for key, value in (("channel", 1), ("position", "Pos1"), ("z", 2), ("dataset", "x")):
        with pytest.raises(SettingsError, match=rf"^{key}: {value!r} is not in"):
            open_recording(tmp_path / "a.npy", Choice(**{key: value}))
