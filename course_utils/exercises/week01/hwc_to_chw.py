"""Channel-last to channel-first: moving an axis is not regrouping memory."""

import torch

from course_utils.cases import attempt
from course_utils.exercise import exercise


@exercise(objectives=("tensor.layout_conversion", "tensor.view_reshape", "tensor.dtype_promotion"))
def hwc_to_chw(images: torch.Tensor) -> torch.Tensor:
    """Turn channel-last images into channel-first ones, ready for a convolution.

    images: (H, W, C) for one image or (N, H, W, C) for a batch; N may be 0 or 1. Any other number
    of dimensions raises ValueError. Return (C, H, W) or (N, C, H, W), contiguous.

    Element [.., c, i, j] of the result is element [.., i, j, c] of the input. uint8 input becomes
    float32 divided by 255; floating-point input keeps its dtype and its values. The input is not
    modified.
    """
    if images.ndim not in (3, 4):
        raise ValueError(f"expected (H, W, C) or (N, H, W, C), got {tuple(images.shape)}")
    planes = images.movedim(-1, -3).contiguous()
    return planes if planes.is_floating_point() else planes.float() / 255


def seen(result):
    """The result and how it lies in memory."""
    contiguous = isinstance(result, torch.Tensor) and result.is_contiguous()
    return {"result": result, "result.is_contiguous()": contiguous}


@hwc_to_chw.case
def a_batch_of_photographs(implementation, draw):
    batch, height, width = draw.sizes(3, low=2, high=5)
    brightest = draw.whole(100, 200)
    images = draw.integers(0, brightest, batch, height, width, 3, dtype=torch.uint8)
    return seen(implementation(images))


@hwc_to_chw.case
def one_photograph(implementation, draw):
    height, width = draw.sizes(2, low=2, high=5)
    return seen(implementation(draw.integers(0, 200, height, width, 3, dtype=torch.uint8)))


@hwc_to_chw.case
def a_batch_of_one_photograph(implementation, draw):
    height, width = draw.sizes(2, low=2, high=5)
    return seen(implementation(draw.integers(0, 200, 1, height, width, 3, dtype=torch.uint8)))


@hwc_to_chw.case
def square_images(implementation, draw):
    side = draw.whole(2, 4)
    return seen(implementation(draw.normal(2, side, side, 3)))


@hwc_to_chw.case
def one_channel(implementation, draw):
    height, width = draw.sizes(2, low=2, high=5)
    return seen(implementation(draw.integers(0, 200, height, width, 1, dtype=torch.uint8)))


@hwc_to_chw.case
def six_channels_in_float64(implementation, draw):
    height, width = draw.sizes(2, low=2, high=4)
    return seen(implementation(draw.normal(height, width, 6, dtype=torch.float64)))


@hwc_to_chw.case
def float_images_with_values_up_to_255(implementation, draw):
    height, width = draw.sizes(2, low=2, high=4)
    return seen(implementation(draw.uniform(2, height, width, 3, high=255)))


@hwc_to_chw.case
def nearly_black_photographs(implementation, draw):
    height, width = draw.sizes(2, low=4, high=6)
    return seen(implementation(draw.integers(0, 1, height, width, 3, dtype=torch.uint8)))


@hwc_to_chw.case
def every_second_pixel_of_a_larger_image(implementation, draw):
    height, width = draw.sizes(2, low=4, high=7)
    return seen(implementation(draw.normal(height, width, 3)[1:, ::2]))


@hwc_to_chw.case
def images_that_are_views_of_channel_first_memory(implementation, draw):
    channels, height, width = draw.sizes(3, high=4)
    return seen(implementation(draw.normal(2, channels, height, width).permute(0, 2, 3, 1)))


@hwc_to_chw.case
def a_batch_of_no_images(implementation, draw):
    height, width, channels = draw.sizes(3)
    return seen(
        implementation(draw.integers(0, 255, 0, height, width, channels, dtype=torch.uint8))
    )


@hwc_to_chw.case
def too_few_or_too_many_dimensions(implementation, draw):
    flat, nested = draw.normal(*draw.sizes(2)), draw.normal(1, 2, 3, 2, 1)
    return attempt(implementation, flat), attempt(implementation, nested)


