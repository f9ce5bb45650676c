"""Cases and wrong versions of `ex13_pipelines_cuda`: a ring of stages, its two sides, and a whole kernel."""

import torch

from kda_lab.grading.spec import Case, Exercise, Launch, Mutant, Out, close

FP32, INT32 = torch.float32, torch.int32
TILE = 128


def counting(n: int) -> torch.Tensor:
    """1, 2, ..., n."""
    return torch.arange(1, n + 1, dtype=FP32)


THREE_STAGES = torch.tensor(
    [[0, 0, 1], [1, 0, 1], [2, 0, 1], [0, 1, 0], [1, 1, 0], [2, 1, 0], [0, 0, 1]], dtype=INT32
)

RING_PARITY = Exercise(
    "ring_parity",
    outputs=("stage_full_empty",),
    launch=lambda stages, tiles: Launch("try_ring_parity", 1, tiles, (stages, Out(tiles, 3, dtype=INT32))),
    cases=[
        Case("hand-worked", lambda draw: (3, 7), close(0), "Three tiles a turn; both parities flip when the ring goes round.", "Write tiles 0 to 6 in a table: stage, turn, turn % 2.", expect=THREE_STAGES),
        Case("one stage", lambda draw: (1, 6), close(0), "With one stage every tile is a turn of its own.", "Which number counts the turns?"),
        Case("two stages", lambda draw: (2, 9), close(0), "An even ring: tile and turn have different parities.", "Parity belongs to the turn, not to the tile."),
        Case("any ring", lambda draw: (draw.integer(4, 7), 40), close(0), "The same for every ring.", "A parity is 0 or 1."),
    ],
    mutants=[
        Mutant("parity of the tile", "the parities are those of the tile: a barrier's phase ends once a turn", [("full = turn % 2", "full = tile % 2"), ("1 - turn % 2", "1 - tile % 2")]),
        Mutant("parity of the stage", "the parities are those of the stage: they must change from turn to turn", [("full = turn % 2", "full = stage % 2"), ("1 - turn % 2", "1 - stage % 2")]),
        Mutant("both alike", "both sides wait for the same parity: nobody has used the stage the first time", [("1 - turn % 2", "turn % 2")]),
        Mutant("exchanged", "full and empty are exchanged", [("full = turn % 2", "full = 1 - turn % 2"), ("empty = 1 - turn % 2", "empty = turn % 2")]),
        Mutant("full begins with 1", "full begins with 1: a fresh barrier lets that through before anything has landed", [("full = turn % 2", "full = 1 - turn % 2")]),
        Mutant("turn for parity", "full is the turn itself: a parity is one bit", [("full = turn % 2", "full = turn")]),
        Mutant("empty for ever", "empty stays 1: that is right for the first turn only", [("1 - turn % 2", "1")]),
        Mutant("divided for rest", "stage and turn are exchanged", [("turn = tile / stages", "turn = tile % stages"), ("stage = tile % stages", "stage = tile / stages")]),
        Mutant("no ring", "the stage is the tile's number: the ring goes round", [("stage = tile % stages", "stage = tile")]),
        Mutant("one stage on", "the tiles begin in stage 1", [("stage = tile % stages", "stage = (tile + 1) % stages")]),
        Mutant("a tile early", "the parities flip one tile early", [("turn = tile / stages", "turn = (tile + 1) / stages")]),
        Mutant("every second turn", "the parities flip every second turn", [("turn = tile / stages", "turn = tile / stages / 2")]),
    ],
)  # fmt: skip


def tiles(whole: int, rest: int = 0):
    """Random numbers that fill `whole` tiles, and `rest` more."""
    return lambda draw: (draw.normal(whole * TILE + rest),)


WAIT_EMPTY = "while (!mbarrier_try_wait_parity(&empty[stage], 1 - turn % 2)) {}"

PRODUCER_FILLS = Exercise(
    "producer_fills",
    outputs=("y",),
    launch=lambda x: Launch("try_producer_fills", 1, 64, (x, Out(len(x)), len(x))),
    cases=[
        Case("one tile", lambda draw: (counting(TILE),), close(0), "One wait, one promise, one copy.", "The first turn waits for parity 1, which a fresh barrier has ended.", expect=counting(TILE), dtype=FP32),
        Case("a tile and four", lambda draw: (counting(TILE + 4),), close(0), "The last tile has 16 bytes, and that is what is promised and copied.", "How many numbers are left at tile * TILE?", expect=counting(TILE + 4), dtype=FP32),
        Case("the ring once", tiles(3), close(0), "Three tiles, three stages: nothing has to be given back yet.", "Tile i lies in stage i.", dtype=FP32),
        Case("three turns", tiles(9), close(0), "From the second turn on a stage must have been given back.", "The parity flips when the ring goes round.", dtype=FP32),
        Case("three turns and a rest", tiles(7, 60), close(0), "Everything at once.", "Draw the table of tiles: stage, parity, bytes.", dtype=FP32),
    ],
    mutants=[
        Mutant("begins with parity 0", "the producer waits for parity 0 first: it waits for a stage to be used that nobody has filled", [("1 - turn % 2", "turn % 2")]),
        Mutant("does not wait", "the producer did not wait until the stage was free: the question belongs in a loop, and its parity flips with every turn", [(WAIT_EMPTY, "")], also=[[("1 - turn % 2", "1")], [(WAIT_EMPTY, WAIT_EMPTY.replace("while (!", "").replace(") {}", ";"))], [("1 - turn % 2", "1 - (turn > 0 ? turn - 1 : 0) % 2")]]),
        Mutant("parity of the tile", "the parity is that of the tile, not of the turn", [("1 - turn % 2", "1 - tile % 2")]),
        Mutant("numbers for bytes", "the promise counts numbers: a float has 4 bytes", [("arrive_expect_tx(&full[stage], bytes)", "arrive_expect_tx(&full[stage], bytes / 4)")]),
        Mutant("whole tile promised", "a whole tile was promised, and the last one is shorter: its phase never ends", [("arrive_expect_tx(&full[stage], bytes)", "arrive_expect_tx(&full[stage], 4 * TILE)")]),
        Mutant("whole tile copied", "a whole tile was copied from beyond the end of x", [("4 * min(TILE, n - tile * TILE)", "4 * TILE")]),
        Mutant("no promise", "nothing was promised: the phase ends with the arrival, before the copy has landed", [("mbarrier_arrive_expect_tx(&full[stage], bytes)", "mbarrier_arrive(&full[stage])")]),
        Mutant("no arrival", "the promise is missing, and with it the arrival: the phase never ends", [("mbarrier_arrive_expect_tx(&full[stage], bytes);", "")]),
        Mutant("lands on empty", "the copy tells empty[stage] that it has landed, not full[stage]", [("bytes, &full[stage])", "bytes, &empty[stage])")]),
        Mutant("promised on empty", "the bytes were promised on empty[stage], not on full[stage]", [("arrive_expect_tx(&full[stage]", "arrive_expect_tx(&empty[stage]")]),
        Mutant("rest left out", "the last, shorter tile was left out", [("tile * TILE < n", "(tile + 1) * TILE <= n")]),
        Mutant("ring for x", "the copy reads x at the stage's number, not at the tile's", [("x + tile * TILE", "x + stage * TILE")]),
        Mutant("one stage", "every tile goes into stage 0", [("bulk_copy(ring[stage]", "bulk_copy(ring[0]")]),
    ],
)  # fmt: skip

WAIT = "while (!mbarrier_try_wait_parity(&full[stage], turn % 2)) {}"
GIVE = "__syncwarp();\n    if (threadIdx.x % 32 == 0) mbarrier_arrive(&empty[stage]);"


def scaled(whole: int, rest: int = 0, *more: int):
    """Tiles as above, a factor, and what else the launch takes."""
    return lambda draw: (*tiles(whole, rest)(draw), round(float(draw.uniform(2, 9)), 1), *more)


