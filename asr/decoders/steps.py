"""The steps that the beam search takes in each frame, compiled: labels, candidates, the next prefixes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from asr.decoders.hotwords import LOST, NOWHERE, SPACE, follow
from asr.decoders.lexicon import OUTSIDE
from asr.decoders.links import remember
from asr.decoders.prefix import NEVER
from asr.jit import jit
from asr.lm.ngram import step


@jit
def log_add(a, b):
    high, low = (a, b) if a > b else (b, a)
    return high if low == NEVER else high + np.log1p(np.exp(low - high))


@jit
def _hash(key, label):
    """Mix one more label into a prefix's hash (the finalizer of splitmix64)."""
    x = key * np.uint64(31) + np.uint64(label) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@jit
def close(p, s):
    """Score a prefix's last word as complete."""
    p.closed = True
    p.closed_bonus, p.closed_lm_score, p.closed_lm, p.closed_hotword = p.bonus, p.lm_score, p.lm, p.hotword
    if not p.begun:
        return
    bonus = p.bonus + s.word_score
    word = s.lexicon.words[p.node] if p.node != OUTSIDE else -1
    if s.knows_words and word < 0:
        if not s.open_vocabulary:
            p.closed_bonus = NEVER
            return
        bonus += s.unknown_score
    if s.lm_weight > 0:
        score, p.closed_lm = step(
            s.lm.first, s.lm.words, s.lm.log_probs, s.lm.backoffs, s.lm.suffixes, p.lm, max(word, 0)
        )
        bonus += s.lm_weight * score
        p.closed_lm_score = p.lm_score + s.lm_weight * score
    if len(s.hotwords.codes) > 1:
        p.closed_hotword = follow(s.hotwords.first, s.hotwords.codes, s.hotwords.failures, p.hotword, SPACE)
        bonus += s.hotwords.rewards[p.closed_hotword]
    p.closed_bonus = bonus


class Room(NamedTuple):
    """Arrays for use within a frame."""

    row: np.ndarray
    """(V,) log-probabilities; `NEVER` for labels below the threshold."""
    inside: np.ndarray
    """(V,) the labels above it that go on with a word, ascending."""
    starting: np.ndarray
    """(V,) those that begin one."""
    reached: np.ndarray
    """(V,) the labels that a prefix can have next."""
    nodes: np.ndarray
    """(V,) where each leads in the lexicon."""
    parents: np.ndarray
    """(beam,) for each present prefix the one that is it less its last label, -1 if that is not present."""
    heads: np.ndarray
    """(beam,) the first prefix of which it is the parent, -1 if there is none."""
    siblings: np.ndarray
    """(beam,) the next prefix with the same parent."""
    blanks: np.ndarray
    voices: np.ndarray
    sums: np.ndarray
    """(beam,) what `PREFIX` calls blank, voiced and total, of a prefix that stays as it is, after this frame."""
    scores: np.ndarray
    """(candidates,) for `keep`."""
    table: np.ndarray
    """A hash table of prefixes, a power of two in length."""


@jit
def make_room(beam, labels, candidates):
    size = 16
    while size < 4 * beam:
        size *= 2
    return Room(
        np.empty(labels, np.float64), np.empty(labels, np.int32), np.empty(labels, np.int32),
        np.empty(labels, np.int32), np.empty(labels, np.int32),
        np.empty(beam, np.int32), np.empty(beam, np.int32), np.empty(beam, np.int32),
        np.empty(beam, np.float64), np.empty(beam, np.float64), np.empty(beam, np.float64),
        np.empty(candidates, np.float64), np.empty(size, np.int32),
    )  # fmt: skip


