//! Annotations: a line of JSON that labels a moment or a span of the job.
