#include "restore/unix_messages.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include "sys/socket_options.h"

namespace godwit::restore {
namespace {

constexpr uid_t overflow_uid = 65534;
// Whatever the sender's buffer allowed; it is as before when options are set.
constexpr int send_buffer_bytes = 1 << 28;

void put(msghdr& header, cmsghdr*& part, int type, const void* data, std::size_t bytes) {
  part = part == nullptr ? CMSG_FIRSTHDR(&header) : CMSG_NXTHDR(&header, part);
  part->cmsg_level = SOL_SOCKET;
  part->cmsg_type = type;
  part->cmsg_len = CMSG_LEN(bytes);
  std::memcpy(CMSG_DATA(part), data, bytes);
}

// Who isn't in the capsule any more has no number there: 0, which is how one outside is seen.
std::optional<ucred> credentials_of(const image::Message& message, const FindSkeleton& skeletons) {
  if (!message.has_credentials()) return std::nullopt;
  const image::PeerCredentials& from = message.credentials();
  if (from.pid() == 0 && from.uid() == overflow_uid) return std::nullopt;  // Nobody asked for them.
  const Skeleton* skeleton = from.pid() != 0 ? skeletons(from.pid()) : nullptr;
  return ucred{skeleton != nullptr ? skeleton->node_pid() : ::getpid(), from.uid(), from.gid()};
}

}  // namespace

Result<void> send_message(int sender, const image::Message& message, const std::string* address,
                          const OpenedFiles& opened, const FindSkeleton& skeletons) {
  TRY(sys::set_buffer_size(sender, SO_SNDBUF, send_buffer_bytes));
  std::vector<int> files;
  for (std::uint32_t id : message.files()) {
    auto file = opened.find(id);
    if (file == opened.end())
      return make_error(Errc::invalid, "a message carries open file {}, which the image lacks", id);
    files.push_back(file->second.get());
  }
  const std::optional<ucred> credentials = credentials_of(message, skeletons);
  const std::size_t file_bytes = files.size() * sizeof(int);
  std::vector<char> control((files.empty() ? 0 : CMSG_SPACE(file_bytes)) +
                            (credentials ? CMSG_SPACE(sizeof(ucred)) : 0));
  iovec data{const_cast<char*>(message.data().data()), message.data().size()};
  msghdr header{};
  header.msg_iov = &data, header.msg_iovlen = 1;
  if (address != nullptr) {
    header.msg_name = const_cast<char*>(address->data());
    header.msg_namelen = static_cast<socklen_t>(address->size());
  }
  if (!control.empty()) header.msg_control = control.data(), header.msg_controllen = control.size();
  cmsghdr* part = nullptr;
  if (credentials) put(header, part, SCM_CREDENTIALS, &*credentials, sizeof *credentials);
  if (!files.empty()) put(header, part, SCM_RIGHTS, files.data(), file_bytes);
  const ssize_t n = ::sendmsg(sender, &header, MSG_DONTWAIT | MSG_NOSIGNAL);
  if (n < 0) return os_error(fmt::format("sendmsg({} bytes)", message.data().size()));
  if (static_cast<std::size_t>(n) != message.data().size())
    return make_error(Errc::internal, "sendmsg took {} bytes of {}", n, message.data().size());
  return {};
}

}  // namespace godwit::restore
