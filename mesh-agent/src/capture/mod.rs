//! eBPF programs, their maps, and the pods whose connections they steer. aya types stop here.
