"""Residual blocks under checkpoints: a stack whose gradients are wrong without an error."""

# ruff: noqa: B023 - lambdas that read a loop variable are what this is about

from typing import ClassVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from course_utils.exercise import exercise
from course_utils.exercises.week11._recomputing import trained


@exercise(objectives=("ckpt.hazards", "ckpt.apply"))
class CheckpointedStack(nn.Module):
    """n residual blocks: x = x + block(x), and a LayerNorm(d) called `norm` after the last.

    `blocks` is a ModuleList; each block is a Sequential of Linear(d, d), GELU() and Dropout(p).
    Each block is one non-reentrant checkpoint when the module is in training mode and gradients are
    enabled; otherwise it runs plainly. Output, gradients and the use of random numbers equal those
    of the plain model with the same seed. The input is left as it is.
    """

    def __init__(self, d: int, n: int, p: float):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(d, d), nn.GELU(), nn.Dropout(p)) for _ in range(n)
        )
        self.norm = nn.LayerNorm(d)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        recompute = self.training and torch.is_grad_enabled()
        for block in self.blocks:
            x = x + (checkpoint(block, x, use_reentrant=False) if recompute else block(x))
        return self.norm(x)


def filled(implementation, draw, n, p, training=True):
    """A model with drawn weights, its input and an incoming gradient."""
    d, batch = draw.sizes(2, low=3)
    model = implementation(d, n, p).to(draw.device).train(training)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            parameter.copy_(draw.normal(*parameter.shape) / 2 + name.startswith("norm"))
    return model, draw.normal(batch, d), draw.normal(batch, d)


def step(implementation, draw, n, p, training=True, requires_grad=False, apart=()):
    """Forward and backward: gradients, calls of the blocks, what was kept, flags."""
    model, x, upstream = filled(implementation, draw, n, p, training)
    for i in apart:  # this block is in the other mode
        model.blocks[i].train(not training)
    x.requires_grad_(requires_grad)
    tensors = {**dict(model.named_parameters()), "x": x}
    seen = trained(lambda: model(x), model.blocks, tensors, upstream)
    return seen | {"x.requires_grad": x.requires_grad}


@CheckpointedStack.case
def training_without_dropout(implementation, draw):
    return step(implementation, draw, 3, 0.0, requires_grad=True)


@CheckpointedStack.case
def training_with_dropout(implementation, draw):
    return step(implementation, draw, 4, 0.4, requires_grad=True, apart=[1])


@CheckpointedStack.case
def data_that_do_not_require_grad(implementation, draw):
    return step(implementation, draw, 3, 0.0)


@CheckpointedStack.case
def evaluation_mode_with_gradients(implementation, draw):
    return step(implementation, draw, 2, 0.4, training=False, requires_grad=True)


@CheckpointedStack.case
def both_modes_under_no_grad(implementation, draw):
    model, x, upstream = filled(implementation, draw, 2, 0.4)
    seen = []
    with torch.no_grad():
        for training in (True, False):
            model.train(training)
            seen.append(trained(lambda: model(x), model.blocks, {"x": x}, upstream))
    return seen


@CheckpointedStack.case
def names_in_the_state_dict(implementation, draw):
    d, n = draw.sizes(2)
    state = implementation(d, n, 0.1).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


class Parts(nn.Module):
    """The answer in parts that can be exchanged."""

    options: ClassVar = {"use_reentrant": False}

    def __init__(self, d, n, p):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(d, d), nn.GELU(), nn.Dropout(p)) for _ in range(n)
        )
        self.norm = nn.LayerNorm(d)

    def recompute(self):
        return self.training and torch.is_grad_enabled()

    def block(self, block, x):
        return checkpoint(block, x, **self.options)

    def forward(self, x):
        for block in self.blocks:
            x = x + (self.block(block, x) if self.recompute() else block(x))
        return self.norm(x)


@CheckpointedStack.misconception(
    "In the backward pass every segment is recomputed with the last block: the function that you "
    "hand over looks up its loop variable when it is called, and it is called again after the loop."
)
class late_binding(Parts):
    def forward(self, x):
        for block in self.blocks:
            if self.recompute():
                x = x + checkpoint(lambda t: block(t), x, use_reentrant=False)
            else:
                x = x + block(x)
        return self.norm(x)


@CheckpointedStack.misconception(
    "You use the reentrant variant. It looks at its inputs alone: where the data do not require "
    "grad, what comes out of the blocks does not either, and only the norm learns."
)
class reentrant(Parts):
    options: ClassVar = {"use_reentrant": True}


