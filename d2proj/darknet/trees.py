"""The class trees that ``tree=`` and ``map=`` of a cfg file name."""

from pathlib import Path

from d2proj.darknet.cfg import Section
from d2proj.errors import InputError
from d2proj.modeling.word_tree import WordTree, read_map, read_tree


def section_tree(section: Section, nodes: int, *, num_classes: int | None = None) -> WordTree:
    """The tree of a section.

    Args:
        section: has ``tree=``.
        nodes: how many it must have.
        num_classes: of the data. If ``map=`` has as many, they stand for its nodes.

    Raises:
        InputError: a file does not exist or is no good, or the tree is of another size.
    """
    try:
        tree = read_tree(find_file(section, "tree"))
        if len(tree) != nodes:
            section.fail(f"the class tree has {len(tree)} nodes, expected {nodes}", "tree")
        if num_classes in (None, nodes) or "map" not in section.options:
            return tree
        class_map = read_map(find_file(section, "map"), tree)
    except InputError as error:
        if str(error).startswith(section.file):
            raise
        section.fail(str(error), "tree")
    if len(class_map) != num_classes:
        section.fail(
            f"the map has {len(class_map)} classes, the data has {num_classes} (the tree "
            f"{len(tree)})",
            "map",
        )
    return WordTree(tree.parents.tolist(), tree.names, class_map)


def find_file(section: Section, key: str) -> Path:
    """A file that an option names: from the cfg file's folder, one above it, or the working folder.

    darknet looks in the working folder alone, which is the one above ``cfg``.

    Raises:
        InputError: there is none.
    """
    named = Path(section.text(key, ""))
    if named.is_absolute():
        places = [named]
    else:
        cfg = Path(section.file).resolve()
        places = [folder / named for folder in (*cfg.parents, Path.cwd())]
    for place in places:
        if place.is_file():
            return place
    where = "" if named.is_absolute() else ", from the cfg file's folder or one above it"
    return section.fail(f"{key}={named}: there is no such file{where}", key)
