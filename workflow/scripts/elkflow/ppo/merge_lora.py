"""Merge an adapter (or trained weights) into its model, and check that the result gives the same logits."""

import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from elkflow.batching.layout import padded
from elkflow.common.errors import UserError
from elkflow.common.files import atomic, read_table
from elkflow.config.model import ModelSettings
from elkflow.models.load import compute_dtype, load_model
from elkflow.models.tokens import encode_prompt, load_tokenizer

TOLERANCE = {"float32": 1e-3, "float16": 5e-2, "bfloat16": 5e-1}
"""Largest difference between logits (which are of the order of 10 to 30) that rounding of merged weights explains."""
TEXTS = 16
"""Prompts on which the two are compared."""
logger = logging.getLogger(__name__)


def merge(folder: Path, adapter: Path, prompts: Path, target: Path, settings: ModelSettings) -> dict[str, Any]:
    """Merge `adapter` into the model of `folder` and save a safetensors checkpoint with its tokenizer.

    Merging is done in float32. What is saved has the checkpoint's own dtype, and is compared, as saved and loaded
    again, with the adapter on the float32 model.

    Args:
        prompts: parquet file with a column `prompt`, to compare on.

    Returns:
        Facts: dtype, largest and mean logit difference, the tolerance, share of equal likeliest tokens.

    Raises:
        UserError: the two differ by more than rounding explains; nothing is saved then.
    """
    trust = settings.trust_remote_code
    tokenizer = load_tokenizer(folder, trust)
    texts = read_table(prompts, ["prompt"])["prompt"].to_pylist()[:TEXTS]
    rows = [encode_prompt(tokenizer, text) for text in texts]
    tuned = with_trained(load_model(folder, dtype="float32", trust_remote_code=trust, kind="decoder"), adapter)
    wanted = last_logits(tuned, rows)
    dtype = saved_dtype(settings)
    model = tuned.merge_and_unload() if hasattr(tuned, "merge_and_unload") else tuned
    with atomic(target) as temporary:
        model.to(dtype).save_pretrained(temporary)
        for file in sorted(folder.iterdir()):  # tokenizer and chat template, exactly as they were
            if not (temporary / file.name).exists() and not file.name.startswith((".", "model", "pytorch_model")):
                (shutil.copytree if file.is_dir() else shutil.copyfile)(file, temporary / file.name)
        del tuned, model
        name = str(dtype).removeprefix("torch.")
        found = last_logits(load_model(temporary, dtype=name, trust_remote_code=trust, kind="decoder"), rows)
        difference = (found - wanted).abs()
        facts: dict[str, Any] = {
            "dtype": name,
            "logit_difference": float(difference.max()),
            "mean_logit_difference": float(difference.mean()),
            "tolerance": TOLERANCE[name],
            "same_likeliest_token": float((found.argmax(-1) == wanted.argmax(-1)).float().mean()),
        }
        if not facts["logit_difference"] <= facts["tolerance"]:
            raise UserError(
                f"{adapter}: the merged model's logits differ from the adapter's by {facts['logit_difference']:.3g},"
                f" more than {facts['tolerance']} ({name})"
            )
    logger.info("merged as %s; logits differ by at most %.3g", name, facts["logit_difference"])
    return facts


def with_trained(model: PreTrainedModel, adapter: Path) -> Any:
    """The model with a peft adapter on it, or with trained weights in place of its own."""
    if (adapter / "adapter_config.json").exists():
        from peft import PeftModel

        return PeftModel.from_pretrained(model, str(adapter)).eval()
    missing = model.load_state_dict(load_file(adapter / "weights.safetensors"), strict=False)
    if missing.unexpected_keys:
        raise UserError(f"{adapter}: has weights that the model lacks, such as {missing.unexpected_keys[0]}")
    return model


def saved_dtype(settings: ModelSettings) -> torch.dtype:
    """Float32, unless the model is computed in half precision on a GPU, where merged float32 weights might not fit."""
    dtype = compute_dtype(settings.dtype)
    return dtype if torch.cuda.is_available() else torch.float32


@torch.no_grad()
def last_logits(model: Any, rows: list[list[int]]) -> Tensor:
    """Next-token logits after each row, [N, V] float32 on the CPU."""
    device = next(model.parameters()).device
    ids = padded(rows, device).ids
    last = torch.tensor([len(row) - 1 for row in rows], device=device)
    logits = model(input_ids=ids, use_cache=False, logits_to_keep=last.unique()).logits
    at = torch.searchsorted(last.unique(), last)
    return logits[torch.arange(len(rows), device=device), at].float().cpu()
