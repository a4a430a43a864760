"""The part of Detectron2's public API that d2proj uses, for machines without Detectron2.

It is found only where no ``detectron2`` is installed (see ``d2proj._detectron2``). It is
infrastructure alone: no network lives here. Same module paths, names and file formats as
Detectron2 0.6; written afresh from the documented behaviour.
"""

__version__ = "0.6+d2proj"
