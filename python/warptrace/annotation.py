"""Labels for a recorder: which step, epoch or request this process is at.

>>> writer = AnnotationWriter()
>>> for step in range(3):
...     _ = writer.write({"step": step})
"""

from __future__ import annotations

from warptrace._native import AnnotationCounts, AnnotationWriter, encode_annotation

__all__ = ["AnnotationCounts", "AnnotationWriter", "encode_annotation"]
