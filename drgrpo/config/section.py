"""What every section of a configuration is."""

from typing import Any

from pydantic import BaseModel, ConfigDict

_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def _tell_bounds(schema: dict[str, Any]) -> None:
    """Put each field's bounds into its description, the only words that the form in Prefect's UI shows."""
    for field in schema.get("properties", {}).values():
        bounds = [f"{sign} {field[key]}" for key, sign in _BOUNDS.items() if key in field]
        if bounds:
            field["description"] = f"{field['description']} ({', '.join(bounds)})"


class Section(BaseModel):
    """A frozen group of settings that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, json_schema_extra=_tell_bounds)
