"""COCO's 80 classes: the published checkpoints hold weights for them, but not their names.

Source: "Microsoft COCO: Common Objects in Context", Lin et al., arXiv:1405.0312, and the
categories of instances_val2017.json, whose ids leave gaps.
"""

_NAMES = """
1 person|bicycle|car|motorcycle|airplane|bus|train|truck|boat|traffic light|fire hydrant
13 stop sign|parking meter|bench|bird|cat|dog|horse|sheep|cow|elephant|bear|zebra|giraffe
27 backpack|umbrella
31 handbag|tie|suitcase|frisbee|skis|snowboard|sports ball|kite|baseball bat|baseball glove
41 skateboard|surfboard|tennis racket|bottle
46 wine glass|cup|fork|knife|spoon|bowl|banana|apple|sandwich|orange|broccoli|carrot|hot dog
59 pizza|donut|cake|chair|couch|potted plant|bed
67 dining table
70 toilet
72 tv|laptop|mouse|remote|keyboard|cell phone|microwave|oven|toaster|sink|refrigerator
84 book|clock|vase|scissors|teddy bear|hair drier|toothbrush
"""


def coco_classes() -> tuple[list[str], list[int]]:
    """Names and category ids of the 80 classes, in order."""
    names: list[str] = []
    ids: list[int] = []
    for line in _NAMES.strip().splitlines():
        first, _, run = line.partition(" ")
        part = run.split("|")
        names += part
        ids += range(int(first), int(first) + len(part))
    return names, ids
