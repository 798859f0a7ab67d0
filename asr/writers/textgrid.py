"""Transcripts as TextGrids of Praat."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from asr.types import AlignedTranscript, Segment, Transcript, Word


def to_textgrid(transcript: Transcript) -> str:
    """A TextGrid, long format: a tier of words, and one of segments, or of labels where they are aligned.

    Each tier has empty intervals where there is nothing. Times are from the start of the audio, whose end is the end
    of the tiers.
    """
    tiers: dict[str, Sequence[Word | Segment]] = {"words": transcript.words}
    if isinstance(transcript, AlignedTranscript):
        tiers["labels"] = transcript.labels
    else:
        tiers["segments"] = transcript.segments
    end = round(transcript.duration, 3)
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "xmin = 0", f"xmax = {end}"]
    lines += ["tiers? <exists>", f"size = {len(tiers)}", "item []:"]
    for number, (name, places) in enumerate(tiers.items(), 1):
        intervals = list(_contiguous(places, end))
        lines += [f"    item [{number}]:", '        class = "IntervalTier"', f'        name = "{name}"']
        lines += ["        xmin = 0", f"        xmax = {end}", f"        intervals: size = {len(intervals)}"]
        for k, (start, stop, text) in enumerate(intervals, 1):
            quoted = text.replace('"', '""')
            lines += [f"        intervals [{k}]:", f"            xmin = {start}", f"            xmax = {stop}"]
            lines += [f'            text = "{quoted}"']
    return "\n".join(lines)


def _contiguous(places: Sequence[Word | Segment], end: float) -> Iterator[tuple[float, float, str]]:
    """(start, end, text) of words or segments, and of the empty intervals between, before and after them."""
    at = 0.0
    for place in places:
        start, stop = max(place.start, at), min(place.end, end)  # the last frame may reach beyond the audio
        if stop <= start:  # Praat refuses an interval without extent
            continue
        if start > at:
            yield at, start, ""
        yield start, stop, place.text
        at = stop
    if at < end or not places:
        yield at, end, ""
