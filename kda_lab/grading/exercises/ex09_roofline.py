"""Cases and wrong versions of `ex09_roofline`: bytes, operations, ridges and special functions."""

from kda_lab.grading.spec import Case, Exercise, Mutant, close, shape


def fixed(*arguments):
    return lambda draw: arguments


def drawn(*ranges):
    return lambda draw: tuple(draw.integer(*r) for r in ranges)


LEAST_BYTES = Exercise(
    "least_bytes",
    outputs=("bytes",),
    cases=[
        Case("shape", fixed(8, 2, 1, 4), shape(), "A number of bytes is a whole number.", "Integers all the way."),
        Case("hand-worked", fixed(10, 1, 1, 2), close(0), "10 (5*2*2 + 2) + 2*2*2*4 = 220 + 32.", "List the arrays with their sizes on paper.", expect=252),
        Case("one long sequence", fixed(8192, 96, 1, 128), close(0), "About 1.0 GB: 1282 bytes a token and head, and the states.", "Is every array counted once, and at its own size?", expect=1_020_788_736),
        Case("many sequences", fixed(8192, 96, 8, 128), close(0), "Each sequence has a state of its own.", "N states a head, each read and written."),
        Case("any sizes", drawn((3, 5000), (3, 128), (3, 40), (3, 256)), close(0), "The formula holds for every size.", "Which argument is not used?"),
    ],
    mutants=[
        Mutant("no states", "the states were left out", [("N * per_sequence", "0 * N")]),
        Mutant("state once", "the state was counted once, or in bf16: it is fp32, read and written", [("2 * D * D * 4", "D * D * 4")]),
        Mutant("one state", "one state a head was counted for all sequences: each has its own", [("N * per_sequence", "per_sequence")]),
        Mutant("states of one head", "the states were counted for one head alone: every head has them", [("return H * (T * per_token + N * per_sequence)", "return H * T * per_token + N * per_sequence")]),
        Mutant("no output", "o was left out: it must be written too", [("5 * D * 2 + 2", "4 * D * 2 + 2")]),
        Mutant("no beta", "beta was left out", [("5 * D * 2 + 2 ", "5 * D * 2 ")]),
        Mutant("fp32 inputs", "the inputs were counted at four bytes a number: they are bf16", [("5 * D * 2 + 2", "5 * D * 4 + 4")]),
        Mutant("fp32 gate", "g was counted in fp32: it is bf16 here", [("5 * D * 2 + 2", "6 * D * 2 + 2")]),
        Mutant("one head", "the heads were left out: each has its own arrays", [("return H * (", "return (")]),
        Mutant("numbers", "these are numbers, not bytes", [("5 * D * 2 + 2", "5 * D + 1"), ("2 * D * D * 4", "2 * D * D")]),
        Mutant("state per token", "the state was counted at every token: it stays on the chip", [("N * per_sequence", "T * per_sequence")]),
    ],
)  # fmt: skip

