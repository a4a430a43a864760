"""cfg files: published sizes; what is malformed is named by section and line."""

import random

import pytest

from d2proj.darknet import parse_cfg, plan_network
from d2proj.errors import InputError

# shared/data/README.md: values after the header of a complete weights file.
PUBLISHED = {
    "yolov1": 197_328_243,
    "yolov2": 50_983_561,
    "yolov2-tiny": 11_237_145,
    "yolov3": 62_001_757,
    "yolov3-spp": 63_052_381,
    "yolov3-tiny": 8_858_734,
    "yolov4": 64_429_405,
    "yolov4-tiny": 6_062_814,
    "yolov4-csp": 52_986_205,
    "darknet19": 20_856_776,
    "darknet53": 41_645_640,
}

SMALL = """
[net]
width = 32  ; blanks do not count
height=32
channels=3

[convolutional]
batch_normalize=1
filters=8
size=3
stride=2
pad=1
activation=leaky

# a comment
[convolutional]
filters=14
activation=linear

[yolo]
mask=0,1
anchors=4,5, 8,9
classes=2
num=2
"""


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_need_the_published_number_of_weights(data, name: str) -> None:
    assert plan_network(data / "cfg" / f"{name}.cfg").floats == PUBLISHED[name]


def test_every_published_file_is_understood(data) -> None:
    files = [*data.glob("cfg/*.cfg"), *data.glob("weights/*.cfg")]
    assert len(files) >= 20
    for file in files:
        assert plan_network(file).floats > 0


def test_shapes_follow_from_the_options() -> None:
    plan = plan_network(SMALL)
    assert [layer.output for layer in plan.layers] == [(8, 16, 16), (14, 16, 16), (14, 16, 16)]
    assert plan.floats == 3 * 8 * 9 + 4 * 8 + 8 * 14 + 14
    assert plan_network(SMALL, height=64, width=96).layers[0].output == (8, 32, 48)


def test_of_a_repeated_key_the_first_counts() -> None:
    (_, section) = parse_cfg("[net]\n[maxpool]\nsize=2\nsize=3\n")
    assert section.integer("size", 1, low=1, high=9) == 2


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[net]", "[image]", "line 2, [image]: the first section must be [net]"),
        ("width = 32", "width = -32", "line 3, [net]: width must be a whole number from 1"),
        ("width = 32", "width = 99999999", "width must be a whole number from 1"),
        ("width = 32", "width", "line 3: expected key=value, got 'width  ; blanks do not count'"),
        ("height=32", "", "[net]: height and width must be given"),
        ("filters=8", "filters=eight", "line 9, [convolutional] (layer 0): filters must be"),
        ("filters=8", "filters=-8", "filters must be a whole number"),
        ("filters=8", "filters=1000000000000", "filters must be a whole number"),
        ("filters=14", "filters=15", "[yolo] (layer 2): 2 anchors of 7 values need 14 channels"),
        ("activation=leaky", "activation=maybe", "activation must be one of"),
        ("anchors=4,5, 8,9", "anchors=4,5,nan,9", "anchors must be numbers"),
        ("anchors=4,5, 8,9", "anchors=4,5,8", "anchors must be 4 positive numbers, got 3"),
        ("mask=0,1", "mask=0,2", "mask must name anchors from 0 to 1"),
        ("size=3", "size=3\ngroups=2", "groups=2 does not divide the 3 input channels"),
        ("stride=2", "stride=0", "stride must be a whole number from 1"),
        ("[yolo]", "[transformer]", "[transformer] (layer 2): this section is not supported"),
        ("[yolo]", "[route]\nlayers=2\n[yolo]", "layers must name layers before this one (0 to 1)"),
        ("[yolo]", "[route]\nlayers=-9\n[yolo]", "layers must name layers before this one"),
        ("[yolo]", "[route]\n[yolo]", "layers must name at least one layer"),
        ("[yolo]", "[shortcut]\nfrom=2\n[yolo]", "from must name layers before this one"),
        ("[yolo]", "[yolo", "expected [section], got '[yolo'"),
        ("[yolo]", "[maxpool]\nsize=99\npadding=0\n[yolo]", "is too small"),
        ("[yolo]", "[upsample]\nstride=255\n[upsample]\nstride=255\n[yolo]", "is too large"),
    ],
)
def test_malformed_files_are_named_by_section_and_line(old: str, new: str, message: str) -> None:
    assert SMALL.count(old) >= 1
    with pytest.raises(InputError) as caught:
        plan_network(SMALL.replace(old, new, 1))
    assert message in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\n\n# only\n", b"\xff\xfe\x00\x01", b"key=1\n"])
def test_files_that_are_no_cfg(tmp_path, content: bytes) -> None:
    file = tmp_path / "x.cfg"
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"x\.cfg"):
        plan_network(file)
    with pytest.raises(InputError, match="cannot read the cfg file"):
        plan_network(tmp_path / "absent.cfg")


def test_random_damage_is_an_error_in_words_or_harmless(data) -> None:
    """Lines dropped, doubled, swapped, numbers replaced: never another exception, never slow."""
    original = (data / "cfg" / "yolov4-tiny.cfg").read_text().splitlines()
    numbers = ["-1", "0", "1e9", "99999999999999999999", "nan", "", "3,", "-2147483649", "7"]
    refused = 0
    for seed in range(300):
        draw = random.Random(seed)
        lines = list(original)
        for _ in range(draw.randint(1, 4)):
            i = draw.randrange(len(lines))
            kind = draw.choice(["drop", "double", "swap", "number", "cut"])
            if kind == "drop":
                del lines[i]
            elif kind == "double":
                lines.insert(i, lines[draw.randrange(len(lines))])
            elif kind == "swap":
                j = draw.randrange(len(lines))
                lines[i], lines[j] = lines[j], lines[i]
            elif kind == "number" and "=" in lines[i]:
                lines[i] = lines[i].split("=")[0] + "=" + draw.choice(numbers)
            else:
                lines[i] = lines[i][: draw.randint(0, len(lines[i]))]
        try:
            plan_network("\n".join(lines) + "\n")
        except InputError:
            refused += 1
    assert refused > 50
