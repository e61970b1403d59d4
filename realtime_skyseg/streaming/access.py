"""Who may connect from other computers: CURVE keys (RFC 26) and the doorkeeper that looks at them (ZAP, RFC 27).

`skyseg keys DIR` makes this folder for the service, which stays on its computer,

    DIR/service.key_secret        the service's pair of keys
    DIR/clients/NAME.key          public keys of those who may connect; remove one to lock it out

and, for each client, a folder to give away:

    DIR/give-to-NAME/client.key_secret      the client's pair of keys
    DIR/give-to-NAME/service.key            the service's public key, by which the client knows it
"""

import logging
import re
import secrets
import threading
from collections.abc import Callable
from pathlib import Path

import zmq
import zmq.auth
import zmq.utils.monitor

from realtime_skyseg.errors import SettingsError

log = logging.getLogger(__name__)

_ZAP = "inproc://zeromq.zap.01"
_CLOSING = "inproc://skyseg-doorkeeper"


def make_keys(folder: Path, client: str = "client") -> Path:
    """Make the service's keys, unless they are there, and a client's.

    Args:
        folder: of the service; made if absent.
        client: its name: letters, digits, `-` and `_`.

    Returns:
        The folder to give to the client.

    Raises:
        SettingsError: the client has keys already, the name is none, or the folder cannot be written.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", client):
        raise SettingsError(f"client '{client}': allowed: letters, digits, '-' and '_'")
    given, door = folder / f"give-to-{client}", folder / "clients"
    if given.exists() or (door / f"{client}.key").exists():
        raise SettingsError(f"client '{client}' has keys in '{folder}' already; allowed: another name")
    try:
        door.mkdir(parents=True, exist_ok=True)
        given.mkdir()
        secret = folder / "service.key_secret"
        if not secret.exists():
            zmq.auth.create_certificates(folder, "service")
            secret.chmod(0o600)
        zmq.auth.create_certificates(given, "client")
        (given / "client.key_secret").chmod(0o600)
        (given / "client.key").replace(door / f"{client}.key")
        (given / "service.key").write_bytes((folder / "service.key").read_bytes())
    except OSError as error:
        raise SettingsError(f"keys cannot be written to '{folder}': {error.strerror}") from error
    return given


class Doorkeeper:
    """Lets only those into the sockets of a context whose public key is in `folder/clients`. The folder is looked at
    for every new connection.

    Owns a thread, until `close`. `guard` makes a socket one that asks for keys, before it is bound.

    Raises:
        SettingsError: the folder has no keys of a service.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], folder: Path) -> None:
        self._folder = folder
        self._public, self._secret = _pair(folder / "service.key_secret")
        if not (folder / "clients").is_dir():
            raise SettingsError(f"access.keys: '{folder}' has no folder 'clients'; make one: skyseg keys '{folder}'")
        self._door = context.socket(zmq.REP)
        self._door.bind(_ZAP)
        self._closing = context.socket(zmq.PAIR)
        self._closing.bind(_CLOSING)
        self._wake = context.socket(zmq.PAIR)
        self._wake.connect(_CLOSING)
        self._thread = threading.Thread(target=self._watch, name="skyseg-doorkeeper")
        self._thread.start()

    def guard(self, socket: zmq.Socket[bytes]) -> None:
        """Ask everybody who connects to this socket for a key."""
        socket.curve_publickey, socket.curve_secretkey = self._public, self._secret
        socket.curve_server = True

    def close(self) -> None:
        """End the thread. Safe to call twice."""
        if self._thread.is_alive():
            self._wake.send(b"")
            self._thread.join()
        self._wake.close()

    def _watch(self) -> None:
        poller = zmq.Poller()
        for way in (self._door, self._closing):
            poller.register(way, zmq.POLLIN)
        while self._closing not in dict(poller.poll()):
            request = self._door.recv_multipart()
            # Version, request, domain, address, identity, mechanism, and for CURVE the client's public key.
            number, allowed = request[1] if len(request) > 1 else b"", False
            if len(request) == 7 and request[5] == b"CURVE":
                allowed = zmq.utils.z85.encode(request[6]) in self._known()
            if not allowed:
                log.warning("a client at %s without a key that is known was turned away", request[3:4])
            status = [b"200", b"OK"] if allowed else [b"400", b"not among the clients"]
            self._door.send_multipart([b"1.0", number, *status, b"", b""])
        self._door.close()
        self._closing.close()

    def _known(self) -> set[bytes]:
        known = set()
        for path in (self._folder / "clients").glob("*.key"):
            try:
                known.add(zmq.auth.load_certificate(path)[0])
            except (OSError, ValueError):
                log.warning("'%s' holds no public key", path)
        return known


#: Connections that a service's socket holds. A lab has a handful; each takes a file handle, of which a run needs some.
MOST_CONNECTIONS = 128

#: Who has connected has this long to say so in ZeroMQ's words.
_HANDSHAKE_MS = 3000

#: Notices of the monitor that are looked at in one turn.
_MOST_NOTICES = 5000


