"""A trained recognizer → one ONNX file: waveforms in, log-probabilities out, all else in its metadata.

The model is traced by torch's TorchScript exporter: its successor freezes the time axis of a recurrent layer. Every
export is compared with torch at two lengths and two batch sizes before it is written.
"""

from __future__ import annotations

import io
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.onnx import symbolic_helper

from asr.bundle import describe, load_pipeline, open_checkpoint
from asr.configs import map_options, names_file
from asr.engines import INPUTS, OUTPUTS, OnnxEngine, OnnxModel, TorchEngine
from asr.errors import CheckpointError, ConfigError
from asr.exported import write_metadata
from asr.model import AcousticModel
from asr.plugins import instantiate

OPSET = 17
"""The first with LayerNormalization."""
ABSOLUTE, RELATIVE = 1e-4, 1e-5
"""What log-probabilities in float32 may differ from torch's."""
INT8_TOLERANCE = 0.1
"""What 8-bit weights may move of a frame's probability, on the average."""
CHECKED = ((1.0,), (3.1, 0.4, 0.02))
"""Seconds of the utterances in the batches on which an export is compared with torch."""
INT8_LAYERS = ["LSTM", "MatMul", "Gemm"]
"""ONNX's names of what ONNX Runtime computes with 8-bit weights."""


def export(checkpoint: str | Path, out: str | Path, quantize: str = "none", overwrite: bool = False) -> Path:
    """Write a recognizer as an ONNX file, whole or not at all.

    A decoder that reads files, such as a language model, stays behind: the file gets the greedy one.

    Args:
        checkpoint: any but an exported one.
        out: ends in `.onnx`.
        quantize: "none", or "int8"; see `export_model`.
        overwrite: whether a file that lies there may be replaced.

    Raises:
        CheckpointError: there is no such recognizer.
        ConfigError: it cannot be exported so, or the place is taken.
    """
    out = Path(out)
    if out.suffix != ".onnx":
        raise ConfigError(f"out={out}: must end in .onnx.")
    if quantize not in ("none", "int8"):
        raise ConfigError(f"quantize={quantize}: must be none or int8.")
    if out.exists() and not overwrite:
        raise ConfigError(f"out={out}: is there already. Choose another place, or say overwrite=true.")
    found = open_checkpoint(checkpoint)
    pipeline = load_pipeline(found)
    if isinstance(pipeline.model, OnnxModel):
        raise ConfigError(f"checkpoint={checkpoint}: is an exported file. Export the bundle that it was made of.")
    model = export_model(pipeline.model, quantize == "int8")
    config = {**found.config, "decoder": portable_decoder(found.config["decoder"])}
    content = _onnx().load_model_from_string(model.content)
    decoder = instantiate(config["decoder"], "decoder", tokenizer=pipeline.tokenizer)
    bias = decoder.bias.offsets.tolist() if hasattr(decoder, "bias") else [0.0] * len(pipeline.tokenizer)
    metadata = write_metadata(pipeline.tokenizer, bias, describe(pipeline, config), found.card, model)
    _onnx().helper.set_model_props(content, metadata)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
            partial = Path(folder, out.name)
            partial.write_bytes(content.SerializeToString())
            partial.replace(out)
    except OSError as error:
        raise ConfigError(f"out={out}: cannot be written ({error.strerror}).") from None
    return out


def _onnx() -> Any:
    try:
        import onnx
    except ImportError:
        raise ConfigError("onnx is not installed: pip install 'asr-pipeline[export]'") from None
    return onnx


def portable_decoder(config: dict) -> dict:
    """A decoder's config, or the greedy one's if it names files."""
    files: list[str] = []
    map_options(config, lambda key, value: files.append(key) if names_file(key, value) else None)
    return {"_target_": "asr.decoders.Greedy"} if files else config


def export_model(model: AcousticModel, int8: bool = False) -> OnnxModel:
    """Export an acoustic model, and see that it does in ONNX Runtime what it does in torch.

    Args:
        model: on the CPU.
        int8: whether the weights of the encoder's LSTM and linear layers and of the head become 8-bit integers, with a
            scale for each unit; what they are multiplied with is rounded to 8 bits as it comes. The features, the
            convolutions and the sums stay float32.

    Raises:
        ConfigError: a stage cannot be exported, or differs from torch.
    """
    _onnx()
    found = _trace(model.eval())
    for ours, theirs in _compare(model, found):
        if not np.allclose(ours, theirs, RELATIVE, ABSOLUTE):
            raise _refusal(model, f"its log-probabilities differ from torch's by {np.abs(ours - theirs).max():.2g}")
    if not int8:
        return found
    found = _quantize(model, found)
    moved = max(
        float(np.abs(np.exp(ours) - np.exp(theirs)).sum(-1).mean()) / 2 for ours, theirs in _compare(model, found)
    )
    if not moved <= INT8_TOLERANCE:
        raise _refusal(model, f"8-bit weights move {100 * moved:.0f} % of the probability. Take quantize=none.")
    return found


