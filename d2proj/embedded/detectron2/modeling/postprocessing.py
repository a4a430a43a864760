"""From the frame of the network's input to the frame of the original image."""

from detectron2.structures import Instances

__all__ = ["detector_postprocess"]


def detector_postprocess(results: Instances, output_height: int, output_width: int) -> Instances:
    """Scale detected boxes to the size of the original image.

    Args:
        results: detections with ``pred_boxes`` (or, of a proposal network, ``proposal_boxes``) in
            the frame of ``results.image_size``. They stay as they are.
        output_height: height of the original image in pixels.
        output_width: width of the original image in pixels.

    Returns:
        The instances whose boxes, scaled and clipped to the original image, have an area; their
        other fields unchanged.

    Raises:
        AssertionError: there are no boxes, or boxes that are not finite.
    """
    name = next((n for n in ("pred_boxes", "proposal_boxes") if results.has(n)), None)
    assert name is not None, "the instances have neither pred_boxes nor proposal_boxes"
    height, width = results.image_size
    boxes = results.get(name).clone()
    boxes.scale(output_width / width, output_height / height)
    boxes.clip((output_height, output_width))
    resized = Instances((output_height, output_width), **results.get_fields())
    resized.set(name, boxes)
    return resized[boxes.nonempty()]
