//! Writes GPU memory telemetry to a folder of segments.
