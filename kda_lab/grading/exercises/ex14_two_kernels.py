"""Cases and wrong versions of `ex14_two_kernels`: the workspace, its traffic, chains, schedules and budgets."""

from kda_lab.grading.spec import Case, Exercise, Mutant, Problem, close, shape


def fixed(*arguments):
    return lambda draw: arguments


def drawn(*ranges):
    return lambda draw: tuple(draw.integer(*r) for r in ranges)


IMAGE_BYTES = Exercise(
    "image_bytes",
    outputs=("bytes",),
    cases=[
        Case("shape", fixed(4, 8), shape(), "A number of bytes is a whole number.", "Integers all the way."),
        Case("hand-worked", fixed(2, 3), close(0), "3 * 2*3 * 2 + 2 * 2*2 * 2 + 4*3 = 36 + 16 + 12.", "List the six arrays with their sizes on paper.", expect=64),
        Case("C = 16", fixed(16, 128), close(0), "12,288 for the tiles, 1,024 for T' and M, 512 for the decay.", "Which of the three parts is off?", expect=13_824),
        Case("C = 64", fixed(64, 128), close(0), "49,152 + 16,384 + 512.", "T' and M have C * C numbers.", expect=66_048),
        Case("any sizes", drawn((3, 99), (101, 256)), close(0), "The formula holds for every size.", "Which argument is not used?"),
    ],
    mutants=[
        Mutant("two tiles", "there are three [C,K] tiles: keys decayed from the start, queries, and keys decayed to the end", [("3 * C * K", "2 * C * K")]),
        Mutant("four tiles", "v is not part of the image: recur reads it itself", [("3 * C * K", "4 * C * K")]),
        Mutant("one square", "both T' and M are needed", [("2 * C * C * 2", "C * C * 2")]),
        Mutant("no squares", "T' and M are missing", [("tiles + squares", "tiles")]),
        Mutant("no decay", "the decay of the whole chunk is missing", [(" + 4 * K", "")]),
        Mutant("bf16 decay", "the decay is fp32: it multiplies the state again and again", [("4 * K", "2 * K")]),
        Mutant("decay per token", "one decay a chunk, not one a token", [("4 * K", "4 * K * C")]),
        Mutant("numbers", "these are numbers, not bytes", [("3 * C * K * 2", "3 * C * K"), ("2 * C * C * 2", "2 * C * C"), ("4 * K", "K")]),
        Mutant("square of K", "T' and M are [C,C], not [K,K]", [("2 * C * C * 2", "2 * K * K * 2")]),
        Mutant("fp32 squares", "T' and M are kept in bf16", [("2 * C * C * 2", "2 * C * C * 4")]),
    ],
)  # fmt: skip

TRAFFIC = Exercise(
    "traffic",
    outputs=("bytes",),
    cases=[
        Case("shape", fixed(4, 2, 64), shape(), "One number.", "Return a number of bytes a token and head."),
        Case("hand-worked", fixed(2, 3, 20), close(1e-12), "18 in, 10 out; 10 and 6 in, 6 out.", "Draw both kernels as boxes, and write bytes on the arrows.", expect=50.0),
        Case("parts of a byte", fixed(3, 2, 10), close(1e-12), "12 + 10/3, then 10/3 + 8.", "/ and not //", expect=80 / 3),
        Case("C = 16", fixed(16, 128, 13_824), close(1e-12), "768 + 864, then 864 + 256 + 256.", "Which of the five numbers is missing?", expect=3008.0),
        Case("C = 64", fixed(64, 128, 66_048), close(1e-12), "768 + 1032, then 1032 + 512.", "The image's share is image / C.", expect=3344.0),
        Case("any sizes", drawn((3, 64), (3, 256), (70, 9999)), close(1e-12), "Every argument matters.", "Which argument is not used?"),
    ],
    mutants=[
        Mutant("image once", "the image is written and read: it counts twice", [("image / C + 2 * 2 * D", "2 * 2 * D")]),
        Mutant("image whole", "this is the image of a chunk, not of a token", [("3 * 2 * D + image / C", "3 * 2 * D + image"), ("recur = image / C", "recur = image")]),
        Mutant("a row missing", "one of the rows q, k, g, v and o is missing", [("2 * 2 * D  #", "2 * D  #")]),
        Mutant("v read twice", "prepare does not read v", [("3 * 2 * D", "4 * 2 * D")]),
        Mutant("prepare only", "the second kernel is missing", [("prepare + recur", "prepare")]),
        Mutant("recur only", "the first kernel is missing", [("prepare + recur", "recur")]),
        Mutant("fp32 rows", "rows are bf16: two bytes a number", [("3 * 2 * D", "3 * 4 * D"), ("2 * 2 * D  #", "2 * 4 * D  #")]),
        Mutant("q again", "recur does not read q and k again: they are in the image", [("2 * 2 * D  #", "4 * 2 * D  #")]),
        Mutant("whole bytes", "the share of a token was rounded down", [("3 * 2 * D + image / C", "3 * 2 * D + image // C"), ("recur = image / C", "recur = image // C")]),
    ],
)  # fmt: skip


