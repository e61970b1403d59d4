"""A sweep to nucleation on the twin while the sample jumps, the focus is lost and the light changes,
without and with score.

python benchmarks/trust_sweep.py [--out docs/images/trust-sweep.png]
"""

import argparse
import tempfile
from pathlib import Path

import matplotlib as mpl
import numpy as np

import realtime_skyseg as sky
from realtime_skyseg.config import load_config

CONFIG = Path(__file__).parents[1] / "configs" / "sweep_rig_twin.yaml"
FAULTS = """[{kind: drift_jump, at_s: 4, for_s: 4, px: [5, -7]}, {kind: defocus, at_s: 12, for_s: 4, px: 4},
 {kind: lamp, at_s: 20, for_s: 4, brightness: 0.95}]"""
OPTICS = (
    "{dirt_spots: 120, dirt_depth: 0.4, offset_px: [0.1, 0.1], drift_px: [0, 0]}"  # a dirty sample that stays in place
)
RULE = "{rule: stop_when, when: {quantity: count, at_least: 8, dwell_frames: 2}, back_off_mT: 0.5, then_frames: 24}"
PROGRAMME = "[{do: ramp, from_mT: 4.5, to_mT: -1, rate_mT_per_s: 0.12, step_mT: 0.03}]"


def main() -> None:
    """Run twice, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/images/trust-sweep.png"))
    parser.add_argument("--seed", type=int, default=3)
    arguments = parser.parse_args()
    mpl.use("agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7), layout="constrained")
    rows = figure.subplots(2, 1, sharex=True)
    with tempfile.TemporaryDirectory() as folder:
        for axis, with_score in zip(rows, (False, True), strict=True):
            name = "with" if with_score else "without"
            lines = [
                f"camera.faults={FAULTS}", f"camera.sample.seed={arguments.seed}", f"camera.optics={OPTICS}",
                "camera.height_px=320", "camera.width_px=320", "analysers={domain: {}, sureness: {}}",
                "stream.enabled=false", "measure.min_area_px=10",
                f"experiment={{programme: {PROGRAMME}, rules: [{RULE}], settle_s: 0, frames: 1}}",
                f"record.folder={folder}", f"record.name={name}",
            ]  # fmt: skip
            if with_score:
                lines += ["experiment.min_domain=0.5", "experiment.out_of_range=pause", "experiment.out_of_range_s=1"]
            summary = sky.Service(load_config(CONFIG, lines)).run()
            with sky.open_run(summary.run_file) as run:
                table, experiment = run.table, run.experiment
                events = [(event["kind"], event["frame"], event["message"]) for event in run.events]
                decisions = experiment["decisions"] if experiment else []
            time_s, field = table["time_s"], table["field_mT"]
            acted = [row for row in decisions if row["acted"]]
            print(name, "score:", summary.status, f"ends at {field[np.isfinite(field)][-1]:.2f} mT,",
                  [(int(row["frame"]), row["reason"].decode()) for row in acted])  # fmt: skip
            for kind, frame, message in events:
                if kind in ("out_of_range", "in_range", "experiment_paused", "experiment_resumed"):
                    print("   ", frame, kind, message)
            axis.plot(time_s, table["count"], color="tab:red", label="count")
            axis.set_ylim(-0.5, max(12, np.nanpercentile(table["count"], 98) * 1.1))
            out = table["domain"] < 0.5
            axis.fill_between(time_s, 0, 1, where=out, transform=axis.get_xaxis_transform(), color="tab:purple",
                              alpha=0.15, label="out of range")  # fmt: skip
            right = axis.twinx()
            right.plot(time_s, field, color="tab:blue")
            right.set_ylabel("field (mT)", color="tab:blue")
            for row in acted[:1]:
                axis.axvline(time_s[row["frame"]], color="black", linestyle=":", label="the rule stops the sweep")
            axis.set_ylabel("skyrmions counted", color="tab:red")
            axis.set_title(f"{name} score: jump of the sample at 4 s, lost focus at 12 s, 5 % less light at 20 s")
            axis.legend(loc="upper center")
    rows[1].set_xlabel("time (s)")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.out, dpi=90)


if __name__ == "__main__":
    main()
