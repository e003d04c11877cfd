"""How far it scales: step time and efficiency from compute, bandwidth, latency and overlap."""

from course_utils.exercise import exercise

CLOSE = (1e-6, 1e-12)  # times are often far below a second


@exercise(objectives=("dist.scaling",))
def scaling_model(
    compute_s: float,
    grad_bytes: float,
    world_size: int,
    bandwidth: float,
    latency: float,
    overlap: float,
) -> dict[str, float]:
    """Predict one training step of N = world_size ranks that average gradients on a ring.

    Weak scaling: every rank keeps its own batch, so compute_s > 0, the time of forward and
    backward, is the same for every N. Return exactly these three, as floats:

    - "comm_s": all 2 (N - 1) steps of the ring. In each, a rank waits latency seconds and passes on
      grad_bytes / N bytes at bandwidth bytes per second.
    - "step_s": compute_s plus the part of comm_s that is not hidden behind it. At most
      overlap * compute_s seconds can be hidden; overlap is between 0 and 1.
    - "efficiency": compute_s / step_s.
    """
    comm_s = 2 * (world_size - 1) * (latency + grad_bytes / world_size / bandwidth)
    step_s = compute_s + max(0.0, comm_s - overlap * compute_s)
    return {"comm_s": comm_s, "step_s": step_s, "efficiency": compute_s / step_s}


def setting(draw, **fixed):
    """Numbers of a plausible machine, in the order of the arguments, some of them fixed."""
    values = {
        "compute_s": draw.number(0.05, 0.3),
        "grad_bytes": draw.number(1e8, 9e8),
        "world_size": draw.whole(3, 9),
        "bandwidth": draw.number(1e9, 3e9),
        "latency": draw.number(2e-5, 9e-5),
        "overlap": draw.number(0.2, 0.6),
    }
    return tuple((values | fixed).values())


@scaling_model.case(tolerance=CLOSE)
def one_rank(implementation, draw):
    return implementation(*setting(draw, world_size=1))


@scaling_model.case(tolerance=CLOSE)
def two_ranks(implementation, draw):
    return implementation(*setting(draw, world_size=2))


@scaling_model.case(tolerance=CLOSE)
def eight_ranks_without_overlap(implementation, draw):
    return implementation(*setting(draw, world_size=8, overlap=0.0))


@scaling_model.case(tolerance=CLOSE)
def sixty_four_ranks(implementation, draw):
    return implementation(*setting(draw, world_size=64, latency=draw.number(1e-3, 3e-3)))


@scaling_model.case(tolerance=CLOSE)
def thousands_of_ranks_that_wait_for_latency(implementation, draw):
    small = draw.number(1e3, 1e5)
    return implementation(*setting(draw, world_size=draw.whole(1000, 4000), grad_bytes=small))


@scaling_model.case(tolerance=CLOSE)
def everything_hidden(implementation, draw):
    small, overlap = draw.number(1e6, 9e6), draw.number(0.7, 0.95)
    return implementation(*setting(draw, grad_bytes=small, overlap=overlap))


@scaling_model.case(tolerance=CLOSE)
def more_to_hide_than_compute(implementation, draw):
    big = draw.number(5e9, 9e9)
    return implementation(*setting(draw, grad_bytes=big, overlap=draw.choice((1, 1.0))))


@scaling_model.case(tolerance=CLOSE)
def whole_numbers(implementation, draw):
    compute, world_size, bandwidth = draw.whole(2, 5), draw.whole(2, 5), draw.whole(10, 30)
    size = world_size * draw.whole(20, 90) + 1  # no whole number of bytes for each rank
    return implementation(compute, size, world_size, bandwidth, 0, 0)


