"""From scored boxes to detections."""

from d2proj.modeling.postprocess.nms import PerClassNMS

__all__ = ["PerClassNMS"]
