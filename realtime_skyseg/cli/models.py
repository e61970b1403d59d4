"""Commands on models: models, train, evaluate, calibrate, bench, export, quantise, import, threshold."""

import argparse
import sys
from pathlib import Path
from typing import Any

from pydantic_core import to_json

from realtime_skyseg.errors import SettingsError


def models_command(_: argparse.Namespace) -> int:
    """`skyseg models`."""
    from realtime_skyseg.segmentation.model import load_model, shipped_models

    for name in shipped_models():
        model = load_model(name)
        figures = ", ".join(f"{key} {value}" for key, value in model.training.get("validation", {}).items())
        print(f"{name}: {model.network}, sha256 {model.sha256[:16]}, validation: {figures or 'unknown'}")
    return 0


def train_command(options: argparse.Namespace) -> int:
    """`skyseg train`."""
    from realtime_skyseg import terminal
    from realtime_skyseg.analysis import Segmenter
    from realtime_skyseg.cli.scores import show_folds
    from realtime_skyseg.config import load_training
    from realtime_skyseg.plots import plot_cases, plot_crops, plot_history
    from realtime_skyseg.training.augment import preview
    from realtime_skyseg.training.evaluate import evaluate, worst
    from realtime_skyseg.training.folds import leave_out
    from realtime_skyseg.training.train import Training

    settings = load_training(options.config, options.set)
    if options.preview:
        plot_crops(*preview(settings), options.preview)
        print(f"picture: {options.preview}")
        return 0
    if options.leave_out:
        record = leave_out(settings)
        show_folds(terminal.console(), record)
        path = settings.out.with_name(f"{settings.out.stem}-folds.json")
        _write_json(path, record)
        print(f"figures: {path}")
        return 0
    training = Training(settings)
    path = training.run()
    scores, masks = evaluate(Segmenter.load(str(path), "torch"), training.validation)
    plot_history(training.history, training.report_folder / "curves.png")
    plot_cases(worst(scores, training.validation, masks), training.report_folder / "worst.png")
    print(f"model: {path}, report: {training.report_folder}")
    return 0


def evaluate_command(options: argparse.Namespace) -> int:
    """`skyseg evaluate`."""
    from realtime_skyseg import terminal
    from realtime_skyseg.analysis import Segmenter
    from realtime_skyseg.cli.scores import show_scores
    from realtime_skyseg.training.evaluate import changed, evaluate, worst
    from realtime_skyseg.training.labelled import label_values, read_labelled

    values = label_values(options.label_values) if options.label_values else None
    pairs = read_labelled(options.images, options.labels, options.table, options.fold, values)
    segmenter = Segmenter.load(options.model, options.engine)
    pairs = changed(pairs, options.invert, options.zoom, options.noise)
    scores, masks = evaluate(segmenter, pairs)
    show_scores(terminal.console(), scores.as_dict())
    if options.json:
        record = {"model": segmenter.model.name, "engine": segmenter.engine.name, **scores.as_dict()}
        _write_json(options.json, record)
    sureness = scores.sureness()
    if options.plot and sureness:
        from realtime_skyseg.plots import plot_cases, plot_sureness

        plot_sureness(sureness, options.plot / "sureness.png")
        plot_cases(worst(scores, pairs, masks), options.plot / "worst.png")
        print(f"pictures: {options.plot}")
    return 0


def bench_command(options: argparse.Namespace) -> int:
    """`skyseg bench`."""
    from realtime_skyseg.bench import against, bench, cases_of, draw, report, report_against, saturation

    rates = []
    for text in options.rate_hz or ["25"]:
        try:
            rates.append(None if text == "max" else float(text))
        except ValueError:
            raise SettingsError(f"--rate-hz '{text}': allowed: frames per second, or max") from None
    models, engines = options.model or ["compact"], options.engine or ["auto"]
    cases = cases_of(models, engines, options.size or [], rates, options.seconds, options.source, options.objects)
    if options.against or options.saturation:
        if len(cases) > 1 or (options.against and options.saturation):
            raise SettingsError("--against, --saturation: allowed: one of them, with one model, engine, size and rate")

        def tell(line: str) -> None:
            print(line, file=sys.stderr)

        if options.against:
            figures = against(cases[0], options.rounds, options.tensorflow, tell)
            report_against(figures, print)
        else:
            figures = saturation(cases[0], tell)
            print(f"highest rate with no frame missed: {figures['rate_hz']} Hz")
    else:
        figures = bench(cases)
        report(figures, print)
        if options.plot:
            draw(figures, options.plot)
    if options.json:
        _write_json(options.json, figures)
    return 0