@hwc_to_chw.misconception(
    "The shape is right and the pixels are scrambled: reshape keeps the elements in their old "
    "order and only relabels them. Moving an axis changes which elements are neighbors."
)
def reshape_not_permute(images):
    result = hwc_to_chw.reference(images)
    planes = images.reshape(result.shape)
    return planes if images.is_floating_point() else planes.float() / 255


@hwc_to_chw.misconception(
    "The channels are in front, but rows and columns traded places: you exchanged two axes. "
    "Only the channel axis moves forward; height and width keep their order behind it."
)
def reversed_axes(images):
    return hwc_to_chw.reference(images).transpose(-1, -2).contiguous()


@hwc_to_chw.misconception(
    "The values are right, but the result is a strided view. The task asks for contiguous "
    "memory, plane after plane."
)
def not_contiguous(images):
    hwc_to_chw.reference(images)
    planes = images.movedim(-1, -3)
    return planes if images.is_floating_point() else planes.float() / 255


@hwc_to_chw.misconception(
    "Float images were divided by 255 too. They are already in units of their own; only "
    "whole-number pixels are scaled."
)
def scales_floats(images):
    planes = hwc_to_chw.reference(images)
    return planes.float() / 255 if images.is_floating_point() else planes


@hwc_to_chw.misconception(
    "Floor division turned every pixel below 255 into 0. Divide so that fractions survive."
)
def integer_division(images):
    result = hwc_to_chw.reference(images)
    return result if images.is_floating_point() else result.floor()


@hwc_to_chw.misconception(
    "You let the values decide whether to scale. A dark photograph has small whole numbers "
    "and a float image may have large ones: look at the dtype. An empty batch has no largest "
    "value at all."
)
def scales_by_value(images):
    planes = hwc_to_chw.reference(images.double())
    planes = planes / 255 if planes.max() > 1 else planes
    return planes.to(images.dtype if images.is_floating_point() else torch.float32)


@hwc_to_chw.misconception(
    "You divided by the brightest pixel that is there. 255 is the brightest a uint8 pixel can "
    "be: an image in twilight should stay dark."
)
def divides_by_maximum(images):
    result = hwc_to_chw.reference(images)
    return result if images.is_floating_point() else result / result.max()


@hwc_to_chw.misconception(
    "You divided by 256, the number of values a pixel can take. The largest of them is 255, "
    "and that one should become exactly 1."
)
def divides_by_256(images):
    result = hwc_to_chw.reference(images)
    return result if images.is_floating_point() else result * 255 / 256


@hwc_to_chw.misconception(
    "Every result came out as float32. Only uint8 input changes its dtype; float64 images "
    "stay float64."
)
def always_float32(images):
    return hwc_to_chw.reference(images).float()


@hwc_to_chw.misconception(
    "A single image came back as a batch of one. (H, W, C) becomes (C, H, W); an axis you add "
    "for your own convenience has to go again."
)
def keeps_an_added_axis(images):
    result = hwc_to_chw.reference(images)
    return result if images.ndim == 4 else result.unsqueeze(0)


@hwc_to_chw.misconception(
    "A batch of one image came back as a single image. Whether there is a batch axis is a "
    "question about the number of dimensions, not about the size of the first."
)
def a_batch_of_one_loses_its_axis(images):
    result = hwc_to_chw.reference(images)
    return result.squeeze(0) if images.ndim == 4 else result


@hwc_to_chw.misconception(
    "You changed the tensor you were given: a function whose name ends in _ works in place. "
    "Use its sibling without the underscore."
)
def edits_the_input(images):
    result = hwc_to_chw.reference(images)
    images.transpose_(-1, -2).transpose_(-2, -3)
    return result


@hwc_to_chw.misconception(
    "A tensor with 2 or 5 dimensions went through, or failed with an error of another kind. "
    "It is no image and no batch of images; say so with ValueError before you work on it."
)
def any_number_of_dimensions(images):
    planes = images.movedim(-1, -3).contiguous()
    return planes if images.is_floating_point() else planes.float() / 255


@hwc_to_chw.broken
def broken_hwc_to_chw(images):
    *batch, h, w, c = images.shape
    planes = images.reshape(*batch, c, h, w)
    return planes.float() / 255


hwc_to_chw.hints(
    "Make a pure-red image by hand, convert it, and look at the mean of each channel.",
    (
        "Some operations reorder axes, others regroup memory. Which kind do you need, and which "
        "one is in use?"
    ),
    "Whether to divide is a question about the dtype, not about the values.",
)
