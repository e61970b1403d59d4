"""The settings of a run: the sections together, and what must hold between them."""

from typing import Any, Self
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, model_validator

from realtime_skyseg import devices, yaml_text
from realtime_skyseg.analysers.running import BUDGET_MS, RunningAnalyser, load_settings
from realtime_skyseg.analysers.selection import SelectionSettings
from realtime_skyseg.config.addresses import is_loopback
from realtime_skyseg.config.sections import (
    AccessSettings,
    AnalysisSettings,
    CameraSettings,
    ControlSettings,
    DashboardSettings,
    FieldSettings,
    MeasureSettings,
    MetricsSettings,
    PrepareSettings,
    RecordSettings,
    StreamSettings,
)
from realtime_skyseg.config.sentences import sentence
from realtime_skyseg.errors import SettingsError
from realtime_skyseg.programme import ExperimentSettings, check_quantities
from realtime_skyseg.programme import check as check_programme
from realtime_skyseg.records import FRAME_QUANTITIES, OBJECT_QUANTITIES, printable
from realtime_skyseg.section import Section


class Config(Section):
    """Everything that `skyseg run` needs to know."""

    camera: CameraSettings
    field: FieldSettings | None = None
    """The magnet; absent: the service has nothing to do with it."""
    prepare: PrepareSettings | None = None
    """What is done to a frame before it is segmented; absent: nothing."""
    analysis: AnalysisSettings = AnalysisSettings()
    measure: MeasureSettings = MeasureSettings()
    stream: StreamSettings = Field(default_factory=StreamSettings)
    control: ControlSettings = ControlSettings()
    access: AccessSettings = AccessSettings()
    metrics: MetricsSettings = MetricsSettings()
    dashboard: DashboardSettings = DashboardSettings()
    record: RecordSettings = RecordSettings()
    analysers: dict[str, dict[str, Any] | None] = {}
    """What else is measured on each frame: names of installed analysers, with the settings of each; see
    docs/analyser.md."""
    experiment: ExperimentSettings | None = None
    """A field programme and its rules; absent: the field stays, unless somebody asks for another one."""

    @model_validator(mode="after")
    def _check_analysers(self) -> Self:
        self.open_analysers()
        return self

    def open_analysers(self, budget_ms: float = BUDGET_MS) -> list[RunningAnalyser]:
        """The analysers of a run, in the order of the settings.

        Args:
            budget_ms: what one frame may cost; infinite where all frames wait.
        """
        running: list[RunningAnalyser] = []
        seen = set(FRAME_QUANTITIES)
        for name, tree in self.analysers.items():
            try:
                kind, settings = load_settings(name, tree or {})
                one = RunningAnalyser(name, kind(settings), budget_ms)
            except ValidationError as error:
                raise SettingsError(
                    sentence(error, devices.driver("analysers", name).Settings, f"analysers.{name}")
                ) from None
            except SettingsError as error:
                raise SettingsError(f"analysers.{error}") from error
            except Exception as error:
                raise SettingsError(
                    f"analysers.{name}: cannot be made: {type(error).__name__}: {printable(error)}"
                ) from error
            if taken := seen & set(one.quantities):
                raise SettingsError(
                    f"analysers.{name}: '{min(taken)}' is a quantity of another one; allowed: a new name"
                )
            above = {q.name for other in running for q in other.of("object")} | set(OBJECT_QUANTITIES)
            if isinstance(settings, SelectionSettings) and (unknown := set(settings.limits) - above):
                raise SettingsError(
                    f"analysers.{name}.limits: '{min(unknown)}' is no quantity of objects that stands above it; "
                    f"allowed: {', '.join(sorted(above))}"
                )
            seen |= set(one.quantities)
            running.append(one)
        return running

    @model_validator(mode="after")
    def _check_experiment(self) -> Self:
        if self.experiment is not None:
            if self.field is None:
                raise ValueError("experiment: a field programme needs a magnet; allowed: with a section field")
            extra = [q.name for one in self.open_analysers() if one.pace == "every_frame" for q in one.of("frame")]
            try:
                if self.experiment.min_domain is not None and "domain" not in extra:
                    raise ValueError("min_domain: nothing gives a score of the domain; allowed: with analysers.domain")
                check_quantities(self.experiment, extra)
                check_programme(self.experiment, self.field)
            except ValueError as error:
                raise ValueError(f"experiment.{error}") from None
        return self

    @model_validator(mode="after")
    def _check_open(self) -> Self:
        stream, control = self.stream, self.control_address
        if self.dashboard.port is not None and (not stream.enabled or urlsplit(stream.address).port == 0):
            raise ValueError(
                "dashboard.port: the page needs the stream; allowed: with stream.address at a port of its own"
            )
        if self.access.keys is None:
            if stream.enabled and not stream.insecure and not is_loopback(stream.address):
                raise ValueError(
                    f"stream.address: '{stream.address}' can be reached from other computers; allowed: "
                    "tcp://127.0.0.1:PORT, with keys (access.keys, see skyseg keys), or with stream.insecure: true"
                )
            if control is not None and not is_loopback(control):
                raise ValueError(
                    f"control.address: '{control}' can be reached from other computers; allowed: tcp://127.0.0.1:PORT, "
                    "or with keys (access.keys, see skyseg keys)"
                )
        return self

    @property
    def control_address(self) -> str | None:
        """Where the control socket is bound; None: nowhere."""
        wanted = self.stream.enabled if self.control.enabled is None else self.control.enabled
        if not wanted:
            return None
        if self.control.address is not None:
            return self.control.address
        port = urlsplit(self.stream.address).port or 0
        return f"tcp://127.0.0.1:{port + 1 if port else 0}"

    def to_yaml(self) -> str:
        """The full settings as YAML that `load_config` reads back."""
        return yaml_text.dump(self.model_dump(mode="json"))


#: What `skyseg demo` runs; `configs/demo.yaml` says the same.
DEMO: dict[str, Any] = {
    "camera": {"driver": "replay", "path": "bundled"},
    "analysis": {"policy": "every"},
    "record": {"name": "demo-{time}", "title": "demo on the bundled synthetic recording"},
}
