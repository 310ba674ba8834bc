//! What concerns a whole project: CI.

mod ci;
