"""Learning rate over a run of any length: milestones are fractions of it."""

from detectron2.config import LazyCall as L

from d2proj.engine.schedule import CosineSchedule, MultiStepSchedule

# The published schedules drop at 60 000 and 80 000 of 90 000 iterations ("1x"), 12 epochs of COCO.
multistep = L(MultiStepSchedule)(
    milestones=[0.6667, 0.8889],
    gamma=0.1,
    warmup_iters=1000,
    warmup_factor=0.001,
)

cosine = L(CosineSchedule)(
    final_factor=0.01,
    warmup_iters=500,
    warmup_factor=0.001,
)

# darknet's policy=steps: of 500 200 batches of 64, after a burn_in of 1000.
darknet = L(MultiStepSchedule)(
    milestones=[400_000 / 500_200, 450_000 / 500_200],
    gamma=0.1,
    warmup_iters=1000,
    warmup_factor=0.0,
    warmup_power=4.0,
)
