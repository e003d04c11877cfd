"""The one file of a run: saved atomically, loaded without trust."""

import os
import shutil
import tempfile
from pathlib import Path

import torch

from course_utils.cases import attempt
from course_utils.exercise import exercise
from course_utils.exercises.week09._files import left_over, workplace
from course_utils.exercises.week09.save_checkpoint import CannotBePickled, a_state, watched_replace


@exercise(objectives=("cap.atomic",))
class CheckpointFile:
    """The checkpoint of a run: one file, which a kill during a write cannot destroy.

    __init__(path): path is a str or a Path, in a folder that exists. Nothing is written yet.

    save(state): write state with torch.save to a temporary file in the same folder, flush it, hand
    it to the disk with os.fsync, then move it over path with os.replace. It may be called as often
    as you like. When something raises, be it a KeyboardInterrupt, the temporary file is removed,
    the file at path is what it was before, and the exception reaches the caller.

    load(): what the last save wrote, with all tensors on the CPU; None when there is no file at
    path. It goes through torch.load with weights_only=True, whose exceptions reach the caller.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)

    def save(self, state: dict) -> None:
        temporary = self.path.with_name(f"{self.path.name}.tmp")
        try:
            with open(temporary, "wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def load(self) -> dict | None:
        if not self.path.exists():
            return None
        return torch.load(self.path, map_location="cpu", weights_only=True)


Reference = CheckpointFile.reference


class Stranger:
    """An object of a class that weights_only=True turns away."""


class synced:
    """Within, note for each os.fsync whether the new state was in the file by then."""

    def __enter__(self):
        self.sizes, self._real = [], os.fsync

        def fsync(handle):
            number = handle if isinstance(handle, int) else handle.fileno()
            self.sizes.append(os.fstat(number).st_size)
            return self._real(handle)

        os.fsync = fsync
        return self

    def __exit__(self, *_):
        os.fsync = self._real

    def words(self):
        if not self.sizes:
            return "os.fsync was not called"
        return "all was in the file" if max(self.sizes) > 500 else "the file was still empty"


def saved(file, state, fails=None):
    """Save; what that returned or raised, and what os.replace and os.fsync saw."""
    with watched_replace(fails) as moves, synced() as sync:
        try:
            result = file.save(state)
        except (Exception, KeyboardInterrupt) as error:
            result = error
    return {
        "1. save": result,
        "2. os.replace": ", ".join(moves) or "not called",
        "3. os.fsync": sync.words(),
    }


@CheckpointFile.case(random=True)
def saved_and_loaded(implementation, draw):
    with workplace(draw):
        seen = saved(implementation("last.pt"), a_state(draw))
        return {
            **seen,
            "4. load": attempt(implementation("last.pt").load),
            "5. folder": left_over("last.pt"),
        }


@CheckpointFile.case(random=True)
def before_the_first_save(implementation, draw):
    with workplace(draw):
        file = implementation(Path("last.pt"))
        return {"1. load": attempt(file.load), "2. folder": left_over()}


@CheckpointFile.case(random=True)
def the_last_of_three_saves(implementation, draw):
    with workplace(draw):
        path = Path("last.pt").absolute()
        file = implementation(path)
        for _ in range(2):
            attempt(file.save, a_state(draw))
        seen = saved(file, a_state(draw))
        return {**seen, "4. load": attempt(file.load), "5. folder": left_over("last.pt")}


@CheckpointFile.case(random=True)
def a_state_that_cannot_be_saved(implementation, draw):
    with workplace(draw):
        file = implementation("last.pt")
        attempt(file.save, a_state(draw))
        with watched_replace() as moves:
            error = attempt(file.save, a_state(draw) | {"bad": CannotBePickled()})
        loaded = attempt(file.load)
        return {
            "1. save": error,
            "2. moves": len(moves),
            "3. load": loaded,
            "4. folder": left_over("last.pt"),
        }


@CheckpointFile.case(random=True)
def a_move_that_is_interrupted(implementation, draw):
    with workplace(draw):
        file = implementation("last.pt")
        attempt(file.save, a_state(draw))
        seen = saved(file, a_state(draw), fails=KeyboardInterrupt())
        return {**seen, "4. load": attempt(file.load), "5. folder": left_over("last.pt")}


@CheckpointFile.case(random=True)
def a_file_that_holds_more_than_plain_data(implementation, draw):
    with workplace(draw):
        torch.save({"weight": draw.normal(3), "guest": Stranger()}, "last.pt")
        return {"1. load": attempt(implementation("last.pt").load)}


@CheckpointFile.case(random=True)
def loading_asks_for_the_cpu_and_for_plain_data(implementation, draw):
    asked, real = [], torch.load

    def load(*args, **options):
        place = options.get("map_location", args[1] if len(args) > 1 else None)
        place = "cpu" if callable(place) else place  # lambda storage, place: storage
        asked.append(f"{place}, weights_only={options.get('weights_only', True)}")
        return real(*args, **options)

    with workplace(draw):
        torch.save(a_state(draw), "last.pt")
        torch.load = load
        try:
            attempt(implementation("last.pt").load)
        finally:
            torch.load = real
    return asked or "torch.load was not called"


@CheckpointFile.misconception(
    "You write straight to the path. Opening it destroys the last good checkpoint, and a kill in "
    "the middle leaves half a file in its place."
)
class WritesInPlace(Reference):
    def save(self, state):
        with open(self.path, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())


@CheckpointFile.misconception(
    "The file is moved before its data was handed to the disk. After a power failure the good name "
    "can point to data that was never written: flush, os.fsync, then os.replace."
)
class NotSynced(Reference):
    def save(self, state):
        temporary = self.path.with_name(f"{self.path.name}.tmp")
        try:
            torch.save(state, temporary)
            os.replace(temporary, self.path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@CheckpointFile.misconception(
    "os.fsync came before the state was in the file: either nothing was written yet, or it still "
    "waited in Python's buffer."
)
class SyncedTooEarly(Reference):
    def save(self, state):
        temporary = self.path.with_name(f"{self.path.name}.tmp")
        try:
            with open(temporary, "wb") as file:
                os.fsync(file.fileno())
                torch.save(state, file)
            os.replace(temporary, self.path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@CheckpointFile.misconception(
    "The temporary file lies in another folder, perhaps on another file system. There a move is a "
    "copy, and a copy can be cut in half."
)
class WritesElsewhere(Reference):
    def save(self, state):
        with tempfile.TemporaryDirectory() as folder:
            temporary = Path(folder) / "checkpoint.tmp"
            with open(temporary, "wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path)


@CheckpointFile.misconception(
    "You copy the temporary file over the old one. A copy is a write in place like any other; only "
    "os.replace exchanges the files in one go."
)
class Copies(Reference):
    def save(self, state):
        temporary = self.path.with_name(f"{self.path.name}.tmp")
        try:
            with open(temporary, "wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            shutil.copyfile(temporary, self.path)
        finally:
            temporary.unlink(missing_ok=True)


@CheckpointFile.misconception(
    "When something raises, the temporary file stays. A run that fails often fills the disk."
)
class LeavesTheTemporaryFile(Reference):
    def save(self, state):
        temporary = self.path.with_name(f"{self.path.name}.tmp")
        with open(temporary, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path)


@CheckpointFile.misconception(
    "You clean up after an Exception. A KeyboardInterrupt is none, and leaves the temporary file: "
    "catch BaseException, or use finally."
)
class CleansUpAfterExceptionsOnly(Reference):
    def save(self, state):
        temporary = self.path.with_name(f"{self.path.name}.tmp")
        try:
            with open(temporary, "wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path)
        except Exception:
            temporary.unlink(missing_ok=True)
            raise


@CheckpointFile.misconception(
    "The error is swallowed. The run goes on and believes that it has a checkpoint: clean up, and "
    "let the exception through."
)
class SwallowsTheError(Reference):
    def save(self, state):
        try:
            super().save(state)
        except Exception:
            return


@CheckpointFile.misconception(
    "Without a file, load raises. A run that starts for the first time has none: return None."
)
class WantsAFile(Reference):
    def load(self):
        return torch.load(self.path, map_location="cpu", weights_only=True)


@CheckpointFile.misconception(
    "Without a file, load returns an empty dict. The task says None, and a fit that asks "
    "`resume is not None` would look for the weights in it."
)
class EmptyDictForNothing(Reference):
    def load(self):
        return super().load() or {}


@CheckpointFile.misconception(
    "The file is loaded with weights_only=False. That runs whatever program somebody put into it."
)
class TrustsTheFile(Reference):
    def load(self):
        if not self.path.exists():
            return None
        return torch.load(self.path, map_location="cpu", weights_only=False)


@CheckpointFile.misconception(
    "The tensors go back to the device that they came from, not to the CPU. Random states belong "
    "on the CPU, and a machine without that device cannot load the file at all: map_location."
)
class BackToTheirDevice(Reference):
    def load(self):
        return torch.load(self.path, weights_only=True) if self.path.exists() else None


@CheckpointFile.misconception(
    "A file that cannot be loaded is treated as if there were none, so that the run silently "
    "starts over. Let the exception through."
)
class StartsOverSilently(Reference):
    def load(self):
        try:
            return super().load()
        except Exception:
            return None


@CheckpointFile.misconception(
    "load returns the state that save was given in this process. A resumed run is another process: "
    "everything has to come from the file."
)
class RemembersInMemory(Reference):
    def save(self, state):
        self.state = state
        super().save(state)

    def load(self):
        return getattr(self, "state", None)


CheckpointFile.hints(
    "At every moment a whole checkpoint has to lie under the good name. Which call exchanges two "
    "files in one go?",
    "Three calls between torch.save and the end, in this order: what empties Python's buffer, what "
    "empties the system's, what exchanges the files?",
    "Two places can raise: while writing, and while moving. What has to be gone afterwards, and "
    "what has to be there?",
)