@jit(forceinline=True)
def choose_labels(frame, starts, spelled, threshold, room):
    """Take the labels of a frame (V,) that are above the threshold.

    Returns:
        how many go on with a word and how many begin one, the highest log-probability among either, and that of all
        labels that begin one but spell nothing, such as the space.
    """
    row, inside, starting = room.row, room.inside, room.starting
    floor = frame.max() - threshold
    insides, startings, best_inside, best_start, separator = 0, 0, NEVER, NEVER, NEVER
    row[0] = frame[0]
    for label in range(1, len(frame)):
        row[label] = NEVER
        if frame[label] >= floor:
            row[label] = frame[label]
            if starts[label]:
                starting[startings], best_start = label, max(best_start, row[label])
                startings += 1
                if spelled[label] == spelled[label + 1]:
                    separator = log_add(separator, row[label])
            else:
                inside[insides], best_inside = label, max(best_inside, row[label])
                insides += 1
    return insides, startings, best_inside, best_start, separator


@jit(forceinline=True)
def find_parents(now, count, room):
    """Find which prefixes are the beginning of which."""
    parents, heads, siblings, table = room.parents, room.heads, room.siblings, room.table
    mask = np.uint64(len(table) - 1)
    table[:] = -1
    for i in range(count):
        place = now[i].key & mask
        while table[place] >= 0:
            place = (place + np.uint64(1)) & mask
        table[place], heads[i] = i, -1
    for i in range(count):
        place = now[i].parent & mask
        while table[place] >= 0 and now[table[place]].key != now[i].parent:
            place = (place + np.uint64(1)) & mask
        parents[i] = table[place]
        if parents[i] >= 0:
            siblings[i], heads[parents[i]] = heads[parents[i]], i


@jit
def _has_child(now, child, siblings, label):
    while child >= 0:
        if now[child].label == label:
            return True
        child = siblings[child]
    return False


@jit(forceinline=True)
def stay(now, count, candidates, separator, room):
    """Make candidates of the prefixes as they are, in new alignments: the best score, and the worst."""
    row, parents, blanks, voices, sums = room.row, room.parents, room.blanks, room.voices, room.sums
    best, worst = NEVER, np.inf
    for i in range(count):
        p, c = now[i], candidates[i]
        blanks[i], voices[i] = p.total + row[0], p.voiced + row[p.label]
        if not p.begun:  # more than one space between words, or one before them, is as good as silence
            blanks[i] = log_add(blanks[i], p.blank + separator)
        if parents[i] >= 0:
            o = now[parents[i]]
            voices[i] = log_add(voices[i], (o.blank if o.label == p.label else o.total) + row[p.label])
        sums[i] = log_add(blanks[i], voices[i])
        c.score, c.source, c.label = sums[i] + p.bonus + p.loan, i, 0
        best, worst = max(best, c.score), min(worst, c.score)
    return best, worst


@jit(forceinline=True)
def grow(now, count, candidates, cut, best, labels, s, room):
    """Make candidates of the prefixes with one more label, behind the `count` that stay as they are.

    Args:
        cut: candidates must score above it.
        best: the best score so far.
        labels: what `choose_labels` returned.

    Returns:
        number of candidates, cut, best score.
    """
    # arrays are taken out of `s` once: each time, numba counts a reference
    starts, spelled, codes, loans, label_words = s.starts, s.spelled, s.codes, s.loans, s.label_words
    arcs, arc_labels, arc_targets = s.lexicon.first, s.lexicon.labels, s.lexicon.targets
    entries, complete = s.lexicon.entries, s.lexicon.words
    label_first, label_nodes, label_log_probs = s.label_lm.first, s.label_lm.words, s.label_lm.log_probs
    label_backoffs, label_suffixes = s.label_lm.backoffs, s.label_lm.suffixes
    hot_first, hot_codes, hot_failures, hot_loans = (
        s.hotwords.first, s.hotwords.codes, s.hotwords.failures, s.hotwords.loans,
    )  # fmt: skip
    row, inside, starting, reached, nodes = room.row, room.inside, room.starting, room.reached, room.nodes
    heads, siblings, scores = room.heads, room.siblings, room.scores
    insides, startings, best_inside, best_start, _ = labels
    listens, found = len(hot_codes) > 1, count
    # the most that one more label can earn
    generous, best_reward, best_loan = max(s.label_score, 0.0), s.hotwords.best_reward, s.hotwords.best_loan
    for i in range(count):
        p = now[i]
        if found + len(row) > len(candidates):
            found, cut = keep(candidates, found, s.beam, cut, scores)
        # inside a word with which no hotword goes on, none is earned before the next word
        reward, loan_inside = (0.0, 0.0) if p.hotword == LOST else (best_reward, best_loan)
        reach, hope = 0, p.total + p.bonus + generous + loan_inside
        if insides and hope + p.loan + best_inside > cut:
            arc, last = (arcs[p.node], arcs[p.node + 1]) if p.node != OUTSIDE else (0, 0)
            leaves = hope + s.unknown_loan + best_inside > cut  # whether it may leave the lexicon
            for k in range(insides):
                while arc < last and arc_labels[arc] < inside[k]:
                    arc += 1
                if spelled[inside[k]] == spelled[inside[k] + 1]:  # it says nothing, so it leads nowhere
                    reached[reach], nodes[reach] = inside[k], p.node
                    reach += 1
                elif arc < last and arc_labels[arc] == inside[k]:
                    reached[reach], nodes[reach] = inside[k], arc_targets[arc]
                    reach += 1
                elif leaves:
                    reached[reach], nodes[reach] = inside[k], OUTSIDE
                    reach += 1
        hope = p.total + p.bonus + generous + reward + best_loan + best_start + max(s.word_score, 0.0)
        if p.begun and (p.node == OUTSIDE or complete[p.node] < 0):
            hope += s.unknown_loan
        if startings and hope > cut:
            if not p.closed:
                close(p, s)
            for k in range(startings):
                separates = spelled[starting[k]] == spelled[starting[k] + 1]
                if (p.begun or not separates) and (entries[starting[k]] != OUTSIDE or s.open_vocabulary):
                    reached[reach], nodes[reach] = starting[k], entries[starting[k]]
                    reach += 1
        for k in range(reach):
            label, node = reached[k], nodes[k]
            log_prob = (p.blank if label == p.label else p.total) + row[label]
            bonus, lm_score = (p.closed_bonus, p.closed_lm_score) if starts[label] else (p.bonus, p.lm_score)
            loan = s.unknown_loan if node == OUTSIDE else loans[node]
            if log_prob + bonus + loan + generous + (best_loan if starts[label] else loan_inside) <= cut:
                continue
            bonus += s.label_score
            label_lm, hotword = p.label_lm, p.closed_hotword if starts[label] else p.hotword
            if s.label_lm_weight > 0:
                score, label_lm = step(
                    label_first, label_nodes, label_log_probs, label_backoffs, label_suffixes,
                    label_lm, label_words[label],
                )  # fmt: skip
                bonus += s.label_lm_weight * score
                lm_score += s.label_lm_weight * score
            if listens:
                for place in range(spelled[label], spelled[label + 1]):
                    hotword = follow(hot_first, hot_codes, hot_failures, hotword, codes[place])
                if hotword > NOWHERE:
                    loan += hot_loans[hotword]
            if log_prob + bonus + loan > cut and not _has_child(now, heads[i], siblings, label):
                c = candidates[found]
                c.score, c.source, c.label, c.voiced = log_prob + bonus + loan, i, label, log_prob
                c.bonus, c.lm_score, c.loan = bonus, lm_score, loan
                c.node, c.label_lm, c.hotword = node, label_lm, hotword
                best = max(best, c.score)
                found += 1
    return found, cut, best


