//! Records of spans.
