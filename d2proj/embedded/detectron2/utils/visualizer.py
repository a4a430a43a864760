"""Drawing of labelled boxes on images."""

import colorsys
from collections.abc import Mapping, Sequence
from enum import Enum, unique
from typing import Any

import matplotlib.colors
import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from detectron2.structures import Boxes, BoxMode, Instances

__all__ = ["ColorMode", "VisImage", "Visualizer"]

Color = Any  # whatever matplotlib understands: a name, "#rrggbb", (r, g, b) in 0..1


@unique
class ColorMode(Enum):
    """How instances are told apart.

    ``IMAGE``: each has a colour of its own. ``SEGMENTATION``: each class has. ``IMAGE_BW``: as
    ``IMAGE``, with predictions drawn on a grey image.
    """

    IMAGE = 0
    SEGMENTATION = 1
    IMAGE_BW = 2


class VisImage:
    """An image that is drawn on with matplotlib, through ``ax``, in pixels of the image."""

    def __init__(self, img: np.ndarray, scale: float = 1.0) -> None:
        """Begin with an image.

        Args:
            img: (H, W, 3), RGB, 0..255.
            scale: factor on both sides of the result.
        """
        self.img = img
        self.scale = scale
        self.height, self.width = img.shape[:2]
        # A figure of its own, outside of pyplot: nothing global to close, any thread may draw.
        self.fig = Figure(frameon=False)
        self.dpi = self.fig.get_dpi()
        # Matplotlib cuts off fractions of pixels, which rounding may have left just below.
        self.fig.set_size_inches(
            (self.width * scale + 1e-2) / self.dpi, (self.height * scale + 1e-2) / self.dpi
        )
        self.canvas = FigureCanvasAgg(self.fig)
        self.ax = self.fig.add_axes((0.0, 0.0, 1.0, 1.0))
        self.ax.axis("off")
        self.reset_image(img)

    def reset_image(self, img: np.ndarray) -> None:
        """Replace the image under the drawing; same format as before."""
        pixels = Image.fromarray(np.clip(img, 0, 255).astype(np.uint8))
        size = (int(self.width * self.scale + 1e-2), int(self.height * self.scale + 1e-2))
        for former in list(self.fig.images):
            former.remove()
        # Pixel on pixel: imshow resamples, and some releases of matplotlib shift by a pixel then.
        self.fig.figimage(np.asarray(pixels.resize(size, Image.Resampling.NEAREST)), zorder=-1)
        self.ax.set_xlim(0, self.width)
        self.ax.set_ylim(self.height, 0)

    def get_image(self) -> np.ndarray:
        """What was drawn: (H * scale, W * scale, 3), RGB, uint8."""
        self.canvas.draw()
        return np.asarray(self.canvas.buffer_rgba())[..., :3].copy()

    def save(self, filepath: str) -> None:
        """Write what was drawn to a file in the format of its extension."""
        Image.fromarray(self.get_image()).save(filepath)


