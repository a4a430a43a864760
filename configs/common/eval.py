"""When and how a model is evaluated. ``docs/command_line.md`` explains every key."""

eval = dict(
    period_epochs=1.0,  # 0: only at the end
    period_iters=None,  # where it is set, period_epochs is not used
    batch_size=1,
    workers=None,  # null: as in training
    max_images=None,  # only the first N images
    max_detections=100,  # of an image, by score
    amp=False,  # evaluate in train.amp.dtype too
    fuse=True,  # on a CPU: convolutions fused and by Winograd's algorithm, see docs/speed.md
    visualize=0,  # pictures of the first N images, predictions beside ground truth
    visualize_threshold=0.3,  # lowest score drawn
)