def any_chain(draw) -> tuple:
    return (
        draw.integer(100, 999),
        draw.integer(3, 40),
        draw.integer(3, 31),
        draw.integer(50, 99) / 7,
        draw.integer(41, 50),
        1.0,
        1e9,
    )


def many_chains(draw) -> tuple:
    return (
        draw.integer(100, 999),
        3 * draw.integer(5, 9),
        draw.integer(3, 31),
        draw.integer(50, 99) / 7,
        4,
        1.0,
        1e9,
    )


def any_traffic(draw) -> tuple:
    return (
        draw.integer(100, 999),
        draw.integer(3, 40),
        draw.integer(3, 31),
        1e-9,
        draw.integer(41, 50),
        float(draw.integer(3, 99)),
        draw.integer(3, 99) / 7,
    )


RECURRENCE_TIME = Exercise(
    "recurrence_time",
    outputs=("seconds",),
    cases=[
        Case("shape", fixed(32, 2, 16, 5.0, 4, 1.0, 8.0), shape(), "One time.", "Return a number."),
        Case("a chain", fixed(64, 3, 16, 2.0, 4, 1.0, 1e9), close(1e-12), "Three heads beside each other, four steps of 2 s each.", "Does a second head make it longer?", expect=8.0),
        Case("a ragged end", fixed(65, 3, 16, 2.0, 4, 1.0, 1e9), close(1e-12), "The 65th token needs a fifth step.", "ceil(a / b) is -(-a // b).", expect=10.0),
        Case("more heads than SMs", fixed(64, 5, 16, 2.0, 4, 1.0, 1e9), close(1e-12), "Five heads on four SMs: two rounds.", "ceil(heads / sms) rounds, one after the other.", expect=16.0),
        Case("bytes", fixed(64, 4, 16, 0.001, 4, 10.0, 256.0), close(1e-12), "2560 bytes at 256 a second; the chain takes only 0.004 s.", "The longer of the two.", expect=10.0),
        Case("any chain", any_chain, close(1e-12), "Steps times time.", "Which argument is not used?"),
        Case("many chains", many_chains, close(1e-12), "Rounds times steps times time.", "Round up, not down."),
        Case("any traffic", any_traffic, close(1e-12), "Every token of every head.", "Which argument is not used?"),
    ],
    mutants=[
        Mutant("floor steps", "the last, partly filled chunk was forgotten", [("-(-T // C)", "T // C")]),
        Mutant("one round", "more heads than SMs need a second round", [("rounds * steps * step", "steps * step")]),
        Mutant("heads in a row", "heads run beside each other", [("-(-heads // sms)", "heads")]),
        Mutant("rounds fractional", "a round takes its full time, however few heads are in it", [("-(-heads // sms)", "heads / sms")]),
        Mutant("floor rounds", "the last, partly filled round was forgotten", [("-(-heads // sms)", "max(1, heads // sms)")]),
        Mutant("sum", "traffic and chain overlap", [("max(chain, memory)", "chain + memory")]),
        Mutant("smaller", "the shorter of the two came back", [("max(chain, memory)", "min(chain, memory)")]),
        Mutant("chain only", "no schedule beats the bytes over the bandwidth", [("max(chain, memory)", "chain")]),
        Mutant("memory only", "with few heads the chain decides", [("max(chain, memory)", "memory")]),
        Mutant("tokens in a row", "a step serves C tokens", [("-(-T // C)", "T")]),
        Mutant("one head's bytes", "all heads share the bandwidth", [("T * heads * bytes", "T * bytes")]),
        Mutant("bandwidth of an SM", "bandwidth is that of all SMs together", [("/ bandwidth", "/ (bandwidth * sms)")]),
    ],
)  # fmt: skip


def tasks(draw) -> tuple:
    return ([draw.integer(3, 60) for _ in range(9)], 3)


