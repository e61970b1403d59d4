"""The requests that a running service takes, one class each."""

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from realtime_skyseg.errors import ControlError
from realtime_skyseg.records import printable

#: A longer request is answered with an error.
MOST_BYTES = 65_536


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    id: Annotated[str, Field(max_length=100)] | int | None = None


class Status(_Request):
    """How the run fares: counters, rate, latest count, field, addresses."""

    do: Literal["status"]


class Programme(_Request):
    """The field programme: what was planned, since when, and the steps so far."""

    do: Literal["programme"]


class Stop(_Request):
    """End the run: what was received is still analysed and written."""

    do: Literal["stop"]


class SetField(_Request):
    """Go to a field; answered once it is accepted, while it is still on its way."""

    do: Literal["set_field"]
    field_mT: float


class EnterField(_Request):
    """Say what field a person has set: for the field driver `manual`."""

    do: Literal["enter_field"]
    field_mT: float


class SafeField(_Request):
    """Go to the safe state."""

    do: Literal["safe_field"]


class Demagnetise(_Request):
    """Alternate the field, each swing smaller than the one before, and end at zero."""

    do: Literal["demagnetise"]
    amplitude_mT: float
    ratio: float = 0.8
    smallest_mT: float | None = None
    dwell_s: float = 0.2


class Pulse(_Request):
    """Apply an in-plane field for a while, where the supply can."""

    do: Literal["pulse"]
    in_plane_mT: float
    seconds: float


class Pause(_Request):
    """The field programme stands still, at the field of now."""

    do: Literal["pause"]


class Resume(_Request):
    """The field programme goes on."""

    do: Literal["resume"]


class Abort(_Request):
    """The field programme ends: the field goes to its safe state, and the run ends."""

    do: Literal["abort"]


class TakeBackground(_Request):
    """Average the next frames into the background that is taken from every frame from then on."""

    do: Literal["take_background"]
    frames: Annotated[int, Field(ge=1, le=1000)] = 16


class Mark(_Request):
    """Note an event in the file and the stream."""

    do: Literal["mark"]
    message: Annotated[str, Field(min_length=1, max_length=1000)]


Request = (
    Status
    | Stop
    | SetField
    | EnterField
    | SafeField
    | Demagnetise
    | Pulse
    | Pause
    | Resume
    | Abort
    | TakeBackground
    | Mark
    | Programme
)

_REQUEST: TypeAdapter[Request] = TypeAdapter(Annotated[Request, Field(discriminator="do")])


def kinds(do: str) -> dict[str, Any]:
    """The annotations of a request's keys, by name; none for a request that does not exist."""
    for kind in get_args(Request):
        if get_args(kind.model_fields["do"].annotation) == (do,):
            return {key: field.annotation for key, field in kind.model_fields.items()}
    return {}


def requests() -> list[str]:
    """What can be asked for."""
    return [do for kind in get_args(Request) for do in get_args(kind.model_fields["do"].annotation)]


def parse(data: bytes) -> Request:
    """A request from its bytes.

    Raises:
        ControlError: it is malformed; nothing else, whatever the bytes.
    """
    if len(data) > MOST_BYTES:
        raise ControlError(f"a request of {len(data)} bytes is refused; allowed: at most {MOST_BYTES}")
    try:
        return _REQUEST.validate_json(data)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=True)[0]
        place = ".".join(str(part) for part in fault["loc"][1:])
        message = fault["msg"]
        if fault["type"].startswith("union_tag"):
            asked = fault["ctx"].get("tag")
            what = "this key is missing" if asked is None else f"'{printable(asked)[:40]}' is no request"
            message = f"do: {what}; allowed: {', '.join(requests())}"
        raise ControlError(f"malformed request: {place + ': ' if place else ''}{message}"[:500]) from None
