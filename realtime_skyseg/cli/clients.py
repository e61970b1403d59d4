"""Commands that talk with a running service: watch, tell, keys."""

import argparse
import json
import os

from realtime_skyseg.errors import MissingExtraError, SettingsError


def watch_command(options: argparse.Namespace) -> int:
    """`skyseg watch`."""
    from realtime_skyseg import terminal
    from realtime_skyseg.config import DEFAULT_ADDRESS
    from realtime_skyseg.streaming import Subscriber

    with Subscriber(options.address or DEFAULT_ADDRESS, keys=options.keys) as subscriber:
        terminal.show_stream(terminal.console(), subscriber, options.once)
    return 0


def dashboard_command(options: argparse.Namespace) -> int:
    """`skyseg dashboard`."""
    from realtime_skyseg.config import DEFAULT_ADDRESS
    from realtime_skyseg.dashboard import Feed

    try:
        from realtime_skyseg.dashboard.hub import Hub, is_free
        from realtime_skyseg.dashboard.serve import serve
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"skyseg dashboard needs the package '{error.name}', which is not installed: "
            "pip install 'realtime_skyseg[dashboard]'"
        ) from error
    if not 1 <= options.port <= 65535:
        raise SettingsError(f"--port: {options.port}; allowed: 1 to 65535")
    address = options.address or ("" if is_free(DEFAULT_ADDRESS) else DEFAULT_ADDRESS)
    feed = Feed(address, options.keys) if address else None
    if feed:
        feed.start()
    hub = Hub(feed, options.control, options.keys)
    if hasattr(os, "nice"):
        os.nice(5)  # the run, which may be on the same computer, goes first
    try:
        print(f"http://127.0.0.1:{options.port}", flush=True)
        serve(hub, options.port, options.runs, options.open)
    finally:
        hub.close()
    return 0


def tell_command(options: argparse.Namespace) -> int:
    """`skyseg tell`."""
    import yaml

    from realtime_skyseg import yaml_text
    from realtime_skyseg.config import DEFAULT_CONTROL_ADDRESS
    from realtime_skyseg.streaming import Control, requests

    kinds = requests.kinds(options.do)
    if not kinds:
        raise SettingsError(f"'{options.do}' is no request; allowed: {', '.join(requests.requests())}")
    values = {}
    for pair in options.values:
        key, equals, text = pair.partition("=")
        try:
            values[key] = yaml_text.typed(text, kinds.get(key))
        except yaml.YAMLError:
            equals = ""
        if not equals:
            raise SettingsError(f"'{pair}': allowed: KEY=VALUE, for example field_mT=12.5")
    if options.wait is not None and options.do not in ("set_field", "demagnetise", "safe_field"):
        raise SettingsError(f"--wait: '{options.do}' moves no field; allowed: set_field, demagnetise, safe_field")
    with Control(options.address or DEFAULT_CONTROL_ADDRESS, keys=options.keys) as service:
        answer = service.ask(options.do, **values)
        if options.wait is not None:
            answer["status"] = service.wait_settled(answer.get("target"), options.wait)
        print(json.dumps(answer, indent=1))
    return 0


def keys_command(options: argparse.Namespace) -> int:
    """`skyseg keys`."""
    from realtime_skyseg.streaming.access import make_keys

    given = make_keys(options.folder, options.client)
    print(f"settings of the service: access.keys: {options.folder}")
    print(f"give to the client, and then delete here: {given}")
    return 0
