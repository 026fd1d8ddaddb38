//! The run log of inference servers, toy/v1: a line of JSON a record.
