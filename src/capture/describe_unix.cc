#include "capture/describe_unix.h"

namespace godwit::capture {

Result<std::vector<std::string>> unix_reasons(std::span<const SocketEntry* const> sockets) {
  std::vector<std::string> reasons;
  for (const SocketEntry* socket : sockets)
    reasons.push_back(socket->whose + " is a Unix socket, which can't move yet");
  return reasons;
}

Result<void> describe_unix_content(const SocketEntry&, const DescribeOwnFd&, image::Socket&) {
  return make_error(Errc::refused, "it is a Unix socket, which can't move yet");
}

Result<void> connect_unix(std::span<const SocketEntry* const>,
                          std::map<std::uint32_t, image::Socket>&) {
  return {};
}

}  // namespace godwit::capture
