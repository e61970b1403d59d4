"""What this computer can do: latencies of whole runs, stage by stage, engine by engine, size by size; the highest rate
that it keeps up with; and what others need for the same frames.

Each measurement is a real run of the service, from a replayed recording to a subscriber in another process, with the
run file written. Frames of other sizes are cut and mirrored from the recording's; frames of so many objects are made.
"""

from realtime_skyseg.bench.case import Case, cases_of
from realtime_skyseg.bench.latency import bench
from realtime_skyseg.bench.made_frames import discs
from realtime_skyseg.bench.peer import against
from realtime_skyseg.bench.report import draw, report, report_against
from realtime_skyseg.bench.saturation import saturation

__all__ = [
    "Case",
    "against",
    "bench",
    "cases_of",
    "discs",
    "draw",
    "report",
    "report_against",
    "saturation",
]
