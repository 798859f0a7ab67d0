"""What runs an acoustic model: torch in float32 or bfloat16, or ONNX Runtime in float32 or with 8-bit weights.

`auto` takes what changes no result and needs no preparation: torch in float32 for a checkpoint, ONNX Runtime for an
exported file. In float32 they are about as fast; bfloat16 and 8 bits are twice as fast, and move log-probabilities in
the first decimal. Importing this module loads neither of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from asr.errors import CheckpointError, ConfigError, near_matches
from asr.machine import processors
from asr.types import Emissions

if TYPE_CHECKING:
    import torch

    from asr.model import AcousticModel, ModelState

ENGINES = ("auto", "torch", "bf16", "onnx", "int8")
INPUTS, OUTPUTS = ("waveforms", "lengths"), ("log_probs", "frames")
"""What an exported model takes, (B, N) float32 and (B,) int64, and gives, (B, T, V) float32 and (B,) int64."""


class OnnxModel:
    """An exported acoustic model, as yet run by nothing; `asr.export` makes it, `OnnxEngine` runs it.

    Args:
        content: the bytes of the ONNX file.
        sample_rate: Hz of the waveforms.
        frame_seconds: from one emission frame to the next.
        labels: number of labels, blank among them.
        int8: whether its weights are 8-bit integers.
        source: what messages call it.
    """

    def __init__(
        self, content: bytes, sample_rate: int, frame_seconds: float, labels: int, int8: bool, source: str = "onnx"
    ):
        self.content, self.source = content, source
        self.sample_rate, self.frame_seconds, self.labels, self.int8 = sample_rate, frame_seconds, labels, int8


class OnnxEngine:
    """Runs an `OnnxModel` on the CPU.

    Args:
        model: the model.
        threads: of one run; `None`: as many as there are processors.

    Raises:
        CheckpointError: ONNX Runtime cannot load it, or it is no acoustic model of ours.
    """

    device: Any = "cpu"

    def __init__(self, model: OnnxModel, threads: int | None = None):
        try:
            import onnxruntime as ort
        except ImportError:
            raise ConfigError("ONNX Runtime is not installed: pip install 'asr-pipeline[export]'") from None
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or processors()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # it starves other processes
        # from memory, with all paths in it below a file: nothing is read from elsewhere
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
        options.log_severity_level = 4  # what goes wrong is raised
        self.model, self.threads = model, threads
        try:
            self._session = ort.InferenceSession(model.content, options, providers=["CPUExecutionProvider"])
        except _onnxruntime_errors() as error:
            raise CheckpointError(f"{model.source}: ONNX Runtime cannot load it ({_first_line(error)}).") from None
        names = [node.name for node in (*self._session.get_inputs(), *self._session.get_outputs())]
        if names != [*INPUTS, *OUTPUTS]:
            raise CheckpointError(f"{model.source}: no acoustic model of ours: its inputs and outputs are {names}.")

    def __call__(self, waveforms: Sequence[np.ndarray]) -> Emissions:
        """(N,) float32 waveforms at the model's `sample_rate` → their emissions, as NumPy."""
        lengths = np.array([len(waveform) for waveform in waveforms], np.int64)
        padded = np.zeros((len(waveforms), lengths.max()), np.float32)
        for row, waveform in zip(padded, waveforms, strict=True):
            row[: len(waveform)] = waveform
        try:
            log_probs, frames = self._session.run(None, dict(zip(INPUTS, (padded, lengths), strict=True)))
        except _onnxruntime_errors() as error:
            raise CheckpointError(f"{self.model.source}: ONNX Runtime fails on it ({_first_line(error)}).") from None
        if log_probs.ndim != 3 or log_probs.shape[::2] != (len(lengths), self.model.labels):
            raise CheckpointError(
                f"{self.model.source}: gives {log_probs.shape} for {len(lengths)} utterances and {self.model.labels} "
                "labels: its model and its labels do not belong together."
            )
        return Emissions(log_probs, frames, self.model.frame_seconds)

    def __reduce__(self) -> tuple[Any, ...]:
        return OnnxEngine, (self.model, self.threads)

    def weights(self) -> Iterator[bytes]:
        """All that decides its emissions."""
        yield self.model.content


