"""Access to the hub. The token comes from the environment and is never shown."""

import os

from elkflow.common.errors import UserError


def token() -> str:
    """HF_TOKEN.

    Raises:
        UserError: it is not set.
    """
    if not (value := os.environ.get("HF_TOKEN")):
        raise UserError("HF_TOKEN is not set: pushing needs a token with write access, from the environment")
    return value
