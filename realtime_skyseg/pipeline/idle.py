"""Analysers beside the frames' path: each in a thread of its own, with the newest frame whenever it is free."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

from realtime_skyseg.analysers import RunningAnalyser, View
from realtime_skyseg.pipeline.channel import Channel, Closed
from realtime_skyseg.pipeline.latency import Latency
from realtime_skyseg.records import LateResult

#: Whoever does not return for so long, at the end of a run, is left behind.
_LEAVE_S = 2.0


class IdleAnalysers:
    """Owns its threads, from the first `offer` to `close`.

    Args:
        analysers: of pace `when_idle`.
        found: takes what they find; returns at once.
        event: takes a kind, a sentence and the index of a frame.
    """

    def __init__(
        self,
        analysers: Sequence[RunningAnalyser],
        found: Callable[[LateResult], None],
        event: Callable[[str, str, int], None],
    ) -> None:
        self._found = found
        self._event = event
        self.latency = {analyser.name: Latency() for analyser in analysers}
        self._idle = {analyser.name: True for analyser in analysers}
        self._views: dict[str, Channel[View]] = {analyser.name: Channel(1) for analyser in analysers}
        self._threads = [
            threading.Thread(target=self._work, args=(analyser,), name=f"skyseg-{analyser.name}", daemon=True)
            for analyser in analysers
        ]
        self._begun = False

    def offer(self, view: View) -> None:
        """Hand the newest frame to those that are free. Costs a copy of the image if there is one, else nothing."""
        if not self._begun:
            self._begun = True
            for thread in self._threads:
                thread.start()
        free = [name for name, idle in self._idle.items() if idle]
        if not free:
            return
        image = view.image.copy()
        for name in free:
            self._idle[name] = False
            copy = replace(view, image=image, values=dict(view.values))
            self._views[name].put(copy, wait=False)

    def close(self) -> list[str]:
        """End the threads; the names of those that do not return."""
        for views in self._views.values():
            views.close()
        for thread in self._threads if self._begun else ():
            thread.join(_LEAVE_S)
        return [thread.name.removeprefix("skyseg-") for thread in self._threads if thread.is_alive()]

    def _work(self, analyser: RunningAnalyser) -> None:
        views = self._views[analyser.name]
        while True:
            self._idle[analyser.name] = not analyser.off
            try:
                view = views.get(60.0)
            except Closed:
                return
            if view is None:
                continue
            one = analyser(view)
            self.latency[analyser.name].add(analyser.took_ns)
            for kind, message in one.events:
                self._event(kind, message, view.frame)
            if one.values or one.maps:
                self._found(LateResult(analyser.name, view.frame, one.values, one.maps))
