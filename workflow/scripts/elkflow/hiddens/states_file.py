"""A safetensors file that is written piece by piece, so that memory use does not grow with the number of rows."""

import json
import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

DtypeAndShape = tuple[torch.dtype, tuple[int, ...]]
DTYPE_CODES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}


class StatesFile:
    """Named tensors [N, A, ...] in one file, whose slots are written in any order.

    Slots are the N × A entries of a tensor, numbered row by row. Each is written at its offset by `pwrite`, so several
    processes on one machine can write to the same file.

    Args:
        path: the file.
        tensors: name to dtype and shape.
        metadata: strings for the header.
        create: create the file, with zeros; otherwise it must exist, created with the same arguments.
    """

    def __init__(
        self,
        path: Path,
        tensors: Mapping[str, DtypeAndShape],
        metadata: Mapping[str, str],
        create: bool = True,
    ) -> None:
        header: dict[str, object] = {"__metadata__": dict(metadata)}
        self._place: dict[str, tuple[int, int, torch.dtype]] = {}
        offset = 0
        for name, (dtype, shape) in tensors.items():
            end = offset + math.prod(shape) * dtype.itemsize
            header[name] = {"dtype": DTYPE_CODES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
            self._place[name] = (offset, math.prod(shape[2:]) * dtype.itemsize, dtype)
            offset = end
        text = json.dumps(header, ensure_ascii=False).encode()
        text += b" " * (-(8 + len(text)) % 64)  # the format requires 8; 64 aligns mapped tensors to cache lines
        self._start = 8 + len(text)
        self._handle = os.open(path, os.O_RDWR | (os.O_CREAT | os.O_TRUNC if create else 0), 0o644)
        if create:
            os.pwrite(self._handle, struct.pack("<Q", len(text)) + text, 0)
            os.ftruncate(self._handle, self._start + offset)

    def write(self, name: str, slot: int, values: Tensor) -> None:
        """Write `values` [n, ...] to n slots of tensor `name`, from `slot` on."""
        offset, stride, dtype = self._place[name]
        content = values.detach().to("cpu", dtype).contiguous().reshape(-1).view(torch.uint8).numpy().data
        assert len(content) == len(values) * stride, f"{name}: slots of another shape"
        place = self._start + offset + slot * stride
        while content:
            written = os.pwrite(self._handle, content, place)
            content, place = content[written:], place + written

    def close(self) -> None:
        """Close the file."""
        os.close(self._handle)

    def __enter__(self) -> "StatesFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
