"""The ring all-reduce by hand: two rounds of passing chunks on to the next rank."""

from collections.abc import Callable

import torch

from course_utils.cases import attempt, same_storage
from course_utils.exercise import exercise


@exercise(objectives=("dist.allreduce",), forbids=(torch.stack, torch.sum, torch.Tensor.sum))
def ring_all_reduce(
    buffers: list[torch.Tensor],
    send: Callable[[int, int, torch.Tensor], torch.Tensor],
) -> list[torch.Tensor]:
    """Sum N 1-D buffers of one length, one for each rank, on a ring; return N tensors.

    Each rank cuts its buffer with torch.tensor_split(buffer, N) into N chunks. Some may be empty;
    they are sent too. Ranks learn about each other only through payload = send(src, dst, chunk):
    it hands a chunk over and returns what arrives. dst is always (src + 1) % N.

    Reduce-scatter, steps s = 0, …, N-2: rank r sends chunk (r - s) % N, and the receiver adds the
    payload to its own chunk of that number. All-gather, steps s = 0, …, N-2: rank r sends chunk
    (r + 1 - s) % N, and the receiver puts the payload in place of its own. All sends of a step use
    the state before the step. N = 1: no sends.

    The results share no memory with each other or with the buffers, which stay as they are.
    """
    world_size = len(buffers)
    results = [buffer.clone() for buffer in buffers]
    chunks = [torch.tensor_split(result, world_size) for result in results]  # views

    def exchange(shift):
        """Every rank r sends chunk (r + shift) % N; the receivers' chunks and what arrived."""
        messages = []
        for src in range(world_size):
            dst, number = (src + 1) % world_size, (src + shift) % world_size
            messages.append((chunks[dst][number], send(src, dst, chunks[src][number])))
        return messages

    for step in range(world_size - 1):
        for own, payload in exchange(-step):
            own += payload
    for step in range(world_size - 1):
        for own, payload in exchange(1 - step):
            own.copy_(payload)
    return results


def reduce(implementation, buffers, *, wire=torch.clone, values=False):
    """What comes back, and what each rank sent: to whom, and the size or the values."""
    sent = {
        f"rank {rank} sends (to, {'what' if values else 'size'})": []
        for rank in range(len(buffers))
    }
    logs = list(sent.values())

    def send(src, dst, chunk):
        logs[src].append((dst, chunk.clone() if values else chunk.numel()))
        return wire(chunk)

    return {"result": attempt(implementation, buffers, send), **sent}


def drawn(draw, world_size, length, **options):
    """A buffer for each rank."""
    return [draw.normal(length, **options) for _ in range(world_size)]


@ring_all_reduce.case
def two_ranks(implementation, draw):
    return reduce(implementation, drawn(draw, 2, draw.choice((5, 7))))


@ring_all_reduce.case
def three_ranks_and_what_they_send(implementation, draw):
    return reduce(implementation, drawn(draw, 3, 3 * draw.whole(1, 2)), values=True)


@ring_all_reduce.case
def four_ranks_with_chunks_of_unequal_size(implementation, draw):
    return reduce(implementation, drawn(draw, 4, 4 * draw.whole(1, 2) + 2))


@ring_all_reduce.case
def five_ranks_and_fewer_numbers(implementation, draw):
    return reduce(implementation, drawn(draw, 5, draw.whole(2, 4), dtype=torch.float64))


@ring_all_reduce.case
def empty_buffers(implementation, draw):
    return reduce(implementation, drawn(draw, draw.whole(2, 3), 0))


@ring_all_reduce.case
def one_rank_alone(implementation, draw):
    buffers = drawn(draw, 1, draw.whole(3, 6))
    seen = reduce(implementation, buffers)
    return {**seen, "shares memory with the buffer": in_one_memory(seen["result"], buffers)}


@ring_all_reduce.case
def a_wire_that_rounds(implementation, draw):
    buffers = drawn(draw, 3, draw.whole(6, 8))
    return reduce(implementation, buffers, wire=lambda chunk: chunk.half().to(chunk.dtype))


