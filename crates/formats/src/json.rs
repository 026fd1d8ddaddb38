//! JSON as a stream of tokens over bytes, with the place of each.
