"""A run that goes on in a thread of its own."""

import threading
from types import TracebackType
from typing import TYPE_CHECKING, Self

from realtime_skyseg.service.summary import Summary

if TYPE_CHECKING:
    from realtime_skyseg.service.service import Service


class RunningService:
    """A run that has begun. Owns its thread until `wait`; as a context manager it ends the run.

    Attributes:
        service: whose run it is.
        address: of the stream; empty if nothing is published.
        control_address: of the control socket; empty if there is none.
    """

    def __init__(self, service: "Service") -> None:
        self.service = service
        self._summary: Summary | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="skyseg-run")
        service.opened.clear()
        self._thread.start()
        service.opened.wait()
        if self._error:
            self._thread.join()
            raise self._error
        self.address, self.control_address = service.address, service.control_address

    def stop(self) -> None:
        """Ask the run to end; what was received is still analysed and written."""
        self.service.stop()

    def wait(self) -> Summary:
        """Wait for the end of the run; raises what ended it. Safe to call twice."""
        self._thread.join()
        if self._error:
            raise self._error
        assert self._summary is not None
        return self._summary

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._summary = self.service.run()
        except BaseException as error:
            self._error = error
        finally:
            self.service.opened.set()  # nobody waits for addresses that never come