def export_command(options: argparse.Namespace) -> int:
    """`skyseg export`."""
    from realtime_skyseg.segmentation import load_model, open_engine
    from realtime_skyseg.segmentation.cache import cache_folder

    if options.out and options.engine != "onnx":
        raise SettingsError(f"--out '{options.out}': allowed with --engine onnx; engines are kept in the user's cache")
    try:
        height, width = (int(side) for side in options.size.lower().split("x"))
    except ValueError:
        height = width = 0
    if not 16 <= min(height, width) <= max(height, width) <= 8192:
        raise SettingsError(f"--size '{options.size}': allowed: HEIGHTxWIDTH of 16 to 8192 px, for example 512x672")
    model = load_model(options.model)
    if options.engine == "onnx":
        from realtime_skyseg.segmentation.onnx_file import write_onnx

        height, width = model.shape.padded((height, width))
        out = options.out or Path(f"{model.name}-{height}x{width}.onnx")
        write_onnx(model, (height, width), out)
        print(f"{out}: image (1, 1, {height}, {width}) float32 -> mask uint8, float16 inside; not compared with torch")
        return 0
    engine = open_engine(model, (height, width), options.engine)
    where = "built at each start" if engine.name == "torch" else f"kept in {cache_folder()}"
    print(
        f"{model.name} for {height}x{width} px: {engine.name} on {engine.device} in {engine.precision}, {where}; "
        f"agrees with torch float32 on {engine.agreement:.2%} of the pixels"
    )
    return 0


def quantise_command(options: argparse.Namespace) -> int:
    """`skyseg quantise`."""
    from realtime_skyseg.segmentation import load_model
    from realtime_skyseg.segmentation.quantise import quantise
    from realtime_skyseg.training.labelled import read_labelled

    model = load_model(options.model)
    pairs = read_labelled(options.images, options.labels, options.table, options.fold)
    agreement = quantise(model, [pair.image for pair in pairs])
    print(f"{model.quantised}: agrees with torch float32 on {agreement:.2%} of the pixels; now run `skyseg evaluate`")
    return 0


def calibrate_command(options: argparse.Namespace) -> int:
    """`skyseg calibrate`."""
    from realtime_skyseg.analysis import Segmenter
    from realtime_skyseg.plots import plot_trust
    from realtime_skyseg.segmentation.model import load_model, save_trust
    from realtime_skyseg.training.calibrate import calibrate
    from realtime_skyseg.training.cases import bad_cases, good_cases
    from realtime_skyseg.training.labelled import LabelledImage, read_labelled, spread_over_folds

    if "{fold}" not in (options.left_out or "{fold}"):
        raise SettingsError(f"--left-out '{options.left_out}': allowed: names of model files, with {{fold}} in them")
    model = load_model(options.model)
    pairs = read_labelled(options.images, options.labels, options.table)
    folds = sorted({pair.fold for pair in pairs})
    made = [
        spread_over_folds(read_labelled(more / "images", more / "labels"), folds, more.name) for more in options.more
    ]
    segmenters: dict[tuple[str, tuple[int, ...]], Segmenter] = {}

    def segmenter_of(pair: LabelledImage) -> Segmenter:
        name = options.left_out.format(fold=pair.fold) if options.left_out else options.model
        key = name, pair.image.shape
        if key not in segmenters:
            segmenters[key] = Segmenter.load(name, options.engine)
        return segmenters[key]

    cases = good_cases(pairs, segmenter_of, options.seed) + bad_cases(pairs, segmenter_of, options.seed)
    for one in made:
        cases += good_cases(one, segmenter_of, options.seed, made=True)
        cases += bad_cases(one, segmenter_of, options.seed, share=0.05)
    names = sorted({pair.source for pair in pairs}, key=lambda name: (len(name), name))
    by = Path(options.left_out).name if options.left_out else model.name
    on = f"{len(pairs)} images of {len(names)} sources, {sum(map(len, made))} made; folds {folds}, looked at by {by}"
    trust, figures = calibrate(cases, on)
    save_trust(model, trust.as_dict() | {"figures": figures}, options.out)
    for fold, row in figures["folds"].items():
        print(f"fold {fold} left out: calibration error of objects {row['ece']:.3f}; the interval holds the count in "
              f"{row['held']:.1%} of {row['images']} images (worst source {row['worst_source']:.0%}), median width "
              f"{row['median_width']:.0f} at {row['median_true']:.0f} skyrmions")  # fmt: skip
    print(f"out of range: AUROC {figures['auroc']:.3f}, of mild damage {figures['auroc_mild']:.3f}; false alarms "
          f"{figures['false_alarms']:.1%}\nmodel: {options.out}")  # fmt: skip
    if options.json:
        _write_json(options.json, figures)
    if options.plot:
        plot_trust(figures, options.plot)
        print(f"picture: {options.plot}")
    return 0


def import_command(options: argparse.Namespace) -> int:
    """`skyseg import`."""
    from realtime_skyseg.segmentation.keras_file import import_keras

    out = options.out or options.file.with_suffix(".safetensors")
    classes = [name.strip() for name in options.classes.split(",")]
    print(f"model: {import_keras(options.file, classes, out)}")
    return 0


def _write_json(path: Path, record: dict[str, Any]) -> None:
    try:
        path.write_bytes(to_json(record, indent=1, inf_nan_mode="null"))  # NaN, which JSON has not, becomes null
    except OSError as error:
        raise SettingsError(f"--json: '{path}' cannot be written: {error.strerror}") from error


def threshold_command(options: argparse.Namespace) -> int:
    """`skyseg threshold`."""
    from realtime_skyseg.segmentation.threshold import save_threshold

    print(f"model: {save_threshold(options.out, options.level, options.blur_px, options.bright)}")
    return 0
