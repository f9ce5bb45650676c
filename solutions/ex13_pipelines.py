"""Exercises of notebook 13: a pipeline that does not deadlock, one warp's program at a time.

A program is a list of instructions, and the simulator runs it. An instruction is a tuple: a word
and its arguments. Tile i goes through stage i % stages of a ring in shared memory. Each stage has
two mbarriers: `full` (its tile has landed) and `empty` (its tile has been used).
"""


# exercise producer: 4 points, 20 minutes, 7 lines
# hint 1: Direction. Three instructions a tile: wait until the stage is free, promise the bytes, start the copy.
# hint 2: The key identity: the turn is i // stages, and a phase's parity is turn % 2. The first time round the stage
#     is free already, and a fresh barrier counts parity 1 as complete. So the producer waits for 1, then 0, then 1.
# hint 3: All but one line:
#     for i in range(tiles):
#         stage, turn = i % stages, i // stages
#         program.append(...)
#         program.append(("arrive_expect_tx", "full", stage, nbytes))
#         program.append(("tma_load", i, stage))
#     return program
# why: The promise is also the producer's arrival. It comes before the copy, so that no byte can land in a phase that
#     nobody has promised anything in.
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
    # solution
    program = []
    for i in range(tiles):
        stage, turn = i % stages, i // stages
        program.append(("wait", "empty", stage, 1 - turn % 2))
        program.append(("arrive_expect_tx", "full", stage, nbytes))
        program.append(("tma_load", i, stage))
    return program
    # end solution


# exercise consumer: 4 points, 20 minutes, 9 lines
# hint 1: Direction. Wait until the tile has landed, read it, give the stage back, then work. Why in this order?
# hint 2: The key identity: the copy of tile i completes phase i // stages of full[stage], so the consumer waits for
#     parity 0 the first time round, then 1. Once the tile is in registers the stage is free.
# hint 3: All but one line:
#     for i in range(tiles):
#         stage, turn = i % stages, i // stages
#         program.append(...)
#         program.append(("read", stage))
#         program.append(("arrive", "empty", stage))
#         program.append(("work",))
#         program.append(("write", i))
#     return program
# why: Giving the stage back before the work lets the next copy start while this tile is computed: that overlap is the
#     whole point of a pipeline. Giving it back before the read would let the copy overwrite what is being read.
def consumer(tiles: int, stages: int) -> list[tuple]:
    """The consumer's program: square each tile of the ring and write it out.

    tiles: how many. stages: of the ring.
    ("wait", "full", stage, parity), ("read", stage) into registers, ("arrive", "empty", stage)
    gives the stage back, ("work",) squares what is in registers, ("write", i) writes it as tile i.

    >>> consumer(1, 2)
    [('wait', 'full', 0, 0), ('read', 0), ('arrive', 'empty', 0), ('work',), ('write', 0)]
    """
    # solution
    program = []
    for i in range(tiles):
        stage, turn = i % stages, i // stages
        program.append(("wait", "full", stage, turn % 2))
        program.append(("read", stage))
        program.append(("arrive", "empty", stage))
        program.append(("work",))
        program.append(("write", i))
    return program
    # end solution


# exercise staging: 5 points, 25 minutes, 8 lines
# hint 1: Direction. Two meetings a tile: one when the tile is written, one when it has been stored. Who must have done
#     what before each of them?
# hint 2: The key identity: before "ready" the writer makes its writes visible to the async proxy, with a fence. Before
#     "free" the storer waits until its store no longer reads the tile.
# hint 3: All but one line:
#     for i in range(tiles):
#         math += [("stage_out", i), ..., ("sync", "ready"), ("sync", "free")]
#         store += [("sync", "ready"), ("tma_store", i), ("store_wait",), ("sync", "free")]
#     return math, store
# why: A barrier orders what warps do. TMA is not a warp: it looks at shared memory through the async proxy, and only
#     the fence connects the two.
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
    # solution
    math, store = [], []
    for i in range(tiles):
        math += [("stage_out", i), ("fence_proxy_async",), ("sync", "ready"), ("sync", "free")]
        store += [("sync", "ready"), ("tma_store", i), ("store_wait",), ("sync", "free")]
    return math, store
    # end solution


# exercise stages_that_fit: 3 points, 10 minutes, 3 lines
# hint 1: Direction. What is one block's share of the SM, and what is already spent before the first stage?
# hint 2: The key identity: a block may use the smaller of 232,448 bytes and its share of 233,472, less 1,024 that the
#     system keeps for each block. A stage costs its tile and two mbarriers of 8 bytes.
# hint 3: All but one line:
#     share = 233_472 // blocks - 1024
#     room = ...
#     return max(0, room // (tile_bytes + 16))
# why: The budget decides the pipeline before any tuning: on Hopper 128 x 128 bf16 tiles leave seven stages to one
#     block, and three each to two.
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
    # solution
    share = 233_472 // blocks - 1024
    room = min(share, 232_448) - other_bytes
    return max(0, room // (tile_bytes + 16))
    # end solution
