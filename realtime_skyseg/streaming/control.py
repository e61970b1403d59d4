"""The control socket: requests to a running service, and its answers.

A request is one JSON object of at most 64 kB in one message, `{"do": "set_field", "field_mT": 12.5}`; the answer is one
too: `{"ok": true, ...}`, or `{"ok": false, "error": "one sentence"}` for anything that is malformed or refused. The
service's socket is a ROUTER: REQ and DEALER clients in any language can use it. A key `id` comes back as it was sent.
"""

import json
import secrets
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import zmq

from realtime_skyseg.errors import ControlError, SettingsError
from realtime_skyseg.streaming.access import connect

#: A client that waits for the field asks this often.
_ASK_AGAIN_MS = 20

#: Longer than the field guard may take for its answer.
_ANSWER_S = 10.0


class Control:
    """A client of the control socket. Used by one thread; close it, or use it as a context manager.

    >>> with Control(running.control_address) as service:  # of a running service; else tcp://127.0.0.1:5556
    ...     service.ask("mark", message="look here")["ok"]
    True

    Args:
        address: of the service's control socket, tcp://HOST:PORT.
        timeout_s: longest wait for an answer.
        keys: folder of this client's keys, where the service asks for them.

    Raises:
        ControlError: the address cannot be used.
        SettingsError: there are no keys.
    """

    def __init__(self, address: str, timeout_s: float = _ANSWER_S, keys: str | Path | None = None) -> None:
        self.address = address
        self._timeout_s = timeout_s
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        try:
            connect(self._socket, address, keys)
        except SettingsError:
            self.close()
            raise
        except zmq.ZMQError as error:
            self.close()
            raise ControlError(
                f"address '{address}' cannot be reached: {error.strerror}; allowed: tcp://HOST:PORT"
            ) from error

    def ask(self, do: str, **values: object) -> dict[str, Any]:
        """Send a request, wait for the answer, and return it.

        Raises:
            ControlError: it was refused, or no answer came in time.
        """
        number = secrets.token_hex(8)
        deadline = time.monotonic() + self._timeout_s
        self._socket.send(json.dumps({"do": do, "id": number, **values}).encode())
        while self._socket.poll(max(0, round(1000 * (deadline - time.monotonic())))):
            reply: dict[str, Any] = json.loads(self._socket.recv_multipart()[-1])
            if not reply["ok"] and reply.get("id", number) == number:
                raise ControlError(str(reply["error"]))
            if reply.pop("id", None) == number:
                return reply
            # The answer to a request that was given up before.
        raise ControlError(f"no answer from '{self.address}' within {self._timeout_s:g} s; is the service running?")

    def set_field(self, field_mT: float, wait: bool = False, timeout_s: float = 60.0) -> dict[str, Any]:
        """Go to a field, and return the answer: `target` is the number of this target.

        Args:
            field_mT: where to.
            wait: return only once the field is there and read back within the tolerance; then `status` is in the
                answer too, with the field that was read.
            timeout_s: longest wait for that.

        Raises:
            ControlError: it was refused, another target took its place, or it was not reached in time.
        """
        answer = self.ask("set_field", field_mT=field_mT)
        return answer | {"status": self.wait_settled(answer["target"], timeout_s)} if wait else answer

    def demagnetise(
        self,
        amplitude_mT: float,
        ratio: float = 0.8,
        smallest_mT: float | None = None,
        dwell_s: float = 0.2,
        wait: bool = False,
        timeout_s: float = 60.0,
    ) -> dict[str, Any]:
        """Alternate the field, each swing smaller than the one before, and end at zero; the answer as of `set_field`.

        Args:
            amplitude_mT: first swing.
            ratio: of each swing to the one before, 0.1 to 0.99.
            smallest_mT: last swing at least; None: the tolerance.
            dwell_s: stay at each turn.
            wait: return only once zero is reached, as of `set_field`.
            timeout_s: longest wait for that.

        Raises:
            ControlError: as of `set_field`.
        """
        values = {"amplitude_mT": amplitude_mT, "ratio": ratio, "smallest_mT": smallest_mT, "dwell_s": dwell_s}
        answer = self.ask("demagnetise", **values)
        return answer | {"status": self.wait_settled(answer["target"], timeout_s)} if wait else answer

    def wait_settled(self, target: int | None = None, timeout_s: float = 60.0) -> dict[str, Any]:
        """Wait until a target, by its number, is reached and read back; the service's status then.

        Args:
            target: its number; None: the last one, whichever it is, such as that of `safe_field`.
            timeout_s: longest wait.

        Raises:
            ControlError: there was a fault, another target took its place, or it was not reached in time.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            status: dict[str, Any] = self.ask("status")["status"]
            last = status["field_target"]
            if status["fault"]:
                raise ControlError(f"target {last if target is None else target} of the field was given up: "
                                   f"{status['fault']}")  # fmt: skip
            if target is not None and last != target:
                raise ControlError(f"target {target} of the field was given up for another one, {last}")
            if status["field_settled"] or not (target or last):  # a field that was never set is left alone
                return status
            if time.monotonic() > deadline:
                raise ControlError(
                    f"target {last} of the field was not reached within {timeout_s:g} s; it is at "
                    f"{status['field_mT']} mT"
                )
            self._socket.poll(_ASK_AGAIN_MS)  # a pause: nothing comes that was not asked for

    def close(self) -> None:
        """Release the socket. Safe to call twice."""
        self._context.destroy(linger=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
