"""The tables and pictures of docs/accuracy.md: models on labelled images, plain and made harder.

    python benchmarks/model_figures.py --data FOLDER --fold 5 --models compact accurate --pictures docs/images

FOLDER has images/, labels/ and table.csv. Prints Markdown.
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track

from realtime_skyseg.analysis import Segmenter
from realtime_skyseg.plots import overlay, plot_sureness
from realtime_skyseg.records import Class, Mask
from realtime_skyseg.training.evaluate import Scores, changed, evaluate, score
from realtime_skyseg.training.labelled import LabelledImage, read_labelled

KEYS = {
    "skyrmion_iou": "IoU", "skyrmion_mcc": "MCC", "object_f1": "object F1", "count_mape": "count error, mean",
    "count_median_ape": "median", "defect_iou": "defect IoU",
}  # fmt: skip
HARDER: dict[str, dict[str, float]] = {
    "as it is": {}, "inverted": {"invert": True}, "shrunk to 0.75": {"zoom": 0.75}, "enlarged to 1.33": {"zoom": 1.33},
    "noise + 10 grey levels": {"noise": 10}, "noise + 20": {"noise": 20},
}  # fmt: skip


def main() -> None:
    """Print the tables; draw the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--fold", type=int, action="append")
    parser.add_argument("--models", nargs="+", default=["compact", "accurate"])
    parser.add_argument("--engine", default="auto", choices=("auto", "torch", "openvino", "openvino-int8"))
    parser.add_argument("--leave-out", nargs="*", default=[], help="images left out of the shrunk and enlarged rows")
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--crops", nargs="*", default=["000007:0:0"], help="NAME:ROW:COLUMN of what is shown")
    options = parser.parse_args()
    data = options.data
    pairs = read_labelled(data / "images", data / "labels", data / "table.csv", options.fold)
    fewer = [pair for pair in pairs if pair.name not in options.leave_out]
    patterned = [pair for pair in pairs if (pair.mask >= Class.OUTSIDE).any()]
    plain: dict[str, tuple[Scores, list[Mask]]] = {}
    print("| model | images | " + " | ".join(KEYS.values()) + " |\n" + "| --- " * (len(KEYS) + 2) + "|")
    for name in options.models:
        segmenter = Segmenter.load(name, options.engine)
        plain[name] = evaluate(segmenter, pairs)
        rows = {"as it is": plain[name][0].figures()}
        for title, how in track(list(HARDER.items())[1:], name, transient=True, console=Console(stderr=True)):
            rows[title] = figures(segmenter, changed(pairs, **how))  # type: ignore[arg-type]
        if options.leave_out:
            rows["without the tiny ones"] = figures(segmenter, fewer)
            for title in ("shrunk to 0.75", "enlarged to 1.33"):
                rows[f"{title}, without the tiny ones"] = figures(segmenter, changed(fewer, **HARDER[title]))  # type: ignore[arg-type]
        for title, row in rows.items():
            print(f"| {segmenter.model.name} | {title} | " + " | ".join(f"{row[key]:.3f}" for key in KEYS) + " |")
        found = score(patterned, lambda image: segmenter(image).mask).classes()["skyrmion"]  # noqa: B023
        print(f"\n{segmenter.model.name}: patterned images: skyrmion precision {found['precision']:.3f}, recall "
              f"{found['recall']:.3f}; ECE {plain[name][0].sureness()['ece']:.3f}\n")  # type: ignore[index] # fmt: skip
    print("| image | labelled | " + " | ".join(f"{name}: found, IoU, object F1" for name in options.models) + " |")
    print("| --- " * (len(options.models) + 2) + "|")
    per_image = [scores.as_dict()["per_image"] for scores, _ in plain.values()]
    for pair, *rows_of_models in zip(pairs, *per_image, strict=True):
        cells = []
        for row in rows_of_models:
            cells.append(f"{row['found']}, {row['skyrmion_iou']:.2f}, {row['object_f1']:.2f}")
        print(f"| {pair.name.removesuffix('.png')} | {row['labelled']} | " + " | ".join(cells) + " |")
    if options.pictures:
        draw(options.pictures, options.crops, pairs, plain)


def figures(segmenter: Segmenter, pairs: list[LabelledImage]) -> dict[str, float]:
    """Figures without probabilities."""
    return score(pairs, lambda image: segmenter(image).mask).figures()


def draw(
    folder: Path,
    crops: list[str],
    pairs: list[LabelledImage],
    plain: dict[str, tuple[Scores, list[Mask]]],
    side: int = 130,
) -> None:
    """Crops (NAME:ROW:COLUMN) of images, enlarged, with the outlines of the label and of each model's mask."""
    for name, (scores, _) in plain.items():
        sureness = scores.sureness()
        assert sureness is not None
        plot_sureness(sureness, folder / f"sureness-{Path(name).stem}.png")
    figure = Figure(figsize=(3.4 * (2 + len(plain)), 3.5 * len(crops)), layout="constrained")
    places = {Path(pair.name).stem: index for index, pair in enumerate(pairs)}
    for row, crop in zip(figure.subplots(len(crops), 2 + len(plain), squeeze=False), crops, strict=True):
        name, top, left = crop.split(":")
        index = places[name]
        box = np.s_[int(top) : int(top) + side, int(left) : int(left) + side]
        nothing = np.zeros_like(pairs[index].mask)
        masks = {"image": nothing, "label": pairs[index].mask}
        masks |= {Path(model).stem: found[index] for model, (_, found) in plain.items()}
        for axis, (title, mask) in zip(row, masks.items(), strict=True):
            enlarged = [np.kron(part[box], np.ones((4, 4), part.dtype)) for part in (pairs[index].image, mask)]
            axis.imshow(overlay(*enlarged), interpolation="nearest")
            axis.set_title(f"{name}: {title}" if title == "image" else title)
            axis.set_axis_off()
    figure.savefig(folder / "accuracy.png", dpi=80)


if __name__ == "__main__":
    main()
