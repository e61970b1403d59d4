"""Accuracy against latency of the network's shapes: a small grid of stems, channels and depths, and what was trained.

    python benchmarks/front.py --plot docs/images/front.png [--json FILE] [--rounds N]

Latency depends on a network's shape alone, so shapes of the grid are timed with random weights, in bfloat16 (float32
where the processor has none), all in turn. Accuracy stands only at the shapes that were trained: the figures in the
model files of the shipped models, and for the graph in 8 bits those of `--scores`, on fold 5.
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

from realtime_skyseg.segmentation import load_model
from realtime_skyseg.segmentation.model import Model, NetworkShape, save_model
from realtime_skyseg.segmentation.network import UNet
from realtime_skyseg.segmentation.openvino_engine import capabilities, graph_of, openvino

SIZE = (512, 672)
GRID = [
    NetworkShape(unshuffle, filters, depth)
    for unshuffle, filters, depth in (
        (1, 8, 3), (2, 8, 2), (2, 8, 3), (2, 16, 2), (2, 16, 3), (2, 16, 4), (2, 24, 3), (2, 32, 2), (2, 32, 3),
        (4, 16, 2), (4, 24, 2), (4, 32, 2), (4, 48, 2),
    )
]  # fmt: skip


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
    """Stem, channels and depth."""
    return f"u{shape.unshuffle} f{shape.filters} d{shape.depth}"


def gflop(model: Model) -> float:
    """Of one frame."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model.load_network()(torch.zeros(1, 1, *SIZE))
    return counter.get_total_flops() / 1e9


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--scores", type=Path, metavar="JSON", help="of compact in 8 bits: skyseg evaluate --json")
    options = parser.parse_args()
    points: dict[str, dict[str, Any]] = {}
    requests = {}
    with tempfile.TemporaryDirectory() as folder:
        for shape in GRID:
            model = model_of(shape, Path(folder))
            parameters = sum(value.numel() for value in model.load_network().parameters())
            points[label(shape)] = {"gflop": round(gflop(model), 2), "parameters": parameters}
            requests[label(shape)] = request_of(graph_of(model, SIZE))
    for name in ("compact", "accurate"):
        model = load_model(name)
        found = model.training["validation"]
        for key in ("skyrmion_iou", "object_f1"):
            points[label(model.shape)][key] = found[key]
        points[label(model.shape)]["model"] = name
        if model.quantised.is_file():
            points[f"{label(model.shape)} int8"] = {
                "gflop": points[label(model.shape)]["gflop"],
                "model": f"{name} int8",
            }
            requests[f"{label(model.shape)} int8"] = request_of(openvino.Core().read_model(model.quantised))
    if options.scores:
        found = json.loads(options.scores.read_text())
        for key in ("skyrmion_iou", "object_f1"):
            points[f"{label(load_model('compact').shape)} int8"][key] = found[key]
    times: dict[str, list[float]] = {name: [] for name in requests}
    for _ in range(options.rounds):
        for name, request in requests.items():
            calls = []
            for _ in range(10):
                begun = time.perf_counter()
                request.infer()
                calls.append((time.perf_counter() - begun) * 1e3)
            times[name].append(statistics.median(calls))
    print("| shape | GFLOP | ms | IoU | object F1 |\n| --- | --- | --- | --- | --- |")
    for name, point in sorted(points.items(), key=lambda item: statistics.median(times[item[0]])):
        point["ms"] = round(statistics.median(times[name]), 2)
        scores = " | ".join(f"{point[key]:.3f}" if key in point else "" for key in ("skyrmion_iou", "object_f1"))
        which = f" ({point['model']})" if "model" in point else ""
        print(f"| {name}{which} | {point['gflop']} | {point['ms']} | {scores} |")
    if options.json:
        options.json.write_text(json.dumps(points, indent=1))
    if options.plot:
        draw(points, options.plot)


def draw(points: dict[str, dict[str, Any]], path: Path) -> None:
    """Above, the accuracy of the trained shapes; below, the work of all shapes; both over latency."""
    figure = Figure(figsize=(9, 8), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    trained = [point for point in points.values() if "skyrmion_iou" in point]
    for key, colour, text in (("skyrmion_iou", "tab:red", "skyrmion IoU"), ("object_f1", "tab:blue", "object F1")):
        above.plot([p["ms"] for p in trained], [p[key] for p in trained], "o", color=colour, label=f"{text}, fold 5")
    for point in trained:
        place = (point["ms"], point["skyrmion_iou"])
        above.annotate(point["model"], place, (0, -14), textcoords="offset points", fontsize=8, ha="center")
    above.set(ylabel="score", ylim=(0.74, 0.84))
    above.legend(title="trained shapes only", fontsize=8)
    for name, point in points.items():
        colour = "tab:red" if point in trained else "gray"
        below.plot(point["ms"], point["gflop"], "o", color=colour)
        below.annotate(name, (point["ms"], point["gflop"]), (5, 3), textcoords="offset points", fontsize=7)
    below.set(xscale="log", yscale="log", ylabel="GFLOP per frame (grey: never trained)")
    below.set(xlabel="latency of the network, 512x672, bf16 unless named (ms)")
    below.margins(x=0.12)
    for axis in (below.xaxis, below.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("{x:g}")
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    main()
