"""Exercises of notebook 13: a pipeline that does not deadlock, one warp's program at a time.

A program is a list of instructions, and the simulator runs it. An instruction is a tuple: a word
and its arguments. Tile i goes through stage i % stages of a ring in shared memory. Each stage has
two mbarriers: `full` (its tile has landed) and `empty` (its tile has been used).
"""


# ex13.producer: 4 points, 20 minutes, about 7 lines
# A hint: kda-lab hint ex13.producer     Your verdict: kda-lab grade ex13
def producer(tiles: int, stages: int, nbytes: int) -> list[tuple]:
    """The producer's program: load tiles 0, 1, ... into the ring, never over a tile in use.

    tiles: how many. stages: of the ring. nbytes: bytes of one tile.
    ("wait", "empty", stage, parity) waits until the phase of that parity is complete;
    ("arrive_expect_tx", "full", stage, nbytes) arrives and promises bytes;
    ("tma_load", i, stage) starts the copy of tile i, which signals full[stage].
    Each barrier takes one arrival a phase.

    >>> producer(1, 2, 32)
    [('wait', 'empty', 0, 1), ('arrive_expect_tx', 'full', 0, 32), ('tma_load', 0, 0)]
    """
    raise NotImplementedError("for the first hint run: kda-lab hint ex13.producer")


# ex13.consumer: 4 points, 20 minutes, about 9 lines
# A hint: kda-lab hint ex13.consumer     Your verdict: kda-lab grade ex13
def consumer(tiles: int, stages: int) -> list[tuple]:
    """The consumer's program: square each tile of the ring and write it out.

    tiles: how many. stages: of the ring.
    ("wait", "full", stage, parity), ("read", stage) into registers, ("arrive", "empty", stage)
    gives the stage back, ("work",) squares what is in registers, ("write", i) writes it as tile i.

    >>> consumer(1, 2)
    [('wait', 'full', 0, 0), ('read', 0), ('arrive', 'empty', 0), ('work',), ('write', 0)]
    """
    raise NotImplementedError("for the first hint run: kda-lab hint ex13.consumer")


# ex13.staging: 5 points, 25 minutes, about 8 lines
# A hint: kda-lab hint ex13.staging     Your verdict: kda-lab grade ex13
def staging(tiles: int) -> tuple[list[tuple], list[tuple]]:
    """Two programs: the math warp fills one shared tile, the store warp sends it off by TMA.

    Math: ("stage_out", i) writes the square of tile i into the shared tile, ("fence_proxy_async",)
    makes earlier writes visible to TMA. Store: ("tma_store", i) starts storing the shared tile as
    tile i, ("store_wait",) waits until it is done. Both: ("sync", name) meets the other warp at the
    barrier "ready" or "free". Returns (math, store).

    >>> math, store = staging(1)
    >>> store
    [('sync', 'ready'), ('tma_store', 0), ('store_wait',), ('sync', 'free')]
    """
    raise NotImplementedError("for the first hint run: kda-lab hint ex13.staging")


# ex13.stages_that_fit: 3 points, 10 minutes, about 3 lines
# A hint: kda-lab hint ex13.stages_that_fit     Your verdict: kda-lab grade ex13
def stages_that_fit(tile_bytes: int, other_bytes: int, blocks: int) -> int:
    """How many stages a block's ring can have when `blocks` blocks share an SM of an H100.

    An SM has 233,472 bytes of shared memory. The system keeps 1,024 for each block, and one block
    may use 232,448 at most. other_bytes: what the block needs besides the ring. A stage is a tile of
    tile_bytes and two mbarriers of 8 bytes. 0 when nothing fits.

    >>> stages_that_fit(32768, 0, 1)
    7
    >>> stages_that_fit(32768, 0, 2)
    3
    """
    raise NotImplementedError("for the first hint run: kda-lab hint ex13.stages_that_fit")
