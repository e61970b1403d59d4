"""The state of a running service for Prometheus, at http://127.0.0.1:PORT/metrics."""

from collections.abc import Callable, Iterable
from threading import Thread
from typing import Any, cast
from wsgiref.simple_server import WSGIServer

from realtime_skyseg.errors import MissingExtraError, SettingsError

#: Name in the status of the service, kind, and what it is.
_GAUGES = {
    "rate_hz": ("rate_hz", "Frames received per second since the start of the run"),
    "count": ("skyrmions", "Skyrmions in the last frame that was analysed"),
    "stripes": ("stripes", "Stripes in the last frame that was analysed"),
    "field_mT": ("field_millitesla", "Field read back"),
}


class Metrics:
    """An HTTP server on this computer. It asks the service when somebody looks, in a thread of its own.

    Owns the server and its thread, until `close`.

    Args:
        port: to listen at; 0: a free one.
        status: the service's `status`, as the control socket gives it.
        latency_ms: stage: p50, p99, p99_9, max; None where nothing was measured.

    Raises:
        MissingExtraError: prometheus-client is not installed.
        SettingsError: the port is taken.
    """

    def __init__(
        self,
        port: int,
        status: Callable[[], dict[str, Any]],
        latency_ms: Callable[[], dict[str, dict[str, float | None]]],
    ) -> None:
        try:
            from prometheus_client import CollectorRegistry, start_http_server
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                f"metrics.port needs the package '{error.name}', which is not installed: "
                "pip install 'realtime_skyseg[metrics]'"
            ) from error
        self._status, self._latency_ms = status, latency_ms
        registry = CollectorRegistry()
        registry.register(cast(Any, self))  # a collector is whatever has `collect`
        self._server: WSGIServer
        self._thread: Thread
        try:
            self._server, self._thread = start_http_server(port, "127.0.0.1", registry)
        except OSError as error:
            raise SettingsError(f"metrics.port: {port} cannot be used: {error.strerror}") from error
        self.port = self._server.server_port

    def collect(self) -> Iterable[Any]:
        """What the service is doing now; called by prometheus-client for each look."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        status = self._status()
        frames = status["frames"]
        for name in ("received", "analysed", "written"):
            yield CounterMetricFamily(f"skyseg_frames_{name}", f"Frames {name}", value=frames[name])
        for name in ("not_analysed", "not_written"):
            counter = CounterMetricFamily(f"skyseg_frames_{name}", f"Frames {name.replace('_', ' ')}", labels=["cause"])
            for cause, count in frames[name].items():
                counter.add_metric([cause], count)
            yield counter
        yield CounterMetricFamily("skyseg_camera_lost", "Frames lost by the camera", value=frames["camera_lost"])
        yield CounterMetricFamily("skyseg_lost_messages", "Messages a subscriber lost", value=status["lost_messages"])
        yield GaugeMetricFamily("skyseg_fault", "1 after a fault", value=float(bool(status["fault"])))
        for key, (name, text) in _GAUGES.items():
            if status[key] is not None:
                yield GaugeMetricFamily(f"skyseg_{name}", text, value=status[key])
        gauge = GaugeMetricFamily("skyseg_latency_seconds", "Latency of a stage", labels=["stage", "quantile"])
        for stage, values in self._latency_ms().items():
            for quantile, value in values.items():
                if value is not None:
                    gauge.add_metric([stage, quantile], value / 1e3)
        yield gauge

    def close(self) -> None:
        """End the server and its thread. Safe to call twice."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
