"""A lexicon as an automaton over the tokenizer's labels, for the beam search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from asr.jit import jit

ROOT = 0
"""The node where a word begins."""
OUTSIDE = -1
"""Where a word goes on that the lexicon does not have."""


class Lexicon(NamedTuple):
    """The words as a trie over their characters; its arcs are the labels that lead from node to node.

    A label of several characters leads over several nodes at once, so every way in which the labels can spell a word
    is found, not only the tokenizer's own.
    """

    first: np.ndarray
    """(N + 1,) int32: the arcs of node n are first[n] … first[n + 1] - 1."""
    labels: np.ndarray
    """(A,) int32 label of each arc, ascending within a node: labels that go on with a word."""
    targets: np.ndarray
    """(A,) int32 node that each arc leads to."""
    entries: np.ndarray
    """(V,) int32 node that a label which begins a word leads to, `OUTSIDE` where no word begins like it."""
    words: np.ndarray
    """(N,) int32: the number of the word that is complete at a node, -1 where none is."""
    parents: np.ndarray
    """(N,) int32: parents have lower numbers than their children."""

    def best(self, scores: np.ndarray) -> np.ndarray:
        """(N,) for every node the best of the scores (W,) of the words that go through it or end there."""
        found = np.where(self.words >= 0, scores[self.words], -np.inf)
        _raise_parents(self.parents, found)
        return found


def build_lexicon(words: Sequence[str], spellings: Sequence[str], word_starts: Sequence[bool]) -> Lexicon:
    """Compile words to an automaton.

    Args:
        words: their numbers are their places in this list; none may be there twice.
        spellings: the characters that each label stands for, less the space before a word.
        word_starts: for each label whether a new word begins with it.
    """
    trie = _trie(words)
    starts = list(word_starts)
    inside = [label for label in range(1, len(spellings)) if not starts[label] and spellings[label]]
    pieces = _trie([spellings[label] for label in inside])
    numbers = np.array([inside[k] if k >= 0 else -1 for k in pieces.words.tolist()], np.int32)
    counts = _count_arcs(*trie[:3], *pieces[:3], numbers)
    first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    labels, targets = np.empty(first[-1], np.int32), np.empty(first[-1], np.int32)
    _fill_arcs(*trie[:3], *pieces[:3], numbers, first, labels, targets)
    order = np.lexsort((labels, np.repeat(np.arange(len(counts)), counts)))
    entries = np.full(len(spellings), OUTSIDE, np.int32)
    for label in (label for label, begins in enumerate(starts) if begins):
        entries[label] = _walk(*trie[:3], _codes([spellings[label]]))
    return Lexicon(first, labels[order], targets[order], entries, trie.words, trie.parents)


def unspellable(lexicon: Lexicon, words: Sequence[str]) -> list[str]:
    """The words, in the order in which the lexicon was built from them, that no sequence of labels spells."""
    reached = np.zeros(len(lexicon.words), np.bool_)
    reached[lexicon.entries[lexicon.entries != OUTSIDE]] = True
    reached[ROOT] = True
    _reach(lexicon.first, lexicon.targets, reached)
    found = np.zeros(len(words), np.bool_)
    found[lexicon.words[reached & (lexicon.words >= 0)]] = True
    return [word for word, spelled in zip(words, found.tolist(), strict=True) if not spelled]


class _Trie(NamedTuple):
    first: np.ndarray
    codes: np.ndarray
    """(N - 1,) the character of each child, sorted within a node."""
    children: np.ndarray
    words: np.ndarray
    parents: np.ndarray


def _codes(words: Sequence[str]) -> np.ndarray:
    return np.frombuffer("".join(words).encode("utf-32-le"), np.int32)


def _trie(words: Sequence[str]) -> _Trie:
    order = sorted(range(len(words)), key=words.__getitem__)
    ends = np.cumsum([len(words[k]) for k in order], dtype=np.int64)
    parents, codes, ending = _grow_trie(_codes([words[k] for k in order]), ends, np.array(order, np.int32))
    # children come in the order of their characters, because the words are sorted: a stable sort keeps it
    children = np.argsort(parents[1:], kind="stable").astype(np.int32) + 1
    first = np.concatenate([[0], np.cumsum(np.bincount(parents[1:], minlength=len(parents)))]).astype(np.int32)
    return _Trie(first, codes[children], children, ending, parents)


@jit
def _grow_trie(codes, ends, order):
    size, longest, begin = 1, 0, 0
    for end in ends:
        size += end - begin
        longest = max(longest, end - begin)
        begin = end
    parents, characters = np.full(size, -1, np.int32), np.zeros(size, np.int32)
    words = np.full(size, -1, np.int32)
    path, nodes, depth, begin = np.zeros(longest + 1, np.int32), 1, 0, 0
    for k in range(len(ends)):
        length = ends[k] - begin
        shared = 0
        while shared < min(depth, length) and characters[path[shared + 1]] == codes[begin + shared]:
            shared += 1
        for position in range(shared, length):
            parents[nodes], characters[nodes] = path[position], codes[begin + position]
            path[position + 1] = nodes
            nodes += 1
        words[path[length]] = order[k]
        depth, begin = length, ends[k]
    return parents[:nodes].copy(), characters[:nodes].copy(), words[:nodes].copy()


@jit
def _child(first, codes, children, node, code):
    low, high = first[node], first[node + 1]
    while low < high:
        middle = (low + high) // 2
        if codes[middle] < code:
            low = middle + 1
        else:
            high = middle
    return children[low] if low < first[node + 1] and codes[low] == code else -1


@jit
def _walk(first, codes, children, spelling):
    node = 0
    for code in spelling:
        node = _child(first, codes, children, node, code)
        if node < 0:
            break
    return node


@jit
def _arcs_of(first, codes, children, piece_first, piece_codes, piece_children, numbers, node, labels, targets):
    """Walk both tries together from a node; every piece that ends on the way is an arc."""
    found = 0
    stack = [(node, np.int32(0))]
    while len(stack):
        here, piece = stack.pop()
        if numbers[piece] >= 0:
            if len(labels):
                labels[found], targets[found] = numbers[piece], here
            found += 1
        for k in range(piece_first[piece], piece_first[piece + 1]):
            target = _child(first, codes, children, here, piece_codes[k])
            if target >= 0:
                stack.append((target, piece_children[k]))
    return found


@jit
def _count_arcs(first, codes, children, piece_first, piece_codes, piece_children, numbers):
    counts, none = np.zeros(len(first) - 1, np.int64), np.zeros(0, np.int32)
    for node in range(len(counts)):
        counts[node] = _arcs_of(
            first, codes, children, piece_first, piece_codes, piece_children, numbers, np.int32(node), none, none
        )
    return counts


@jit
def _fill_arcs(first, codes, children, piece_first, piece_codes, piece_children, numbers, arcs, labels, targets):
    for node in range(len(first) - 1):
        if arcs[node + 1] > arcs[node]:
            _arcs_of(
                first, codes, children, piece_first, piece_codes, piece_children, numbers, np.int32(node),
                labels[arcs[node] : arcs[node + 1]], targets[arcs[node] : arcs[node + 1]],
            )  # fmt: skip


@jit
def _reach(first, targets, reached):
    for node in range(len(reached)):  # arcs lead to nodes of higher numbers
        if reached[node]:
            for arc in range(first[node], first[node + 1]):
                reached[targets[arc]] = True


@jit
def _raise_parents(parents, scores):
    for node in range(len(parents) - 1, 0, -1):
        if scores[node] > scores[parents[node]]:
            scores[parents[node]] = scores[node]
