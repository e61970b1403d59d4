"""`python -m realtime_skyseg.config` prints the JSON Schema of the settings."""

from realtime_skyseg.config.loading import json_schema

print(json_schema(), end="")  # noqa: T201
