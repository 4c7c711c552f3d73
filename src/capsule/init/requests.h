// What each request does.
#pragma once

#include "capsule/init/children.h"
#include "capsule/init/connection.h"
#include "capsule/init/relay.h"

namespace godwit::init {

struct HeldFds {
  static constexpr std::size_t tag_bytes_max = 64;
  char tags[capsule::held_fds_max][tag_bytes_max];
  int fds[capsule::held_fds_max];
  int count = 0;
};

struct State {
  explicit State(const TreeEntrance& entrance) : tree(entrance) {}

  // True: `answer` is to be sent.
  bool handle(Connection& client, Packet& request, Packet& answer);

  Connection clients[capsule::clients_max];
  Relay relay;
  TreeEntrance tree;
  ClockBase clock_base;
  HeldFds held;
  bool shutdown = false;

 private:
  Fail dispatch(Connection& client, Packet& request, Packet& answer);
  Fail stream(Connection& client, const Packet& request);
  Fail spawn(Packet& request, Packet& answer);
  Fail spawn_from(const char* data, std::size_t bytes, char** pointers, Packet& answer);
  Fail skeleton(const Packet& request, Packet& answer);
  Fail clocks(const Packet& request, Packet& answer);
  Fail next_pid(const Packet& request, Packet& answer);
  Fail relay_get(Packet& answer);
  Fail relay_put(Packet& request);
  Fail attach(Connection& client, const Packet& request, Packet& answer);
  Fail signal(const Packet& request);
  Fail status(Packet& answer);
  Fail stdio(const Packet& request, Packet& answer);
  Fail read_log(const Packet& request, Packet& answer);
  Fail hold_fd(Packet& request);
  Fail fetch_fd(const Packet& request, Packet& answer);
  Fail drop_fd(const Packet& request);
  Fail hostname(const Packet& request);
};

}  // namespace godwit::init
