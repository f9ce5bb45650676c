"""Pictures that answer back: widgets for the notebooks, each with a static form.

Every widget is a model function (plain numbers in, plain numbers out), a thin view in JavaScript,
and a matplotlib picture with a description for pages where nothing runs.
"""

from kda_lab.widgets.affine_scan import AffineScan
from kda_lab.widgets.chunk_matrix import ChunkMatrix
from kda_lab.widgets.fragments import Fragments
from kda_lab.widgets.layouts import Layouts
from kda_lab.widgets.roofline import Roofline
from kda_lab.widgets.state_evolution import StateEvolution, example_story, random_story
from kda_lab.widgets.swimlanes import SwimLanes

__all__ = [
    "AffineScan",
    "ChunkMatrix",
    "Fragments",
    "Layouts",
    "Roofline",
    "StateEvolution",
    "SwimLanes",
    "example_story",
    "random_story",
]
