"""Keys: who may connect to the stream and the control socket, over real sockets."""

import stat
import sys
import time
from pathlib import Path

import pytest
import zmq
from conftest import settings

import realtime_skyseg as sky
from realtime_skyseg.cli import main
from realtime_skyseg.config import StreamSettings, validate
from realtime_skyseg.errors import ControlError, SettingsError
from realtime_skyseg.records import Event
from realtime_skyseg.streaming import Control, ControlServer, Publisher, Subscriber
from realtime_skyseg.streaming.access import make_keys

STREAM = StreamSettings(address="tcp://127.0.0.1:0", heartbeat_s=0.05)


def hears(publisher: Publisher, subscriber: Subscriber, seconds: float = 1.0) -> bool:
    """Whether what is published reaches the subscriber."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        publisher.event(Event(time.time_ns(), "mark", "hello"))
        if subscriber.receive(0.05):
            return True
    return False


def test_only_clients_with_keys_get_the_stream(tmp_path: Path) -> None:
    ours, others = make_keys(tmp_path / "service", "office"), make_keys(tmp_path / "elsewhere", "office")
    publisher = Publisher(STREAM, "run", tmp_path / "service")
    try:
        with Subscriber(publisher.address, keys=ours) as known:
            assert hears(publisher, known, 5)
        for keys in (None, others):
            with Subscriber(publisher.address, keys=keys) as stranger:
                assert not hears(publisher, stranger)
        (tmp_path / "service" / "clients" / "office.key").unlink()
        with Subscriber(publisher.address, keys=ours) as locked_out:
            assert not hears(publisher, locked_out)
        later = make_keys(tmp_path / "service", "later")
        with Subscriber(publisher.address, keys=later) as known:
            assert hears(publisher, known, 5), "the doorkeeper looks at the folder again"
    finally:
        publisher.close()


def test_a_client_trusts_only_the_service_it_knows(tmp_path: Path) -> None:
    """Someone else on that address, who would let anybody in, gets no word from the client."""
    keys = make_keys(tmp_path / "service")
    other = make_keys(tmp_path / "impostor")
    (tmp_path / "impostor" / "clients" / "client.key").write_bytes(
        (tmp_path / "service" / "clients" / "client.key").read_bytes()
    )
    assert other != keys
    impostor = ControlServer("tcp://127.0.0.1:0", lambda _: {}, tmp_path / "impostor")
    try:
        with (
            Control(impostor.address, timeout_s=0.5, keys=keys) as client,
            pytest.raises(ControlError, match="no answer"),
        ):
            client.ask("status")
    finally:
        impostor.close()


def test_only_clients_with_keys_are_served(tmp_path: Path) -> None:
    keys = make_keys(tmp_path / "service")
    server = ControlServer("tcp://127.0.0.1:0", lambda request: {"heard": request.do}, tmp_path / "service")
    try:
        with Control(server.address, timeout_s=0.5) as stranger, pytest.raises(ControlError, match="no answer"):
            stranger.ask("stop")
        with Control(server.address, keys=keys) as client:
            assert client.ask("stop")["heard"] == "stop"
    finally:
        server.close()


def test_a_service_with_keys_may_be_open_to_other_machines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All of it: keys by the command, a run whose stream is bound to every address, and a client with its keys."""
    folder = tmp_path / "keys"
    assert main(["keys", str(folder), "--client", "office"]) == 0
    out = capsys.readouterr().out
    assert f"access.keys: {folder}" in out
    assert str(folder / "give-to-office") in out
    config = settings(
        tmp_path, {"path": "bundled"}, access={"keys": str(folder)},
        stream={"address": "tcp://0.0.0.0:0", "wait_for_subscribers": 1},
    )  # fmt: skip
    with sky.Service(config).start() as run:
        address = f"tcp://127.0.0.1:{run.address.rpartition(':')[2]}"
        with sky.Subscriber(address, keys=folder / "give-to-office") as stream:
            kinds = [message.htype for message in stream.every(20)]
    assert (kinds[0], kinds[-1]) == ("header", "series_end")
    assert kinds.count("image") == 48


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such permissions")
def test_secret_keys_are_for_their_owner_only(tmp_path: Path) -> None:
    given = make_keys(tmp_path / "keys")
    for secret in (tmp_path / "keys" / "service.key_secret", given / "client.key_secret"):
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert sorted(path.name for path in given.iterdir()) == ["client.key_secret", "service.key"]


def test_no_keys_are_overwritten(tmp_path: Path) -> None:
    make_keys(tmp_path, "a")
    before = (tmp_path / "service.key_secret").read_bytes()
    make_keys(tmp_path, "b")
    assert (tmp_path / "service.key_secret").read_bytes() == before
    with pytest.raises(SettingsError, match=r"client 'a' has keys in .* already; allowed: another name"):
        make_keys(tmp_path, "a")
    with pytest.raises(SettingsError, match=r"client '\.\./a': allowed: letters"):
        make_keys(tmp_path, "../a")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda folder: (folder / "service.key_secret").unlink(), "service.key_secret' holds no key; allowed:"),
        (lambda folder: (folder / "service.key_secret").write_text("nonsense"), "service.key_secret' holds no key"),
        (lambda folder: (folder / "service.key_secret").write_bytes((folder / "service.key").read_bytes()),
         "holds no secret key; allowed:"),
        (lambda folder: (folder / "service.key_secret").write_text('public-key = "abc"\nsecret-key = "def"'),
         "holds a key of 3 characters; allowed: 40"),
        (lambda folder: [path.rename(folder / path.name) for path in (folder / "clients").iterdir()]
         and (folder / "clients").rmdir(), "has no folder 'clients'"),
    ],
)  # fmt: skip
def test_broken_keys_are_one_sentence(tmp_path: Path, damage: object, sentence: str) -> None:
    make_keys(tmp_path / "keys")
    assert callable(damage)
    damage(tmp_path / "keys")
    for make in (lambda: Publisher(STREAM, "run", tmp_path / "keys"),
                 lambda: ControlServer("tcp://127.0.0.1:0", lambda _: {}, tmp_path / "keys")):  # fmt: skip
        with pytest.raises(SettingsError) as caught:
            make()
        assert sentence in str(caught.value)
    with pytest.raises(SettingsError, match=r"client\.key_secret' holds no key"):
        Subscriber("tcp://127.0.0.1:1", keys=tmp_path)
    with pytest.raises(SettingsError, match=r"client\.key_secret' holds no key"):
        Control("tcp://127.0.0.1:1", keys=tmp_path)


@pytest.mark.parametrize(
    ("sections", "sentence"),
    [
        ({"stream": {"address": "tcp://0.0.0.0:5555"}}, "stream.address: 'tcp://0.0.0.0:5555' can be reached"),
        ({"control": {"address": "tcp://192.168.1.2:5"}}, "control.address: 'tcp://192.168.1.2:5' can be reached"),
        ({"control": {"address": "tcp://192.168.1.2:5"}, "stream": {"insecure": True}}, "control.address: "),
    ],
)
def test_nothing_is_open_without_keys(sections: dict[str, object], sentence: str) -> None:
    tree = {"camera": {"driver": "replay", "path": "bundled"}, **sections}
    with pytest.raises(SettingsError) as caught:
        validate(tree)
    assert str(caught.value).startswith(sentence)
    assert validate({**tree, "access": {"keys": "keys"}}).access.keys == Path("keys")


def test_this_zeromq_can_encrypt() -> None:
    assert zmq.has("curve")
