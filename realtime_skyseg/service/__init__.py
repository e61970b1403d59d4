"""One run from its settings: camera, engine, stream and file put together, and the summary at the end."""

from realtime_skyseg.service.handle import RunningService
from realtime_skyseg.service.service import Service
from realtime_skyseg.service.summary import Summary

__all__ = ["RunningService", "Service", "Summary"]
