"""Mixed precision: what is cast for a forward pass, and the loss scaling that float16 needs."""

from contextlib import AbstractContextManager

import torch

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """Autocast for one device and dtype, or none."""

    def __init__(self, device: torch.device, *, enabled: bool, dtype: str = "bf16") -> None:
        """Choose ``"bf16"`` or ``"fp16"`` for ``device``; not ``enabled``: float32."""
        self.device = device
        self.enabled = enabled
        self.dtype = DTYPES[dtype]
        # Gradients of float16 underflow without scaling; bfloat16 has float32's range.
        scales = enabled and self.dtype is torch.float16
        self.scaler = torch.amp.GradScaler(device.type, enabled=scales)

    def autocast(self) -> AbstractContextManager[object]:
        """The context for a forward pass."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.enabled)
