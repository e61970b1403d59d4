"""Supplies with text commands on a real socket: answers that come late, halves, garbage, and links that break."""

import contextlib
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_field import within

from realtime_skyseg.config import FieldSettings
from realtime_skyseg.devices import FieldSource
from realtime_skyseg.errors import FieldError, SettingsError
from realtime_skyseg.field import FieldGuard

pytest.importorskip("pyvisa_py")

DESCRIPTION = {
    "unit": "A", "range": [-5, 5], "expect": "KEPCO", "require": {"FUNC:MODE?": "1"}, "set": "CURR {value:.4f}",
    "read": "MEAS:CURR?", "output_on": "OUTP ON", "output_off": "OUTP OFF", "output_query": "OUTP?",
    "error": "SYST:ERR?", "timeout_s": 0.2,
}  # fmt: skip


class Kepco:
    """A Kepco BOP on a TCP socket. Owns its threads until `close`."""

    def __init__(self) -> None:
        self.current, self.output, self.mode = 0.0, False, "1"
        self.sets: list[tuple[float, str]] = []
        self.faults: dict[str, Any] = {}  # question: what comes instead of its answer, once; a number: so much later
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"TCPIP::127.0.0.1::{self._server.getsockname()[1]}::SOCKET"
        self._threads = [threading.Thread(target=self._listen, name="kepco")]
        self._connections: list[socket.socket] = []
        self._threads[0].start()

    def _listen(self) -> None:
        try:
            while True:
                connection, _ = self._server.accept()
                self._connections.append(connection)
                self._threads.append(threading.Thread(target=self._serve, args=(connection,), name="kepco"))
                self._threads[-1].start()
        except OSError:
            pass

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection, connection.makefile("r", newline="\n") as lines:
                for line in lines:
                    answer = self._answer(line.strip())
                    fault = self.faults.pop(self._name(line.strip()), None) if answer is not None else None
                    if isinstance(fault, float):
                        time.sleep(fault)
                    elif fault == "breaks":
                        return
                    elif fault is not None:
                        answer = fault
                    if answer is not None:
                        connection.sendall(answer.encode())
        except OSError:
            pass

    @staticmethod
    def _name(line: str) -> str:
        return line if line.endswith("?") else ""

    def _answer(self, line: str) -> str | None:
        if line.startswith("CURR "):
            self.current = float(line[5:])
            self.sets.append((self.current, self.mode))
        elif line.startswith("OUTP "):
            self.output = line == "OUTP ON"
        found = {"*IDN?": "KEPCO,BOP", "FUNC:MODE?": self.mode, "MEAS:CURR?": f"{self.current:.4f}",
                 "OUTP?": f"{self.output:d}", "SYST:ERR?": '0,"No error"', "FUNCtion:MODE?": self.mode,
                 "MEASure:CURRent?": f"{self.current:.4f}", "OUTPut?": f"{self.output:d}"}  # fmt: skip
        if line.startswith("CURRent "):
            self.current = float(line[8:])
            self.sets.append((self.current, self.mode))
        elif line.startswith("OUTPut "):
            self.output = line.endswith("1")
        return f"{found[line]}\n" if line in found else None

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()


@pytest.fixture
def kepco() -> Iterator[Kepco]:
    supply = Kepco()
    yield supply
    supply.close()


def settings(kepco: Kepco, tmp_path: Path, **changes: Any) -> FieldSettings:
    (tmp_path / "kepco.yaml").write_text(yaml.safe_dump(DESCRIPTION))
    tree = {
        "driver": "visa", "address": kepco.address, "library": "@py", "supply": str(tmp_path / "kepco.yaml"),
        "calibration": {"date": "2026-11-25", "note": "made up", "table": [[-5, -100], [5, 100]]},
        "limit_mT": [-80, 80], "slew_mT_per_s": 200, "tolerance_mT": 1, "settle_s": 0.3, "read_every_ms": 10,
    }  # fmt: skip
    return FieldSettings.model_validate(tree | changes)


