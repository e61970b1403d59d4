"""Each layer of a model's network against what this processor could do at best: its own roofline.

    python benchmarks/roofline.py [--model compact] [--size 512x672] [--threads N] [--plot PNG] [--json FILE]

OpenVINO's counters give the time of each layer as it is run, fused with what follows it. The least time that a layer
can take is the larger of its arithmetic at the peak of a large matrix product, and its traffic (inputs, outputs and
weights, each once) at the bandwidth of a large copy, both measured in the same run, between the rounds. For 8 bits the
peak is measured by a convolution of 512 channels in OpenVINO, for bfloat16 and float32 by torch's product of 4096x4096
matrices and by the same convolution; the larger counts. Times are the shortest of ten calls, in the median over the
rounds. Williams, Waterman and Patterson, CACM 52(4), 2009.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from realtime_skyseg.segmentation import load_model, open_engine
from realtime_skyseg.segmentation.openvino_engine import capabilities, graph_of, openvino

BYTES = {"f32": 4, "bf16": 2, "f16": 2, "u8": 1, "i8": 1, "i32": 4, "u1": 1, "boolean": 1, "i64": 8}
HINTS = {"bfloat16": "bf16", "float32": "f32", "int8": "bf16"}


@dataclass
class Layer:
    """A layer as it is run: `kind` and `precision` are what OpenVINO says of its implementation."""

    name: str
    kind: str
    precision: str
    gflop: float
    megabytes: float
    us: float = 0.0

    def least_us(self, peaks: dict[str, float], bandwidth_GBps: float) -> tuple[float, str]:
        """The larger of arithmetic and traffic, and which it is."""
        arithmetic = self.gflop / peaks[self.precision] * 1e6 if self.gflop else 0.0
        traffic = self.megabytes / bandwidth_GBps * 1e3
        return max(arithmetic, traffic), "arithmetic" if arithmetic >= traffic else "traffic"


def compiled(graph: openvino.Model, hint: str, threads: int, count: bool = True) -> openvino.CompiledModel:
    """The graph on the CPU, with counters."""
    properties = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    return openvino.Core().compile_model(graph, "CPU", properties | {"PERF_COUNT": count})


def layers_of(model: openvino.CompiledModel) -> dict[str, Layer]:
    """The layers of the graph as it is run, in its order."""
    layers = {}
    for node in model.get_runtime_model().get_ordered_ops():
        info = {key: value.astype(str) for key, value in node.get_rt_info().items()}
        kind = info.get("layerType", node.get_type_name())
        if kind in ("Input", "Output", "Const", "Constant", "Parameter", "Result"):
            continue
        outputs = list(node.outputs())
        out = outputs[0].get_shape()
        traffic = sum(int(np.prod(o.get_shape())) * BYTES.get(o.get_element_type().get_type_name(), 4) for o in outputs)
        flop = 0
        for number, source in enumerate(node.input_values()):
            size = int(np.prod(source.get_shape()))
            width = BYTES.get(source.get_element_type().get_type_name(), 4)
            traffic += size * width
            if kind == "Convolution" and number == 1:
                flop = 2 * int(np.prod(source.get_shape()[1:])) * int(np.prod(out))
        precision = info.get("runtimePrecision", "f32").lower()
        layers[node.get_friendly_name()] = Layer(node.get_friendly_name(), kind, precision, flop / 1e9, traffic / 1e6)
    return layers


def best(call: Callable[[], object], calls: int) -> float:
    """Shortest time of a call, seconds."""
    times = []
    for _ in range(calls):
        begun = time.perf_counter()
        call()
        times.append(time.perf_counter() - begun)
    return min(times)


def convolution(hint: str, threads: int, int8: bool) -> Callable[[], float]:
    """Something that measures GFLOP/s of a 3x3 convolution of 512 channels on 56x56 px."""
    op = openvino.opset13
    n, side = 512, 56
    image = op.parameter([1, n, side, side], np.float32)
    weights = np.random.default_rng(0).integers(-127, 127, (n, n, 3, 3)).astype(np.int8)
    if int8:
        x = op.fake_quantize(image, *(op.constant(np.float32(v)) for v in (0, 2.55, 0, 2.55)), 256)
        w = op.multiply(op.convert(op.constant(weights), "f32"), op.constant(np.full((n, 1, 1, 1), 0.01, np.float32)))
    else:
        x, w = image, op.constant(weights.astype(np.float32) / 100)
    y = op.convolution(x, w, [1, 1], [1, 1], [1, 1], [1, 1])
    if int8:  # so that neither input nor output is a float that takes longer than the product
        y = op.fake_quantize(op.relu(y), *(op.constant(np.float32(v)) for v in (0, 2.55, 0, 2.55)), 256)
        w2 = op.multiply(op.convert(op.constant(weights), "f32"), op.constant(np.full((n, 1, 1, 1), 0.01, np.float32)))
        y = op.convolution(y, w2, [1, 1], [1, 1], [1, 1], [1, 1])
    request = compiled(openvino.Model([y], [image], "peak"), hint, threads).create_infer_request()
    request.set_input_tensor(openvino.Tensor(np.random.default_rng(1).random((1, n, side, side)).astype(np.float32)))
    work = 2 * 9 * n * n * side * side / 1e9

    def measure() -> float:
        figures = []
        for _ in range(4):
            request.infer()
            times = [i.real_time.total_seconds() for i in request.get_profiling_info() if i.node_type == "Convolution"]
            figures.append(work / min(value for value in times if value > 0))
        return max(figures)

    return measure


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="compact")
    parser.add_argument("--size", default="512x672")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    height, width = (int(side) for side in options.size.split("x"))
    torch.set_num_threads(options.threads)
    model = load_model(options.model)
    engine: Any = open_engine(model, (height, width), "openvino", options.threads)
    wide = "bf16" if "BF16" in capabilities() and engine.precision != "float32" else "f32"
    graph = engine_graph(engine, model, (height, width))
    counted = compiled(graph, wide, options.threads)
    layers = layers_of(counted)
    request = counted.create_infer_request()
    request.set_input_tensor(
        openvino.Tensor(np.random.default_rng(0).normal(size=(1, 1, *engine.input.shape)).astype(np.float32))
    )
    engine.input[...] = np.random.default_rng(0).normal(size=engine.input.shape)

    dtype = {"bf16": torch.bfloat16, "f32": torch.float32}
    matrices = {name: [torch.rand(4096, 4096).to(dtype[name]) for _ in range(2)] for name in {wide, "f32"}}
    convolutions = {name: convolution(name, options.threads, int8=False) for name in {wide, "f32"}}
    convolutions["i8"] = convolution(wide, options.threads, int8=True)
    source = torch.rand(32 << 20)
    target = torch.empty_like(source)
    peaks: dict[str, list[float]] = {name: [] for name in convolutions}
    copies: list[float] = []
    whole: list[float] = []
    took: dict[str, list[float]] = {name: [] for name in layers}
    for _ in range(options.rounds):
        for name, (a, b) in matrices.items():
            peaks[name].append(2 * 4096**3 / 1e9 / best(lambda a=a, b=b: a @ b, 2))
        for name, measure in convolutions.items():
            peaks[name].append(measure())
        copies.append(2 * 4 * len(source) / 1e9 / best(lambda: target.copy_(source), 4))
        whole.append(best(engine.run, 20) * 1e6)
        shortest = dict.fromkeys(took, float("inf"))
        for _ in range(10):
            request.infer()
            for info in request.get_profiling_info():
                if info.node_name in took and info.status.name == "EXECUTED":
                    us = info.real_time.total_seconds() * 1e6
                    shortest[info.node_name] = min(shortest[info.node_name], us)
        for name, us in shortest.items():
            if us < float("inf"):
                took[name].append(us)
    peak = {name: max(values) for name, values in peaks.items()}
    peak["u8"] = peak["i8"]
    bandwidth = max(copies)
    rows = []
    for name, layer in layers.items():
        if took[name]:
            layer.us = statistics.median(took[name])
            least, binds = layer.least_us({**dict.fromkeys(BYTES, peak["f32"]), **peak}, bandwidth)
            rows.append((layer, least, binds))
    total, least = sum(row[0].us for row in rows), sum(row[1] for row in rows)
    print(f"{model.name} {engine.precision} {height}x{width}, {options.threads} threads, {engine.device}")
    print("peak GFLOP/s: " + ", ".join(f"{name} {value:.0f}" for name, value in peak.items() if name != "u8")
          + f"; copy {bandwidth:.1f} GB/s")  # fmt: skip
    print("\n| layer | precision | GFLOP | MB | us | least us | binds | share |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for number, (layer, least_us, binds) in enumerate(rows):
        share = f"{least_us / layer.us:.0%}" if layer.us else ""
        what = f"{number} {layer.kind} | {layer.precision} | {layer.gflop:.3f} | {layer.megabytes:.2f}"
        print(f"| {what} | {layer.us:.0f} | {least_us:.0f} | {binds} | {share} |")
    figures = {
        "peaks_GFLOPps": peak, "copy_GBps": bandwidth, "gflop": sum(row[0].gflop for row in rows),
        "layers_us": total, "least_us": least, "run_us": statistics.median(whole),
        "share_of_layers": least / total, "share_of_run": least / statistics.median(whole),
    }  # fmt: skip
    print(f"\nlayers {total:.0f} us, least {least:.0f} us: {least / total:.0%}; run {figures['run_us']:.0f} us without "
          f"counters: {figures['share_of_run']:.0%}; {figures['gflop']:.2f} GFLOP")  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))
    if options.plot:
        draw(
            rows,
            peak,
            bandwidth,
            f"{model.name}, {engine.precision}, {height}x{width}: {least / total:.0%} of its roofline",
            options.plot,
        )


def engine_graph(engine: Any, model: Any, shape: tuple[int, int]) -> openvino.Model:
    """The graph that the engine runs."""
    if engine.precision == "int8":
        graph = openvino.Core().read_model(model.quantised)
        graph.reshape([1, 1, *engine.input.shape])
        return graph
    return graph_of(model, engine.input.shape)


def draw(rows: list[Any], peak: dict[str, float], bandwidth: float, title: str, path: Path) -> None:
    """Bars: time of each layer, and the least that it could take."""
    figure = Figure(figsize=(11, 0.26 * len(rows) + 1.4), layout="constrained")
    axis = figure.subplots()
    places = np.arange(len(rows))
    axis.barh(places, [row[0].us for row in rows], color="lightgray", label="measured")
    for binds, colour in (("arithmetic", "tab:blue"), ("traffic", "tab:orange")):
        chosen = [k for k, row in enumerate(rows) if row[2] == binds]
        axis.barh(chosen, [rows[k][1] for k in chosen], height=0.45, color=colour, label=f"least, by {binds}")
    axis.set_yticks(places, [f"{row[0].kind} {row[0].precision}" for row in rows], fontsize=7)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set(xlabel="time (us)", title=title)
    axis.legend()
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
