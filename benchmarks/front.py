"""Accuracy against latency of the network's shapes: a small grid of stems, channels, depths and split convolutions.

    python benchmarks/front.py OUT [--train --data FOLDER] [--plot docs/images/front.png] [--json FILE] [--rounds N]

`--train` trains each shape of the grid on folds 0 to 3 by configs/train.yaml, all alike and without a teacher, and
scores it on fold 5: some five minutes each on a core. FOLDER has images/, labels/ and table.csv. OUT gets a model and a
JSON file per shape; what is there already is not trained again. Latency depends on the shape alone, and is that of
random weights, in bfloat16 (float32 where the processor has none), all in turn. Two more points are the shipped models,
which were trained for longer.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch.utils.flop_counter import FlopCounterMode

from realtime_skyseg.config import SHAPE_KEYS, load_training
from realtime_skyseg.segmentation import load_model
from realtime_skyseg.segmentation.model import Model, save_model
from realtime_skyseg.segmentation.network import UNet
from realtime_skyseg.segmentation.openvino_engine import capabilities, graph_of, openvino
from realtime_skyseg.segmentation.shape import NetworkShape
from realtime_skyseg.training.train import Training

SIZE = (512, 672)
KEYS = ("skyrmion_iou", "object_f1")
GRID = [
    NetworkShape(2, 8, 3), NetworkShape(2, 16, 2), NetworkShape(2, 16, 3), NetworkShape(2, 16, 3, doubled_from=2),
    NetworkShape(2, 16, 3, doubled_from=2, split_levels=1), NetworkShape(2, 16, 3, doubled_from=2, split_levels=4),
    NetworkShape(2, 16, 3, split_levels=4), NetworkShape(4, 32, 2, doubled_from=2),
]  # fmt: skip


def train(shape: NetworkShape, out: Path, data: Path) -> None:
    """Train and score a shape; nothing where that was done."""
    result = out / f"{label(shape)}.json"
    if result.is_file():
        return
    out.mkdir(parents=True, exist_ok=True)
    values = {key: getattr(shape, key) for key in SHAPE_KEYS}
    values |= {"images": data / "images", "labels": data / "labels", "table": data / "table.csv"}
    values["out"] = out / f"{label(shape)}.safetensors"
    config = Path(__file__).parents[1] / "configs" / "train.yaml"
    training = Training(load_training(config, [f"{key}={value}" for key, value in values.items()]))
    figures = load_model(str(training.run())).training["validation"]
    result.write_text(json.dumps({key: figures[key] for key in KEYS}))


def request_of(graph: openvino.Model) -> Any:
    """An inference request of the graph with an image in it."""
    hints = {
        "INFERENCE_PRECISION_HINT": "bf16" if "BF16" in capabilities() else "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    graph.reshape([1, 1, *SIZE])
    request = openvino.Core().compile_model(graph, "CPU", hints).create_infer_request()
    image = np.random.default_rng(0).normal(size=(1, 1, *SIZE)).astype(np.float32)
    request.set_input_tensor(openvino.Tensor(image))
    request.infer()
    return request


def model_of(shape: NetworkShape, folder: Path) -> Model:
    """A model of that shape with random weights."""
    torch.manual_seed(0)
    path = folder / f"{label(shape)}.safetensors"
    save_model(UNet(shape).eval(), path, {})
    return load_model(str(path))


def label(shape: NetworkShape) -> str:
    """Stem, channels and depth; `=` where the second level has as many channels, `s` and the levels that are split."""
    same = "=" * (shape.doubled_from - 1)
    return f"u{shape.unshuffle} f{shape.filters}{same} d{shape.depth}" + f" s{shape.split_levels}" * (
        shape.split_levels > 0
    )


def described(model: Model) -> dict[str, Any]:
    """Its arithmetic and parameters."""
    parameters = sum(value.numel() for value in model.load_network().parameters())
    return {"gflop": round(gflop(model), 2), "parameters": parameters}


def gflop(model: Model) -> float:
    """Of one frame."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model.load_network()(torch.zeros(1, 1, *SIZE))
    return counter.get_total_flops() / 1e9


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.train:
        if options.data is None:
            parser.error("--train needs --data FOLDER")
        for shape in GRID:
            train(shape, options.out, options.data)
    points: dict[str, dict[str, Any]] = {}
    requests = {}
    with tempfile.TemporaryDirectory() as folder:
        for shape in GRID:
            model, scores = model_of(shape, Path(folder)), options.out / f"{label(shape)}.json"
            points[label(shape)] = described(model) | (json.loads(scores.read_text()) if scores.is_file() else {})
            requests[label(shape)] = request_of(graph_of(model, SIZE))
    for name in ("compact", "accurate"):
        model = load_model(name)
        points[name] = described(model) | {key: model.training["validation"][key] for key in KEYS}
        requests[name] = request_of(graph_of(model, SIZE))
    times: dict[str, list[float]] = {name: [] for name in requests}
    for _ in range(options.rounds):
        for name, request in requests.items():
            calls = []
            for _ in range(10):
                begun = time.perf_counter()
                request.infer()
                calls.append((time.perf_counter() - begun) * 1e3)
            times[name].append(statistics.median(calls))
    print("| shape | parameters | GFLOP | ms | IoU | object F1 |\n| --- | --- | --- | --- | --- | --- |")
    for name, point in sorted(points.items(), key=lambda item: statistics.median(times[item[0]])):
        point["ms"] = round(statistics.median(times[name]), 2)
        scores = " | ".join(f"{point[key]:.3f}" if key in point else "" for key in KEYS)
        print(f"| {name} | {point['parameters']:,} | {point['gflop']} | {point['ms']} | {scores} |")
    if options.json:
        options.json.write_text(json.dumps(points, indent=1))
    if options.plot:
        draw({name: point for name, point in points.items() if KEYS[0] in point}, options.plot)


def draw(points: dict[str, dict[str, Any]], path: Path) -> None:
    """Both scores over latency; the front joins the trainings that no faster one of the grid is better than."""
    figure = Figure(figsize=(9, 8), layout="constrained")
    titles = {"skyrmion_iou": "skyrmion IoU", "object_f1": "object F1"}
    shipped = {"compact", "accurate"}
    for axes, key in zip(figure.subplots(2, 1, sharex=True), KEYS, strict=True):
        best, front = -1.0, []
        upwards = False
        for name, point in sorted(points.items(), key=lambda item: item[1]["ms"]):
            axes.plot(point["ms"], point[key], "o", color="tab:red" if name in shipped else "tab:blue")
            upwards = name in shipped or not upwards  # neighbours' names go apart
            place, turn, side = ((3, 5), 38, "bottom") if upwards else ((3, -5), -38, "top")
            axes.annotate(
                name, (point["ms"], point[key]), place, textcoords="offset points", fontsize=8, rotation=turn, va=side
            )
            if name not in shipped and point[key] > best:
                best = point[key]
                front.append((point["ms"], best))
        axes.plot(*zip(*front, strict=True), "--", color="tab:blue", linewidth=1, alpha=0.4)
        axes.set(ylabel=f"{titles[key]}, fold 5", xscale="log")
        axes.margins(x=0.15, y=0.22)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("{x:g}")
    axes.set(xlabel="latency of the network, 512x672 (ms); blue: trained alike, red: as shipped")
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    main()