def _trace(model: AcousticModel) -> OnnxModel:
    rate = model.sample_rate
    waveforms = 0.1 * torch.randn(2, rate, generator=torch.Generator().manual_seed(0))
    axes = {"waveforms": {0: "batch", 1: "samples"}, "lengths": {0: "batch"}}
    axes |= {"log_probs": {0: "batch", 1: "time"}, "frames": {0: "batch"}}
    torch.onnx.register_custom_op_symbolic("aten::unflatten", _unflatten, OPSET)
    try:
        with ExitStack() as quiet, torch.no_grad(), tempfile.TemporaryDirectory() as folder:
            quiet.enter_context(redirect_stdout(io.StringIO()))  # where it prints the graph of what it cannot export
            quiet.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")  # of what tracing makes constant: the comparison would find it
            file = Path(folder, "model.onnx")
            torch.onnx.export(
                model, (waveforms, torch.tensor([rate, rate // 2])), file, dynamo=False, opset_version=OPSET,
                input_names=[*INPUTS], output_names=[*OUTPUTS], dynamic_axes=axes,
            )  # fmt: skip
            content = file.read_bytes()
    except (torch.onnx.OnnxExporterError, RuntimeError) as error:
        raise _refusal(model, str(error).strip().splitlines()[0]) from error
    finally:
        torch.onnx.unregister_custom_op_symbolic("aten::unflatten", OPSET)
    return OnnxModel(content, rate, model.frame_seconds, model.head.out_features, int8=False)


@symbolic_helper.parse_args("v", "i", "v")
def _unflatten(g: Any, x: Any, dim: int, sizes: Any) -> Any:
    """ONNX's operator for torch's `unflatten` of the last axis; the exporter's own freezes all the others."""
    rank, known = x.type().dim(), symbolic_helper._maybe_get_const(sizes, "is")
    if not isinstance(known, list):  # one of them is computed
        known = [symbolic_helper._maybe_get_const(size, "i") for size in symbolic_helper._unpack_list(sizes)]
        known = [size if isinstance(size, int) else -1 for size in known]
    if dim not in (-1, rank - 1) or known.count(-1) > 1:
        raise RuntimeError("it calls unflatten on another axis than the last; use reshape")
    return g.op("Reshape", x, g.op("Constant", value_t=torch.tensor([0] * (rank - 1) + known)))  # 0: as it was


def _compare(model: AcousticModel, exported: OnnxModel) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The log-probabilities (T, V) of the same utterances by ONNX Runtime and by torch."""
    engines = OnnxEngine(exported, threads=1), TorchEngine(model, torch.device("cpu"))
    random = np.random.default_rng(0)
    for seconds in CHECKED:
        waveforms = [0.1 * random.standard_normal(round(s * model.sample_rate), np.float32) for s in seconds]
        try:
            ours, theirs = (engine(waveforms).numpy() for engine in engines)
        except CheckpointError as error:
            raise _refusal(model, str(error)) from None
        if not np.array_equal(ours.lengths, theirs.lengths):
            raise _refusal(model, f"it has {ours.lengths} frames where torch has {theirs.lengths}")
        for row, length in enumerate(theirs.lengths):
            yield np.asarray(ours.log_probs[row, :length]), np.asarray(theirs.log_probs[row, :length])


def _quantize(model: AcousticModel, exported: OnnxModel) -> OnnxModel:
    import onnxruntime as ort
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        whole, small = Path(folder, "whole.onnx"), Path(folder, "small.onnx")
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(whole)
        ort.InferenceSession(exported.content, options, providers=["CPUExecutionProvider"])  # computes what is constant
        layers = [node.name for node in _onnx().load(whole).graph.node if node.op_type in INT8_LAYERS]
        encoder = [name for name in layers if name.startswith("/encoder/")]
        if not encoder:
            raise _refusal(model, "ONNX Runtime has 8-bit kernels for LSTM and linear layers, and it has none of these")
        logging.disable(logging.WARNING)  # it recommends what was done above
        try:
            quantize_dynamic(
                # 7 bits: sums of two products overflow otherwise on processors without VNNI
                whole, small, INT8_LAYERS, per_channel=True, weight_type=QuantType.QInt8, reduce_range=True,
                nodes_to_quantize=[*encoder, *(name for name in layers if name.startswith("/head/"))],
            )  # fmt: skip
        finally:
            logging.disable(logging.NOTSET)
        content = small.read_bytes()
    return OnnxModel(content, exported.sample_rate, exported.frame_seconds, exported.labels, int8=True)


def _refusal(model: AcousticModel, why: str) -> ConfigError:
    stages = f"{type(model.encoder).__name__} on {type(model.featurizer).__name__}"
    return ConfigError(f"{stages} cannot be exported: {why.rstrip('.')}.")