QUESTIONS = ["MEAS:CURR?", "OUTP?", "SYST:ERR?", "*IDN?"]
FAULTS: dict[str, Any] = {
    "late": 0.3, "never": "", "half": "0.", "garbage": "\x00\xff!\n", "another": "7.7777\n", "twice": "1\n1\n",
    "not a number": "9.91E37\n", "breaks": "breaks",
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("question", QUESTIONS)
def test_no_answer_is_taken_for_another_one(kepco: Kepco, tmp_path: Path, question: str, fault: str) -> None:
    device = settings(kepco, tmp_path).open()
    assert isinstance(device, FieldSource)
    try:
        device.set(2.5)
        kepco.faults[question] = FAULTS[fault]
        if question == "*IDN?":  # asked where the link is opened anew
            kepco.faults["OUTP?"] = ""
        read: list[float] = []
        for value in (2.5, 2.5, 3.5, 3.5, 1.5):
            for call in (device.read, lambda: device.set(value), device.read):  # noqa: B023
                before = kepco.current
                try:
                    found = call()
                except FieldError:
                    continue
                if found is not None:
                    read.append(found)
                    # Of two readings in a row one may be odd where an answer looks like the right one.
                    assert found in (before, kepco.current) or (
                        fault in ("another", "twice") and found in (7.7777, 1.0)
                    )
        assert read[-1] == kepco.current == 1.5
        assert not kepco.faults
    finally:
        device.close()
        device.close()


def test_nothing_is_set_in_the_wrong_mode(kepco: Kepco, tmp_path: Path) -> None:
    kepco.mode = "0"
    with FieldGuard(settings(kepco, tmp_path)) as field:
        kepco.faults["OUTP?"] = 0.3
        within(5, lambda: not kepco.faults)
        field.set_mT(10)
        within(5, lambda: "answers '0' to 'FUNC:MODE?'; allowed: 1" in field.fault)
    assert kepco.sets == []


@pytest.mark.parametrize("question", QUESTIONS[:3])
def test_the_guard_brings_the_field_to_zero_after_a_late_answer(kepco: Kepco, tmp_path: Path, question: str) -> None:
    with FieldGuard(settings(kepco, tmp_path)) as field:
        field.set_mT(50)
        assert field.wait_settled(5)
        kepco.faults[question] = 0.3
        field.set_mT(20)
        within(5, lambda: not kepco.faults)
        time.sleep(0.5)
        assert (field.latest.field_mT == pytest.approx(20, abs=1)) or field.fault
    assert kepco.current == 0
    assert not kepco.output


def test_a_library_that_is_not_there_is_one_sentence(kepco: Kepco, tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        settings(kepco, tmp_path, library="/nowhere/bop.yaml@sim").open()
    assert str(caught.value).startswith("field.library: '/nowhere/bop.yaml@sim' is no VISA library: FileNotFoundError")
    assert "Traceback" not in str(caught.value)


def test_the_text_of_the_description_is_kept(kepco: Kepco, tmp_path: Path) -> None:
    with FieldGuard(settings(kepco, tmp_path)) as field:
        assert yaml.safe_load(str(field.description["supply_text"])) == DESCRIPTION


def test_the_driver_of_the_docs(kepco: Kepco, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pymeasure")
    page = (Path(__file__).parents[2] / "docs" / "magnet.md").read_text(encoding="utf-8")
    code = next(block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "KepcoField" in block)
    lab = tmp_path / "lab"
    info = lab / "my_lab-1.dist-info"
    info.mkdir(parents=True)
    (lab / "my_lab_magnet.py").write_text(code)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my_lab\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[realtime_skyseg.fields]\nkepco36 = my_lab_magnet:KepcoField\n")
    monkeypatch.syspath_prepend(lab)
    tree = settings(kepco, tmp_path).model_dump(mode="json")
    with FieldGuard(FieldSettings.model_validate({key: value for key, value in tree.items() if key != "supply"}
                                                 | {"driver": "kepco36", "library": "@py"})) as field:  # fmt: skip
        field.set_mT(40)
        assert field.wait_settled(10)
        assert kepco.current == pytest.approx(2.0)
    assert kepco.current == 0
