"""How well a shipped model, trained on real images, does on twin frames of a given ratio of contrast to noise.

    python benchmarks/twin_scores.py [--model compact] [--frames 24] [--settings configs/simulate.yaml]

Every row shows the same samples under microscopes that differ in contrast alone. The ratio is measured as in
`twin_realism.py`, and given as the median over the frames.
"""

import argparse
from pathlib import Path

import numpy as np
from realtime_skyseg_simulator.simulate import simulate
from realtime_skyseg_simulator.simulate_settings import load_recording
from rich.console import Console
from rich.progress import track
from rich.table import Table
from twin_realism import figures

from realtime_skyseg.analysis import Segmenter
from realtime_skyseg.training.evaluate import evaluate
from realtime_skyseg.training.labelled import LabelledImage

#: What the optics and the inside of the simulated skyrmions leave of the contrast.
VISIBLE = 0.75
COLUMNS = ("object_f1", "object_precision", "object_recall", "skyrmion_iou", "count_median_ape")


def main() -> None:
    """Score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="compact")
    parser.add_argument("--settings", type=Path, default=Path("configs/simulate.yaml"))
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--cnr", type=float, nargs="+", default=[1.0, 1.5, 2.0, 2.5, 3.0])
    options = parser.parse_args()
    segmenter = Segmenter.load(options.model)
    table = Table(
        "CNR wanted", "CNR measured", *COLUMNS, title=f"{options.model} on {options.frames} twin frames a row"
    )
    for cnr in options.cnr:
        overrides = [f"frames={options.frames}", f"cnr_median={cnr / VISIBLE}", "cnr_spread=0", "seed=1000"]
        frames = list(
            track(
                simulate(load_recording(options.settings, overrides)),
                f"CNR {cnr:g}",
                options.frames,
                console=Console(stderr=True),
            )
        )
        pairs = [LabelledImage(f"{i}", f"{i}", -1, frame.image, frame.truth.mask) for i, frame in enumerate(frames)]
        measured = np.nanmedian([figures(pair.image, pair.mask)["cnr"] for pair in pairs])
        scores = evaluate(segmenter, pairs)[0].as_dict()
        table.add_row(f"{cnr:g}", f"{measured:.2f}", *(f"{scores[name]:.3f}" for name in COLUMNS))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
