"""The magnet: the guard, a process of its own that alone has the supply, and `FieldGuard`, the service's way to it."""

from realtime_skyseg.field.client import FieldGuard

__all__ = ["FieldGuard"]
