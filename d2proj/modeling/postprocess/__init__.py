"""From scored boxes to detections."""

from d2proj.modeling.postprocess.nms import PerClassDIoUNMS, PerClassNMS

__all__ = ["PerClassDIoUNMS", "PerClassNMS"]
