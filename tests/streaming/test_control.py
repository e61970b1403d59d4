"""The control socket: requests to a running service over real sockets, well-formed, malformed and hostile."""

import json
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
from conftest import settings
from hypothesis import given
from hypothesis import strategies as st

import realtime_skyseg as sky
from realtime_skyseg.cli import main
from realtime_skyseg.config import Config, validate
from realtime_skyseg.errors import ControlError, FieldError, SettingsError
from realtime_skyseg.metrics import Metrics
from realtime_skyseg.streaming import Control, ControlServer, requests

Answer = Callable[[requests.Request], dict[str, Any]]

MANUAL = {"driver": "manual", "limit_mT": [-80, 80], "slew_mT_per_s": 100, "tolerance_mT": 1, "read_every_ms": 5}


@pytest.fixture
def server() -> Iterator[ControlServer]:
    server = ControlServer("tcp://127.0.0.1:0", lambda request: {"heard": request.model_dump()})
    yield server
    server.close()


@contextmanager
def dealer(address: str) -> Iterator[zmq.Socket[bytes]]:
    """A client that sends what it likes."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as client:
        client.setsockopt(zmq.LINGER, 0)
        client.connect(address)
        yield client


def reply(client: zmq.Socket[bytes]) -> dict[str, Any]:
    assert client.poll(5000), "no answer"
    answer: dict[str, Any] = json.loads(client.recv_multipart()[-1])
    return answer


# --- the socket ---


def test_a_request_and_its_answer(server: ControlServer) -> None:
    with Control(server.address) as service:
        heard = service.ask("set_field", field_mT=12)["heard"]
    assert (heard["do"], heard["field_mT"]) == ("set_field", 12.0)


def test_req_clients_of_other_languages_are_answered_too(server: ControlServer) -> None:
    with zmq.Context() as context, context.socket(zmq.REQ) as client:
        client.connect(server.address)
        client.send(b'{"do":"stop","id":7}')
        assert reply(client) == {"ok": True, "heard": {"do": "stop", "id": 7}, "id": 7}


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ([b""], "malformed request: Invalid JSON"),
        ([b"\xff\xfe"], "malformed request: Invalid JSON"),
        ([b"[]"], "malformed request: "),
        ([b"{}"], "malformed request: do: this key is missing; allowed: status, stop"),
        ([b'{"do":"explode"}'], "malformed request: do: 'explode' is no request; allowed: status, stop"),
        ([b'{"do":"set_field"}'], "malformed request: field_mT: Field required"),
        ([b'{"do":"set_field","field_mT":"12"}'], "malformed request: field_mT: Input should be a valid number"),
        ([b'{"do":"set_field","field_mT":NaN}'], "malformed request: field_mT: Input should be a finite number"),
        ([b'{"do":"set_field","field_mT":1,"slew":9}'], "malformed request: slew: Extra inputs are not permitted"),
        ([b'{"do":"take_background","frames":0}'], "malformed request: frames: Input should be greater than"),
        ([b'{"do":"mark","message":""}'], "malformed request: message: String should have at least 1 character"),
        ([b'{"do":"stop"}', b"x"], "a request of 2 parts is malformed; allowed: 1"),
        (
            [b'{"do":"mark","message":"' + b"x" * 70_000 + b'"}'],
            "a request of 70026 bytes is refused; allowed: at most",
        ),
    ],
)
def test_malformed_requests_get_a_sentence(server: ControlServer, parts: list[bytes], sentence: str) -> None:
    with dealer(server.address) as client:
        client.send_multipart(parts)
        answer = reply(client)
    assert not answer["ok"]
    assert answer["error"].startswith(sentence)


def test_whoever_sends_too_much_is_cut_off_and_others_are_served(server: ControlServer) -> None:
    with dealer(server.address) as hostile, Control(server.address) as service:
        hostile.send(b"x" * 2_000_000)
        assert not hostile.poll(200)
        assert service.ask("stop")["ok"]


def test_ten_thousand_malformed_requests_get_an_answer_each(server: ControlServer) -> None:
    """Random bytes, and real requests with bytes damaged, over a real socket; then a good one is still served."""
    rng = np.random.default_rng(0)
    good = b'{"do": "set_field", "field_mT": 12.5}'

    def damaged(place: int) -> bytes:
        if place % 2:
            return rng.bytes(int(rng.integers(0, 200)))
        text = bytearray(good)
        text[int(rng.integers(0, 19))] ^= 0x15
        return bytes(text)

    with dealer(server.address) as client:
        for batch in range(100):
            for place in range(100):
                client.send(damaged(100 * batch + place))
            for _ in range(100):
                answer = reply(client)
                assert (answer["ok"], bool(answer["error"])) == (False, True)
        client.send(good)
        assert reply(client)["ok"]


@given(st.binary(max_size=300) | st.text(max_size=100).map(lambda text: json.dumps({"do": text}).encode()))
def test_whatever_the_bytes_a_request_or_one_error(data: bytes) -> None:
    try:
        requests.parse(data)
    except ControlError as error:
        said = str(error)
    else:
        said = "a request"
    assert 0 < len(said) <= 500


def test_refusals_and_failures_become_answers() -> None:
    def answer(request: requests.Request) -> dict[str, Any]:
        raise FieldError("too much") if request.do == "set_field" else ValueError("a bug")

    server = ControlServer("tcp://127.0.0.1:0", answer)
    try:
        with Control(server.address) as service:
            with pytest.raises(ControlError, match=r"^too much$"):
                service.ask("set_field", field_mT=1.0)
            with pytest.raises(ControlError, match=r"failed to carry it out: ValueError\('a bug'\)"):
                service.ask("stop")
    finally:
        server.close()


def test_nobody_answers() -> None:
    with Control("tcp://127.0.0.1:1", timeout_s=0.1) as service, pytest.raises(ControlError, match="no answer from"):
        service.ask("status")
    with pytest.raises(ControlError, match="allowed: tcp://HOST:PORT"):
        Control("nonsense")


def test_an_address_in_use_is_one_sentence(server: ControlServer) -> None:
    with pytest.raises(SettingsError, match=r"control.address: 'tcp://127.0.0.1:\d+' cannot be bound"):
        ControlServer(server.address, lambda _: {})


# --- where it is ---


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({}, "tcp://127.0.0.1:5556"),
        ({"stream": {"address": "tcp://127.0.0.1:0"}}, "tcp://127.0.0.1:0"),
        ({"stream": {"address": "tcp://0.0.0.0:7000", "insecure": True}}, "tcp://127.0.0.1:7001"),
        ({"stream": {"enabled": False}}, None),
        ({"stream": {"enabled": False}, "control": {"enabled": True}}, "tcp://127.0.0.1:5556"),
        ({"control": {"enabled": False}}, None),
        ({"control": {"address": "tcp://127.0.0.1:9"}}, "tcp://127.0.0.1:9"),
    ],
)
def test_where_the_socket_is_bound(sections: dict[str, Any], expected: str | None) -> None:
    assert validate({"camera": {"driver": "replay", "path": "bundled"}, **sections}).control_address == expected


@pytest.mark.parametrize(
    ("address", "sentence"),
    [("tcp://0.0.0.0:5556", "control.address: 'tcp://0.0.0.0:5556' can be reached from other computers; allowed: "),
     ("http://127.0.0.1", "control.address: 'http://127.0.0.1' is not allowed: should be tcp://HOST:PORT")],
)  # fmt: skip
def test_wrong_addresses_are_refused(address: str, sentence: str) -> None:
    with pytest.raises(SettingsError) as caught:
        validate({"camera": {"driver": "replay", "path": "bundled"}, "control": {"address": address}})
    assert str(caught.value).startswith(sentence)


# --- a service ---


@contextmanager
def running(config: Config) -> Iterator[sky.Service]:
    service = sky.Service(config)
    thread = threading.Thread(target=service.run)
    thread.start()
    try:
        deadline = time.monotonic() + 30
        while not (service.pipeline and service.pipeline.counters.analysed) and time.monotonic() < deadline:
            time.sleep(0.01)
        yield service
    finally:
        service.stop()
        thread.join()


def replay(folder: Path, **sections: Any) -> Config:
    camera = {"path": "bundled", "rate_hz": 20, "loop": True}
    return settings(folder, camera, analysis={"policy": "latest"}, **sections)


def test_a_service_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with running(replay(tmp_path, field=MANUAL)) as service:
        with sky.Subscriber(service.address) as stream:
            header = next(message for message in stream.every(10) if message.htype == "header")
        assert header.control == service.control_address
        with sky.Control(service.control_address) as control:
            status = control.ask("status")["status"]
            assert (status["field_mT"], status["fault"], status["stopping"]) == (None, "", False)
            assert status["frames"]["received"] > 0
            assert main(["tell", "enter_field", "field_mT=12.5", "--address", service.control_address]) == 0
            deadline = time.monotonic() + 5
            while (status := control.ask("status")["status"])["field_mT"] != 12.5:
                assert time.monotonic() < deadline
            control.ask("mark", message="the lamp flickers")
            for do, values, sentence in (
                ("enter_field", {"field_mT": 99}, "the field entered: 99.0 mT is refused; allowed: a number"),
                ("set_field", {"field_mT": 1}, "can only be read"),
                ("pulse", {"in_plane_mT": 1, "seconds": 0.1}, "allowed: with a supply that gives in-plane pulses"),
                ("take_background", {}, "prepare: this section is missing"),
            ):  # fmt: skip
                with pytest.raises(ControlError, match=sentence):
                    control.ask(do, **values)
            time.sleep(0.2)
            control.ask("stop")
    assert json.loads(capsys.readouterr().out) == {"ok": True}
    with sky.open_run(service.run_file) as run:
        kinds = {str(event["kind"]): str(event["message"]) for event in run.events}
        fields = run.table["field_mT"]
    assert kinds["mark"] == "the lamp flickers"
    assert kinds["field_entered"] == "the field is 12.5 mT, as entered"
    assert np.isnan(fields[0])
    assert fields[-1] == 12.5


def test_requests_about_a_magnet_that_is_not_there(tmp_path: Path) -> None:
    with running(replay(tmp_path)) as service, sky.Control(service.control_address) as control:
        with pytest.raises(ControlError, match="these settings have no magnet"):
            control.ask("set_field", field_mT=1)
        assert control.ask("status")["status"]["field_mT"] is None


def test_figures_for_prometheus(tmp_path: Path) -> None:
    """Read as Prometheus reads them: over HTTP, while the service runs."""
    pytest.importorskip("prometheus_client", reason="needs prometheus-client: pip install 'realtime_skyseg[metrics]'")
    from prometheus_client.parser import text_string_to_metric_families

    with running(replay(tmp_path, metrics={"port": 0})) as service:
        url = f"http://127.0.0.1:{service.metrics_port}/metrics"
        with urllib.request.urlopen(url, timeout=5) as answer:
            families = {
                family.name: family.samples for family in text_string_to_metric_families(answer.read().decode())
            }
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=rf"metrics.port: {port} cannot be used"):
            Metrics(port, dict, dict)
    assert families["skyseg_frames_received"][0].value > 0
    assert families["skyseg_fault"][0].value == 0
    assert families["skyseg_skyrmions"][0].value > 0
    stages = {sample.labels["stage"] for sample in families["skyseg_latency_seconds"]}
    assert {"segment", "total"} <= stages


def test_a_log_of_json_lines(tmp_path: Path) -> None:
    """The command in a process of its own, so that its logging is its own."""
    log = tmp_path / "logs" / "run.jsonl"
    done = subprocess.run(
        [sys.executable, "-m", "realtime_skyseg.cli", "demo", "--log", str(log), "--set", "stream.enabled=false",
         "--set", f"record.folder={tmp_path}", "--set", "camera.limit=3"],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert lines
    assert all({"time", "level", "logger", "thread", "message"} <= set(line) for line in lines)
    assert "run ok" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [(["set_field", "12.5"], "'12.5': allowed: KEY=VALUE, for example field_mT=12.5"),
     (["set_field", "field_mT=[a"], "'field_mT=[a': allowed: KEY=VALUE")],
)  # fmt: skip
def test_wrong_use_of_tell(capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str) -> None:
    assert main(["tell", *arguments]) == 2
    assert sentence in capsys.readouterr().err
