//! What only the operating system or the processor can say. All of the crate's unsafe code is here.

pub(crate) mod fork;
pub(crate) mod owned;
pub(crate) mod ticks;