CHUNK_OPERATIONS = Exercise(
    "chunk_operations",
    outputs=("operations",),
    cases=[
        Case("shape", fixed(8, 2, 16, 4), shape(), "A number of operations is a whole number.", "Integers all the way."),
        Case("hand-worked", fixed(1, 1, 2, 3), close(0), "3 * 2 * 9 + 4 * 2 * 2 * 3 = 54 + 48.", "Write the seven products with their shapes on paper.", expect=102),
        Case("C = 16", fixed(1, 1, 16, 128), close(0), "98,304 for the state, 16,384 inside the chunk.", "Which of the two parts is off?", expect=114_688),
        Case("C = 64", fixed(1, 1, 64, 128), close(0), "98,304 + 1,024 * 64.", "Does the second part grow with C?", expect=163_840),
        Case("any sizes", drawn((3, 5000), (3, 128), (3, 64), (3, 256)), close(0), "Every token and head pays the same.", "Which argument is not used?"),
    ],
    mutants=[
        Mutant("two state products", "one of the three products with the state is missing", [("3 * 2 * D * D", "2 * 2 * D * D")]),
        Mutant("multiplications only", "only multiplications were counted: additions are operations too", [("3 * 2 * D * D", "3 * D * D"), ("4 * 2 * C * D", "4 * C * D")]),
        Mutant("two chunk products", "two of the four products inside the chunk are missing", [("4 * 2 * C * D", "2 * 2 * C * D")]),
        Mutant("three chunk products", "one of the four products inside the chunk is missing", [("4 * 2 * C * D", "3 * 2 * C * D")]),
        Mutant("no chunk products", "the products inside the chunk are missing", [("(state + chunk)", "state")]),
        Mutant("per chunk", "this is per chunk, not per token", [("4 * 2 * C * D", "4 * 2 * C * C * D")]),
        Mutant("no heads", "the heads were left out: each pays", [("T * H *", "T *")]),
        Mutant("no tokens", "the tokens were left out: each pays", [("T * H *", "H *")]),
        Mutant("four state products", "four products with the state were counted: there are three", [("3 * 2 * D * D", "4 * 2 * D * D")]),
    ],
)  # fmt: skip

RIDGE = Exercise(
    "ridge",
    outputs=("operations_per_byte",),
    cases=[
        Case("shape", fixed(2.0, 100.0), shape(), "One number.", "Return a number, not a pair."),
        Case("hand-worked", fixed(4.0, 100.0), close(1e-12), "100 operations and 4 bytes in one second.", "Operations over bytes.", expect=25.0),
        Case("an H100", fixed(3.35e12, 989e12), close(1e-12), "989 TFLOP/s over 3.35 TB/s.", "About 295."),
        Case("any machine", lambda draw: (draw.integer(2, 99) / 7, draw.integer(2, 99) / 3), close(1e-12), "rate over bandwidth.", "Which of the two is on top?"),
    ],
    mutants=[
        Mutant("upside down", "these are bytes per operation", [("rate / bandwidth", "bandwidth / rate")]),
        Mutant("product", "the two were multiplied", [("rate / bandwidth", "rate * bandwidth")]),
        Mutant("difference", "the two were subtracted", [("rate / bandwidth", "rate - bandwidth")]),
        Mutant("whole number", "the result was rounded down", [("rate / bandwidth", "rate // bandwidth")]),
        Mutant("per number", "this is per number of two bytes, not per byte", [("rate / bandwidth", "2 * rate / bandwidth")]),
        Mutant("half", "half of the rate was used", [("rate / bandwidth", "rate / 2 / bandwidth")]),
        Mutant("bandwidth only", "the rate was not used", [("rate / bandwidth", "1 / bandwidth")]),
        Mutant("rate only", "the bandwidth was not used", [("rate / bandwidth", "rate")]),
        Mutant("square root", "a square root crept in", [("rate / bandwidth", "(rate / bandwidth) ** 0.5")]),
    ],
)  # fmt: skip


def machine(draw) -> tuple:
    return tuple(draw.integer(1, 999) / 7 for _ in range(4))


