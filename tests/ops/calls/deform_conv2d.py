from d2proj import ops
from tests.ops.calls import Call, Draw


def deform_conv2d(draw: Draw) -> Call:
    n, groups, offset_groups = draw.integer(0, 3), draw.choice(1, 2, 3), draw.choice(1, 2)
    c, out = groups * offset_groups * draw.choice(1, 3, 8), groups * draw.choice(0, 1, 5, 16)
    kernel = (draw.integer(1, 3), draw.integer(1, 3))
    stride = (draw.integer(1 - draw.chance(0.03), 3), draw.integer(1, 2))
    padding = (draw.integer(-draw.chance(0.03), 2), draw.integer(0, 2))
    dilation = (draw.integer(1 - draw.chance(0.03), 2), draw.integer(1, 2))
    size = (draw.integer(5, 12) - 5 * draw.chance(0.05), draw.integer(5, 12))
    out_size = [
        max(0, (s + 2 * p - d * (k - 1) - 1) // max(t, 1) + 1)
        for s, p, d, k, t in zip(size, padding, dilation, kernel, stride, strict=True)
    ]
    dtype, taps = draw.dtype(), offset_groups * kernel[0] * kernel[1]
    moved = dtype if draw.choice(True, False) else draw.choice(*draw.box_dtypes)
    input = draw.tensor(n, c, *size, dtype=dtype)
    offset = draw.tensor(n, 2 * taps, *out_size, dtype=moved, scale=3.0)
    mask = draw.choice(None, draw.tensor(n, taps, *out_size, dtype=moved))
    weight = draw.tensor(out, c // groups, *kernel, dtype=dtype)
    bias = draw.choice(None, draw.tensor(out, dtype=dtype))
    return Call(
        ops.deform_conv2d,
        (input, offset, weight, bias, stride, padding, dilation, mask),
        draw.sane,
        (0, 1, 2, 3, 7),
    )


CALLS = {"deform_conv2d": deform_conv2d}
