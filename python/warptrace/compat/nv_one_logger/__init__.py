"""The documented names of the packages ``nv-one-logger-*`` 2.3.1, over warptrace's own spans and training telemetry.

Put ``warptrace.compat.`` before ``nv_one_logger`` in the imports: that is the whole migration. Modules are where they
were (``api.config``, ``training_telemetry.api``, ``otel.exporter.otel_exporter``, ...), so nothing is loaded that is
not imported. The configuration classes need pydantic, and the exporters to OpenTelemetry and W&B and the Lightning
callback need what they are for: ``pip install warptrace[nv-one-logger]`` brings the first of these.

Spans are nested, filtered, exported and disabled by the recorder that the rest of warptrace uses; here are names, value
types and conversions. What differs on purpose is listed in docs/migrate/nv-one-logger.md.
"""