@CheckpointedStack.misconception(
    "The recomputation draws another dropout mask than the forward pass did. Without dropout all "
    "is well; with it the random state has to be the same in both."
)
class random_state(Parts):
    options: ClassVar = {"use_reentrant": False, "preserve_rng_state": False}


@CheckpointedStack.misconception(
    "In evaluation mode the blocks run twice as well. The contract asks for checkpoints in "
    "training only; ask for the mode, not just for gradients."
)
class recomputes_in_eval(Parts):
    def recompute(self):
        return torch.is_grad_enabled()


@CheckpointedStack.misconception(
    "Each block is asked for its own mode. A block may be in evaluation mode while the module "
    "trains, and is a checkpoint then too: it is the module's mode that counts."
)
class each_block_asked(Parts):
    def forward(self, x):
        for block in self.blocks:
            recompute = block.training and torch.is_grad_enabled()
            x = x + (self.block(block, x) if recompute else block(x))
        return self.norm(x)


@CheckpointedStack.misconception(
    "There is no checkpoint left. The gradients are right, and the memory is that of the plain "
    "model."
)
class nothing_checkpointed(Parts):
    def recompute(self):
        return False


@CheckpointedStack.misconception(
    "All blocks are one checkpoint. Its recomputation holds the activations of all of them at "
    "once; each block is to be one by itself."
)
class one_checkpoint_for_all(Parts):
    def blocks_and_sums(self, x):
        for block in self.blocks:
            x = x + block(x)
        return x

    def forward(self, x):
        if self.recompute():
            return self.norm(checkpoint(self.blocks_and_sums, x, use_reentrant=False))
        return self.norm(self.blocks_and_sums(x))


@CheckpointedStack.misconception(
    "The residual connection is lost: what a block gives is added to its input and does not "
    "replace it."
)
class residual_lost(Parts):
    def forward(self, x):
        for block in self.blocks:
            x = self.block(block, x) if self.recompute() else block(x)
        return self.norm(x)


@CheckpointedStack.misconception(
    "The input is made to require grad, so that the reentrant variant works. That changes the "
    "caller's tensor, which now collects a gradient. The other variant does without."
)
class makes_x_require_grad(Parts):
    options: ClassVar = {"use_reentrant": True}

    def forward(self, x):
        return super().forward(x.requires_grad_() if self.recompute() else x)


@CheckpointedStack.misconception(
    "Dropout is outside the checkpoint: its mask and its input stay in memory. A block is a "
    "checkpoint as a whole."
)
class dropout_outside(Parts):
    def block(self, block, x):
        return block[2](checkpoint(block[:2], x, use_reentrant=False))


@CheckpointedStack.misconception(
    "You turn gradients on in forward, also for a caller who is inside no_grad, and pay for a "
    "graph that nobody wants."
)
class turns_gradients_on(Parts):
    def forward(self, x):
        with torch.set_grad_enabled(self.training or torch.is_grad_enabled()):
            return super().forward(x)


@CheckpointedStack.misconception(
    "Each segment is recomputed with its own block now. Two faults are left: the recomputation "
    "draws another dropout mask, and in evaluation mode the blocks should run plainly."
)
class only_the_name_mended(Parts):
    options: ClassVar = {"use_reentrant": False, "preserve_rng_state": False}

    def recompute(self):
        return True


@CheckpointedStack.misconception(
    "The random state is restored now, but every segment is still recomputed with the last block, "
    "in evaluation mode as well: there is more than one fault here."
)
class only_the_random_state_mended(Parts):
    def forward(self, x):
        for block in self.blocks:
            x = x + checkpoint(lambda t: block(t), x, use_reentrant=False)
        return self.norm(x)


@CheckpointedStack.misconception(
    "The blocks are in a plain list, which a module does not look into: they have no entry in the "
    "state dict, and no optimizer would see them."
)
class blocks_in_a_plain_list(Parts):
    def __init__(self, d, n, p):
        super().__init__(d, n, p)
        blocks = list(self.blocks)
        del self.blocks
        self.blocks = blocks


@CheckpointedStack.broken
class BrokenCheckpointedStack(nn.Module):
    def __init__(self, d, n, p):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(d, d), nn.GELU(), nn.Dropout(p)) for _ in range(n)
        )
        self.norm = nn.LayerNorm(d)

    def forward(self, x):
        for block in self.blocks:
            x = x + checkpoint(lambda t: block(t), x, use_reentrant=False, preserve_rng_state=False)
        return self.norm(x)


CheckpointedStack.hints(
    "Compare the gradients with those of a plain loop over the same blocks, block by block.",
    "With p = 0, which blocks are wrong, and which one is right? Why that one?",
    "With p = 0 all gradients are right now? Then try p = 0.5. And count how often each block runs "
    "in evaluation mode.",
)
