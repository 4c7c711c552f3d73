// How nodes are joined: a switch (a bridge in a namespace of its own, with a port per node), and in
// each node the bridge `godwit0` with the uplink as a port. One flat segment from capsule to
// capsule, and nothing of it in the machine's own network namespace.
#pragma once

#include "base/result.h"
#include "local/state.h"

namespace godwit::local {

inline constexpr const char* node_bridge = "godwit0";
inline constexpr const char* node_uplink = "eth0";
inline constexpr const char* switch_bridge = "switch";

// In the calling thread's network namespace, which is new.
Result<void> make_switch();
Result<void> connect_node(const ClusterState& cluster, const NodeState& node, int switch_netns_fd);

// Both directions of a node's link. 0: no limit.
Result<void> limit_link(int switch_netns_fd, int node_netns_fd, const NodeId& node,
                        std::uint64_t bits_per_s);

}  // namespace godwit::local