@ring_all_reduce.case
def a_wire_without_copies(implementation, draw):
    odd = 2**54 + 1  # and so large that no float holds it
    buffers = [odd + 2 * draw.integers(-9, 9, 6) for _ in range(3)]
    seen = reduce(implementation, buffers, wire=lambda chunk: chunk)
    return {**seen, "which share memory": in_one_memory(seen["result"], buffers)}


def in_one_memory(results, buffers):
    """Pairs of tensors, in words, that are backed by one storage."""
    if not isinstance(results, list | tuple):
        return "no list of results"
    named = [(f"result {i}", result) for i, result in enumerate(results)]
    named += [(f"buffer {i}", buffer) for i, buffer in enumerate(buffers)]
    return [
        f"{name} and {other}"
        for place, (name, tensor) in enumerate(named)
        for other, right in named[:place]
        if isinstance(right, torch.Tensor) and same_storage(tensor, right)
    ]


def ring(buffers, send, *, results=None, split=torch.tensor_split, steps=None, towards=1,
         gather=1, joins="replace", skip_empty=False):  # fmt: skip
    """The answer in parts that can be exchanged.

    results: what is worked on. steps: per phase. towards: the next rank. gather: the shift of the
    first chunk of the second phase; joins: what its receiver does with the payload.
    """
    n = len(buffers)
    results = [buffer.clone() for buffer in buffers] if results is None else results
    chunks = [split(result, n) for result in results]
    steps = n - 1 if steps is None else steps

    def exchange(shift):
        for src in range(n):
            dst, number = (src + towards) % n, (src + shift) % n
            if chunks[src][number].numel() or not skip_empty:
                payload = send(src, dst, chunks[src][number])
                yield chunks[dst][number], payload

    for step in range(steps):
        for own, payload in list(exchange(-step)):
            own += payload
    for step in range(steps if joins else 0):
        for own, payload in list(exchange(gather - step)):
            own.copy_(own + payload if joins == "add" else payload)
    return results


@ring_all_reduce.misconception(
    "Every rank sends its whole buffer to every other one. The sums are right, and each rank "
    "sends N-1 full buffers instead of less than two. Only the next rank on the ring is spoken "
    "to, a chunk at a time."
)
def all_to_all(buffers, send):
    results = [buffer.clone() for buffer in buffers]
    for src, buffer in enumerate(buffers):
        for dst in range(len(buffers)):
            if dst != src:
                results[dst] += send(src, dst, buffer)
    return results


@ring_all_reduce.misconception(
    "Rank 0 collects all buffers and sends the sum back. It would carry N-1 times the traffic of "
    "the others and become the bottleneck; on a ring no rank is special."
)
def parameter_server(buffers, send):
    total = buffers[0].clone()
    for src in range(1, len(buffers)):
        total += send(src, 0, buffers[src])
    return [total] + [send(0, dst, total).clone() for dst in range(1, len(buffers))]


@ring_all_reduce.misconception(
    "Whole buffers travel around the ring, not chunks. After N-1 steps everybody has seen "
    "everything, but each rank sent N-1 buffers, and most of the ring's advantage is gone. Cut "
    "first."
)
def whole_buffers_around_the_ring(buffers, send):
    n, results, passing = len(buffers), [buffer.clone() for buffer in buffers], list(buffers)
    for _ in range(n - 1):
        passing = [send((dst - 1) % n, dst, passing[dst - 1]) for dst in range(n)]
        for result, payload in zip(results, passing, strict=True):
            result += payload
    return results


@ring_all_reduce.misconception(
    "The gather phase is missing. After the reduce-scatter each rank owns one finished chunk "
    "only; the others hold partial sums."
)
def gather_phase_missing(buffers, send):
    return ring(buffers, send, joins="")


@ring_all_reduce.misconception(
    "You divide by the number of ranks. An all-reduce sums; the division that makes a mean of it "
    "is DDP's."
)
def average(buffers, send):
    n = len(buffers)
    return [(r / n).to(r.dtype) for r in ring_all_reduce.reference(buffers, send)]


