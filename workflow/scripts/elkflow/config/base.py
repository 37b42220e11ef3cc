"""What every section of the config has in common."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict


def _no_wildcards(path: str) -> str:
    if "{" in path or "}" in path or not path.isprintable():
        raise ValueError(
            "a path must not hold braces (Snakemake's wildcards) or characters that do not print; rename it"
        )
    return path


UserPath = Annotated[str, AfterValidator(_no_wildcards)]
"""A file or folder of the user's, which becomes an input of a rule."""


class Settings(BaseModel):
    """A section that refuses unknown keys, cannot be changed, and documents its fields with docstrings."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )
