//! How control planes are reached, and what becomes of it where they can't be.
