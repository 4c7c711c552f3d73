#include "daemon/peers.h"

#include <algorithm>

namespace godwit::daemon {

Result<std::unique_ptr<Peers>> Peers::connect(const Config& config) {
  auto peers = std::make_unique<Peers>();
  const rpc::TlsFiles tls{config.tls_ca, config.tls_cert, config.tls_key};
  for (const auto& peer : config.peers) {
    if (peer.name == config.env.node.value) {
      return make_error(Errc::invalid, "peers: {} is this node itself", peer.name);
    }
    peers->peers_.push_back(
        {peer, TRY(rpc::connect_node(peer.name, peer.address, tls, query_limit))});
  }
  return peers;
}

std::vector<std::string> Peers::names() const {
  std::vector<std::string> names;
  for (const auto& peer : peers_) names.push_back(peer.config.name);
  return names;
}

const PeerConfig* Peers::config_of(const std::string& name) const {
  const auto found = std::find_if(peers_.begin(), peers_.end(),
                                  [&](const Peer& peer) { return peer.config.name == name; });
  return found == peers_.end() ? nullptr : &found->config;
}

Result<rpc::NodeClient*> Peers::find(const std::string& name) {
  for (auto& peer : peers_) {
    if (peer.config.name == name) return peer.client.get();
  }
  return make_error(Errc::not_found, "there is no node {} in this cluster", name);
}

}  // namespace godwit::daemon
