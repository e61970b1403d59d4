"""What an unseen sample may bring: train on all folds but one, score on that one, for each fold.

    python benchmarks/cross_validate.py configs/train.yaml OUT --data FOLDER [--folds 0 1 2 3 5] [--set steps=1200]

FOLDER has images/, labels/ and table.csv. The last weights are scored, not the best ones on the held-out fold. OUT
gets a model and a JSON file per fold; what is there already is not trained again.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from realtime_skyseg.analysis import Segmenter
from realtime_skyseg.config import load_training
from realtime_skyseg.records import Class
from realtime_skyseg.training.evaluate import Scores, evaluate
from realtime_skyseg.training.train import Training

KEYS = ("skyrmion_iou", "skyrmion_mcc", "object_f1", "count_mape", "count_median_ape", "defect_iou")


def main() -> None:
    """Train and score the folds that are missing in OUT, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--folds", type=int, nargs="+", default=[0, 1, 2, 3, 5])
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args()
    rows = {}
    for fold in options.folds:
        result = options.out / f"fold{fold}.json"
        if not result.is_file():
            result.parent.mkdir(parents=True, exist_ok=True)
            result.write_text(json.dumps(score_fold(fold, options), indent=1))
        rows[fold] = json.loads(result.read_text())
    print("| fold | images | " + " | ".join(KEYS) + " | patterned: precision |")
    for fold, row in rows.items():
        patterned = "" if row["patterned_precision"] is None else f"{row['patterned_precision']:.3f}"
        print(f"| {fold} | {row['images']} | " + " | ".join(f"{row[key]:.3f}" for key in KEYS) + f" | {patterned} |")
    values = np.array([[row[key] for key in KEYS] for row in rows.values()])
    spread = (f"{mean:.3f} ± {std:.3f}" for mean, std in zip(values.mean(0), values.std(0, ddof=1), strict=True))
    print("| mean ± spread | | " + " | ".join(spread) + " | |")


def score_fold(fold: int, options: argparse.Namespace) -> dict[str, object]:
    """Train without a fold and score on it."""
    data = options.data
    training = Training(
        load_training(
            options.config,
            [
                *(f"{key}={data / key}" for key in ("images", "labels")),
                f"table={data / 'table.csv'}",
                f"train_folds={[other for other in options.folds if other != fold]}",
                f"validate_folds=[{fold}]",
                f"out={options.out / f'fold{fold}.safetensors'}",
                "validate_every=1000000",
                *options.set,
            ],
        )
    )
    path = training.run()
    scores, _ = evaluate(Segmenter.load(str(path), "torch"), training.validation)
    patterned = [
        score
        for pair, score in zip(training.validation, scores.images, strict=True)
        if (pair.mask >= Class.OUTSIDE).any()
    ]
    precision = Scores(patterned).classes()["skyrmion"]["precision"] if patterned else None
    return {**scores.as_dict(), "patterned_precision": precision}


if __name__ == "__main__":
    main()
