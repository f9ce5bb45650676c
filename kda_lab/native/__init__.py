"""Compiled rungs as backends: registered here, compiled only when one is first asked to run."""

from kda_lab.backend import register
from kda_lab.native.call import backend
from kda_lab.native.rungs import RUNGS

for _rung in RUNGS.values():
    register(backend(_rung))
