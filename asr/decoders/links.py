"""The best alignments of the prefixes of a beam: links from label to label that share their beginnings."""

from __future__ import annotations

import numpy as np

from asr.decoders.prefix import NEVER
from asr.jit import jit

LINK = np.dtype(
    [("before", np.int32), ("label", np.int32), ("start", np.int32), ("end", np.int32), ("peak", np.float64)]
)
"""A label of an alignment, the frames of its run, its highest log-posterior there, and the label before (-1: none)."""


@jit
def remember(p, again, frame, links, used):
    """Keep the last label of a prefix's best alignment, from which another label begins at a frame."""
    if p.label == 0:
        return -1, used
    link = links[used]
    link.label = p.label
    if again or p.best_blank >= p.best_voiced:  # the same label again needs a blank between
        link.before, link.start, link.end, link.peak = p.blank_link, p.blank_start, p.blank_end, p.blank_peak
    else:
        link.before, link.start, link.end, link.peak = p.voiced_link, p.voiced_start, frame, p.voiced_peak
    return used, used + 1


@jit
def settled_link(prefixes, count, links, used):
    """The last label, with its frames, that the best alignments of all prefixes share; -1 if there is none."""
    reached, different = np.zeros(used, np.bool_), 0
    for i in range(count):
        for link, possible in (
            (prefixes[i].blank_link, prefixes[i].best_blank > NEVER),
            (prefixes[i].voiced_link, prefixes[i].best_voiced > NEVER),
        ):
            if possible:
                if link < 0:
                    return -1
                different += not reached[link]
                reached[link] = True
    for link in range(used - 1, -1, -1):  # links point back, so the last one cannot be shared by the others
        if reached[link]:
            if different == 1:
                return link
            before = links[link].before
            if before < 0:
                return -1
            different -= reached[before]
            reached[before] = True
    return -1


@jit
def trace(link, links):
    """The labels up to a link, first to last."""
    size, here = 0, link
    while here >= 0:
        size, here = size + 1, links[here].before
    path = np.empty(size, links.dtype)
    for k in range(size - 1, -1, -1):
        path[k] = links[link]
        link = links[link].before
    return path


@jit
def drop_links(prefixes, count, links, used, settled):
    """Forget links that no prefix needs, and those up to a settled one: how many are left."""
    numbers = np.full(used, -1, np.int32)
    for i in range(count):
        for link in (prefixes[i].blank_link, prefixes[i].voiced_link):
            while link > settled and numbers[link] < 0:
                numbers[link] = 0
                link = links[link].before
    kept = 0
    for link in range(used):
        if numbers[link] == 0:
            numbers[link] = kept
            links[kept] = links[link]
            if links[kept].before >= 0:
                links[kept].before = numbers[links[kept].before]
            kept += 1
    for i in range(count):
        p = prefixes[i]
        p.blank_link = numbers[p.blank_link] if p.blank_link >= 0 else -1
        p.voiced_link = numbers[p.voiced_link] if p.voiced_link >= 0 else -1
    return kept
