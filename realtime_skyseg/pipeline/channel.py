"""A bounded hand-over between threads."""

import contextlib
import threading
import time
from collections import deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Closed(Exception):  # noqa: N818  no error
    """A channel is closed and empty."""


class Channel(Generic[Item]):
    """A bounded hand-over between threads, from any to one. With `newest_wins` an item that finds it full replaces all
    that wait.

    `take` waits on a lock, which wakes it in half the time that a `threading.Condition` needs: every frame passes here.
    `put` waits for room on a condition, which happens rarely.
    """

    def __init__(self, capacity: int, newest_wins: bool = False) -> None:
        self._items: deque[Item] = deque()
        self._capacity = capacity
        self._newest_wins = newest_wins
        self._closed = False
        self._room = threading.Condition()  # held to put and to close
        self._waiting = 0  # for room
        self._news = threading.Lock()  # released where there is something to look for
        self._news.acquire()

    @property
    def fill(self) -> float:
        """Share of the capacity that is taken."""
        return len(self._items) / self._capacity

    def put(self, item: Item, wait: bool, timeout_s: float | None = None, wake: bool = True) -> bool:
        """Hand an item over. False where the channel is closed, or full: at once, or with `wait` after `timeout_s`.

        Without `wake` whoever takes sleeps on until `wake` is called.
        """
        with self._room:
            if self._newest_wins and not self._closed and len(self._items) >= self._capacity:
                self._items.clear()
            if wait and len(self._items) >= self._capacity:
                self._waiting += 1  # before the items are looked at: `get` looks in the other order
                self._room.wait_for(lambda: self._closed or len(self._items) < self._capacity, timeout_s)
                self._waiting -= 1
            if self._closed or len(self._items) >= self._capacity:
                return False
            self._items.append(item)
        if wake:
            self.wake()
        return True

    def wake(self) -> None:
        """Wake whoever takes."""
        with contextlib.suppress(RuntimeError):  # it was woken before, and did not look yet
            self._news.release()

    def get(self, timeout_s: float) -> Item | None:
        """Take the oldest item; None when none came in time. Raises `Closed` once the channel is closed and empty."""
        deadline = time.monotonic() + timeout_s
        while True:
            closed = self._closed  # before the items are looked at: nothing comes after
            try:
                item = self._items.popleft()
                break
            except IndexError:
                if closed:
                    raise Closed from None
            if not self._news.acquire(timeout=max(deadline - time.monotonic(), 0.0)):
                return None
        if self._waiting:
            with self._room:
                self._room.notify_all()
        return item

    @property
    def closed(self) -> bool:
        """True where nothing more is taken."""
        return self._closed

    def close(self) -> None:
        """Refuse further items; those inside can still be taken."""
        with self._room:
            self._closed = True
            self._room.notify_all()
        self.wake()
