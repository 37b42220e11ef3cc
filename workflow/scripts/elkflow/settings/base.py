"""What every section of the config has in common."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A section that refuses unknown keys, cannot be changed, and documents its fields with docstrings."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )
