"""Cases and wrong versions of `ex13_pipelines`: programs of warps, judged by the simulator."""

import zlib

from kda_lab.grading.spec import Case, Draw, Exercise, Mutant, Trial, close, shape
from kda_lab.grading.spec import Problem as Wrong
from kda_lab.hopper.scripts import WIDTH, first_problem, form_problem, pipeline, staging

NBYTES = 4 * WIDTH
SEEDS = range(4)
LOADING = ("wait", "arrive", "arrive_expect_tx", "tma_load")
USING = ("wait", "arrive", "read", "work", "write")
STAGING = ("stage_out", "fence_proxy_async", "sync", "tma_store", "store_wait")


def right_producer(tiles: int, stages: int) -> list[tuple]:
    program = []
    for i in range(tiles):
        program += [
            ("wait", "empty", i % stages, 1 - i // stages % 2),
            ("arrive_expect_tx", "full", i % stages, NBYTES),
            ("tma_load", i, i % stages),
        ]
    return program


def right_consumer(tiles: int, stages: int) -> list[tuple]:
    program = []
    for i in range(tiles):
        program += [
            ("wait", "full", i % stages, i // stages % 2),
            ("read", i % stages),
            ("arrive", "empty", i % stages),
            ("work",),
            ("write", i),
        ]
    return program


def told(problem) -> Wrong | None:
    """The simulator's finding in the grader's words."""
    if problem is None or isinstance(problem, str):
        return Wrong(problem) if problem else None
    return Wrong(f"{problem.kind} at cycle {problem.time:.0f}: {problem.what}", problem.why)


def produces(trial: Trial) -> Wrong | None:
    tiles, stages, _ = trial.args
    script = trial.got["program"]
    if problem := form_problem(script, LOADING):
        return Wrong(problem)
    made = pipeline(script, right_consumer(tiles, stages), tiles, stages)
    return told(first_problem(made, tiles, SEEDS))


def consumes(trial: Trial) -> Wrong | None:
    tiles, stages = trial.args
    script = trial.got["program"]
    if problem := form_problem(script, USING):
        return Wrong(problem)
    made = pipeline(right_producer(tiles, stages), script, tiles, stages)
    return told(first_problem(made, tiles, SEEDS))


def overlaps(trial: Trial) -> Wrong | None:
    """The stage goes back before the work on its tile."""
    if problem := consumes(trial):
        return problem
    words = [x[0] for x in trial.got["program"]]
    if words.index("arrive") > words.index("work"):
        return Wrong("the stage is given back only after the work", "the next copy waits for nothing")
    return None


def stages_out(trial: Trial) -> Wrong | None:
    (tiles,) = trial.args
    math, store = trial.got["math"], trial.got["store"]
    for name, script in (("math", math), ("store", store)):
        if problem := form_problem(script, STAGING):
            return Wrong(problem, f"in {name}")
    return told(first_problem(staging(math, store, tiles), tiles, SEEDS))


def numbers(args: tuple, value) -> list:
    """Every instruction as three numbers, the list filled up to one length."""
    scripts = value if isinstance(value, tuple) else (value,)
    facts: list[float] = []
    for script in scripts:
        own: list[float] = []
        for word, *rest in script if form_problem(script, ALL) is None else []:
            name, *more = rest if rest and isinstance(rest[0], str) else ("", *rest)
            own += [zlib.crc32(f"{word} {name}".encode()) % 9973, *([*more, 0, 0][:2])]
        facts += (own + [0.0] * 240)[:240]
    return facts


ALL = (*dict.fromkeys((*LOADING, *USING, *STAGING)),)


def fixed(*arguments):
    return lambda draw: arguments


def sizes(draw: Draw) -> tuple:
    return draw.integer(7, 11), draw.integer(2, 4)


PRODUCER = Exercise(
    "producer",
    outputs=("program",),
    cases=[
        Case("one tile", fixed(1, 2, NBYTES), produces, "Even one tile needs the wait, the promise and the copy.", "Write the three instructions by hand."),
        Case("one stage", fixed(3, 1, NBYTES), produces, "Each tile must wait until the one before was used.", "Which parity completes when the consumer gives the stage back for the first time?"),
        Case("two stages", fixed(7, 2, NBYTES), produces, "Tile i uses stage i % 2, and its turn is i // 2.", "Write down stage and turn of tiles 0 to 5."),
        Case("any ring", lambda draw: (*sizes(draw), NBYTES), produces, "The same rule for every number of tiles and stages.", "Read who waits for which phase."),
    ],
    fingerprint=numbers,
    mutants=[
        Mutant("starts at 0", "the producer began by waiting for parity 0: a fresh stage is free, so wait for 1", [("1 - turn % 2", "turn % 2")]),
        Mutant("by tile", "the parity was flipped every tile: flip it once every time round the ring", [("1 - turn % 2", "1 - i % 2")]),
        Mutant("never flips", "the parity never changes: flip it each time round the ring", [("1 - turn % 2", "1")]),
        Mutant("no promise", "no bytes were promised, so the barrier does not wait for the copy", [("stage, nbytes))", "stage, 0))")]),
        Mutant("half a promise", "half of the bytes were promised", [("stage, nbytes))", "stage, nbytes // 2))")]),
        Mutant("elements", "elements were promised, not bytes", [("stage, nbytes))", "stage, nbytes // 4))")]),
        Mutant("wrong barrier", "the producer waited on full, its own barrier, instead of empty", [('program.append(("wait", "empty", ', 'program.append(("wait", "full", ')]),
        Mutant("one stage only", "everything went through stage 0", [("i % stages, i // stages", "0, i")]),
        Mutant("swapped", "stage and tile changed places in the copy", [('program.append(("tma_load", i, stage))', 'program.append(("tma_load", stage, i))')]),
        Mutant("no wait", "the producer does not wait for the stage to be free", [('        program.append(("wait", "empty", stage, 1 - turn % 2))\n', "")]),
    ],
)  # fmt: skip

CONSUMER = Exercise(
    "consumer",
    outputs=("program",),
    cases=[
        Case("one tile", fixed(1, 2), consumes, "Even one tile must be waited for.", "Write the five instructions by hand."),
        Case("one stage", fixed(3, 1), consumes, "The stage must be given back, or the second tile never comes.", "Which phase does the second copy complete?"),
        Case("two stages", fixed(7, 2), consumes, "Tile i uses stage i % 2, and its turn is i // 2.", "Write down stage and turn of tiles 0 to 5."),
        Case("overlap", fixed(4, 2), overlaps, "Once the tile is in registers the stage is free, and the next copy can start.", "Give the stage back right after the read."),
        Case("any ring", sizes, consumes, "The same rule for every number of tiles and stages.", "Read who waits for which phase."),
    ],
    fingerprint=numbers,
    mutants=[
        Mutant("starts at 1", "the consumer began by waiting for parity 1, which a fresh barrier counts as complete", [("turn % 2))", "1 - turn % 2))")]),
        Mutant("by tile", "the parity was flipped every tile: flip it once every time round the ring", [("turn % 2))", "i % 2))")]),
        Mutant("never flips", "the parity never changes: flip it each time round the ring", [("turn % 2))", "0))")]),
        Mutant("never returned", "the stage is never given back", [('        program.append(("arrive", "empty", stage))\n', "")]),
        Mutant("returned early", "the stage was given back before the tile was read", [('program.append(("read", stage))\n        program.append(("arrive", "empty", stage))', 'program.append(("arrive", "empty", stage))\n        program.append(("read", stage))')]),
        Mutant("returned late", "the stage was given back only after the work, so nothing overlaps", [('        program.append(("arrive", "empty", stage))\n', ""), ('program.append(("work",))', 'program.append(("work",))\n        program.append(("arrive", "empty", stage))')]),
        Mutant("wrong barrier", "the consumer arrived on full, the producer's barrier, instead of empty", [('program.append(("arrive", "empty", ', 'program.append(("arrive", "full", ')]),
        Mutant("one stage only", "everything was read from stage 0", [("i % stages, i // stages", "0, i")]),
        Mutant("no work", "the tile was written without being squared", [('        program.append(("work",))\n', "")]),
        Mutant("wrong tile", "the stage number was used as the tile's", [('program.append(("write", i))', 'program.append(("write", stage))')]),
        Mutant("twice", "the stage was given back twice a tile", [('program.append(("arrive", "empty", stage))', 'program.extend([("arrive", "empty", stage)] * 2)')]),
    ],
)  # fmt: skip

OUT = Exercise(
    "staging",
    outputs=("math", "store"),
    cases=[
        Case("one tile", fixed(1), stages_out, "One tile: write, make visible, meet, store, wait, meet.", "Write both programs by hand."),
        Case("two tiles", fixed(2), stages_out, "The second tile may be written only after the first was stored.", "What does the math warp wait for?"),
        Case("many tiles", lambda draw: (draw.integer(5, 9),), stages_out, "The same two meetings every time.", "Read what the simulator found."),
    ],
    fingerprint=numbers,
    mutants=[
        Mutant("no fence", "the fence is missing: TMA may see the tile before", [('("fence_proxy_async",), ', "")]),
        Mutant("fence late", "the fence came after the meeting, when the store may have begun", [('("fence_proxy_async",), ("sync", "ready")', '("sync", "ready"), ("fence_proxy_async",)')]),
        Mutant("fence first", "the fence came before the write that it should make visible", [('("stage_out", i), ("fence_proxy_async",)', '("fence_proxy_async",), ("stage_out", i)')]),
        Mutant("no store wait", "the store was not waited for, so its tile is overwritten while it reads", [('("store_wait",), ', "")]),
        Mutant("wait after free", "the store was waited for only after the tile was given back", [('("store_wait",), ("sync", "free")', '("sync", "free"), ("store_wait",)')]),
        Mutant("store before ready", "the store began before the tile was ready", [('("sync", "ready"), ("tma_store", i)', '("tma_store", i), ("sync", "ready")')]),
        Mutant("math skips free", "the math warp does not wait until the tile is free", [(', ("sync", "ready"), ("sync", "free")]', ', ("sync", "ready")]')]),
        Mutant("store skips free", "the store warp never says that the tile is free", [('("store_wait",), ("sync", "free")]', '("store_wait",)]')]),
        Mutant("meet before writing", "the math warp came to ready before it wrote the tile", [('("stage_out", i), ("fence_proxy_async",), ("sync", "ready")', '("sync", "ready"), ("stage_out", i), ("fence_proxy_async",)')]),
        Mutant("crossed", "the two warps came to the barriers in opposite orders", [('("fence_proxy_async",), ("sync", "ready"), ("sync", "free")', '("fence_proxy_async",), ("sync", "free"), ("sync", "ready")')]),
    ],
)  # fmt: skip


def any_budget(draw: Draw) -> tuple:
    return draw.integer(1, 12) * 4096, draw.integer(0, 40) * 512, draw.integer(1, 4)


FIT = Exercise(
    "stages_that_fit",
    outputs=("stages",),
    cases=[
        Case("shape", fixed(4096, 0, 1), shape(), "A count.", "Return one whole number."),
        Case("hand-worked", fixed(32768, 0, 1), close(0), "232,448 bytes, 32,784 a stage.", "Divide, and round down.", expect=7),
        Case("two blocks", fixed(32768, 0, 2), close(0), "Each block has half of the SM, less 1,024 bytes.", "115,712 bytes for each.", expect=3),
        Case("barriers count", fixed(23200, 416, 1), close(0), "The mbarriers need room too.", "Ten tiles fit exactly, ten stages do not.", expect=9),
        Case("the system's share", fixed(16384, 500, 3), close(0), "1,024 bytes a block are not yours.", "77,824 - 1,024 - 500."),
        Case("nothing fits", fixed(20_000, 300_000, 1), close(0), "No stage at all is 0, never less.", "Look at the sign.", expect=0),
        Case("small tiles", fixed(512, 8192, 2), close(0), "With small tiles the barriers take a noticeable share.", "512 + 16 bytes a stage."),
        Case("any budget", any_budget, close(0), "The same rule for any tile.", "Which argument is not used?"),
    ],
    mutants=[
        Mutant("one block", "the SM was not divided among the blocks", [("233_472 // blocks - 1024", "233_472 - 1024")]),
        Mutant("nothing reserved", "the 1,024 bytes that the system keeps were forgotten", [("233_472 // blocks - 1024", "233_472 // blocks")]),
        Mutant("nothing else", "what the block needs besides the ring was forgotten", [(" - other_bytes", "")]),
        Mutant("no barriers", "the mbarriers were forgotten", [("(tile_bytes + 16)", "tile_bytes")]),
        Mutant("one barrier", "a stage has two mbarriers", [("(tile_bytes + 16)", "(tile_bytes + 8)")]),
        Mutant("rounded up", "the number was rounded up", [("room // (tile_bytes + 16)", "-(-room // (tile_bytes + 16))")]),
        Mutant("negative", "nothing fits means 0, not less", [("max(0, room // (tile_bytes + 16))", "room // (tile_bytes + 16)")]),
        Mutant("everything", "other bytes were added to the room", [("- other_bytes", "+ other_bytes")]),
        Mutant("a stage too few", "one stage more fits", [("max(0, room // (tile_bytes + 16))", "max(0, room // (tile_bytes + 16) - 1)")]),
        Mutant("pre-Hopper", "the limit of the generation before was used", [("233_472", "167_936"), ("232_448", "166_912")]),
    ],
)  # fmt: skip

EXERCISES = [PRODUCER, CONSUMER, OUT, FIT]
