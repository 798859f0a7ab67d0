"""Hotwords as an automaton over characters, for the beam search."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from asr.jit import jit

NOWHERE = 0
"""The node at the beginning of a word, where no phrase has begun."""
LOST = -1
"""Inside a word with which no phrase goes on."""
SPACE = 32


class Hotwords(NamedTuple):
    """Phrases as a trie with failure links (Aho & Corasick 1975) that lead to word beginnings only.

    A phrase is worth its weight wherever it stands as whole words. While it is only partly there, that part of its
    weight is lent, for the search's pruning; if it breaks off, the loan is gone.
    """

    first: np.ndarray
    """(N + 1,) int32: the children of node n are first[n] … first[n + 1] - 1."""
    codes: np.ndarray
    """(N,) int32 character that leads to each node."""
    failures: np.ndarray
    """(N,) int32 node of the longest part that begins at a later word and goes on as well."""
    rewards: np.ndarray
    """(N,) float64: weight of the phrases that are complete at each node."""
    loans: np.ndarray
    """(N,) float64: what the phrases under way at each node lend."""
    best_reward: float
    best_loan: float
    """The highest of each, 0 or more."""


def build_hotwords(phrases: Mapping[tuple[str, ...], float]) -> Hotwords:
    """Compile phrases, each a sequence of words, with their weights."""
    weights = {" ".join(words) + " ": weight for words, weight in phrases.items()}
    lent: dict[str, float] = {}
    for phrase, weight in weights.items():
        for k in range(1, len(phrase)):
            lent[phrase[:k]] = max(lent.get(phrase[:k], 0.0), weight * k / len(phrase))
    followers: dict[str, list[str]] = {}
    for part in sorted(lent.keys() | weights.keys()):
        followers.setdefault(part[:-1], []).append(part)
    names, first = [""], [1]
    for name in names:  # breadth first: the children of a node follow one another
        names.extend(followers.get(name, []))
        first.append(len(names))
    number = {name: k for k, name in enumerate(names)}
    failures, rewards, loans = [NOWHERE], [0.0], [0.0]
    for name in names[1:]:
        suffixes = [name[k + 1 :] for k in range(len(name)) if name[k] == " "]
        shorter = next((number[suffix] for suffix in suffixes if suffix in number), LOST)
        failures.append(shorter)
        rewards.append(weights.get(name, 0.0) + (rewards[shorter] if shorter != LOST else 0.0))
        loans.append(max(lent.get(name, 0.0), loans[shorter] if shorter != LOST else 0.0))
    codes = [0] + [ord(name[-1]) for name in names[1:]]
    first_array, code_array, failure_array = (np.array(x, np.int32) for x in (first, codes, failures))
    arrays = (first_array, code_array, failure_array, np.array(rewards), np.array(loans))
    return Hotwords(*arrays, max(rewards), max(loans))


@jit
def follow(first, codes, failures, node, code):
    """The node after one more character; a space ends a word."""
    while node != LOST:
        for child in range(first[node], first[node + 1]):
            if codes[child] == code:
                return child
        if node == NOWHERE:
            break
        node = failures[node]
    return NOWHERE if code == SPACE else LOST