class Visualizer:
    """Draws boxes, labels, predictions and annotations; every method returns the ``VisImage``."""

    def __init__(
        self,
        img_rgb: np.ndarray,
        metadata: Any = None,
        scale: float = 1.0,
        instance_mode: ColorMode = ColorMode.IMAGE,
        font_size_scale: float = 1.0,
    ) -> None:
        """Begin with an image.

        Args:
            img_rgb: (H, W, 3), 0..255.
            metadata: the data set's; ``thing_classes`` are names, ``thing_colors`` are RGB 0..255.
            scale: factor on both sides of the result.
            instance_mode: how instances are told apart.
            font_size_scale: factor on the size of texts.
        """
        self.img = np.clip(np.asarray(img_rgb), 0, 255).astype(np.uint8)
        self.metadata = metadata
        self.output = VisImage(self.img, scale)
        self._instance_mode = instance_mode
        side = np.sqrt(self.output.height * self.output.width)
        self._default_font_size = max(side / 90, 10 / scale) * font_size_scale

    def get_output(self) -> VisImage:
        """What was drawn."""
        return self.output

    def draw_instance_predictions(self, predictions: Instances) -> VisImage:
        """Draw detections.

        Args:
            predictions: with ``pred_boxes``, and optionally ``pred_classes`` and ``scores``.
        """
        fields = predictions.get_fields()
        classes = _to_list(fields.get("pred_classes"))
        labels = self._labels(classes, _to_list(fields.get("scores")))
        if self._instance_mode == ColorMode.IMAGE_BW:
            self.output.reset_image(_gray(self.img))
        return self.overlay_instances(
            boxes=fields.get("pred_boxes"),
            labels=labels,
            assigned_colors=self._colors(classes, len(predictions)),
        )

    def draw_dataset_dict(self, dic: Mapping[str, Any]) -> VisImage:
        """Draw the annotations of a data set's image.

        Args:
            dic: in Detectron2's format; of every annotation, ``bbox``, ``bbox_mode``,
                ``category_id`` and ``iscrowd`` are used. A rotated box is drawn as the upright box
                around it.
        """
        annotations = dic.get("annotations") or []
        boxes = [
            BoxMode.convert(list(one["bbox"]), one["bbox_mode"], BoxMode.XYXY_ABS)
            for one in annotations
        ]
        classes = [one["category_id"] for one in annotations]
        crowd = [bool(one.get("iscrowd", 0)) for one in annotations]
        return self.overlay_instances(
            boxes=np.asarray(boxes, dtype=np.float64).reshape(-1, 4),
            labels=self._labels(classes, None, crowd),
            assigned_colors=self._colors(classes, len(classes)),
        )

    def overlay_instances(
        self,
        *,
        boxes: Boxes | torch.Tensor | np.ndarray | None = None,
        labels: Sequence[str] | None = None,
        assigned_colors: Sequence[Color] | None = None,
    ) -> VisImage:
        """Draw boxes with labels, large ones first.

        Args:
            boxes: N boxes (x1, y1, x2, y2) in pixels.
            labels: N texts; default: none.
            assigned_colors: N colours; default: all different.

        Raises:
            AssertionError: the numbers differ.
        """
        corners = _to_array(boxes)
        count = len(corners)
        assert labels is None or len(labels) == count, f"{len(labels or ())} labels, {count} boxes"
        colors = [_palette(i) for i in range(count)] if assigned_colors is None else assigned_colors
        assert len(colors) == count, f"{len(colors)} colours, {count} boxes"
        areas = np.prod(corners[:, 2:] - corners[:, :2], axis=1)
        for index in np.argsort(-areas, kind="stable"):
            self.draw_box(corners[index], edge_color=colors[index])
            if labels is not None:
                self._draw_label(labels[index], corners[index], colors[index])
        return self.output

    def draw_box(
        self,
        box_coord: Sequence[float],
        alpha: float = 0.5,
        edge_color: Color = "g",
        line_style: str = "-",
    ) -> VisImage:
        """Draw the outline of a box.

        Args:
            box_coord: (x1, y1, x2, y2) in pixels.
            alpha: opacity.
            edge_color: colour.
            line_style: matplotlib's.
        """
        x1, y1, x2, y2 = (float(value) for value in box_coord)
        width = max(self._default_font_size / 4, 1) * self.output.scale
        outline = Rectangle(
            (x1, y1),
            x2 - x1,
            y2 - y1,
            fill=False,
            edgecolor=edge_color,
            linewidth=width,
            linestyle=line_style,
            alpha=alpha,
        )
        self.output.ax.add_patch(outline)
        return self.output

    def draw_text(
        self,
        text: str,
        position: tuple[float, float],
        *,
        font_size: float | None = None,
        color: Color = "g",
        horizontal_alignment: str = "center",
        rotation: float = 0,
    ) -> VisImage:
        """Write a text on a dark ground.

        Args:
            text: the text.
            position: (x, y) of its upper end, in pixels.
            font_size: default: one that suits the image's size.
            color: colour; a lighter shade of it is used.
            horizontal_alignment: which end of the text is at x; matplotlib's.
            rotation: degrees counter-clockwise.
        """
        lighter = (np.asarray(matplotlib.colors.to_rgb(color)) + 1) / 2
        x, y = (float(value) for value in position)
        self.output.ax.text(
            x,
            y,
            text,
            size=(font_size or self._default_font_size) * self.output.scale,
            family="sans-serif",
            bbox={"facecolor": "black", "alpha": 0.8, "pad": 0.7, "edgecolor": "none"},
            verticalalignment="top",
            horizontalalignment=horizontal_alignment,
            color=lighter,
            zorder=10,
            rotation=rotation,
            parse_math=False,  # class names may hold dollar signs
        )
        return self.output

    def _draw_label(self, label: str, corners: np.ndarray, color: Color) -> None:
        x1, y1, x2, y2 = corners
        # In a box too low to hold it, the text would hide what is boxed: it goes below, or above.
        line = 2 * self._default_font_size
        y = y1
        if y2 - y1 < 2 * line:
            y = y2 if y2 + line < self.output.height else max(y1 - line, 0)
        share = np.clip(np.sqrt(max((x2 - x1) * (y2 - y1), 0)) / 60, 0.6, 1.0)
        self.draw_text(
            label,
            (x1, y),
            font_size=self._default_font_size * share,
            color=color,
            horizontal_alignment="left",
        )

    def _metadata(self, name: str) -> Any:
        return getattr(self.metadata, name, None)

    def _labels(
        self,
        classes: list[int] | None,
        scores: list[float] | None,
        crowd: list[bool] | None = None,
    ) -> list[str] | None:
        """Class names, scores in percent, and a mark on crowds."""
        if classes is None and scores is None:
            return None
        count = len(classes if classes is not None else scores or [])
        names = self._metadata("thing_classes")
        labels = []
        for i in range(count):
            parts = []
            if classes is not None:
                parts.append(names[classes[i]] if names else str(classes[i]))
            if scores is not None:
                parts.append(f"{scores[i] * 100:.0f}%")
            labels.append(" ".join(parts) + ("|crowd" if crowd is not None and crowd[i] else ""))
        return labels

    def _colors(self, classes: list[int] | None, count: int) -> list[Color]:
        own = self._metadata("thing_colors")
        if classes is None or self._instance_mode != ColorMode.SEGMENTATION:
            return [_palette(i) for i in range(count)]
        if own:
            return [tuple(channel / 255 for channel in own[one]) for one in classes]
        return [_palette(one) for one in classes]


def _palette(index: int) -> tuple[float, float, float]:
    """Colours that stay far apart however many there are: steps of the golden ratio in hue."""
    hue = (0.33 + index * 0.618034) % 1.0
    return colorsys.hsv_to_rgb(hue, 0.9, 1.0 if index % 2 == 0 else 0.75)


def _gray(img: np.ndarray) -> np.ndarray:
    return np.repeat(img.astype(np.float32).mean(axis=2, keepdims=True), 3, axis=2)


def _to_list(values: Any) -> list[Any] | None:
    if values is None:
        return None
    return values.tolist() if isinstance(values, torch.Tensor | np.ndarray) else list(values)


def _to_array(boxes: Boxes | torch.Tensor | np.ndarray | None) -> np.ndarray:
    if boxes is None:
        return np.zeros((0, 4))
    if isinstance(boxes, Boxes):
        boxes = boxes.tensor
    if isinstance(boxes, torch.Tensor):
        boxes = boxes.detach().cpu().numpy()
    corners = np.asarray(boxes, dtype=np.float64)
    assert corners.shape[1:] == (4,), f"boxes have the shape (N, 4), got {corners.shape}"
    return corners
