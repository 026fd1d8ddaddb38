//! Preload capture end to end: programs that reach CUDA in every way there is, recorded by both doors of the dynamic linker.

mod calls;
mod guest;
mod lab;
mod lives;
mod paused;
mod python;
mod reach;
