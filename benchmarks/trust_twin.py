"""What the calibration says of films of the twin that no training and no calibration saw, in all states of a loop.

    python benchmarks/trust_twin.py [--model compact] [--films 10]

By contrast to noise: how many frames are called out of range, whether the interval holds the true count, its width, and
the count error of frames in and out of range.
"""

import argparse

import numpy as np
from realtime_skyseg_simulator.film import FilmSample
from realtime_skyseg_simulator.samples import FilmSampleSettings, truth_of
from rich.progress import track
from states import FIRST_SEED, HIGHEST_MT, REST_S, STEP_MT, VIEW, camera_of

import realtime_skyseg as sky
from realtime_skyseg.analysers.looks import looks_of
from realtime_skyseg.analysers.objects import find_runs
from realtime_skyseg.analysers.trust import Trust
from realtime_skyseg.records import Kind

CNR = 1.0, 1.5, 2.0, 3.0


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="compact")
    parser.add_argument("--films", type=int, default=10)
    arguments = parser.parse_args()
    segmenter = sky.Segmenter.load(arguments.model, polarity="dark")
    trust = Trust.of(segmenter.model.trust)
    assert trust is not None
    rows: dict[float, list[tuple[float, float, float, int, int]]] = {cnr: [] for cnr in CNR}
    n = round(HIGHEST_MT / STEP_MT)
    down = np.linspace(HIGHEST_MT, 0, n + 1).tolist()
    for film in track(range(arguments.films), "loops"):
        sample = FilmSample(FilmSampleSettings(seed=FIRST_SEED + film, start="saturated", start_mT=HIGHEST_MT), *VIEW)
        cameras = {cnr: camera_of(sample.shape, cnr, FIRST_SEED + film) for cnr in CNR}
        for field_mT in (*down, *down[::-1]):
            sample.advance(REST_S, field_mT)
            for cnr, camera in cameras.items():
                image = camera.difference(camera.take(sample.magnetisation()))
                true = truth_of(camera.take_truth(sample.truth().mask)).count
                found = segmenter(image)
                looks = looks_of(image, found.mask, found.objects, find_runs(found.mask), False)
                domain = trust.judge(looks.frame).domain
                sure = trust.sureness(looks.objects)[found.objects["kind"] == Kind.SKYRMION]
                low, high, _ = trust.interval(looks.frame, sure, len(looks.objects) - len(sure), domain)
                rows[cnr].append((domain, low, high, true, found.count or 0))
    for cnr, these in rows.items():
        domain, low, high, true, counted = np.array(these).T
        out = domain < 0.5
        error = np.abs(counted - true) / np.maximum(true, 10)
        held = (low <= true) & (true <= high)
        print(
            f"CNR {cnr:g}: {out.mean():.1%} of {len(out)} frames out of range; the interval holds the true count in "
            f"{held.mean():.1%}, in range in {held[~out].mean():.1%}, median width {np.median(high - low):.0f} at "
            f"{np.median(true):.0f}; count error in range {error[~out].mean():.1%}, out of range "
            f"{error[out].mean() if out.any() else float('nan'):.1%}"
        )


if __name__ == "__main__":
    main()
