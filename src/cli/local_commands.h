// godwit local ...: clusters on this machine. They need no daemon; they make them.
#pragma once

#include <string>

namespace godwit::cli {

struct LocalOptions {
  std::string name;  // Empty: GODWIT_CLUSTER, else "default".
  bool json = false;
  int nodes = 3;
  int cores = 0;
  std::string speeds;     // "1.0,1.0,0.5"
  std::string memory;     // "4G"
  std::string bandwidth;  // "1gbit"
  std::string shared;
  std::string node;  // node, link
  std::string action;
};

int local_up_command(const LocalOptions& options);
int local_status_command(const LocalOptions& options);
int local_down_command(const LocalOptions& options);
int local_node_command(const LocalOptions& options);  // start stop kill-daemon start-daemon
int local_link_command(const LocalOptions& options);  // up down
int local_bandwidth_command(const LocalOptions& options);

}  // namespace godwit::cli
