// Options of TCP sockets that listen, are connected, or neither: as set, and as they came by
// themselves.
#include "tcp.h"
using namespace tracee;

namespace {

struct Option {
  const char* name;
  int level, number, set_to;  // Set to -1: as it is.
};
const Option options[] = {{"SO_KEEPALIVE", SOL_SOCKET, SO_KEEPALIVE, 1},
                          {"SO_REUSEADDR", SOL_SOCKET, SO_REUSEADDR, 1},
                          {"SO_OOBINLINE", SOL_SOCKET, SO_OOBINLINE, 1},
                          {"SO_RCVLOWAT", SOL_SOCKET, SO_RCVLOWAT, 3},
                          {"SO_PRIORITY", SOL_SOCKET, SO_PRIORITY, 4},
                          {"SO_SNDBUF", SOL_SOCKET, SO_SNDBUF, -1},
                          {"IP_TOS", IPPROTO_IP, IP_TOS, 0x10},
                          {"IP_TTL", IPPROTO_IP, IP_TTL, 33},
                          {"TCP_NODELAY", IPPROTO_TCP, TCP_NODELAY, 1},
                          {"TCP_KEEPIDLE", IPPROTO_TCP, TCP_KEEPIDLE, 77},
                          {"TCP_KEEPINTVL", IPPROTO_TCP, TCP_KEEPINTVL, 7},
                          {"TCP_KEEPCNT", IPPROTO_TCP, TCP_KEEPCNT, 5},
                          {"TCP_USER_TIMEOUT", IPPROTO_TCP, TCP_USER_TIMEOUT, 123'000},
                          {"TCP_SYNCNT", IPPROTO_TCP, TCP_SYNCNT, 4},
                          {"TCP_LINGER2", IPPROTO_TCP, TCP_LINGER2, 11}};

int get(int fd, const Option& option) {
  int value = -2;
  socklen_t bytes = sizeof value;
  return getsockopt(fd, option.level, option.number, &value, &bytes) == 0 ? value : -errno;
}

std::string text(int fd, int level, int name) {
  char value[64] = {};
  socklen_t bytes = sizeof value;
  return getsockopt(fd, level, name, value, &bytes) == 0 ? std::string(value, bytes) : "none";
}

}  // namespace

int main() {
  Listener listener(AF_INET);
  Pair plain(listener), changed(listener);
  const int fresh = socket(AF_INET, SOCK_STREAM, 0), fresh6 = socket(AF_INET6, SOCK_STREAM, 0);
  const linger lingering{1, 5};
  const timeval patience{3, 250'000};
  for (int fd : {changed.client, changed.server, listener.fd, fresh}) {
    for (const Option& option : options)
      if (option.set_to >= 0)
        need(setsockopt(fd, option.level, option.number, &option.set_to, sizeof(int)) == 0, "%s",
             option.name);
    need(setsockopt(fd, SOL_SOCKET, SO_LINGER, &lingering, sizeof lingering) == 0, "SO_LINGER");
    need(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience) == 0, "SO_RCVTIMEO");
    need(setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "reno", 4) == 0, "TCP_CONGESTION");
  }
  const int one = 1;
  need(setsockopt(fresh6, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof one) == 0, "IPV6_V6ONLY");
  const int all[] = {plain.client, plain.server, changed.client, changed.server,
                     listener.fd,  fresh,        fresh6};
  auto look = [&] {
    std::vector<std::pair<std::string, std::string>> seen;
    for (int fd : all) {
      for (const Option& option : options)
        seen.emplace_back("fd " + std::to_string(fd) + " " + option.name,
                          std::to_string(get(fd, option)));
      for (int name : {SO_LINGER, SO_RCVTIMEO, SO_SNDTIMEO})
        seen.emplace_back("fd " + std::to_string(fd) + " option " + std::to_string(name),
                          text(fd, SOL_SOCKET, name));
      seen.emplace_back("fd " + std::to_string(fd) + " TCP_CONGESTION",
                        text(fd, IPPROTO_TCP, TCP_CONGESTION));
      seen.emplace_back("fd " + std::to_string(fd) + " IPV6_V6ONLY",
                        text(fd, IPPROTO_IPV6, IPV6_V6ONLY));
      seen.emplace_back("fd " + std::to_string(fd) + " name", bytes_of(name_of(fd)));
      tcp_info info{};
      socklen_t bytes = sizeof info;
      need(getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &bytes) == 0, "TCP_INFO");
      seen.emplace_back(
          "fd " + std::to_string(fd) + " negotiated",
          std::to_string(info.tcpi_options & ~(TCPI_OPT_ECN | TCPI_OPT_ECN_SEEN | 32)) + " " +
              std::to_string(info.tcpi_snd_wscale) + " " + std::to_string(info.tcpi_rcv_wscale) +
              " " + std::to_string(info.tcpi_state));
    }
    return seen;
  };
  // Follows from the largest window too, which may have grown without having been used yet.
  const Option segment = {"TCP_MAXSEG", IPPROTO_TCP, TCP_MAXSEG, -1};
  const int segment_before = get(plain.client, segment);
  const auto before = look();
  ready();
  wait_moved();
  check(std::abs(get(plain.client, segment) - segment_before) < segment_before / 20,
        "TCP_MAXSEG was %d, is %d", segment_before, get(plain.client, segment));
  const auto now = look();
  for (size_t i = 0; i < before.size(); ++i)
    same(before[i].first.c_str(), before[i].second, now[i].second);
  return ok();
}
