"""Exporters."""

from warptrace.compat.nv_one_logger.exporter.exporter import Exporter
from warptrace.compat.nv_one_logger.exporter.file_exporter import FileExporter
from warptrace.compat.nv_one_logger.exporter.logger_exporter import LoggerExporter

__all__ = ["Exporter", "FileExporter", "LoggerExporter"]
