"""Loading of checkpoints: model family, dtype, quantisation and device."""

import os
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    BitsAndBytesConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from elkflow.common.errors import UserError, first_line
from elkflow.common.files import read_json

ModelKind = Literal["decoder", "encoder-decoder", "encoder"]
AUTO_CLASSES: dict[ModelKind, Any] = {
    "decoder": AutoModelForCausalLM,
    "encoder-decoder": AutoModelForSeq2SeqLM,
    "encoder": AutoModel,
}


def model_kind(folder: Path | str) -> ModelKind:
    """The family a checkpoint belongs to, according to its config.json.

    Raises:
        UserError: there is no config.json, or its architecture belongs to none of them.
    """
    config = read_json(Path(folder) / "config.json")
    architecture = (config.get("architectures") or [""])[0]
    model_type = config.get("model_type")
    if config.get("is_encoder_decoder"):
        return "encoder-decoder"
    if architecture.endswith(("ForCausalLM", "LMHeadModel")):
        return "decoder"
    if model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return "encoder"
    if model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return "decoder"
    raise UserError(f"{folder}: {architecture or model_type or 'this model'} is not a supported text model")


def load_model(
    folder: Path | str,
    *,
    dtype: str = "auto",
    quantization: str | None = None,
    trust_remote_code: bool = False,
    device_map: str | None = None,
    kind: ModelKind | None = None,
) -> PreTrainedModel:
    """Load a checkpoint in eval mode, onto this process's device or, with `device_map`, over all visible ones.

    Decoders and encoder-decoders have their output layer, encoders do not.

    Args:
        kind: the checkpoint's family, if known.

    Raises:
        UserError: the folder has no readable checkpoint, or the checkpoint lacks weights of its architecture.
    """
    family = kind or model_kind(folder)
    device = default_device()
    compute = compute_dtype(dtype, device)
    options: dict[str, Any] = {"dtype": compute}
    if quantization == "8bit":
        options["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
    elif quantization == "4bit":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute
        )
    if device_map or quantization:
        options["device_map"] = device_map or {"": device}
    try:
        model, report = AUTO_CLASSES[family].from_pretrained(
            str(folder),
            local_files_only=True,
            trust_remote_code=trust_remote_code,
            use_safetensors=None if trust_remote_code else True,
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(f"{folder}: not a readable checkpoint ({first_line(error)})") from None
    # Missing weights would be initialised at random. Encoders may lack the pooler, which is never used.
    if missing := sorted(name for name in report["missing_keys"] if "pooler" not in name):
        raise UserError(f"{folder}: the checkpoint lacks {len(missing)} of the model's weights, first {missing[0]}")
    return (model if "device_map" in options else model.to(device)).eval()


def default_device() -> torch.device:
    """This process's own GPU (by `LOCAL_RANK`), or the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return torch.device("cpu")


def compute_dtype(name: str = "auto", device: torch.device | None = None) -> torch.dtype:
    """The dtype named in a config; `auto`: bfloat16 if `device` supports it natively, else float32.

    On GPUs before Ampere, which lack bfloat16, `auto` is float16.
    """
    if name != "auto":
        return getattr(torch, name)
    if (device or default_device()).type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32
