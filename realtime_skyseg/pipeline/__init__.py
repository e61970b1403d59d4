"""The threads of a run, and the books that balance."""

from realtime_skyseg.pipeline.channel import Channel, Closed
from realtime_skyseg.pipeline.latency import STAGES, Latency
from realtime_skyseg.pipeline.pipeline import Flow, Pipeline

__all__ = ["STAGES", "Channel", "Closed", "Flow", "Latency", "Pipeline"]
