"""Which data (``dataset``: paths, see docs/data.md) and how it is loaded (``data``)."""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L

from d2proj.data import dataset_defaults

dataset = dataset_defaults()

data = dict(
    batch_size=16,  # images an iteration, all processes together
    workers=4,  # loader processes for each training process
    aspect_ratio_grouping=True,
    repeat_threshold=0.0,  # LVIS's repeat factor sampling below this frequency; 0: off
    filter_empty=True,  # leave out images without boxes in training
    on_bad_image="raise",  # raise | skip (counted and reported)
    image_format="BGR",
    train_augmentations=[
        L(T.ResizeShortestEdge)(
            short_edge_length=[640, 672, 704, 736, 768, 800],
            sample_style="choice",
            max_size=1333,
        ),
        L(T.RandomFlip)(horizontal=True),
    ],
    batch_augmentations=[],  # of whole batches, after the images' own
    val_augmentations=[L(T.ResizeShortestEdge)(short_edge_length=800, max_size=1333)],
)