def predict(compute_s, grad_bytes, world_size, bandwidth, latency, overlap, *, comm=None,
            step=None, efficiency=None, shown=None):  # fmt: skip
    """The answer in parts that can be exchanged.

    comm(bytes, N, bandwidth, latency), step(compute, comm, overlap), efficiency(compute, step, N),
    and shown(compute, comm, overlap), what is reported as comm_s.
    """
    if comm:
        comm_s = comm(grad_bytes, world_size, bandwidth, latency)
    else:
        comm_s = 2 * (world_size - 1) * (latency + grad_bytes / world_size / bandwidth)
    step_s = (step or exposed)(compute_s, comm_s, overlap)
    return {
        "comm_s": shown(compute_s, comm_s, overlap) if shown else comm_s,
        "step_s": step_s,
        "efficiency": efficiency(compute_s, step_s, world_size)
        if efficiency
        else compute_s / step_s,
    }


def exposed(compute, comm, overlap):
    """The time of a step: what is not hidden is added."""
    return compute + max(0.0, comm - overlap * compute)


@scaling_model.misconception(
    "You turn bytes into bits. The bandwidth is given in bytes per second already."
)
def bits_instead_of_bytes(compute_s, grad_bytes, world_size, bandwidth, latency, overlap):
    return predict(compute_s, 8 * grad_bytes, world_size, bandwidth, latency, overlap)


