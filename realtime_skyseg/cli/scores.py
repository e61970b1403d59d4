"""How a model scored, as tables."""

from typing import Any

from rich.console import Console
from rich.table import Table


def show_scores(console: Console, scores: dict[str, Any]) -> None:
    """Print the figures of a model on labelled images.

    Args:
        console: see `console`.
        scores: as `Scores.as_dict`.
    """
    table = Table("class", "IoU", "F1", "MCC", "labelled px", "found px")
    for name, values in scores["classes"].items():
        if values["labelled_px"] or values["found_px"]:
            figures = [f"{values[key]:.3f}" for key in ("iou", "f1", "mcc")]
            table.add_row(name, *figures, f"{values['labelled_px']:.0f}", f"{values['found_px']:.0f}")
    console.print(table)
    keys = {"skyrmion_iou": "IoU", "skyrmion_iou_off_rim": "off the rim", "radius_bias_px": "radius bias (px)",
            "object_f1": "object F1", "object_f1_by_distance": "by distance", "object_precision": "precision",
            "object_recall": "recall", "count_mape": "count error"}  # fmt: skip
    for title, rows in (
        ("state", scores["per_state"]),
        ("source", scores["per_source"] | scores["over_sources"]),
        ("image", {row["image"]: row for row in scores["per_image"]}),
    ):
        table = Table(title, *keys.values())
        for name, values in rows.items():
            table.add_row(name, *(f"{values[key]:.3f}" for key in keys))
        console.print(table)
    table = Table(f"all {scores['images']} images", "")
    for key, value in scores.items():
        if isinstance(value, float):
            table.add_row(key, f"{value:.4f}")
    console.print(table)


def show_folds(console: Console, record: dict[str, Any]) -> None:
    """Print what was found by leaving folds out.

    Args:
        console: see `console`.
        record: as `leave_out` gives it.
    """
    keys = {"skyrmion_iou": "IoU", "skyrmion_iou_off_rim": "off the rim", "object_f1": "object F1",
            "count_mape": "count error", "radius_bias_px": "radius bias (px)", "defect_iou": "defect IoU"}  # fmt: skip
    table = Table("left out", "images", *keys.values())
    for fold, figures in record["folds"].items():
        mean = figures["over_sources"]["mean"]
        table.add_row(f"fold {fold}", str(figures["images"]), *(f"{mean[key]:.3f}" for key in keys))
    for name, figures in record["over_sources"].items():
        table.add_row(f"{name} over sources", "", *(f"{figures[key]:.3f}" for key in keys))
    console.print(table)
    table = Table("skyrmion_bias", *keys.values())
    for bias, figures in record["bias"].items():
        best = " (best)" if bias == record["best_bias"] else ""
        table.add_row(f"{bias:g}{best}", *(f"{figures[key]:.3f}" for key in keys))
    console.print(table)