MAKESPAN = Exercise(
    "makespan",
    outputs=("end",),
    cases=[
        Case("shape", fixed([1, 2], 2), shape(), "One time, a whole number.", "When does the last worker end?"),
        Case("hand-worked", fixed([3, 1, 1, 5], 2), close(0), "The first worker takes 3; the second 1, 1 and then 5, from 2 on.", "Write down who is free when.", expect=7),
        Case("fewer tasks than workers", fixed([4, 7], 5), close(0), "Three workers have nothing to do.", "The longest task decides.", expect=7),
        Case("one worker", fixed([4, 7, 2], 1), close(0), "All in a row.", "The sum.", expect=13),
        Case("equal tasks", fixed([5] * 7, 3), close(0), "Two rounds of three, and one more.", "Two workers wait at the end.", expect=15),
        Case("long one last", fixed([2, 2, 2, 2, 2, 2, 9], 3), close(0), "At 4 all are free; the long one ends at 13.", "In the order given: do not sort.", expect=13),
        Case("no order helps", fixed([6, 2, 5, 3, 4, 1], 2), close(0), "In the order given.", "Who is free first?", expect=11),
        Case("any tasks", tasks, close(0), "Each task goes to whoever is free first.", "Compare by hand with a picture of three rows."),
        Case("any other tasks", tasks, close(0), "Each task goes to whoever is free first.", "Compare by hand with a picture of three rows."),
    ],
    mutants=[
        Mutant("round robin", "the tasks were dealt out in turn, not to the worker that is free first", [("for length in lengths:", "for i, length in enumerate(lengths):"), ("free.index(min(free))", "i % workers")]),
        Mutant("sorted", "the tasks were sorted: the order given counts", [("in lengths:", "in sorted(lengths, reverse=True):")]),
        Mutant("shortest first", "the tasks were sorted, shortest first", [("in lengths:", "in sorted(lengths):")]),
        Mutant("backwards", "the tasks were taken from the end", [("in lengths:", "in lengths[::-1]:")]),
        Mutant("latest", "tasks went to the worker that is free last", [("min(free)", "max(free)")]),
        Mutant("first to end", "this is when the first worker ends", [("return max(free)", "return min(free)")]),
        Mutant("even split", "no schedule splits the work evenly: tasks are whole", [("return max(free)", "return -(-sum(free) // workers)")]),
        Mutant("one too few", "one worker has nothing to do", [("[0] * workers", "[0] * max(1, workers - 1)")]),
        Mutant("one too many", "there is a worker too many", [("[0] * workers", "[0] * (workers + 1)")]),
        Mutant("longest task", "this is only the longest task", [("return max(free)", "return max(lengths)")]),
    ],
)  # fmt: skip


def in_place(lengths, n, C):
    """The call for sequence n of a packed batch."""
    return lambda draw: (sum(lengths[:n]), n, C)


def right(trial):
    got, want = trial.got["slot"], trial.want["slot"]
    if got == want:
        return None
    if got < want:
        return Problem(
            f"slot {got}, and {want} is the first that is surely free",
            "the sequences before may need every slot below it",
        )
    return Problem(
        f"slot {got}, where {want} is free",
        "with many sequences the last one would lie beyond T // C + N",
    )


FIRST_SLOT = Exercise(
    "first_slot",
    outputs=("slot",),
    cases=[
        Case("shape", fixed(0, 0, 16), shape(), "A slot is a whole number.", "// and not /"),
        Case("the first", fixed(0, 0, 16), right, "Nothing lies before sequence 0.", "Slot 0.", expect=0),
        Case("after one token", fixed(1, 1, 16), right, "One token fills one slot, partly.", "Slot 1 is the next.", expect=1),
        Case("after a whole chunk", fixed(16, 1, 16), right, "A sequence of 16 tokens needs one slot, but one of 15 and an empty one would look the same from here.", "Whole chunks before you, and one for every earlier sequence.", expect=2),
        Case("many short ones", in_place((5,) * 40, 39, 16), right, "39 sequences of 5 tokens have 39 chunks in 195 tokens.", "Every earlier sequence may leave one chunk partly filled.", expect=51),
        Case("empty ones", in_place((0, 0, 33, 0, 17, 64), 4, 16), right, "Empty sequences use no slot, but sequence 4 cannot know.", "Only start and n.", expect=6),
        Case("chunks of 64", fixed(640, 3, 64), right, "Ten whole chunks before it.", "Is C used?", expect=13),
        Case("any place", lambda draw: (draw.integer(200, 9999), draw.integer(3, 99), draw.integer(3, 64)), right, "Whole chunks before, and one a sequence.", "Which argument is not used?"),
    ],
    mutants=[
        Mutant("no spare", "the partly filled chunks of earlier sequences were forgotten", [("start // C + n", "start // C")]),
        Mutant("rounded up", "rounding up leaves the allowed range", [("start // C", "-(-start // C)")]),
        Mutant("one spare", "one spare slot is not enough for many sequences", [("+ n", "+ (n > 0)")]),
        Mutant("tokens", "a slot is a chunk, not a token", [("start // C", "start")]),
        Mutant("product", "whole sequences are not C tokens long", [("start // C + n", "n * C")]),
        Mutant("n only", "sequences may be longer than one chunk", [("start // C + n", "n")]),
        Mutant("too generous", "one spare slot a sequence is enough", [("+ n", "+ 2 * n")]),
        Mutant("one more", "slot 0 is left unused", [("+ n", "+ n + 1")]),
        Mutant("rest", "this is the place inside a chunk", [("start // C", "start % C")]),
        Mutant("inside", "the spare slots must not be divided", [("start // C + n", "(start + n) // C")]),
        Mutant("fixed chunk", "C was taken as 16", [("start // C", "start // 16")]),
    ],
)  # fmt: skip