@ring_all_reduce.misconception(
    "In the second phase the payload is added too. What travels there is finished; the receiver "
    "puts it in place of its own partial sum."
)
def adds_in_the_gather_phase(buffers, send):
    return ring(buffers, send, joins="add")


@ring_all_reduce.misconception(
    "The second phase begins with the wrong chunk. After N-1 steps the chunk that is complete on "
    "rank r is (r + 1) % N; another one spreads a partial sum."
)
def gathers_unfinished_chunks(buffers, send):
    return ring(buffers, send, gather=0)


@ring_all_reduce.misconception(
    "There are N steps in a phase of yours. After N-1 of them a chunk has met every rank; one "
    "more adds a rank's numbers a second time."
)
def one_step_too_many(buffers, send):
    return ring(buffers, send, steps=len(buffers) if len(buffers) > 1 else 0)


@ring_all_reduce.misconception(
    "Your ring turns the other way: rank r sends to rank r - 1. With this order of chunks the "
    "sums are not complete where the second phase expects them."
)
def ring_turned_around(buffers, send):
    return ring(buffers, send, towards=-1)


@ring_all_reduce.misconception(
    "One rank goes through all its steps before the next one starts. It then passes on chunks to "
    "which its neighbor has not added yet. The steps are the outer loop, the ranks the inner one."
)
def rank_after_rank(buffers, send):
    n, results = len(buffers), [buffer.clone() for buffer in buffers]
    chunks = [torch.tensor_split(result, n) for result in results]
    for phase in (0, 1):
        for src in range(n):
            for step in range(n - 1):
                dst, number = (src + 1) % n, (src + phase - step) % n
                payload = send(src, dst, chunks[src][number])
                chunks[dst][number].copy_(payload if phase else payload + chunks[dst][number])
    return results


@ring_all_reduce.misconception(
    "Chunks are sent, but what send returns is not used: you read the sender's memory instead. "
    "Between processes there is nothing to read; the payload is all that arrives."
)
def payload_ignored(buffers, send):
    def look(src, dst, chunk):
        send(src, dst, chunk)
        return chunk

    return ring(buffers, look)


@ring_all_reduce.misconception(
    "You work in the buffers that were given: the caller's tensors change, or come back as your "
    "results. Work on copies."
)
def in_place(buffers, send):
    return ring(buffers, send, results=list(buffers))


@ring_all_reduce.misconception(
    "All entries of your list are one tensor, or views of one. Each rank has memory of its own; "
    "if one changes its result the others must not notice."
)
def one_result_for_all(buffers, send):
    return [ring_all_reduce.reference(buffers, send)[0]] * len(buffers)


@ring_all_reduce.misconception(
    "You add in floating point, whatever the dtype of the buffers. Large integers lose their last "
    "digits on the way. Chunks, payloads and results keep the dtype that is given."
)
def added_as_floats(buffers, send):
    results = ring_all_reduce.reference([buffer.float() for buffer in buffers], send)
    return [result.to(buffer.dtype) for result, buffer in zip(results, buffers, strict=True)]


@ring_all_reduce.misconception(
    "Empty chunks are skipped. A rank that expects a message and does not get one waits forever; "
    "every rank sends in every step."
)
def empty_chunks_skipped(buffers, send):
    return ring(buffers, send, skip_empty=True)


@ring_all_reduce.misconception(
    "The chunks are not those of torch.tensor_split. torch.chunk, or a size rounded up, can leave "
    "fewer than N chunks, or a short last one; tensor_split always makes N that differ by at most "
    "one number."
)
def cut_with_chunk(buffers, send):
    return ring(buffers, send, split=torch.chunk)


ring_all_reduce.hints(
    "Two loops, each of N-1 steps; inside each a loop over the ranks. Work on copies of the "
    "buffers.",
    "Collect all messages of a step before you apply any of them.",
    "Follow one chunk with N = 3: which rank is the first to send it, and on which rank is it "
    "complete after the first phase? That one starts the second phase.",
)
