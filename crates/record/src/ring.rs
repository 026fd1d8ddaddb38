//! The ring of one thread in shared memory (written by the preload library, drained by the recorder).
