//! Settings from flags, environment and a YAML file, in that order.
