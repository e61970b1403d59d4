"""Rare events against the twin's truth: nucleation, annihilation, merge and split, on films that no training saw.

    python benchmarks/rare_events.py [--model compact] [--films 10] [--frames 160] [--cnr 2]

The field goes from saturation down to stripes and up again. What `rare` finds in the masks of noisy images is compared
with what it finds in the true masks: the same kind, at most three frames (0.15 mT) and 12 px apart, since the optics
lose what shrinks before it is gone.
"""

import argparse
from collections import Counter

import numpy as np
from realtime_skyseg_simulator.film import FilmSample
from realtime_skyseg_simulator.samples import FilmSampleSettings
from rich.progress import track
from states import FIRST_SEED, VIEW, camera_of

import realtime_skyseg as sky
from realtime_skyseg.analysers import View
from realtime_skyseg.analysers.objects import measure
from realtime_skyseg.analysers.rare import RareAnalyser, RareSettings

KINDS = ("nucleated", "annihilated", "merged", "split")
NEAR_PX, NEAR_FRAMES = 12, 3


class Watched(RareAnalyser):
    """Keeps where things happened."""

    def __init__(self) -> None:
        super().__init__(RareSettings())
        self.found: list[tuple[str, int, float, float]] = []

    def see(self, frame: int, mask: np.ndarray) -> None:
        """Look at a mask."""
        segmentation = measure(mask, 10, 2.7)
        view = View(frame, 0.0, 0.0, mask, mask, segmentation.objects, {"count": float(segmentation.count or 0)})
        self(view)
        self.found += [(kind, frame, x, y) for kind, places in self.changes.items() for x, y in places]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="compact")
    parser.add_argument("--films", type=int, default=10)
    parser.add_argument("--frames", type=int, default=160)
    parser.add_argument("--cnr", type=float, default=2.0)
    arguments = parser.parse_args()
    segmenter = sky.Segmenter.load(arguments.model, polarity="dark")
    true, found, hit, right = Counter(), Counter(), Counter(), Counter()
    for film in track(range(arguments.films), "films"):
        seen, known = run(film, arguments.frames, arguments.cnr, segmenter)
        for kind in KINDS:
            these, those = ([one for one in events if one[0] == kind] for events in (seen.found, known.found))
            true[kind] += len(those)
            found[kind] += len(these)
            right[kind] += sum(any(near(one, other) for other in those) for one in these)
            hit[kind] += sum(any(near(one, other) for other in these) for one in those)
    for kind in KINDS:
        precision, recall = right[kind] / max(1, found[kind]), hit[kind] / max(1, true[kind])
        print(f"{kind}: {true[kind]} true, {found[kind]} found, precision {precision:.2f}, recall {recall:.2f}")


def run(film: int, frames: int, cnr: float, segmenter: sky.Segmenter) -> tuple[Watched, Watched]:
    """Of a film: what is found in images, and in true masks."""
    sample = FilmSample(FilmSampleSettings(seed=FIRST_SEED + film, start="saturated", start_mT=4.4), *VIEW)
    camera = camera_of(sample.shape, cnr, FIRST_SEED + film)
    seen, known = Watched(), Watched()
    half = frames // 2
    fields = np.concatenate([np.linspace(3.2, 0.8, half), np.linspace(0.8, 4.0, frames - half)])
    for frame, field_mT in enumerate(fields):
        sample.advance(0.2, float(field_mT))
        image = camera.difference(camera.take(sample.magnetisation()))
        seen.see(frame, segmenter(image, polarity=-1).mask)
        known.see(frame, camera.take_truth(sample.truth().mask))
    return seen, known


def near(one: tuple[str, int, float, float], other: tuple[str, int, float, float]) -> bool:
    """Whether two events may be the same."""
    return abs(one[1] - other[1]) <= NEAR_FRAMES and np.hypot(one[2] - other[2], one[3] - other[3]) <= NEAR_PX


if __name__ == "__main__":
    main()
