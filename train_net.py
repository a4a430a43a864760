#!/usr/bin/env python3
"""Train or evaluate a detector: ``python train_net.py --config-file FILE [key=value ...]``."""

from d2proj.engine.command_line import main

if __name__ == "__main__":
    main()
