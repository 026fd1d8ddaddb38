//! GPU memory telemetry: records of versions 2, 3, 4 and legacy, sessions, and the folders that sinks write.
