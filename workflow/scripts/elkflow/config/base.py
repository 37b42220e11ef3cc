"""Base class and types shared by all sections of the config."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict


def _no_wildcards(path: str) -> str:
    if "{" in path or "}" in path or not path.isprintable():
        raise ValueError("a path must not contain braces (Snakemake's wildcards) or unprintable characters; rename it")
    return path


UserPath = Annotated[str, AfterValidator(_no_wildcards)]
"""A file or folder of the user that becomes an input of a rule."""


class Settings(BaseModel):
    """A section that is immutable, refuses unknown keys, and documents its fields by docstrings."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )
