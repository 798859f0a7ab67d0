"""The inner loop of the beam search, compiled: frames in, prefixes out.

The present prefixes and the next ones take turns in two buffers; `links` keeps the labels of their best alignments.
"""

from __future__ import annotations

import numpy as np

from asr.decoders.hotwords import NOWHERE, SPACE, follow
from asr.decoders.lexicon import OUTSIDE
from asr.decoders.links import remember
from asr.decoders.prefix import NEVER
from asr.decoders.scoring import END
from asr.jit import jit
from asr.lm.ngram import step


@jit
def _log_add(a, b):
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
def _keep(candidates, count, beam, cut, spare):
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
def _rest(p, log_prob, frame):
    """Let the best alignment go on with a blank."""
    if p.best_voiced > p.best_blank:
        p.best_blank, p.blank_start, p.blank_end = p.best_voiced, p.voiced_start, frame
        p.blank_peak, p.blank_link = p.voiced_peak, p.voiced_link
    p.best_blank += log_prob


@jit
def _recombine(prefixes, count, table, mask):
    """Drop prefixes that another one excels and that nothing to come can tell from it: how many are left."""
    table[:] = -1
    kept = 0
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
    # arrays are taken out of `s` once: each time, numba counts a reference
    starts, spelled, codes, loans, label_words = s.starts, s.spelled, s.codes, s.loans, s.label_words
    arcs, arc_labels, arc_targets = s.lexicon.first, s.lexicon.labels, s.lexicon.targets
    entries, complete = s.lexicon.entries, s.lexicon.words
    label_first, label_nodes, label_log_probs = s.label_lm.first, s.label_lm.words, s.label_lm.log_probs
    label_backoffs, label_suffixes = s.label_lm.backoffs, s.label_lm.suffixes
    hot_first, hot_codes, hot_failures, hot_loans = (
        s.hotwords.first,
        s.hotwords.codes,
        s.hotwords.failures,
        s.hotwords.loans,
    )
    listens = len(hot_codes) > 1
    beam, labels = s.beam, log_probs.shape[1]
    ranked, totals = np.empty(len(candidates), np.float64), np.empty(beam, np.float64)
    parents, heads, siblings = np.empty(beam, np.int32), np.empty(beam, np.int32), np.empty(beam, np.int32)
    blanks, voices = np.empty(beam, np.float64), np.empty(beam, np.float64)
    bits = 4
    while 1 << bits < 4 * beam:
        bits += 1
    table, mask = np.empty(1 << bits, np.int32), np.uint64((1 << bits) - 1)
    row = np.empty(labels, np.float64)
    inside, starting = np.empty(labels, np.int32), np.empty(labels, np.int32)
    reached, nodes = np.empty(labels, np.int32), np.empty(labels, np.int32)
    # the most that one more label can earn
    generous = max(s.label_score, 0.0) + max(s.hotwords.rewards.max(), 0.0) + hot_loans.max()
    now, following, swapped = prefixes, spare, False
    for t in range(len(log_probs)):
        floor = log_probs[t].max() - s.label_threshold
        insides, startings, best_inside, best_start = 0, 0, NEVER, NEVER
        for label in range(1, labels):
            row[label] = NEVER
            if log_probs[t, label] >= floor:
                row[label] = log_probs[t, label]
                if starts[label]:
                    starting[startings], best_start = label, max(best_start, row[label])
                    startings += 1
                else:
                    inside[insides], best_inside = label, max(best_inside, row[label])
                    insides += 1
        row[0], separator = log_probs[t, 0], NEVER
        for k in range(startings):
            if spelled[starting[k]] == spelled[starting[k] + 1]:
                separator = _log_add(separator, row[starting[k]])
        if insides + startings == 0:  # nothing but blank: no prefix can grow, none needs to be dropped
            for i in range(count):
                p = now[i]
                _rest(p, row[0], begin + t)
                p.blank, p.voiced, p.best_voiced = _log_add(p.blank, p.voiced) + row[0], NEVER, NEVER
            continue
        if used + 2 * beam > len(links):
            if swapped:
                prefixes[:count] = now[:count]
            return t, count, used

        # prefixes of which others are the beginning
        table[:] = -1
        for i in range(count):
            place = now[i].key & mask
            while table[place] >= 0:
                place = (place + np.uint64(1)) & mask
            table[place] = i
            totals[i] = _log_add(now[i].blank, now[i].voiced)
            heads[i] = -1
        for i in range(count):
            place = now[i].parent & mask
            while table[place] >= 0 and now[table[place]].key != now[i].parent:
                place = (place + np.uint64(1)) & mask
            parents[i] = table[place]
            if parents[i] >= 0:
                siblings[i], heads[parents[i]] = heads[parents[i]], i

        # prefixes that stay as they are, in new alignments
        best, worst = NEVER, np.inf
        for i in range(count):
            p, c = now[i], candidates[i]
            blanks[i], voices[i] = totals[i] + row[0], p.voiced + row[p.label]
            if not p.begun:  # more than one space between words, or one before them, is as good as silence
                blanks[i] = _log_add(blanks[i], p.blank + separator)
            if parents[i] >= 0:
                o = now[parents[i]]
                voices[i] = _log_add(voices[i], (o.blank if o.label == p.label else totals[parents[i]]) + row[p.label])
            c.score, c.source, c.label = _log_add(blanks[i], voices[i]) + p.bonus + p.loan, i, 0
            best, worst = max(best, c.score), min(worst, c.score)
        cut = max(best - s.beam_threshold, worst if count == beam else NEVER)
        found = count

        # prefixes with one more label
        for i in range(count):
            p = now[i]
            if found + labels > len(candidates):
                found, cut = _keep(candidates, found, beam, cut, ranked)
            reach, hope = 0, totals[i] + p.bonus + generous
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
            hope += best_start + max(s.word_score, 0.0)
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
                log_prob = (p.blank if label == p.label else totals[i]) + row[label]
                bonus, lm_score = (p.closed_bonus, p.closed_lm_score) if starts[label] else (p.bonus, p.lm_score)
                loan = s.unknown_loan if node == OUTSIDE else loans[node]
                if log_prob + bonus + loan + generous <= cut:
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

        # the best of them are the next prefixes
        found, cut = _keep(candidates, found, beam, max(cut, best - s.beam_threshold), ranked)
        for k in range(found):
            c, p = candidates[k], now[candidates[k].source]
            following[k] = p
            q = following[k]
            if c.label == 0:
                q.blank, q.voiced = blanks[c.source], voices[c.source]
                _rest(q, row[0], begin + t)
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
                        q.best_voiced, q.voiced_start, q.voiced_peak = other, begin + t, row[p.label]
                        q.voiced_link, used = remember(o, again, begin + t, links, used)
            else:
                again = c.label == p.label
                q.key, q.parent, q.label = _hash(p.key, c.label), p.key, c.label
                q.bonus, q.lm_score, q.loan = c.bonus, c.lm_score, c.loan
                q.node, q.label_lm, q.hotword, q.closed = c.node, c.label_lm, c.hotword, False
                q.begun = spelled[c.label + 1] > spelled[c.label] or (p.begun and not starts[c.label])
                if starts[c.label]:
                    q.lm = p.closed_lm
                q.blank, q.voiced, q.best_blank, q.blank_link = NEVER, c.voiced, NEVER, -1
                q.best_voiced = (p.best_blank if again else max(p.best_blank, p.best_voiced)) + row[c.label]
                q.voiced_start, q.voiced_peak = begin + t, row[c.label]
                q.voiced_link, used = remember(p, again, begin + t, links, used)
        if s.recombine:
            found = _recombine(following, found, table, mask)
        now, following, count, swapped = following, now, found, not swapped
    if swapped:
        prefixes[:count] = now[:count]
    return len(log_probs), count, used


@jit
def _has_child(now, child, siblings, label):
    while child >= 0:
        if now[child].label == label:
            return True
        child = siblings[child]
    return False


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
