//! The sole wiring site: makes every room and connects them.
