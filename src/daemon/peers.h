// The other nodes of the cluster.
#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/thread_name.h"
#include "daemon/config.h"
#include "rpc/client.h"

namespace godwit::daemon {

class Peers {
 public:
  // A question to all nodes waits this long for the slowest (less for those that were silent last).
  static constexpr std::chrono::milliseconds query_limit{10'000};

  static Result<std::unique_ptr<Peers>> connect(const Config& config);

  std::vector<std::string> names() const;
  const PeerConfig* config_of(const std::string& name) const;
  Result<rpc::NodeClient*> find(const std::string& name);  // Errc::not_found

  // Asks all at the same time; one answer per node, in the order of the configuration.
  template <typename Reply>
  std::vector<std::pair<std::string, Result<Reply>>> ask_all(
      const std::function<Result<Reply>(rpc::NodeClient&)>& question) {
    std::vector<std::pair<std::string, Result<Reply>>> answers;
    for (const auto& peer : peers_) {
      answers.emplace_back(peer.config.name, make_error(Errc::internal, "not asked"));
    }
    std::vector<std::jthread> threads;
    for (std::size_t i = 0; i < peers_.size(); ++i) {
      threads.emplace_back([&, i] {
        name_thread("question");
        answers[i].second = question(*peers_[i].client);
      });
    }
    threads.clear();  // Joins; each question has its own limit.
    return answers;
  }

 private:
  struct Peer {
    PeerConfig config;
    std::unique_ptr<rpc::NodeClient> client;
  };
  std::vector<Peer> peers_;
};

}  // namespace godwit::daemon
