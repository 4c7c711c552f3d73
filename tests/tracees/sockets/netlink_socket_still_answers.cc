// A netlink socket that has asked for the links and read the answer keeps its port and its groups,
// and is answered again.
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <sys/socket.h>

#include "tracee.h"
using namespace tracee;

namespace {

// How many links; -1: no answer.
int ask_for_links(int fd) {
  struct {
    nlmsghdr header;
    ifinfomsg body;
  } request{};
  request.header.nlmsg_len = sizeof request;
  request.header.nlmsg_type = RTM_GETLINK;
  request.header.nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP;
  if (send(fd, &request, sizeof request, 0) != sizeof request) return -1;
  int links = 0;
  alignas(nlmsghdr) static char buffer[65'536];
  while (true) {
    ssize_t n = recv(fd, buffer, sizeof buffer, 0);
    if (n <= 0) return -1;
    for (auto* at = reinterpret_cast<nlmsghdr*>(buffer); NLMSG_OK(at, static_cast<size_t>(n));
         at = NLMSG_NEXT(at, n)) {
      if (at->nlmsg_type == NLMSG_DONE) return links;
      if (at->nlmsg_type == NLMSG_ERROR) return -1;
      ++links;
    }
  }
}

std::string groups_of(int fd) {
  uint32_t groups[8] = {};
  socklen_t bytes = sizeof groups;
  if (getsockopt(fd, 270, NETLINK_LIST_MEMBERSHIPS, groups, &bytes) != 0) return "none";
  return std::string(reinterpret_cast<const char*>(groups), sizeof groups);
}

}  // namespace

int main() {
  const int fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
  sockaddr_nl address{};
  address.nl_family = AF_NETLINK;
  address.nl_groups = RTMGRP_LINK;
  need(fd >= 0 && bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0, "bind");
  const int group = RTNLGRP_IPV6_PREFIX, on = 1;
  need(setsockopt(fd, 270, NETLINK_ADD_MEMBERSHIP, &group, sizeof group) == 0, "group");
  need(setsockopt(fd, 270, NETLINK_EXT_ACK, &on, sizeof on) == 0, "NETLINK_EXT_ACK");
  socklen_t length = sizeof address;
  need(getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length) == 0, "getsockname");
  const int links = ask_for_links(fd);
  need(links > 0, "links");
  const std::string groups = groups_of(fd);
  ready();
  wait_moved();
  sockaddr_nl now{};
  check(getsockname(fd, reinterpret_cast<sockaddr*>(&now), &length) == 0, "getsockname");
  same("port", address.nl_pid, now.nl_pid);
  same("groups of its name", address.nl_groups, now.nl_groups);
  same("groups", groups, groups_of(fd));
  same("links", links, ask_for_links(fd));
  return ok();
}