CONSUMER_USES = Exercise(
    "consumer_uses",
    outputs=("y",),
    launch=lambda x, factor: Launch("try_consumer_uses", 1, 96, (x, Out(len(x)), len(x), factor)),
    cases=[
        Case("one tile", lambda draw: (counting(TILE), 2.0), close(0), "Each of the 64 threads has two numbers of a tile.", "Thread u has the numbers u and u + 64.", expect=2 * counting(TILE), dtype=FP32),
        Case("a tile and four", lambda draw: (counting(TILE + 4), 0.5), close(0), "The last tile has four numbers; most threads have none, but both warps give the stage back.", "Compare tile * TILE + i with n.", expect=counting(TILE + 4) / 2, dtype=FP32),
        Case("the ring once", scaled(3), close(1e-7), "Three tiles, three stages.", "Tile i lies in stage i.", dtype=FP32),
        Case("three turns", scaled(9), close(1e-7), "A stage is filled again as soon as both warps have given it back.", "What may still be read when lane 0 arrives?", dtype=FP32),
        Case("three turns and a rest", scaled(7, 60), close(1e-7), "Everything at once.", "Draw the table of tiles: stage, parity, numbers.", dtype=FP32),
    ],
    mutants=[
        Mutant("does not wait", "the tile is read before it is there: the first turn waits for parity 0, and the question belongs in a loop", [(WAIT, "")], also=[[("turn % 2", "1 - turn % 2")], [(WAIT, "mbarrier_try_wait_parity(&full[stage], turn % 2);")]]),
        Mutant("parity 0 for ever", "the parity never flips: from the second turn on the wait is for the turn before", [("turn % 2", "0")]),
        Mutant("parity of the tile", "the parity is that of the tile, not of the turn", [("turn % 2", "tile % 2")]),
        Mutant("waits for empty", "the wait is for empty, which the consumers themselves end", [("parity(&full", "parity(&empty")]),
        Mutant("never given back", "no stage is ever given back: the ring stops after its first turn", [(GIVE, "")]),
        Mutant("given back too early", "the stage is given back before it has been read", [(WAIT, f"{WAIT}\n    {GIVE}"), ("\n    " + GIVE + "\n  }", "\n  }")], also=[[(WAIT, f"{WAIT}\n    if (threadIdx.x % 32 == 0) mbarrier_arrive(&empty[stage]);"), ("\n    " + GIVE + "\n  }", "\n  }")]]),
        Mutant("no __syncwarp", "lane 0 gives the stage back for lanes that have not read yet: __syncwarp() is missing", [("__syncwarp();", "")]),
        Mutant("every lane arrives", "every lane arrives, and empty[stage] takes one arrival from each warp", [("if (threadIdx.x % 32 == 0) ", "")]),
        Mutant("one for both warps", "one arrival came, and empty[stage] takes one from each of the two warps", [("threadIdx.x % 32 == 0", "threadIdx.x == 0")]),
        Mutant("arrives on full", "the arrival goes to full[stage]: empty[stage] is what the producer waits for", [("mbarrier_arrive(&empty", "mbarrier_arrive(&full")]),
        Mutant("beyond the end", "the last tile was taken for a whole one", [("i < TILE && tile * TILE + i < n", "i < TILE")]),
        Mutant("rest left out", "the last, shorter tile was left out", [("int tile = 0; tile * TILE < n", "int tile = 0; (tile + 1) * TILE <= n")]),
        Mutant("half a tile", "each thread took one number: a tile has twice as many numbers as threads", [("i += USERS", "i += TILE")]),
        Mutant("y by stage", "y was written at the stage's place, not at the tile's", [("y[tile * TILE + i]", "y[stage * TILE + i]")]),
        Mutant("not scaled", "factor was left out", [("factor * ring", "ring")]),
    ],
)  # fmt: skip

FILL = "while (!mbarrier_try_wait_parity(&empty[s], 1 - turn % 2)) {}"
USE = "while (!mbarrier_try_wait_parity(&full[s], turn % 2)) {}"
BACK = "__syncwarp();\n      if (threadIdx.x % 32 == 0) mbarrier_arrive(&empty[s]);"
LOADER = "if (threadIdx.x == USERS) {\n    for (int tile = blockIdx.x, count = 0; tile * TILE < n; tile += gridDim.x, ++count) {\n      const int s = count % STAGES, turn = count / STAGES;"
USER = LOADER.replace("== USERS", "< USERS")


def in_both(old: str, new: str) -> list[tuple[str, str]]:
    """The same edit of both roles' loops."""
    return [(LOADER, LOADER.replace(old, new)), (USER, USER.replace(old, new))]


