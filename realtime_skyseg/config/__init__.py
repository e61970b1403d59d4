"""The settings: one YAML file, one tree, unknown keys refused.

`python -m realtime_skyseg.config` prints the JSON Schema for editors (kept in `configs/skyseg.schema.json`).
"""

from realtime_skyseg.config.loading import json_schema, load_config, load_training, overridden, read_yaml, validate
from realtime_skyseg.config.sections import (
    DEFAULT_ADDRESS,
    DEFAULT_CONTROL_ADDRESS,
    AnalysisSettings,
    CameraSettings,
    EngineChoice,
    FieldSettings,
    MeasureSettings,
    PrepareSettings,
    StreamSettings,
)
from realtime_skyseg.config.sentences import sentence
from realtime_skyseg.config.settings import DEMO, Config
from realtime_skyseg.config.training import SHAPE_KEYS, TrainingSettings

__all__ = [
    "DEFAULT_ADDRESS",
    "DEFAULT_CONTROL_ADDRESS",
    "DEMO",
    "SHAPE_KEYS",
    "AnalysisSettings",
    "CameraSettings",
    "Config",
    "EngineChoice",
    "FieldSettings",
    "MeasureSettings",
    "PrepareSettings",
    "StreamSettings",
    "TrainingSettings",
    "json_schema",
    "load_config",
    "load_training",
    "overridden",
    "read_yaml",
    "sentence",
    "validate",
]
