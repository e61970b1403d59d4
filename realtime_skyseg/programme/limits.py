"""What a programme needs to know of a magnet."""

from typing import Protocol


class Limits(Protocol):
    """What `check` and `estimate` need to know of a magnet: `realtime_skyseg.config.FieldSettings`."""

    @property
    def limit_mT(self) -> tuple[float, float]: ...  # noqa: D102
    @property
    def slew_mT_per_s(self) -> float: ...  # noqa: D102
    @property
    def tolerance_mT(self) -> float: ...  # noqa: D102
    @property
    def settle_s(self) -> float: ...  # noqa: D102
    @property
    def pulse_limit_mT(self) -> tuple[float, float] | None: ...  # noqa: D102
    @property
    def pulse_limit_s(self) -> float: ...  # noqa: D102
    @property
    def initial_mT(self) -> float | None: ...  # noqa: D102
