"""Parts of detectors; :mod:`d2proj.modeling.meta_arch` composes them."""
