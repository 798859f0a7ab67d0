"""Voice activity: in which parts of a recording somebody speaks, so that it can be cut at the pauses."""

from asr.vad.energy import Energy
from asr.vad.everything import Everything
from asr.vad.silero import Silero
from asr.vad.webrtc import WebRtc

__all__ = ["Energy", "Everything", "Silero", "WebRtc"]
