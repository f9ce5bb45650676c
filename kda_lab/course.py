"""The set-up of every notebook: `from kda_lab.course import *`.

Gives numpy as np, torch, matplotlib.pyplot as plt, kda_lab, palette, and what a lesson calls:
check, yours, hint for exercises; predict, reveal for guesses; show for pictures; card for what the
ledger knows. Figures take the course's style; random numbers start from 0 in every notebook.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch

import kda_lab
from kda_lab import palette
from kda_lab.grading.notebook import check, hint, predict, reveal, yours
from kda_lab.grading.runner import nursery
from kda_lab.palette import show

__all__ = [
    "card",
    "check",
    "hint",
    "kda_lab",
    "np",
    "palette",
    "plt",
    "predict",
    "reveal",
    "show",
    "torch",
    "yours",
]


def card(rung: str, **options):
    """What the ledger says about a rung; see `kda_lab.bench.cards.card`."""
    from kda_lab.bench import cards

    return cards.card(rung, **options)


palette.use()
torch.manual_seed(0)
np.random.seed(0)
torch.set_printoptions(precision=4, sci_mode=False, linewidth=100)
np.set_printoptions(precision=4, suppress=True, linewidth=100)
nursery()  # warm by the first check, so that a verdict takes well under two seconds
