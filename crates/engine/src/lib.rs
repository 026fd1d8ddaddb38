//! Events in, units and findings out: time that adds up.