@scaling_model.misconception(
    "The bytes of a chunk are rounded to a whole number. The model takes grad_bytes / N as it is."
)
def bytes_rounded_down(compute_s, grad_bytes, world_size, bandwidth, latency, overlap):
    def comm(size, n, bandwidth, latency):
        return float(2 * (n - 1) * (latency + size // n / bandwidth))

    return predict(compute_s, grad_bytes, world_size, bandwidth, latency, overlap, comm=comm)


@scaling_model.misconception(
    "Your efficiency is in percent. Asked is the fraction itself: 1 is perfect."
)
def in_percent(compute_s, grad_bytes, world_size, bandwidth, latency, overlap):
    def efficiency(compute, step, n):
        return 100 * compute / step

    return predict(compute_s, grad_bytes, world_size, bandwidth, latency, overlap,
                   efficiency=efficiency)  # fmt: skip


@scaling_model.misconception(
    "In your model each step of the ring passes on the whole buffer, so the volume grows with N. "
    "A step passes on one chunk, and chunks shrink as ranks are added."
)
def volume_grows_with_ranks(compute_s, grad_bytes, world_size, bandwidth, latency, overlap):
    def comm(size, n, bandwidth, latency):
        return 2 * (n - 1) * (latency + size / bandwidth)

    return predict(compute_s, grad_bytes, world_size, bandwidth, latency, overlap, comm=comm)


@scaling_model.misconception(
    "The latency is paid once. Each of the 2 (N - 1) steps pays it, since it can only begin when "
    "the one before has arrived."
)
def latency_once(compute_s, grad_bytes, world_size, bandwidth, latency, overlap):
    def comm(size, n, bandwidth, latency):
        return (latency if n > 1 else 0.0) + 2 * (n - 1) * size / n / bandwidth

    return predict(compute_s, grad_bytes, world_size, bandwidth, latency, overlap, comm=comm)


@scaling_model.misconception(
    "The latency plays no role in your model. With many ranks and small chunks it is most of the "
    "time."
)
def latency_forgotten(compute_s, grad_bytes, world_size, bandwidth, latency, overlap):
    return predict(compute_s, grad_bytes, world_size, bandwidth, 0.0, overlap)


@scaling_model.misconception(
    "You divide the latency by N as well. Smaller chunks take less time on the wire; the wait for "
    "the first byte stays."
)
def latency_shrinks(compute_s, grad_bytes, world_size, bandwidth, latency, overlap):
    return predict(compute_s, grad_bytes, world_size, bandwidth, latency / world_size, overlap)


@scaling_model.misconception(
    "Only one phase of the ring is counted, N - 1 steps. After the reduce-scatter the finished "
    "chunks still have to go around."
)
def one_phase_only(compute_s, grad_bytes, world_size, bandwidth, latency, overlap):
    def comm(size, n, bandwidth, latency):
        return (n - 1) * (latency + size / n / bandwidth)

    return predict(compute_s, grad_bytes, world_size, bandwidth, latency, overlap, comm=comm)


@scaling_model.misconception(
    "You count N steps in a phase. N - 1 are enough, and one rank alone communicates nothing: its "
    "efficiency must be 1."
)
def one_step_too_many(compute_s, grad_bytes, world_size, bandwidth, latency, overlap):
    def comm(size, n, bandwidth, latency):
        return 2 * n * (latency + size / n / bandwidth)

    return predict(compute_s, grad_bytes, world_size, bandwidth, latency, overlap, comm=comm)


@scaling_model.misconception(
    "You take overlap as a discount on communication. It is bounded by the compute there is to "
    "hide behind: at most overlap * compute_s seconds disappear, however long the ring takes."
)
def overlap_as_a_discount(compute_s, grad_bytes, world_size, bandwidth, latency, overlap):
    def step(compute, comm, overlap):
        return compute + comm * (1 - overlap)

    return predict(compute_s, grad_bytes, world_size, bandwidth, latency, overlap, step=step)


@scaling_model.misconception(
    "The part that is not hidden becomes negative, and the step shorter than its compute. Hidden "
    "communication costs nothing; it gives nothing back either."
)
def negative_rest(compute_s, grad_bytes, world_size, bandwidth, latency, overlap):
    def step(compute, comm, overlap):
        return compute + comm - overlap * compute

    return predict(compute_s, grad_bytes, world_size, bandwidth, latency, overlap, step=step)


@scaling_model.misconception(
    "Nothing is hidden in your model: compute and communication are always added in full."
)
def overlap_forgotten(compute_s, grad_bytes, world_size, bandwidth, latency, overlap):
    def step(compute, comm, overlap):
        return float(compute + comm)

    return predict(compute_s, grad_bytes, world_size, bandwidth, latency, overlap, step=step)


@scaling_model.misconception(
    "You take the longer of compute and communication, which is perfect overlap. Only overlap * "
    "compute_s of the compute can hide something."
)
def perfect_overlap(compute_s, grad_bytes, world_size, bandwidth, latency, overlap):
    def step(compute, comm, overlap):
        return float(max(compute, comm))

    return predict(compute_s, grad_bytes, world_size, bandwidth, latency, overlap, step=step)


@scaling_model.misconception(
    "Under comm_s you report only what is not hidden. It is the time of the whole ring, hidden or "
    "not; the rest shows in step_s."
)
def only_the_exposed_part(compute_s, grad_bytes, world_size, bandwidth, latency, overlap):
    def shown(compute, comm, overlap):
        return max(0.0, comm - overlap * compute)

    return predict(compute_s, grad_bytes, world_size, bandwidth, latency, overlap, shown=shown)


@scaling_model.misconception(
    "You report the speed-up over one rank, or divide by it. Efficiency in weak scaling is "
    "compute_s / step_s, at most 1, whatever N is."
)
def speed_up_instead(compute_s, grad_bytes, world_size, bandwidth, latency, overlap):
    def efficiency(compute, step, n):
        return n * compute / step

    return predict(
        compute_s, grad_bytes, world_size, bandwidth, latency, overlap, efficiency=efficiency
    )


@scaling_model.misconception(
    "Your efficiency is upside down: step over compute, which is at least 1."
)
def efficiency_upside_down(compute_s, grad_bytes, world_size, bandwidth, latency, overlap):
    def efficiency(compute, step, n):
        return step / compute

    return predict(
        compute_s, grad_bytes, world_size, bandwidth, latency, overlap, efficiency=efficiency
    )


@scaling_model.misconception(
    "You let compute_s shrink with N, as when one fixed batch is split up: strong scaling. Here "
    "every rank keeps its own batch, and compute_s is the same for every N."
)
def compute_is_split_up(compute_s, grad_bytes, world_size, bandwidth, latency, overlap):
    share = compute_s / world_size
    return predict(share, grad_bytes, world_size, bandwidth, latency, overlap)


scaling_model.hints(
    "One rank sends nothing. What must your formulas give for N = 1?",
    "Write comm_s as a number of steps times the time of one step. What goes through the wire in "
    "one?",
    "How many seconds can disappear behind compute, and what if that is more than comm_s? max "
    "with 0.",
)