ROOFLINE = Exercise(
    "roofline",
    outputs=("seconds", "limit"),
    cases=[
        Case("shape", fixed(100.0, 60.0, 10.0, 30.0), shape(), "A time and a word.", "return seconds, limit"),
        Case("memory", fixed(100.0, 60.0, 10.0, 30.0), close(1e-12), "10 s of memory, 2 s of arithmetic: memory is the limit.", "Which of the two is longer?", expect=(10.0, "memory")),
        Case("arithmetic", fixed(10.0, 60.0, 10.0, 20.0), close(1e-12), "1 s of memory, 3 s of arithmetic.", "Which of the two is longer?", expect=(3.0, "arithmetic")),
        Case("a tie", fixed(10.0, 20.0, 5.0, 10.0), close(1e-12), "When both take the same time, say memory.", "Compare with >= .", expect=(2.0, "memory")),
        Case("any machine", machine, close(1e-12), "The larger of two times.", "Which rate belongs to which amount?"),
        Case("another machine", machine, close(1e-12), "The larger of two times.", "Which rate belongs to which amount?"),
    ],
    mutants=[
        Mutant("sum", "the two times were added: they overlap", [("max(memory, arithmetic)", "memory + arithmetic")]),
        Mutant("smaller", "the smaller time was returned", [("max(memory, arithmetic)", "min(memory, arithmetic)")]),
        Mutant("words swapped", "the two words are swapped", [('"memory" if memory >= arithmetic else "arithmetic"', '"arithmetic" if memory >= arithmetic else "memory"')]),
        Mutant("both swapped", "the smaller time was returned, and its name", [("max(memory, arithmetic)", "min(memory, arithmetic)"), ("memory >= arithmetic", "memory <= arithmetic")]),
        Mutant("rates swapped", "bytes were divided by the arithmetic rate, and operations by the bandwidth", [("bytes / bandwidth, operations / rate", "bytes / rate, operations / bandwidth")]),
        Mutant("always memory", "the answer was always memory", [('"memory" if memory >= arithmetic else "arithmetic"', '"memory"')]),
        Mutant("memory only", "only the memory's time was returned", [("max(memory, arithmetic)", "memory")]),
        Mutant("arithmetic only", "only the arithmetic's time was returned", [("max(memory, arithmetic)", "arithmetic")]),
        Mutant("tie", "a tie was called arithmetic: when both take the same time the limit is memory", [("memory >= arithmetic", "memory > arithmetic")]),
        Mutant("upside down", "the rates were divided by the amounts", [("bytes / bandwidth, operations / rate", "bandwidth / bytes, rate / operations")]),
    ],
)  # fmt: skip

SPECIAL_TIME = Exercise(
    "special_time",
    outputs=("seconds",),
    cases=[
        Case("shape", fixed(16, 1, 1, 1, 1.0), shape(), "One time.", "Return a number."),
        Case("hand-worked", fixed(32, 2, 4, 2, 8.0), close(1e-12), "3 * 32 * 2 * 4 = 768 functions at 16 * 2 * 8 = 256 a second.", "Count first, then divide.", expect=3.0),
        Case("an H100", fixed(8192, 96, 128, 132, 1.755e9), close(1e-9), "302 million functions: about 0.08 ms.", "Clocks per second, not per microsecond."),
        Case("any sizes", drawn((3, 5000), (3, 128), (3, 256), (3, 200), (3, 9)), close(1e-12), "Every gate entry needs three.", "Which argument is not used?"),
    ],
    mutants=[
        Mutant("one each", "one function was counted for each gate entry: it needs three", [("3 * T", "T")]),
        Mutant("two each", "two functions were counted for each gate entry: the sigmoid is a third", [("3 * T", "2 * T")]),
        Mutant("one SM", "one SM was counted: all of them work", [("16 * sms * clock", "16 * clock")]),
        Mutant("one a clock", "an SM was given one function a clock: it finishes 16", [("16 * sms", "sms")]),
        Mutant("32 a clock", "an SM finishes 16 in a clock, not 32", [("16 * sms", "32 * sms")]),
        Mutant("clocks", "this is in clocks, not in seconds", [("16 * sms * clock", "16 * sms")]),
        Mutant("per head", "the heads were left out: each has its own gates", [("T * H * D", "T * D")]),
        Mutant("per token", "the channels were left out: each has its own gate", [("T * H * D", "T * H")]),
        Mutant("upside down", "this is a rate, not a time", [("count / per_second", "per_second / count")]),
        Mutant("count", "the number of functions came back", [("count / per_second", "count")]),
    ],
)  # fmt: skip

EXERCISES = [LEAST_BYTES, CHUNK_OPERATIONS, RIDGE, ROOFLINE, SPECIAL_TIME]
