"""Predictions for the page: one image, one text, or the rows of a table, as plain values."""

from __future__ import annotations

import tempfile
import threading
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from metarun.adapted.learner import AdaptedLearner
from metarun.adapted.predictions import Predictions
from metarun.adapted.streamed import read_rows
from metarun.errors import UserError, require
from metarun.tasks.vision.images import readable_formats

IMAGES = ("image/png", "image/jpeg", "image/bmp", "image/gif", "image/webp", "image/tiff", "image/avif")
ACCEPTED = {"image": IMAGES, "text": ("text/plain",), "vector": ("text/csv",), "table": ("text/csv",)}
"""Content types that are read, by modality."""
MOST_PIXELS = 50_000_000
"""Largest number of pixels of an image, which a small file may claim to have."""
LONGEST_TEXT = 100_000
MOST_ROWS = 1000
SHOWN = 10
"""Number of classes whose probabilities are returned."""


class Answers:
    """Predictions of a learner for uploads, one at a time.

    Args:
        learner: The adapted learner.
    """

    def __init__(self, learner: AdaptedLearner) -> None:
        self.learner, self.modality = learner, learner.inputs.spec.modality
        self._turn = threading.Lock()

    def warm_up(self) -> None:
        """Load what the first upload would otherwise wait for, such as a frozen encoder."""
        if self.modality == "image":
            self.learner.predict([Image.new("RGB", (32, 32))])
        elif self.modality == "text":
            self.learner.predict(["a text"])

    def about(self) -> dict[str, Any]:
        """Return what the page says of the learner."""
        learner, about = self.learner, self.learner.about
        alone = about.get("leave_one_out", {})
        return {
            "name": about.get("origin", {}).get("name", type(learner.algorithm).__name__),
            "modality": self.modality,
            "accepted": ACCEPTED[self.modality],
            "examples": learner.support.y.shape[1],
            "classes": learner.classes,
            "abstain": learner.abstain,
            "columns": learner.columns.inputs if learner.columns else [],
            "accuracy": alone.get("accuracy"),
            "interval": alone.get("ci95"),
            "judged": alone.get("judged"),
        }

    def predict(self, body: bytes) -> list[dict[str, Any]]:
        """Predict an upload.

        Args:
            body: Content of an image or of a CSV file, or a text in UTF-8.

        Returns:
            For each input its ``name``, and the ``predicted`` class (``None`` if it is not certain enough) with the
            ``probabilities`` of the most probable classes, or the ``values``.

        Raises:
            UserError: It cannot be read, or is too large once it is decoded.
        """
        with self._turn:
            if self.modality == "image":
                names, predictions = ["image"], self._of_image(body)
            elif self.modality == "text":
                names, predictions = ["text"], self.learner.predict([_text(body)])
            else:
                names, predictions = self._of_table(body)
        found: list[dict[str, Any]] = []
        for i, name in enumerate(names):
            if not self.learner.classes:
                found.append({"name": name, "values": predictions.values[i].tolist()})
                continue
            order = predictions.probabilities[i].argsort(descending=True, stable=True)[:SHOWN].tolist()
            likely = [[self.learner.classes[c], float(predictions.probabilities[i, c])] for c in order]
            sure = self.learner.abstain is None or likely[0][1] >= self.learner.abstain
            found.append({"name": name, "predicted": likely[0][0] if sure else None, "probabilities": likely})
        return found

    def _of_image(self, body: bytes) -> Predictions:
        preparation = self.learner.inputs.preparation
        assert preparation is not None
        try:
            with Image.open(BytesIO(body), formats=readable_formats()) as opened:
                width, height = opened.size
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            raise UserError("this is not a readable image") from None
        require(width * height <= MOST_PIXELS, f"the image has {width} x {height} pixels; at most {MOST_PIXELS:,} are "
                "read")  # fmt: skip
        raw = torch.from_numpy(preparation(body, "the image"))[None]
        return self.learner.predict_prepared(self.learner.embed(raw))

    def _of_table(self, body: bytes) -> tuple[list[str], Predictions]:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "upload.csv")
            file.write_bytes(body)
            try:
                source = read_rows(self.learner, file)
            except UserError as error:
                message = str(error).replace(f"--query {file}", "the table").replace(str(file), "the table")
                raise UserError(message) from None
        require(len(source.items) <= MOST_ROWS, f"the table has {len(source.items):,} rows; at most {MOST_ROWS:,} are "
                "predicted here, and any number by `metarun predict`")  # fmt: skip
        return source.names(), self.learner.predict(source.items)


def _text(body: bytes) -> str:
    try:
        text = body.decode().strip()
    except UnicodeDecodeError:
        raise UserError("this is not text in UTF-8") from None
    require(bool(text), "the text is empty")
    require(len(text) <= LONGEST_TEXT, f"the text has {len(text):,} characters; at most {LONGEST_TEXT:,} are read")
    return text
