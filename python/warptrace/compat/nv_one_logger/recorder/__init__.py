"""Recorders."""

from warptrace.compat.nv_one_logger.recorder.default_recorder import DefaultRecorder, ExportCustomizationMode

__all__ = ["DefaultRecorder", "ExportCustomizationMode"]
