"""Atomic saving: either the old file or the new one, never half of one."""

import os
import shutil
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from course_utils.cases import attempt
from course_utils.exercise import exercise
from course_utils.exercises.week09._files import left_over, workplace


@exercise(objectives=("ckpt.atomic_save",))
def save_checkpoint(state: dict, path: str | os.PathLike) -> int:
    """Write state to path with torch.save, atomically; return the file's size in bytes.

    Missing parent folders are made. Write to a temporary file in the SAME folder, then move it over
    path by calling os.replace(...); Path.replace does the same. path may be relative and have any
    suffix; it is a str or a path object such as a Path. state is saved as it is.

    If saving or moving raises, be it a KeyboardInterrupt, the exception reaches the caller, a file
    that was at path before is still there byte for byte, and no other file is left in the folder.
    After success the folder holds nothing but path and what was there before.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())  # the data reaches the disk before the name does
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path.stat().st_size


class CannotBePickled:
    """Its pickling raises, after what stood before it in the state was written."""

    def __reduce__(self):
        raise TypeError("cannot pickle this object")


def a_state(draw):
    """A checkpoint of tensors and plain data."""
    return {
        "model": {"weight": draw.normal(*draw.sizes(2)), "bias": draw.normal(draw.whole(2, 7))},
        "step": draw.whole(1, 1000),
        "losses": [draw.number(0, 2) for _ in range(3)],
        "note": ("lr", 0.1, None),
        "scale": draw.normal(2, requires_grad=True),
    }


def contents(path):
    """The bytes of the file."""
    return path.read_bytes() if path.exists() else "gone"


def loaded(path):
    """What torch.load makes of the file, its exception if it fails."""
    return attempt(torch.load, path)


def size_reported(result, path):
    """The reported size as words, since sizes themselves differ with names and versions."""
    size = os.path.getsize(path) if os.path.exists(path) else None
    return f"{'right' if result == size else 'wrong'}, {type(result).__name__}"


@contextmanager
def watched_replace(fails=None):
    """Note between which folders os.replace moves; with `fails` it raises that instead."""
    real, moves = os.replace, []

    def replace(src, dst, **options):
        here = os.path.realpath(os.path.dirname(os.path.abspath(src)))
        there = os.path.realpath(os.path.dirname(os.path.abspath(dst)))
        moves.append("within one folder" if here == there else "from another folder")
        if fails:
            raise fails
        return real(src, dst, **options)

    os.replace = replace
    try:
        yield moves
    finally:
        os.replace = real


class Somewhere(os.PathLike):
    """A path that is neither a str nor a Path; an absolute one."""

    def __init__(self, path):
        self.path = os.path.abspath(path)

    def __fspath__(self):
        return self.path

    __str__ = __fspath__


def saved(implementation, state, path, *expected, fails=None):
    """Save; how that went, and what lies where it was saved. `expected` is all that should be here.

    Sizes differ with the name of the temporary file, so they are compared with the disk, not with
    the reference: the cases are `random`, and watch the state themselves.
    """
    before = dict(state)
    with watched_replace(fails) as moves:
        try:
            result = implementation(state, path)
        except (Exception, KeyboardInterrupt) as error:
            result = error
    failed = isinstance(result, BaseException)
    unchanged = state.keys() == before.keys() and all(state[k] is before[k] for k in before)
    return {
        "1. error": result if failed else None,
        "2. contents": None if failed else loaded(path),
        "3. size": None if failed else size_reported(result, path),
        "4. folder": left_over(*expected),
        "5. os.replace": ", ".join(moves) or ("not reached" if failed else "not called"),
        "6. state": "unchanged" if unchanged else "changed",
    }


@save_checkpoint.case(random=True)
def a_new_file(implementation, draw):
    with workplace(draw):
        return saved(implementation, a_state(draw), "last.pt", "last.pt")


@save_checkpoint.case(random=True)
def folders_that_do_not_exist(implementation, draw):
    with workplace(draw):
        path = Path("runs", "first", "best.v2.pt")
        return saved(implementation, a_state(draw), path, "runs", "runs/first", path.as_posix())


@save_checkpoint.case(random=True)
def a_file_is_replaced(implementation, draw):
    with workplace(draw):
        path, link, other = Path("last.pt"), Path("link to the old file"), Path("other.tmp")
        path.write_bytes(b"old contents")
        other.write_bytes(b"not yours")
        with suppress(OSError):  # a file system without hard links
            os.link(path, link)
        linked = link.exists()
        names = ["last.pt", other.name, *([link.name] if linked else [])]
        seen = saved(implementation, a_state(draw), "last.pt", *names)
        old = contents(link) if linked else b"old contents"
        return {"0. old file, kept by a link": old, "0. other file": contents(other), **seen}


@save_checkpoint.case(random=True)
def saved_twice_to_an_absolute_path(implementation, draw):
    with workplace(draw):
        path = Somewhere("last.pt")
        return [saved(implementation, a_state(draw), path, "last.pt") for _ in range(2)]


@save_checkpoint.case(random=True)
def a_state_that_cannot_be_saved(implementation, draw):
    with workplace(draw):
        path, state = Path("last.tmp"), a_state(draw) | {"bad": CannotBePickled()}
        path.write_bytes(b"old contents")
        seen = saved(implementation, state, "last.tmp", "last.tmp")
        return {"0. file": contents(path), **seen}


@save_checkpoint.case(random=True)
def a_first_save_that_fails(implementation, draw):
    with workplace(draw):
        return saved(implementation, a_state(draw) | {"bad": CannotBePickled()}, "last.pt")


@save_checkpoint.case(random=True)
def a_move_that_fails_or_is_interrupted(implementation, draw):
    errors, seen = (OSError(28, "No space left on device"), KeyboardInterrupt()), []
    with workplace(draw):
        path = Path("last.pt")
        for error in errors:
            path.write_bytes(b"old contents")
            state = a_state(draw)
            found = saved(implementation, state, "last.pt", "last.pt", fails=error)
            file = contents(path)
            seen.append({"0. file": file, **found})
            for left in Path().glob("*"):
                left.unlink()
    return seen


def save_parts(
    state, path, *, parents=True, temporary=None, write=None, move=None, clean=(True, True)
):
    """The answer in parts that can be exchanged.

    temporary(path) names the file, write(state, file) and move(temporary, path) work on it; clean
    says whether it is removed when saving fails, and when moving fails.
    """
    path = Path(path)
    if parents:
        path.parent.mkdir(parents=True, exist_ok=True)
    file = temporary(path) if temporary else path.with_name(path.name + ".tmp")
    try:
        (write or torch.save)(state, file)
    except BaseException:
        if clean[0]:
            file.unlink(missing_ok=True)
        raise
    try:
        (move or os.replace)(file, path)
    except BaseException:
        if clean[1]:
            file.unlink(missing_ok=True)
        raise
    return path.stat().st_size


@save_checkpoint.misconception(
    "You write straight to the target. Opening it destroys the old checkpoint, and a crash in the "
    "middle leaves half a file where the good one was."
)
def writes_straight_to_the_target(state, path):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)
    return path.stat().st_size


@save_checkpoint.misconception(
    "You write straight to the target and remove it when that fails. The half file is gone, and so "
    "is the good one that was there before."
)
def removes_the_target_on_failure(state, path):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.save(state, path)
    except BaseException:
        path.unlink()
        raise
    return path.stat().st_size


@save_checkpoint.misconception(
    "Your temporary name replaces the suffix, and for a path such as last.tmp it is the path "
    "itself: the old file is overwritten, and cleaned up on a failure. Add to the whole name."
)
def suffix_replaced(state, path):
    return save_parts(state, path, temporary=lambda path: path.with_suffix(".tmp"))


@save_checkpoint.misconception(
    "Files that look like temporary ones are swept up, whoever wrote them. Another process may be "
    "writing one right now: remove only your own."
)
def sweeps_up_other_files(state, path):
    for file in Path(path).parent.glob("*.tmp"):
        if file != Path(path):
            file.unlink()
    return save_parts(state, path)


@save_checkpoint.misconception(
    "The temporary file stays when something fails. After some failures the leftovers fill the "
    "disk: clean up, then let the exception go on."
)
def temporary_file_left_behind(state, path):
    return save_parts(state, path, clean=(False, False))


@save_checkpoint.misconception(
    "You clean up when saving fails, and not when the move does. Both steps can raise."
)
def left_behind_when_the_move_fails(state, path):
    return save_parts(state, path, clean=(True, False))


@save_checkpoint.misconception(
    "You clean up when the move fails, and not when saving does. Both steps can raise."
)
def left_behind_when_saving_fails(state, path):
    return save_parts(state, path, clean=(False, True))


@save_checkpoint.misconception(
    "You clean up after an Exception. A KeyboardInterrupt is none: stop the cell while it saves, "
    "and the temporary file stays. Catch BaseException, or use finally."
)
def left_behind_when_interrupted(state, path):
    file = Path(f"{path}.tmp")
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.save(state, file)
        os.replace(file, path)
    except Exception:
        file.unlink(missing_ok=True)
        raise
    return os.path.getsize(path)


@save_checkpoint.misconception(
    "Tensors were detached or copied before they were saved, and come back without requires_grad. "
    "Save the state as it is."
)
def detaches_the_tensors(state, path):
    def plain(value):
        return value.detach() if isinstance(value, torch.Tensor) else value

    return save_parts({name: plain(value) for name, value in state.items()}, path)


@save_checkpoint.misconception(
    "The old file is removed before the new one is moved to its place. In between there is no "
    "checkpoint at all; the move alone replaces the old file."
)
def removes_the_old_file_first(state, path):
    def move(file, path):
        path.unlink(missing_ok=True)
        os.replace(file, path)

    return save_parts(state, path, move=move)


@save_checkpoint.misconception(
    "The exception was swallowed. The training goes on and believes that it has a checkpoint: "
    "clean up and raise it again."
)
def swallows_the_error(state, path):
    try:
        return save_parts(state, path)
    except Exception:
        return 0


@save_checkpoint.misconception(
    "The temporary file lies in another folder. That may be another file system, where a move is a "
    "copy and no longer atomic. Write beside the target."
)
def temporary_file_elsewhere(state, path):
    with tempfile.TemporaryDirectory() as folder:
        return save_parts(state, path, temporary=lambda path: Path(folder) / path.name)


@save_checkpoint.misconception(
    "You copy the temporary file over the target. A copy writes into it byte by byte, and can stop "
    "half-way like any other write. Move it."
)
def copies_instead_of_moving(state, path):
    def move(file, path):
        shutil.copyfile(file, path)
        file.unlink()

    return save_parts(state, path, move=move)


@save_checkpoint.misconception(
    "You moved the file with os.rename. Where a file is in the way, it replaces it on Linux and "
    "raises on Windows; os.replace does the same everywhere."
)
def renames(state, path):
    return save_parts(state, path, move=os.rename)


@save_checkpoint.misconception(
    "Missing folders were not made, so that the first save of a new run fails."
)
def folders_not_made(state, path):
    return save_parts(state, path, parents=False)


@save_checkpoint.misconception(
    "A relative path without a folder was refused: its folder's name is empty, and a folder of "
    "that name cannot be made. Such a file lies in the current folder."
)
def trips_over_a_bare_name(state, path):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    return save_parts(state, path)


@save_checkpoint.misconception(
    "After success a second file stays beside the checkpoint: a copy, or the temporary one. "
    "Nothing but the checkpoint may be added."
)
def second_file_left_beside_it(state, path):
    size = save_parts(state, path)
    shutil.copyfile(path, f"{path}.bak")
    return size


@save_checkpoint.misconception(
    "The file is right and its size does not come back. The task asks for the number of bytes."
)
def size_not_returned(state, path):
    save_parts(state, path)


@save_checkpoint.misconception(
    "The number that comes back is not the size of the file in bytes. Names and structure take "
    "room beside the tensors: ask the file system, once the file is complete."
)
def size_of_the_tensors(state, path):
    save_parts(state, path)
    return sum(t.numel() * t.element_size() for t in state["model"].values())


@save_checkpoint.misconception(
    "Only the model's entry was saved. The dict is the checkpoint, whatever is in it."
)
def saves_the_model_only(state, path):
    return save_parts(state, path, write=lambda state, file: torch.save(state["model"], file))


@save_checkpoint.misconception(
    "What cannot be pickled was left out of the file. A checkpoint that lacks an entry without a "
    "word is worse than none: let the exception go on."
)
def leaves_out_what_it_cannot_save(state, path):
    def write(state, file):
        kept = {k: v for k, v in state.items() if not isinstance(v, CannotBePickled)}
        torch.save(kept, file)

    return save_parts(state, path, write=write)


save_checkpoint.hints(
    "Which single call replaces a file in one step? Until then nobody should touch the old one.",
    "Two steps can raise, and after either of them there may be something to clean up.",
    "Look at the folder after a save that failed: what is in it, and what should be?",
)
