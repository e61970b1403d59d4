"""Do twin frames help training? The same short recipe on real images, on real and twin images, and on twin images.

python benchmarks/twin_training.py --data ../shared/kerr --steps 1000        20 minutes on two cores

All are scored on fold 5 of the real images. The twin's frames are 120 of configs/simulate.yaml, in 8 sources.
"""

import argparse
import csv
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from realtime_skyseg.analysis import Segmenter
from realtime_skyseg.training.evaluate import evaluate
from realtime_skyseg.training.labelled import read_labelled

ROOT = Path(__file__).parents[1]
TWIN_FOLD, REAL_FOLDS = 100, [0, 1, 2, 3]


def main() -> int:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with images/, labels/ and table.csv")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mix(options.data, folder)
        pairs = read_labelled(options.data / "images", options.data / "labels", options.data / "table.csv", [5])
        print("learnt from | skyrmion IoU | MCC | object F1 | count error")
        for title, folds in (
            ("real", REAL_FOLDS),
            ("real and twin", [*REAL_FOLDS, TWIN_FOLD]),
            ("twin", [TWIN_FOLD]),
        ):
            out = folder / f"{title.replace(' ', '-')}.safetensors"
            values = {"images": folder / "images", "labels": folder / "labels", "table": folder / "table.csv",
                      "train_folds": folds, "steps": options.steps, "seed": options.seed, "out": out,
                      "validate_every": options.steps}  # fmt: skip
            subprocess.run(
                [sys.executable, "-m", "realtime_skyseg.cli", "train", str(ROOT / "configs" / "train.yaml"),
                 *(part for key, value in values.items() for part in ("--set", f"{key}={value}"))],
                check=True, stdout=sys.stderr,
            )  # fmt: skip
            scores = evaluate(Segmenter.load(str(out)), pairs)[0].as_dict()
            figures = (scores[key] for key in ("skyrmion_iou", "skyrmion_mcc", "object_f1", "count_mape"))
            print(title, *(f"{figure:.3f}" for figure in figures), sep=" | ")
    return 0


def mix(data: Path, folder: Path) -> None:
    """Put real and twin images with their labels into one folder with one table."""
    twin = folder / "twin"
    subprocess.run(
        [sys.executable, "-m", "realtime_skyseg.cli", "simulate", str(ROOT / "configs" / "simulate.yaml"),
         "--folder", str(twin)],
        check=True, stdout=sys.stderr,
    )  # fmt: skip
    rows = []
    for kind, source in (("real", data), ("twin", twin)):
        with (source / "table.csv").open(newline="") as table:
            for number, row in enumerate(csv.DictReader(table)):
                name = Path(row["image"]).name
                for part in ("images", "labels"):
                    (folder / part).mkdir(exist_ok=True)
                    shutil.copyfile(source / part / name, folder / part / f"{kind}-{name}")
                # Sources are drawn with equal chance: few of the twin's, so that the real ones stay the most.
                group, fold = (row["source_id"], row["fold"]) if kind == "real" else (number % 8, TWIN_FOLD)
                rows.append((f"{kind}-{name}", f"{kind}-{group}", fold))
    with (folder / "table.csv").open("w", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(["image", "source_id", "fold"])
        writer.writerows(rows)


if __name__ == "__main__":
    sys.exit(main())