class TorchEngine:
    """Runs an `AcousticModel` in torch.

    Args:
        model: is moved to the device.
        device: where.
        bf16: whether the encoder computes in bfloat16; features and log-probabilities stay float32.
        threads: CPU threads of torch in this whole process; `None` leaves them as they are.
    """

    def __init__(self, model: AcousticModel, device: torch.device, bf16: bool = False, threads: int | None = None):
        if threads:
            import torch

            torch.set_num_threads(threads)
        self.model, self.device, self.bf16 = model.to(device).eval(), device, bf16

    def __call__(self, waveforms: Sequence[np.ndarray]) -> Emissions:
        """(N,) float32 waveforms at the model's `sample_rate` → their emissions, on the device."""
        import torch

        lengths = torch.tensor([len(waveform) for waveform in waveforms], dtype=torch.int64)
        rows = [torch.from_numpy(np.ascontiguousarray(waveform)) for waveform in waveforms]
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        log_probs, lengths = self._run(self.model, padded.to(self.device), lengths)
        return Emissions(log_probs, lengths, self.model.frame_seconds)

    def step(self, samples: np.ndarray, state: ModelState) -> np.ndarray:
        """The next samples (N,) of a stream → log-probabilities (T, V); see `AcousticModel.step`."""
        import torch

        waveform = torch.from_numpy(np.ascontiguousarray(samples, np.float32))
        return self._run(self.model.step, waveform[None].to(self.device), state)[0].cpu().numpy()

    def finish(self, state: ModelState) -> np.ndarray:
        """The last log-probabilities (T, V) of a stream."""
        return self._run(self.model.finish, state)[0].cpu().numpy()

    def _run(self, function: Callable, *arguments: Any) -> Any:
        import torch

        with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            return function(*arguments)

    def weights(self) -> Iterator[bytes]:
        """All that decides its emissions."""
        yield from (value.cpu().numpy().tobytes() for value in self.model.state_dict().values())


def make_engine(
    model: AcousticModel | OnnxModel, engine: str = "auto", device: str = "auto", threads: int | None = None
) -> TorchEngine | OnnxEngine:
    """The engine of that name for a model; a checkpoint's model is exported first where ONNX Runtime is to run it.

    Args:
        model: of a checkpoint, or of an exported file.
        engine: one of `ENGINES`.
        device: "auto" (CUDA if there is any and torch runs the model), "cpu", "cuda", "cuda:1", …
        threads: on the CPU.

    Raises:
        ConfigError: there is no such engine or device, or one cannot serve the other or the model.
    """
    if engine not in ENGINES:
        raise ConfigError(f"engine={engine}: there is no such engine. {near_matches(engine, ENGINES)}")
    if isinstance(model, OnnxModel):
        if engine in ("torch", "bf16"):
            raise ConfigError(f"engine={engine}: {model.source} is an exported file: only ONNX Runtime runs it.")
    elif engine in ("auto", "torch", "bf16"):
        return TorchEngine(model, choose_device(device), engine == "bf16", threads)
    if device not in ("auto", "cpu"):
        raise ConfigError(f"device={device}: ONNX Runtime runs on the CPU here. Use device=cpu, or engine=torch.")
    if not isinstance(model, OnnxModel):
        from asr.export import export_model

        model = export_model(model, int8=engine == "int8")
    if engine == "int8" and not model.int8:
        raise ConfigError(f"engine=int8: {model.source} holds float32 weights. Export it again with quantize=int8.")
    return OnnxEngine(model, threads)


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto" takes CUDA if there is any."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device={name}: must be auto, cpu, or cuda (cuda:1 for the second one).")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device={name}: there is no CUDA device here. Use device=cpu or device=auto.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device={name}: there are only {torch.cuda.device_count()} CUDA devices, counted from 0.")
    return device


def _onnxruntime_errors() -> tuple[type[Exception], ...]:
    """ONNX Runtime's exceptions, which have no base of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    found = [value for value in vars(state).values() if isinstance(value, type) and issubclass(value, Exception)]
    return tuple(found)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300]