PIPELINED_SCALE = Exercise(
    "pipelined_scale",
    outputs=("y",),
    launch=lambda x, factor, blocks: Launch("pipelined_scale", blocks, 96, (x, Out(len(x)), len(x), factor)),
    cases=[
        Case("one tile", lambda draw: (counting(TILE), 2.0, 1), close(0), "Barriers, roles, one tile.", "Who has initialised the barriers, and who knows it?", expect=2 * counting(TILE), dtype=FP32),
        Case("three turns", scaled(9, 0, 1), close(1e-7), "The ring goes round three times.", "Which parity does each side begin with?", dtype=FP32),
        Case("a tile and four", lambda draw: (counting(TILE + 4), 0.5, 1), close(0), "The last tile has 16 bytes.", "Promise, copy and loop end at n.", expect=counting(TILE + 4) / 2, dtype=FP32),
        Case("two blocks", lambda draw: (counting(2 * TILE + 4), 2.0, 2), close(0), "Block 0 has tiles 0 and 2, block 1 has tile 1.", "The stage comes from how many tiles the block has had.", expect=2 * counting(2 * TILE + 4), dtype=FP32),
        Case("blocks without work", scaled(1, 0, 3), close(1e-7), "More blocks than tiles: the others do nothing.", "A loop that does not run needs no barrier.", dtype=FP32),
        Case("two blocks, many turns", scaled(15, 36, 2), close(1e-7), "Everything at once.", "Draw the table of one block: tile, count, stage, parity.", dtype=FP32),
    ],
    mutants=[
        Mutant("no __syncthreads", "roles begin before the barriers are initialised", [("__syncthreads();", "")]),
        Mutant("no fence", "the copy engine was not told of the barriers: fence_mbarrier_init() is missing", [("fence_mbarrier_init();", "")]),
        Mutant("every thread counts", "empty was made for an arrival of every thread, and one comes from each warp", [("mbarrier_init(&empty[s], WARPS)", "mbarrier_init(&empty[s], USERS)")]),
        Mutant("landing counted twice", "full was made for two arrivals: the producer's is the only one, bytes are counted apart", [("mbarrier_init(&full[s], 1)", "mbarrier_init(&full[s], 2)")]),
        Mutant("whole warp loads", "all lanes of the loading warp load: one thread starts a copy", [("threadIdx.x == USERS", "threadIdx.x >= USERS")]),
        Mutant("begins with parity 0", "the producer waits for parity 0 first: nobody has filled a stage yet", [("1 - turn % 2", "turn % 2")]),
        Mutant("producer never waits", "the producer does not wait for empty: a tile in use is overwritten", [(FILL, "")]),
        Mutant("read before landing", "a tile is read before it has landed: nobody waits for full, or its phase ends without the bytes", [(USE, "")], also=[[("mbarrier_arrive_expect_tx(&full[s], bytes)", "mbarrier_arrive(&full[s])")]]),
        Mutant("given back too early", "the stage is given back before it has been read", [(USE, f"{USE}\n      {BACK}"), ("\n      " + BACK + "\n    }", "\n    }")]),
        Mutant("no __syncwarp", "lane 0 gives the stage back for lanes that have not read yet: __syncwarp() is missing", [("__syncwarp();", "")]),
        Mutant("never given back", "no stage is ever given back: the ring stops after its first turn", [(BACK, "")]),
        Mutant("turns of the tile", "stage and parity come from the tile's number: with several blocks, count the block's own tiles", in_both("count % STAGES, turn = count / STAGES", "tile % STAGES, turn = tile / STAGES")),
        Mutant("every block everything", "every block does all tiles", in_both("tile = blockIdx.x, count = 0; tile * TILE < n; tile += gridDim.x", "tile = 0, count = 0; tile * TILE < n; ++tile")),
        Mutant("next to each other", "the block goes on to the next tile: its tiles are gridDim.x apart", in_both("tile += gridDim.x", "++tile")),
        Mutant("first tile only", "each block stops after its first tile", in_both("tile * TILE < n; tile", "tile * TILE < n && !count; tile")),
        Mutant("whole tile promised", "a whole tile was promised, and the last one is shorter", [("arrive_expect_tx(&full[s], bytes)", "arrive_expect_tx(&full[s], 4 * TILE)")]),
        Mutant("whole tile copied", "a whole tile was copied from beyond the end of x", [("4 * min(TILE, n - tile * TILE)", "4 * TILE")]),
        Mutant("numbers for bytes", "the promise counts numbers: a float has 4 bytes", [("arrive_expect_tx(&full[s], bytes)", "arrive_expect_tx(&full[s], bytes / 4)")]),
        Mutant("beyond the end", "the last tile was taken for a whole one", [("i < TILE && tile * TILE + i < n", "i < TILE")]),
        Mutant("not scaled", "factor was left out", [("factor * ring", "ring")]),
    ],
)  # fmt: skip

EXERCISES = [RING_PARITY, PRODUCER_FILLS, CONSUMER_USES, PIPELINED_SCALE]