@jit
def _smallest_of_best(scores, count, best):
    """The `best`-th largest of some scores, by quickselect, which leaves them in another order."""
    place, low, high = count - best, 0, count - 1
    while low < high:
        pivot, i, j = scores[(low + high) // 2], low, high
        while i <= j:
            while scores[i] < pivot:
                i += 1
            while scores[j] > pivot:
                j -= 1
            if i <= j:
                scores[i], scores[j] = scores[j], scores[i]
                i, j = i + 1, j - 1
        if place <= j:
            high = j
        elif place >= i:
            low = i
        else:
            break
    return scores[place]


@jit
def keep(candidates, count, beam, cut, spare):
    """Keep the candidates above a score, and of those the `beam` best, in their order: how many, and the worst's."""
    if count > beam:
        for k in range(count):
            spare[k] = candidates[k].score
        cut = max(cut, _smallest_of_best(spare, count, beam))
    above = 0
    for k in range(count):
        above += candidates[k].score > cut
    kept, ties = 0, beam - above
    for k in range(count):
        if candidates[k].score > cut or (candidates[k].score == cut and ties > 0):
            ties -= candidates[k].score == cut
            candidates[kept] = candidates[k]
            kept += 1
    return kept, cut


@jit
def rest(p, log_prob, frame):
    """Let the best alignment go on with a blank."""
    if p.best_voiced > p.best_blank:
        p.best_blank, p.blank_start, p.blank_end = p.best_voiced, p.voiced_start, frame
        p.blank_peak, p.blank_link = p.voiced_peak, p.voiced_link
    p.best_blank += log_prob


@jit(forceinline=True)
def advance(now, following, candidates, count, separator, starts, spelled, room, frame, links, used):
    """Make the next prefixes of the candidates: how many links are used then."""
    row, parents, blanks, voices, sums = room.row, room.parents, room.blanks, room.voices, room.sums
    for k in range(count):
        c, p = candidates[k], now[candidates[k].source]
        following[k] = p
        q = following[k]
        if c.label == 0:
            q.blank, q.voiced, q.total = blanks[c.source], voices[c.source], sums[c.source]
            rest(q, row[0], frame)
            if not p.begun and p.best_blank + separator > q.best_blank:
                q.best_blank, q.blank_start, q.blank_end = p.best_blank + separator, p.blank_start, p.blank_end
                q.blank_peak, q.blank_link = p.blank_peak, p.blank_link
            q.best_voiced += row[p.label]
            q.voiced_peak = max(q.voiced_peak, row[p.label])
            if parents[c.source] >= 0:
                o = now[parents[c.source]]
                again = o.label == p.label
                other = (o.best_blank if again else max(o.best_blank, o.best_voiced)) + row[p.label]
                if other > q.best_voiced:
                    q.best_voiced, q.voiced_start, q.voiced_peak = other, frame, row[p.label]
                    q.voiced_link, used = remember(o, again, frame, links, used)
        else:
            again = c.label == p.label
            q.key, q.parent, q.label = _hash(p.key, c.label), p.key, c.label
            q.bonus, q.lm_score, q.loan = c.bonus, c.lm_score, c.loan
            q.node, q.label_lm, q.hotword, q.closed = c.node, c.label_lm, c.hotword, False
            q.begun = spelled[c.label + 1] > spelled[c.label] or (p.begun and not starts[c.label])
            if starts[c.label]:
                q.lm = p.closed_lm
            q.blank, q.voiced, q.total, q.best_blank, q.blank_link = NEVER, c.voiced, c.voiced, NEVER, -1
            q.best_voiced = (p.best_blank if again else max(p.best_blank, p.best_voiced)) + row[c.label]
            q.voiced_start, q.voiced_peak = frame, row[c.label]
            q.voiced_link, used = remember(p, again, frame, links, used)
    return used


@jit
def recombine(prefixes, count, table):
    """Drop prefixes that another one excels and that nothing to come can tell from it: how many are left."""
    kept, mask = 0, np.uint64(len(table) - 1)
    table[:] = -1
    for i in range(count):
        p, lost = prefixes[i], False
        future = _hash(_hash(_hash(_hash(np.uint64(p.begun), p.label), p.lm), p.node), p.label_lm)
        place = _hash(future, p.hotword) & mask
        while table[place] >= 0 and not lost:
            other = table[place]
            q = prefixes[other]
            place = (place + np.uint64(1)) & mask
            if (
                p.label == q.label and p.lm == q.lm and p.node == q.node and p.label_lm == q.label_lm
                and p.hotword == q.hotword and p.begun == q.begun
            ):  # fmt: skip
                better = q.bonus - p.bonus
                if q.blank + better >= p.blank and q.voiced + better >= p.voiced:
                    lost = True
                elif q.blank + better <= p.blank and q.voiced + better <= p.voiced:
                    prefixes[other] = p
                    lost = True
        if not lost:
            table[place] = kept
            prefixes[kept] = p
            kept += 1
    return kept
