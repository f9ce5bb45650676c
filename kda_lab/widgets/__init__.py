"""Pictures that answer back: widgets for the notebooks, each with a static form.

Every widget is a model function (plain numbers in, plain numbers out), a thin view in JavaScript,
and a matplotlib picture with a description for pages where nothing runs.
"""

from kda_lab.widgets.chunk_matrix import ChunkMatrix
from kda_lab.widgets.state_evolution import StateEvolution, example_story, random_story

__all__ = ["ChunkMatrix", "StateEvolution", "example_story", "random_story"]
