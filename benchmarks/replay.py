"""Does this computer keep up? Replays the bundled recording at a camera's rate under policy `latest`.


python benchmarks/replay.py --rate-hz 25 --seconds 60
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import realtime_skyseg as sky
from realtime_skyseg.config import validate


def main() -> int:
    """Print the summary as JSON; 0 where every frame was analysed and written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate-hz", type=float, default=25.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--engine", default="auto", choices=("auto", "torch", "openvino", "openvino-int8"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = validate(
            {
                "camera": {
                    "driver": "replay",
                    "rate_hz": options.rate_hz,
                    "loop": True,
                    "limit": round(options.rate_hz * options.seconds),
                },
                "analysis": {"policy": "latest", "engine": options.engine},
                "stream": {"address": "tcp://127.0.0.1:0"},
                "record": {"folder": folder},
            }
        )
        summary = sky.Service(config).run()
        size_mb = Path(summary.run_file).stat().st_size / 1e6
    print(json.dumps(summary.as_dict()))
    frames, total = summary.frames, summary.latency_ms["total"]
    print(
        f"{frames['analysed']} of {frames['received']} frames analysed, {frames['written']} written ({size_mb:.0f} MB) "
        f"at {summary.rate_hz:.1f} frames/s; total p50 {total['p50']} ms, p99 {total['p99']} ms, max {total['max']} ms"
    )
    return 0 if frames["received"] == frames["analysed"] == frames["written"] else 1


if __name__ == "__main__":
    sys.exit(main())
