"""An exported recognizer: one ONNX file, which holds the acoustic model, and in its metadata all else.

The metadata are strings: `sample_rate`, `frame_seconds`, `stride` (samples from one emission frame to the next),
`labels` (a JSON list, blank first), `bias` (a JSON list: what the decoder takes off each label's log-probability, such
as a penalty on blank), `separator` (between the labels of a text), `precision` (float32 or int8), `recognizer` (JSON:
the bundle's config, the files of its tokenizer in base64, versions) and `card` (its README.md).
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from asr.configs import check_amount
from asr.engines import OnnxModel
from asr.errors import CheckpointError

GRAPH, METADATA = 7, 14
"""Numbers of two fields of ONNX's ModelProto; the latter's entries have the fields 1, key, and 2, value."""


def write_metadata(
    tokenizer: Any, bias: Sequence[float], recognizer: Mapping[str, Any], card: str, model: OnnxModel
) -> dict[str, str]:
    """What an exported file says beside its graph.

    Args:
        tokenizer: turns label ids into text.
        bias: of each label, as the decoder takes it off the log-probabilities.
        recognizer: config, files of the tokenizer and versions, as `asr.bundle.describe` gives them.
        card: Markdown.
        model: what was exported.
    """
    labels = tokenizer.labels
    spaced = len(labels) > 1 and tokenizer.decode([1, 1]) == f"{labels[1]} {labels[1]}"
    files = {name: base64.b64encode(content).decode() for name, content in recognizer["tokenizer"].items()}
    return {
        "sample_rate": str(model.sample_rate),
        "frame_seconds": repr(model.frame_seconds),
        "stride": str(round(model.frame_seconds * model.sample_rate)),
        "labels": json.dumps(labels, ensure_ascii=False),
        "bias": json.dumps([*bias]),
        "separator": " " if spaced else "",
        "precision": "int8" if model.int8 else "float32",
        "recognizer": json.dumps({**recognizer, "tokenizer": files}, ensure_ascii=False),
        "card": card,
    }


def read_exported(path: Path) -> tuple[Any, dict[str, bytes], str, dict[str, str], OnnxModel]:
    """Config, the tokenizer's files, card, versions and model of an exported file.

    Raises:
        CheckpointError: it is damaged, or not of this toolkit.
    """
    found = read_metadata(path)
    try:
        recognizer = json.loads(found["recognizer"])
        files = {str(name): base64.b64decode(text, validate=True) for name, text in recognizer["tokenizer"].items()}
        config, versions = recognizer["config"], dict(recognizer["versions"])
        labels = json.loads(found["labels"])
        sample_rate, frame_seconds = int(found["sample_rate"]), float(found["frame_seconds"])
        precision, card = found["precision"], found["card"]
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError, binascii.Error) as error:
        raise CheckpointError(f"{path}: not a recognizer that 'asr export' wrote ({error!r}).") from None
    check_amount(recognizer, path)
    if not (0 < sample_rate <= 10**6 and 0 < frame_seconds < math.inf and isinstance(labels, list)):
        raise CheckpointError(f"{path}: damaged: sample_rate, frame_seconds or labels make no sense.")
    model = OnnxModel(path.read_bytes(), sample_rate, frame_seconds, len(labels), precision == "int8", str(path))
    return config, files, card, versions, model


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of an ONNX file, without its graph, which may be large and is not trusted.

    Raises:
        CheckpointError: it is no ONNX file, or damaged.
    """
    found: dict[str, str] = {}
    try:
        with path.open("rb") as file:
            end = path.stat().st_size
            while file.tell() < end:
                number, content = _field(file, end)
                if number == METADATA:
                    start, entry = file.tell(), {}
                    while file.tell() < start + content:
                        key, length = _field(file, start + content)
                        entry[key] = file.read(length).decode()
                    found[entry[1]] = entry.get(2, "")
                else:
                    file.seek(content, 1)
    except (OSError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: cannot be read as an ONNX file ({error}).") from None
    return found


def _field(file: BinaryIO, end: int) -> tuple[int, int]:
    """The number of the protobuf field that begins here, and the bytes of its content, which follow."""
    tag = _varint(file)
    if tag & 7 == 0:
        _varint(file)
        return tag >> 3, 0
    length = {1: 8, 5: 4}.get(tag & 7) or (_varint(file) if tag & 7 == 2 else end)
    if file.tell() + length > end:
        raise ValueError("a field reaches beyond its end")
    return tag >> 3, length


def _varint(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, 64, 7):
        byte = file.read(1)
        if not byte:
            raise EOFError("it ends early")
        value |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return value
    raise ValueError("a number has no end")
