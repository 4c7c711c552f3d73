// A raw socket for ICMP with a filter, bound and connected: it sends and gets what passes the
// filter.
#include <netinet/in.h>
#include <netinet/ip_icmp.h>
#include <sys/socket.h>

#include "tracee.h"
using namespace tracee;

namespace {

uint16_t checksum(const void* data, size_t bytes) {
  uint32_t sum = 0;
  for (size_t i = 0; i < bytes / 2; ++i) sum += static_cast<const uint16_t*>(data)[i];
  while (sum >> 16) sum = (sum & 0xffff) + (sum >> 16);
  return static_cast<uint16_t>(~sum);
}

// The answer, not the question, which would be seen here as well.
bool ping(int fd, uint16_t sequence) {
  icmphdr question{};
  question.type = ICMP_ECHO;
  question.un.echo.id = 77, question.un.echo.sequence = sequence;
  question.checksum = checksum(&question, sizeof question);
  if (send(fd, &question, sizeof question, 0) != sizeof question) return false;
  char packet[256];
  const ssize_t n = recv(fd, packet, sizeof packet, 0);
  if (n < static_cast<ssize_t>(20 + sizeof(icmphdr))) return false;
  icmphdr answer;
  memcpy(&answer, packet + 20, sizeof answer);
  return answer.type == ICMP_ECHOREPLY && answer.un.echo.sequence == sequence;
}

}  // namespace

int main() {
  const int fd = socket(AF_INET, SOCK_RAW, IPPROTO_ICMP);
  if (fd < 0 && errno == EPERM) skip("raw sockets are for those with CAP_NET_RAW");
  sockaddr_in self{};
  self.sin_family = AF_INET;
  self.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const uint32_t all_but_replies = ~(1U << ICMP_ECHOREPLY);
  need(setsockopt(fd, SOL_RAW, 1 /* ICMP_FILTER */, &all_but_replies, sizeof all_but_replies) == 0,
       "ICMP_FILTER");
  need(bind(fd, reinterpret_cast<sockaddr*>(&self), sizeof self) == 0 &&
           connect(fd, reinterpret_cast<sockaddr*>(&self), sizeof self) == 0,
       "bind, connect");
  need(ping(fd, 1), "ping");
  ready();
  wait_moved();
  check(ping(fd, 2), "no answer: errno %d", errno);
  return ok();
}
