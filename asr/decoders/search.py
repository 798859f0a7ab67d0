"""The beam search over frames, compiled: log-probabilities in, prefixes out.

The present prefixes and the next ones take turns in two buffers; `links` keeps the labels of their best alignments.
"""

from __future__ import annotations

from asr.decoders.prefix import NEVER
from asr.decoders.scoring import END
from asr.decoders.steps import (
    advance,
    choose_labels,
    close,
    find_parents,
    grow,
    keep,
    make_room,
    recombine,
    rest,
    stay,
)  # fmt: skip
from asr.jit import jit
from asr.lm.ngram import step


@jit
def search(log_probs, begin, s, prefixes, spare, candidates, count, links, used):
    """Take frames (T, V) into the prefixes; stop early when there is no room for more links.

    Args:
        log_probs: (T, V) float32.
        begin: the first frame's number in the stream.
        s: scores prefixes.
        prefixes, spare: (beam,) `PREFIX`; the first `count` of `prefixes` are the present ones.
        candidates: (4 beam + V,) `CANDIDATE`, for use within a frame.
        links: (L,) `LINK`, of which `used` are.

    Returns:
        frames taken, number of prefixes, links used.
    """
    room = make_room(s.beam, log_probs.shape[1], len(candidates))
    starts, spelled, threshold = s.starts, s.spelled, s.label_threshold
    now, following, swapped = prefixes, spare, False
    for t in range(len(log_probs)):
        frame = begin + t
        labels = choose_labels(log_probs[t], starts, spelled, threshold, room)
        insides, startings, _, _, separator = labels
        if insides + startings == 0:  # nothing but blank: no prefix can grow, none needs to be dropped
            for i in range(count):
                p = now[i]
                rest(p, log_probs[t, 0], frame)
                p.blank = p.total = p.total + log_probs[t, 0]
                p.voiced = p.best_voiced = NEVER
            continue
        if used + 2 * s.beam > len(links):
            if swapped:
                prefixes[:count] = now[:count]
            return t, count, used
        find_parents(now, count, room)
        best, worst = stay(now, count, candidates, separator, room)
        cut = max(best - s.beam_threshold, worst if count == s.beam else NEVER)
        found, cut, best = grow(now, count, candidates, cut, best, labels, s, room)
        count, _ = keep(candidates, found, s.beam, max(cut, best - s.beam_threshold), room.scores)
        used = advance(now, following, candidates, count, separator, starts, spelled, room, frame, links, used)
        if s.recombine:
            count = recombine(following, count, room.table)
        now, following, swapped = following, now, not swapped
    if swapped:
        prefixes[:count] = now[:count]
    return len(log_probs), count, used


@jit
def end(prefixes, count, s, bonus, lm_scores):
    """What each prefix has earned if the utterance ends here.

    Returns:
        whether any is complete; with a closed vocabulary, half a word is worth nothing then.
    """
    complete = False
    for i in range(count):
        p = prefixes[i]
        if not p.closed:
            close(p, s)
        complete = complete or p.closed_bonus > NEVER
    for i in range(count):
        p = prefixes[i]
        bonus[i], lm_scores[i] = (p.closed_bonus if complete else p.bonus), p.closed_lm_score
        ends = 0.0
        if s.lm_weight > 0:
            score, _ = step(s.lm.first, s.lm.words, s.lm.log_probs, s.lm.backoffs, s.lm.suffixes, p.closed_lm, END)
            ends += s.lm_weight * score
        if s.label_lm_weight > 0:
            m = s.label_lm
            score, _ = step(m.first, m.words, m.log_probs, m.backoffs, m.suffixes, p.label_lm, END)
            ends += s.label_lm_weight * score
        bonus[i] += ends
        lm_scores[i] += ends
    return complete
