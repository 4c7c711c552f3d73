// The root file system of a local node.
#pragma once

#include "base/result.h"
#include "local/state.h"

namespace godwit::local {

// Preconditions: called by the node's PID 1, single-threaded, in mount, PID and UTS namespaces of
// its own that are new. Afterwards "/" is the node's, and nothing of the machine's mounts is left
// but what is said in the essay of node_root.cc.
Result<void> enter_node_root(const ClusterState& cluster, const NodeState& node);

// Once, when the cluster is made: the node's disk with its identity, configuration and key.
struct NodeIdentity {
  std::string authority;    // PEM
  std::string certificate;  // PEM
  std::string key;          // PEM
};
Result<void> make_node_disk(const ClusterState& cluster, const NodeState& node,
                            const NodeIdentity& identity);

}  // namespace godwit::local
