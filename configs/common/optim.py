"""Optimisers. ``lr`` is for ``train.lr_batch_size`` images an iteration; it scales linearly."""

import torch
from detectron2.config import LazyCall as L
from detectron2.solver.build import get_default_optimizer_params

SGD = L(torch.optim.SGD)(
    params=L(get_default_optimizer_params)(weight_decay_norm=0.0),
    lr=0.02,
    momentum=0.9,
    weight_decay=1e-4,
)

AdamW = L(torch.optim.AdamW)(
    params=L(get_default_optimizer_params)(weight_decay_norm=0.0),
    lr=1e-4,
    betas=[0.9, 0.999],
    weight_decay=0.05,
)

# darknet's: learning rate and decay of its published cfg files, for batches of 64; neither biases
# nor batch normalisation decay.
darknet = L(torch.optim.SGD)(
    params=L(get_default_optimizer_params)(weight_decay_norm=0.0, weight_decay_bias=0.0),
    lr=1e-3,
    momentum=0.9,
    weight_decay=5e-4,
)
