"""A small character-level transformer, and the text that it learns: Python's own help pages.

Every CPython carries them, as ``pydoc_data.topics``: prose, grammar and examples in 0.5 MB.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import gelu, scaled_dot_product_attention

_CONTEXT = 64
_HELD_OUT_SHARE = 0.1
# Held-out windows follow each other; these are more than enough for a loss to 0.01 nats, and all
# of them would take as long as a fourth of the training.
_MOST_TEST_WINDOWS = 320


@dataclass(frozen=True)
class Text:
    """A text as numbers of characters; its end is held out."""

    training: torch.Tensor
    held_out: torch.Tensor
    num_characters: int

    @property
    def num_windows(self) -> int:
        """How many places of the training text a window can start at."""
        return len(self.training) - _CONTEXT

    def windows(self, starts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the windows that start there, and for each character the one that follows."""
        places = starts[:, None] + torch.arange(_CONTEXT + 1)
        characters = self.training[places]
        return characters[:, :-1], characters[:, 1:]

    def held_out_windows(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return windows spread evenly over the held-out text, which do not overlap."""
        rows = self.held_out[: len(self.held_out) // (_CONTEXT + 1) * (_CONTEXT + 1)]
        rows = rows.view(-1, _CONTEXT + 1)
        rows = rows[:: -(-len(rows) // _MOST_TEST_WINDOWS)]
        return rows[:, :-1], rows[:, 1:]

    def unigram_loss_nats(self) -> float:
        """Return the loss of who knows how frequent each character is, and nothing else."""
        counts = torch.bincount(self.training, minlength=self.num_characters).double() + 1
        frequencies = counts / counts.sum()
        _, targets = self.held_out_windows()
        return -frequencies.log()[targets].mean().item()


@functools.cache
def load_text() -> Text:
    """Return the help pages in the order of their names."""
    from pydoc_data.topics import topics

    content = "\n".join(topics[name] for name in sorted(topics))
    alphabet = {character: number for number, character in enumerate(sorted(set(content)))}
    numbers = torch.tensor([alphabet[character] for character in content])
    held_out = round(len(numbers) * _HELD_OUT_SHARE)
    return Text(numbers[:-held_out], numbers[-held_out:], len(alphabet))


class _Block(nn.Module):
    """Attention and a perceptron, each behind a norm and beside the identity."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_attention, self.norm_perceptron = nn.LayerNorm(width), nn.LayerNorm(width)
        self.inputs = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = self.inputs(self.norm_attention(x)).unflatten(-1, (3, self.num_heads, -1))
        queries, keys, values = parts.movedim(2, 0).transpose(2, 3)
        seen = scaled_dot_product_attention(queries, keys, values, is_causal=True)
        x = x + self.dropout(self.output(seen.transpose(1, 2).flatten(2)))
        thought = self.narrow(gelu(self.widen(self.norm_perceptron(x))))
        result: torch.Tensor = x + self.dropout(thought)
        return result


class CharacterTransformer(nn.Module):
    """Predicts each character from those before it: pre-norm, 0.4 M parameters by default."""

    def __init__(
        self, num_characters: int, width: int = 128, num_layers: int = 2, num_heads: int = 4
    ) -> None:
        super().__init__()
        self.characters = nn.Embedding(num_characters, width)
        self.places = nn.Parameter(torch.zeros(_CONTEXT, width))
        self.blocks = nn.Sequential(*(_Block(width, num_heads, 0.1) for _ in range(num_layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_characters, bias=False)
        nn.init.normal_(self.characters.weight, std=0.02)
        nn.init.normal_(self.places, std=0.02)

    def forward(self, characters: torch.Tensor) -> torch.Tensor:
        """Return logits of the next characters for (samples, up to 64) characters."""
        x = self.characters(characters) + self.places[: characters.shape[1]]
        logits: torch.Tensor = self.head(self.norm(self.blocks(x)))
        return logits
