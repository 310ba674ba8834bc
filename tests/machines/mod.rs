//! What concerns a whole machine or project: the doctor, and CI.

mod ci;
mod doctor;
mod server;
