"""How a run is done. ``docs/command_line.md`` explains every key; an unknown one is an error."""

train = dict(
    output_dir=None,  # null: output/<name of the config file>
    init_checkpoint=None,  # weights to start from (or to evaluate): .pth, .safetensors, .pkl
    seed=0,  # -1: drawn, and recorded in config.yaml
    device="auto",  # auto | cpu | cuda | cuda:N
    epochs=12.0,
    max_iter=None,  # where it is set, epochs is not used
    lr_batch_size=16,  # optimizer.lr is for so many images an iteration; 0: never scaled
    amp=dict(enabled=False, dtype="bf16"),  # bf16 | fp16
    clip_grad=dict(max_norm=None, norm_type=2.0),
    ema=dict(enabled=False, decay=0.9998, warmup_iters=2000),
    channels_last=True,
    deterministic=False,  # torch.use_deterministic_algorithms: slower, the same result on CUDA too
    ddp=dict(find_unused_parameters=False, broadcast_buffers=False),
    log_period=20,  # iterations
    tensorboard=True,
    checkpoint=dict(
        period_epochs=1.0,  # 0: only at the end (and on Ctrl-C)
        period_iters=None,  # where it is set, period_epochs is not used
        keep=3,  # periodic checkpoints that are kept; the best and the final are kept besides
        best_metric="bbox/AP",  # AP | AP50 | AP75 | APs | APm | APl | AP-<class>; null: no best
    ),
    fast_dev_run=False,  # a few iterations and images through everything
)
