"""ZeroMQ addresses in settings."""

import ipaddress
from urllib.parse import urlsplit


def checked_address(address: str) -> str:
    """An address as it was given. Raises `ValueError` where it is not tcp://HOST:PORT."""
    parts = urlsplit(address)
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme != "tcp" or not parts.hostname or port is None:
        raise ValueError("should be tcp://HOST:PORT, for example tcp://127.0.0.1:5555")
    return address


def is_loopback(address: str) -> bool:
    """True where only this computer can reach `tcp://HOST:PORT`."""
    host = urlsplit(address).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
