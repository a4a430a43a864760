from d2proj import ops
from tests.ops.calls import Call, Draw


def shape(draw: Draw) -> tuple[int, ...]:
    """Both sides of a vector, of a block of rows, and empty."""
    sides = (0, 1, 3, 8, 17, 40)
    return draw.integer(0, 3), draw.choice(0, 1, 5, 33), draw.choice(*sides), draw.choice(*sides)


def corner_pool(draw: Draw) -> Call:
    x = draw.tensor(*shape(draw), dtype=draw.dtype())
    direction = draw.choice("top", "bottom", "left", "right")
    return Call(ops.corner_pool, (x, "up" if draw.chance(0.02) else direction), draw.sane, (0,))


def corner_pool_pair(draw: Draw) -> Call:
    size, dtype = shape(draw), draw.dtype()
    inputs = (draw.tensor(*size, dtype=dtype), draw.tensor(*size, dtype=dtype))
    corner = draw.choice("top_left", "bottom_right")
    return Call(ops.corner_pool_pair, (*inputs, corner), draw.sane, (0, 1))


CALLS = {"corner_pool": corner_pool, "corner_pool_pair": corner_pool_pair}
