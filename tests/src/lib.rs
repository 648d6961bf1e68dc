//! Builders for nodes, pods and wires made of network namespaces.