class Door:
    """A service's socket that is bound, and what happens at it: who comes, who leaves, who is refused.

    It is owned by one thread, as the socket is, until `close`, which closes both.

    Args:
        context: of the socket, with nothing else in it that would have to be closed first.
        kind: of the socket.
        key: of the address in the settings.
        address: where to bind.
        keys: folder of keys; None: whoever can reach the address is let in.
        prepare: sets the options of a new socket.

    Raises:
        SettingsError: the address cannot be bound, or there are no keys.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        kind: int,
        key: str,
        address: str,
        keys: Path | None,
        prepare: Callable[[zmq.Socket[bytes]], None],
    ) -> None:
        self._context, self._kind, self._prepare = context, kind, prepare
        self._doorkeeper = Doorkeeper(context, keys) if keys else None
        self._inside: set[int] = set()
        self._refused = 0
        try:
            self.socket = self._made(address)
        except zmq.ZMQError as error:
            self._close_doorkeeper()
            hint = "; is another run going on?" if error.errno == zmq.EADDRINUSE else ""
            raise SettingsError(f"{key}: '{address}' cannot be bound: {error.strerror}{hint}") from error
        self.address = self.socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def _made(self, address: str) -> "zmq.Socket[bytes]":
        socket = self._context.socket(self._kind)
        try:
            self._prepare(socket)
            socket.setsockopt(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)
            if "[" in address:
                socket.setsockopt(zmq.IPV6, 1)
            if self._doorkeeper:
                self._doorkeeper.guard(socket)
            # Not by pyzmq's own way: a monitor that is full would hold the whole context up, and this one never is.
            self.monitor = self._context.socket(zmq.PAIR)
            self.monitor.setsockopt(zmq.RCVHWM, 0)
            place = f"inproc://skyseg-door-{secrets.token_hex(8)}"
            socket.monitor(
                place,
                zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
                | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_AUTH,
            )  # fmt: skip
            self.monitor.connect(place)
            socket.bind(address)
        except zmq.ZMQError:
            self._end(socket, 0)
            raise
        return socket

    def _end(self, socket: "zmq.Socket[bytes]", linger_ms: int | None = None) -> None:
        socket.monitor(None, 0)
        self.monitor.close(linger=0)
        socket.close(linger_ms)

    @property
    def connections(self) -> int:
        """How many are connected, as `look` has seen it."""
        return len(self._inside)

    def look(self) -> list[tuple[str, str]]:
        """Take notice of who came and left; never waits. What is worth an event: its kind and a sentence.

        Where more have come than there is room for, all are sent away and the socket is made anew: those who behave
        come back by themselves.
        """
        if self.socket.closed:
            self._reopen()
            return []
        refused = 0
        for _ in range(_MOST_NOTICES):
            if not self.monitor.poll(0):
                break
            notice = zmq.utils.monitor.recv_monitor_message(self.monitor, zmq.NOBLOCK)
            number = int(notice["value"])
            if notice["event"] == zmq.EVENT_ACCEPTED:
                self._inside.add(number)
            elif notice["event"] in (zmq.EVENT_DISCONNECTED, zmq.EVENT_CLOSED):
                self._inside.discard(number)
            else:
                refused += 1
        told = []
        if refused:
            if not self._refused:
                why = "no key that is known" if self._doorkeeper else "nothing that is understood"
                told.append(("client_refused", f"a client at {self.address} had {why}; further ones are not told"))
            self._refused += refused
        if len(self._inside) > MOST_CONNECTIONS:
            message = f"more than {MOST_CONNECTIONS} connections to {self.address}: all were closed, it is opened anew"
            told.append(("stream_crowded", message))
            self.shut()
        return told

    def shut(self) -> None:
        """Send everybody away; `look` opens again."""
        self._end(self.socket, 0)
        self._inside.clear()

    def _reopen(self) -> None:
        try:
            self.socket = self._made(self.address)
        except zmq.ZMQError:  # the old one is not gone yet
            log.debug("'%s' is not free yet", self.address)

    def close(self) -> None:
        """Close the socket, after it has lingered as it was told. Safe to call twice."""
        if not self.socket.closed:
            self._end(self.socket)
        self._close_doorkeeper()

    def _close_doorkeeper(self) -> None:
        if self._doorkeeper:
            self._doorkeeper.close()


def connect(socket: zmq.Socket[bytes], address: str, keys: str | Path | None) -> None:
    """Connect a client's socket; with keys it shows them, and trusts only the service it has the key of.

    Raises:
        SettingsError: the folder has no keys of a client.
        zmq.ZMQError: the address cannot be used.
    """
    if "[" in address:
        socket.setsockopt(zmq.IPV6, 1)
    if keys:
        folder = Path(keys)
        socket.curve_publickey, socket.curve_secretkey = _pair(folder / "client.key_secret")
        socket.curve_serverkey = _load(folder / "service.key")[0]
    socket.connect(address)


def _pair(path: Path) -> tuple[bytes, bytes]:
    public, secret = _load(path)
    if secret is None:
        raise SettingsError(f"'{path}' holds no secret key; allowed: a file that skyseg keys has made")
    return public, secret


def _load(path: Path) -> tuple[bytes, bytes | None]:
    try:
        keys: tuple[bytes, bytes | None] = zmq.auth.load_certificate(path)
    except (OSError, ValueError):
        raise SettingsError(f"'{path}' holds no key; allowed: a file that skyseg keys has made") from None
    for key in keys:
        if key is not None and len(key) != 40:
            raise SettingsError(f"'{path}' holds a key of {len(key)} characters; allowed: 40")
    return keys