def any_block(draw) -> tuple:
    return (32 * draw.integer(3, 12), draw.integer(24, 96), 1024 * draw.integer(3, 60))


BLOCKS_PER_SM = Exercise(
    "blocks_per_sm",
    outputs=("blocks",),
    cases=[
        Case("shape", fixed(128, 64, 8192), shape(), "A number of blocks is a whole number.", "Divide with // ."),
        Case("threads run out", fixed(512, 16, 0), close(0), "2048 / 512.", "Threads first.", expect=4),
        Case("registers run out", fixed(256, 128, 1024), close(0), "65,536 / (256 * 128).", "Registers of a block = threads * registers.", expect=2),
        Case("in units of 8", fixed(128, 249, 1024), close(0), "249 registers are handed out as 256: 65,536 / (128 * 256).", "Round up to a multiple of 8.", expect=2),
        Case("just above", fixed(256, 81, 0), close(0), "81 is handed out as 88: 65,536 / 22,528 = 2.9.", "Round up to a multiple of 8.", expect=2),
        Case("just below", fixed(128, 87, 0), close(0), "87 is handed out as 88: 65,536 / 11,264 = 5.8.", "Round up, not down.", expect=5),
        Case("shared memory runs out", fixed(128, 32, 57_344), close(0), "233,472 / (57,344 + 1,024) = 4.0: exactly.", "The system's 1,024 bytes.", expect=4),
        Case("the system's share", fixed(128, 32, 58_000), close(0), "233,472 / 59,024 = 3.96.", "The system's 1,024 bytes come on top of every block.", expect=3),
        Case("four without it", fixed(128, 32, 58_368), close(0), "233,472 / 58,368 is exactly 4, but the system takes its share four times.", "233,472 // (shared + 1,024).", expect=3),
        Case("four, or five", fixed(96, 40, 45_696), close(0), "Shared memory: 233,472 / 46,720 = 4.997.", "The system's 1,024 bytes come on top of every block.", expect=4),
        Case("does not fit", fixed(1024, 72, 0), close(0), "1024 threads of 72 registers are more than an SM has.", "0 is an answer.", expect=0),
        Case("any block", any_block, close(0), "The scarcest of three.", "Which argument is not used?"),
    ],
    mutants=[
        Mutant("no threads", "an SM holds 2048 threads", [("min(by_threads, by_registers, by_shared)", "min(by_registers, by_shared)")]),
        Mutant("no registers", "registers may run out", [("min(by_threads, by_registers, by_shared)", "min(by_threads, by_shared)")]),
        Mutant("no shared", "shared memory may run out", [("min(by_threads, by_registers, by_shared)", "min(by_threads, by_registers)")]),
        Mutant("most", "the scarcest decides, not the most plentiful", [("return min(", "return max(")]),
        Mutant("exact registers", "registers are handed out in multiples of 8", [("(-(-registers // 8) * 8)", "registers")]),
        Mutant("rounded down", "registers are rounded up, not down", [("(-(-registers // 8) * 8)", "(registers // 8 * 8)")]),
        Mutant("no system share", "each block takes 1024 bytes more", [("(shared + 1024)", "max(1, shared)")]),
        Mutant("share once", "the system's share comes with every block, not once", [("233472 // (shared + 1024)", "(233472 - 1024) // max(1, shared)")]),
        Mutant("100 KB", "an SM of Hopper has 228 KB", [("233472", "102400")]),
        Mutant("1024 threads", "an SM holds 2048 threads, a block 1024", [("2048 // threads", "1024 // threads")]),
        Mutant("at least one", "a block that does not fit does not run", [("return min(by_threads", "return max(1, min(by_threads"), ("by_shared)", "by_shared))")]),
    ],
)  # fmt: skip

EXERCISES = [IMAGE_BYTES, TRAFFIC, RECURRENCE_TIME, MAKESPAN, FIRST_SLOT, BLOCKS_PER_SM]
