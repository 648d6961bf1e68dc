//! The integration tests: one binary over real network namespaces.
